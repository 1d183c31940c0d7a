"""The policy loss against oracles: hand-worked numbers, exact expectations over a small vocabulary, TRL's formulas,
and itself cut up in every way an optimizer step can be cut up."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dunwu.train.advantages import group_advantages
from dunwu.train.losses import (
    MAX_LOG_RATIO,
    Tally,
    add_tallies,
    kl_term,
    policy_loss,
    policy_metrics,
    state_logprobs,
    token_logprobs,
    token_weights,
)
from dunwu.types import UsageError

NORMS = ["token", "sequence", "constant", "prompt"]
KLS = ["k1", "k3", "k3_unbiased"]


# ---------------------------------------------------------------------------------------------- the four denominators

# Two rows of one prompt (and, for "prompt", a third and fourth row of another): lengths 1, 3, 2, 0.
TWO_ROWS = torch.tensor([[1, 0, 0], [1, 1, 1]])
FOUR_ROWS = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("loss_norm", "row_weights"),
    [
        ("token", (1 / 4, 1 / 4)),
        ("sequence", (1 / 2, 1 / 6)),
        ("constant", (1 / 10, 1 / 10)),
        ("prompt", (1 / 4, 1 / 4)),
    ],
)
def test_two_rows_by_hand(loss_norm, row_weights):
    weights = token_weights(TWO_ROWS, loss_norm, max_tokens=5, group_ids_B=[7, 7])
    a, b = row_weights
    torch.testing.assert_close(weights, torch.tensor([[a, 0, 0], [b, b, b]]))

    # Per-token losses -A (on-policy, ratio 1): A = 2 for the short row, -1 for the long one.
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    loss, _ = policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -1.0]), weights)
    assert loss.item() == pytest.approx(-2 * a + 3 * b)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2 * a, 0, 0], [b, b, b]]))


@pytest.mark.parametrize(
    ("loss_norm", "row_weights"),
    [
        ("token", (1 / 6, 1 / 6, 1 / 6)),
        ("sequence", (1 / 3, 1 / 9, 1 / 6)),
        ("constant", (1 / 15, 1 / 15, 1 / 15)),
        ("prompt", (1 / 8, 1 / 8, 1 / 4)),
    ],
)
def test_a_row_without_tokens_is_in_no_denominator(loss_norm, row_weights):
    """Truncated rows masked by the caller leave numerator and denominator: three live rows, two live prompts."""
    weights = token_weights(FOUR_ROWS, loss_norm, max_tokens=5, group_ids_B=[3, 3, 1, 9])
    torch.testing.assert_close(weights, FOUR_ROWS * torch.tensor([*row_weights, 0.0])[:, None])
    without = token_weights(FOUR_ROWS[:3], loss_norm, max_tokens=5, group_ids_B=[3, 3, 1])
    assert torch.equal(weights[:3], without)


def test_weights_of_a_mean_sum_to_one():
    mask = torch.rand(16, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    for loss_norm in ("token", "sequence", "prompt"):
        weights = token_weights(mask, loss_norm, group_ids_B=[i // 4 for i in range(16)])
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
        assert torch.equal(weights > 0, mask)


@pytest.mark.parametrize(
    ("loss_norm", "kwargs"),
    [("constant", {}), ("constant", {"max_tokens": 0}), ("prompt", {}), ("prompt", {"group_ids_B": [1]}), ("mean", {})],
)
def test_bad_norms_are_named(loss_norm, kwargs):
    with pytest.raises(UsageError, match=loss_norm):
        token_weights(TWO_ROWS, loss_norm, **kwargs)


# --------------------------------------------------------------- one optimizer step, however it is cut: loss, gradient


class Step:
    """A ragged step of 8 rows from 3 prompts and a two-matrix model, off-policy and with a reference."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(1)
        self.inputs = torch.randint(13, (8, 11), generator=g)
        self.targets = torch.randint(13, (8, 11), generator=g)
        lengths = torch.tensor([11, 3, 7, 1, 0, 5, 9, 2])
        self.mask = torch.arange(11)[None, :] < lengths[:, None]
        self.mask[0, 4] = False  # a hole: a tool's output
        self.old = -2.5 + 0.3 * torch.randn(8, 11, generator=g)
        self.ref = -2.5 + 0.3 * torch.randn(8, 11, generator=g)
        self.advantages = torch.randn(8, generator=g)
        self.group_ids = [0, 0, 0, 1, 1, 1, 2, 2]
        self.embedding = 0.5 * torch.randn(13, 6, generator=g)
        self.head = 0.5 * torch.randn(6, 13, generator=g)

    def run(self, cuts, loss_norm, kl_estimator="k3", layout="padded", naive=False):
        """Loss, gradient and metrics when the rows are processed in the micro-batches `cuts` (lists of rows)."""
        embedding, head = self.embedding.clone().requires_grad_(), self.head.clone().requires_grad_()
        weights = token_weights(self.mask, loss_norm, max_tokens=12, group_ids_B=self.group_ids)
        total, parts = 0.0, []
        for rows in cuts:
            w = weights[rows]
            if naive:  # the classic defect: normalise each micro-batch by itself, then average
                ids = [self.group_ids[r] for r in rows]
                w = token_weights(self.mask[rows], loss_norm, max_tokens=12, group_ids_B=ids) / len(cuts)
            inputs, targets, old, ref = self.inputs[rows], self.targets[rows], self.old[rows], self.ref[rows]
            advantages = self.advantages[rows][:, None].expand(w.shape)
            if layout == "packed":  # one long row, no padding at all
                keep = self.mask[rows]
                inputs, targets, old, ref, advantages, w = (x[keep] for x in (inputs, targets, old, ref, advantages, w))
            elif layout == "wide":  # four more columns of garbage on the right, two on the left
                inputs, targets = (torch.nn.functional.pad(x, (2, 4), value=5) for x in (inputs, targets))
                old, ref, advantages = (
                    torch.nn.functional.pad(x, (2, 4), value=math.nan) for x in (old, ref, advantages)
                )
                w = torch.nn.functional.pad(w, (2, 4))
            logprobs, entropy = token_logprobs(embedding[inputs] @ head, targets, 0.8)
            loss, metrics = policy_loss(
                logprobs,
                old,
                advantages,
                w,
                clip_high=0.28,
                ref_logprobs_BT=ref,
                kl_coef=0.05,
                kl_estimator=kl_estimator,
                entropy_BT=entropy,
            )
            loss.backward()
            total += loss.item()
            parts.append(metrics)
        return total, torch.cat([embedding.grad.flatten(), head.grad.flatten()]), add_tallies(parts)


