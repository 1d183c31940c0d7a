"""A model as the judge: which of two replies is better, and whether an answer is right where no rule can say.

R1 labels its preference pairs by asking a model four times, A and B in random order, and keeping the pairs whose mean
difference is large (arXiv 2501.12948, B.3.2); its stage 4 asks a model whether an answer agrees with the reference.
Here the first order is drawn by seed and the orders then alternate, and the mean is taken over the two orders, not over
the votes, so that a judge who likes what it reads first cannot decide a pair by it.

A verdict that cannot be read (`verdicts.py`) is asked for again with a new seed. Nothing is lost in silence: every
failed reading is kept with its reason.
The judge sees the replies' content, not their thinking. Not covered: more than two replies, rubrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dunwu.rollout.verdicts import (
    Rung,
    Unreadable,
    answer_prompt,
    pair_prompt,
    read_correctness,
    read_preference,
)
from dunwu.types import ChatModel, Message, Preference, SamplingParams, UsageError, derive_seed

Verdict = TypeVar("Verdict")
Pair = tuple[Sequence[Message], Message, Message]
"""A conversation that ends with the user's turn, reply a, reply b."""
Answered = tuple[Sequence[Message], Message, str | None]
"""A conversation, a reply, the reference answer if there is one."""


@dataclass(frozen=True)
class JudgeConfig:
    """How a judge is asked."""

    rounds: int = 4
    """Votes on a pair; half of them (or one more) with each reply first."""
    attempts: int = 3
    """How often a vote is asked for until it can be read."""
    threshold: float = 1.0
    """A pair is kept if its mean difference is larger than this, in points of -5 to 5 (R1: 1)."""
    max_tokens: int = 256
    """Longest reply of the judge."""
    temperature: float = 0.7
    """Of the judge's replies; at 0 a second attempt would repeat the first."""

    def validate(self) -> None:
        """Raise UsageError for a judge that is never asked."""
        for name in ("rounds", "attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"judge.{name} is {getattr(self, name)}", "use 1 or more")
        if self.threshold < 0:
            raise UsageError(f"judge.threshold is {self.threshold}", "use 0 or more")

    @property
    def params(self) -> SamplingParams:
        """How its replies are drawn."""
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature)


@dataclass(frozen=True)
class Vote:
    """One reading of one pair."""

    delta: float
    """Points in favour of reply a, -5 to 5; 0 is a tie."""
    swapped: bool
    """Whether reply b stood first."""
    rung: Rung
    """How the verdict was written."""
    reason: str = ""
    """The judge's own words."""


@dataclass(frozen=True)
class Judgement:
    """All votes on one pair, and why the others could not be read.

    Example:
        >>> both = Judgement((Vote(3.0, False, "json"), Vote(-1.0, True, "json")), rounds=2)
        >>> both.delta, both.flipped, both.one_sided
        (1.0, True, False)
    """

    votes: tuple[Vote, ...]
    rounds: int
    failures: tuple[str, ...] = ()
    """A reason for every reply that could not be read, retried or not."""

    @property
    def by_order(self) -> tuple[float | None, float | None]:
        """Mean points for reply a where it stood first, and where it stood second."""
        return self._mean(False), self._mean(True)

    @property
    def delta(self) -> float | None:
        """Mean points for reply a over the orders that were read; None without a vote."""
        means = [mean for mean in self.by_order if mean is not None]
        return sum(means) / len(means) if means else None

    @property
    def flipped(self) -> bool | None:
        """Whether the winner changes with the order; None if an order is missing."""
        first, second = self.by_order
        return None if first is None or second is None else _sign(first) * _sign(second) < 0

    @property
    def one_sided(self) -> bool:
        """Both orders were asked for, one could be read: its difference still holds the position's share."""
        return self.rounds > 1 and self.delta is not None and None in self.by_order

    def _mean(self, swapped: bool) -> float | None:
        found = [vote.delta for vote in self.votes if vote.swapped == swapped]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class AnswerJudgement:
    """Whether a reply is right; `correct` is None if no verdict could be read."""

    correct: bool | None
    analysis: str = ""
    rung: Rung | None = None
    failures: tuple[str, ...] = ()


