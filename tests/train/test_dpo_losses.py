"""Preference losses: by hand, beside TRL's, by finite differences, and at the optima that theory knows."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dunwu.train.dpo import implicit_rewards, pair_or_reply_losses
from dunwu.train.dpo_config import DpoConfig, PreferenceLoss
from dunwu.train.dpo_losses import dpo_loss, ipo_loss, kto_loss, log_odds, orpo_loss, reference_point, simpo_loss
from dunwu.types import UsageError

LOSSES: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "kto", "orpo", "simpo")
T = torch.tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Log-probabilities of tokens: below 0, float64."""
    return -torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - 0.01


# ---- by hand


def test_losses_by_hand() -> None:
    chosen, rejected, ref_chosen, ref_rejected = (
        T([value], dtype=torch.float64) for value in (-2.0, -5.0, -3.0, -3.0)
    )  # log-ratios +1, −2
    pair, other = (chosen, rejected, ref_chosen, ref_rejected), (rejected, chosen, ref_rejected, ref_chosen)
    assert float(dpo_loss(*pair, beta=0.5)) == pytest.approx(math.log1p(math.exp(-1.5)))
    right, wrong = dpo_loss(*pair, 0.5), dpo_loss(*other, 0.5)
    smooth = dpo_loss(*pair, 0.5, label_smoothing=0.2)
    assert float(smooth) == pytest.approx(0.8 * float(right) + 0.2 * float(wrong))
    assert float(ipo_loss(*pair, tau=0.25)) == pytest.approx((3 - 2) ** 2)
    good, bad = (
        kto_loss(chosen, ref_chosen, T([True]), 0.5, 2.0, 3.0),
        kto_loss(rejected, ref_rejected, T([False]), 0.5, 2.0, 1, 5),
    )
    assert float(good) == pytest.approx(3 * (1 - 1 / (1 + math.exp(-2 * (1 - 0.5)))))
    assert float(bad) == pytest.approx(5 * (1 - 1 / (1 + math.exp(-2 * (0.5 + 2)))))
    means = (
        T([0.8], dtype=torch.float64).log(),
        T([0.2], dtype=torch.float64).log(),
    )  # odds 4 and 1/4: their ratio is 16
    assert float(orpo_loss(*means, weight=0.3)) == pytest.approx(-math.log(0.8) + 0.3 * math.log1p(1 / 16))
    assert float(simpo_loss(*means, beta=2.0, gamma=0.5)) == pytest.approx(math.log1p(math.exp(0.5 - 2 * math.log(4))))


@pytest.mark.parametrize("loss", LOSSES)
def test_where_every_loss_begins(loss: PreferenceLoss) -> None:
    """Policy = reference, equal replies: the losses have the values they are known to start from."""
    config = DpoConfig(loss=loss, beta=0.25, simpo_gamma=0.0)
    logprobs, lengths, good = T([-4.0, -4.0]), T([4, 4]), T([True, False])
    first = pair_or_reply_losses(logprobs, logprobs if config.referenced else None, lengths, good, config, 0.0)
    start = {"dpo": math.log(2), "ipo": 4.0, "kto": 0.5, "orpo": 1 + 0.1 * math.log(2), "simpo": math.log(2)}
    assert first.tolist() == pytest.approx([start[loss]] * (2 if loss == "kto" else 1))


def test_odds_are_finite_wherever_a_probability_is() -> None:
    means = T([0.0, -1e-9, -1e-3, -math.log(2), -5.0, -90.0], requires_grad=True)
    odds = log_odds(means)
    torch.autograd.backward(odds.sum())
    odds = odds.detach()
    assert torch.isfinite(odds).all() and means.grad is not None and torch.isfinite(means.grad).all()
    assert float(odds[3]) == pytest.approx(0, abs=1e-6) and float(odds[5]) == pytest.approx(-90)
    assert (odds[:-1] >= odds[1:]).all()


def test_the_reference_point_is_never_below_nothing() -> None:
    assert reference_point(T([-1.0, -4.0]), T([-2.0, -2.0])) == 0.0  # (1 − 2) / 2
    assert reference_point(T([]), T([])) == 0.0
    assert isinstance(reference_point(T([-1.0]), T([-3.0])), float)  # no gradient can go through it


# ---- gradients


