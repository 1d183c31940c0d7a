"""Units of a study of policy gradients to its findings: figures over seeds, at equal samples and at equal processor
seconds, and the claims they decide. `recipes.rl_study` writes what `compare` returns as `rl-study.json`, and `evidence.json`
holds it under `rl_study`; I is an interval as `Interval.as_json` gives it:

    {"measure": sentence, "shared": settings, "arms": {ARM: {SETTING: value, …}} (what differs from the shared ones),
     "base": {TASK: {"pass@1": I, "k": 16, "pass@k": I, "length", "format"}},
     "tasks": {TASK: {"seeds": […], "equal_seconds": T, "rows": [ROW, …], "curves": {ARM: [[samples, processor seconds, I], …]}}},
     "variants": like one of the tasks, with its name under "task", or absent,
     "units": [{"task", "arm", "seed", "pass@1": I, "curve": {…}, …}, …], "verdicts": [{"claim", "holds", "figure", "reason"}, …]}

A ROW: {"arm", "seeds": n, "samples", "pass@1": I, "pass@k": I, "at_equal_seconds": I, "on_the_way": I, "length", "entropy", "processor_seconds_per_step",
"seconds_per_step", "memory_mb"}. Intervals are Student's t over seeds; with one seed, over problems (none for a curve).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from dunwu.eval.passk import Interval, over_seeds

CLOSE = 0.05
"""How far two arms may lie apart in pass@1 and still be close."""
LAST = 10
"""Steps at the end whose mean entropy is shown."""
PPO, PPO_1, GRPO, NO_KL = "ppo", "ppo-lambda-1", "grpo", "dunwu"
NAMES = {PPO: "PPO, λ = 0.95", PPO_1: "PPO, λ = 1", GRPO: "GRPO", NO_KL: "GRPO without KL"}
"""How arms are called in claims and on pages, where their own name does not say it."""

Record = Mapping[str, Any]


def compare(
    units: Sequence[Record],
    bases: Mapping[str, Record],
    shared: Record,
    settings: Mapping[str, Record],
    tasks: Sequence[str],
    arms: Sequence[str],
    variants: Sequence[str] = (),
    variant_seeds: Sequence[int] = (),
    variant_task: str = "",
) -> dict[str, Any]:
    """Everything the study says, in the schema above.

    Args:
        units: one for each (task, arm, seed): its figures on the test problems, its cost and its curve.
        bases: by task, the base's figures on the same problems.
        settings: by arm, all of its settings, as JSON.
        arms: compared on each of `tasks`.
        variants: compared on `variant_task`, over `variant_seeds`.
    """
    found: dict[str, Any] = {"measure": _measure(bases), "shared": dict(shared)}
    found["arms"] = {arm: differing(own, shared) for arm, own in settings.items()}
    found["base"], found["tasks"] = dict(bases), {}
    for task in tasks if arms else ():
        of_task = [unit for unit in units if unit["task"] == task and unit["arm"] in arms]
        found["tasks"][task] = side_by_side(of_task, arms, shared)
    if variants:
        asked = [unit for unit in units if unit["task"] == variant_task and unit["seed"] in variant_seeds]
        of_variants = [unit for unit in asked if unit["arm"] in variants]
        found["variants"] = {"task": variant_task, **side_by_side(of_variants, variants, shared)}
    found["units"] = list(units)
    found["verdicts"] = verdicts(found)
    return found


def _measure(bases: Mapping[str, Record]) -> str:
    said = [f"{base['problems']} {task} problems" for task, base in bases.items()]
    samples = next(iter(bases.values()))["samples"]
    return f"held-out {' and '.join(said)}, {samples} samples each, temperature 1"


def differing(own: Record, shared: Record) -> dict[str, Any]:
    """Settings, nested ones dotted, that are not among the shared ones or differ from them.

    Example:
        >>> differing({"lr": 1e-4, "clip_low": 0.1, "off": {"tis": "none"}}, {"lr": 1e-4, "clip_low": 0.2})
        {'clip_low': 0.1, 'off.tis': 'none'}
    """
    before = flat(shared)
    return {name: value for name, value in flat(own).items() if name not in before or before[name] != value}


def flat(settings: Record, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def side_by_side(units: Sequence[Record], arms: Sequence[str], shared: Record) -> dict[str, Any]:
    """Arms on one task: a row each, at equal samples and at equal processor seconds, and their curves."""
    of_arm = {arm: [unit for unit in units if unit["arm"] == arm] for arm in arms}
    seconds = min(unit["processor_seconds"] for unit in units)
    return {
        "seeds": sorted({unit["seed"] for unit in units}),
        "equal_seconds": seconds,
        "rows": [_row(arm, of_arm[arm], seconds, shared["steps"]) for arm in arms],
        "curves": {arm: mean_curve([unit["curve"]["held_out"] for unit in of_arm[arm]]) for arm in arms},
    }


def _row(arm: str, units: Sequence[Record], seconds: float, steps: int) -> dict[str, Any]:
    curves = [unit["curve"] for unit in units]
    entropy = [fmean(value for _, value in curve["entropy"][-LAST:]) for curve in curves if curve["entropy"]]
    return {
        "arm": arm,
        "seeds": len(units),
        "samples": fmean(curve["held_out"][-1]["samples"] for curve in curves),
        "pass@1": _over([unit["pass@1"] for unit in units]),
        "pass@k": _over([unit["pass@k"] for unit in units]),
        "at_equal_seconds": _share(over_seeds([at(curve["held_out"], seconds) for curve in curves]).as_json()),
        "on_the_way": _share(over_seeds([on_the_way(curve["held_out"]) for curve in curves]).as_json()),
        "length": fmean(unit["length"] for unit in units),
        "entropy": fmean(entropy) if entropy else None,
        "processor_seconds_per_step": fmean(unit["processor_seconds"] for unit in units) / steps,
        "seconds_per_step": fmean(unit["seconds"] for unit in units) / steps,
        "memory_mb": fmean(sum(unit["memory"].values()) for unit in units) / 1e6,
    }


def _over(intervals: Sequence[Record]) -> dict[str, Any]:
    """Over seeds; of one seed, its own interval over problems."""
    if len(intervals) == 1:
        return dict(intervals[0])
    return _share(over_seeds([found["value"] for found in intervals]).as_json())


def _share(found: dict[str, Any]) -> dict[str, Any]:
    """The interval of a share, which ends at 0 and 1; Student's does not know that."""
    ends = {end: min(1.0, max(0.0, found[end])) for end in ("low", "high") if found[end] is not None}
    return found | ends


