"""Advantages against hand-worked numbers, and every way a reward can be missing or degenerate."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dunwu.train.advantages import group_advantages, overlong_penalty
from dunwu.types import UsageError

# Two groups worked by hand. Group 1: mean 0.5, population std 0.5. Group 2: mean 1, squares 1 1 1 9 -> sum 12,
# population variance 3. All eight: sum 6, mean 0.75, squares 2 + 16 = 18, variance 18/8 - 0.5625 = 1.6875.
REWARDS_PG = [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 4.0]]
CENTRED_PG = [[0.5, -0.5, 0.5, -0.5], [-1.0, -1.0, -1.0, 3.0]]


@pytest.mark.parametrize(
    ("std_normalize", "scale_P"),
    [("none", (1.0, 1.0)), ("group", (0.5, math.sqrt(3.0))), ("batch", (math.sqrt(1.6875), math.sqrt(1.6875)))],
)
@pytest.mark.parametrize("std_eps", [0.0, 0.25])
def test_the_three_std_choices_by_hand(std_normalize, scale_P, std_eps):
    advantages_PG, stats = group_advantages(REWARDS_PG, std_normalize, std_eps=std_eps)
    for advantages, centred, scale in zip(advantages_PG, CENTRED_PG, scale_P):
        divisor = scale + std_eps if std_normalize != "none" else 1.0
        assert advantages == pytest.approx([c / divisor for c in centred], rel=1e-12)
    assert (stats.scored, stats.excluded, stats.zero_variance_groups, stats.unscored_groups) == (8, 0, 0, 0)
    assert stats.reward_mean == 0.75
    assert stats.reward_std == pytest.approx(math.sqrt(1.6875), rel=1e-12)


@pytest.mark.parametrize("std_normalize", ["group", "batch"])
def test_sample_std_and_eps_give_the_numbers_of_trl(std_normalize):
    """TRL: (r - mean) / (torch.std + 1e-4), torch.std dividing by n - 1."""
    rewards_PG = torch.tensor(REWARDS_PG, dtype=torch.float64)
    std = rewards_PG.std(dim=1, keepdim=True) if std_normalize == "group" else rewards_PG.std()
    expected = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)) / (std + 1e-4)
    ours, _ = group_advantages(REWARDS_PG, std_normalize, std_eps=1e-4, std_ddof=1)
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-12, atol=0.0)
    population, _ = group_advantages(REWARDS_PG, std_normalize, std_eps=1e-4, std_ddof=0)
    assert abs(population[0][0] - ours[0][0]) > 0.01


@pytest.mark.parametrize("std_normalize", ["none", "group", "batch"])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_equal_rewards_give_exactly_zero_at_any_eps(std_normalize, reward, size):
    # The second group keeps the batch std alive.
    advantages_PG, stats = group_advantages([[reward] * size, [0.0, 1.0]], std_normalize, std_eps=0.0)
    assert advantages_PG[0] == [0.0] * size
    assert all(a != 0.0 for a in advantages_PG[1])
    assert stats.zero_variance_groups == 1
    assert stats.informative_P == (False, True)


def test_a_plain_float_mean_would_have_made_a_gradient_of_rounding():
    """The defect the max == min rule exists for: with a tiny eps, rounding becomes an advantage near one."""
    rewards = [0.1] * 8
    mean = sum(rewards) / 8
    residual = rewards[0] - mean
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 8)
    assert residual != 0.0 and abs(residual / std) == pytest.approx(1.0)
    assert group_advantages([rewards], "group", std_eps=0.0)[0] == [[0.0] * 8]


@pytest.mark.parametrize("std_normalize", ["none", "group", "batch"])
@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_missing_reward_changes_nothing_for_its_siblings(std_normalize, missing):
    with_hole, stats = group_advantages([[1.0, missing, 0.0, 5.0], [2.0, 3.0]], std_normalize)
    without, clean = group_advantages([[1.0, 0.0, 5.0], [2.0, 3.0]], std_normalize)
    assert with_hole[0] == [without[0][0], None, without[0][1], without[0][2]]
    assert with_hole[1] == without[1]
    assert (stats.scored, stats.excluded) == (5, 1)
    assert (stats.reward_mean, stats.reward_std) == (clean.reward_mean, clean.reward_std)


def test_holes_leave_a_singleton_an_equal_group_or_nothing():
    advantages_PG, stats = group_advantages(
        [[None, 1.0, math.nan], [None, 0.1, 0.1], [None, math.nan], [], [0.0, 2.0]], "group", std_eps=0.0
    )
    assert advantages_PG == [[None, 0.0, None], [None, 0.0, 0.0], [None, None], [], [-1.0, 1.0]]
    assert (stats.scored, stats.excluded) == (5, 5)
    assert (stats.zero_variance_groups, stats.unscored_groups, stats.informative_groups) == (2, 2, 1)
    assert stats.informative_P == (False, False, False, False, True)


@pytest.mark.parametrize("std_normalize", ["none", "group", "batch"])
def test_the_order_of_siblings_does_not_matter_to_the_last_bit(std_normalize):
    rewards = [0.1, 0.7, 1e-9, 0.3, 0.9, 1e6, 0.2]
    forward, _ = group_advantages([rewards], std_normalize)
    backward, _ = group_advantages([rewards[::-1]], std_normalize)
    assert backward[0] == forward[0][::-1]


def test_score_zero_is_a_score():
    advantages_PG, stats = group_advantages([[0.0, 1.0]], "none")
    assert advantages_PG == [[-0.5, 0.5]]
    assert stats.excluded == 0


def test_no_rewards_at_all():
    advantages_PG, stats = group_advantages([], "batch")
    assert advantages_PG == []
    assert (stats.scored, stats.excluded, stats.reward_mean, stats.reward_std) == (0, 0, 0.0, 0.0)


def test_truncated_rows_are_dropped_after_the_statistics():
    """The contract of the loss mask: the survivors keep the advantage they had among all their siblings."""
    rewards, truncated = [1.0, 0.0, 0.0, 0.0], [False, False, True, True]
    before, _ = group_advantages([rewards], "none")
    kept = [a for a, cut in zip(before[0], truncated) if not cut]
    after, _ = group_advantages([[r for r, cut in zip(rewards, truncated) if not cut]], "none")
    assert kept == [0.75, -0.25]
    assert after[0] == [0.5, -0.5]  # what dropping first would give: a different, biased baseline


def test_group_identity_is_the_problem_not_the_sample():
    """One group id per sample (a real defect elsewhere) removes the whole signal: it must be visible as such."""
    advantages_PG, stats = group_advantages([[r] for r in (1.0, 0.0, 1.0, 0.0)], "group")
    assert advantages_PG == [[0.0]] * 4
    assert stats.zero_variance_groups == 4 and stats.informative_groups == 0


REWARD = st.one_of(st.none(), st.just(math.nan), st.floats(-10, 10), st.sampled_from([0.0, 0.1, 1.0]))


@given(st.lists(st.lists(REWARD, max_size=9), max_size=5), st.sampled_from(["none", "group", "batch"]))
def test_invariants(rewards_PG, std_normalize):
    advantages_PG, stats = group_advantages(rewards_PG, std_normalize, std_eps=1e-4)
    assert [len(g) for g in advantages_PG] == [len(g) for g in rewards_PG]
    assert stats.scored + stats.excluded == sum(map(len, rewards_PG))
    assert stats.informative_groups + stats.zero_variance_groups + stats.unscored_groups == len(rewards_PG)
    for rewards, advantages, informative in zip(rewards_PG, advantages_PG, stats.informative_P):
        scored = [(r, a) for r, a in zip(rewards, advantages) if a is not None]
        assert all((a is None) == (r is None or math.isnan(r)) for r, a in zip(rewards, advantages))
        assert all(math.isfinite(a) for _, a in scored)
        assert math.fsum(a for _, a in scored) == pytest.approx(0.0, abs=1e-8)
        assert informative == (len({r for r, _ in scored}) > 1)
        for (r1, a1), (r2, a2) in pairwise(scored):
            assert (a1 - a2) * (r1 - r2) >= 0.0  # a better sibling never has the smaller advantage
        if std_normalize == "group" and informative:
            spread = statistics.pstdev([r for r, _ in scored])
            assert statistics.pstdev([a for _, a in scored]) == pytest.approx(spread / (spread + 1e-4), rel=1e-6)


@pytest.mark.parametrize(
    "kwargs", [{"std_normalize": "sigma"}, {"std_eps": -1.0}, {"std_eps": math.nan}, {"std_ddof": 2}]
)
def test_bad_choices_are_named(kwargs):
    with pytest.raises(UsageError, match=next(iter(kwargs))):
        group_advantages([[1.0, 0.0]], **kwargs)


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (79, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (10_000, -1.0)],
)
def test_overlong_penalty_is_dapos_three_pieces(length, penalty):
    assert overlong_penalty(length, max_tokens=100, buffer=20) == pytest.approx(penalty, abs=1e-12)


def test_overlong_penalty_without_buffer_is_a_step():
    assert [overlong_penalty(n, max_tokens=10, buffer=0) for n in (9, 10, 11)] == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("buffer", [-1, 11])
def test_overlong_buffer_must_fit(buffer):
    with pytest.raises(UsageError, match="buffer"):
        overlong_penalty(5, max_tokens=10, buffer=buffer)
