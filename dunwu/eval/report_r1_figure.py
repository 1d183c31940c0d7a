"""The figure of R1's stages as it is always drawn: boxes and arrows, weights solid, data dashed; each box links to its section.

Places and arrows of the known stages are a table; students get a band of their own, a line a size; any other stage of
the run but the measurements (`measure-…`, in the table of costs) gets a place below. Static SVG, no script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dunwu.eval.report_parts import flow_chart, number, safe, short, spent

WIDTH, HEIGHT, GAP_X, GAP_Y = 168.0, 80.0, 61.0, 56.0
LEFT, TOP, COLUMNS = 2.0, 6.0, 5
EDGE = 24.0
"""Room on the right for the teacher's arrow."""
STUDENT = re.compile(r"student-(?P<size>.+)-(?P<arm>base|sft|rl|opd)")
MEASURING = "measure-"
"""Stages of this prefix only ask a model the table's problems."""


class Place(NamedTuple):
    """Column, row, the name in the paper, what the stage does, and the kind of box."""

    column: int
    row: int
    title: str
    what: str
    kind: str


PLACES: Mapping[str, Place] = {
    "crawl": Place(0, 0, "crawl", "the generated web, WARC", "data"),
    "clean": Place(1, 0, "records", "cleaned by the pipeline", "data"),
    "tokenizer": Place(0, 1, "tokenizer", "byte-level BPE", "data"),
    "shards": Place(1, 1, "pages → tokens", "token shards", "data"),
    "base": Place(2, 1, "base", "V3-Base in the paper", "sft"),
    "r1-zero": Place(3, 1, "R1-Zero", "RL, rule rewards only", "rl"),
    "cold-start": Place(4, 1, "cold-start data", "its samples, rewritten", "data"),
    "dev1": Place(0, 2, "Dev1", "SFT of the base", "sft"),
    "dev2": Place(1, 2, "Dev2", "RL + language reward", "rl"),
    "rejection": Place(2, 2, "SFT data, 3 : 1", "rejection sampling + talk", "data"),
    "dev3": Place(3, 2, "Dev3", "SFT of the base, again", "sft"),
    "r1": Place(4, 2, "R1", "RL, rules + preference", "rl"),
    "dev2-no-language": Place(1, 3, "Dev2, ablated", "RL without that reward", "rl"),
    "preferences": Place(2, 3, "preferences", "judged in both orders", "data"),
    "rm-helpful": Place(3, 3, "helpful RM", "pairwise", "sft"),
    "r1-overoptimised": Place(4, 3, "beyond R1", "preference alone, too long", "rl"),
    "rm-safety": Place(3, 4, "safety RM", "pointwise", "sft"),
    "stage-table": Place(4, 4, "stage table", "all models, same tasks", "data"),
}
ARMS = {"base": (0, "base", "pretrained", "sft"), "sft": (1, "SFT", "on R1's data", "sft"),
        "rl": (2, "RL alone", "from its base", "rl"), "opd": (3, "on-policy", "distilled from R1's logits", "rl")}  # fmt: skip


class Arrow(NamedTuple):
    """From, to, "weights" or "data", the way, and its numbers: see `_path`."""

    start: str
    end: str
    kind: str
    way: str
    numbers: tuple[float, ...] = ()


ARROWS = (
    Arrow("crawl", "clean", "data", "across"),
    Arrow("clean", "tokenizer", "data", "channel", (0.3, 0.5, 28)),
    Arrow("clean", "shards", "data", "down", (0.5,)),
    Arrow("tokenizer", "shards", "data", "across"),
    Arrow("shards", "base", "data", "across"),
    Arrow("base", "r1-zero", "weights", "across"),
    Arrow("r1-zero", "cold-start", "data", "across"),
    Arrow("base", "dev1", "weights", "channel", (0.35, 0.65, 16)),
    Arrow("base", "dev3", "weights", "channel", (0.65, 0.65, 16)),
    Arrow("cold-start", "dev1", "data", "channel", (0.5, 0.35, 36)),
    Arrow("dev1", "dev2", "weights", "across"),
    Arrow("dev2", "rejection", "data", "across"),
    Arrow("rejection", "dev3", "data", "across"),
    Arrow("dev3", "r1", "weights", "across"),
    Arrow("dev1", "dev2-no-language", "weights", "elbow", (0.5,)),
    Arrow("dev3", "preferences", "data", "channel", (0.25, 0.6, 28)),
    Arrow("dev3", "rm-helpful", "weights", "down", (0.5,)),
    Arrow("preferences", "rm-helpful", "data", "across"),
    Arrow("preferences", "rm-safety", "data", "elbow", (0.5,)),
    Arrow("rm-helpful", "r1", "data", "round", (20, 26, 0.3)),
    Arrow("rm-safety", "r1", "data", "round", (32, 40, 0.42)),
    Arrow("r1", "r1-overoptimised", "weights", "down", (0.7,)),
)


class Corner(NamedTuple):
    """A box's upper left."""

    x: float
    y: float


