"""Rejection sampling: which samples become training data, and why the others do not.

R1's rules (arXiv 2501.12948, B.3.3): several samples per prompt, keep correct ones only; drop thinking that mixes languages,
has long paragraphs or code blocks. Ours add: drop what was cut off, is ill formed, or goes round in circles. Every sample that
comes in is either kept or counted under one reason, the first that applies. Not covered: rewriting (`dunwu.tasks.rewrite`), a
model's judgement (`judge.py`: it comes in here as a verdict).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dunwu.tasks.expression import SPACE
from dunwu.tasks.formats import THINK, THINK_END
from dunwu.tasks.frames import language_of
from dunwu.tasks.language import consistency
from dunwu.types import ChatExample, Completion, Group, Message, Problem, Rollout, UsageError, Verdict, derive_seed

LONGEST_PERIOD = 64
"""Words of a repeated passage that are still noticed."""
SHORTEST_LOOP = 12
"""Words a repetition covers at least; "1+1+1+1" is arithmetic."""
_WORDS = re.compile(r"[^\W\d_\u3400-\u9fff]+|\d+|[\u3400-\u9fff]|[^\w\s]")


@dataclass(frozen=True)
class SelectionRules:
    """Which samples are kept."""

    per_prompt: int = 1
    """Most samples kept of one prompt."""
    prefer: Literal["short", "random"] = "short"
    """Which, if there are more: the shortest, or drawn by seed."""
    correct: bool = True
    """Keep only what the verifier, or the judge, finds right."""
    well_formed: bool = True
    """Keep only what earned the whole format reward, where there is one."""
    language: float = 0.9
    """Least share of the thinking's words in the question's language; 0 allows any. Unchecked if no language is known."""
    paragraph: int = 1200
    """Longest paragraph of the thinking in characters; 0 allows any."""
    code: bool = False
    """Whether the thinking may hold code blocks."""
    repeats: int = 4
    """A passage this often in a row, or a line this often at all, is a loop; 0 allows any."""
    seed: int = 0
    """Of the random choice."""

    def validate(self) -> None:
        """Raise UsageError for rules that keep nothing."""
        if self.per_prompt < 1:
            raise UsageError(f"rules.per_prompt is {self.per_prompt}", "use 1 or more")
        if not 0 <= self.language <= 1:
            raise UsageError(f"rules.language is {self.language}", "it is a share: 0 to 1")
        if self.repeats == 1 or min(self.repeats, self.paragraph) < 0:
            raise UsageError(f"rules: repeats {self.repeats}, paragraph {self.paragraph}", "0, or repeats from 2 on")
        if self.prefer not in ("short", "random"):
            raise UsageError(f"rules.prefer is {self.prefer!r}", "short or random")


class Kept(NamedTuple):
    """One kept sample. `text` as it was written; `thinking` (None without a think block) and `content`, its parts."""

    problem: Problem
    text: str
    thinking: str | None
    content: str
    verdict: Verdict
    completion: Completion | None = None
    """With the ids as they were sampled, where the sampler gave some."""

    @property
    def answer(self) -> str | None:
        """What stood in its answer block."""
        return self.verdict.answer


@dataclass(frozen=True)
class Selection:
    """What was kept, in the groups' order, and how many samples were dropped for which reason."""

    kept: tuple[Kept, ...]
    dropped: Counter[str]
    samples: int
    """Samples that came in: the kept and the dropped."""
    prompts: int
    """Prompts that came in."""
    barren: int
    """Prompts of which nothing was kept."""

    def figures(self) -> dict[str, float]:
        """The numbers, by name, for a log or a headline."""
        counts = {"prompts": self.prompts, "barren_prompts": self.barren, "samples": self.samples}
        counts |= {"kept": len(self.kept)} | {f"dropped/{why}": n for why, n in sorted(self.dropped.items())}
        return {name: float(number) for name, number in counts.items()}


def select(groups: Sequence[Group], rules: SelectionRules | None = None) -> Selection:
    """Apply the rules; groups of one prompt (the same problem id) share its `per_prompt`.

    The verdict's "accuracy" says whether a sample is correct: put the judge's there where no rule can tell.
    """
    rules = rules or SelectionRules()
    rules.validate()
    dropped: Counter[str] = Counter()
    by_prompt: dict[tuple[str, str], dict[str, Kept]] = {}
    for group in groups:
        fine = by_prompt.setdefault((group.problem.task, group.problem.id), {})
        for rollout in group.rollouts:
            text = rollout.completion.text
            reason = fault(group.problem, rollout, rules) or ("duplicate" if text.strip(SPACE) in fine else None)
            if reason is not None:
                dropped[reason] += 1
            else:
                fine[text.strip(SPACE)] = Kept(group.problem, text, *parts(text), rollout.verdict, rollout.completion)
    kept: list[Kept] = []
    for (task, name), fine in by_prompt.items():
        ranked = sorted(fine.values(), key=lambda sample: (len(sample.text), sample.text))
        if rules.prefer == "random":
            random.Random(derive_seed("select", rules.seed, task, name)).shuffle(ranked)
        kept += ranked[: rules.per_prompt]
        if surplus := ranked[rules.per_prompt :]:
            dropped["more than wanted of one prompt"] += len(surplus)
    fruitful = {(sample.problem.task, sample.problem.id) for sample in kept}
    samples = sum(len(group.rollouts) for group in groups)
    return Selection(tuple(kept), dropped, samples, len(by_prompt), len(by_prompt) - len(fruitful))


