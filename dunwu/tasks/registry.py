"""Tasks by name, and the catalogue behind `dunwu tasks`."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.frames import Framed, RewardWeights
from dunwu.tasks.knights import SAYINGS, Knights
from dunwu.tasks.math_answers import EXAMPLES, KINDS, QuestionTask
from dunwu.tasks.splits import SPLITS
from dunwu.tasks.word_problems import WordProblems
from dunwu.types import Exercise, Task, UsageError

_EXERCISES: dict[str, Callable[..., Exercise]] = {"word-problems": WordProblems, "knights": Knights}
"""Exercises that are tasks once framed."""

_ABOUT: dict[str, tuple[str, dict[str, str], str]] = {
    "countdown": (
        "make the target from the given numbers, each used exactly once, with + - * /",
        {"numbers": "list of integers >= 0, in the order they are asked", "target": "integer"},
        "1 if the only <answer> block uses every number once and equals the target exactly",
    ),
    "word-problems": (
        "work out a story of one or two steps with + - *, in English or Chinese",
        {
            "question": "the story",
            "gold": "integer",
            "work": "optional: its equations, separated by commas",
            "things": "optional: what is counted, in Chinese with its measure word",
            "language": "en or zh",
        },
        "1 if the only <answer> block is the gold integer and nothing else",
    ),
    "knights": (
        "knights tell the truth, knaves lie: find who is what, in English or Chinese",
        {
            "statements": "list of [speaker, what, of whom, …], people A to F, what one of " + ", ".join(SAYINGS),
            "language": "en or zh",
        },
        "1 if the only <answer> block names the one solution, as in A knight, B knave",
    ),
    "gsm8k": (
        "school word problems whose answer is an integer; needs --data FILE",
        {"question": "text", "gold": "integer, as text"},
        "1 if the answer (<answer> block, else \\boxed{}, else ####, else the last number) equals the gold",
    ),
    "math": (
        "questions answered in LaTeX or plain mathematics; needs --data FILE",
        {"question": "text", "gold": "the answer, as `dunwu.tasks.written_answers` reads it"},
        "1 if the answer (<answer> block, else the last \\boxed{}) is the gold in another writing or the same",
    ),
}
"""For the catalogue: a summary, the fields of a problem, what accuracy wants."""


def task_names() -> tuple[str, ...]:
    """The names `get_task` knows."""
    return ("countdown", *_EXERCISES, *KINDS)


def get_task(name: str, **options: Any) -> Task:
    """A task by name, or the user's own by its file (`FILE.py`, see `user.py`).

    Options for "countdown": the fields of `CountdownConfig`, and `data`, a file of problems to serve. For the others: `frame`
    ("zero", "chat"; see `frames.py`), the weights of the rewards, those of their exercise, and for gsm8k and math `data`.

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
    known = tuple(_options(name))
    for option in options:
        if option not in known:
            raise UsageError(f"task {name!r} has no option {option!r}", _hint(option, known))
    if name in KINDS:
        return QuestionTask(name, **options)
    if name in _EXERCISES:
        return _framed(name, {**_options(name), **options})
    data = options.pop("data", None)
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
    entries = []
    for name, (summary, fields, right) in _ABOUT.items():
        task = get_task(name)
        problem = task.make_problem(EXAMPLES[name]) if isinstance(task, QuestionTask) else task.problem("train", 0, 0)
        rewards = {"accuracy": right, "format": "1 if the whole completion is <think>…</think> <answer>…</answer>"}
        if name in _EXERCISES:
            rewards["language"] = "share of the words of the thinking that are in the question's language"
        entries.append(
            {
                "name": name,
                "summary": summary,
                "problem": fields,
                "rewards": rewards,
                "splits": list(SPLITS),
                "options": _options(name),
                "example": {"problem": dict(problem.data), "prompt": problem.prompt, "gold": task.gold(problem)},
            }
        )
    return entries


def _options(name: str) -> dict[str, Any]:
    """The options of a task and their defaults."""
    if name in _EXERCISES:
        own = {
            option: parameter.default for option, parameter in inspect.signature(_EXERCISES[name]).parameters.items()
        }
        weights = {f"{field.name}_weight": field.default for field in dataclasses.fields(RewardWeights)}
        return {"frame": "zero", **weights, **own}
    if name in KINDS:
        return {n: p.default for n, p in inspect.signature(QuestionTask).parameters.items() if n != "kind"}
    return {**{field.name: field.default for field in dataclasses.fields(CountdownConfig)}, "data": None}


def _framed(name: str, options: Mapping[str, Any]) -> Task:
    """An exercise in its frame, of all its options."""
    given = {}
    for field in dataclasses.fields(RewardWeights):
        given[field.name] = weight = options[f"{field.name}_weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"{name}: {field.name}_weight = {weight!r} is not a number", "give a number")
    own = inspect.signature(_EXERCISES[name]).parameters
    exercise = _EXERCISES[name](**{option: options[option] for option in own})
    return Framed(exercise, options["frame"], RewardWeights(**given))


def _hint(name: str, known: tuple[str, ...]) -> str:
    """The nearest known name, else all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
