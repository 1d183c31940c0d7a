"""The report's part on learning inside the context: loss by position, few-shot accuracy, and both while the context grows.

`evidence.json` holds under `in_context` what the recipe measured at the end (`recipes.in_context`):

    {"borders": [[first update, context], …],               empty where the context did not grow
     "loss": {"context": 256, "windows": 256, "score": I, "bins": [[first, last, mean, error or null], …]},
     "few_shot": {"symbols": [{"shots": 0, "accuracy": I, "tokens": 9.0, "best": 0.1 or null}, …], …}}

The curves of the training come from metrics: `pretrain/context`, `in_context/*`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dunwu.eval.passk import Z95
from dunwu.eval.plots import PAGE, Panel, Series, chart
from dunwu.eval.report_curves import MOST_POINTS, captioned, line
from dunwu.eval.report_data import Curve, Curves, evenly
from dunwu.eval.report_parts import heading, interval, number, safe, table

MOMENTS = 4
"""Points of the training at most whose loss by position is drawn beside the last."""


def in_context_section(data: Mapping[str, Any]) -> str:
    """The whole part; "" for a run that measured nothing of it."""
    found = data["evidence"].get("in_context") or {}
    curves: Curves = data["curves"]
    stages = {name: keys for name, keys in curves.items() if "pretrain/loss" in keys}
    figures = [_position_figure(found, keys) for keys in list(stages.values())[:1] or [{}]]
    figures.append(_few_shot_figure(found))
    figures += [_growth_figure(name, keys) for name, keys in stages.items()]
    drawn = [figure for figure in figures if figure]
    if not drawn:
        return ""
    parts = [
        heading("Learning in context", "上下文中的学习"),
        f'<div class="grid">{"".join(drawn)}</div>',
        _tables(found),
    ]
    return "".join(parts)


def _position_figure(found: Mapping[str, Any], curves: Mapping[str, Curve]) -> str:
    """Loss against log2 of the position: the end with 95% intervals, and moments of the training."""
    loss = found.get("loss")
    if not loss:
        return ""
    bars = [
        (_middle(first, last), mean - Z95 * error, mean + Z95 * error)
        for first, last, mean, error in loss["bins"]
        if error is not None
    ]
    end = [(_middle(first, last), mean) for first, last, mean, _ in loss["bins"]]
    series = [*_moments(loss, curves), Series("end", end, 0, bars=bars, dots=True)]
    score = loss["score"]
    said = f"Held-out windows of {loss['context']} tokens, 95% intervals over {loss['windows']} of them."
    said += f" Late minus early: {score['value']:+.3f} nats (below 0 the context helps)."
    drawn = chart(
        [Panel(series, "nats per token")], "Loss by position", "log2 of the position in the window", PAGE, 520, 220
    )
    return captioned("Loss by position", "各位置的损失", said, drawn)


def _middle(first: float, last: float) -> float:
    return math.log2(math.sqrt(first * last))


def _moments(loss: Mapping[str, Any], curves: Mapping[str, Curve]) -> list[Series]:
    points: dict[float, Curve] = {}
    for first, last, _, _ in loss["bins"]:
        for step, value in curves.get(f"in_context/loss/{last}", []):
            points.setdefault(step, []).append((_middle(first, last), value))
    steps = sorted(points)[:-1]  # the last is the end
    return [Series(f"update {step:g}", points[step], 1 + n) for n, step in enumerate(evenly(steps, MOMENTS))]


def _few_shot_figure(found: Mapping[str, Any]) -> str:
    """Accuracy against the number of solved examples, with the best that a prompt alone allows."""
    series = []
    for n, (task, points) in enumerate((found.get("few_shot") or {}).items()):
        shares = [(float(p["shots"]), float(p["accuracy"]["value"])) for p in points]
        bars = [(float(p["shots"]), p["accuracy"]["low"], p["accuracy"]["high"]) for p in points]
        series.append(Series(str(task), shares, n, bars=bars, dots=True))
        best = [(float(p["shots"]), float(p["best"])) for p in points if p.get("best") is not None]
        if best:
            series.append(Series(f"{task}, best", best, 4))
    if not series:
        return ""
    marks = [x for x, _ in series[0].points]
    panel = Panel(series, "share of right answers", low=0.0, high=1.0, percent=True)
    drawn = chart([panel], "Few-shot accuracy", "solved examples in the prompt", PAGE, 520, 220, marks)
    said = "Greedy answers, 95% intervals. Best: what the prompt alone allows, where the weights know nothing."
    return captioned("Few-shot accuracy", "少样本准确率", said, drawn)


def _growth_figure(stage: str, curves: Mapping[str, Curve]) -> str:
    """What grows over the updates: the context as a stair, and the measured curves above it."""
    panels = []
    if score := curves.get("in_context/score"):
        panels.append(Panel([line("late − early", score, 0)], "nats per token"))
    accuracy = [line(task, points, n) for n, (task, points) in enumerate(_most_shots(curves).items())]
    if accuracy:
        panels.append(Panel(accuracy, "share right, most examples", low=0.0, percent=True))
    context = curves.get("pretrain/context", [])
    if context:
        valid = curves.get("pretrain/valid_loss", [])
        panels.append(Panel([line("held-out", valid, 1)] if valid else [], "nats per token"))
        panels.append(Panel([Series("context", stairs(context), 3)], "tokens", low=0.0))
    panels = [panel for panel in panels if panel.series]
    if not panels:
        return ""
    drawn = chart(panels, f"The context of {stage}", "update", PAGE, 520, 130)
    said = "Held-out figures always at the full context: before it is reached, they show what the model cannot do yet."
    return captioned("While the context grows" if context else "During training", "上下文的增长", said, drawn)


def _most_shots(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Of every task, the curve with the most examples."""
    found: dict[str, tuple[int, Curve]] = {}
    for key, points in curves.items():
        kind, _, rest = key.partition("in_context/accuracy/")
        task, _, shots = rest.rpartition("/")
        if not kind and task and shots.isdigit() and int(shots) >= found.get(task, (0, []))[0]:
            found[task] = int(shots), points
    return {task: points for task, (_, points) in sorted(found.items())}


def stairs(points: Sequence[tuple[float, float]]) -> Curve:
    """A value that changes by jumps, as a line: every change has two points.

    Example:
        >>> stairs([(0, 64), (10, 64), (20, 128), (30, 128)])
        [(0, 64), (20, 64), (20, 128), (30, 128)]
    """
    found: Curve = []
    for x, y in points:
        if not found:
            found.append((x, y))
        elif y != found[-1][1]:
            found += [(x, found[-1][1]), (x, y)]
    if found and points[-1][0] != found[-1][0]:
        found.append(points[-1])
    return evenly(found, MOST_POINTS)


def _tables(found: Mapping[str, Any]) -> str:
    rows = [
        [safe(task), number(p["shots"]), interval(p["accuracy"]), number(p.get("best")), number(p.get("tokens"))]
        for task, points in (found.get("few_shot") or {}).items()
        for p in points
    ]
    parts = [table(["task", "examples", "accuracy", "best by prompt", "prompt tokens"], rows)] if rows else []
    if borders := found.get("borders"):
        parts.append(
            table(["from update", "context"], [[number(first), number(context)] for first, context in borders])
        )
    return "".join(parts)
