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
from dunwu.train.reinforce import reinforce_advantages
from dunwu.train.rloo import leave_one_out
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


# ---- the four baselines ---------------------------------------------------------------------------

BASELINES = ["group", "leave-one-out", "batch", "none"]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("group", CENTRED_PG),
        # Each against the mean of the three others: 1 − 1/3, 0 − 2/3; 0 − 4/3, 4 − 0.
        ("leave-one-out", [[2 / 3, -2 / 3, 2 / 3, -2 / 3], [-4 / 3, -4 / 3, -4 / 3, 4.0]]),
        ("batch", [[0.25, -0.75, 0.25, -0.75], [-0.75, -0.75, -0.75, 3.25]]),
        ("none", REWARDS_PG),
    ],
)
@pytest.mark.parametrize("std_normalize", ["none", "batch"])
def test_the_four_baselines_by_hand(baseline, expected, std_normalize):
    advantages_PG, stats = group_advantages(REWARDS_PG, std_normalize, std_eps=0.5, baseline=baseline)
    scale = math.sqrt(1.6875) + 0.5 if std_normalize == "batch" else 1.0
    for advantages, row in zip(advantages_PG, expected, strict=True):
        assert advantages == pytest.approx([a / scale for a in row], rel=1e-12)
    assert stats.reward_mean == 0.75 and stats.informative_P == (True, True)


def test_leave_one_out_is_trls_and_the_mean_of_the_others():
    """TRL's RLOOTrainer: baselines = (Σ r − r) / (scorable − 1), over the scored siblings only; what is missing gets 0 there,
    None here."""
    rewards = torch.tensor([[0.3, math.nan, 1.0, -2.0], [0.5, 0.25, 0.0, 4.0]], dtype=torch.float64)
    count = (~rewards.isnan()).sum(1, keepdim=True)
    theirs = (rewards - (rewards.nansum(1, keepdim=True) - rewards) / (count - 1)).nan_to_num(0.0)
    ours, _ = group_advantages(rewards.tolist(), "none", baseline="leave-one-out")
    assert [[0.0 if a is None else a for a in row] for row in ours] == [pytest.approx(row) for row in theirs.tolist()]
    assert ours[0][1] is None
    row = rewards[1].tolist()
    brute = [r - statistics.fmean(row[:i] + row[i + 1 :]) for i, r in enumerate(row)]
    assert leave_one_out(row) == pytest.approx(brute, rel=1e-12)
    mean = statistics.fmean(row)
    assert leave_one_out(row) == pytest.approx([4 / 3 * (r - mean) for r in row], rel=1e-12)


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, -0.9])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 10])
@pytest.mark.parametrize("baseline", ["group", "leave-one-out", "batch"])
@pytest.mark.parametrize("std_normalize", ["none", "group", "batch"])
def test_equal_rewards_are_exactly_zero_under_every_baseline(reward, size, baseline, std_normalize):
    advantages_PG, _ = group_advantages([[reward] * size] * 3, std_normalize, std_eps=0.0, baseline=baseline)
    assert advantages_PG == [[0.0] * size] * 3


def test_without_a_baseline_the_reward_itself_teaches():
    assert group_advantages([[0.1] * 8], baseline="none")[0] == [[0.1] * 8]
    assert group_advantages([[1.0], [0.0]], "none", baseline="batch")[0] == [[0.5], [-0.5]]  # a singleton has the batch
    assert group_advantages([[1.0], [0.0]], "none", baseline="leave-one-out")[0] == [[0.0], [0.0]]
    assert reinforce_advantages([]) == [] and leave_one_out([]) == []


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_missing_reward_is_in_no_baseline(baseline, missing):
    with_hole, stats = group_advantages([[1.0, missing, 0.0, 5.0], [missing], [2.0, 3.0]], "none", baseline=baseline)
    without, _ = group_advantages([[1.0, 0.0, 5.0], [], [2.0, 3.0]], "none", baseline=baseline)
    assert with_hole == [[without[0][0], None, *without[0][1:]], [None], without[2]]
    assert (stats.scored, stats.excluded, stats.unscored_groups) == (5, 2, 1)


@given(
    st.lists(st.lists(REWARD, max_size=6), max_size=4),
    st.sampled_from(["none", "group", "batch"]),
    st.sampled_from(BASELINES),
    st.randoms(use_true_random=False),
)
def test_the_order_of_samples_and_groups_means_nothing(rewards_PG, std_normalize, baseline, dice):
    plain, _ = group_advantages(rewards_PG, std_normalize, baseline=baseline)
    places = [[(p, g) for g in range(len(row))] for p, row in enumerate(rewards_PG)]
    for row in places:
        dice.shuffle(row)
    dice.shuffle(places)
    shuffled, _ = group_advantages(
        [[rewards_PG[p][g] for p, g in row] for row in places], std_normalize, baseline=baseline
    )
    for row, found in zip(places, shuffled, strict=True):
        assert found == [plain[p][g] for p, g in row]  # math.fsum: to the last bit


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-5, 5))
def test_a_shift_of_all_rewards_is_seen_by_no_baseline(rewards, shift):
    for baseline in ("group", "leave-one-out", "batch"):
        a, b = (
            group_advantages([row], "none", baseline=baseline)[0][0] for row in (rewards, [r + shift for r in rewards])
        )
        assert a == pytest.approx(b, abs=1e-9)
    a, b = reinforce_advantages(rewards), leave_one_out(rewards)
    n = len(rewards)
    assert [n / (n - 1) * x for x in a] == pytest.approx(b, abs=1e-9)


def test_a_baseline_that_leaves_the_sample_out_is_unbiased_and_the_groups_is_short_by_a_share():
    """E[A ∇ log π] over all pairs of two samples of a policy of three actions, exactly: RLOO has the gradient of the
    expected reward, the group's mean (G − 1)/G of it, REINFORCE without a baseline again all of it."""
    theta = torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    rewards = [1.0, 3.0, 0.5]
    log_p = torch.log_softmax(theta, 0)
    (true,) = torch.autograd.grad(
        (log_p.exp() * torch.tensor(rewards, dtype=torch.float64)).sum(), theta, retain_graph=True
    )

    def expected(baseline):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                (a, b), *_ = group_advantages([[rewards[i], rewards[j]]], "none", baseline=baseline)[0]
                total = total + (log_p[i] + log_p[j]).exp().detach() * (a * log_p[i] + b * log_p[j]) / 2
        return torch.autograd.grad(total, theta, retain_graph=True)[0]

    torch.testing.assert_close(expected("leave-one-out"), true, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected("none"), true, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected("group"), true / 2, rtol=0, atol=1e-12)


def test_bad_baselines_are_named():
    with pytest.raises(UsageError, match="baseline"):
        group_advantages([[1.0, 0.0]], baseline="median")
