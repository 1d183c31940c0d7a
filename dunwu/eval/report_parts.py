"""Pieces of the report page: escaped text, marked completions, tables, interval bars, the stage figure.

Everything that may hold a model's, a user's or a file's text goes through `safe` before it is HTML.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dunwu.eval.emergence import annotate

LONGEST_TEXT = 4000
"""Characters of a text that are kept; the rest is counted."""
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
# Characters that turn, hide or break what follows them; each becomes one visible one, so offsets stay.
_INVISIBLE = re.compile("[\u0080-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]")
_TAG = re.compile("(&lt;/?(?:think|answer)&gt;)")
"""The template's tags, after escaping; they step back."""
_WORDS: dict[str, dict[bool | None, str]] = {
    "equation": {True: "true sum", False: "false sum"},
    "verdict": {True: "true check", False: "false or unsound check"},
    "answer": {True: "answer that works", False: "answer that does not work"},
    "subgoal": {None: "subgoal"},
    "reflection": {None: "reflection word"},
    "give_up": {None: "gives up"},
}


def safe(text: object) -> str:
    """Text as HTML: escaped, control characters visible, nothing that reorders what follows."""
    return escape(_INVISIBLE.sub("\ufffd", str(text).translate(_CONTROLS)))


def clip(value: Any) -> Any:
    """The same JSON value with every long text cut, its characters counted, and numbers that are not finite as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[:LONGEST_TEXT] + f"… [{len(value) - LONGEST_TEXT} more characters]"
    if isinstance(value, Mapping):
        return {key: clip(item) for key, item in value.items()}
    return [clip(item) for item in value] if isinstance(value, (list, tuple)) else value


def marked(problem: Mapping[str, Any], text: str) -> str:
    """A completion as HTML with its sums, checks, subgoals and answer marked true or false."""
    parts, last = [], 0
    for start, end, kind, is_true in annotate(problem, text):
        classes = ("eq" if kind == "equation" else kind) + ("" if is_true is None else " true" if is_true else " false")
        words = _WORDS.get(kind, {}).get(is_true, kind)
        inner = safe(text[start:end])
        parts.append(f'{safe(text[last:start])}<span class="{classes}" title="{words}">{inner}</span>')
        last = end
    return _TAG.sub(r'<span class="tag">\1</span>', "".join(parts) + safe(text[last:]))


def heading(english: str, chinese: str, level: int = 2) -> str:
    """A heading in both languages."""
    return f'<h{level}>{safe(english)}<span lang="zh">{safe(chinese)}</span></h{level}>'


def note(text: str) -> str:
    """A sentence where something is missing, or how something was chosen."""
    return f'<p class="note">{safe(text)}</p>'


def mark(holds: bool | None) -> str:
    """✓ holds, ✗ fails, · open: sign, word and colour."""
    if holds is None:
        return '<span class="mark open">· open</span>'
    return '<span class="mark yes">✓ holds</span>' if holds else '<span class="mark no">✗ fails</span>'


def right_or_wrong(right: object) -> str:
    """✓ right, ✗ wrong, or nothing where it is not known."""
    if right is None:
        return ""
    return '<span class="mark yes">✓ right</span>' if right else '<span class="mark no">✗ wrong</span>'


def number(value: object) -> str:
    """A figure in the shortest honest form.

    Example:
        >>> number(20400000), number(0.71337), number(811520), number(True), number("a")
        ('20.4M', '0.713', '811,520', 'true', 'a')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "–"}[value]
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1000):
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e7 else f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return safe(value)


