"""pass@k, cons@k, intervals: against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest

from dunwu.eval import passk
from dunwu.eval.passk import (
    Interval,
    cons_at_k,
    consensus,
    mean_pass_at_k,
    over_seeds,
    paired_difference,
    pass_at_1,
    pass_at_k,
    wilson,
)


def test_pass_at_k_counts_subsets() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            samples = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(samples, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_stable_where_binomials_overflow() -> None:
    exact = 1 - Fraction(math.comb(9990, 5000), math.comb(10000, 5000))
    assert pass_at_k(10000, 10, 5000) == pytest.approx(float(exact), rel=1e-12)
    assert pass_at_k(10000, 0, 10000) == 0.0
    assert pass_at_k(10000, 1, 10000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def brute_consensus(votes: list[tuple[str | None, bool]], k: int) -> float:
    credits = []
    for subset in itertools.combinations(votes, k):
        keys = [key for key, _ in subset if key is not None]
        most = max((keys.count(key) for key in keys), default=0)
        leading = {key for key in keys if keys.count(key) == most}
        right = {key for key, ok in subset if ok} & leading
        credits.append(len(right) / len(leading) if leading else 0.0)
    return sum(credits) / len(credits)


def test_consensus_counts_subsets_and_shares_ties() -> None:
    dice = random.Random(3)
    for _ in range(150):
        truth = {key: dice.random() < 0.4 for key in "abcd"}
        keys = [dice.choice(["a", "b", "c", "d", None]) for _ in range(dice.randint(1, 8))]
        votes = [(key, key is not None and truth[key]) for key in keys]
        for k in range(1, len(votes) + 1):
            expected = brute_consensus(votes, k)
            assert consensus(votes, k) == pytest.approx(expected, abs=1e-12)
            dice.shuffle(votes)
            assert consensus(votes, k) == pytest.approx(expected, abs=1e-12)


def test_consensus_by_hand() -> None:
    a, b, none = ("a", True), ("b", False), (None, False)
    assert consensus([a, a, b], 3) == 1
    assert consensus([b, b, a], 3) == 0
    assert consensus([a, b], 2) == 0.5  # a tie favours nobody
    assert consensus([none, none, a], 3) == 1  # the unparsable majority does not vote
    assert consensus([none, none], 2) == 0
    assert consensus([a, a, b, b, b], 1) == pytest.approx(0.4)  # k = 1 is pass@1
    with pytest.raises(ValueError, match="at least 3"):
        consensus([a, b], 3)


def test_consensus_of_many_samples_is_quick() -> None:
    dice = random.Random(0)
    votes = [(dice.randint(0, 9), False) for _ in range(48)] + [(10, True)] * 16
    assert consensus(votes, 64) == 1.0
    assert consensus(votes, 1) == pytest.approx(0.25)
    assert consensus(votes, 32) > 0.9


def test_wilson_solves_its_equation() -> None:
    """The ends are where |p − end| = z·sqrt(end(1−end)/n)."""
    for p, n in [(0.1, 10), (0.5, 7), (0.325, 1024), (0.99, 300)]:
        for end in wilson(p, n):
            assert abs(p - end) == pytest.approx(passk.Z95 * math.sqrt(end * (1 - end) / n), rel=1e-9)
    assert wilson(0.0, 10)[0] == 0.0 and wilson(1.0, 10)[1] == 1.0
    assert wilson(0.0, 10)[1] == pytest.approx(passk.Z95**2 / (10 + passk.Z95**2))


def test_one_sample_per_problem_is_wilson() -> None:
    right = [[True]] * 30 + [[False]] * 70
    low, high = wilson(0.3, 100)
    assert pass_at_1(right) == Interval(pytest.approx(0.3), pytest.approx(low), pytest.approx(high), 100)


def test_samples_of_one_problem_are_a_cluster() -> None:
    """Ten equal samples of each of 50 problems tell no more than one each; independent ones do."""
    equal = [[i < 20] * 10 for i in range(50)]
    assert pass_at_1(equal).low == pytest.approx(wilson(0.4, 50)[0], abs=0.003)
    spread = [[j < 4 for j in range(10)] for _ in range(50)]
    assert pass_at_1(spread).low == pytest.approx(wilson(0.4, 500)[0])
    dice = random.Random(1)
    independent = [[dice.random() < 0.4 for _ in range(10)] for _ in range(50)]
    interval = pass_at_1(independent)
    assert wilson(interval.value, 50)[0] < wilson(interval.value, 300)[0] < interval.low


def test_intervals_cover() -> None:
    """Problems of uniform difficulty, 4 samples each: about 95% of intervals hold the true mean 0.5."""
    dice = random.Random(5)
    held = 0
    for _ in range(400):
        chances = [dice.random() for _ in range(40)]
        interval = pass_at_1([[dice.random() < chance for _ in range(4)] for chance in chances])
        held += interval.low <= 0.5 <= interval.high
    assert 0.92 <= held / 400 <= 0.985


def test_mean_pass_and_cons_average_over_problems() -> None:
    assert mean_pass_at_k([(4, 1), (4, 0)], 2).value == pytest.approx((0.5 + 0) / 2)
    assert mean_pass_at_k([(4, 1), (8, 8)], 2).value == pytest.approx((0.5 + 1) / 2)
    assert cons_at_k([[("a", True)] * 3, [("b", False)] * 3], 3).value == 0.5
    with pytest.raises(ValueError, match="no values"):
        pass_at_1([])


def student_mass(t: float, freedom: int) -> float:
    """P(T <= t) by Simpson's rule on the density."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps = 4000
    density = [scale * (1 + (i * t / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)]
    weights = [1, *([4, 2] * (steps // 2))[: steps - 1], 1]
    return 0.5 + t / steps / 3 * sum(w * d for w, d in zip(weights, density))


@pytest.mark.parametrize("freedom", [*range(1, 31), 31, 40, 100, 1000])
def test_student_points(freedom: int) -> None:
    assert student_mass(passk._student(freedom), freedom) == pytest.approx(0.975, abs=6e-6)


def test_seeds() -> None:
    interval = over_seeds([0.6, 0.7, 0.8])
    assert interval.value == pytest.approx(0.7)
    assert interval.high - interval.value == pytest.approx(4.3027 * 0.1 / math.sqrt(3))
    alone = over_seeds([0.5])
    assert alone.as_json() == {"value": 0.5, "low": None, "high": None, "n": 1}


def test_paired_difference() -> None:
    base = [[True], [False], [False], [True]]
    after = [[True], [True], [True], [True]]
    assert paired_difference(after, base).value == 0.5
    unchanged = paired_difference(base, base)
    assert unchanged.value == 0.0 and unchanged.high == -unchanged.low == pytest.approx(passk.Z95 / 6)
    by_hand = paired_difference(after, base)  # changes 0, 1, 1, 0 and the two half problems
    assert by_hand.high == pytest.approx(2 / 6 + passk.Z95 * math.sqrt(((2 + 1) / 6 - (2 / 6) ** 2) / 6))
    with pytest.raises(ValueError, match="same problems"):
        paired_difference(after[:2], base)


def test_paired_intervals_cover() -> None:
    """Some problems become right, some wrong: about 95% of intervals hold the true difference 0.1."""
    dice = random.Random(9)
    held = 0
    for _ in range(500):
        base = [[dice.random() < 0.4] for _ in range(60)]
        result = [[dice.random() < (0.8 if row[0] else 0.3)] for row in base]  # 0.4·0.8 + 0.6·0.3 = 0.5
        interval = paired_difference(result, base)
        held += interval.low <= 0.1 <= interval.high
    assert 0.925 <= held / 500 <= 0.985
