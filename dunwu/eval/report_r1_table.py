"""Tables of the R1 report: every model by every column, our directions beside the paper's, students, seeds, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dunwu.eval.report_parts import (
    duration,
    ends,
    folded,
    heading,
    interval,
    is_interval,
    note,
    number,
    safe,
    spent,
    table,
)
from dunwu.eval.report_r1_figure import stage_link
from dunwu.eval.verdicts import ARMS, FLAT, PAPER_MODELS, PAPER_TABLE, REASONING

_SIGNS = {1: "▲", -1: "▼", 0: "≈"}
_WORDS = {1: "up", -1: "down", 0: "flat"}


def stage_table(found: Mapping[str, Any]) -> str:
    """Every model's figures with intervals, and an arrow for what changed against the model before it."""
    head = heading("Every stage on the same problems", "各阶段成绩")
    columns, models = found.get("columns") or [], found.get("models") or []
    if not columns or not models:
        return head + note("The stage table has not been measured yet.")
    heads = ["model", *(_column_head(column) for column in columns)]
    rows = []
    for model in models:
        cells = [_cell(model, column) for column in columns]
        rows.append([_name(model), *cells])
    words = (
        "Mean and 95% interval over problems; every model meets the same problems with the same sampling seeds. "
        "▲ ▼: beyond doubt above or below the model named under it, problem by problem; ≈: the interval of the difference holds 0."
    )
    measures = "".join(
        f"<li><b>{safe(column.get('title', column.get('key', '?')))}</b> {safe(column['measure'])}</li>"
        for column in columns
        if column.get("measure")
    )
    below = folded("what each column measures", f'<ul class="plain">{measures}</ul>') if measures else ""
    return f'{head}<p class="caption">{words}</p><div class="stagetable">{table(heads, rows)}</div>{below}'


def _column_head(column: Mapping[str, Any]) -> str:
    way = {"higher": " ↑", "lower": " ↓"}.get(str(column.get("better") or ""), "")
    return f"{safe(column.get('title', column.get('key', '?')))}{way}"


def _name(model: Mapping[str, Any]) -> str:
    name, stage = str(model.get("name", "?")), model.get("stage")
    shown = stage_link(str(stage), name) if stage else safe(name)
    against = f"<small>against {safe(model['against'])}</small>" if model.get("against") else ""
    return f'<span class="model">{shown}</span>{against}'


