"""One section a stage: lineage, headline figures, curves, samples, rows of its data. The boxes of the figure lead here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dunwu.eval.report_curves import behaviour_figures, stage_figures
from dunwu.eval.report_parts import exact, folded, heading, interval, number, safe, table
from dunwu.eval.report_r1_data import ZERO_STAGE
from dunwu.eval.report_r1_figure import MEASURING, PLACES, stage_id, stage_link, status
from dunwu.eval.report_samples import legend, sampled_group

OPEN_CHARTS = 4
"""Charts of a stage that are open; the others unfold."""
SHOWN_ROLLOUTS = 2
"""Rollouts of a group that are open."""


def stage_sections(data: Mapping[str, Any]) -> str:
    """Every stage in the order of its inputs; the measurements of the table, which have no curves, last and short."""
    stages: Sequence[Mapping[str, Any]] = data["stages"]
    if not stages:
        return ""
    names = {stage.get("key"): str(stage["stage"]) for stage in stages}
    training = [stage for stage in stages if not str(stage["stage"]).startswith(MEASURING)]
    measuring = [stage for stage in stages if str(stage["stage"]).startswith(MEASURING)]
    parts = [heading("Stage by stage", "逐个阶段")]
    parts += [_section(data, stage, names) for stage in training]
    if measuring:
        sections = "".join(_section(data, stage, names) for stage in measuring)
        parts.append(folded(f"{len(measuring)} measurements of the stage table", sections))
    return "".join(parts)


def _section(data: Mapping[str, Any], stage: Mapping[str, Any], names: Mapping[Any, str]) -> str:
    name = str(stage["stage"])
    place = PLACES.get(name)
    title = f"{safe(name)} <small>{safe(place.title)}: {safe(place.what)}</small>" if place else safe(name)
    parts = [f'<section class="stage" id="{safe(stage_id(name))}"><h3>{title}</h3>', _facts(stage, names)]
    figures = stage_figures(data["curves"], name)
    if name == ZERO_STAGE:
        figures += behaviour_figures(data)
    parts.append(_grid(figures))
    groups = data["r1"]["samples"].get(name) or []
    if groups:
        shown = "".join(sampled_group(group, 4, SHOWN_ROLLOUTS) for group in groups)
        parts.append(folded("samples of the first and the last step", legend() + shown))
    for file, rows in (data["r1"]["examples"].get(name) or {}).items():
        parts.append(folded(f"first rows of {safe(file)}", "".join(_row(row) for row in rows)))
    return "".join(parts) + "</section>"


def _facts(stage: Mapping[str, Any], names: Mapping[Any, str]) -> str:
    """Where it comes from, what it cost, and its headline, in one line each."""
    inputs = [names.get(key, str(key)) for key in stage.get("inputs") or []]
    links = ", ".join(stage_link(n) if n in names.values() else safe(n) for n in inputs)
    made = f"made from {links}" if links else "made from nothing else"
    key = f"artifact <code>{safe(stage.get('key', '–'))}</code>"
    parts = [f'<p class="caption">{safe(status(stage))} · {made} · {key}</p>']
    if stage.get("error"):
        parts.append(f'<p class="note">ended with {safe(stage["error"])}</p>')
    figures = [(k, v) for k, v in (stage.get("metrics") or {}).items() if v is not None and v != ""]
    if figures:
        shown = " · ".join(f"{safe(k.replace('_', ' '))} <b>{_figure(v)}</b>" for k, v in figures[:12])
        parts.append(f'<p class="headline">{shown}</p>')
    config = stage.get("config")
    if isinstance(config, Mapping) and config:
        rows = [[safe(k), f"<code>{exact(v)}</code>"] for k, v in config.items()]
        parts.append(folded("settings", table([], rows)))
    return "".join(parts)


def _figure(value: Any) -> str:
    if isinstance(value, Mapping) and "value" in value:
        return interval(value)
    return number(value) if isinstance(value, (int, float, str)) else exact(value)


def _grid(figures: Sequence[str]) -> str:
    if not figures:
        return ""
    first = f'<div class="grid">{"".join(figures[:OPEN_CHARTS])}</div>'
    rest = figures[OPEN_CHARTS:]
    if not rest:
        return first
    return first + folded(f"{len(rest)} more curves", f'<div class="grid">{"".join(rest)}</div>')


def _row(row: Any) -> str:
    """A row of a data file: a conversation, a pair, or whatever it is."""
    if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
        return f'<pre class="prompt">{exact(row)}</pre>'
    turns = [_turn(turn) for turn in row["messages"] if isinstance(turn, Mapping)]
    for side in ("chosen", "rejected"):
        reply = row.get(side)
        if isinstance(reply, list):
            reply = reply[-1] if reply else None
        if isinstance(reply, Mapping):
            turns.append(_turn({**reply, "role": side}))
        elif isinstance(reply, str):
            turns.append(_turn({"role": side, "content": reply}))
    return f'<div class="card rowcard">{"".join(turns)}</div>'


def _turn(turn: Mapping[str, Any]) -> str:
    thinking = turn.get("reasoning_content")
    dimmed = f'<span class="dim">{safe(thinking)}</span> ' if thinking else ""
    return f'<div class="turn"><b>{safe(turn.get("role", "?"))}</b> {dimmed}{safe(turn.get("content", ""))}</div>'