def stage_id(name: str) -> str:
    """The anchor of a stage's section.

    Example:
        >>> stage_id("student-0.5M-sft")
        'stage-student-0.5M-sft'
    """
    return "stage-" + re.sub(r"[^\w.-]", "-", name)


def stage_link(name: str, text: str = "") -> str:
    """A link to a stage's section."""
    return f'<a href="#{safe(stage_id(name))}">{safe(text or name)}</a>'


def r1_figure(stages: Sequence[Mapping[str, Any]], waiting: bool) -> str:
    """The drawing of a run's stages; `waiting` also draws, faintly, the known ones that have not begun."""
    records = {str(stage["stage"]): stage for stage in stages if not str(stage["stage"]).startswith(MEASURING)}
    known = {name: place for name, place in PLACES.items() if name in records or waiting}
    first = min((place.row for place in known.values()), default=0)  # without a crawl the upper row is empty
    corners = {name: _corner(place.column, place.row - first) for name, place in known.items()}
    lines = 1 + max((place.row - first for place in known.values()), default=-1)
    students = {name: match for name in records if (match := STUDENT.fullmatch(name))}
    parts = [
        _arrow(_path(corners[a.start], corners[a.end], a), a.kind)
        for a in ARROWS
        if a.start in corners and a.end in corners
    ]
    bottom = TOP + lines * (HEIGHT + GAP_Y) - GAP_Y
    parts += [_box(name, known[name], records.get(name), corners[name]) for name in known]
    if students:
        band, bottom = _band(students, records, corners, bottom + (GAP_Y if lines else 0))
        parts += band
    others = [name for name in records if name not in PLACES and name not in students]
    for n, name in enumerate(others):
        x = LEFT + n % COLUMNS * (WIDTH + GAP_X)
        y = bottom + 24 + n // COLUMNS * (HEIGHT + 16)
        parts.append(_box(name, Place(0, 0, name, "", "data"), records[name], Corner(x, y)))
    bottom += 24 + -(-len(others) // COLUMNS) * (HEIGHT + 16) - 16 if others else 0
    if not known and not records:
        return ""
    return _drawing(parts, bottom, list(records))


def _drawing(parts: Sequence[str], bottom: float, names: Sequence[str]) -> str:
    width, height = LEFT + COLUMNS * (WIDTH + GAP_X) - GAP_X + EDGE, bottom + 40
    key = bottom + 28
    legend = (
        f'<path d="M{LEFT} {key}h38" marker-end="url(#r1tip)" class="flow weights"/>{_text(LEFT + 46, key + 4, "weights: starts from", 11)}'
        f'<path d="M{LEFT + 196} {key}h38" marker-end="url(#r1tip)" class="flow data"/>{_text(LEFT + 242, key + 4, "data, samples or rewards", 11)}'
        f'<rect x="{LEFT + 420}" y="{key - 8}" width="26" height="16" rx="4" class="box rl"/>{_text(LEFT + 454, key + 4, "reinforcement learning", 11)}'
        f'<rect x="{LEFT + 610}" y="{key - 8}" width="26" height="16" rx="4" class="box data"/>{_text(LEFT + 644, key + 4, "data", 11)}'
        f"{_text(LEFT + 700, key + 4, 'each box leads to its metrics, samples and lineage', 11)}"
    )
    return flow_chart(width, height, "The stages of R1", names, "r1tip", "".join(parts) + legend)


def _band(
    students: Mapping[str, re.Match[str]],
    records: Mapping[str, Mapping[str, Any]],
    corners: Mapping[str, Corner],
    top: float,
) -> tuple[list[str], float]:
    """The students' frame with a line of boxes a size, and where it ends."""
    sizes = list(dict.fromkeys(match["size"] for match in students.values()))
    line = HEIGHT + 40
    right = LEFT + COLUMNS * (WIDTH + GAP_X) - GAP_X + EDGE - 4
    height = 34 + len(sizes) * line - 8
    parts = [f'<rect x="{LEFT - 1}" y="{top}" width="{right - LEFT}" height="{height}" rx="9" class="band"/>']
    parts.append(_text(LEFT + 12, top + 20, "Students", 13.5, "ink", 650))
    if "rejection" in corners:
        x, y = corners["rejection"]
        gap = x - GAP_X + 16
        parts.append(_arrow(f"M{x + 20} {y + HEIGHT}V{y + HEIGHT + 42}H{gap}V{top - 2}", "data"))
        parts.append(_text(gap + 8, top + 20, "the same SFT data", 11))
    if "r1" in corners:
        x, y = corners["r1"]
        out = x + WIDTH + 12
        parts.append(_arrow(f"M{x + WIDTH} {y + HEIGHT / 2}H{out}V{top - 2}", "data"))
        parts.append(_text(out - 4, top + 20, "R1 as teacher", 11, anchor="end"))
    for n, size in enumerate(sizes):
        at = {
            match["arm"]: Corner(LEFT + 12 + ARMS[match["arm"]][0] * (WIDTH + GAP_X), top + 44 + n * line)
            for match in students.values()
            if match["size"] == size
        }
        parts += _student_arrows(at, records, size)
        for arm, corner in at.items():
            _, title, what, kind = ARMS[arm]
            name = f"student-{size}-{arm}"
            parts.append(_box(name, Place(0, 0, f"{size} {title}", what, kind), records[name], corner))
    return parts, top + height


def _student_arrows(at: Mapping[str, Corner], records: Mapping[str, Mapping[str, Any]], size: str) -> list[str]:
    paths = []
    if "base" in at and "sft" in at:
        paths.append(f"M{at['base'].x + WIDTH} {at['base'].y + HEIGHT / 2}H{at['sft'].x - 2}")
    if "base" in at and "rl" in at:
        (x1, y1), (x2, _) = at["base"], at["rl"]
        paths.append(f"M{x1 + WIDTH / 2} {y1 + HEIGHT}V{y1 + HEIGHT + 12}H{x2 + WIDTH / 2}V{y1 + HEIGHT + 2}")
    if "opd" in at:
        inputs = records[f"student-{size}-opd"].get("inputs") or []
        keys = {arm: records[f"student-{size}-{arm}"].get("key") for arm in at}
        start = next((arm for arm in ("sft", "base") if keys.get(arm) in inputs), None)
        if start is not None:
            (x1, y1), (x2, _) = at[start], at["opd"]
            paths.append(f"M{x1 + 0.75 * WIDTH} {y1}V{y1 - 10}H{x2 + WIDTH / 2}V{y1 - 2}")
    return [_arrow(path, "weights") for path in paths]


def _corner(column: int, row: int) -> Corner:
    return Corner(LEFT + column * (WIDTH + GAP_X), TOP + row * (HEIGHT + GAP_Y))


def _path(start: Corner, end: Corner, arrow: Arrow) -> str:
    """across: right side → left side. down (where). channel (leaves at, enters at, depth): below the row, along, down.
    elbow (leaves at): down, then into the left side. round (gap, below the target's row, enters at): up on the right."""
    (x1, y1), (x2, y2), n = start, end, arrow.numbers
    if arrow.way == "across":
        return f"M{x1 + WIDTH} {y1 + HEIGHT / 2}H{x2 - 2}"
    if arrow.way == "down":
        return f"M{x1 + n[0] * WIDTH} {y1 + HEIGHT}V{y2 - 2}"
    if arrow.way == "elbow":
        return f"M{x1 + n[0] * WIDTH} {y1 + HEIGHT}V{y2 + HEIGHT / 2}H{x2 - 2}"
    if arrow.way == "channel":
        return f"M{x1 + n[0] * WIDTH} {y1 + HEIGHT}V{y1 + HEIGHT + n[2]}H{x2 + n[1] * WIDTH}V{y2 - 2}"
    below = y2 + HEIGHT + n[1]
    return f"M{x1 + WIDTH} {y1 + HEIGHT / 2}H{x1 + WIDTH + n[0]}V{below}H{x2 + n[2] * WIDTH}V{y2 + HEIGHT + 2}"


def _arrow(path: str, kind: str) -> str:
    return f'<path d="{path}" class="flow {kind}" marker-end="url(#r1tip)"/>'


def _box(name: str, place: Place, record: Mapping[str, Any] | None, corner: Corner) -> str:
    x, y = corner
    faint = "" if record else " faint"
    said = status(record) if record else "not begun"
    lines = [
        _text(x + 11, y + 21, short(place.title, 19), 14, "ink", 650),
        _text(x + 11, y + 37, short(place.what, 27), 11),
        _text(x + 11, y + 53, said, 11),
        _text(x + 11, y + 69, short(_headline(record), 27), 11, "ink") if record else "",
    ]
    box = f'<rect class="box {place.kind}{faint}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>{"".join(lines)}'
    if record is None:
        return f"<g>{box}</g>"
    label = safe(f"{name}: {place.title}, {said}")
    return f'<a href="#{safe(stage_id(name))}" aria-label="{label}">{box}</a>'


def status(record: Mapping[str, Any]) -> str:
    """`6 min 05 s · reused`: built says nothing more."""
    word = {"done": "built"}.get(str(record.get("status")), str(record.get("status") or "?"))
    return " · ".join(part for part in (spent(record, ""), word) if part)


_PREFERRED = ("accuracy", "held_out_accuracy", "agreement", "kept", "valid_loss", "loss", "hold")
"""Figures a box shows first, where its stage has them."""


def _headline(record: Mapping[str, Any]) -> str:
    """The one figure a box has room for."""
    figures = {
        name: value["value"] if isinstance(value, Mapping) and "value" in value else value
        for name, value in (record.get("metrics") or {}).items()
    }
    plain = {k: v for k, v in figures.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    chosen = next((name for name in (*_PREFERRED, *plain) if name in plain), None)
    return f"{chosen.replace('_', ' ')} {number(plain[chosen])}" if chosen else ""


def _text(
    x: float, y: float, text: str, size: float, colour: str = "soft", weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}" '
        f'style="fill:var(--{colour})">{safe(text)}</text>'
    )