def exact(value: object) -> str:
    """A setting as it is, nothing rounded."""
    return safe(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def is_interval(value: Any) -> bool:
    """Whether this is an interval as `Interval.as_json` gives it."""
    return isinstance(value, Mapping) and isinstance(value.get("value"), (int, float))


def ends(value: Any) -> tuple[float, float] | None:
    """Lower and upper end of an interval; None if it is none, or an end is unknown.

    Example:
        >>> ends({"value": 0.5, "low": 0.4, "high": 0.6}), ends({"value": 0.5, "low": None, "high": 0.6}), ends(0.5)
        ((0.4, 0.6), None, None)
    """
    low, high = (value.get("low"), value.get("high")) if isinstance(value, Mapping) else (None, None)
    return None if low is None or high is None else (low, high)


def interval(value: Any) -> str:
    """`0.713 [0.690, 0.735]` as HTML; – if it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.3f}"
    if not is_interval(value):
        return "–"
    known = ends(value)
    return f"{value['value']:.3f}" + (f" <small>[{known[0]:.3f}, {known[1]:.3f}]</small>" if known else "")


def interval_bar(value: Any, width: int = 110) -> str:
    """A share in [0, 1] as a dot on its interval."""
    if not is_interval(value):
        return ""
    inner = width - 10

    def x(share: float) -> float:
        return 5 + inner * min(1.0, max(0.0, share))

    whisker = ""
    if known := ends(value):
        whisker = f'<line x1="{x(known[0]):.1f}" y1="8" x2="{x(known[1]):.1f}" y2="8" style="stroke:var(--s1);stroke-width:3;opacity:.45"/>'
    return (
        f'<svg width="{width}" height="16" aria-hidden="true">'
        f'<line x1="5" y1="8" x2="{width - 5}" y2="8" style="stroke:var(--line)"/>{whisker}'
        f'<circle cx="{x(value["value"]):.1f}" cy="8" r="4" style="fill:var(--s1)"/></svg>'
    )


def hero_figure(name: str, value: Mapping[str, Any], kind: str = "", sign: str = "") -> str:
    """A share in large figures with its interval below, in percent, or with a sign in points; `name` is HTML already."""
    known = ends(value)
    below = f"95%: {100 * known[0]:{sign}.1f} to {100 * known[1]:{sign}.1f}" if known else "no interval"
    shown = f"{100 * value['value']:{sign}.1f}<small>{' pts' if sign else ' %'}</small>"
    return (
        f'<div><div class="what">{name}</div><div class="figure{kind and " "}{kind}">{shown}</div>'
        f'<div class="range">{below}</div></div>'
    )


def folded(summary: str, body: str) -> str:
    """What unfolds with a click; both are HTML already."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def flat(values: Mapping[str, Any], joint: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings under their joined names.

    Example:
        >>> list(flat({"a": 1, "b": {"c": 2}}))
        [('a', 1), ('b.c', 2)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, joint, f"{prefix}{key}{joint}")
        else:
            yield f"{prefix}{key}", value


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = (), last_is_result: bool = False
) -> str:
    """A table of cells that are HTML already; `numbers` are the columns set to the right."""
    right = set(numbers)

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if n in right else "" for n in range(len(row))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row))

    body = list(rows)
    marks = [' class="result"' if last_is_result and n == len(body) - 1 else "" for n in range(len(body))]
    lines = "".join(f"<tr{kind}>{cells(row, 'td')}</tr>" for kind, row in zip(marks, body))
    head = f"<thead><tr>{cells(heads, 'th')}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{head}<tbody>{lines}</tbody></table></div>'


def signed_bar(value: float, largest: float, width: int = 150) -> str:
    """An advantage as a bar to the left (worse than its siblings) or right (better) of the middle."""
    half = width / 2 - 2
    size = half * min(1.0, abs(value) / largest) if largest else 0.0
    left = width / 2 if value >= 0 else width / 2 - size
    colour = "var(--s1)" if value >= 0 else "var(--s2)"
    return (
        f'<svg class="bar" width="{width}" height="10" role="img"><title>advantage {value:+.2f}</title>'
        f'<line x1="{width / 2}" y1="0" x2="{width / 2}" y2="10" style="stroke:var(--soft)"/>'
        f'<rect x="{left:.1f}" y="2" width="{size:.1f}" height="6" style="fill:{colour}"/></svg>'
    )


def short(text: str, length: int) -> str:
    """At most so many characters, the last one … if some are missing."""
    return text if len(text) <= length else text[: length - 1] + "…"


# ---- the stage figure -----------------------------------------------------------------------

_BOX, _GAP, _ROW, _PER_LINE = (184, 94), 40, 20, 5


