"""A user's own task: one Python file with a few functions, checked when it is loaded.

    problems(split)              the problems of "train", "valid" or "test": an iterable of dicts that JSON can hold; or
    problems(split, index)       problem number `index` (0 to 2**32 - 1) of a split, for tasks that make theirs up
    prompt(problem)              text the model continues, or a conversation [{"role": "user", "content": "…"}]
    score(problem, completion)   1 right, 0 wrong, or between; or several by name, {"accuracy": 1.0, "brief": 0.5}, of which
                                 "accuracy", else the first, says right or wrong; the reward is their sum
    gold(problem)                a completion that is right
    corrupt(problem)             optional: a completion that is wrong; else gold with other digits and other problems' golds
    name, weights, time_limit    optional: the task's name, {reward: weight}, seconds a score may take (5)

Running the file is running its author's code; `score` runs in a process of its own (`score_worker.py`), all else here.
Checked: every prompt, gold earns 1, corrupted gold 0, splits disjoint, two calls equal. Errors name the file and line.
Not covered: disjointness of splits made by index beyond the first draws of each.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from dunwu.tasks.expression import SPACE
from dunwu.tasks.formats import split_completion
from dunwu.tasks.score_worker import Scorer
from dunwu.tasks.splits import SPLITS, check_draw, permuted
from dunwu.tasks.user_file import UserFile
from dunwu.types import DunwuError, Message, Problem, Verdict, derive_seed

MOST = 1_000_000
"""Problems a split's list may hold."""
DRAWN = 256
"""Draws of each split compared where problems are made by index."""
GOLDS = 8
"""Problems of each split whose gold is scored, whole and corrupted."""
TIME_LIMIT = 5.0
"""Seconds a score may take unless the file says otherwise."""
NEEDED = ("problems", "prompt", "score", "gold")
ROLES = ("system", "user", "assistant")


