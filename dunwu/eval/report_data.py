"""What a run folder holds, gathered into one JSON-able dict: the whole content of report.json.

Reads files only. Whatever is missing (a run still going, killed, without rollouts or evidence) is an
empty list or dict here and a sentence in the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from dunwu.eval.emergence import aggregate
from dunwu.eval.report_doctor import consult
from dunwu.eval.report_parts import clip, ends, is_interval
from dunwu.eval.report_r1_data import ZERO_STAGE, collect_r1, is_r1, mixed
from dunwu.log import read_json, read_metrics, read_rollouts
from dunwu.types import DunwuError

METHODS = ("grpo/", "ppo/")
"""How the names of metrics of reinforcement begin."""
Curve = list[tuple[float, float]]
Curves = dict[str, dict[str, Curve]]
"""Stage → metric key → (step, value), steps ascending."""

EMERGENCE_STEPS = 100
"""RL steps whose samples are read for behaviours, where the run did not log them itself; evenly spread."""
EMERGENCE_GROUPS = 16
"""Groups of such a step that are read."""
OFFLINE = "rollouts"
"""Name, among the curves' stages, of the behaviours read from the samples here."""


def collect(run_dir: Path) -> dict[str, Any]:
    """Everything the report says.

    Raises:
        DunwuError: `run_dir` is no run folder, or its run.json is damaged.
    """
    if not (run_dir / "run.json").is_file():
        raise DunwuError(f"{run_dir} is no run folder: it has no run.json", "give the folder that `dunwu run` made")
    run = clip(read_json(run_dir / "run.json"))
    stages = _stages(run_dir)
    curves = _curves(read_metrics(run_dir))
    rl_stages = [stage for stage, keys in curves.items() if any(key.startswith(METHODS) for key in keys)]
    whole_r1 = is_r1(run_dir, run)
    if not any(key.startswith("emergence/") for keys in curves.values() for key in keys):
        # In the whole of R1 several stages count from step 1; the behaviours to watch are R1-Zero's.
        read = [stage for stage in rl_stages if stage == ZERO_STAGE] if whole_r1 else rl_stages
        behaviours = {} if whole_r1 and not read else _offline_behaviours(run_dir, curves, read)
        if behaviours:
            curves[OFFLINE] = behaviours
    evidence_file = run_dir / "evidence.json"
    evidence = clip(read_json(evidence_file)) if evidence_file.is_file() else {}
    data: dict[str, Any] = {
        "name": run_dir.resolve().name,
        "run": run,
        "stages": stages,
        "rl_stages": rl_stages,
        "evidence": evidence,
        "curves": curves,
        "groups": [] if whole_r1 else _shown_groups(run_dir),
        "doctor": consult(run_dir),
    }
    if whole_r1:
        data["r1"] = collect_r1(run_dir, stages)
    data["verdicts"] = verdicts(data)
    return data


def curve(data: Mapping[str, Any], key: str) -> Curve:
    """A metric's points from the first stage that logged it, RL stages last (held-out measurements win)."""
    curves: Curves = data["curves"]
    for stage in sorted(curves, key=lambda stage: stage in data["rl_stages"]):
        if key in curves[stage]:
            return curves[stage][key]
    return []


def rl_curve(of_stage: Mapping[str, Curve], name: str) -> Curve:
    """A metric that every method of reinforcement logs under its own name."""
    return next((of_stage[method + name] for method in METHODS if method + name in of_stage), [])


def rl_metric(data: Mapping[str, Any], name: str) -> Curve:
    """`curve` of such a metric."""
    return next((found for method in METHODS if (found := curve(data, method + name))), [])


class Change(NamedTuple):
    """A curve's first and last tenth, and whether it `rises` (None: the difference is within the noise of the steps)."""

    before: float
    after: float
    rises: bool | None