ROWS = list(range(8))
CUTS = {
    "8x1": [[r] for r in ROWS],
    "2x4": [ROWS[:4], ROWS[4:]],
    "uneven": [ROWS[:1], ROWS[1:6], ROWS[6:]],
    "permuted": [[5, 0, 3, 7, 1, 6, 2, 4]],
    "permuted 2x4": [[5, 0, 3, 7], [1, 6, 2, 4]],
}


@pytest.mark.parametrize("loss_norm", NORMS)
@pytest.mark.parametrize("layout", ["padded", "packed", "wide"])
def test_loss_gradient_and_metrics_do_not_depend_on_the_cut(loss_norm, layout):
    step = Step()
    loss, gradient, metrics = step.run([ROWS], loss_norm)
    assert gradient.norm() > 0.05
    for name, cuts in {"1x8": [ROWS], **CUTS}.items():
        cut_loss, cut_gradient, cut_metrics = step.run(cuts, loss_norm, layout=layout)
        assert cut_loss == pytest.approx(loss, abs=1e-6), name
        torch.testing.assert_close(cut_gradient, gradient, rtol=0.0, atol=1e-6, msg=name)
        assert cut_metrics.keys() == metrics.keys()
        for key, tally in metrics.items():
            assert cut_metrics[key].count == tally.count == 37, (name, key)
            assert cut_metrics[key].mean == pytest.approx(tally.mean, abs=1e-6), (name, key)
            assert cut_metrics[key].maximum == pytest.approx(tally.maximum, abs=1e-5), (name, key)


