"""How far a reward model can be trusted: right order, honest probabilities, no eye for length, agreement with the truth.

* A pair is right if the chosen reply scores higher; equal scores are wrong, and counted. Pairs of one conversation are one
  cluster: the 95% interval (Wilson's, `passk.pass_at_1`) is over conversations.
* Calibration: where the model says p, does it happen in a share p of the cases? For a pair, p = σ(r_chosen − r_rejected)
  always speaks of the same outcome, so what is binned is the confidence max(p, 1 − p) against "the order was right".
* Expected calibration error: Σ n_bin / n · |mean p − share| over the bins (Guo et al. 2017, eq. 3).
* Length: correlation of score and length, and accuracy where the chosen reply is the shorter one. A model that has only
  learned "longer is better" is near 0 there.
* A ranking is reported as all its pairs, which are one cluster, with Kendall's τ and whether its best reply scores highest.
* Truth: pairs whose true utilities are equal have no right order; they are left out and counted.

Not covered: recalibration (temperature scaling), significance of a difference between two models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dunwu.eval.passk import Interval, pass_at_1


@dataclass(frozen=True)
class Bin:
    """Cases whose stated probability lies in [low, high); the last bin holds 1 too."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int
    """Cases."""
    stated: float
    """Mean of the stated probabilities; 0 in an empty bin."""
    happened: float
    """Share of the cases in which it happened; 0 in an empty bin."""


def accuracy(right: Sequence[bool], clusters: Sequence[Hashable] | None = None) -> Interval:
    """Share of right cases; cases of one cluster (pairs of one conversation) do not count as independent.

    With clusters of different sizes every cluster weighs the same.

    Raises:
        ValueError: no cases, or not a cluster for each.

    Example:
        >>> print(accuracy([True, True, True, False]))
        0.750 [0.301, 0.954]
        >>> accuracy([True, True, False], ["a", "a", "b"]).value
        0.5
    """
    if clusters is None:
        return pass_at_1([[r] for r in right])
    grouped: dict[Hashable, list[bool]] = {}
    for r, cluster in zip(right, clusters, strict=True):
        grouped.setdefault(cluster, []).append(r)
    return pass_at_1(list(grouped.values()))


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), without overflow.

    Example:
        >>> sigmoid(0.0), sigmoid(-1e9), round(sigmoid(math.log(3)), 6)
        (0.5, 0.0, 0.75)
    """
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    grown = math.exp(x)
    return grown / (1 + grown)


def reliability(stated: Sequence[float], happened: Sequence[bool], bins: int = 10, low: float = 0.0) -> list[Bin]:
    """`bins` equal bins from `low` to 1, empty ones included; every case is in exactly one.

    Raises:
        ValueError: a probability outside [low, 1] (NaN too), or not an outcome for each.

    Example:
        >>> reliability([0.1, 0.2, 0.9, 1.0], [False, True, True, True], bins=2)[1]
        Bin(low=0.5, high=1.0, n=2, stated=0.95, happened=1.0)
    """
    cases: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    width = (1 - low) / bins
    for p, outcome in zip(stated, happened, strict=True):
        if not low <= p <= 1:
            raise ValueError(f"{p} is no probability between {low} and 1")
        cases[min(bins - 1, int((p - low) / width))].append((p, outcome))
    found = []
    for number, inside in enumerate(cases):
        n = len(inside)
        mean = math.fsum(p for p, _ in inside) / n if n else 0.0
        share = sum(outcome for _, outcome in inside) / n if n else 0.0
        found.append(Bin(low + number * width, low + (number + 1) * width, n, mean, share))
    return found


def pair_reliability(margins: Sequence[float], bins: int = 5) -> list[Bin]:
    """Confidence max(σ(m), σ(−m)) ≥ 1/2 of each pair against "its order is right" (m > 0).

    Example:
        >>> [(b.n, b.happened) for b in pair_reliability([math.log(3), -math.log(3), 9.0], bins=2)]
        [(0, 0.0), (3, 0.6666666666666666)]
    """
    return reliability([sigmoid(abs(m)) for m in margins], [m > 0 for m in margins], bins, low=0.5)


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over the cases of |mean stated − share happened| of their bin; 0 is honest.

    Example:
        >>> bins = reliability([0.25, 0.25, 0.75, 0.75], [False, True, True, True], bins=2)
        >>> expected_calibration_error(bins)  # (2 · |0.25 - 0.5| + 2 · |0.75 - 1|) / 4
        0.25
    """
    cases = sum(b.n for b in bins)
    return math.fsum(b.n * abs(b.stated - b.happened) for b in bins) / cases if cases else 0.0


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one of the two never varies.

    Example:
        >>> correlation([1, 2, 3], [2, 4, 6]), correlation([1, 2], [5, 5])
        (1.0, None)
    """
    n = len(first)
    if n != len(second):
        raise ValueError(f"not the same cases: {n} and {len(second)}")
    if n < 2 or max(first) == min(first) or max(second) == min(second):
        return None
    mean1, mean2 = math.fsum(first) / n, math.fsum(second) / n
    off1, off2 = [x - mean1 for x in first], [y - mean2 for y in second]
    norm = math.sqrt(math.fsum(x * x for x in off1) * math.fsum(y * y for y in off2))
    return max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(off1, off2)) / norm)) if norm else None


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation of the ranks, ties sharing their mean rank; None where one of the two never varies.

    Example:
        >>> spearman([1, 2, 3], [10, 100, 1000]), spearman([1, 2, 3], [3, 2, 1])
        (1.0, -1.0)
    """
    return correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda n: values[n])
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for n in order[at:end]:
            ranks[n] = (at + end - 1) / 2
        at = end
    return ranks


