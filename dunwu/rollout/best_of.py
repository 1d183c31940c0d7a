"""Best-of-n: of n samples the one that a scorer likes best, what that earns on average, and how far it is from the model.

    pick, best_of     the sample itself; the scorer is a task's reward, or reward models (`PreferenceTask` is a task)
    best_of_curve     the expected best reward of n samples for every n ≤ N, from N samples, without bias
    best_of_kl        log n − (n − 1) / n: the KL of what is picked from the model

Reward against KL is the over-optimisation curve (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3; Gao et al. 2022,
arXiv 2210.10760): with a proxy that picks and a truth that is reported, the first climbs on while the second turns.

Not covered: sampling (the `Sampler`'s affair), weights between the best and the rest (soft best-of-n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from dunwu.tasks.score import judge
from dunwu.types import Group, Rollout, Task

Score = Callable[[Sequence[Group]], Sequence[Sequence[float | None]]]
"""Groups → a score for each of their rollouts; None for one that cannot be judged."""


class Best(NamedTuple):
    """The sample picked of one group."""

    group: Group
    place: int
    """Which of its rollouts."""
    score: float

    @property
    def rollout(self) -> Rollout:
        """The sample."""
        return self.group.rollouts[self.place]


def best_of(groups: Sequence[Group], score: Score | None = None) -> list[Best]:
    """The best sample of every group that has one with a score; of equals the first, so equal seeds pick the same.

    Args:
        score: `rewards` by default; `scored_by(task)` asks a task or reward models.
    """
    found = []
    for group, scores in zip(groups, (score or rewards)(groups), strict=True):
        place = pick(scores)
        if place is not None:
            found.append(Best(group, place, float(scores[place] or 0.0)))
    return found


def pick(scores: Sequence[float | None]) -> int | None:
    """Place of the highest score; None if there is none. NaN is no score.

    Example:
        >>> pick([0.5, None, 2.0, math.nan, 2.0]), pick([None])
        (2, None)
    """
    known = [(value, -place) for place, value in enumerate(scores) if value is not None and not math.isnan(value)]
    return -max(known)[1] if known else None


def rewards(groups: Sequence[Group]) -> list[list[float | None]]:
    """The verdicts' rewards; None where the verifier failed."""
    return [
        [None if r.verdict.status in ("error", "timeout") else r.verdict.reward for r in group.rollouts]
        for group in groups
    ]


def scored_by(task: Task) -> Score:
    """The rewards another task gives the same samples, in one call where it judges many at once."""

    def score(groups: Sequence[Group]) -> list[list[float | None]]:
        pairs = [(group.problem, rollout.completion) for group in groups for rollout in group.rollouts]
        verdicts = iter(judge(task, [problem for problem, _ in pairs], [completion for _, completion in pairs]))
        judged = [
            Group(group.problem, group.prompt_ids, tuple(Rollout(r.completion, next(verdicts)) for r in group.rollouts))
            for group in groups
        ]
        return rewards(judged)

    return score


# ---- what it earns


def best_of_curve(scores: Sequence[float], truth: Sequence[float] | None = None) -> list[float]:
    """E[reward of the best of n] for n = 1 … N, estimated without bias from N samples of one prompt.

    The mean over all C(N, n) subsets of n samples of their best one's reward. In ascending order the i-th sample is the best of
    C(i − 1, n − 1) subsets, so the estimate is Σ_i C(i − 1, n − 1) / C(N, n) · x_(i) (Nakano et al. 2021, arXiv 2112.09332,
    appendix I). With 0 and 1 as rewards it is pass@n (Chen et al. 2021). O(N²).

    Args:
        scores: what picks; equal ones are picked with equal chances.
        truth: what is reported of the picked sample, in the same order; the scores themselves if left out.

    Raises:
        ValueError: there is no sample, one is NaN, or there are not as many truths.

    Example:
        >>> [round(x, 4) for x in best_of_curve([3.0, 1.0, 2.0])]  # n=2: the best of {3,1}, {3,2}, {1,2} are 3, 3, 2
        [2.0, 2.6667, 3.0]
        >>> proxy, truth = [3.0, 1.0, 2.0], [0.0, 5.0, 10.0]  # the proxy's favourite is worth nothing
        >>> [round(x, 4) for x in best_of_curve(proxy, truth)]
        [5.0, 3.3333, 0.0]
    """
    values = list(scores if truth is None else truth)
    if not scores or len(values) != len(scores) or any(map(math.isnan, [*scores, *values])):
        raise ValueError(f"{len(scores)} scores and {len(values)} truths: as many of both, at least one, no NaN")
    ranked = []
    for _, tied in groupby(sorted(zip(scores, values, strict=True)), key=lambda pair: pair[0]):
        same = [value for _, value in tied]
        ranked += [math.fsum(same) / len(same)] * len(same)
    total = len(ranked)
    curve = []
    for n in range(1, total + 1):
        weight, parts = n / total, []  # C(N − 1, n − 1) / C(N, n)
        for rank in range(total, n - 1, -1):
            parts.append(weight * ranked[rank - 1])
            weight *= (rank - n) / max(1, rank - 1)
        curve.append(math.fsum(parts))
    return curve


def mean_best_of_curve(
    groups: Sequence[Sequence[float]], truths: Sequence[Sequence[float]] | None = None
) -> list[float]:
    """`best_of_curve` averaged over prompts, up to the fewest samples that any of them has.

    Example:
        >>> [round(x, 4) for x in mean_best_of_curve([[0.0, 1.0], [1.0, 1.0, 0.0]])]
        [0.5833, 1.0]
    """
    curves = [best_of_curve(scores, None if truths is None else truths[place]) for place, scores in enumerate(groups)]
    return [math.fsum(column) / len(curves) for column in zip(*curves, strict=False)]


def best_of_kl(n: int) -> float:
    """KL(best of n ‖ one sample) in nats: log n − (n − 1) / n (Stiennon et al. 2020, appendix G.3).

    Exact where no two samples have the same score, an upper bound otherwise (Beirami et al. 2024, arXiv 2401.01879).

    Raises:
        ValueError: n is below 1.

    Example:
        >>> best_of_kl(1), round(best_of_kl(2), 6), round(best_of_kl(16), 3)  # ln 2 − ½; 16 samples cost 1.8 nats
        (0.0, 0.193147, 1.835)
    """
    if n < 1:
        raise ValueError(f"n is {n}, and begins at 1")
    return math.log(n) - (n - 1) / n
