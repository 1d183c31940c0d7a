"""Tokens of another policy: weights and masks by hand, by brute force, and in a whole update."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_learner import learner_of, letters, made_rows, vector
from torch import Tensor

from dunwu.data.tokenizer import Tokenizer
from dunwu.train.config import GrpoConfig, OffPolicyConfig
from dunwu.train.grpo import update
from dunwu.train.off_policy import importance_weights, row_means, sequence_mask
from dunwu.types import UsageError

LN2 = math.log(2.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


@pytest.mark.parametrize(
    ("tis", "cap", "expected"),
    [
        ("none", 2.0, [1.0] * 5),
        ("truncate", 2.0, [0.25, 0.5, 1.0, 2.0, 2.0]),
        ("truncate", 1.0, [0.25, 0.5, 1.0, 1.0, 1.0]),
        ("mask", 2.0, [0.0, 0.5, 1.0, 2.0, 0.0]),
        ("mask", 4.0, [0.25, 0.5, 1.0, 2.0, 4.0]),
    ],
)
def test_weights_of_ratios_from_a_quarter_to_four(tis: Any, cap: float, expected: list[float]) -> None:
    old = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64) * LN2 - 3
    # A hair inside, since ln 2 is no float: the borders of the mask belong to what is kept.
    found = importance_weights(old, torch.full((5,), -3.0), tis, cap * (1 + 1e-6))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_have_no_gradient_and_stay_finite() -> None:
    old = torch.tensor([0.0, -1e4, 1e4], requires_grad=True)
    for tis in ("truncate", "mask"):
        found = importance_weights(old, torch.tensor([0.0, 1e4, -1e4]), tis, 2.0)
        assert not found.requires_grad and bool(torch.isfinite(found).all())
    with pytest.raises(UsageError, match="tis"):
        importance_weights(old, old, "clip", 2.0)  # type: ignore[arg-type]


def test_truncated_weights_are_unbiased_below_the_cap() -> None:
    """E_sampler[w ∇ log π A] is the policy's gradient where no ratio reaches the cap: a vocabulary of four, exactly."""
    theta = torch.tensor([0.1, 0.5, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    sampler = torch.log_softmax(torch.tensor([0.3, 0.2, 0.0, -0.1], dtype=torch.float64), 0)
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    log_p = torch.log_softmax(theta, 0)
    (true,) = torch.autograd.grad((log_p.exp() * advantages).sum(), theta, retain_graph=True)
    weights = importance_weights(log_p, sampler, "truncate", 2.0).double()
    assert 1.0 < float(weights.max()) < 2.0
    (found,) = torch.autograd.grad((sampler.exp() * weights * advantages * log_p).sum(), theta, retain_graph=True)
    torch.testing.assert_close(found, true, rtol=0, atol=1e-7)
    (uncorrected,) = torch.autograd.grad((sampler.exp() * advantages * log_p).sum(), theta)
    assert float((uncorrected - true).abs().max()) > 0.01


def test_a_row_far_off_and_failed_is_masked_whole() -> None:
    """Gaps of π_sampler over π: row 0 has mean 0.5, row 1 mean 0.3, row 2 mean −1; δ = 0.4; A of both signs."""
    gaps = torch.tensor([1.0, 0.0, 0.3, 0.3, -1.0])
    rows, ones = torch.tensor([0, 0, 1, 1, 2]), torch.ones(5, dtype=torch.bool)
    policy = torch.full((5,), -2.0)
    for sign, expected in ((-1.0, [False, False, True, True, True]), (1.0, [True] * 5), (0.0, [True] * 5)):
        keep = sequence_mask(policy, policy + gaps, torch.full((5,), sign), rows, ones, 0.4)
        assert keep.tolist() == expected
    # The mean is over trained tokens only, and what is masked may be NaN.
    mask = torch.tensor([False, True, True, True, True])
    nan = torch.where(mask, policy + gaps, math.nan)
    assert sequence_mask(policy, nan, -torch.ones(5), rows, mask, 0.4).tolist()[1:] == [True] * 4
    trained = torch.full((5,), -2.0, requires_grad=True)
    assert not sequence_mask(trained, policy, -torch.ones(5), rows, ones, 0.4).requires_grad


NUMBERS = st.floats(-4, 4, width=32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.integers(0, 4), st.booleans()), min_size=1, max_size=20), st.randoms())
def test_means_of_rows_by_brute_force_in_any_order(tokens: list[tuple[float, int, bool]], dice: Any) -> None:
    def means(chosen: list[tuple[float, int, bool]]) -> Tensor:
        values, rows, mask = (torch.tensor(column) for column in zip(*chosen, strict=True))
        return row_means(torch.where(mask, values.double(), math.nan), rows, mask)

    order = list(range(len(tokens)))
    dice.shuffle(order)
    found = means(tokens)
    torch.testing.assert_close(means([tokens[n] for n in order]), found[order], rtol=0, atol=1e-12)
    for mean, (_, row, _) in zip(found.tolist(), tokens, strict=True):
        own = [value for value, other, live in tokens if other == row and live]
        assert mean == pytest.approx(sum(own) / len(own) if own else 0.0, abs=1e-9)
    assert row_means(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)).shape == (0,)


