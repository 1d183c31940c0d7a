"""What the arms of a study show: intervals over seeds, steps to a target, and the claims that the figures decide.

A claim holds if the whole 95% interval is on its side, fails if the whole interval is on the other, and is open where it has
both. Differences are between learners of the same seed. Not covered: correction for asking many questions of one study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dunwu.eval.passk import Interval, over_seeds

TARGETS = {"cartpole": 475.0, "pendulum": -200.0, "acrobot": -100.0, "lqr": 1.05}
"""What counts as solved: gymnasium's thresholds where it has one; of the LQR, 5% above the best cost."""
CLOSE = {"cartpole": 25.0, "pendulum": 20.0, "acrobot": 10.0, "lqr": 0.05}
"""How far behind PPO is no worse than PPO, in the unit of the system."""
TITLES = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "grpo-to-go": "GRPO, return to go",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
}
SYSTEM_TITLES = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1", "acrobot": "Acrobot-v1"}


@dataclass(frozen=True)
class Result:
    """One arm, measured. Values are mean returns, or of an LQR the cost over that of the best controller."""

    system: str
    variant: str
    group_size: int
    episodes: int
    """Of an update."""
    swept: bool
    final: Sequence[float]
    """By seed."""
    steps: Sequence[int]
    """Of the curve."""
    curve: Sequence[Sequence[float]]
    """Values by point and seed."""
    updates: int
    seconds: float
    """Of one core, for all seeds."""
    gym: Sequence[float] = ()
    """As `final`, in gymnasium's own environment; empty where that was not played."""

    @property
    def kind(self) -> str:
        """The system without its horizon."""
        return self.system.partition("-")[0]

    @property
    def sign(self) -> int:
        """1 where more is better, −1 where less is."""
        return -1 if self.kind == "lqr" else 1

    @property
    def interval(self) -> Interval:
        """Over seeds."""
        return over_seeds(self.final)

    def steps_to_target(self) -> float | None:
        """Median over seeds of the first point of the curve that reaches the target; None if half of them never do."""
        target = TARGETS[self.kind]
        reached = []
        for values in zip(*self.curve):
            there = [step for step, value in zip(self.steps, values) if self.sign * (value - target) >= 0]
            reached.append(there[0] if there else math.inf)
        middle = median(reached)
        return middle if math.isfinite(middle) else None

    def as_json(self) -> dict[str, Any]:
        """What reports show of it."""
        bands = [over_seeds(values).as_json() for values in self.curve]
        return {
            "system": self.system,
            "variant": self.variant,
            "title": TITLES[self.variant],
            "group_size": self.group_size,
            "swept": self.swept,
            "final": self.interval.as_json(),
            "each": list(self.final),
            "gym": over_seeds(self.gym).as_json() if self.gym else None,
            "steps_to_target": self.steps_to_target(),
            "env_steps": self.steps[-1],
            "updates": self.updates,
            "seconds": round(self.seconds, 1),
            "curve": [[step, band["value"], band["low"], band["high"]] for step, band in zip(self.steps, bands)],
        }


def title(system: str) -> str:
    """A system as people call it.

    Example:
        >>> title("lqr-20"), title("cartpole")
        ('LQR, 20 steps', 'CartPole-v1')
    """
    kind, _, horizon = system.partition("-")
    return SYSTEM_TITLES.get(kind) or f"LQR, {horizon} steps"