def fault(problem: Problem, rollout: Rollout, rules: SelectionRules) -> str | None:
    """The first reason against a sample; None if there is none."""
    completion, verdict = rollout.completion, rollout.verdict
    if verdict.status in ("error", "timeout"):
        return f"verifier {verdict.status}"
    if completion.finish_reason == "length":
        return "cut off"
    if rules.correct and verdict.rewards.get("accuracy") != 1.0:
        return "wrong" if "accuracy" in verdict.rewards else "not judged"
    if rules.well_formed and verdict.rewards.get("format", 1.0) != 1.0:
        return "ill formed"
    thinking, content = parts(completion.text)
    if not content.strip(SPACE):
        return "empty reply"
    language = language_of(problem)
    if language is not None and consistency(thinking or "", language) < rules.language:
        return "mixed language"
    if rules.paragraph and any(len(part) > rules.paragraph for part in paragraphs(thinking or "")):
        return "long paragraph"
    if not rules.code and "```" in (thinking or ""):
        return "code block"
    if rules.repeats and (loops(thinking or "", rules.repeats) or loops(content, rules.repeats)):
        return "repetition"
    return None


def parts(text: str) -> tuple[str | None, str]:
    """A completion's thinking, None without `</think>`, and what follows it. The prompt may have opened the thinking.

    Example:
        >>> parts("<think>3*8=24</think>\\nIt is 24.")
        ('3*8=24', 'It is 24.')
        >>> parts("Hello!")
        (None, 'Hello!')
    """
    thinking, closed, content = text.rpartition(THINK_END)
    if not closed:
        return None, text.strip(SPACE)
    return thinking.strip(SPACE).removeprefix(THINK).strip(SPACE), content.strip(SPACE)


def paragraphs(text: str) -> list[str]:
    """The parts of a text between blank lines."""
    return [part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def loops(text: str, repeats: int) -> bool:
    """Whether a passage of up to 64 words comes `repeats` times in a row, or a line of 3 words or more that often at all.

    Time is linear in the text, times 64. A CJK ideograph, a number and a punctuation mark are words here.

    Example:
        >>> loops("no, no, no, no, no, no, no", 4), loops("1+1+1+1=4", 4)
        (True, False)
    """
    lines = Counter(line.strip() for line in text.splitlines())
    if any(count >= repeats and len(_WORDS.findall(line)) >= 3 for line, count in lines.items()):
        return True
    words = _WORDS.findall(text)
    for period in range(1, min(LONGEST_PERIOD, len(words) // repeats) + 1):
        needed, run = max(period * (repeats - 1), SHORTEST_LOOP - period), 0
        for place in range(period, len(words)):
            run = run + 1 if words[place] == words[place - period] else 0
            if run >= needed and any(map(str.isalnum, words[place - period + 1 : place + 1])):
                return True
    return False


def example(sample: Kept) -> ChatExample:
    """A kept sample as a row of chat data: the conversation, or else the prompt as the user's turn, and the reply."""
    asked = sample.problem.messages or (Message("user", sample.problem.prompt),)
    reply = Message("assistant", sample.content, sample.thinking or None)
    meta = {"task": sample.problem.task, "id": sample.problem.id}
    return ChatExample((*asked, reply), {**sample.problem.meta, **meta})


class Mixed(NamedTuple):
    """Reasoning and general rows in one shuffled list, and how many of each were cut to keep the ratio."""

    rows: tuple[ChatExample, ...]
    reasoning: int
    general: int
    cut: dict[str, int]


def mix(reasoning: Sequence[ChatExample], general: Sequence[ChatExample], ratio: float = 3.0, seed: int = 0) -> Mixed:
    """`ratio` rows of reasoning to one of general, as many as there are (R1: 600k to 200k, 3:1).

    Whichever there is too much of is thinned by seed, and counted; if one side is empty, the other is kept whole.

    Raises:
        UsageError: the ratio is not above 0.
    """
    if not ratio > 0:
        raise UsageError(f"ratio is {ratio}", "reasoning rows for each general row: above 0, e.g. 3")
    few, many = len(reasoning), len(general)
    if few and many:
        many = min(many, max(1, round(few / ratio)))
        few = min(few, max(1, round(many * ratio)))
    dice = random.Random(derive_seed("mix", seed))
    rows = [*dice.sample(list(reasoning), few), *dice.sample(list(general), many)]
    dice.shuffle(rows)
    return Mixed(tuple(rows), few, many, {"reasoning": len(reasoning) - few, "general": len(general) - many})
