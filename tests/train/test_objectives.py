"""What bounds an update, and whose ratio it is: CISPO, REINFORCE and GSPO's sequence ratio, beside the clip.

Oracles: two tokens by hand, finite differences in float64, and TRL's own `GRPOTrainer._compute_loss`, called on a stub.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dunwu.train.losses import add_tallies, policy_loss, state_entropies, token_logprobs, token_weights
from dunwu.train.off_policy import importance_weights, sequence_mask
from dunwu.types import UsageError

F64 = torch.float64
OBJECTIVES = ["clip", "cispo", "reinforce"]
RATIOS = ["token", "sequence"]
EVERY = [(objective, ratio) for objective in OBJECTIVES for ratio in RATIOS]


def f64(*rows: list[float]) -> Tensor:
    return torch.tensor(list(rows), dtype=F64)


# ---- two tokens by hand ---------------------------------------------------------------------------

OLD = f64([0.2, 0.2]).log()
NEW = f64([0.2, 0.3]).log()  # ratios 1 and 1.5; their geometric mean √1.5
ROOT = math.sqrt(1.5)


@pytest.mark.parametrize(
    ("objective", "ratio", "advantage", "value", "gradient"),
    [
        ("clip", "token", 1.0, -(1 + 1.2) / 2, [-0.5, 0.0]),
        ("clip", "token", -1.0, (1 + 1.5) / 2, [0.5, 0.75]),
        # √1.5 = 1.22 is clipped at 1.2 for A = 1; for A = −1 it is not, and each token has half of its gradient.
        ("clip", "sequence", 1.0, -1.2, [0.0, 0.0]),
        ("clip", "sequence", -1.0, ROOT, [ROOT / 2, ROOT / 2]),
        # The weight min(ρ, 1.2) is a constant: gradient −½ ρ̂ A, never 0.
        ("cispo", "token", 1.0, -(math.log(0.2) + 1.2 * math.log(0.3)) / 2, [-0.5, -0.6]),
        ("cispo", "token", -2.0, math.log(0.2) + 1.2 * math.log(0.3), [1.0, 1.2]),
        ("cispo", "sequence", 1.0, -1.2 * (math.log(0.2) + math.log(0.3)) / 2, [-0.6, -0.6]),
        ("reinforce", "token", 3.0, -1.5 * (math.log(0.2) + math.log(0.3)), [-1.5, -1.5]),
        ("reinforce", "sequence", 3.0, -1.5 * (math.log(0.2) + math.log(0.3)), [-1.5, -1.5]),
    ],
)
def test_two_tokens_by_hand(objective: Any, ratio: Any, advantage: float, value: float, gradient: list[float]) -> None:
    policy = NEW.clone().requires_grad_()
    loss, _ = policy_loss(policy, OLD, f64([advantage])[0], torch.full((1, 2), 0.5), objective=objective, ratio=ratio)
    assert loss.item() == pytest.approx(value, abs=1e-12)
    loss.backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx(gradient, abs=1e-12)


def test_a_packed_completion_has_the_ratio_of_its_own_row() -> None:
    """Rows of 1 and 2 tokens, packed with a masked token between: log-ratios ln 2 | NaN | ln 1, ln 1.5."""
    old = f64([0.1, 0.5, 0.2, 0.2])[0].log()
    policy = f64([0.2, math.nan, 0.2, 0.3])[0].log()
    weights, rows = torch.tensor([0.25, 0.0, 0.5, 0.5]), torch.tensor([0, 0, 1, 1])
    advantages = f64([1.0, 1.0, -1.0, -1.0])[0]
    loss, tallies = policy_loss(
        policy, old, advantages, weights, clip_high=None, clip_low=None, ratio="sequence", rows_BT=rows
    )
    assert loss.item() == pytest.approx(-0.25 * 2 + ROOT, abs=1e-12)
    assert tallies["ratio"].count == 3
    assert tallies["ratio"].total == pytest.approx(2 + 2 * ROOT, rel=1e-6)
    with pytest.raises(ValueError, match="rows_BT"):
        policy_loss(policy, old, advantages, weights, ratio="sequence")


def test_bad_objectives_are_named() -> None:
    with pytest.raises(UsageError, match="objective"):
        policy_loss(NEW, OLD, torch.ones(1), torch.ones(1, 2), objective="sapo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="entrop"):
        policy_loss(NEW, OLD, torch.ones(1), torch.ones(1, 2), entropy_coef=0.1)
    with pytest.raises(ValueError, match="token scale"):
        policy_loss(NEW, OLD, torch.ones(1), torch.ones(1, 2), token_scale_BT=torch.ones(2))


# ---- a ragged step, and the gradient by finite differences ----------------------------------------


class Batch:
    """Eight rows of up to six tokens (one of them empty, one with a hole), off-policy, in float64."""

    def __init__(self, seed: int = 0, rows: int = 8, tokens: int = 6) -> None:
        g = torch.Generator().manual_seed(seed)
        self.policy = -1.5 + 0.5 * torch.randn(rows, tokens, generator=g, dtype=F64)
        self.old = self.policy + 0.3 * torch.randn(rows, tokens, generator=g, dtype=F64)
        self.sampler = self.old + 0.3 * torch.randn(rows, tokens, generator=g, dtype=F64)
        self.ref = self.policy + 0.5 * torch.randn(rows, tokens, generator=g, dtype=F64)
        self.entropy = torch.rand(rows, tokens, generator=g, dtype=F64)
        self.advantages = torch.randn(rows, generator=g, dtype=F64)
        self.mask = torch.arange(tokens)[None] < torch.tensor([6, 1, 3, 0, 2, 5, 6, 4][:rows])[:, None]
        self.mask[0, 2] = False
        self.groups = [row // 2 for row in range(rows)]

    def weights(self, loss_norm: Any = "token") -> Tensor:
        return token_weights(self.mask, loss_norm, max_tokens=8, group_ids_B=self.groups).double()


@pytest.mark.parametrize(("objective", "ratio"), EVERY)
def test_the_gradient_is_that_of_finite_differences(objective: Any, ratio: Any) -> None:
    """Of CISPO and REINFORCE the constant weights are held where they are: ρ̂ is part of what is differentiated, not of how."""
    batch = Batch()
    weights = batch.weights()
    shared: dict[str, Any] = {
        "clip_high": 0.25,
        "ref_logprobs_BT": batch.ref,
        "kl_coef": 0.1,
        "kl_estimator": "k3_unbiased",
        "entropy_coef": 0.05,
        "ratio": ratio,
        "objective": objective,
    }

    def loss_of(policy: Tensor) -> Tensor:
        entropy = batch.entropy * policy.square()
        return policy_loss(policy, batch.old, batch.advantages, weights, entropy_BT=entropy, **shared)[0]

    def frozen(policy: Tensor) -> Tensor:
        """The same with CISPO's ρ̂ as a table of numbers."""
        gap = torch.where(batch.mask, batch.policy - batch.old, 0.0)
        if ratio == "sequence":
            gap = (gap.sum(1) / batch.mask.sum(1).clamp(min=1))[:, None].expand_as(gap)
        held = gap.exp().clamp(0.8, 1.25)
        k3 = torch.exp(batch.ref - policy) - (batch.ref - policy) - 1
        terms = -held * batch.advantages[:, None] * policy + 0.1 * torch.exp(policy - batch.old) * k3
        return (weights * (terms - 0.05 * batch.entropy * policy.square())).sum()

    policy = batch.policy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(policy), policy)
    differenced: Callable[[Tensor], Tensor] = frozen if objective == "cispo" else loss_of
    numeric = torch.zeros_like(gradient)
    for place in batch.mask.nonzero().tolist():
        b, t = place
        step = torch.zeros_like(policy)
        step[b, t] = 1e-6
        with torch.no_grad():
            numeric[b, t] = (differenced(batch.policy + step) - differenced(batch.policy - step)) / 2e-6
    torch.testing.assert_close(gradient, numeric, rtol=1e-5, atol=1e-8)
    assert float(gradient.norm()) > 0.05 and not gradient[~batch.mask].any()


