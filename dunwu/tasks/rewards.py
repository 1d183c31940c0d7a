"""Reward functions in TRL's signature, accepted unchanged, as the reward of any task.

    def brief(completions, **columns) -> list[float | None]: ...

Called once for all completions of a step, by name: `prompts`, `completions`, `completion_ids` where the sampler gave ids,
and a list for each field of the problems. Completions are texts, or [{"role": "assistant", "content": text}] where the
prompt is a conversation. None means that the reward does not apply to that completion.

Functions run here, in this process, and may hold models; there is no time limit. One that raises makes its whole call an
error, never zeros. Not covered: TRL's `trainer_state`, `log_extra` and `log_metric`, which belong to its trainer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from dunwu.tasks.user_file import UserFile, complaint
from dunwu.types import Completion, DunwuError, Problem, Task, UsageError, Verdict

RewardFunction = Callable[..., Any]
RESERVED = ("prompts", "completions", "completion_ids")


class RewardFunctions:
    """A task's problems judged by reward functions: `dunwu.types.BatchTask`.

    The reward is the weighted sum of what applies; the task's own rewards stay on record, and count with `task_weight`.

    Args:
        functions: (function, weight) pairs.
        task: asks the problems.
        task_weight: weight of the task's own reward in the sum.

    Example:
        >>> from dunwu.tasks import get_task
        >>> def brief(completions, **columns):
        ...     return [1.0 - len(text) / 100 for text in completions]
        >>> task = RewardFunctions([(brief, 0.5)], get_task("countdown"))
        >>> verdict = task.score(task.problem("train", 0, 0), "0123456789")
        >>> verdict.rewards["brief"], verdict.reward
        (0.9, 0.45)
    """

    def __init__(self, functions: Sequence[tuple[RewardFunction, float]], task: Task, task_weight: float = 0.0) -> None:
        if not functions or not all(isfinite(weight) for weight in (task_weight, *(w for _, w in functions))):
            raise UsageError("rewards: no function, or a weight that is no number", "give functions, finite weights")
        self.task, self.task_weight = task, task_weight
        self.name = task.name
        self.functions: dict[str, tuple[RewardFunction, float]] = {}
        for function, weight in functions:
            name = base = getattr(function, "__name__", type(function).__name__)
            number = 1
            while name in self.functions:
                number += 1
                name = f"{base}-{number}"
            self.functions[name] = (function, weight)

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The task's."""
        return self.task.problem(split, seed, index)

    def gold(self, problem: Problem) -> str:
        """The task's; reward functions may think less of it."""
        return self.task.gold(problem)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The task's."""
        return self.task.answer_key(problem, answer)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """`score_all` of one."""
        return self.score_all([problem], [completion])[0]

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """A verdict for each text, in order; the functions get no `completion_ids`."""
        return self._judge(problems, completions, {})

    def score_completions(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Verdict]:
        """`score_all` for what a sampler drew, with its token ids (stop token included, as in TRL)."""
        ids = {"completion_ids": [list(completion.token_ids) for completion in completions]}
        return self._judge(problems, [completion.text for completion in completions], ids)

    def _judge(self, problems: Sequence[Problem], texts: Sequence[str], also: Mapping[str, Any]) -> list[Verdict]:
        if not problems:
            return []
        given = {**columns_of(problems), "prompts": prompts_of(problems), **also}
        given["completions"] = [
            [{"role": "assistant", "content": text}] if problem.messages else text
            for problem, text in zip(problems, texts, strict=True)
        ]
        columns: dict[str, list[float | str | None]] = {
            name: _values(name, function, given, len(texts)) for name, (function, _) in self.functions.items()
        }
        together = getattr(self.task, "score_all", None)
        own = together(problems, texts) if together else [self.task.score(p, c) for p, c in zip(problems, texts)]
        return [
            self._verdict({name: column[row] for name, column in columns.items()}, own[row]) for row in range(len(own))
        ]

    def _verdict(self, values: Mapping[str, float | str | None], own: Verdict) -> Verdict:
        """One completion's. A text among the values says what went wrong."""
        for value in values.values():
            if isinstance(value, str):
                return Verdict({}, 0.0, "error", value)
        applied = {name: value for name, value in values.items() if isinstance(value, float)}
        if self.task_weight and own.status in ("error", "timeout"):
            return own
        if not applied and not self.task_weight:
            return Verdict({}, 0.0, "error", "no reward function applies")
        reward = sum(self.functions[name][1] * value for name, value in applied.items())
        reward += self.task_weight * own.reward if self.task_weight else 0.0
        status = own.status if self.task_weight else "ok"
        return Verdict({**own.rewards, **applied}, reward, status, own.reason, own.answer)


def columns_of(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """A list for each field any of the problems has; None where one lacks it.

    Example:
        >>> columns_of([Problem("t", "1", {"a": 1}, ""), Problem("t", "2", {"a": 2, "b": 3}, "")])
        {'a': [1, 2], 'b': [None, 3]}
    """
    names = dict.fromkeys(name for problem in problems for name in problem.data if name not in RESERVED)
    return {name: [problem.data.get(name) for problem in problems] for name in names}


def prompts_of(problems: Sequence[Problem]) -> list[Any]:
    """Each prompt as TRL gives it: a list of messages for a conversation, else text."""
    return [
        [{"role": m.role, "content": m.content} for m in problem.messages] if problem.messages else problem.prompt
        for problem in problems
    ]


def load_reward(text: str) -> RewardFunction:
    """The function of `FILE.py:FUNCTION`. The file is run: it is its author's code.

    Raises:
        UsageError: not of that form. DunwuError: the file cannot be run or has no such function.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise UsageError(f"reward {text!r} is not FILE.py:FUNCTION", "e.g. --reward rewards.py:brief")
    loaded = UserFile(Path(file))
    if name not in loaded.functions:
        there = ", ".join(loaded.functions) or "nothing callable"
        raise DunwuError(f"{file} has no function {name}", f"it has {there}")
    return loaded.functions[name]


def _values(name: str, function: RewardFunction, given: Mapping[str, Any], rows: int) -> list[float | str | None]:
    """What a function says of each row: a number, None, or a text that says what went wrong."""
    code = getattr(function, "__code__", None)
    where = Path(code.co_filename) if code is not None else Path(name)
    try:
        said = function(**_accepted(function, given))
        if inspect.iscoroutine(said):
            said = asyncio.run(said)
        values = list(said)
    except Exception as error:  # noqa: BLE001 - a reward that raises is a counted error, not a zero
        return [f"reward {name}: {complaint(where, error, getattr(code, 'co_firstlineno', 1))}"] * rows
    if len(values) != rows:
        return [f"reward {name} gave {len(values)} numbers for {rows} completions"] * rows
    return [_value(name, value) for value in values]


def _value(name: str, value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return f"reward {name} gave {type(value).__name__}, not a number"
    number = float(value)
    return number if isfinite(number) else f"reward {name} gave {number}"


def _accepted(function: RewardFunction, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the function can take: everything, unless it lacks **columns."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}