class UserTask:
    """The task of a file: `dunwu.types.Task`. Make one with `load_task`, which checks it too."""

    def __init__(self, path: str | Path) -> None:
        self.file = file = UserFile(Path(path))
        for function in NEEDED:
            if function not in file.functions:
                raise file.fault(function, f"no function {function}", f"a task file defines {', '.join(NEEDED)}")
        self.by_index = _takes_index(file)
        self.name = str(getattr(file.module, "name", file.path.stem))
        self.weights = _weights(file)
        limit = getattr(file.module, "time_limit", TIME_LIMIT)
        if not isinstance(limit, int | float) or not 0 < limit < float("inf"):
            raise file.fault("score", f"time_limit is {limit!r}", "give seconds above 0")
        self.scorer = Scorer(file.path, float(limit))
        self._listed: dict[str, list[dict[str, Any]]] = {}

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The `index`-th problem of a seed's ordering of a split; a list comes whole before anything comes twice.

        Raises:
            UsageError: unknown split, negative index. DunwuError: the file's functions fail, with FILE:LINE.
        """
        check_draw(split, index)
        place = {"split": split, "seed": seed, "index": index}
        if self.by_index:
            number = derive_seed(self.name, split, seed, index) >> 31
            return self.make_problem(self.row(self._call("problems", split, number)), place)
        rows = self.listed(split)
        lap, at = divmod(index, len(rows))
        return self.make_problem(rows[permuted(at, len(rows), self.name, split, seed, lap)], place)

    def make_problem(self, data: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Problem:
        """A dict of the file with its prompt; its id is its content's hash."""
        identity = hashlib.sha256(_canonical(data).encode()).hexdigest()[:12]
        asked = self._call("prompt", dict(data))
        shown = {**(meta or {}), **({"language": data["language"]} if data.get("language") in ("en", "zh") else {})}
        if isinstance(asked, str) and asked.strip():
            return Problem(self.name, f"{self.name}-{identity}", data, asked, shown)
        messages = self._messages(asked)
        text = "\n".join(f"{message.role}: {message.content}" for message in messages)
        return Problem(self.name, f"{self.name}-{identity}", data, text, shown, messages)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """What the file's `score` says. It raised, or gave no number: "error"; it took too long: "timeout"."""
        return self.score_all([problem], [completion])[0]

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """`score` of each, handed to the file's process together: the same verdicts, less waiting."""
        replies = self.scorer([(p.data, c) for p, c in zip(problems, completions, strict=True)])
        return [self._verdict(reply, text) for reply, text in zip(replies, completions, strict=True)]

    def _verdict(self, reply: Mapping[str, Any], completion: str) -> Verdict:
        if "value" not in reply:
            status = "timeout" if "timeout" in reply else "error"
            return Verdict({}, 0.0, "timeout" if status == "timeout" else "error", str(reply[status]))
        value = reply["value"]
        named: dict[str, float] = value if isinstance(value, dict) else {"accuracy": value}
        reward = sum(self.weights.get(name, 1.0) * number for name, number in named.items())
        rewards = named if "accuracy" in named else {"accuracy": next(iter(named.values())), **named}
        return Verdict(rewards, reward, "ok", None, answer_of(completion))

    def gold(self, problem: Problem) -> str:
        """The file's own right completion.

        Raises:
            DunwuError: `gold` fails or gives no text, with FILE:LINE.
        """
        return self._text("gold", problem)

    def corruptions(self, problem: Problem) -> list[str]:
        """Completions that must be wrong: `corrupt(problem)` where the file has it, else its gold with other digits; and nothing.

        Without `corrupt`, `load_task` also tries golds of other problems, of which one at least must be wrong.
        """
        if "corrupt" in self.file.functions:
            return [self._text("corrupt", problem), ""]
        gold = self.gold(problem)
        changed = "".join(str((int(c) + 1) % 10) if c in "0123456789" else c for c in gold)
        return [text for text in (changed, "") if text != gold]

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The answer's text."""
        return answer

    def listed(self, split: str) -> list[dict[str, Any]]:
        """All problems of a split; not for tasks that make theirs by index."""
        if split not in self._listed:
            with self.file.calling("problems"):
                rows = list(islice(self._call("problems", split), MOST + 1))
            if not rows:
                raise self.file.fault("problems", f"no problems in split {split!r}", f"give some for {_SPLITS}")
            if len(rows) > MOST:
                cure = "write problems(split, index) for a task without end"
                raise self.file.fault("problems", f"more than {MOST} problems in split {split!r}", cure)
            self._listed[split] = [self.row(row) for row in rows]
        return self._listed[split]

    def row(self, row: Any) -> dict[str, Any]:
        """A problem of the file, if it is a dict that survives JSON."""
        try:
            if isinstance(row, dict) and json.loads(_canonical(row)) == row:
                return row
        except (TypeError, ValueError):
            pass
        raise self.file.fault("problems", f"{_short(row)} is no problem", "give a dict of numbers, texts and lists")

    def _messages(self, asked: Any) -> tuple[Message, ...]:
        cure = 'give a text, or [{"role": "user", "content": "…"}] that ends with the user'
        if not isinstance(asked, list | tuple) or not asked:
            raise self.file.fault("prompt", f"prompt gave {_short(asked)}", cure)
        for turn in asked:
            known = isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
            if not known:
                raise self.file.fault("prompt", f"prompt gave the turn {_short(turn)}", cure)
        if asked[-1]["role"] != "user":
            raise self.file.fault("prompt", f"the last turn is the {asked[-1]['role']}'s", cure)
        return tuple(Message(turn["role"], turn["content"]) for turn in asked)

    def _text(self, function: str, problem: Problem) -> str:
        text = self._call(function, dict(problem.data))
        if not isinstance(text, str):
            raise self.file.fault(function, f"{function} gave {_short(text)}", "give the completion as text")
        return text

    def _call(self, function: str, *given: Any) -> Any:
        with self.file.calling(function):
            return self.file.functions[function](*given)


_SPLITS = ", ".join(SPLITS)


def load_task(path: str | Path) -> UserTask:
    """The task of a file, checked: see the module's head for what is wanted and what is checked.

    Raises:
        DunwuError: one line, `FILE:LINE: what is wrong (cure)`.
    """
    task = UserTask(path)
    seen: dict[str, str] = {}
    for split in SPLITS:
        problems = _first_problems(task, split)
        for problem in problems:
            other = seen.setdefault(_asked(problem), split)
            if other != split:
                what = f"{_short(dict(problem.data))} is in split {other!r} and in {split!r}"
                raise task.file.fault("problems", what, "a problem belongs to one split")
        for problem in problems[:GOLDS]:
            _check_gold(task, problem)
        if "corrupt" not in task.file.functions:
            _check_others(task, problems[:GOLDS])
    return task


