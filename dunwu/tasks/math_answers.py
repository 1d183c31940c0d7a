r"""The tasks `gsm8k` and `math`: questions with an answer, from the public data sets' files or the user's own.

A problem is {"question", "gold"}: for gsm8k the gold is an integer, for math what `written_answers.py` reads. Rows may be in
the data sets' own form as well: {"question", "answer": "… #### 18"}, {"problem", "answer"}, {"problem", "solution"}.

The answer of a completion is its only <answer> block; without one, its last \boxed{}; for gsm8k also what follows its last
"####", else its last number. Nothing inside the thinking counts, and thinking that never ends has no answer.
Splits: in a folder, test.jsonl is the test and train.jsonl the rest; a single file is split by a hash of the question.
A gold that cannot be read is an error, never a point. Not covered: grading by a model; proofs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

from dunwu.tasks.expression import SPACE
from dunwu.tasks.formats import ANSWER, ANSWER_END, THINK, THINK_END, split_completion
from dunwu.tasks.frames import FRAMES, Frame, split_reply, zero_prompt
from dunwu.tasks.splits import SPLITS, TEST_PERCENT, VALID_PERCENT, check_draw, permuted
from dunwu.tasks.written_answers import AnswerError, read, same
from dunwu.types import DunwuError, Message, Problem, UsageError, Verdict, derive_seed

KINDS = ("gsm8k", "math")
ASK = "\nThink first, then give the answer in <answer></answer>."
"""Put after a question in the chat frame; the zero frame has its own."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "question": "A box holds 12 pencils. Ann buys 3 boxes and gives 5 pencils away. How many are left?",
        "gold": "31",
        "meta": {"solution": "3 boxes hold 3*12 = 36 pencils. 36-5 = 31 are left."},
    },
    "math": {
        "question": "What is the side of a square with area $\\frac{3}{4}$?",
        "gold": "\\frac{\\sqrt{3}}{2}",
        "meta": {"solution": "The side is the root of the area, $\\sqrt{3/4} = \\sqrt{3}/2$."},
    },
}
"""A row of each kind, for the catalogue."""
_NUMBER = re.compile(r"-?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)")
_ROW = 'a row is {"question": "…", "gold": "18"}'


