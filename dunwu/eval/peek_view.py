"""The next-token tables of `peek` as lines of a terminal: a row a token, a column a model, a change with its sign."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dunwu.progress import columns

BOLD, GREEN, RED, RESET = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
GAP = "  "
_WIDEST_LABEL, _WIDEST_TOKEN = 20, 26
_OTHER_TOKENS = "different tokenizers: rows are joined by text (- where a model has no such token), with no distance"
Row = Mapping[str, Any]
Cell = tuple[str, str]
"""A text, and the same with escape codes for colour."""


def peek_lines(result: Mapping[str, Any], width: int, colour: bool = False) -> list[str]:
    """What `peek` returned, for a terminal of `width` columns.

    Models that find no room beside the others go below, in a table with their own likeliest tokens. Signs are ASCII and
    marks without a width of their own are spelled out, so that columns align in any terminal.
    """
    models, rows, ids = result["models"], result["rows"], result["same_tokenizer"]
    labels, legend = _labels(models)
    lines = [f"after {result['text']!r}{' in a turn of the user' if result['chat'] else ''}", *legend]
    widths = [max(columns(plain) for plain, _ in _column(models, rows, n, labels)) for n in range(len(models))]
    for places in _blocks(widths, width - columns(_left(rows, True, ids)[0])):
        shown = [row for row in rows if any(_is_likely(row, models, place) for place in places)]
        shown.sort(key=lambda row: -max(row["probabilities"][place] or 0.0 for place in places))
        compared = any(models[place]["before"] is not None for place in places)
        cells = [_padded(_column(models, shown, place, labels, compared)) for place in places]
        table = zip(_left(shown, compared, ids), *cells, strict=True)
        lines += ["", *(GAP.join([head, *(cell[colour] for cell in line)]).rstrip() for head, *line in table)]
    different = not all("kl" in model for model in models if model["before"] is not None)
    return [*lines, "", _OTHER_TOKENS] if different else lines


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Places of as many columns as there is room for, and at least one."""
    block: list[int] = []
    taken = 0
    for place, wide in enumerate(widths):
        if block and taken + len(GAP) + wide > room:
            yield block
            block, taken = [], 0
        block.append(place)
        taken += len(GAP) + wide
    yield block


def _is_likely(row: Row, models: Sequence[Mapping[str, Any]], place: int) -> bool:
    """Whether the token is one of the model's own likeliest."""
    probability = row["probabilities"][place]
    return probability is not None and probability >= models[place]["next"][-1]["probability"]


# ---- columns: heading, a line a token, and the distances, if a model of the block is compared with another


def _left(rows: Sequence[Row], compared: bool, with_ids: bool) -> list[str]:
    names = ["token", *([""] if compared else []), *(_shown(row["token"]) for row in rows)]
    names += ["total variation", "KL(from||this)"] if compared else []
    padded = [plain for plain, _ in _padded([(name, "") for name in names])]
    if not with_ids:
        return padded
    ids = ["id", *([""] if compared else []), *(str(row["id"]) for row in rows), *(["", ""] if compared else [])]
    room = max(map(len, ids))
    return [f"{number:>{room}}{GAP}{name}" for number, name in zip(ids, padded, strict=True)]


def _column(
    models: Sequence[Mapping[str, Any]], rows: Sequence[Row], place: int, labels: Sequence[str], compared: bool = True
) -> list[Cell]:
    model = models[place]
    before = None if model["before"] is None else [other["model"] for other in models].index(model["before"])
    likeliest = model["next"][0]["probability"]
    cells: list[Cell] = [(labels[place], labels[place])]
    if compared:
        since = "" if before is None else f"from {labels[before]}"
        cells.append((since, since))
    for row in rows:
        found = row["probabilities"]
        cells.append(_cell(found[place], None if before is None else found[before], likeliest))
    if compared:
        figures = [f"{model[name]:.4f}" if name in model else "" for name in ("total_variation", "kl")]
        cells += [(figure, figure) for figure in figures]
    return cells


def _cell(now: float | None, was: float | None, likeliest: float) -> Cell:
    """A probability, and its change where four digits show it."""
    if now is None:
        return "-", "-"
    plain = f"{now:.4f}"
    coded = f"{BOLD}{plain}{RESET}" if now == likeliest else plain
    change = "" if was is None else f"{now - was:+.4f}"
    if not change.strip("+-0."):
        return plain, coded
    return f"{plain} {change}", f"{coded} {GREEN if change.startswith('+') else RED}{change}{RESET}"


def _padded(cells: Sequence[Cell]) -> list[Cell]:
    room = max(columns(plain) for plain, _ in cells)
    return [(plain + " " * (room - columns(plain)), coded + " " * (room - columns(plain))) for plain, coded in cells]


# ---- names


def _labels(models: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """A short name for each model; where that does not tell them apart, numbers, and lines that explain them."""
    short = [str(model["stage"] or Path(model["model"]).name or model["model"]) for model in models]
    if len(set(short)) == len(short) and max(map(columns, short)) <= _WIDEST_LABEL:
        return short, []
    numbers = [f"#{place}" for place in range(1, len(models) + 1)]
    return numbers, [f"{number} {model['model']}" for number, model in zip(numbers, models, strict=True)]


def _shown(token: str) -> str:
    """A token as Python writes it, marks without a width of their own spelled out.

    Example:
        >>> print(_shown(" 猫\\n"), _shown("e\\u0301"))
        ' 猫\\n' 'e\\u0301'
    """
    spelled = "".join(c if unicodedata.category(c) not in ("Mn", "Me") else f"\\u{ord(c):04x}" for c in repr(token))
    while columns(spelled) > _WIDEST_TOKEN:
        spelled = f"{spelled.removesuffix('...')[:-1]}..."
    return spelled