@pytest.mark.parametrize("kl_estimator", KLS)
def test_every_kl_term_is_invariant_too(kl_estimator):
    step = Step()
    loss, gradient, _ = step.run([ROWS], "token", kl_estimator)
    cut_loss, cut_gradient, _ = step.run(CUTS["uneven"], "token", kl_estimator, layout="packed")
    assert cut_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(cut_gradient, gradient, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("loss_norm", NORMS)
def test_the_invariance_test_can_fail(loss_norm):
    """Averaging per-micro-batch means, the defect of several trainers, is far outside its tolerance."""
    step = Step()
    _, gradient, _ = step.run([ROWS], loss_norm)
    _, naive, _ = step.run(CUTS["uneven"], loss_norm, naive=True)
    assert (naive - gradient).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------- TRL as the oracle


def trl_loss(policy, old, ref, advantages, mask, loss_type, epsilon_low, epsilon_high, beta, max_completion_length):
    """TRL's documented objective ("Loss Types" of its GRPO page), row by row and token by token."""
    rows, per_row, tokens = [], [], 0
    for b in range(len(policy)):
        losses = []
        for t in range(len(policy[b])):
            if not mask[b][t]:
                continue
            ratio = torch.exp(policy[b][t] - old[b][t])
            clipped = min(max(ratio.item(), 1 - epsilon_low), 1 + epsilon_high)
            free, bound = ratio * advantages[b], clipped * advantages[b]
            surrogate = free if free.item() <= bound else bound
            log_r = ref[b][t] - policy[b][t]
            losses.append(-(surrogate - beta * (torch.exp(log_r) - log_r - 1)))
        rows.append(sum(losses))
        per_row.append(sum(losses) / len(losses))
        tokens += len(losses)
    if loss_type == "grpo":
        return sum(per_row) / len(per_row)
    if loss_type == "dr_grpo":
        return sum(rows) / (len(rows) * max_completion_length)
    return sum(rows) / tokens  # "dapo"; "bnpo" is the same when the step is one micro-batch


@pytest.mark.parametrize(
    ("loss_type", "loss_norm"),
    [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "constant")],
)
@pytest.mark.parametrize("scale_rewards", ["none", "group", "batch"])
def test_from_rewards_to_gradient_as_trl_documents_it(loss_type, loss_norm, scale_rewards):
    g = torch.Generator().manual_seed(2)
    rewards_PG = [[1.0, 0.0, 0.5, 2.0], [0.0, 0.0, 1.0, 0.0]]
    r = torch.tensor(rewards_PG)
    std = {"none": 1.0, "group": r.std(dim=1, keepdim=True) + 1e-4, "batch": r.std() + 1e-4}[scale_rewards]
    trl_advantages = ((r - r.mean(dim=1, keepdim=True)) / std).flatten()

    policy = (-1.5 + 0.5 * torch.randn(8, 6, generator=g)).requires_grad_()
    old = policy.detach() + 0.3 * torch.randn(8, 6, generator=g)
    ref = policy.detach() + 0.5 * torch.randn(8, 6, generator=g)
    mask = torch.arange(6)[None, :] < torch.tensor([6, 1, 3, 2, 5, 6, 4, 1])[:, None]
    expected = trl_loss(policy, old, ref, trl_advantages, mask, loss_type, 0.2, 0.28, 0.04, 10)
    (expected_grad,) = torch.autograd.grad(expected, policy)

    ours_PG, _ = group_advantages(rewards_PG, scale_rewards, std_eps=1e-4, std_ddof=1)
    advantages = torch.tensor(ours_PG).flatten()
    weights = token_weights(mask, loss_norm, max_tokens=10)
    loss, _ = policy_loss(
        policy, old, advantages, weights, clip_low=0.2, clip_high=0.28, ref_logprobs_BT=ref, kl_coef=0.04
    )
    (grad,) = torch.autograd.grad(loss, policy)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=0.0, atol=1e-6)


# ------------------------------------------------------------------------------------------- clipping, both directions


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip_low", "clip_high", "surrogate", "trains", "low", "high"),
    [
        (1.0, 2.0, 0.2, 0.3, 2.0, True, 0, 0),
        (1.25, 2.0, 0.2, 0.3, 2.5, True, 0, 0),  # inside, because the clip is asymmetric
        (1.5, 2.0, 0.2, 0.3, 2.6, False, 0, 1),
        (0.5, 2.0, 0.2, 0.3, 1.0, True, 0, 0),  # a good token made rarer: must still be pulled back
        (0.5, -2.0, 0.2, 0.3, -1.6, False, 1, 0),
        (0.75, -2.0, 0.3, 0.2, -1.5, True, 0, 0),
        (1.5, -2.0, 0.2, 0.3, -3.0, True, 0, 0),  # a bad token made likelier: must still be pushed down
        (1.5, 2.0, 0.2, None, 3.0, True, 0, 0),
        (0.5, -2.0, None, 0.3, -1.0, True, 0, 0),
        (5.0, 2.0, None, None, 10.0, True, 0, 0),
        (10.5, 2.0, 10.0, 10.0, 21.0, True, 0, 0),  # R1's epsilon = 10 clips only above 11
        (11.5, 2.0, 10.0, 10.0, 22.0, False, 0, 1),
        (0.001, -2.0, 10.0, 10.0, -0.002, True, 0, 0),
    ],
)
def test_clip_table(ratio, advantage, clip_low, clip_high, surrogate, trains, low, high):
    policy = torch.tensor([[math.log(ratio) - 3.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-3.0]], dtype=torch.float64)
    loss, metrics = policy_loss(
        policy, old, torch.tensor([advantage]), torch.ones(1, 1), clip_low=clip_low, clip_high=clip_high
    )
    assert loss.item() == pytest.approx(-surrogate, abs=1e-9)
    loss.backward()
    assert policy.grad.item() == pytest.approx(-ratio * advantage if trains else 0.0, abs=1e-9)
    assert (metrics["clip_low_frac"].total, metrics["clip_high_frac"].total) == (low, high)