@pytest.mark.parametrize("loss", [*LOSSES, "dpo per token", "dpo smoothed", "ipo per token", "kto sft", "simpo sft"])
def test_gradients_are_finite_differences(loss: str) -> None:
    name = loss.partition(" ")[0]
    config = DpoConfig(
        loss=name,  # type: ignore[arg-type]
        beta=0.7,
        label_smoothing=0.2 if loss.endswith("smoothed") else 0.0,
        length_normalize=loss.endswith("token"),
        desirable=1.5,
        sft_coef=0.3 if loss.endswith("sft") else 0.0,
    )
    logprobs, reference, lengths = draw(6) * 4, draw(6, seed=1) * 4, T([3, 5, 4, 4, 7, 3])
    good = T([True, False] * 3)
    ref = reference if config.referenced else None

    def total(x: Tensor) -> Tensor:
        return pair_or_reply_losses(x, ref, lengths, good, config, 0.3)

    assert torch.autograd.gradcheck(total, (logprobs.requires_grad_(),), eps=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(total(logprobs).sum(), logprobs)
    if name == "kto":
        assert (gradient[good] < 0).all() and (gradient[~good] > 0).all()
    elif name in ("dpo", "simpo") and not config.label_smoothing:
        assert (gradient[0::2] < 0).all() and (gradient[1::2] > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-40, -0.1)] * 4), min_size=1, max_size=6),
    st.floats(0.01, 3),
    st.floats(-20, 20),
)
def test_what_both_replies_share_does_not_matter(rows: list[tuple[float, ...]], beta: float, shift: float) -> None:
    """DPO and IPO see differences of log-ratios only: whatever Z(x) the prompt has cancels, and so does a swap of roles."""
    a, b, c, d = torch.tensor(rows, dtype=torch.float64).T
    for loss in (dpo_loss, ipo_loss):
        torch.testing.assert_close(loss(a, b, c, d, beta), loss(a, b, c + shift, d + shift, beta))
        torch.testing.assert_close(loss(a, b, c, d, beta), loss(a, c, b, d, beta))
    # −log σ(m) − −log σ(−m) = −m: what the two judgements of one pair differ by is the margin
    torch.testing.assert_close(dpo_loss(a, b, c, d, beta) - dpo_loss(b, a, d, c, beta), -beta * (a - c - b + d))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-40, -0.1), min_size=2, max_size=8), st.floats(0.01, 3), st.floats(0, 5))
def test_kto_lies_between_nothing_and_its_weight(logprobs: list[float], beta: float, z0: float) -> None:
    x = torch.tensor(logprobs, dtype=torch.float64)
    good, bad = (kto_loss(x, x.flip(0), torch.full(x.shape, flag), z0, beta) for flag in (True, False))
    assert ((good >= 0) & (good <= 1)).all()
    torch.testing.assert_close(good + bad, torch.ones_like(x))  # what one gains the other loses


# ---- TRL


def trl_outputs(logprobs: Tensor) -> SimpleNamespace:
    """What TRL's patched models answer, as far as the losses look."""
    zeros = torch.zeros_like(logprobs)
    return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trl_trainer(kind: Any, **settings: Any) -> Any:
    """A trainer with nothing but what its loss reads."""
    made = kind.__new__(kind)
    same = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
    common = {
        "accelerator": same,
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(made).update(common | settings)
    return made


def masked(lengths: list[int], prompt: int, seed: int) -> tuple[Tensor, Tensor]:
    """(logprobs (S, T − 1), 0 where there is no reply; completion mask (S, T)) of replies behind a prompt."""
    width = prompt + max(lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for line, length in enumerate(lengths):
        mask[line, prompt : prompt + length] = 1
    return draw(len(lengths), width - 1, seed=seed) * mask[:, 1:], mask


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DpoConfig(beta=0.3), "sigmoid"),
        (DpoConfig(beta=0.3, length_normalize=True), "sigmoid_norm"),
        (DpoConfig(loss="ipo", beta=0.3, length_normalize=True), "ipo"),
    ],
    ids=["dpo", "dpo per token", "ipo"],
)
def test_dpo_and_ipo_are_those_of_trl(ours: DpoConfig, theirs: str) -> None:
    kind = pytest.importorskip("trl", reason="TRL is not installed").DPOTrainer
    lengths = [3, 5, 2, 4, 1, 6]  # three chosen, then three rejected
    logprobs, mask = masked(lengths, 4, seed=2)
    reference = masked(lengths, 4, seed=3)[0].sum(1)
    trainer = trl_trainer(
        kind,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[theirs],
        loss_weights=[1.0],
        beta=ours.beta,
        use_weighting=False,
    )
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference.chunk(2), strict=True))
    logprobs.requires_grad_()
    expected = trainer._compute_loss(lambda **inputs: trl_outputs(logprobs), inputs, False)
    (their_gradient,) = torch.autograd.grad(expected, logprobs)

    order = [0, 3, 1, 4, 2, 5]  # ours: pair by pair
    sums, sizes = logprobs.sum(1)[order], torch.tensor(lengths)[order]
    losses = pair_or_reply_losses(sums, reference[order], sizes, T([True, False] * 3), ours, 0.0)
    torch.testing.assert_close(losses.mean(), expected)
    (gradient,) = torch.autograd.grad(losses.mean(), logprobs)
    torch.testing.assert_close(gradient, their_gradient)
    if not ours.length_normalize:
        rewards = implicit_rewards(sums, reference[order], sizes, ours).detach()
        metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
        assert metrics["rewards/chosen"] == pytest.approx(float(rewards[0::2].mean()))
        assert metrics["rewards/margins"] == pytest.approx(float((rewards[0::2] - rewards[1::2]).mean()))
        assert metrics["rewards/accuracies"] == pytest.approx(float((rewards[0::2] > rewards[1::2]).double().mean()))