def _first_problems(task: UserTask, split: str) -> list[Problem]:
    """The problems of a split that are looked at, after a second call has given the same."""
    if task.by_index:
        drawn = [task.problem(split, 0, index) for index in range(DRAWN)]
        again = [task.problem(split, 0, index) for index in range(DRAWN)]
    else:
        drawn = [task.make_problem(row) for row in task.listed(split)]
        with task.file.calling("problems"):
            rows = list(islice(task.file.functions["problems"](split), MOST + 1))
        again = [task.make_problem(task.row(row)) for row in rows]
    if [p.data for p in drawn] != [p.data for p in again]:
        cure = "draw from random.Random(seed made of split and index), not from the global generator"
        raise task.file.fault("problems", f"two calls of problems({split!r}) differ", cure)
    if [_asked(p) for p in drawn] != [_asked(p) for p in again]:
        raise task.file.fault("prompt", "two calls of prompt with one problem differ", "let it depend on it alone")
    return drawn


def _check_gold(task: UserTask, problem: Problem) -> None:
    """Gold earns 1, twice the same; each corruption earns 0."""
    gold, shown = task.gold(problem), _short(dict(problem.data))
    if task.gold(problem) != gold:
        raise task.file.fault("gold", f"two calls of gold for {shown} differ", "let it depend on the problem alone")
    first, second = _scored(task, problem, gold), _scored(task, problem, gold)
    if first != second:
        raise task.file.fault("score", f"two calls of score for {shown} differ", "let it depend on its arguments alone")
    right = first.rewards["accuracy"]
    if right != 1.0:
        raise task.file.fault("score", f"the gold answer of {shown} scores {right:g}, not 1", "correct score or gold")
    for wrong in task.corruptions(problem):
        got = _scored(task, problem, wrong).rewards["accuracy"]
        if got != 0.0:
            what = f"the wrong answer {_short(wrong)} to {shown} scores {got:g}, not 0"
            cure = "correct score" if "corrupt" in task.file.functions else "correct score, or define corrupt(problem)"
            raise task.file.fault("score", what, cure)


def _check_others(task: UserTask, problems: Sequence[Problem]) -> None:
    """Not every gold of another problem is right: score looks at the problem."""
    golds = [task.gold(problem) for problem in problems]
    for problem, gold in zip(problems, golds, strict=True):
        others = [other for other in golds if other != gold]
        if others and all(_scored(task, problem, other).rewards["accuracy"] for other in others):
            what = f"{_short(dict(problem.data))} accepts {_short(others[0])}, the gold answer of another problem"
            raise task.file.fault("score", what, "correct score, or define corrupt(problem)")


def _scored(task: UserTask, problem: Problem, completion: str) -> Verdict:
    """A verdict that must be one.

    Raises:
        DunwuError: score raised or took too long.
    """
    verdict = task.score(problem, completion)
    if verdict.status == "timeout":
        raise task.file.fault("score", str(verdict.reason), "make it faster, or set time_limit in the file")
    if verdict.status == "error":
        raise DunwuError(str(verdict.reason), "score must not raise for anything a completion can hold")
    return verdict


def answer_of(completion: str) -> str | None:
    """What a completion answers, for voting: its answer block, else what follows the thinking; None if that is nothing.

    Example:
        >>> answer_of("<think>3*8</think> 24 ")
        '24'
    """
    answer = split_completion(completion).answer
    return (completion.rpartition("</think>")[2] if answer is None else answer).strip(SPACE) or None


def _takes_index(file: UserFile) -> bool:
    """Whether `problems` wants (split, index)."""
    function: Callable[..., Any] = file.functions["problems"]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.default is p.empty]
    if len(wanted) not in (1, 2):
        raise file.fault("problems", f"problems takes {len(wanted)} arguments", "problems(split), or (split, index)")
    return len(wanted) == 2


def _weights(file: UserFile) -> dict[str, float]:
    weights = getattr(file.module, "weights", {})
    if not isinstance(weights, dict) or not all(isinstance(w, int | float) and isfinite(w) for w in weights.values()):
        raise DunwuError(f"{file.path}:1: weights is {_short(weights)}", 'give {"accuracy": 1.0, …}')
    return {str(name): float(weight) for name, weight in weights.items()}


def _asked(problem: Problem) -> str:
    """What makes two problems the same: what the model is shown."""
    return _canonical([[message.role, message.content] for message in problem.messages] or problem.prompt)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _short(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
