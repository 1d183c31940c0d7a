"""What distillation asks where no task does: the questions of a user's files, each once, every bad row named.

Not covered: questions with a verifier, which are a task's affair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dunwu.data.chat import BadRow, each_chat, prompt_ids
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.log import Run
from dunwu.model.hf import claimed_context
from dunwu.recipes.reject_config import RejectRunConfig
from dunwu.recipes.reject_rows import gather, judged_problem, problem_row, read_problem_row
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.recipes.user_data import Unusable, write_bad_rows
from dunwu.store import Artifact
from dunwu.tasks.splits import permuted
from dunwu.types import DunwuError, Problem, Verdict

PROMPTS = "prompts.jsonl"


class Prompts:
    """Questions without a verifier, as a `Task`: each once in an order of its own, then all again in another.

    Example:
        >>> asked = Prompts([Problem("", str(n), {}, "") for n in range(3)])
        >>> sorted(asked.problem("train", seed=0, index=index).id for index in (3, 4, 5))
        ['0', '1', '2']
    """

    name = "prompts"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """A question of the file; there is one split."""
        lap, place = divmod(index, len(self.problems))
        return self.problems[permuted(place, len(self.problems), self.name, seed, lap)]

    def score(self, problem: Problem, completion: str) -> Verdict:
        """No reward: nothing is known of right and wrong."""
        return Verdict({}, 0.0)

    def gold(self, problem: Problem) -> str:
        """Raise DunwuError: there is none."""
        raise DunwuError("a file of questions has no gold answers", "use a task")

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        """Answers as they are written."""
        return answer


def prompts(
    run: Run, questions: Sequence[str], conversations: Sequence[str], folder: Path | None, max_tokens: int
) -> Artifact:
    """The distinct questions of the files: `prompts.jsonl`, and the rows that cannot be used, too long ones among them.

    Args:
        questions: files of `{"question": …}` or `{"messages": […]}` that end with the user's turn.
        conversations: files of chat data; the assistant's last turn is left away.
        folder: the model that is asked, whose context bounds question and answer; None for a server.
        max_tokens: longest answer.
    """
    files = [*((file, _questions) for file in questions), *((file, _asked) for file in conversations)]

    def build(work: Path) -> dict[str, object]:
        too_long = _fits_anything if folder is None else _room(folder, max_tokens)
        found: dict[str, Problem] = {}
        bad: list[Unusable] = []
        for file, read in files:
            for line, row in sorted(read(file), key=lambda found: found[0]):
                fault = row if isinstance(row, str) else too_long(row)
                if isinstance(row, Problem) and row.id in found:
                    fault = f"the same question as {found[row.id].meta['line']}"
                if fault or isinstance(row, str):
                    bad.append(Unusable(file, line, fault))
                else:
                    found[row.id] = replace(row, meta={**row.meta, "line": f"{file} line {line}"})
        write_bad_rows(work, bad, len(found))
        rows = (json.dumps(problem_row(problem), ensure_ascii=False) + "\n" for problem in found.values())
        write_atomically(work / PROMPTS, "".join(rows))
        return {"prompts": len(found), "bad_rows": len(bad)}

    key: dict[str, Any] = {"files": [[file, file_digest(file)] for file, _ in files]}
    key["conversations"] = len(conversations)
    key["room"] = None if folder is None else [model_digest(folder, weights=False), max_tokens]
    return run.stage("prompts", build, key)


def read_prompts(asked: Artifact) -> list[Problem]:
    """The questions of the stage `prompts`."""
    # Not splitlines(): a text may hold other line ends, such as U+2028.
    lines = (asked.path / PROMPTS).read_bytes().split(b"\n")
    return [read_problem_row(json.loads(line)) for line in lines if line]


def context_of(folder: Path) -> int:
    """The longest text, in tokens, that a folder's model was made for."""
    return claimed_context(folder)


def _questions(file: str) -> Iterator[tuple[int, Problem | str]]:
    """(line, question or what is wrong with it)."""
    problems, bad, lines = gather(RejectRunConfig(data=file), 0)
    yield from zip(lines, problems, strict=True)
    yield from ((row.line, row.reason) for row in bad)


def _asked(file: str) -> Iterator[tuple[int, Problem | str]]:
    """(line, what a conversation asks or what is wrong with it)."""
    for line, row in each_chat(Path(file)):
        if isinstance(row, BadRow):
            yield line, row.reason
        else:
            turns = [{"role": m.role, "content": m.content} for m in row.messages[:-1]]
            yield line, judged_problem({"messages": turns})


def _fits_anything(problem: Problem) -> str:
    return ""


def _room(folder: Path, max_tokens: int) -> Callable[[Problem], str]:
    return partial(_too_long, encoder=load_tokenizer(folder), room=context_of(folder), max_tokens=max_tokens)


def _too_long(problem: Problem, encoder: Tokenizer, room: int, max_tokens: int) -> str:
    """Why a question and its answer do not fit the model's context; "" if they do."""
    length = len(prompt_ids(encoder, problem))
    return f"{length} tokens and {max_tokens} more exceed the model's {room}" if length + max_tokens > room else ""
