"""What the report of the whole of R1 shows beyond any run's: `stages.json`, samples of every stage, rows of its data.

Reads files only: the run folder, and of the artifacts that its stages name the first rows of their JSONL files.
A run that has no `stages.json` yet gives an empty table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dunwu.eval.report_parts import clip
from dunwu.log import read_json, read_rollouts
from dunwu.store import Store

RECIPE, TABLE = "r1", "stages.json"
ZERO_STAGE = "r1-zero"
EXAMPLE_ROWS = 3
"""Rows shown of a data file."""
EXAMPLE_FILES = 3
"""Data files shown of a stage."""


def is_r1(run_dir: Path, run: Mapping[str, Any]) -> bool:
    """Is this a run of the whole of R1?"""
    return run.get("recipe") == RECIPE or (run_dir / TABLE).is_file()


def collect_r1(run_dir: Path, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`{"table": stages.json or {}, "samples": {stage: [groups]}, "examples": {stage: {file: [rows]}}}`.

    Raises:
        DunwuError: stages.json is damaged.
    """
    file = run_dir / TABLE
    return {
        "table": clip(read_json(file)) if file.is_file() else {},
        "samples": _samples(run_dir),
        "examples": {str(s["stage"]): rows for s in stages if (rows := _examples(str(s.get("key") or "")))},
    }


def _samples(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Of every stage a group of its first step and one of its last: the first whose rewards differ, else the first."""
    first: dict[str, dict[str, Any]] = {}
    last: dict[str, dict[str, Any]] = {}
    for group in read_rollouts(run_dir):
        for kept, replace in ((first, False), (last, True)):
            there = kept.get(group["stage"])
            if (
                there is None
                or (replace and group["step"] > there["step"])
                or (group["step"] == there["step"] and not mixed(there) and mixed(group))
            ):
                kept[group["stage"]] = group
    return {
        stage: [clip(group) for group in (first[stage], last[stage])][: 1 if first[stage] is last[stage] else 2]
        for stage in first
    }


def mixed(group: Mapping[str, Any]) -> bool:
    """Whether the rewards of a group differ."""
    return len({rollout["reward"] for rollout in group["rollouts"]}) > 1


def _examples(key: str) -> dict[str, list[Any]]:
    """The first rows of an artifact's JSONL files; a file that cannot be read as such is left out."""
    folder = Store().home / "artifacts" / key
    found: dict[str, list[Any]] = {}
    if not key or Path(key).name != key or not folder.is_dir():
        return found
    for file in sorted(folder.glob("*.jsonl"))[:EXAMPLE_FILES]:
        rows = _first_rows(file)
        if rows and file.name != "metrics.jsonl":
            found[file.name] = rows
    return found


def _first_rows(file: Path) -> list[Any]:
    rows = []
    try:
        with file.open(encoding="utf-8") as lines:
            for _, line in zip(range(EXAMPLE_ROWS), lines):
                rows.append(clip(json.loads(line)))
    except (OSError, ValueError):  # shown for illustration only: nothing else rests on it
        return []
    return rows
