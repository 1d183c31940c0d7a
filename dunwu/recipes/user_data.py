"""Rows of a user's files that cannot be used: kept with the stage that read them, told in the run. None is silent."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dunwu.disk import write_atomically
from dunwu.log import Run
from dunwu.store import Artifact
from dunwu.types import DunwuError

BAD_ROWS = "bad_rows.jsonl"
SHOWN = 20
"""Bad rows named on stderr; the file has all."""


@dataclass(frozen=True)
class Unusable:
    """A row left out: its file, its line from 1, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.reason}"


def write_bad_rows(work: Path, bad: Sequence[Unusable], left: int) -> None:
    """Keep the bad rows beside what was made of the good ones; for the end of a stage that reads a user's files.

    Args:
        left: rows that can be used.

    Raises:
        DunwuError: no row is left; with the first reasons.
    """
    lines = [json.dumps({"file": row.file, "line": row.line, "reason": row.reason}, ensure_ascii=False) for row in bad]
    write_atomically(work / BAD_ROWS, "".join(line + "\n" for line in lines))
    if not left:
        _tell(bad)
        what = f"none of the {len(bad)} rows can be used; the first: {bad[0]}" if bad else "the files hold no rows"
        raise DunwuError(what, "one JSON object a line; the page of the recipe in docs/ shows the forms")


def tell_bad_rows(run: Run, artifact: Artifact) -> None:
    """Name the bad rows of a stage, made now or reused, on stderr, and put them into the run folder."""
    text = (artifact.path / BAD_ROWS).read_text("utf-8")
    write_atomically(run.dir / BAD_ROWS, text)
    _tell([Unusable(**json.loads(line)) for line in text.splitlines()])


def _tell(bad: Sequence[Unusable]) -> None:
    for row in bad[:SHOWN]:
        print(row, file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"… and {len(bad) - SHOWN} more rows that cannot be used; {BAD_ROWS} names all", file=sys.stderr)