# ---- whole reports --------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredPair:
    """One held-out pair as the model saw it."""

    chosen: float
    """Score of the chosen reply."""
    rejected: float
    """Score of the rejected one."""
    chosen_length: int
    """Tokens the model saw of the conversation with the chosen reply."""
    rejected_length: int
    """Tokens with the rejected one."""
    conversation: Hashable = None
    """Pairs of equal conversations are one cluster; None: a cluster of its own."""
    truth: tuple[float, float] | None = None
    """True utilities of chosen and rejected, where the world knows them."""

    @property
    def margin(self) -> float:
        """r_chosen − r_rejected."""
        return self.chosen - self.rejected


def pairwise_report(pairs: Sequence[ScoredPair], bins: int = 5) -> dict[str, Any]:
    """Everything said above of a pairwise model, JSON-able; figures that cannot be had are null.

    Raises:
        ValueError: no pairs.
    """
    margins = [pair.margin for pair in pairs]
    shorter = [pair for pair in pairs if pair.chosen_length < pair.rejected_length]
    table = pair_reliability(margins, bins)
    scores = [score for pair in pairs for score in (pair.chosen, pair.rejected)]
    lengths = [float(length) for pair in pairs for length in (pair.chosen_length, pair.rejected_length)]
    report: dict[str, Any] = {
        "pairs": len(pairs),
        "accuracy": _pair_accuracy(pairs).as_json(),
        "equal_scores": sum(m == 0 for m in margins),
        "margin": math.fsum(margins) / len(margins),
        "calibration_error": expected_calibration_error(table),
        "bins": [asdict(b) for b in table],
        "length_correlation": correlation(scores, lengths),
        "chosen_shorter": _pair_accuracy(shorter).as_json() if shorter else None,
        "agreement": None,
    }
    known = [(p.chosen, p.rejected, *p.truth, p.conversation) for p in pairs if p.truth is not None]
    if known:
        report["agreement"] = truth_agreement(known)
    return report


@dataclass(frozen=True)
class ScoredRanking:
    """One held-out ranking as the model saw it; all fields go along the replies, best first."""

    scores: Sequence[float]
    """Score of each reply."""
    ranks: Sequence[int]
    """0 is best; equal ranks are ties."""
    lengths: Sequence[int]
    """Tokens the model saw."""
    conversation: Hashable = None
    """Rankings of equal conversations are one cluster; None: a cluster of its own."""
    truth: Sequence[float] | None = None
    """True utilities, where the world knows them."""

    def pairs(self, number: int) -> list[ScoredPair]:
        """Every two replies that are not tied; `number` names the cluster if no conversation does."""
        cluster = ("ranking", number) if self.conversation is None else self.conversation
        places = range(len(self.ranks))
        return [
            ScoredPair(
                self.scores[b],
                self.scores[w],
                self.lengths[b],
                self.lengths[w],
                cluster,
                None if self.truth is None else (self.truth[b], self.truth[w]),
            )
            for b in places
            for w in places
            if self.ranks[b] < self.ranks[w]
        ]


