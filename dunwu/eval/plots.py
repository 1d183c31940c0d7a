"""Line charts as static SVG: no library, no script. Axes with round ticks and units, smoothed lines over
the raw ones, error bars, names written at the lines' ends, an accessible title and description.

Colours come from a `Theme`: `PAGE` refers to the CSS variables of the report (light and dark),
`PAPER` has literal colours on its own background and stands alone, as in a README.
Series differ in dash as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]

CHARACTER = 7.0
"""Width of a label's average character in pixels, 11px bold; Chinese ones take 1.7 of it."""
MARGIN = 110.0
"""Least room for labels on the right, so that charts side by side have the same axes."""
LINE = 13.0
"""Least distance between two labels in pixels."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "3 2", "10 4")


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing: `ink` for text and axes, `soft` for ticks, `grid` lines, `series` in order."""

    ink: str
    soft: str
    grid: str
    series: tuple[str, ...]
    background: str | None = None


PAGE = Theme("var(--ink)", "var(--soft)", "var(--grid)", tuple(f"var(--s{n})" for n in range(1, 7)))
PAPER = Theme(
    "#1f2328", "#59636e", "#e4e1d8", ("#0b62a8", "#bf4d06", "#1a7a5a", "#84489c", "#5b6472", "#8a6800"), "#fbfaf7"
)


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: written at its end.
        points: (x, y), x ascending; y that are not finite are left out.
        colour: index into the theme's series.
        raw: points drawn faintly under the line, before smoothing.
        bars: (x, low, high) error bars.
        dots: mark every point (few, measured points).
        band: (x, low, high), x ascending; filled faintly under the line.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    raw: Sequence[Point] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes: `low` and `high` fix an end of the y axis; `percent` shows shares as %."""

    series: Sequence[Series]
    y_label: str
    low: float | None = None
    high: float | None = None
    percent: bool = False


def smooth(points: Sequence[Point], window: int | None = None) -> list[Point]:
    """Running line fit: each value is that of the least-squares line through the `window` points around it.

    Unlike a running mean it does not bend a steep start or end. Default window: an eighth of the points, at least 5.

    Example:
        >>> smooth([(0, 1.0), (1, 3.0), (2, 5.0)])
        [(0, 1.0), (1, 3.0), (2, 5.0)]
    """
    half = (window if window is not None else max(5, len(points) // 8)) // 2
    found = []
    for i, (x, _) in enumerate(points):
        near = points[max(0, i - half) : i + half + 1]
        mean_x, mean_y = (sum(axis) / len(near) for axis in zip(*near))
        spread = sum((a - mean_x) ** 2 for a, _ in near)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in near) / spread if spread else 0.0
        found.append((x, mean_y + slope * (x - mean_x)))
    return found


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high].

    Example:
        >>> ticks(0.03, 0.78)
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high - low <= 1e-9 * max(abs(low), abs(high)):
        centre = low if math.isfinite(low) else 0.0
        low, high = centre - (abs(centre) * 0.1 or 0.5), centre + (abs(centre) * 0.1 or 0.5)
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def tick_text(value: float, percent: bool = False) -> str:
    """A tick's label: 0.25, 1,500, 20k, 1e-05; or 25%.

    Example:
        >>> tick_text(20000), tick_text(0.5, percent=True)
        ('20k', '50%')
    """
    if percent:
        return f"{100 * value:.3g}%"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if size >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def chart(
    panels: Sequence[Panel],
    title: str,
    x_label: str = "step",
    theme: Theme = PAGE,
    width: int = 520,
    height: int = 230,
    x_marks: Sequence[float] | None = None,
) -> str:
    """Panels one below the other over one x axis, each `height` pixels high; `x_marks` replaces the round x ticks.

    Raises:
        ValueError: no panel has a finite point.
    """
    panels = [_finite(panel) for panel in panels]
    xs = [x for panel in panels for series in panel.series for x, _ in series.points]
    if not xs:
        raise ValueError(f"nothing to draw in {title!r}")
    x_ticks = [x for x in (x_marks or ticks(min(xs), max(xs), 6)) if min(xs) <= x <= max(xs)]
    names = [series.name for panel in panels for series in panel.series]
    left, right = 52.0, max(MARGIN, 14 + CHARACTER * max(map(_width, names)))
    top, gap, bottom = 26.0, 34.0, 40.0
    total = top + len(panels) * height + (len(panels) - 1) * gap + bottom
    span = (max(xs) - min(xs)) or 1.0
    frame = _Frame(theme, left, width - right, min(xs), span)
    body = []
    for number, panel in enumerate(panels):
        y = top + number * (height + gap)
        body.append(frame.panel(panel, y, y + height))
    body.append(frame.x_axis(x_ticks, x_label, total - bottom))
    return _svg(title, describe(panels, x_label), "".join(body), width, total, theme)


def describe(panels: Sequence[Panel], x_label: str) -> str:
    """The chart in words, for those who do not see it: where each line starts and ends."""
    said = []
    for panel in panels:
        for series in panel.series:
            if series.points:
                (x0, y0), (x1, y1) = series.points[0], series.points[-1]
                ends = f"from {tick_text(y0, panel.percent)} at {x_label} {x0:g} to {tick_text(y1, panel.percent)}"
                said.append(f"{panel.y_label}, {series.name}: {ends} at {x1:g}.")
    return " ".join(said)


def score_and_length_svg(
    score: Sequence[Point],
    lengths: Mapping[str, Sequence[Point]],
    title: str = "Held-out score and response length",
    training: Sequence[Point] = (),
    bars: Sequence[tuple[float, float, float]] = (),
    theme: Theme = PAPER,
    width: int = 760,
    height: int = 170,
) -> str:
    """The picture of R1-Zero: score above, response length below, over the same steps. Stands alone.

    Args:
        score: (step, held-out pass@1).
        lengths: name (all, right, wrong) to (step, mean response length in tokens).
        training: (step, share of right training samples), drawn beside the score.
        bars: (step, low, high) of the score.
        height: of each of the two panels, in pixels.
    """
    above = [Series("held-out", score, 0, bars=bars, dots=True)]
    if training:
        above.insert(0, Series("training", smooth(training), 4, raw=training))
    below = [Series(name, smooth(line), (1, 2, 3)[n % 3], raw=line) for n, (name, line) in enumerate(lengths.items())]
    panels = [
        Panel(above, "share of right answers", low=0.0, percent=True),
        Panel(below, "tokens per response", low=0.0),
    ]
    return chart(
        [panel for panel in panels if any(s.points for s in panel.series)], title, "RL step", theme, width, height
    )


@dataclass(frozen=True)
class _Frame:
    """Where data go on the drawing: pixels `left` to `right` show x from `x0` over `span`."""

    theme: Theme
    left: float
    right: float
    x0: float
    span: float

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.x0) / self.span

    def panel(self, panel: Panel, top: float, bottom: float) -> str:
        """Grid, y axis, lines, labels."""
        values = [y for s in panel.series for y in _values(s)]
        low = panel.low if panel.low is not None else min(values)
        high = panel.high if panel.high is not None else max(values)
        marks = ticks(low, max(high, low))
        low, high = marks[0], marks[-1]

        def y(value: float) -> float:
            return bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low)

        theme = self.theme
        parts = [_text(self.left - 44, top - 11, panel.y_label, theme.ink, "start", 11.5, weight=600)]
        for mark in marks:
            parts.append(_line(self.left, y(mark), self.right, y(mark), theme.grid))
            parts.append(_text(self.left - 7, y(mark) + 4, tick_text(mark, panel.percent), theme.soft, "end"))
        for series in panel.series:
            parts.append(self._series(series, y))
        ends = [(y(s.points[-1][1]), s) for s in panel.series if s.points]
        for place, (wanted, series) in zip(_apart([wanted for wanted, _ in ends], top, bottom), ends):
            colour = theme.series[series.colour % len(theme.series)]
            end = self.x(series.points[-1][0])
            if abs(place - wanted) > 3 or end < self.right - 1:
                parts.append(_line(end + 2, wanted, self.right + 6, place, colour, opacity=0.5))
            parts.append(_text(self.right + 8, place + 4, series.name, colour, "start", weight=600))
        return "".join(parts)

    def _series(self, series: Series, y: object) -> str:
        assert callable(y)
        colour = self.theme.series[series.colour % len(self.theme.series)]
        dash = _DASHES[series.colour % len(_DASHES)]
        parts = []
        if series.band:
            edge = [(self.x(a), y(high)) for a, _, high in series.band]
            edge += [(self.x(a), y(low)) for a, low, _ in reversed(series.band)]
            parts.append(_area(edge, colour))
        if series.raw:
            parts.append(_path([(self.x(a), y(b)) for a, b in series.raw], colour, 1, opacity=0.28))
        for a, low, high in series.bars:
            parts.append(_line(self.x(a), y(low), self.x(a), y(high), colour, 1.4, opacity=0.65))
        drawn = [(self.x(a), y(b)) for a, b in series.points]
        parts.append(_path(drawn, colour, 2.1, dash=dash))
        if series.dots or len(drawn) == 1:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" style="fill:{colour}"/>' for a, b in drawn]
        return "".join(parts)

    def x_axis(self, marks: Sequence[float], label: str, bottom: float) -> str:
        """Axis line, ticks and the unit."""
        parts = [_line(self.left, bottom, self.right, bottom, self.theme.soft)]
        for mark in marks:
            parts.append(_line(self.x(mark), bottom, self.x(mark), bottom + 4, self.theme.soft))
            parts.append(_text(self.x(mark), bottom + 17, tick_text(mark), self.theme.soft, "middle"))
        middle = (self.left + self.right) / 2
        parts.append(_text(middle, bottom + 33, label, self.theme.soft, "middle"))
        return "".join(parts)


def _finite(panel: Panel) -> Panel:
    lines = []
    for s in panel.series:
        points = [(x, y) for x, y in s.points if math.isfinite(x) and math.isfinite(y)]
        raw = [(x, y) for x, y in s.raw if math.isfinite(x) and math.isfinite(y)]
        bars = [bar for bar in s.bars if all(map(math.isfinite, bar))]
        band = [edge for edge in s.band if all(map(math.isfinite, edge))]
        if points:
            lines.append(Series(s.name, points, s.colour, raw, bars, s.dots, band))
    return Panel(lines, panel.y_label, panel.low, panel.high, panel.percent)


def _width(text: str) -> float:
    """Of a label, in average characters."""
    return sum(1.7 if character > "\u2e80" else 1.0 for character in text)


def _values(series: Series) -> list[float]:
    """What the y axis must show. A few raw spikes may leave the picture; the line may not."""
    raw = sorted(y for _, y in series.raw)
    kept = raw[len(raw) // 50 : len(raw) - len(raw) // 50]
    return [y for _, y in series.points] + kept + [y for _, *ends in (*series.bars, *series.band) for y in ends]


def _apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Label positions near the wanted ones, at least LINE apart, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = list(wanted)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + LINE)
    if order and places[order[-1]] > bottom:
        places[order[-1]] = bottom
        for after, before in pairwise(order[::-1]):
            places[before] = min(places[before], places[after] - LINE)
    return places


def _svg(title: str, description: str, body: str, width: float, height: float, theme: Theme) -> str:
    background = ""
    if theme.background:
        background = f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{theme.background}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" font-family="system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{background}{body}</svg>"
    )


def _text(x: float, y: float, text: str, colour: str, anchor: str, size: float = 11, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" font-weight="{weight}" '
        f'style="fill:{colour}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, opacity: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:{colour};stroke-width:{width:g};opacity:{opacity:g}"/>'
    )


def _area(edge: Sequence[Point], colour: str) -> str:
    corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in edge)
    return f'<path d="M{corners}Z" style="fill:{colour};stroke:none;opacity:0.14"/>'


def _path(points: Sequence[Point], colour: str, width: float, opacity: float = 1, dash: str = "") -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = f";stroke-dasharray:{dash}" if dash else ""
    return (
        f'<path d="M{steps}" fill="none" stroke-linejoin="round" '
        f'style="stroke:{colour};stroke-width:{width:g};opacity:{opacity:g}{dashes}"/>'
    )