def change(points: Sequence[tuple[float, float]]) -> Change | None:
    """Means of the first and the last tenth (at least three points each), compared by their scatter.

    Returns:
        None below two points; `rises` None below six, or where the means differ by less than two standard errors.

    Example:
        >>> change([(step, step / 4) for step in range(60)])
        Change(before=0.625, after=14.125, rises=True)
    """
    if len(points) < 2:
        return None
    share = max(1, len(points) // 2 if len(points) < 6 else max(3, len(points) // 10))
    first, last = [y for _, y in points[:share]], [y for _, y in points[-share:]]
    before, after = math.fsum(first) / share, math.fsum(last) / share
    if len(points) < 6:
        return Change(before, after, None)
    scatter = math.fsum((y - before) ** 2 for y in first) + math.fsum((y - after) ** 2 for y in last)
    error = math.sqrt(scatter / (share - 1) / share)
    return Change(before, after, after > before if abs(after - before) > 2 * error else None)


def headline(data: Mapping[str, Any]) -> dict[str, Any]:
    """Base and result: `{"base": interval, "result": interval, "difference": interval or None, "source": words}`.

    From the evidence's first and last checkpoint; before there is evidence, from the held-out curve, whose
    points have no interval. Empty without either.
    """
    if data["evidence"].keys() & {"rl_study", "rlhf"}:  # many trainings, none of them the run's own
        return {}
    checkpoints = [c for c in data["evidence"].get("checkpoints") or [] if is_interval(c.get("pass@1"))]
    if len(checkpoints) >= 2:
        base, result = checkpoints[0], checkpoints[-1]
        source = data["evidence"].get("measure") or f"{base['pass@1'].get('n', '?')} held-out problems"
        difference = data["evidence"].get("difference")
        return {"base": base["pass@1"], "result": result["pass@1"], "difference": difference, "source": source}
    points = curve(data, "eval/pass@1")
    if len(points) < 2:
        return {}
    figures = [{"value": y, "low": None, "high": None} for _, y in (points[0], points[-1])]
    source = "the validation curve, without interval: the evidence stage has not run"
    return {"base": figures[0], "result": figures[1], "difference": None, "source": source}


def verdicts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Claims with the figures that decide them: `{"claim", "holds": true/false/null, "figure"}`.

    The recipe's own verdicts come first; the rest follows from the curves and the intervals.
    """
    found = list(data["evidence"].get("verdicts") or [])
    if data["evidence"].keys() & {"rl_study", "rlhf", "lr_finder", "reward_models", "preferences"}:
        return found
    if "r1" in data:
        return found + list(data["r1"]["table"].get("verdicts") or [])
    rise = headline(data)
    length = change(curve(data, "emergence/length_all") or rl_metric(data, "length") or curve(data, "eval/length"))
    raised = _raised(rise) if rise else None
    if rise:
        gain = rise["result"]["value"] - rise["base"]["value"]
        figure = f"{_figure(rise['base'])} → {_figure(rise['result'])}, Δ {gain:+.3f}"
        found.append({"claim": "Rule rewards alone raise the held-out score", "holds": raised, "figure": figure})
    if length and rise:
        together = None if raised is None or length.rises is None else raised and length.rises
        figure = f"{length.before:.0f} → {length.after:.0f} tokens per response"
        found.append({"claim": "Score and response length rise together", "holds": together, "figure": figure})
    found += _behaviour_verdicts(data)
    for control in data["evidence"].get("controls") or []:
        if control.get("expected"):
            claim = f"Control, {control.get('name', '?')}: {control['expected']}"
            figure = f"{_figure(control.get('base'))} → {_figure(control.get('result'))}"
            found.append({"claim": claim, "holds": control.get("holds"), "figure": figure})
    return found


def _raised(rise: Mapping[str, Any]) -> bool | None:
    """Does the interval of the difference exclude 0, or do the two intervals not overlap? None if neither."""
    difference, base, result = rise["difference"], rise["base"], rise["result"]
    known = ends(difference)
    if known is None:
        before, after = ends(base), ends(result)
        if before is None or after is None:
            return None
        known = after[0] - before[1], after[1] - before[0]
    low, high = known
    return True if low > 0 else False if high < 0 else None


def _behaviour_verdicts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = [
        ("True checks become more frequent", "emergence/true_checks", True),
        ("Backtracking becomes more frequent", "emergence/backtracks", True),
        ("False checks become rarer", "emergence/false_checks", False),
    ]
    found = []
    for claim, key, up in wanted:
        both = change(curve(data, key))
        if both:
            figure = f"{both.before:.2f} → {both.after:.2f} per response"
            found.append({"claim": claim, "holds": None if both.rises is None else both.rises == up, "figure": figure})
    return found


def _figure(interval: Any) -> str:
    if not is_interval(interval):
        return "?"
    known = ends(interval)
    return f"{interval['value']:.3f}" + (f" [{known[0]:.3f}, {known[1]:.3f}]" if known else "")


def _stages(run_dir: Path) -> list[dict[str, Any]]:
    """The stages in an order in which inputs come before what they feed."""
    found = []
    for file in sorted((run_dir / "stages").glob("*.json")):
        stage = clip(read_json(file))
        found.append({"stage": file.stem, "inputs": [], "metrics": {}} | stage)
    ordered: list[dict[str, Any]] = []
    while found:
        waiting = {stage.get("key") for stage in found}
        ready = next((s for s in found if not waiting & set(s["inputs"])), found[0])
        found.remove(ready)
        ordered.append(ready)
    return ordered


def _curves(lines: Iterable[Mapping[str, Any]]) -> Curves:
    curves: Curves = {}
    for line in lines:
        of_stage = curves.setdefault(line["stage"], {})
        for key, value in line.items():
            if key not in ("stage", "step", "time") and isinstance(value, (int, float)) and math.isfinite(value):
                of_stage.setdefault(key, []).append((line["step"], value))
    for of_stage in curves.values():
        for points in of_stage.values():
            points.sort()
    return curves


def _offline_behaviours(run_dir: Path, curves: Curves, rl_stages: Sequence[str]) -> dict[str, Curve]:
    """`emergence/*` of evenly spread steps, read from the samples."""
    steps = sorted({int(step) for stage in rl_stages for step, _ in rl_curve(curves[stage], "reward")})
    wanted = set(evenly(steps, EMERGENCE_STEPS)) if steps else None
    found: dict[str, Curve] = {}
    for (stage, step), groups in _by_step(run_dir):
        if wanted is not None and (step not in wanted or stage not in rl_stages):
            continue
        for key, value in aggregate(evenly(list(groups), EMERGENCE_GROUPS)).items():
            found.setdefault(key, []).append((step, value))
    return found


def _by_step(run_dir: Path) -> Iterator[tuple[tuple[str, int], Iterator[dict[str, Any]]]]:
    return groupby(read_rollouts(run_dir), key=lambda group: (group["stage"], group["step"]))


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, first and last among them, evenly spread.

    Example:
        >>> evenly(range(10), 4)
        [0, 3, 6, 9]
    """
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _shown_groups(run_dir: Path) -> list[dict[str, Any]]:
    """One group of the first, a middle and the last step: the first whose rewards differ, else the first."""
    steps = list(dict.fromkeys((group["stage"], group["step"]) for group in read_rollouts(run_dir)))
    wanted = set(evenly(steps, 3))
    chosen = []
    for step, groups in _by_step(run_dir):
        if step in wanted:
            kept = list(groups)
            chosen.append(clip(next(filter(mixed, kept), kept[0])))
    return chosen