def at(curve: Sequence[Record], seconds: float) -> float:
    """pass@1 of a held-out curve after so many processor seconds, straight between its points.

    Example:
        >>> at([{"processor_seconds": 0.0, "pass@1": 0.0}, {"processor_seconds": 10.0, "pass@1": 0.5}], 5.0)
        0.25
    """
    points = [(point["processor_seconds"], point["pass@1"]) for point in curve]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= seconds <= x1 and x1 > x0:
            return float(y0 + (y1 - y0) * (seconds - x0) / (x1 - x0))
    return float(points[0][1] if seconds < points[0][0] else points[-1][1])


def on_the_way(curve: Sequence[Record]) -> float:
    """Mean pass@1 of a held-out curve over its samples: how much was known how soon.

    Example:
        >>> on_the_way([{"samples": 0, "pass@1": 0.0}, {"samples": 10, "pass@1": 0.4}, {"samples": 30, "pass@1": 0.4}])
        0.333
    """
    area = sum((b["samples"] - a["samples"]) * (a["pass@1"] + b["pass@1"]) / 2 for a, b in pairwise(curve))
    return float(round(area / (curve[-1]["samples"] - curve[0]["samples"]), 3))


def mean_curve(curves: Sequence[Sequence[Record]]) -> list[list[Any]]:
    """Rows [mean samples, mean processor seconds, pass@1 over seeds] at the steps that all the curves have."""
    by_step = [{point["step"]: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(found) for found in by_step)))
    rows = [[found[step] for found in by_step] for step in steps]
    return [
        [
            fmean(point["samples"] for point in there),
            fmean(point["processor_seconds"] for point in there),
            over_seeds([point["pass@1"] for point in there]).as_json(),
        ]
        for there in rows
    ]


# ---- claims -------------------------------------------------------------------------------------


def verdicts(found: Record) -> list[dict[str, Any]]:
    """PPO against GRPO on every task, the paper's remark on λ, and what becomes of pass@k; each from differences by seed.

    PPO is held against GRPO without a KL, if that is among the arms: then the two differ in their advantages (and GRPO's
    clip-higher), not in a pull to the base.
    """
    claims = []
    for task, part in found["tasks"].items():
        units, arms = [u for u in found["units"] if u["task"] == task], [row["arm"] for row in part["rows"]]
        first = NO_KL if NO_KL in arms else GRPO
        name, even = NAMES[first], "at equal samples"
        grpo, ppo, ppo_1 = (_scores(units, arm) if arm in arms else {} for arm in (first, PPO, PPO_1))
        claims += [
            _claim(f"{task}: {name} is ahead of {NAMES[PPO]}, {even}", grpo, ppo),
            _claim(f"{task}: {NAMES[PPO_1]}, comes within {CLOSE} of {name}, {even}", ppo_1, grpo, CLOSE),
            _claim(f"{task}: PPO does better with λ = 1 than with 0.95, {even}", ppo_1, ppo),
        ]
        timed, even = part["equal_seconds"], "at equal processor seconds"
        grpo, ppo, ppo_1 = (_scores(units, arm, timed) if arm in arms else {} for arm in (first, PPO, PPO_1))
        claims += [
            _claim(f"{task}: {name} is ahead of {NAMES[PPO]}, {even}", grpo, ppo),
            _claim(f"{task}: {name} is ahead of {NAMES[PPO_1]}, {even}", grpo, ppo_1),
        ]
        claims += _breadth(task, found["base"][task], units, arms)
    return [claim for claim in claims if claim]


