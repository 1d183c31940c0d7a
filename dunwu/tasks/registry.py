"""Tasks by name, and the catalogue behind `dunwu tasks`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.splits import SPLITS
from dunwu.types import Task, UsageError


def task_names() -> tuple[str, ...]:
    """The names `get_task` knows."""
    return ("countdown",)


def get_task(name: str, **options: Any) -> Task:
    """A task by name, or the user's own by its file (`FILE.py`, see `user.py`).

    Options for "countdown": the fields of `CountdownConfig`, and `data`, a file of problems to serve.

    Raises:
        UsageError: unknown name, unknown option or a value out of range. DunwuError: `data` cannot be read.

    Example:
        >>> get_task("countdown", operands=4).name
        'countdown'
    """
    if name.endswith(".py"):
        if options:
            raise UsageError(f"a task file has no option {next(iter(options))!r}", "set it in the file")
        from dunwu.tasks.user import load_task

        return load_task(name)
    if name not in task_names():
        raise UsageError(f"unknown task {name!r}", _hint(name, task_names()))
    data = options.pop("data", None)
    known = [field.name for field in dataclasses.fields(CountdownConfig)]
    for option in options:
        if option not in known:
            raise UsageError(f"task {name!r} has no option {option!r}", _hint(option, (*known, "data")))
    config = CountdownConfig(**options)
    if data is None:
        return Countdown(config)
    from dunwu.tasks.files import FileCountdown, load_problems

    return FileCountdown(load_problems(data), config, str(data))


def task_options(pairs: Sequence[str], data: str | None = None) -> dict[str, Any]:
    """`NAME=VALUE` pairs as options of `get_task`; a value is JSON, or else text. `data`, if given, is one of them.

    Raises:
        UsageError: a pair without "=".

    Example:
        >>> task_options(["operands=4", "language=zh"])
        {'operands': 4, 'language': 'zh'}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"option {pair} has no value", "write NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options | ({"data": data} if data else {})


def catalogue() -> list[dict[str, Any]]:
    """What `dunwu tasks --json` prints: a JSON object for each task."""
    task = Countdown()
    problem = task.problem("train", 0, 0)
    return [
        {
            "name": task.name,
            "summary": "make the target from the given numbers, each used exactly once, with + - * /",
            "problem": {"numbers": "list of integers >= 0, in the order they are asked", "target": "integer"},
            "rewards": {
                "accuracy": "1 if the only <answer> block uses every number once and equals the target exactly",
                "format": "1 if the whole completion is <think>…</think> <answer>…</answer>",
            },
            "splits": list(SPLITS),
            "options": {**{field.name: field.default for field in dataclasses.fields(CountdownConfig)}, "data": None},
            "example": {"problem": dict(problem.data), "prompt": problem.prompt, "gold": task.gold(problem)},
        }
    ]


def _hint(name: str, known: tuple[str, ...]) -> str:
    """The nearest known name, else all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
