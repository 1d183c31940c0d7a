"""pass@k, cons@k and their 95% intervals. No torch, no randomness: the same samples give the same figures.

* pass@k: the chance that at least one of k samples is right, unbiased from n ≥ k samples of a problem
  (arXiv 2107.03374): 1 − C(n−c, k) / C(n, k). pass@1 is the mean (arXiv 2501.12948 §Evaluation).
* cons@k: the chance that the majority of k samples is right. Samples vote by the verifier's answer
  key, so 3*8 and 8*3 are one vote; unparsable answers do not vote; nobody voting is wrong. The value
  is the exact expectation over all k-subsets of the n samples and over ties, each tied answer being
  as likely as the next: it depends on no order and leans towards no truth.
* intervals over problems: Wilson's score interval. Several samples of one problem are one cluster:
  the number of independent trials is what the variance between problems says, never fewer than the
  problems and never more than the samples. The interval is about new problems as well as new samples.
* intervals over seeds, and over problems of a figure that is no share (a length): Student's t.

Not covered: bootstrap intervals; tests of significance beyond "does the interval hold 0".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054
"""97.5% point of the normal distribution."""
_T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5% points of Student's t, 1 to 30 degrees of freedom."""

Vote = tuple[Hashable, bool]
"""A sample's answer key (None: unparsable, does not vote) and whether the verifier accepts it."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95% interval; infinite ends where nothing is known (one seed).

    Example:
        >>> print(Interval(0.5, 0.25, 0.75, 12))
        0.500 [0.250, 0.750]
    """

    value: float
    """The estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int
    """Problems, or seeds, that it rests on."""

    def as_json(self) -> dict[str, Any]:
        """`{"value", "low", "high", "n"}`; unknown ends are null."""
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that k of n samples hold at least one of the c right ones.

    1 − C(n−c, k) / C(n, k) = 1 − Π (1 − k/i) for i from n−c+1 to n, which neither overflows nor cancels.

    Raises:
        ValueError: unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def pass_at_1(right: Sequence[Sequence[bool]]) -> Interval:
    """Mean over problems of the share of right samples; `right[problem][sample]`."""
    return mean_pass_at_k([(len(row), sum(row)) for row in right], 1)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> Interval:
    """Mean pass@k over problems; `counts[problem]` is (samples, right samples)."""
    return _over_problems([pass_at_k(n, c, k) for n, c in counts], most=sum(n for n, _ in counts))


def cons_at_k(votes: Sequence[Sequence[Vote]], k: int) -> Interval:
    """Mean over problems of the chance that the majority of k samples is right; `votes[problem][sample]`."""
    return _over_problems([consensus(row, k) for row in votes], most=len(votes))


def consensus(votes: Sequence[Vote], k: int) -> float:
    """One problem's cons@k: exact over all k-subsets, ties shared equally.

    With k = n this is the plain majority. For smaller k the subsets are counted, not drawn: a subset
    with m votes for the leading answers is built answer by answer, `ways[chosen, tied right, tied]`.

    Raises:
        ValueError: unless 1 ≤ k ≤ the number of samples.

    Example:
        >>> consensus([("24", True), ("24", True), ("23", False)], 3)
        1.0
        >>> consensus([("24", True), ("23", False), (None, False)], 3)
        0.5
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"cons@{k} needs at least {k} samples, got {len(votes)}")
    answers: dict[Hashable, list[bool]] = defaultdict(list)
    for key, right in votes:
        if key is not None:
            answers[key].append(right)
    silent = len(votes) - sum(map(len, answers.values()))
    sizes = [(len(rights), all(rights)) for rights in answers.values()]
    most = max((size for size, _ in sizes), default=0)
    if k == len(votes):
        leading = [right for size, right in sizes if size == most]
        return sum(leading) / len(leading) if leading else 0.0
    won = sum(_won_with(lead, sizes, silent, k) for lead in range(1, min(most, k) + 1))
    return won / math.comb(len(votes), k)


def _won_with(lead: int, sizes: Sequence[tuple[int, bool]], silent: int, k: int) -> float:
    """Subsets of k whose leading answers have `lead` votes each, weighted by the share of right ones among them."""
    ways: dict[tuple[int, int, int], int] = {(0, 0, 0): 1}
    for size, right in sizes:
        longer: dict[tuple[int, int, int], int] = defaultdict(int)
        for (chosen, tied_right, tied), count in ways.items():
            for votes in range(min(size, lead, k - chosen) + 1):
                leads = votes == lead
                state = (chosen + votes, tied_right + (leads and right), tied + leads)
                longer[state] += count * math.comb(size, votes)
        ways = longer
    return sum(
        count * math.comb(silent, k - chosen) * tied_right / tied
        for (chosen, tied_right, tied), count in ways.items()
        if tied
    )


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95% score interval of a share p of n trials.

    Example:
        >>> low, high = wilson(0.0, 10)
        >>> low, round(high, 4)
        (0.0, 0.2775)
    """
    centre = p + Z95 * Z95 / (2 * n)
    spread = Z95 * math.sqrt(p * (1 - p) / n + Z95 * Z95 / (4 * n * n))
    scale = 1 + Z95 * Z95 / n
    # At the ends the two terms are equal but for rounding.
    low = 0.0 if p <= 0 else max(0.0, (centre - spread) / scale)
    return low, 1.0 if p >= 1 else min(1.0, (centre + spread) / scale)


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over independent runs with Student's t interval; one run: an infinite interval.

    Example:
        >>> print(over_seeds([0.6, 0.7, 0.8]))
        0.700 [0.452, 0.948]
    """
    mean, variance = _mean_and_variance(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, len(values))
    half = _student(len(values) - 1) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(result: Sequence[Sequence[bool]], base: Sequence[Sequence[bool]]) -> Interval:
    """pass@1 of `result` minus `base` on the same problems, with an interval over problems.

    Agresti and Min (2005): the interval is computed as if two more problems had been seen, which differ by +1 and -1
    with weight one half each. So it has a width even where no problem changed.

    Raises:
        ValueError: they do not hold the same number of problems, or none.
    """
    if len(result) != len(base):
        raise ValueError(f"not the same problems: {len(result)} and {len(base)}")
    return mean_change([sum(after) / len(after) - sum(before) / len(before) for after, before in zip(result, base)])