def test_the_sft_term_is_that_of_trl() -> None:
    """TRL's is the mean over all tokens, ours over each reply first: the same where replies are of one length."""
    kind = pytest.importorskip("trl", reason="TRL is not installed").DPOTrainer
    logprobs, mask = masked([4] * 6, 3, seed=8)
    reference = masked([4] * 6, 3, seed=9)[0].sum(1)
    settings = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False, "beta": 0.3}
    trainer = trl_trainer(kind, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.2], **settings)
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference.chunk(2), strict=True))
    expected = trainer._compute_loss(lambda **inputs: trl_outputs(logprobs), inputs, False)
    order, config = [0, 3, 1, 4, 2, 5], DpoConfig(beta=0.3, sft_coef=0.2)
    sums, good = logprobs.sum(1)[order], T([True, False] * 3)
    losses = pair_or_reply_losses(sums, reference[order], T([4] * 6), good, config, 0.0)
    torch.testing.assert_close(losses.mean(), expected)


def test_kto_is_that_of_trl() -> None:
    kind = pytest.importorskip("trl", reason="TRL is not installed").KTOTrainer
    lengths, labels = [3, 5, 2, 4, 1], [True, False, True, True, False]
    (logprobs, mask), (others, other_mask) = masked(lengths, 4, seed=4), masked(lengths[1:] + lengths[:1], 4, seed=5)
    reference, other_reference = logprobs.sum(1) + draw(5, seed=6) + 1, others.sum(1) + draw(5, seed=7) * 2
    config = DpoConfig(loss="kto", beta=0.4, desirable=1.2, undesirable=0.8)
    trainer = trl_trainer(
        kind,
        calculate_KL=True,
        loss_type="kto",
        beta=config.beta,
        desirable_weight=config.desirable,
        undesirable_weight=config.undesirable,
    )
    logprobs.requires_grad_()
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": torch.tensor(labels)}
    inputs |= {"KL_input_ids": other_mask, "KL_attention_mask": other_mask, "KL_completion_mask": other_mask}
    inputs |= {"ref_logps": reference, "ref_KL_logps": other_reference}

    def model(input_ids: Tensor, **rest: Any) -> SimpleNamespace:
        return trl_outputs(others if input_ids is other_mask else logprobs)

    expected = trainer._compute_loss(model, inputs, False)
    z0 = reference_point(others.sum(1), other_reference)
    assert z0 > 0.5 and trainer._metrics["train"]["kl"] == [pytest.approx(z0)]
    losses = pair_or_reply_losses(logprobs.sum(1), reference, T(lengths), T(labels), config, z0)
    torch.testing.assert_close(losses.mean(), expected)
    gradients = [torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in (losses.mean(), expected)]
    torch.testing.assert_close(*gradients)


def test_orpo_is_that_of_trl() -> None:
    trl = pytest.importorskip("trl.experimental.orpo", reason="TRL is not installed")
    trainer = trl_trainer(trl.ORPOTrainer, beta=0.3)
    chosen, rejected = draw(6).float() * 0.3, draw(6, seed=1).float()
    ratio = trainer.odds_ratio_loss(chosen, rejected)[0]  # β log σ(log odds), of the sign TRL subtracts
    torch.testing.assert_close(orpo_loss(chosen, rejected, 0.3), -chosen - ratio)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_and_smoothed_dpo_are_those_of_trl(smoothing: float) -> None:
    trl = pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed")
    chosen, rejected = draw(6), draw(6, seed=1)
    common = {"alpha": 0.0, "label_smoothing": smoothing, "beta": 2.5, "simpo_gamma": 1.4}
    if not smoothing:
        expected = trl_trainer(trl.CPOTrainer, loss_type="simpo", **common).cpo_loss(chosen, rejected)[0]
        torch.testing.assert_close(simpo_loss(chosen, rejected, 2.5, 1.4), expected)
    # CPO is DPO with a reference that finds all replies alike.
    expected = trl_trainer(trl.CPOTrainer, loss_type="sigmoid", **common).cpo_loss(chosen, rejected)[0]
    nothing = torch.zeros_like(chosen)
    torch.testing.assert_close(dpo_loss(chosen, rejected, nothing, nothing, 2.5, smoothing), expected)