# --------------------------------------------------------------------- exact expectations: no sampling, a vocabulary of 5


class Categorical:
    """One position, five tokens: every expectation is a sum. `old` is the policy itself or another distribution."""

    def __init__(self, on_policy: bool) -> None:
        g = torch.Generator().manual_seed(3)
        self.theta = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)
        self.ref = torch.log_softmax(torch.randn(5, generator=g, dtype=torch.float64), 0)
        other = torch.log_softmax(torch.randn(5, generator=g, dtype=torch.float64), 0)
        self.log_policy = torch.log_softmax(self.theta, 0)
        self.old = self.log_policy.detach() if on_policy else other

    def expected_loss(self, advantages, **kwargs):
        """E over tokens drawn from `old` of the loss of that token: the probabilities are the weights."""
        loss, _ = policy_loss(
            self.log_policy, self.old, advantages, self.old.exp(), clip_low=None, clip_high=None, **kwargs
        )
        return loss

    def grad(self, scalar):
        return torch.autograd.grad(scalar, self.theta, retain_graph=True)[0]

    def kl(self):
        return (self.log_policy.exp() * (self.log_policy - self.ref)).sum()

    def forward_kl(self):
        return (self.ref.exp() * (self.ref - self.log_policy)).sum()


@pytest.mark.parametrize("on_policy", [True, False])
def test_policy_gradient_is_the_gradient_of_expected_advantage(on_policy):
    c = Categorical(on_policy)
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    objective = (c.log_policy.exp() * advantages).sum()
    loss = c.expected_loss(advantages)
    assert loss.item() == pytest.approx(-objective.item(), abs=1e-7)  # the weights are fp32
    torch.testing.assert_close(c.grad(loss), -c.grad(objective), rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("estimator", ["k1", "k3_unbiased"])
def test_k1_and_k3_unbiased_have_the_value_and_gradient_of_kl(estimator, on_policy):
    c = Categorical(on_policy)
    loss = c.expected_loss(
        torch.zeros(5, dtype=torch.float64), ref_logprobs_BT=c.ref, kl_coef=1.0, kl_estimator=estimator
    )
    assert c.grad(c.kl()).norm() > 0.1
    assert loss.item() == pytest.approx(c.kl().item(), abs=1e-7)
    torch.testing.assert_close(c.grad(loss), c.grad(c.kl()), rtol=0.0, atol=1e-7)


def test_k3_has_the_value_of_kl_and_the_gradient_of_forward_kl():
    c = Categorical(on_policy=True)
    loss = c.expected_loss(torch.zeros(5, dtype=torch.float64), ref_logprobs_BT=c.ref, kl_coef=1.0, kl_estimator="k3")
    assert loss.item() == pytest.approx(c.kl().item(), abs=1e-7)
    torch.testing.assert_close(c.grad(loss), c.grad(c.forward_kl()), rtol=0.0, atol=1e-7)
    assert (c.grad(loss) - c.grad(c.kl())).norm() > 0.1  # it really is a different direction


def test_k1_differentiated_naively_would_do_nothing():
    """Why "k1" is rho * stop_gradient(d): the expected gradient of d itself is zero."""
    c = Categorical(on_policy=True)
    naive = (c.old.exp() * (c.log_policy - c.ref)).sum()
    assert naive.item() == pytest.approx(c.kl().item(), abs=1e-12)
    assert c.grad(naive).norm() < 1e-12


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        # rho = 2, d = log 4: worked per token, not only in expectation.
        ("k1", 2 * math.log(4), 2 * math.log(4)),
        ("k3", 0.25 + math.log(4) - 1, 1 - 0.25),
        ("k3_unbiased", 2 * (0.25 + math.log(4) - 1), 2 * (0.25 + math.log(4) - 1) + 2 * (1 - 0.25)),
    ],
)
def test_kl_terms_of_one_token_by_hand(estimator, value, gradient):
    policy = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old, ref = policy.detach() - math.log(2), policy.detach() - math.log(4)
    term = kl_term(policy, old, ref, estimator)
    assert term.item() == pytest.approx(value, abs=1e-12)
    term.sum().backward()
    assert policy.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_kl_terms_off_policy_need_the_ratio():
    c = Categorical(on_policy=False)
    k3 = (c.old.exp() * kl_term(c.log_policy, c.old, c.ref, "k3")).sum()
    assert abs(k3.item() - c.kl().item()) > 0.05
    assert (c.grad(k3) - c.grad(c.kl())).norm() > 0.1


