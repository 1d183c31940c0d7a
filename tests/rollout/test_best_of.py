"""Best-of-n: the picks, and estimates that equal the mean over all subsets and, on average, the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunwu.rollout.best_of import best_of, best_of_curve, best_of_kl, mean_best_of_curve, pick, scored_by
from dunwu.types import Completion, Group, Problem, Rollout, Verdict

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=7)


def group(*verdicts: Verdict) -> Group:
    rollouts = [Rollout(Completion("x" * n, (), (), "stop", n), verdict) for n, verdict in enumerate(verdicts)]
    return Group(Problem("t", "1", {}, ""), (), tuple(rollouts))


def brute(scores: Sequence[float], truth: Sequence[float], n: int) -> float:
    """Mean over all subsets of n; equal scores are picked with equal chances."""
    found = []
    for subset in combinations(range(len(scores)), n):
        best = max(scores[place] for place in subset)
        found.append(fmean(truth[place] for place in subset if scores[place] == best))
    return fmean(found)


@given(SCORES)
def test_curve_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    curve = best_of_curve(scores)
    assert curve == pytest.approx([brute(scores, scores, n) for n in range(1, len(scores) + 1)], abs=1e-12)
    assert all(more >= fewer - 1e-12 for fewer, more in pairwise(curve))  # more samples never hurt what picks


@given(SCORES, st.data())
def test_curve_of_a_truth_is_that_of_what_the_proxy_picks(scores: list[float], data: st.DataObject) -> None:
    truth = data.draw(st.lists(st.floats(-5, 5), min_size=len(scores), max_size=len(scores)))
    curve = best_of_curve(scores, truth)
    assert curve == pytest.approx([brute(scores, truth, n) for n in range(1, len(scores) + 1)], abs=1e-9)


def test_estimate_has_no_bias() -> None:
    """A die with three faces, every outcome of four throws counted: the mean estimate is the expectation itself."""
    faces = [0.0, 1.0, 5.0]
    throws = list(product(faces, repeat=4))
    for n in range(1, 5):
        expected = fmean(max(throw) for throw in product(faces, repeat=n))
        assert fmean(best_of_curve(throw)[n - 1] for throw in throws) == pytest.approx(expected)


def test_with_zeros_and_ones_it_is_pass_at_k() -> None:
    n, right = 10, 3
    curve = best_of_curve([1.0] * right + [0.0] * (n - right))
    assert curve == pytest.approx([1 - math.comb(n - right, k) / math.comb(n, k) for k in range(1, n + 1)])


def test_many_samples_stay_exact() -> None:
    curve = best_of_curve([float(n) for n in range(1, 513)])
    # The largest of n numbers drawn from 1 … N without putting back is n (N + 1) / (n + 1) on average.
    assert curve == pytest.approx([n * 513 / (n + 1) for n in range(1, 513)], rel=1e-12)


def test_prompts_are_averaged_as_far_as_all_reach() -> None:
    assert mean_best_of_curve([[0.0, 1.0], [2.0, 2.0, 8.0]], [[3.0, 4.0], [0.0, 0.0, 9.0]]) == pytest.approx(
        [(3.5 + 3) / 2, (4 + 6) / 2]
    )


@pytest.mark.parametrize("wrong", [([], None), ([1.0], [1.0, 2.0]), ([math.nan], None), ([1.0], [math.nan])])
def test_what_cannot_be_estimated_is_refused(wrong: tuple[list[float], list[float] | None]) -> None:
    with pytest.raises(ValueError, match="at least one, no NaN"):
        best_of_curve(*wrong)


# ---- how far from the model


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_kl_is_that_of_the_best_of_n_from_a_fine_uniform_distribution(n: int) -> None:
    atoms = 20_000
    best = [((place + 1) ** n - place**n) / atoms**n for place in range(atoms)]
    exact = math.fsum(p * math.log(p * atoms) for p in best)
    assert exact == pytest.approx(best_of_kl(n), abs=1e-3) and exact <= best_of_kl(n) + 1e-12


def test_kl_bounds_that_of_a_coin() -> None:
    heads = 0.75  # in the best of two throws
    exact = heads * math.log(heads / 0.5) + (1 - heads) * math.log((1 - heads) / 0.5)
    assert 0 < exact < best_of_kl(2)


def test_kl_begins_with_one_sample() -> None:
    assert best_of_kl(1) == 0
    with pytest.raises(ValueError, match="begins at 1"):
        best_of_kl(0)


# ---- the pick


def test_what_failed_to_be_judged_is_no_candidate() -> None:
    failed, bad, good = Verdict({}, 9.0, "error"), Verdict({}, -1.0), Verdict({}, 0.5)
    groups = [group(failed, bad, good, good), group(failed), group(bad)]
    picked = best_of(groups)
    assert [(best.place, best.score) for best in picked] == [(2, 0.5), (0, -1.0)]
    assert picked[0].rollout is groups[0].rollouts[2]
    assert pick([]) is None


def test_another_task_can_be_the_scorer() -> None:
    class Longest:
        name = "longest"

        def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
            assert len(problems) == len(completions)
            return [Verdict({}, float(len(text))) for text in completions]

    verdict = Verdict({}, 0.0)
    (best,) = best_of([group(verdict, verdict, verdict)], scored_by(Longest()))  # type: ignore[arg-type]
    assert (best.place, best.score) == (2, 2.0)