def ranking_report(rankings: Sequence[ScoredRanking], bins: int = 5) -> dict[str, Any]:
    """`pairwise_report` of all pairs, and of the rankings: `kendall`, the mean of (pairs in order − pairs out of order) /
    pairs, equal scores being neither; `best_first`, the share in which a best reply has the highest score, alone.

    Raises:
        ValueError: no rankings.

    Example:
        >>> report = ranking_report([ScoredRanking([0.2, 0.9, 0.1], [0, 1, 2], [5, 5, 5])])
        >>> round(report["kendall"], 4), report["best_first"]["value"], round(report["accuracy"]["value"], 4)
        (0.3333, 0.0, 0.6667)
    """
    pairs = [ranking.pairs(number) for number, ranking in enumerate(rankings)]
    report = pairwise_report([pair for group in pairs for pair in group], bins)
    orders = [math.fsum((p.margin > 0) - (p.margin < 0) for p in group) / len(group) for group in pairs]
    clusters = [n if ranking.conversation is None else (ranking.conversation,) for n, ranking in enumerate(rankings)]
    first = [
        max(r.scores) > max((s for s, rank in zip(r.scores, r.ranks) if rank > 0), default=-math.inf) for r in rankings
    ]
    also = {"rankings": len(rankings), "kendall": math.fsum(orders) / len(orders)}
    return report | also | {"best_first": accuracy(first, clusters).as_json()}


def _pair_accuracy(pairs: Sequence[ScoredPair]) -> Interval:
    clusters = [n if pair.conversation is None else (pair.conversation,) for n, pair in enumerate(pairs)]
    return accuracy([pair.margin > 0 for pair in pairs], clusters)


def truth_agreement(cases: Sequence[tuple[float, float, float, float, Hashable]]) -> dict[str, Any]:
    """Does the model order replies as the truth does?

    Args:
        cases: (score of a reply, score of another to the same conversation, their true utilities, the conversation or None).

    Returns:
        "agreement": share of pairs ordered as the truth orders them, null if the truth never differs; "ties": pairs whose
        utilities are equal, left out; "spearman": rank correlation of all scores with all utilities.

    Example:
        >>> report = truth_agreement([(2.0, 1.0, 0.9, 0.1, None), (1.0, 3.0, 0.8, 0.2, None), (1.0, 0.0, 0.5, 0.5, None)])
        >>> report["agreement"]["value"], report["ties"]
        (0.5, 1)
    """
    ordered = [(n, case) for n, case in enumerate(cases) if case[2] != case[3]]
    right = [(a - b) * (u - v) > 0 for _, (a, b, u, v, _) in ordered]
    clusters = [n if case[4] is None else (case[4],) for n, case in ordered]
    scores = [score for case in cases for score in case[:2]]
    truths = [utility for case in cases for utility in case[2:4]]
    return {
        "agreement": accuracy(right, clusters).as_json() if right else None,
        "ties": len(cases) - len(ordered),
        "spearman": spearman(scores, truths),
    }


def pointwise_report(
    scores: Sequence[float], labels: Sequence[bool], lengths: Sequence[int], bins: int = 10
) -> dict[str, Any]:
    """Everything said above of a pointwise model; a score above 0 calls the reply good.

    `accuracy_good` and `accuracy_bad` are over the replies with that label, `majority` is what always naming the more
    frequent label would reach.

    Raises:
        ValueError: no scores, or not a label and a length for each.

    Example:
        >>> report = pointwise_report([2.0, -1.0, 1.0], [True, False, False], [5, 9, 7])
        >>> round(report["accuracy"]["value"], 3), report["accuracy_good"]["value"], report["accuracy_bad"]["value"]
        (0.667, 1.0, 0.5)
    """
    right = [(score > 0) == label for score, label in zip(scores, labels, strict=True)]
    table = reliability([sigmoid(score) for score in scores], labels, bins)
    report: dict[str, Any] = {
        "replies": len(scores),
        "accuracy": accuracy(right).as_json(),
        "majority": max(sum(labels), len(labels) - sum(labels)) / len(labels),
        "calibration_error": expected_calibration_error(table),
        "bins": [asdict(b) for b in table],
        "length_correlation": correlation(scores, [float(length) for length in lengths]),
    }
    for name, wanted in (("accuracy_good", True), ("accuracy_bad", False)):
        part = [r for r, label in zip(right, labels) if label == wanted]
        report[name] = accuracy(part).as_json() if part else None
    return report