def mean_change(changes: Sequence[float]) -> Interval:
    """Mean of per-problem differences in [-1, 1], with `paired_difference`'s interval.

    Example:
        >>> print(mean_change([0.5, 0.0, 0.5, 0.0]))
        0.250 [-0.211, 0.544]
    """
    mean, _ = _mean_and_variance(changes)
    n = len(changes) + 2
    centre = math.fsum(changes) / n
    variance = (math.fsum(change * change for change in changes) + 1) / n - centre * centre
    half = Z95 * math.sqrt(variance / n)
    return Interval(mean, max(-1.0, centre - half), min(1.0, centre + half), len(changes))


def mean_share(rows: Sequence[Sequence[float]]) -> Interval:
    """Mean over problems of values in [0, 1]; `rows[problem][sample]`.

    Right-or-wrong values: as `pass_at_1`. Graded ones: Student's t over problems, cut at 0 and 1; where all problems
    are equal t would claim certainty, and Wilson's interval stands in.

    Raises:
        ValueError: no problem.

    Example:
        >>> print(mean_share([[1.0], [0.0], [1.0], [1.0]]))
        0.750 [0.301, 0.954]
        >>> print(mean_share([[0.4], [0.5], [0.6]]))
        0.500 [0.252, 0.748]
    """
    values = [math.fsum(row) / len(row) for row in rows]
    if max(values, default=0.0) == min(values, default=0.0) or all(
        value in (0.0, 1.0) for row in rows for value in row
    ):
        return _over_problems(values, most=sum(map(len, rows)))
    found = over_seeds(values)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high), found.n)


def share_of(parts: Sequence[float], wholes: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """Σ parts / Σ wholes, each part from 0 to its whole: of what could be had, the share that was had.

    The interval is that of a ratio (delta method: what varies is part − ratio · whole), Student's t over clusters, cut at 0
    and 1; where nothing varies Wilson's stands in, as in `mean_share`.

    Args:
        clusters: cases of one cluster (pairs of replies to one prompt) do not count as independent; None: each is its own.

    Raises:
        ValueError: not a whole and a cluster for each part, or wholes that sum to 0 or less.

    Example:
        >>> print(share_of([0.9, 0.1, 0.8, 0.7], [0.9, 0.9, 0.8, 0.7]))
        0.758 [0.008, 1.000]
        >>> print(share_of([0.5, 0.7], [0.5, 0.7]))
        1.000 [0.342, 1.000]
    """
    whole = math.fsum(wholes)
    if not whole > 0:
        raise ValueError(f"{len(parts)} parts of wholes that sum to {whole}")
    ratio = math.fsum(parts) / whole
    off: dict[Hashable, float] = {}
    for part, each, cluster in zip(parts, wholes, clusters or range(len(parts)), strict=True):
        off[cluster] = off.get(cluster, 0.0) + part - ratio * each
    n = len(off)
    spread = math.fsum(d * d for d in off.values())
    if n < 2 or spread == 0:
        return Interval(ratio, *wilson(ratio, n), n)
    half = _student(n - 1) * math.sqrt(spread * n / (n - 1)) / whole
    return Interval(ratio, max(0.0, ratio - half), min(1.0, ratio + half), n)


def _over_problems(values: Sequence[float], most: int) -> Interval:
    """Mean of per-problem values in [0, 1]; `most` bounds the independent trials from above."""
    mean, variance = _mean_and_variance(values)
    problems = len(values)
    trials = float(problems)
    if most > problems and 0 < mean < 1:
        of_the_mean = variance / problems
        trials = mean * (1 - mean) / of_the_mean if of_the_mean * most > mean * (1 - mean) else float(most)
    low, high = wilson(mean, max(trials, problems))
    return Interval(mean, low, high, problems)


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased variance (0 for one value)."""
    if not values:
        raise ValueError("no values to average")
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def _student(freedom: int) -> float:
    """97.5% point of Student's t; beyond the table by its expansion in 1/freedom (Fisher), good to 1e-4."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
