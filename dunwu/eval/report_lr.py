"""The part of the report that shows what the learning-rate finder saw: reward, entropy and KL by rate, and its advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dunwu.eval.plots import PAGE, Panel, Series, Theme, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading, number, safe, table


def lr_sentence(found: Mapping[str, Any]) -> str:
    """For the page's title."""
    advice = found["advice"]
    return f"learning rate {advice['lr']:g}" if advice["lr"] is not None else "no learning rate held"


def lr_svg(found: Mapping[str, Any], theme: Theme = PAGE, width: int = 760) -> str:
    """Reward change with two standard errors, entropy left, and KL, over the logarithm of the rate; "" without a point."""
    points = [point for point in found["points"] if point["gain"] is not None and point["lr"] is not None]
    if not points:
        return ""
    gains = _line(points, "gain")
    bars = [
        (x, y - 2 * p["error"], y + 2 * p["error"])
        for (x, y), p in zip(gains, points, strict=True)
        if p["error"] is not None
    ]
    moved = [(x, math.log10(kl)) for x, kl in _line(points, "kl") if kl > 0]
    panels = [
        Panel([Series("change", gains, 0, bars=bars, dots=True)], "held-out reward"),
        Panel([Series("left", _line(points, "entropy_left"), 1, dots=True)], "entropy", low=0.0, percent=True),
        Panel([Series("KL", moved, 2, dots=True)], "log10 of the KL to the start, nats a token"),
    ]
    panels = [panel for panel in panels if any(series.points for series in panel.series)]
    return chart(panels, "What each learning rate did", "log10 of the learning rate", theme, width, 130)


def lr_section(found: Mapping[str, Any]) -> str:
    """The picture and the table behind it."""
    advice, trial = found["advice"], found["trial"]
    said = (
        f"{trial['steps']} steps at each rate, from the same weights on the same questions; measured on {trial['problems']} "
        f"held-out problems, {trial['samples']} samples each. Bars: two standard errors, paired over the problems."
    )
    rows = [
        [
            "–" if point["lr"] is None else f"{point['lr']:g}",
            f"{_signed(point['gain'])} ± {number(point['error'])}",
            number(point["kl"]),
            number(point["entropy_left"]),
            number(point["clipped"]),
            "recommended" if point["lr"] == advice["lr"] is not None else safe(point["broke"]),
        ]
        for point in found["points"]
    ]
    heads = ["learning rate", "reward change", "KL to the start", "entropy left", "clipped", ""]
    drawn = lr_svg(found)
    figure = captioned("What each learning rate did", "各学习率的效果", said, drawn) if drawn else ""
    why = f'<p class="lead">The largest rate before the break: {safe(lr_sentence(found))}; {safe(advice["why"])}.</p>'
    return heading("Learning rates", "学习率") + why + figure + table(heads, rows)


def _line(points: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(math.log10(p["lr"]), p[name]) for p in points if p[name] is not None]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g}"