def _scores(units: Sequence[Record], arm: str, seconds: float | None = None) -> dict[int, float]:
    """By seed: pass@1 on the test problems; or on the validation problems after so many processor seconds."""
    own = [unit for unit in units if unit["arm"] == arm]
    if seconds is None:
        return {unit["seed"]: unit["pass@1"]["value"] for unit in own}
    return {unit["seed"]: at(unit["curve"]["held_out"], seconds) for unit in own}


def _breadth(task: str, base: Record, units: Sequence[Record], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Does reinforcement widen what is found in k samples, or only find it sooner?"""
    found = []
    for arm in arms if base["k"] > 1 else ():
        after = {unit["seed"]: unit["pass@k"]["value"] for unit in units if unit["arm"] == arm}
        before = dict.fromkeys(after, base["pass@k"]["value"])
        found.append(_claim(f"{task}: {NAMES.get(arm, arm)} raises pass@{base['k']} above the base's", after, before))
    return found


def _claim(
    claim: str, one: Mapping[int, float], other: Mapping[int, float], within: float | None = None
) -> dict[str, Any]:
    """`one` is above `other`, or at most `within` away, by the interval of the differences of the seeds both have."""
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return {}
    change = over_seeds([one[seed] - other[seed] for seed in seeds])
    holds = _within(change, within) if within is not None else _above(change)
    shown = f"{fmean(one[s] for s in seeds):.3f} against {fmean(other[s] for s in seeds):.3f}"
    if math.isfinite(change.low):
        figure = f"{shown}: {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}], {len(seeds)} seeds"
    else:
        figure = f"{shown}: {change.value:+.3f}, one seed"
    reason = "" if holds is not None else "open: more seeds would decide"
    return {"claim": claim, "holds": holds, "figure": figure, "reason": reason}


def _above(change: Interval) -> bool | None:
    return True if change.low > 0 else False if change.high <= 0 else None


def _within(change: Interval, close: float) -> bool | None:
    if -close <= change.low and change.high <= close:
        return True
    return False if change.low > close or change.high < -close else None


# ---- as plain text ------------------------------------------------------------------------------


def study_table(found: Record) -> str:
    """What was found, with every arm's settings, for a terminal."""
    lines = ["shared: " + said(flat(found["shared"]))]
    lines += [f"{arm}: {said(settings) or 'as shared'}" for arm, settings in found["arms"].items()]
    parts = list(found["tasks"].items())
    if variants := found.get("variants"):
        parts.append((f"variants on {variants['task']}", variants))
    for title, part in parts:
        base = found["base"][part.get("task", title)]
        scores = f"pass@1 {base['pass@1']['value']:.3f}, pass@{base['k']} {base['pass@k']['value']:.3f}"
        lines += [
            "",
            f"{title}: seeds {', '.join(map(str, part['seeds']))}; base {scores}, {base['length']:.0f} tokens",
        ]
        timed = f"after {part['equal_seconds']:.0f} cpu s"
        lines.append(
            f"{'arm':<21}{'samples':>8}{'pass@1':>22}{'pass@' + str(base['k']):>9}{timed:>22}{'on the way':>11}{'tokens':>8}{'entropy':>9}"
            f"{'cpu s/step':>12}{'s/step':>8}{'kept MB':>9}"
        )
        lines += [_line(row) for row in part["rows"]]
    words = {True: "yes", False: "NO", None: "open"}
    lines += ["", *(f"{words[v['holds']]:<5}{v['claim']}: {v['figure']}" for v in found["verdicts"])]
    return "\n".join(lines)


def _line(row: Record) -> str:
    entropy = "–" if row["entropy"] is None else f"{row['entropy']:.3f}"
    return (
        f"{row['arm']:<21}{row['samples']:>8,.0f}{_text(row['pass@1']):>22}{row['pass@k']['value']:>9.3f}{_text(row['at_equal_seconds']):>22}"
        f"{row['on_the_way']['value']:>11.3f}{row['length']:>8.0f}{entropy:>9}{row['processor_seconds_per_step']:>12.2f}{row['seconds_per_step']:>8.2f}"
        f"{row['memory_mb']:>9.1f}"
    )


def _text(found: Record) -> str:
    ends = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:.3f}{ends}"


def said(settings: Record) -> str:
    """Settings in one line.

    Example:
        >>> said({"lr": 0.0002, "loss_norm": "token", "whiten": True, "betas": [0.9, 0.95]})
        'lr=0.0002 loss_norm=token whiten=true betas=0.9,0.95'
    """

    def value(found: Any) -> str:
        if isinstance(found, bool):
            return str(found).lower()
        if isinstance(found, (list, tuple)):
            return ",".join(map(value, found))
        return f"{found:g}" if isinstance(found, float) else str(found)

    return " ".join(f"{name}={value(found)}" for name, found in settings.items())