# ---- in an update -------------------------------------------------------------------------------------

CONFIG = GrpoConfig(steps=1, problems=4, group_size=3, max_tokens=11, warmup=0)


def moved(
    tokenizer: Tokenizer, rules: OffPolicyConfig, shift: float, micro: int = 10**6
) -> tuple[Tensor, dict[str, float]]:
    """Weights and metrics after an update on rows whose sampler gave the last five `shift` nats a token more."""
    learner = learner_of(tokenizer, eps=1e-3)
    learner.optimizer.version = 1  # not the first update: a sampler that disagrees would be refused
    rows = made_rows(learner.policy)
    far = [replace(r, sampler_logprobs=tuple(p + shift for p in r.sampler_logprobs)) for r in rows[5:]]
    metrics = update(
        learner, [*rows[:5], *far], replace(CONFIG, off_policy=rules, micro_tokens=micro), 1e-2, 0, 0, None
    )
    return vector(learner.policy), metrics


def test_a_sampler_that_agrees_changes_nothing(tokenizer: Tokenizer) -> None:
    plain, metrics = moved(tokenizer, OffPolicyConfig(), 0.0)
    for rules in (OffPolicyConfig(tis="truncate"), OffPolicyConfig(tis="mask"), OffPolicyConfig(sequence_mask=0.1)):
        weights, found = moved(tokenizer, rules, 0.0)
        torch.testing.assert_close(weights, plain, rtol=0, atol=1e-5)
        extra = found.keys() - metrics.keys()
        assert extra == {"grpo/importance"} if rules.tis != "none" else {"grpo/off_policy_masked"}
        assert all(found[key] == pytest.approx(float(key == "grpo/importance"), abs=1e-4) for key in extra)


def test_the_metrics_are_means_over_the_trained_tokens(tokenizer: Tokenizer) -> None:
    rows = made_rows(learner_of(tokenizer).policy)
    lengths = [row.completion_length for row in rows]
    near, far = sum(lengths[:5]), sum(lengths[5:])
    failed = sum(row.completion_length for row in rows[5:] if row.advantage < 0)
    _, metrics = moved(tokenizer, OffPolicyConfig(tis="truncate", sequence_mask=0.5), LN2)
    assert metrics["grpo/importance"] == pytest.approx((near + far / 2) / (near + far), rel=1e-4)
    assert metrics["grpo/off_policy_masked"] == pytest.approx(failed / (near + far))
    assert metrics["grpo/sampler_mismatch"] == pytest.approx(far * LN2 / (near + far), rel=1e-4)
    _, metrics = moved(tokenizer, OffPolicyConfig(tis="mask", tis_cap=1.5), -LN2)  # ratio 2: outside
    assert metrics["grpo/importance"] == pytest.approx(near / (near + far), rel=1e-4)


@pytest.mark.parametrize("rules", [OffPolicyConfig(tis="truncate", tis_cap=1.5), OffPolicyConfig(sequence_mask=0.3)])
def test_corrections_do_not_depend_on_the_cut(tokenizer: Tokenizer, rules: OffPolicyConfig) -> None:
    whole, metrics = moved(tokenizer, rules, 0.5)
    plain, _ = moved(tokenizer, OffPolicyConfig(), 0.5)
    assert float((whole - plain).abs().max()) > 1e-3
    for micro in (40, 1):
        weights, found = moved(tokenizer, rules, 0.5, micro)
        torch.testing.assert_close(weights, whole, rtol=0, atol=1e-6)
        assert found == pytest.approx(metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rules", [{"tis": "all"}, {"tis_cap": 0.5}, {"tis_cap": math.nan}, {"sequence_mask": -1.0}])
def test_rules_that_cannot_work_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="off_policy"):
        replace(CONFIG, off_policy=OffPolicyConfig(**rules)).validate()