# ---- TRL --------------------------------------------------------------------------------------------


def trl_loss(batch: Batch, policy: Tensor, loss_type: str, level: str, low: float, high: float, **more: Any) -> Tensor:
    """`GRPOTrainer._compute_loss` itself, on a stand-in for the trainer that knows the log-probabilities."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    ids = torch.zeros(batch.mask.shape, dtype=torch.long)
    alone = {name: lambda x, **_: x for name in ("gather", "gather_for_metrics", "reduce")}
    accelerator = SimpleNamespace(num_processes=1, sync_gradients=True, **alone)
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (policy, batch.entropy, None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=more.get("delta"),
        get_off_policy_mask=trainer.get_off_policy_mask,
        importance_sampling_level=level,
        beta=more.get("beta", 0.0),
        args=SimpleNamespace(use_bias_correction_kl=more.get("unbiased", False), delta=None, steps_per_generation=1),
        loss_type=loss_type,
        epsilon_low=low,
        epsilon_high=high,
        use_vllm="is_ratio" in more,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=accelerator,
        max_completion_length=8,
        _entropy_bonus_enabled=bool(more.get("entropy_coef")),
        use_adaptive_entropy=False,
        entropy_coef=more.get("entropy_coef", 0.0),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    mask = batch.mask.double()
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "sampling_per_token_logps": batch.sampler,
        "ref_per_token_logps": batch.ref,
        "num_items_in_batch": mask.sum(),
        "importance_sampling_ratio": more.get("is_ratio"),
    }
    loss: Tensor = trainer._compute_loss(stub, None, inputs)
    return loss


def live_batch() -> Batch:
    """TRL counts rows without tokens in its means over rows; ours leave them out."""
    batch = Batch()
    batch.mask[3, 1] = True
    return batch


def agree(batch: Batch, theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]) -> None:
    found = []
    for function in (theirs, ours):
        policy = batch.policy.clone().requires_grad_()
        loss = function(policy)
        found.append((loss.detach(), torch.autograd.grad(loss, policy)[0]))
    assert float(found[0][1].norm()) > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("loss_type", "loss_norm"),
    [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "constant")],
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_trl_has_the_same_clipped_losses(level: Any, loss_type: str, loss_norm: Any, beta: float) -> None:
    batch = live_batch()
    agree(
        batch,
        lambda policy: trl_loss(batch, policy, loss_type, level, 0.2, 0.28, beta=beta),
        lambda policy: policy_loss(
            policy,
            batch.old,
            batch.advantages,
            batch.weights(loss_norm),
            clip_high=0.28,
            ratio=level,
            ref_logprobs_BT=batch.ref,
            kl_coef=beta,
        )[0],
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_trl_has_the_same_cispo(level: Any) -> None:
    """Its `epsilon_high` is the cap itself, ours what is added to 1; below, nothing is cut."""
    batch = live_batch()
    agree(
        batch,
        lambda policy: trl_loss(batch, policy, "cispo", level, 0.2, 1.25),
        lambda policy: policy_loss(
            policy,
            batch.old,
            batch.advantages,
            batch.weights(),
            clip_low=10.0,
            clip_high=0.25,
            objective="cispo",
            ratio=level,
        )[0],
    )


def test_trl_has_the_same_unbiased_kl_and_sequence_mask() -> None:
    """DeepSeek-V3.2's two: the ratio on k3, and failed rows far from the policy left out."""
    batch = live_batch()
    delta = 0.05
    rows = torch.arange(8)[:, None].expand_as(batch.mask)

    def ours(policy: Tensor) -> Tensor:
        flat = (
            x.flatten() for x in (policy, batch.sampler, batch.advantages[:, None].expand_as(policy), rows, batch.mask)
        )
        keep = sequence_mask(*flat, delta=delta).view_as(policy)
        assert 0 < int(keep[batch.mask].sum()) < int(batch.mask.sum())
        return policy_loss(
            policy,
            batch.old,
            batch.advantages,
            batch.weights("sequence"),
            ref_logprobs_BT=batch.ref,
            kl_coef=0.3,
            kl_estimator="k3_unbiased",
            token_scale_BT=keep.float(),
        )[0]

    agree(batch, lambda p: trl_loss(batch, p, "grpo", "token", 0.2, 0.2, beta=0.3, unbiased=True, delta=delta), ours)