@pytest.mark.parametrize("estimator", KLS)
def test_kl_is_zero_and_pulls_nowhere_at_the_reference(estimator):
    c = Categorical(on_policy=True)
    loss = c.expected_loss(
        torch.zeros(5, dtype=torch.float64), ref_logprobs_BT=c.log_policy.detach(), kl_coef=1.0, kl_estimator=estimator
    )
    assert loss.item() == 0.0
    assert c.grad(loss).norm() < 1e-12


def test_kl_coef_scales_and_bad_names_are_named():
    c = Categorical(on_policy=False)
    zero = torch.zeros(5, dtype=torch.float64)
    one, half = (c.expected_loss(zero, ref_logprobs_BT=c.ref, kl_coef=k).item() for k in (1.0, 0.5))
    assert half == pytest.approx(one / 2)
    assert c.expected_loss(zero, ref_logprobs_BT=c.ref, kl_coef=0.0).item() == 0.0
    with pytest.raises(UsageError, match="k2"):
        c.expected_loss(zero, ref_logprobs_BT=c.ref, kl_coef=1.0, kl_estimator="k2")
    with pytest.raises(UsageError, match="reference"):
        c.expected_loss(zero, kl_coef=1.0)


# ------------------------------------------------------------------------------------------------ the first on-policy pass


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_ratio_is_exactly_one_and_kl_zero_on_policy(temperature):
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 5, 17, generator=g, requires_grad=True)
    ids = torch.randint(17, (3, 5), generator=g)
    logprobs, _ = token_logprobs(logits, ids, temperature)
    again, _ = token_logprobs(logits.detach(), ids, temperature)
    weights = token_weights(torch.ones(3, 5), "token")
    advantages = torch.tensor([1.0, -1.0, 0.5])
    loss, metrics = policy_loss(logprobs, again, advantages, weights, ref_logprobs_BT=again, kl_coef=0.1)
    assert metrics["ratio"] == Tally(15.0, 15, 1.0)
    assert metrics["approx_kl"] == metrics["ref_kl"] == Tally(0.0, 15, 0.0)
    assert metrics["clip_low_frac"].total == metrics["clip_high_frac"].total == 0.0
    # ... and the gradient is that of plain REINFORCE.
    loss.backward()
    leaf = logits.detach().requires_grad_()
    chosen = torch.log_softmax(leaf / temperature, -1).gather(-1, ids[..., None]).squeeze(-1)
    (-(chosen * advantages[:, None]).mean()).backward()
    torch.testing.assert_close(logits.grad, leaf.grad, rtol=0.0, atol=1e-7)


def test_another_temperature_in_the_sampler_shows_in_the_ratio():
    logits = torch.tensor([[[2.0, 0.0, -1.0]]])
    ids = torch.tensor([[0]])
    trainer, _ = token_logprobs(logits, ids, 1.0)
    sampler, _ = token_logprobs(logits, ids, 0.6)
    metrics = policy_metrics(trainer, sampler, torch.ones(1), torch.ones(1, 1), clip_low=None, clip_high=None)
    hand = (math.exp(2) / (math.exp(2) + 1 + math.exp(-1))) / (
        math.exp(2 / 0.6) / (math.exp(2 / 0.6) + 1 + math.exp(-1 / 0.6))
    )
    assert metrics["ratio"].mean == pytest.approx(hand, rel=1e-6)
    assert hand < 0.9


# ------------------------------------------------------------------------------- overflow, padding, nothing left to train


