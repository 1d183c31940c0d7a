"""What rejection sampling asks: rows of a user's file, or a task's own problems; and both as lines of JSON.

    with a named task   countdown: {"numbers": [3, 7, 12], "target": 24} ("nums" too, "language" if it is not English)
    gsm8k, math         {"question": "…", "gold": "18"}, and the public data sets' own forms
    with a task file    the dicts its functions take
    without a task      {"messages": […]} or {"question": "…"}, "gold" if the right answer is known, "meta" as in chat data

Not covered: Parquet. A row that does not fit is reported by line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dunwu.data.chat_rows import ROLES
from dunwu.disk import canonical_json, plain
from dunwu.recipes.reject_config import RejectRunConfig
from dunwu.recipes.user_data import Unusable
from dunwu.rollout.selection import Kept, example
from dunwu.tasks import get_task
from dunwu.tasks.countdown import read_problem
from dunwu.tasks.countdown_exercise import CountdownExercise
from dunwu.tasks.frames import Frame, Framed, Keyed
from dunwu.tasks.knights import Knights
from dunwu.tasks.language import LANGUAGES, words
from dunwu.tasks.math_answers import KINDS, QuestionTask, gold_fault, question_of
from dunwu.tasks.templates import question
from dunwu.tasks.user import UserTask
from dunwu.tasks.word_problems import WordProblems
from dunwu.types import (
    ChatExample,
    Completion,
    DunwuError,
    Exercise,
    Group,
    Message,
    Problem,
    Rollout,
    Task,
    UsageError,
    Verdict,
)

EXERCISES: dict[str, Callable[[], Exercise]] = {
    "countdown": CountdownExercise,
    "word-problems": WordProblems,
    "knights": Knights,
}
JUDGED = "judged"
"""The task's name of a problem that a model judges."""
ASKED = "asked"
"""Key in a problem's meta under which a prompt in R1-Zero's template keeps the bare conversation."""


class Listed:
    """An exercise whose problems are given: an `Exercise` that draws them in order, whatever the split and seed."""

    def __init__(self, exercise: Exercise, problems: Sequence[Problem] = ()) -> None:
        self.exercise, self.problems = exercise, problems
        self.name, self.reasoning = exercise.name, exercise.reasoning

    def draw(self, split: str, seed: int, index: int) -> Problem:
        """Problem number `index`."""
        return self.problems[index]

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        """As the exercise."""
        return self.exercise.judge(problem, answer)

    def key(self, problem: Problem, answer: str | None) -> Any:
        """As the exercise, if it has keys."""
        return self.exercise.key(problem, answer) if isinstance(self.exercise, Keyed) else answer

    def solution(self, problem: Problem) -> Message:
        """As the exercise."""
        return self.exercise.solution(problem)


def make_task(config: RejectRunConfig) -> Task | None:
    """The verifier; None where the judge decides."""
    if not config.task:
        return None
    if config.task in EXERCISES:
        return Framed(EXERCISES[config.task](), config.frame)
    if config.task in KINDS:
        return QuestionTask(config.task, frame=config.frame)
    return get_task(config.task)


def check_task(config: RejectRunConfig) -> None:
    """Raise UsageError or DunwuError, before anything is read, for a task that is none or does not go with the data."""
    task = make_task(config)
    if config.data:
        _reader(config, task)
    elif isinstance(task, QuestionTask):
        raise UsageError(f"task {config.task} has no questions of its own", "name a file: --data FILE")


def gather(config: RejectRunConfig, seed: int) -> tuple[list[Problem], list[Unusable], list[int]]:
    """The distinct problems, the rows that cannot be used, and each problem's line in the data file (0: drawn).

    Raises:
        UsageError: the task takes no rows. DunwuError: the file cannot be read.
    """
    task = make_task(config)
    if not config.data:
        assert task is not None  # validate() asks for one or the other
        drawn = (_drawn(config, task, seed, index) for index in range(config.problems))
        found = list({problem.id: problem for problem in drawn}.values())
        return found, [], [0] * len(found)
    read = _reader(config, task)
    problems: dict[tuple[str, str], tuple[Problem, int]] = {}
    bad: list[Unusable] = []
    for line, text in _lines(Path(config.data)):
        try:
            problem = read(_object(text))
        except ValueError as reason:
            bad.append(Unusable(config.data, line, str(reason)))
            continue
        except DunwuError as reason:
            bad.append(Unusable(config.data, line, reason.what))
            continue
        key = (problem.id, str(problem.data.get("gold")))
        if key in problems:
            bad.append(Unusable(config.data, line, f"the same problem as line {problems[key][1]}"))
        else:
            problems[key] = (problem, line)
    return [problem for problem, _ in problems.values()], bad, [line for _, line in problems.values()]


def _drawn(config: RejectRunConfig, task: Task, seed: int, index: int) -> Problem:
    if isinstance(task, Framed):
        return _framed(task.exercise, config.frame, "train", seed, index)
    return task.problem("train", seed, index)


def _framed(exercise: Exercise, frame: Frame, split: str, seed: int, index: int) -> Problem:
    """The problem in its frame; what was asked stays with it, since R1-Zero's template is no part of chat data."""
    problem = Framed(exercise, frame).problem(split, seed, index)
    if problem.messages:
        return problem
    return _with_asked(problem, Framed(exercise, "chat").problem(split, seed, index).messages)


