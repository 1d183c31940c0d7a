"""What distillation asks where no task does: the questions of a user's files, each once, every bad row named; and the
answers that conversations bring along.

Not covered: questions with a verifier, which are a task's affair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dunwu.data.chat import BadRow, each_chat, encode_conversation, prompt_ids
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
from dunwu.types import DunwuError, Message, Problem, Verdict

PROMPTS = "prompts.jsonl"
Reader = Callable[[str], Iterator[tuple[int, Problem | str]]]
"""A file → (line, question or what is wrong with it)."""
ANSWERS = "answers"
"""Key in a problem's data under which the answers of its conversations stand."""


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
    run: Run,
    questions: Sequence[str],
    conversations: Sequence[str],
    folder: Path | None,
    max_tokens: int,
    answers: bool = False,
) -> Artifact:
    """The distinct questions of the files: `prompts.jsonl`, and the rows that cannot be used, too long ones among them.

    Args:
        questions: files of `{"question": …}` or `{"messages": […]}` that end with the user's turn.
        conversations: files of chat data; the assistant's last turn is left away, or kept as an answer.
        folder: the model that is asked, whose context bounds question and answer; None for a server.
        max_tokens: longest answer.
        answers: keep the conversations' own, for `known_answers`; a question may have several.
    """
    asked: Reader = partial(_asked, answers=answers)
    files: list[tuple[str, Reader]] = [(file, _questions) for file in questions]
    files += [(file, asked) for file in conversations]

    def build(work: Path) -> dict[str, object]:
        too_long = _fits_anything if folder is None else _room(folder, max_tokens)
        found: dict[str, Problem] = {}
        bad: list[Unusable] = []
        for file, read in files:
            for line, row in sorted(read(file), key=lambda found: found[0]):
                fault = row if isinstance(row, str) else too_long(row)
                if isinstance(row, Problem) and row.id in found and not fault:
                    row, fault = _also(found[row.id], row)
                if fault or isinstance(row, str):
                    bad.append(Unusable(file, line, fault))
                elif row.id in found:
                    found[row.id] = row
                else:
                    found[row.id] = replace(row, meta={**row.meta, "line": f"{file} line {line}"})
        write_bad_rows(work, bad, len(found))
        rows = (json.dumps(problem_row(problem), ensure_ascii=False) + "\n" for problem in found.values())
        write_atomically(work / PROMPTS, "".join(rows))
        return {"prompts": len(found), "bad_rows": len(bad)}

    key: dict[str, Any] = {"files": [[file, file_digest(file)] for file, _ in files]}
    key["conversations"] = len(conversations)
    key |= {"answers": True} if answers else {}
    key["room"] = None if folder is None else [model_digest(folder, weights=False), max_tokens]
    return run.stage("prompts", build, key)


def read_prompts(asked: Artifact) -> list[Problem]:
    """The questions of the stage `prompts`."""
    # Not splitlines(): a text may hold other line ends, such as U+2028.
    lines = (asked.path / PROMPTS).read_bytes().split(b"\n")
    return [read_problem_row(json.loads(line)) for line in lines if line]


def known_answers(problems: Sequence[Problem], encoder: Tokenizer) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Prompt ids → the ids of each answer that its file gave, to the end of the turn; prompts without one are not there."""
    known: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for problem in problems:
        prompt = tuple(prompt_ids(encoder, problem))
        for answer in problem.data.get(ANSWERS, ()):
            known.setdefault(prompt, []).append(_answer_ids(problem, answer, encoder))
    return known


def _answer_ids(problem: Problem, answer: Mapping[str, Any], encoder: Tokenizer) -> tuple[int, ...]:
    whole = encode_conversation(encoder, [*problem.messages, Message("assistant", **answer)])
    learned = [place for place, mask in enumerate(whole.loss_mask) if mask]
    return whole.ids[len(prompt_ids(encoder, problem)) : learned[-1] + 1]


def context_of(folder: Path) -> int:
    """The longest text, in tokens, that a folder's model was made for."""
    return claimed_context(folder)


def _questions(file: str) -> Iterator[tuple[int, Problem | str]]:
    """(line, question or what is wrong with it)."""
    problems, bad, lines = gather(RejectRunConfig(data=file), 0)
    yield from zip(lines, problems, strict=True)
    yield from ((row.line, row.reason) for row in bad)


def _asked(file: str, answers: bool) -> Iterator[tuple[int, Problem | str]]:
    """(line, what a conversation asks or what is wrong with it)."""
    for line, row in each_chat(Path(file)):
        if isinstance(row, BadRow):
            yield line, row.reason
        else:
            turns = [{"role": m.role, "content": m.content} for m in row.messages[:-1]]
            problem, reply = judged_problem({"messages": turns}), row.messages[-1]
            said = {"content": reply.content, "reasoning_content": reply.reasoning_content}
            yield line, replace(problem, data={**problem.data, ANSWERS: [said]}) if answers else problem


def _also(before: Problem, again: Problem) -> tuple[Problem, str]:
    """A question that comes twice: with the new answers it brings, or what is wrong if it brings none."""
    known = before.data.get(ANSWERS, [])
    new = [answer for answer in again.data.get(ANSWERS, ()) if answer not in known]
    fault = "" if new else f"the same question as {before.meta['line']}"
    return replace(before, data={**before.data, ANSWERS: [*known, *new]}) if new else before, fault


def _fits_anything(problem: Problem) -> str:
    return ""


def _room(folder: Path, max_tokens: int) -> Callable[[Problem], str]:
    return partial(_too_long, encoder=load_tokenizer(folder), room=context_of(folder), max_tokens=max_tokens)


def _too_long(problem: Problem, encoder: Tokenizer, room: int, max_tokens: int) -> str:
    """Why a question and its answer do not fit the model's context; "" if they do."""
    length = len(prompt_ids(encoder, problem))
    for answer in problem.data.get(ANSWERS, ()):
        max_tokens = max(max_tokens, len(_answer_ids(problem, answer, encoder)))
    return f"{length} tokens and {max_tokens} more exceed the model's {room}" if length + max_tokens > room else ""