@pytest.mark.parametrize("kl_estimator", KLS)
@pytest.mark.parametrize("gap", [-1e4, -200.0, 200.0, 1e4])
def test_a_huge_log_ratio_stays_finite(kl_estimator, gap):
    policy = torch.tensor([[-1.0, gap]], requires_grad=True)
    old, ref = torch.tensor([[-1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    for advantage in (1.0, -1.0):
        policy.grad = None
        loss, metrics = policy_loss(
            policy,
            old,
            torch.tensor([advantage]),
            torch.full((1, 2), 0.5),
            ref_logprobs_BT=ref,
            kl_coef=0.1,
            kl_estimator=kl_estimator,
        )
        loss.backward()
        assert math.isfinite(loss.item())
        assert torch.isfinite(policy.grad).all()
        assert all(math.isfinite(t.total) and math.isfinite(t.maximum) for t in metrics.values())
        assert metrics["ratio"].maximum <= math.exp(MAX_LOG_RATIO) * 1.0001


def test_far_above_the_reference_k3_still_pulls_back():
    """d = 50: the clamp must not switch the gradient off, it is 1 - exp(-50) = 1."""
    policy = torch.tensor([-1.0], requires_grad=True)
    kl_term(policy, policy.detach(), torch.tensor([-51.0]), "k3").sum().backward()
    assert policy.grad.item() == 1.0


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kl_estimator", KLS)
def test_masked_tokens_are_never_looked_at(garbage, kl_estimator):
    mask = torch.tensor([[True, True, False], [False, False, False]])
    clean = torch.full((2, 3), -1.0)
    dirty = torch.where(mask, clean, garbage)
    weights = token_weights(mask, "token")
    results = []
    for filler, advantages in ((clean, [1.0, 0.0]), (dirty, [1.0, garbage])):
        policy = filler.clone().requires_grad_()
        loss, metrics = policy_loss(
            policy,
            filler - 0.1,
            torch.tensor(advantages),
            weights,
            ref_logprobs_BT=filler - 0.2,
            kl_coef=0.3,
            kl_estimator=kl_estimator,
            entropy_BT=filler,
        )
        loss.backward()
        results.append((loss.item(), policy.grad, metrics))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]
    assert torch.equal(results[1][1] != 0, mask)


@pytest.mark.parametrize("loss_norm", NORMS)
@pytest.mark.parametrize("kl_estimator", KLS)
def test_an_all_masked_batch_is_zero_with_zero_gradient(loss_norm, kl_estimator):
    weights = token_weights(torch.zeros(2, 3), loss_norm, max_tokens=3, group_ids_B=[0, 1])
    assert torch.equal(weights, torch.zeros(2, 3))
    policy = torch.full((2, 3), -1.0, requires_grad=True)
    ref = policy.detach() - 1
    loss, metrics = policy_loss(
        policy, ref, torch.ones(2), weights, ref_logprobs_BT=ref, kl_coef=1.0, kl_estimator=kl_estimator
    )
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(policy.grad, torch.zeros(2, 3))
    assert all(t.count == 0 and t.mean == 0.0 for t in metrics.values())


@pytest.mark.parametrize("loss_norm", NORMS)
def test_overlong_rows_masked_out_equal_rows_never_sampled(loss_norm):
    """Numerator and denominator: the gradient is that of the batch without them, not a smaller one."""
    step = Step()
    step.mask[0] = step.mask[6] = False
    loss, gradient, _ = step.run([ROWS], loss_norm)
    kept = [r for r in ROWS if r not in (0, 6)]
    only = Step()
    for name in ("inputs", "targets", "mask", "old", "ref", "advantages"):
        setattr(only, name, getattr(only, name)[kept])
    only.group_ids = [only.group_ids[r] for r in kept]
    kept_loss, kept_gradient, _ = only.run([list(range(6))], loss_norm)
    assert loss == pytest.approx(kept_loss, abs=1e-6)
    torch.testing.assert_close(gradient, kept_gradient, rtol=0.0, atol=1e-6)


def test_the_stop_token_trains_and_padding_of_the_same_id_does_not():
    """Masks go by position: here pad == stop, and only the first of them is inside the completion."""
    stop = 2
    ids = torch.tensor([[5, 4, stop, stop, stop]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    logits = torch.zeros(1, 5, 7, requires_grad=True)
    logprobs, _ = token_logprobs(logits, ids)
    policy_loss(logprobs, logprobs.detach(), torch.ones(1), token_weights(mask, "token"))[0].backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [True, True, True, False, False]


def test_shapes_that_would_broadcast_silently_are_refused():
    square = torch.zeros(3, 3)
    good = {"old_logprobs_BT": square, "advantages": torch.zeros(3), "weights_BT": square}
    policy_loss(square, **good)
    for name in good:
        with pytest.raises(ValueError, match=name.split("_")[0]):
            policy_loss(square, **{**good, name: torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="ref"):
        policy_loss(square, **good, ref_logprobs_BT=torch.zeros(3))


# ---------------------------------------------------------------------------------------------------- metrics by hand


def test_metrics_of_two_tokens_by_hand():
    """Ratios 2 and 1/2 with A = 1 and A = -1; a third, masked token must not show anywhere."""
    log2 = math.log(2.0)
    policy = torch.tensor([[-1.0, -3.0], [-2.0, -1.0]], dtype=torch.float64)
    old = torch.tensor([[-1.0 - log2, 50.0], [-2.0 + log2, 50.0]], dtype=torch.float64)
    ref = torch.tensor([[-1.0 - log2, 50.0], [-2.0, 50.0]], dtype=torch.float64)
    entropy = torch.tensor([[0.5, 99.0], [1.5, 99.0]])
    mask = torch.tensor([[True, False], [True, False]])
    metrics = policy_metrics(
        policy,
        old,
        torch.tensor([1.0, -1.0]),
        mask,
        clip_low=0.2,
        clip_high=0.2,
        ref_logprobs_BT=ref,
        entropy_BT=entropy,
    )
    by_hand = {
        "ratio": (2.5, 2.0),
        "approx_kl": ((2 - 1 - log2) + (0.5 - 1 + log2), 2 - 1 - log2),
        "clip_low_frac": (1.0, 1.0),
        "clip_high_frac": (1.0, 1.0),
        "ref_kl": (0.5 + log2 - 1, 0.5 + log2 - 1),
        "entropy": (2.0, 1.5),
    }
    assert metrics.keys() == by_hand.keys()
    for key, (total, maximum) in by_hand.items():
        assert metrics[key].count == 2
        assert metrics[key].total == pytest.approx(total, abs=1e-12), key
        assert metrics[key].maximum == pytest.approx(maximum, abs=1e-12), key
        assert metrics[key].mean == pytest.approx(total / 2, abs=1e-12), key


def test_only_the_policy_gets_a_gradient():
    tensors = [torch.full((2, 3), -1.0, requires_grad=True) for _ in range(4)]
    policy, old, ref, advantages = tensors
    weights = token_weights(torch.ones(2, 3), "token")
    policy_loss(policy, old, advantages, weights, ref_logprobs_BT=ref, kl_coef=1.0, kl_estimator="k3_unbiased")[
        0
    ].backward()
    assert [x.grad is not None for x in tensors] == [True, False, False, False]


def test_metrics_leave_the_graph_alone():
    policy = torch.zeros(1, 2, requires_grad=True)
    metrics = policy_metrics(policy, policy, torch.ones(1), torch.ones(1, 2), clip_low=0.2, clip_high=0.2)
    assert all(isinstance(t.total, float) for t in metrics.values())


def test_tallies_add_up():
    parts = [{"a": Tally(1.0, 2, 0.75)}, {"a": Tally(5.0, 1, 5.0), "b": Tally(1.0, 1, 1.0)}, {}]
    assert add_tallies(parts) == {"a": Tally(6.0, 3, 5.0), "b": Tally(1.0, 1, 1.0)}
    assert add_tallies([]) == {}


# -------------------------------------------------------------------------------------------- log-probabilities of tokens


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("chunk_values", [1, 40, 10**6])
def test_token_logprobs_equal_log_softmax_in_value_and_gradient(temperature, chunk_values):
    g = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(3, 7, 13, generator=g, dtype=torch.float64)
    ids = torch.randint(13, (3, 7), generator=g)
    upstream = torch.randn(3, 7, generator=g, dtype=torch.float64)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprobs, entropy = token_logprobs(a, ids, temperature, chunk_values)
    log_p = torch.log_softmax(b / temperature, -1)
    expected = log_p.gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(logprobs, expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=log_p).entropy(), rtol=0.0, atol=1e-12)
    assert not entropy.requires_grad
    (logprobs * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=0.0, atol=1e-12)


def test_token_logprobs_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert token_logprobs(logits, torch.tensor([0]))[0].item() == pytest.approx(math.log(0.75), abs=1e-6)
    # At T = 1/2 the odds are squared: 9 to 1.
    logprob, entropy = token_logprobs(logits, torch.tensor([0]), 0.5)
    assert logprob.item() == pytest.approx(math.log(0.9), abs=1e-6)
    assert entropy.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-6)


def test_entropy_limits():
    uniform = torch.zeros(1, 8)
    forbidden = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    certain = torch.tensor([[1e4, 0.0, -1e4]])
    for logits, nats in ((uniform, math.log(8)), (forbidden, math.log(2)), (certain, 0.0)):
        assert token_logprobs(logits, torch.tensor([0]))[1].item() == pytest.approx(nats, abs=1e-6)


def test_bf16_logits_are_reduced_in_fp32():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(6)).bfloat16()
    ids = torch.arange(4)
    logprobs, entropy = token_logprobs(logits, ids)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, torch.log_softmax(logits.double(), -1)[ids, ids].float(), rtol=0, atol=1e-5)
    in_bf16 = torch.log_softmax(logits, -1)[ids, ids].float()
    assert (in_bf16 - logprobs).abs().max() > 1e-3


def test_fp32_logits_never_exist_whole():
    """What autograd keeps for the backward pass: the bf16 logits it was given, no fp32 matrix."""
    saved = []
    logits = torch.randn(64, 50).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        logprobs, _ = token_logprobs(logits, torch.zeros(64, dtype=torch.long), chunk_values=400)
    assert sum(x.numel() for x in saved if x.dtype == torch.float32) <= 400
    logprobs.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("chunk_values", [1, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_state_logprobs_are_those_of_the_logits(chunk_values, dtype):
    """In float64 by torch, in float32 natively where there is a compiler."""
    g = torch.Generator().manual_seed(5)
    states, head = (
        torch.randn(21, 16, generator=g, dtype=torch.float64),
        torch.randn(37, 16, generator=g, dtype=torch.float64),
    )
    ids, upstream = torch.randint(37, (21,), generator=g), torch.randn(21, generator=g, dtype=torch.float64)
    a, b = (x.to(dtype, copy=True).requires_grad_() for x in (states, head))
    c, d = (x.clone().requires_grad_() for x in (states, head))
    logprobs, entropy = state_logprobs(a, b, ids, 0.7, chunk_values)
    expected, expected_entropy = token_logprobs(c @ d.T, ids, 0.7)
    near = {"rtol": 0.0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logprobs.double(), expected, **near)
    torch.testing.assert_close(entropy.double(), expected_entropy, **near)
    assert not entropy.requires_grad
    (logprobs * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(a.grad.double(), c.grad, **near)
    torch.testing.assert_close(b.grad.double(), d.grad, **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_more_logits_than_a_chunk_exist_forward_or_backward(dtype, monkeypatch):
    made = []
    product = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: made.append(product(*args)) or made[-1])
    states, head = (
        torch.randn(100, 8, dtype=dtype, requires_grad=True),
        torch.randn(50, 8, dtype=dtype, requires_grad=True),
    )
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        logprobs, _ = state_logprobs(states, head, torch.zeros(100, dtype=torch.long), chunk_values=500)
    logprobs.sum().backward()
    assert len(made) == 20 and max(logits.numel() for logits in made) == 500
    assert sum(x.numel() for x in saved) <= states.numel() + head.numel() + 2 * 100


def test_state_logprobs_refuse_greedy_and_misfits():
    states, head = torch.zeros(2, 4), torch.zeros(9, 4)
    with pytest.raises(UsageError, match="temperature"):
        state_logprobs(states, head, torch.tensor([0, 1]), 0.0)
    for ids, weight in ((torch.tensor([0]), head), (torch.tensor([0, 1]), torch.zeros(9, 5))):
        with pytest.raises(ValueError, match="states"):
            state_logprobs(states, weight, ids)
    logprobs, entropy = state_logprobs(states[:0], head, torch.zeros(0, dtype=torch.long))
    assert logprobs.shape == entropy.shape == (0,)


def test_no_tokens_at_all():
    logits = torch.zeros(0, 4, 9, requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.zeros(0, 4, dtype=torch.long))
    assert logprobs.shape == entropy.shape == (0, 4)
    logprobs.sum().backward()
    assert logits.grad.shape == (0, 4, 9)


def test_token_logprobs_refuses_greedy_and_misfits():
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="temperature"):
            token_logprobs(torch.zeros(1, 3), torch.tensor([0]), temperature)
    with pytest.raises(ValueError, match="fit"):
        token_logprobs(torch.zeros(2, 3), torch.tensor([0]))