class QuestionTask:
    """`dunwu.types.Task` for gsm8k and math.

    Args:
        kind: "gsm8k" or "math"; also the task's name.
        data: a JSONL file or a folder with train.jsonl, test.jsonl or both; without it the task only scores.
        frame: "chat" or "zero" (`frames.py`).
        accuracy_weight, format_weight: weights of the two rewards.

    Raises:
        UsageError: unknown kind or frame. DunwuError: `data` cannot be read, with FILE:LINE.

    Example:
        >>> task = QuestionTask("gsm8k")
        >>> problem = Problem("gsm8k", "1", {"question": "12 eggs and 6?", "gold": "18"}, "")
        >>> task.score(problem, "<think>12+6=18</think> She has $18.00 now.").rewards
        {'accuracy': 1.0, 'format': 0.0}
    """

    def __init__(
        self,
        kind: str,
        data: str | Path = "",
        frame: Frame = "chat",
        accuracy_weight: float = 1.0,
        format_weight: float = 1.0,
    ) -> None:
        if kind not in KINDS or frame not in FRAMES:
            raise UsageError(f"{kind} in frame {frame}", f"one of {', '.join(KINDS)} in {', '.join(FRAMES)}")
        if not (isfinite(accuracy_weight) and isfinite(format_weight)):
            raise UsageError(f"{kind}: reward weights {accuracy_weight} and {format_weight}", "give finite numbers")
        self.name, self.frame, self.source = kind, frame, str(data)
        self.accuracy_weight, self.format_weight = accuracy_weight, format_weight
        self.rows = read_questions(Path(data), kind) if data else {}

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The `index`-th of a seed's ordering of a split; all of it comes before anything comes twice.

        Raises:
            UsageError: unknown split, negative index, or the task has no data. DunwuError: the split is empty.
        """
        check_draw(split, index)
        if not self.rows:
            raise UsageError(f"task {self.name} has no questions of its own", "name a file: --data FILE")
        rows = self.rows[split]
        if not rows:
            raise DunwuError(f"{self.source} has no questions for split {split!r}", "give more, or another file")
        lap, at = divmod(index, len(rows))
        row = rows[permuted(at, len(rows), self.name, split, seed, lap)]
        return self.make_problem(row, {"split": split, "seed": seed, "index": index})

    def make_problem(self, row: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Problem:
        """A row {"question", "gold", "meta"?} with its prompt; its id is its question's hash."""
        identity = f"{self.name}-{derive_seed(row['question']):016x}"
        about = {**(meta or {}), "language": "en", **row.get("meta", {})}
        data = {"question": row["question"], "gold": row["gold"]}
        if self.frame == "zero":
            asked = (Message("user", row["question"]),)
            return Problem(self.name, identity, data, zero_prompt(asked, "en"), about)
        message = Message("user", row["question"] + ASK)
        return Problem(self.name, identity, data, f"user: {message.content}", about, (message,))

    def gold(self, problem: Problem) -> str:
        """The data's worked solution, if it has one, and the answer in its block."""
        answer = f"{ANSWER}{problem.data['gold']}{ANSWER_END}"
        thinking = str(problem.meta.get("solution", problem.data["gold"]))
        for tag in (THINK, THINK_END, ANSWER, ANSWER_END):
            thinking = thinking.replace(tag, " ")
        return f"{THINK}{thinking}{THINK_END}\n" + (answer if self.frame == "zero" else f"The answer is {answer}.")

    def score(self, problem: Problem, completion: str) -> Verdict:
        """Accuracy by exact comparison, format by the frame's rule. Status "error": the gold cannot be read."""
        gold = problem.data.get("gold")
        fault = "no text" if not isinstance(gold, str) else gold_fault(self.name, gold)
        if fault is not None:
            return Verdict({}, 0.0, "error", f'problem: "gold" is {fault}')
        well_formed, reason = self._format(completion)
        answer, missing = final_answer(completion, self.name)
        if answer is None:
            return self._verdict(0.0, well_formed, True, missing, None)
        if self.name == "gsm8k":
            value = whole_number(answer)
            if value is None:
                return self._verdict(0.0, well_formed, True, "the answer is not one number", answer)
            right = value == whole_number(str(gold))
        else:
            right = same(str(gold), answer)
        return self._verdict(float(right), well_formed, False, reason if right else "not the gold answer", answer)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The number, or the first form of the answer; None if it cannot be read."""
        if answer is None:
            return None
        if self.name == "gsm8k":
            return whole_number(answer)
        try:
            return min(map(repr, read(answer)))
        except AnswerError:
            return None

    def _format(self, completion: str) -> tuple[bool, str | None]:
        if self.frame == "zero":
            parsed = split_completion(completion)
            return parsed.well_formed, parsed.reason
        reply = split_reply(completion, True)
        return reply.well_formed, reply.reason

    def _verdict(
        self, accuracy: float, formed: bool, unparsable: bool, reason: str | None, answer: str | None
    ) -> Verdict:
        rewards = {"accuracy": accuracy, "format": float(formed)}
        reward = self.accuracy_weight * accuracy + self.format_weight * rewards["format"]
        return Verdict(rewards, reward, "unparsable" if unparsable else "ok", reason, answer)


def final_answer(completion: str, kind: str) -> tuple[str | None, str | None]:
    r"""(the answer a completion gives, why there is none).

    Example:
        >>> final_answer(r"<think>\boxed{1}</think> so \boxed{\frac{1}{2}}.", "math")
        ('\\frac{1}{2}', None)
    """
    if ANSWER in completion or ANSWER_END in completion:
        parsed = split_completion(completion)
        if parsed.answer is None:
            return None, parsed.reason
        return _unboxed(parsed.answer.strip(SPACE)), None
    _, ended, said = completion.rpartition(THINK_END)
    if not ended and THINK in completion:
        return None, "the thinking never ends"
    boxed = last_boxed(said)
    if boxed is not None:
        return boxed, None
    if kind == "gsm8k":
        _, mark, after = said.rpartition("####")
        if mark:
            return after.strip(SPACE).partition("\n")[0], None
        numbers = _NUMBER.findall(said)
        if numbers:
            return numbers[-1], None
    return None, "no <answer>…</answer> block and no \\boxed{}"


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{…} or \fbox{…} holds, braces balanced; None without one that is closed."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    opened = text.index("{", start)
    depth = 0
    for at in range(opened, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[opened + 1 : at].strip(SPACE)
    return None


def _unboxed(answer: str) -> str:
    boxed = last_boxed(answer)
    return answer if boxed is None else boxed


def whole_number(text: str) -> Fraction | None:
    """The one number a short answer names, money and thousands marks read; None for none, or for two different ones.

    Example:
        >>> whole_number("$1,800.00 a year"), whole_number("18 or 20")
        (Fraction(1800, 1), None)
    """
    if len(text) > 400:
        return None
    found = {Fraction(number.replace(",", "")) for number in _NUMBER.findall(text.replace("−", "-"))}
    return found.pop() if len(found) == 1 else None


def gold_fault(kind: str, gold: str) -> str | None:
    """What is wrong with a gold answer; None if nothing."""
    if kind == "gsm8k":
        plain = gold.strip(SPACE).replace(",", "").removeprefix("-")
        return None if plain.isascii() and plain.isdigit() and len(plain) < 100 else f"{gold[:40]!r}, not an integer"
    try:
        read(gold)
    except AnswerError as error:
        return f"{gold[:40]!r}: {error}"
    return None


# ---- files ----------------------------------------------------------------------------------


def read_questions(path: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The questions of a file or folder by split; a question counts once, and where it is in the test, only there.

    Raises:
        DunwuError: nothing to read, or a bad row, with FILE:LINE.
    """
    files = [path / "test.jsonl", path / "train.jsonl"] if path.is_dir() else [path]
    if path.is_dir() and not any(file.is_file() for file in files):
        raise DunwuError(f"{path} has neither train.jsonl nor test.jsonl", "name a file, or a folder with these")
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for file in files:
        if path.is_dir() and not file.is_file():
            continue
        for row in _rows(file, kind):
            if row["question"] not in seen:
                seen.add(row["question"])
                splits[_split_of(row["question"], path.is_dir(), file.stem)].append(row)
    if not seen:
        raise DunwuError(f"{path} holds no questions", _ROW)
    return splits