def judge_pairs(
    judge: ChatModel, pairs: Sequence[Pair], config: JudgeConfig | None = None, seed: int = 0
) -> list[Judgement]:
    """A judgement of every pair, in order.

    Votes depend on the judge, the pair's text and the seed, not on the pair's place in the list.

    Raises:
        DunwuError: the judge cannot be reached.
    """
    config = config or JudgeConfig()
    asked, swaps = [], []
    for messages, a, b in pairs:
        swap_first = derive_seed("judge order", seed, pair_prompt(messages, a, b)) % 2 == 1
        for turn in range(config.rounds):
            swapped = swap_first != (turn % 2 == 1)
            first, second = (b, a) if swapped else (a, b)
            asked.append((pair_prompt(messages, first, second), derive_seed("judge", seed, turn)))
            swaps.append(swapped)
    answers = iter(zip(_ask(judge, asked, config, read_preference), swaps, strict=True))
    judgements = []
    for _ in pairs:
        votes: list[Vote] = []
        failures: list[str] = []
        for _ in range(config.rounds):
            (found, faults), swapped = next(answers)
            failures += faults
            if found is not None:
                (points, reason), rung = found
                votes.append(Vote(-points if swapped else points, swapped, rung, reason))
        judgements.append(Judgement(tuple(votes), config.rounds, tuple(failures)))
    return judgements


def judge_answers(
    judge: ChatModel, items: Sequence[Answered], config: JudgeConfig | None = None, seed: int = 0
) -> list[AnswerJudgement]:
    """Whether each reply's answer agrees with its reference, in order (R1's stage 4); without a reference, whether the reply
    does well what was asked. One vote each."""
    config = config or JudgeConfig()
    asked = [(answer_prompt(*item), derive_seed("judge answer", seed)) for item in items]
    judgements = []
    for found, failures in _ask(judge, asked, config, read_correctness):
        if found is None:
            judgements.append(AnswerJudgement(None, failures=failures))
        else:
            (correct, analysis), rung = found
            judgements.append(AnswerJudgement(correct, analysis, rung, failures))
    return judgements


def preferences(
    pairs: Sequence[Pair], judgements: Sequence[Judgement], threshold: float = 1.0
) -> tuple[list[Preference], Counter[str]]:
    """The pairs with a clear winner, as preference rows, and how many were left out for which reason."""
    kept: list[Preference] = []
    dropped: Counter[str] = Counter()
    for (messages, a, b), judgement in zip(pairs, judgements, strict=True):
        delta = judgement.delta
        if delta is None:
            dropped["no verdict could be read"] += 1
        elif judgement.one_sided:
            dropped["read in one order only"] += 1
        elif abs(delta) <= threshold:
            dropped["no clear winner"] += 1
        else:
            chosen, rejected = (a, b) if delta > 0 else (b, a)
            kept.append(Preference(tuple(messages), chosen, rejected, {"delta": abs(delta)}))
    return kept, dropped


def judge_figures(judgements: Sequence[Judgement]) -> dict[str, float]:
    """The judge's own record: what was read, how, and how much the order decided.

    `position_flips`: share of the pairs read in both orders whose winner changes with the order. `first_wins`: share of
    the votes with a winner that went to the reply read first; 0.5 for a judge without position bias.
    """
    votes = [vote for judgement in judgements for vote in judgement.votes]
    decided = [vote for vote in votes if vote.delta]
    first = sum((vote.delta > 0) != vote.swapped for vote in decided)
    flips = [judgement.flipped for judgement in judgements if judgement.flipped is not None]
    figures = {
        "pairs": float(len(judgements)),
        "votes": float(len(votes)),
        "lost_votes": float(sum(judgement.rounds - len(judgement.votes) for judgement in judgements)),
        "ties": float(len(votes) - len(decided)),
        "position_flips": sum(flips) / len(flips) if flips else 0.0,
        "first_wins": first / len(decided) if decided else 0.5,
    }
    figures |= {f"read/{rung}": float(n) for rung, n in sorted(Counter(vote.rung for vote in votes).items())}
    failures = Counter(reason for judgement in judgements for reason in judgement.failures)
    return figures | {f"failed/{reason}": float(n) for reason, n in sorted(failures.items())}


Reader = Callable[[str], tuple[Verdict, Rung]]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _ask(
    judge: ChatModel, asked: Sequence[tuple[str, int]], config: JudgeConfig, read: Reader[Verdict]
) -> list[tuple[tuple[Verdict, Rung] | None, tuple[str, ...]]]:
    """What was read of each (prompt, seed), and the reasons of the attempts that could not be read."""
    found: list[tuple[Verdict, Rung] | None] = [None] * len(asked)
    failures: list[list[str]] = [[] for _ in asked]
    pending = list(range(len(asked)))
    for attempt in range(config.attempts):
        if not pending:
            break
        conversations = [[Message("user", asked[place][0])] for place in pending]
        seeds = [derive_seed("judge attempt", asked[place][1], attempt) for place in pending]
        for place, reply in zip(pending, judge.reply(conversations, seeds, config.params), strict=True):
            try:
                found[place] = read(reply.content)
            except Unreadable as error:
                failures[place].append(str(error))
        pending = [place for place in pending if found[place] is None]
    return [(verdict, tuple(reasons)) for verdict, reasons in zip(found, failures, strict=True)]