# ---- tables: a handful of replies, the policy a softmax of free numbers, and the expectation over all pairs exact


REWARDS = torch.tensor([1.0, 0.3, -0.2, -1.1, 0.3], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([0.0, 1.5, -1.0, 0.5, 2.0], dtype=torch.float64), 0)
PREFERRED = torch.sigmoid(REWARDS[:, None] - REWARDS[None])
"""Bradley and Terry: P(i beats j)."""


def optimum(loss: Any, preferred: Tensor, steps: int = 200) -> Tensor:
    """log π after minimising Σ_ij P(i beats j) · loss(i chosen, j rejected) from π_ref."""
    logits = REFERENCE.clone().requires_grad_()
    rows = [(i, j) for i, j in itertools.permutations(range(len(REWARDS)), 2)]
    i, j = (torch.tensor(column) for column in zip(*rows))
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        policy = torch.log_softmax(logits, 0)
        total: Tensor = (preferred[i, j] * loss(policy[i], policy[j], REFERENCE[i], REFERENCE[j])).sum()
        torch.autograd.backward(total)
        return float(total.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.log_softmax(logits.detach(), 0)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_finds_the_optimum_of_rlhf(beta: float) -> None:
    """max E[r] − β KL(π ‖ π_ref) has π*(y) ∝ π_ref(y) exp(r(y) / β) (eq. 4); DPO finds it from preferences alone."""
    found = optimum(partial(dpo_loss, beta=beta), PREFERRED)
    torch.testing.assert_close(found, torch.log_softmax(REFERENCE + REWARDS / beta, 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_ipo_finds_its_own_optimum(tau: float) -> None:
    """max E[P(y beats μ)] − τ KL(π ‖ π_ref), μ all replies alike (eq. 6): π* ∝ π_ref exp(P(y beats μ) / τ)."""
    found = optimum(partial(ipo_loss, tau=tau), PREFERRED)
    expected = torch.log_softmax(REFERENCE + PREFERRED.mean(1) / tau, 0)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_sure_judges_drive_dpo_to_infinity_and_ipo_to_a_known_margin() -> None:
    """Reply 0 always beats 1: IPO's margin becomes 1 / (2τ) and stays; DPO's grows without end."""
    sure = torch.zeros_like(PREFERRED)
    sure[0, 1] = 1.0

    def margin(policy: Tensor) -> float:
        return float((policy - REFERENCE)[0] - (policy - REFERENCE)[1])

    for tau in (0.1, 0.5):
        assert margin(optimum(partial(ipo_loss, tau=tau), sure)) == pytest.approx(1 / (2 * tau), abs=1e-7)
    grown = [margin(optimum(partial(dpo_loss, beta=0.5), sure, steps)) for steps in (2, 6, 20)]
    assert grown[0] < grown[1] < grown[2] and grown[2] > 20
    # Of all pairs of a full order, (wins − losses) / (2τK): the least squares of margins that cannot all be 1 / (2τ).
    order = torch.triu(torch.ones_like(PREFERRED), 1)
    found = optimum(partial(ipo_loss, tau=0.5), order) - REFERENCE
    torch.testing.assert_close(
        found - found.mean(), T([4.0, 2.0, 0.0, -2.0, -4.0], dtype=torch.float64) / 5, atol=1e-7, rtol=0
    )


# ---- settings


@pytest.mark.parametrize(
    "change",
    [{"beta": 0.0}, {"rows": 0}, {"held_out": 1.0}, {"label_smoothing": 0.5}, {"simpo_gamma": -1.0}, {"lr": float("nan")},
     {"loss": "ipo", "label_smoothing": 0.1}, {"loss": "simpo", "length_normalize": True}, {"sft_coef": -0.1}, {"loss": "orpo", "sft_coef": 0.1}, {"undesirable": -1.0}],
)  # fmt: skip
def test_settings_that_cannot_work(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DpoConfig(**change).validate()
    DpoConfig().validate()