def _split_of(question: str, folder: bool, stem: str) -> str:
    bucket = derive_seed("question split", question) % 100
    if folder:
        return "test" if stem == "test" else "valid" if bucket < VALID_PERCENT else "train"
    return "test" if bucket < TEST_PERCENT else "valid" if bucket < TEST_PERCENT + VALID_PERCENT else "train"


def _rows(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise DunwuError(f"cannot read {file}: {error.strerror}", "give a JSONL file or a folder") from None
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise DunwuError(f"{file}:{line}: not JSON in UTF-8", _ROW) from None
        row = question_of(record) if isinstance(record, dict) else None
        if row is None:
            raise DunwuError(f"{file}:{line}: no question with an answer", _ROW)
        fault = gold_fault(kind, row["gold"])
        if fault is not None:
            raise DunwuError(f"{file}:{line}: the gold answer is {fault}", _ROW)
        yield row


def question_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of a known form as {"question", "gold", "meta": {"solution"?}}; None if it is of none."""
    question = record.get("question", record.get("problem"))
    gold, solution = record.get("gold"), record.get("solution")
    if gold is None and isinstance(answer := record.get("answer"), str | int | float):
        worked, mark, last = str(answer).rpartition("####")
        gold, solution = last.strip(SPACE), worked.strip(SPACE) if mark else solution
    if gold is None and isinstance(solution, str):
        gold = last_boxed(solution)
    if (
        isinstance(gold, bool)
        or not isinstance(gold, str | int | float)
        or not isinstance(question, str)
        or not question
    ):
        return None
    return {
        "question": question,
        "gold": str(gold),
        "meta": {"solution": solution} if isinstance(solution, str) else {},
    }