def verdicts(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The claims: what is solved by whom, then who needs a critic, and when."""
    main = {(result.system, result.variant): result for result in results if not result.swept}
    found = [_solved(result) for result in main.values() if result.variant in ("ppo", "grpo", "grpo-to-go")]
    horizons = sorted(int(name.partition("-")[2]) for name, variant in main if variant == "ppo" and "lqr" in name)
    if horizons and (f"lqr-{horizons[0]}", "grpo") in main:
        found += _critic_claims(main, horizons)
    return found + _sweep_claims(results)


def who_needs_a_critic(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Per system and critic-free variant: its difference to PPO, and whether a critic was needed: true, false, or null (open)."""
    main = {(result.system, result.variant): result for result in results if not result.swept}
    rows = []
    for (system, variant), result in main.items():
        if variant != "ppo" and (system, "ppo") in main:
            behind = _behind(main[system, "ppo"], result)
            free = _at_most(behind, CLOSE[result.kind])
            rows.append(
                {
                    "system": system,
                    "variant": variant,
                    "behind": behind.as_json(),
                    "close": CLOSE[result.kind],
                    "needed": None if free is None else not free,
                }
            )
    return rows


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """The study's answer, from the rows of `who_needs_a_critic`, for GRPO with the whole return and with the return to go."""
    parts = []
    for variant, name in (("grpo", "GRPO"), ("grpo-to-go", "with the return to go")):
        words = []
        for needed, said in ((False, "needs no critic on"), (True, "needs one on"), (None, "open on")):
            systems = [title(row["system"]) for row in rows if row["variant"] == variant and row["needed"] is needed]
            if systems:
                words.append(f"{said} {'; '.join(systems)}")
        if words:
            parts.append(f"{name} {', '.join(words)}")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "." if parts else "No PPO to compare with."


def _solved(result: Result) -> dict[str, Any]:
    target, name = TARGETS[result.kind], TITLES[result.variant]
    value = result.interval
    if result.kind == "lqr":
        holds, bound = _at_most(value, target), "costs at most 5% more than the best controller"
    else:
        holds, bound = _at_most(_negative(value), -target), f"reaches {target:g}"
    return _verdict(f"{title(result.system)}: {name} {bound}", holds, str(_shown(value)))


def _critic_claims(main: Mapping[tuple[str, str], Result], horizons: Sequence[int]) -> list[dict[str, Any]]:
    def behind(horizon: int, variant: str) -> Interval:
        return _behind(main[f"lqr-{horizon}", "ppo"], main[f"lqr-{horizon}", variant])

    short, long = horizons[0], horizons[-1]
    near, far, close = behind(short, "grpo"), behind(long, "grpo"), CLOSE["lqr"]
    found = [
        _verdict(
            f"A short horizon needs no critic: at {short} steps GRPO is at most {close:g} above PPO's cost over the optimum",
            _at_most(near, close),
            f"{_shown(near)} above",
        )
    ]
    if long > short:
        over = _at_most(far, close)
        found.append(
            _verdict(
                f"A long one does: at {long} steps GRPO is more than {close:g} above PPO",
                None if over is None else not over,
                f"{_shown(far)} above",
            )
        )
        if over is False and (f"lqr-{long}", "grpo-to-go") in main:
            ppo, whole, to_go = (main[f"lqr-{long}", name].final for name in ("ppo", "grpo", "grpo-to-go"))
            saved = over_seeds([(w - p) / 2 - (g - p) for p, w, g in zip(ppo, whole, to_go)])
            found.append(
                _verdict(
                    f"Return to go, without any critic, closes half of that gap at {long} steps",
                    _at_most(_negative(saved), 0.0),
                    f"{_shown(behind(long, 'grpo-to-go'))} above",
                )
            )
    return found


def _sweep_claims(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Are small groups better at equal samples? arXiv 2511.03527 finds so."""
    found = []
    for system in dict.fromkeys(result.system for result in results if result.swept):
        episodes = next(result.episodes for result in results if result.swept and result.system == system)
        same = [r for r in results if (r.system, r.variant, r.episodes) == (system, "grpo", episodes)]
        sizes = {result.group_size: result for result in same}
        if len(sizes) > 1:
            small, large = sizes[min(sizes)], sizes[max(sizes)]
            worse = _behind(small, large)
            found.append(
                _verdict(
                    f"{title(system)}: groups of {small.group_size} are better than groups of {large.group_size}",
                    _at_most(_negative(worse), 0.0),
                    f"large behind small by {_shown(worse)}",
                )
            )
    return found


def _behind(reference: Result, other: Result) -> Interval:
    """By how much `other` is worse, over the same seeds."""
    return over_seeds([reference.sign * (a - b) for a, b in zip(reference.final, other.final)])


def _at_most(value: Interval, bound: float) -> bool | None:
    """Equal runs (all at the most a system gives) have an interval of no width, and decide too."""
    if value.high <= bound:
        return True
    return False if value.low > bound else None


def _negative(value: Interval) -> Interval:
    return Interval(-value.value, -value.high, -value.low, value.n)


def _shown(value: Interval) -> str:
    digits = 3 if abs(value.value) < 10 else 1
    if not math.isfinite(value.low):
        return f"{value.value:.{digits}f}"
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _verdict(claim: str, holds: bool | None, figure: str) -> dict[str, Any]:
    return {"claim": claim, "holds": holds, "figure": figure}
