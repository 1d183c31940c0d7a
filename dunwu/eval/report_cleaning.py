"""What the data pipeline found and missed in the crawl, against the world's truth: a section of R1's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dunwu.eval.report_parts import folded, heading, number, safe, table

_TITLES = {
    "damaged": "damaged records",
    "url": "address",
    "extraction": "HTML to text",
    "language": "language",
    "quality:repetition": "Gopher: repetition",
    "quality:gopher": "Gopher: quality",
    "quality:c4": "C4",
    "quality:fineweb": "FineWeb",
    "exact_duplicate": "exact duplicates",
    "near_duplicate": "near-duplicates",
    "contaminated": "contamination",
}
_COUNTS = ("reached", "dropped", "right", "other", "wrong", "missed")


def cleaning(found: Mapping[str, Any]) -> str:
    """The section, or "" where no crawl was cleaned."""
    scores = found.get("cleaning") or {}
    if not scores:
        return ""
    rows = []
    for step, counts in scores["steps"].items():
        if not counts.get("dropped") and not counts.get("missed"):
            continue
        shares = [_share(counts.get(name)) for name in ("precision", "recall")]
        rows.append([safe(_TITLES.get(step, step)), *(number(counts.get(name)) for name in _COUNTS), *shares])
    heads = [
        "step",
        "reached it",
        "dropped",
        "rightly",
        "for another's reason",
        "wrongly",
        "missed",
        "precision",
        "recall",
    ]
    return (
        heading("What the pipeline made of the crawl", "流水线怎样清洗这批网页")
        + table(heads, rows, range(1, 9))
        + _others(scores)
        + _examples(scores)
    )


def _others(scores: Mapping[str, Any]) -> str:
    rows = []
    for part in ("text", "language", "pii", "whole"):
        for name, value in scores.get(part, {}).items():
            if isinstance(value, (int, float)):
                shown = _share(value) if isinstance(value, float) and 0 <= value <= 1 else number(value)
                rows.append([safe(part), safe(name.replace("_", " ")), shown])
    return table(["of", "what", ""], rows, (2,))


def _examples(scores: Mapping[str, Any]) -> str:
    examples = scores.get("examples", [])
    heads = list(dict.fromkeys(name for example in examples for name in example if name != "id"))
    rows = [[safe(str(example.get(name, ""))) for name in heads] for example in examples]
    return folded("errors to look at", table(list(map(safe, heads)), rows)) if rows else ""


def _share(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "–"