def test_trl_weighs_tokens_of_another_sampler_alike() -> None:
    batch = live_batch()
    scale = importance_weights(batch.old, batch.sampler, "truncate", 1.1)
    assert float(scale.max()) == pytest.approx(1.1) and float(scale.min()) < 1
    agree(
        batch,
        lambda policy: trl_loss(batch, policy, "dapo", "token", 0.2, 0.2, is_ratio=scale.double(), beta=0.1),
        lambda policy: policy_loss(
            policy,
            batch.old,
            batch.advantages,
            batch.weights(),
            token_scale_BT=scale,
            ref_logprobs_BT=batch.ref,
            kl_coef=0.1,
        )[0],
    )


def test_trl_has_the_same_entropy_bonus() -> None:
    batch = live_batch()
    base = batch.entropy
    found = []
    for trl in (True, False):
        policy = batch.policy.clone().requires_grad_()
        batch.entropy = base * policy.square()
        loss = (
            trl_loss(batch, policy, "dapo", "token", 0.2, 0.2, entropy_coef=0.3)
            if trl
            else policy_loss(
                policy, batch.old, batch.advantages, batch.weights(), entropy_BT=batch.entropy, entropy_coef=0.3
            )[0]
        )
        found.append((loss.detach(), torch.autograd.grad(loss, policy)[0]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


# ---- one step, however it is cut --------------------------------------------------------------------


def pieces(batch: Batch, cuts: list[list[int]], layout: str, objective: Any, ratio: Any, norm: Any) -> Any:
    """Loss, gradient and metrics of the step from micro-batches of these rows; `wide` adds NaN on both sides."""
    policy = batch.policy.float().clone().requires_grad_()
    weights = token_weights(batch.mask, norm, max_tokens=8, group_ids_B=batch.groups)
    total, parts = 0.0, []
    for rows in cuts:
        tables = [policy, batch.old, batch.ref, batch.entropy, batch.advantages[:, None].expand_as(batch.old)]
        tables = [table[rows].float() for table in tables]
        w, numbers = weights[rows], torch.arange(len(rows))[:, None].expand(len(rows), weights.shape[1])
        if layout == "packed":
            keep = batch.mask[rows]
            tables, w, numbers = [table[keep] for table in tables], w[keep], numbers[keep]
        elif layout == "wide":
            tables = [torch.nn.functional.pad(table, (2, 3), value=math.nan) for table in tables]
            w, numbers = torch.nn.functional.pad(w, (2, 3)), torch.nn.functional.pad(numbers, (2, 3))
        logprobs, old, ref, entropy, advantages = tables
        loss, metrics = policy_loss(
            logprobs,
            old,
            advantages,
            w,
            clip_high=0.25,
            ref_logprobs_BT=ref,
            kl_coef=0.05,
            entropy_BT=entropy,
            entropy_coef=0.02,
            objective=objective,
            ratio=ratio,
            rows_BT=numbers if layout == "packed" else None,
        )
        loss.backward()
        total += loss.item()
        parts.append(metrics)
    return total, policy.grad, add_tallies(parts)


@pytest.mark.parametrize(("objective", "ratio"), EVERY)
@pytest.mark.parametrize("layout", ["padded", "packed", "wide"])
def test_no_cut_changes_loss_gradient_or_metrics(objective: Any, ratio: Any, layout: str) -> None:
    batch = Batch()
    everything = list(range(8))
    for norm in ("token", "sequence", "constant", "prompt"):
        loss, gradient, metrics = pieces(batch, [everything], "padded", objective, ratio, norm)
        assert float(gradient.norm()) > 0.01
        for cuts in ([everything], [[r] for r in everything], [[5, 0, 3], [7, 1, 6, 2, 4]]):
            cut_loss, cut_gradient, cut_metrics = pieces(batch, cuts, layout, objective, ratio, norm)
            assert cut_loss == pytest.approx(loss, abs=1e-6)
            torch.testing.assert_close(cut_gradient, gradient, rtol=0, atol=1e-6)
            assert cut_metrics.keys() == metrics.keys()
            for key, tally in metrics.items():
                assert cut_metrics[key].count == tally.count == int(batch.mask.sum())
                assert cut_metrics[key].mean == pytest.approx(tally.mean, abs=1e-6), key
                assert cut_metrics[key].maximum == pytest.approx(tally.maximum, abs=1e-5), key


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 50),
    st.sampled_from(EVERY),
    st.permutations(range(8)),
    st.lists(st.integers(1, 7), max_size=3),
    st.sampled_from(["padded", "packed", "wide"]),
    st.sampled_from(["token", "sequence", "constant", "prompt"]),
)
def test_no_order_and_no_cut_that_there_is_changes_it(
    seed: int, method: tuple[Any, Any], order: list[int], borders: list[int], layout: str, norm: Any
) -> None:
    batch = Batch(seed)
    edges = [0, *sorted(set(borders)), 8]
    cuts = [list(order[a:b]) for a, b in pairwise(edges)]
    loss, gradient, _ = pieces(batch, [list(range(8))], "padded", *method, norm)
    cut_loss, cut_gradient, _ = pieces(batch, cuts, layout, *method, norm)
    assert cut_loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(cut_gradient, gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("objective", "ratio"), EVERY)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_tokens_are_never_looked_at(objective: Any, ratio: Any, garbage: float) -> None:
    batch = Batch()
    found = []
    for filler in (0.0, garbage):
        policy, old, ref, entropy, scale = (
            torch.where(batch.mask, x, filler)
            for x in (batch.policy, batch.old, batch.ref, batch.entropy, batch.entropy)
        )
        policy.requires_grad_()
        advantages = torch.where(batch.mask, batch.advantages[:, None], filler)
        loss, metrics = policy_loss(
            policy,
            old,
            advantages,
            batch.weights(),
            ref_logprobs_BT=ref,
            kl_coef=0.1,
            entropy_BT=entropy,
            entropy_coef=0.1,
            objective=objective,
            ratio=ratio,
            token_scale_BT=scale,
        )
        found.append((loss.item(), torch.autograd.grad(loss, policy)[0], metrics))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
    assert torch.equal(found[0][1], found[1][1]) and bool(torch.isfinite(found[1][1]).all())


