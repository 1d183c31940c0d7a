"""Curves: their line, their ends, and how sure a rise is. Pure functions, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from dunwu.eval.course import Curve


@dataclass(frozen=True)
class Trend:
    """A least-squares line through a curve: means of its first and last third, its rise from end to end, and the standard
    error of that."""

    before: float
    after: float
    rise: float
    error: float
    first: int
    last: int


def trend(points: Curve) -> Trend | None:
    """The line through at least four points, else None.

    Example:
        >>> trend([(1, 0.0), (2, 2.0), (3, 1.0), (4, 3.0)])
        Trend(before=0.0, after=3.0, rise=2.4000000000000004, error=1.2727922061357855, first=1, last=4)
    """
    if len(points) < 4 or points[0][0] == points[-1][0]:
        return None
    xs, ys = [float(x) for x, _ in points], [y for _, y in points]
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    left = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    span, third = xs[-1] - xs[0], len(ys) // 3
    error = span * math.sqrt(left / (len(xs) - 2) / spread)
    return Trend(fmean(ys[:third]), fmean(ys[-third:]), slope * span, error, points[0][0], points[-1][0])


def ends(points: Curve, share: int = 4) -> tuple[Curve, Curve]:
    """The first and last quarter of a curve, at least three points, or half of a short one."""
    count = max(1, min(max(3, len(points) // share), len(points) // 2))
    return points[:count], points[-count:]


def mean(points: Curve) -> float:
    """Mean value; NaN of nothing."""
    return fmean(y for _, y in points) if points else math.nan


def steps_of(points: Curve) -> list[int]:
    """The steps of a curve."""
    return [step for step, _ in points]


def since(points: Curve, holds: Callable[[float], bool]) -> int:
    """The first step at which it `holds`, and holds for the mean of what follows; the last step if there is none."""
    first, total = points[-1][0], 0.0
    for count, (step, y) in enumerate(reversed(points), 1):
        total += y
        if holds(y) and holds(total / count):
            first = step
    return first


def error_of_mean(points: Curve) -> float:
    """Standard error of a mean, by its scatter."""
    if len(points) < 2:
        return math.inf
    centre = mean(points)
    return math.sqrt(math.fsum((y - centre) ** 2 for _, y in points) / (len(points) - 1) / len(points))