def stage_figure(stages: Sequence[Mapping[str, Any]]) -> str:
    """Stages as boxes from left to right, arrows for inputs; an input that reaches a stage through another is not drawn."""
    if not stages:
        return ""
    place = {stage.get("key"): n for n, stage in enumerate(stages)}
    (width, height), lines = _BOX, -(-len(stages) // _PER_LINE)

    def corner(n: int) -> tuple[float, float]:
        line, column = divmod(n, _PER_LINE)
        return 1 + column * (width + _GAP), 20 + line * (height + 2 * _ROW)

    reach: dict[int, set[int]] = {}
    parts = []
    for n, stage in enumerate(stages):
        direct = {place[key] for key in stage["inputs"] if place.get(key, n) < n}
        reach[n] = direct.union(*(reach[m] for m in direct))
        through = set[int]().union(*(reach[m] for m in direct))
        parts += [_arrow(corner(m), corner(n)) for m in sorted(direct - through)]
        parts.append(_stage_box(stage, *corner(n)))
    across = min(len(stages), _PER_LINE)
    total = 2 + across * width + (across - 1) * _GAP, 22 + lines * height + (lines - 1) * 2 * _ROW
    return flow_chart(*total, "Stages of the run", [str(stage["stage"]) for stage in stages], "tip", "".join(parts))


def flow_chart(width: float, height: float, title: str, names: Sequence[str], tip: str, body: str) -> str:
    """A drawing of boxes and arrows; `tip` is the id of its arrowhead."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{title}</title><desc>{safe(" → ".join(names))}</desc>'
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 .5 7.5 4 0 7.5z" style="fill:var(--soft)"/></marker></defs>{body}</svg>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (width, height), (x1, y1), (x2, y2) = _BOX, start, end
    if y1 == y2 and x2 - x1 <= width + _GAP + 1:
        path = f"M{x1 + width} {y1 + height / 2}H{x2 - 2}"
    elif y1 == y2:  # over the boxes between
        path = f"M{x1 + width - 24} {y1}C{x1 + width} {y1 - 22} {x2} {y1 - 22} {x2 + 24} {y2 - 2}"
    else:  # to the next line
        middle = y1 + height + _ROW
        path = f"M{x1 + width / 2} {y1 + height}V{middle}H{x2 + width / 2}V{y2 - 2}"
    return f'<path d="{path}" fill="none" marker-end="url(#tip)" style="stroke:var(--soft);stroke-width:1.3"/>'


def _stage_box(stage: Mapping[str, Any], x: float, y: float) -> str:
    width, height = _BOX
    figures = [
        f"{name.replace('_', ' ')} {number(value)}"
        for name, value in stage["metrics"].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ][:3]
    lines = [f'<text x="{x + 12}" y="{y + 22}" font-size="14" font-weight="650" style="fill:var(--ink)">']
    lines.append(f"{safe(short(str(stage['stage']), 18))}</text>")
    status = {"done": "", "reused": "reused"}.get(str(stage.get("status")), str(stage.get("status", "")))
    said = " · ".join(part for part in (spent(stage, ""), status) if part)
    lines.append(f'<text x="{x + 12}" y="{y + 38}" font-size="11" style="fill:var(--soft)">{safe(said)}</text>')
    for n, text in enumerate(figures):
        place = f'x="{x + 12}" y="{y + 56 + 14 * n}" font-size="11.5"'
        lines.append(f'<text {place} style="fill:var(--ink)">{safe(short(text, 27))}</text>')
    rl = " rl" if any(word in str(stage["stage"]) for word in ("zero", "grpo", "ppo", "rl")) else ""
    return f'<rect class="box{rl}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>' + "".join(lines)


def spent(record: Mapping[str, Any], unknown: str = "–") -> str:
    """The duration of a stage's record."""
    seconds = record.get("seconds")
    return duration(seconds) if isinstance(seconds, (int, float)) else unknown


def duration(seconds: float) -> str:
    """`48 s`, `6 min 05 s`, `2 h 07 min`.

    Example:
        >>> duration(365.2)
        '6 min 05 s'
    """
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