# ---- the sequence ratio's gradient, REINFORCE's baseline ----------------------------------------------


def test_on_policy_all_objectives_have_one_gradient() -> None:
    """At ρ = 1 clip, CISPO and REINFORCE are the same update, GSPO too where every token of a row weighs alike (1/length)."""
    batch = Batch()
    gradients = []
    for objective, ratio in EVERY:
        policy = batch.policy.clone().requires_grad_()
        loss, _ = policy_loss(
            policy,
            policy.detach(),
            batch.advantages,
            batch.weights("sequence"),
            objective=objective,
            ratio=ratio,  # type: ignore[arg-type]
        )
        gradients.append(torch.autograd.grad(loss, policy)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [-3.0, 0.5, 10.0])
def test_a_constant_baseline_leaves_reinforces_expected_gradient_alone(shift: float) -> None:
    """The expectation over a vocabulary of five, exactly: E[(r − b) ∇ log π] is the same for every b."""
    theta = torch.tensor([0.3, -1.0, 0.7, 0.0, 1.2], dtype=F64, requires_grad=True)
    log_p = torch.log_softmax(theta, 0)
    rewards = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5], dtype=F64)
    gradients = []
    for moved in (rewards, rewards - shift):
        loss, _ = policy_loss(log_p, log_p.detach(), moved, log_p.exp().detach(), objective="reinforce")
        gradients.append(torch.autograd.grad(loss, theta, retain_graph=True)[0])
    (true,) = torch.autograd.grad(-(log_p.exp() * rewards).sum(), theta)
    torch.testing.assert_close(gradients[0], true, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], true, rtol=0, atol=1e-12)


