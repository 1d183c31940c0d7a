"""What a command is; and what several commands have in common: arguments, and ways to show a result."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """One line of `dunwu --help`.

    `arguments` are (names, settings) of `add_argument`; `open_ended` lets unknown flags through to
    `run` as `args.rest`; `as_json` gives it `--json`. A result whose "ok" is False means exit code 1.
    """

    summary: str
    run: Callable[[argparse.Namespace], Result]
    show: Callable[[Result], None]
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()
    open_ended: bool = False
    as_json: bool = True


def arg(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a command."""
    return names, settings


SEED = arg("--seed", type=int, default=0, help="seed (0)")
TASK = arg("--task", required=True, metavar="TASK", help="a name from `dunwu tasks`, or your own: FILE.py")
DATA = arg("--data", metavar="FILE", help="problems for the task: JSONL, Parquet or a folder")
SET = arg("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the task, e.g. operands=4")


def show_nothing(result: Result) -> None:
    """The command has said everything already."""


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns by display width; the last one runs free."""
    from dunwu.progress import columns

    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