def _cell(model: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    key = column.get("key")
    value = (model.get("scores") or {}).get(key) or {}
    if not is_interval(value):
        return "–"
    change = (model.get("changes") or {}).get(key) or {}
    arrow = _arrow(change, str(column.get("better") or "")) if ends(change) else ""
    form = ".1f" if abs(value["value"]) >= 10 else ".3f"
    known = ends(value)
    below = f"<small>{known[0]:{form}}–{known[1]:{form}}</small>" if known else ""
    return f'<span class="value">{value["value"]:{form}}{arrow}</span>{below}'


def _arrow(change: Mapping[str, Any], better: str) -> str:
    way = direction(change)
    good = "" if not way or not better else " yes" if (way > 0) == (better == "higher") else " no"
    title = f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
    return f' <span class="way{good}" title="{title}" aria-label="{_WORDS[way]}, {title}">{_SIGNS[way]}</span>'


def direction(change: Mapping[str, Any]) -> int:
    """1 up, -1 down, 0 where the interval of the change holds 0.

    Example:
        >>> direction({"low": 0.1, "high": 0.2}), direction({"low": -0.1, "high": 0.2})
        (1, 0)
    """
    return 1 if change["low"] > 0 else -1 if change["high"] < 0 else 0


def paper_table(found: Mapping[str, Any]) -> str:
    """The paper's direction at each step of the story, and ours, for the columns that have a likeness there."""
    models = {str(model.get("name")): model for model in found.get("models") or []}
    keys = [str(c["key"]) for c in found.get("columns") or [] if c.get("key") in PAPER_TABLE]
    steps = [(a, b) for a, b in pairwise(PAPER_MODELS) if (models.get(b) or {}).get("against") == a]
    if not keys or not steps:
        return ""
    titles = {str(c["key"]): c.get("title", c["key"]) for c in found.get("columns") or [] if "key" in c}
    agreed = compared = 0
    rows = []
    for key in keys:
        for benchmark, figures in PAPER_TABLE[key].items():
            row = [f"{safe(titles[key])}<small>{safe(benchmark)} in the paper</small>"]
            paper = dict(zip(PAPER_MODELS, figures))
            for before, after in steps:
                theirs = paper[after] - paper[before]
                way = 0 if abs(theirs) <= FLAT else 1 if theirs > 0 else -1
                cell = f"{_SIGNS[way]} {paper[before]:.1f} → {paper[after]:.1f}"
                change = (models[after].get("changes") or {}).get(key) or {}
                if ends(change):
                    ours = direction(change)
                    compared, agreed = compared + 1, agreed + (ours == way)
                    cell += _ours(models[before], models[after], key, change, ours, way)
                row.append(cell)
            rows.append(row)
    heads = ["column", *(f"{safe(a)} → {safe(b)}" for a, b in steps)]
    words = (
        f"Above the paper’s Table 3, below ours, in percent. {agreed} of {compared} directions agree. The paper gives no "
        f"intervals: a change of at most {FLAT:g} points is drawn ≈; ours is ≈ where the interval holds 0. Benchmarks are likenesses, "
        "not the same tasks."
    )
    return f'{heading("The paper’s directions and ours", "与论文对照", 3)}<p class="caption">{words}</p><div class="stacked">{table(heads, rows)}</div>'


def _ours(
    before: Mapping[str, Any], after: Mapping[str, Any], key: str, change: Mapping[str, Any], ours: int, theirs: int
) -> str:
    """Our line of a cell: in green where the directions agree, in red where they are opposite."""
    kind = "yes" if ours == theirs else "no" if ours == -theirs else "open"
    figures = [((model.get("scores") or {}).get(key) or {}).get("value") for model in (before, after)]
    shown = " → ".join(f"{100 * value:.1f}" if isinstance(value, (int, float)) else "?" for value in figures)
    title = f"{100 * change['value']:+.1f} points [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
    return f'<br><span class="mark {kind}" title="{title}">{_SIGNS[ours]} {shown}</span>'


def student_table(found: Mapping[str, Any]) -> str:
    """The comparison of the paper's section on distillation, with on-policy distillation as a third arm."""
    students = found.get("students") or []
    if not students:
        return ""
    keys = _shared_columns(found, students)
    order = {arm: n for n, arm in enumerate(ARMS)}
    ranked = sorted(students, key=lambda s: order.get(str(s.get("arm")), 9))
    sizes = list(dict.fromkeys(str(student.get("size", "?")) for student in students))
    rows = []
    for size in sizes:
        for student in ranked:
            if str(student.get("size", "?")) == size:
                arm = ARMS.get(str(student.get("arm")), str(student.get("arm", "?")))
                scores = student.get("scores") or {}
                row = [safe(size), safe(arm), *(interval(scores.get(key)) for key, _ in keys)]
                row += [spent(student), number(student.get("samples"))]
                rows.append(row)
    words = (
        "SFT and on-policy distillation learn from R1; RL alone starts from the student’s own base with rule rewards."
    )
    heads = ["size", "arm", *(safe(title) for _, title in keys), "time of the arm", "samples"]
    return f'{heading("Students", "蒸馏")}<p class="caption">{words}</p><div class="stacked">{table(heads, rows)}</div>'


def _shared_columns(found: Mapping[str, Any], students: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Keys and titles of the table's columns that some student has."""
    have = {key for student in students for key in student.get("scores") or {}}
    columns = [(str(c["key"]), str(c.get("title", c["key"]))) for c in found.get("columns") or [] if "key" in c]
    return [column for column in columns if column[0] in have] or [(key, key) for key in sorted(have)]


def seed_table(found: Mapping[str, Any]) -> str:
    """Independent runs: each seed's figures and their mean with Student's t interval."""
    seeds, over = found.get("seeds") or [], found.get("over_seeds") or {}
    if not seeds and not over:
        return ""
    scores = [seed.get("scores") or {} for seed in seeds]
    names = list(dict.fromkeys([name for score in (*scores, over) for name in score]))
    keys = _first_seen(key for score in (*scores, over) for columns in score.values() for key in columns)
    keys.sort(key=lambda key: key != REASONING)
    heads = ["column", "model", *(f"seed {number(seed.get('seed'))}" for seed in seeds), "mean over seeds"]
    rows = []
    for key in keys:
        for name in names:
            figures = [interval((score.get(name) or {}).get(key)) for score in scores]
            rows.append([safe(key), safe(name), *figures, interval((over.get(name) or {}).get(key))])
    words = "Runs with seeds of their own (pages and base too, unless they were given); the interval is Student’s t over runs."
    return f'{heading("Over seeds", "多个种子")}<p class="caption">{words}</p><div class="stacked">{table(heads, rows)}</div>'


def _first_seen(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))


def cost_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of every stage as bars, in the order they ran; a reused stage shows what it cost when it was built."""
    timed = [stage for stage in stages if isinstance(stage.get("seconds"), (int, float))]
    if not timed:
        return ""
    longest = max(stage["seconds"] for stage in timed) or 1.0
    total = sum(stage["seconds"] for stage in timed)
    here = sum(stage["seconds"] for stage in timed if stage.get("status") != "reused")
    rows = []
    for stage in timed:
        name, width = str(stage["stage"]), 260 * stage["seconds"] / longest
        bar = (
            f'<svg width="270" height="12" aria-hidden="true"><rect x="0" y="1" width="{max(width, 0.8):.1f}" height="10" rx="2" '
            f'style="fill:var({"--s5" if stage.get("status") == "reused" else "--s1"})"/></svg>'
        )
        share = f"{stage['seconds'] / total:.1%}" if total else "–"
        rows.append([stage_link(name), duration(stage["seconds"]), share, bar, safe(stage.get("status", "–"))])
    words = f"All stages together {duration(total)}; in this run {duration(here)}, the rest was reused (grey)."
    shown = table(["stage", "time", "share", "", "status"], rows, numbers=(1, 2))
    return f'{heading("Cost of each stage", "各阶段耗时")}<p class="caption">{words}</p>{shown}'
