"""Countdown problems from a file: the public dataset's form or ours, JSON lines or Parquet.

A row is `{"nums": [3, 7, 12], "target": 24}` (the public Countdown datasets) or `{"numbers": …, "target": …}`; other columns
are ignored. A row that is neither stops the reading with its place in the file: a data set with holes is not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from dunwu.tasks.countdown import Countdown, CountdownConfig, Pair, read_problem
from dunwu.tasks.splits import SPLITS, permuted, split_of
from dunwu.types import DunwuError

_FORM = 'a row is {"nums": [3, 7, 12], "target": 24}'


def load_problems(path: str | Path) -> list[dict[str, Any]]:
    """The problems of a file, in order, each `{"numbers": [...], "target": n}`. A name ending in .parquet is read as Parquet.

    Raises:
        DunwuError: no such file, no rows, a bad row (named by file:line), or Parquet without pyarrow.
    """
    path = Path(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    problems = []
    for line, row in rows:
        numbers = row.get("numbers", row.get("nums")) if isinstance(row, dict) else None
        problem = {"numbers": numbers, "target": row.get("target") if isinstance(row, dict) else None}
        fault = read_problem(problem)[2] if isinstance(row, dict) else "not an object"
        if fault is not None:
            raise DunwuError(f"{path}:{line}: {fault}", _FORM)
        problems.append(problem)
    if not problems:
        raise DunwuError(f"{path} holds no problems", _FORM)
    return problems


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that is not blank."""
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    try:
                        yield line, json.loads(text)
                    except (ValueError, RecursionError):
                        raise DunwuError(f"{path}:{line}: not JSON in UTF-8", _FORM) from None
    except OSError as error:
        raise DunwuError(f"cannot read {path}: {error.strerror}", "give a JSONL or Parquet file") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 1, value) of every row."""
    try:
        parquet = import_module("pyarrow.parquet")
        failure = import_module("pyarrow").ArrowException
    except ImportError:
        raise DunwuError(f"reading {path} needs pyarrow", 'pip install "dunwu[data]"') from None
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    row += 1
                    yield row, value
    except (OSError, failure) as error:
        reason = str(error).splitlines()[0]
        raise DunwuError(f"cannot read {path}: {reason}", "give a JSONL or Parquet file") from None


class FileCountdown(Countdown):
    """Countdown with a file's problems in place of generated ones.

    A problem's split is its hash, as for generated problems, so neither can leak into the other's test; problems that
    are the same up to the order of the numbers count once. `operands`, ranges and solution knobs of the config are not used.
    """

    def __init__(
        self, problems: Sequence[dict[str, Any]], config: CountdownConfig | None = None, source: str = "problems"
    ) -> None:
        super().__init__(config)
        self.source = source
        self._pairs: dict[Pair, None] = dict.fromkeys((tuple(sorted(p["numbers"])), p["target"]) for p in problems)

    @cached_property
    def splits(self) -> dict[str, tuple[Pair, ...]]:
        """The distinct problems of each split, in the file's order."""
        splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
        for numbers, target in self._pairs:
            splits[split_of(numbers, target)].append((numbers, target))
        return {split: tuple(pairs) for split, pairs in splits.items()}

    def _draw(self, split: str, seed: int, index: int) -> Pair:
        listed = self.splits[split]
        if not listed:
            raise DunwuError(f"{self.source}: none of its problems falls into split {split!r}", "give more problems")
        lap, place = divmod(index, len(listed))
        return listed[permuted(place, len(listed), self.name, split, seed, lap)]