def _with_asked(problem: Problem, asked: Sequence[Message]) -> Problem:
    return replace(problem, meta={**problem.meta, ASKED: [plain(message) for message in asked]})


def chat_row(sample: Kept) -> ChatExample:
    """A kept sample as chat data."""
    meta = dict(sample.problem.meta)
    asked = tuple(Message(**turn) for turn in meta.pop(ASKED, ()))
    problem = replace(sample.problem, meta=meta, messages=asked or sample.problem.messages)
    return example(sample._replace(problem=problem))


def _reader(config: RejectRunConfig, task: Task | None) -> Callable[[dict[str, Any]], Problem]:
    if task is None:
        return judged_problem
    if isinstance(task, UserTask):
        return lambda row: task.make_problem(task.row(row))
    if isinstance(task, QuestionTask):
        return lambda row: question_problem(task, row)
    if config.task == "countdown":
        return lambda row: _framed(Listed(CountdownExercise(), [countdown_problem(row)]), config.frame, "", 0, 0)
    raise UsageError(f"task {config.task} draws its own problems", "leave --data away, or write a task file")


def countdown_problem(row: Mapping[str, Any]) -> Problem:
    """A Countdown row as the exercise's problem.

    Raises:
        ValueError: with the row's fault.
    """
    data = {"numbers": row.get("numbers", row.get("nums")), "target": row.get("target")}
    numbers, target, fault = read_problem(data)
    if fault is not None:
        raise ValueError(fault.removeprefix("problem: "))
    language = _language(row, "en")
    identity = f"countdown-{'-'.join(map(str, sorted(numbers)))}-{target}" + ("-zh" if language == "zh" else "")
    meta = {"language": language, "family": "countdown"}
    asked = (Message("user", question(numbers, int(target), language)),)
    return Problem("countdown", identity, {**data, "language": language}, "", meta, asked)


def question_problem(task: QuestionTask, row: Mapping[str, Any]) -> Problem:
    """A row of gsm8k or math, in any of the public data sets' forms.

    Raises:
        ValueError: with the row's fault.
    """
    asked = question_of(row)
    if asked is None:
        raise ValueError('no question with an answer: {"question": "…", "gold": "18"}')
    fault = gold_fault(task.name, asked["gold"])
    if fault is not None:
        raise ValueError(f"the gold answer is {fault}")
    problem = task.make_problem(asked)
    return problem if problem.messages else _with_asked(problem, (Message("user", asked["question"]),))


def judged_problem(row: Mapping[str, Any]) -> Problem:
    """A question or conversation for the judge; its language, if the row does not say, is that of the last turn.

    Raises:
        ValueError: with the row's fault.
    """
    messages = _messages(row)
    gold = row.get("gold")
    if gold is not None and not isinstance(gold, str | int | float):
        raise ValueError("gold is neither text nor a number")
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    count = words(messages[-1].content)
    language = _language(meta, "zh" if count["zh"] > count["en"] else "en")
    digest = hashlib.sha256(canonical_json([plain(message) for message in messages]).encode("utf-8", "replace"))
    text = "\n".join(f"{message.role}: {message.content}" for message in messages)
    data = {} if gold is None else {"gold": str(gold)}
    return Problem(JUDGED, digest.hexdigest()[:16], data, text, {**meta, "language": language}, messages)


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if "messages" not in row:
        question_text = row.get("question")
        if not isinstance(question_text, str) or not question_text.strip():
            raise ValueError('neither "messages" nor "question" holds anything to ask')
        return (Message("user", question_text),)
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages is not a list of turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise ValueError(f"turn {number} has no text in its content")
        if turn.get("role") not in ROLES:
            raise ValueError(f"turn {number} has role {turn.get('role')!r}; one of {', '.join(ROLES)}")
    if turns[-1]["role"] == "assistant":
        raise ValueError("the last turn is the assistant's already")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _language(row: Mapping[str, Any], otherwise: str) -> str:
    language = row.get("language", otherwise)
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")
    return str(language)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise DunwuError(f"cannot read {path}: {error.strerror}", "check the path") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


# ---- problems and samples as lines of JSON


def problem_row(problem: Problem) -> dict[str, Any]:
    """A problem as JSON."""
    row: dict[str, Any] = plain(problem)
    return row


def read_problem_row(row: Mapping[str, Any]) -> Problem:
    """The inverse of `problem_row`."""
    messages = tuple(Message(**message) for message in row["messages"])
    return Problem(row["task"], row["id"], row["data"], row["prompt"], row["meta"], messages)


def group_row(group: Group) -> dict[str, Any]:
    """A problem and its judged samples as JSON, without their tokens."""
    samples = [
        {
            "text": rollout.completion.text,
            "finish_reason": rollout.completion.finish_reason,
            "seed": rollout.completion.seed,
            "verdict": rollout.verdict.to_json(),
        }
        for rollout in group.rollouts
    ]
    return {"problem": problem_row(group.problem), "samples": samples}


def read_group_row(row: Mapping[str, Any]) -> Group:
    """The inverse of `group_row`."""
    rollouts = [
        Rollout(
            Completion(sample["text"], (), (), sample["finish_reason"], sample["seed"]), Verdict(**sample["verdict"])
        )
        for sample in row["samples"]
    ]
    return Group(read_problem_row(row["problem"]), (), tuple(rollouts))