# ---- the entropy bonus -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_values", [1, 40, None])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_entropies_and_their_gradient_are_those_of_the_whole_logits(
    temperature: float, chunk_values: int | None, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    states, head = (torch.randn(n, 8, generator=g, dtype=F64) for n in (11, 19))
    upstream = torch.randn(11, generator=g, dtype=F64)
    a, b = (x.to(dtype, copy=True).requires_grad_() for x in (states, head))
    c, d = (x.clone().requires_grad_() for x in (states, head))
    ours = state_entropies(a, b, temperature, chunk_values)
    oracle = torch.distributions.Categorical(logits=c @ d.T / temperature).entropy()
    near = {"rtol": 0.0, "atol": 1e-12} if dtype == F64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours.double(), oracle, **near)
    (ours * upstream.to(dtype)).sum().backward()
    (oracle * upstream).sum().backward()
    assert a.grad is not None and b.grad is not None and c.grad is not None and d.grad is not None
    torch.testing.assert_close(a.grad.double(), c.grad, **near)
    torch.testing.assert_close(b.grad.double(), d.grad, **near)
    measured = token_logprobs((states @ head.T).to(dtype), torch.zeros(11, dtype=torch.long), temperature)[1]
    torch.testing.assert_close(ours.detach(), measured, **near)


def test_the_bonus_raises_the_entropy() -> None:
    states = torch.eye(3, dtype=F64)
    head = torch.tensor([[3.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=F64, requires_grad=True)
    curve = []
    for _ in range(40):
        entropy = state_entropies(states, head)
        zero = torch.zeros(3, dtype=F64)
        loss, _ = policy_loss(zero, zero, zero, torch.full((3,), 1 / 3), entropy_BT=entropy, entropy_coef=1.0)
        (gradient,) = torch.autograd.grad(loss, head)
        curve.append(entropy.mean().item())
        with torch.no_grad():
            head -= gradient
    assert all(a < b for a, b in pairwise(curve)) and curve[-1] > 0.95 * math.log(2)
