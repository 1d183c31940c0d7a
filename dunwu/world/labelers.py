"""People who compare replies: a hidden true utility, and labelers who see it through noise of their own.

A labeler prefers reply a to reply b with the chance σ((v_a − v_b) / τ), where v is the utility as this labeler values it and
τ the temperature: Bradley and Terry's model. A ranking of K replies is repeated choice among those left, by the same v / τ
(Plackett and Luce's model), so any two of them stand in it as a single comparison would have put them. Since the chances
are known, so is the best that any predictor of the labels can do (`bayes_accuracy`): a reward model is held to that, not to 1.

Every draw is a function of names: crowd's seed, labeler, conversation, replies. Not covered: labelers who learn, tire,
answer the same question differently on purpose, or are fooled by a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from dunwu.types import ChatExample, Message, Preference, Problem, Ranking, UsageError, derive_seed
from dunwu.world.general import General

GOOD = 0.5
"""The utility from which on a reply is more likely called good than not."""

STRENGTH = 0.25
"""Difference of felt values that is worth one step of a pair's margin."""


@dataclass(frozen=True)
class Labeler:
    """One person: how noisy, and with what taste of their own."""

    name: str
    temperature: float = 0.2
    """τ: the difference of values that is preferred with odds e : 1; 0 never errs, and a tie is a coin's toss."""
    length_taste: float = 0.0
    """Value added for every 100 characters of a reply, whatever it says."""

    def value(self, utility: float, text: str) -> float:
        """The worth of a reply to this labeler.

        Example:
            >>> Labeler("Ann", length_taste=0.5).value(0.25, "x" * 50)
            0.5
        """
        return utility + self.length_taste * len(text) / 100

    def chance(self, difference: float) -> float:
        """P(a over b) where their values differ by `difference`.

        Example:
            >>> ann = Labeler("Ann", temperature=0.5)
            >>> round(ann.chance(0.5 * math.log(3)), 6), Labeler("Sure", 0.0).chance(1e-9), Labeler("Sure", 0.0).chance(0.0)
            (0.75, 1.0, 0.5)
        """
        if not self.temperature:
            return 0.5 + 0.5 * ((difference > 0) - (difference < 0))
        x = difference / self.temperature
        return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))

    def felt(self, values: Sequence[float], dice: Random) -> list[tuple[float, float]]:
        """What the labeler makes of each value this time: (value + τ · Gumbel noise, the noise that breaks a tie).

        The order of these is Plackett and Luce's repeated choice: the largest of v + τ · Gumbel is a draw from
        softmax(v / τ), the next a draw from the softmax over those left.

        Example:
            >>> [value for value, _ in Labeler("Sure", temperature=0.0).felt([0.1, 0.9], Random(0))]
            [0.1, 0.9]
        """
        noise = [-math.log(-math.log(dice.random() or 5e-324)) for _ in values]
        return [(value + self.temperature * drawn, drawn) for value, drawn in zip(values, noise, strict=True)]


class Crowd:
    """Labelers who share the work: every row is one labeler's, drawn by its name.

    Args:
        labelers: who they are; names differ.
        seed: of all they do.
        general: whose truth (`helpful`) they see; the world's exercise.

    Raises:
        UsageError: nobody, equal names, a negative temperature.

    Example:
        >>> crowd = Crowd.of(3, temperature=0.2, seed=0)
        >>> pair = next(crowd.pairs(1))
        >>> len(pair.meta["truth"]), pair.meta["labeler"] in [labeler.name for labeler in crowd.labelers]
        (2, True)
    """

    def __init__(self, labelers: Sequence[Labeler], seed: int = 0, general: General | None = None) -> None:
        self.labelers, self.seed, self.general = tuple(labelers), seed, general or General()
        names = [labeler.name for labeler in labelers]
        if not names or len(set(names)) < len(names):
            raise UsageError(
                f"{len(names)} labelers with {len(set(names))} names", "give at least one, each its own name"
            )
        if any(not labeler.temperature >= 0 for labeler in labelers):
            raise UsageError("a labeler's temperature is below 0", "0 never errs, above it noise grows")

    @classmethod
    def of(
        cls,
        count: int = 5,
        temperature: float = 0.2,
        spread: float = 0.0,
        length_taste: float = 0.0,
        seed: int = 0,
        general: General | None = None,
    ) -> Crowd:
        """`count` labelers whose temperatures lie evenly from τ·(1 − spread) to τ·(1 + spread), all with the same taste."""
        steps = [2 * n / (count - 1) - 1 if count > 1 else 0.0 for n in range(count)]
        people = [Labeler(f"labeler-{n}", temperature * (1 + spread * s), length_taste) for n, s in enumerate(steps)]
        return cls(people, seed, general)

    # ---- labels of given replies

    def truth(self, problem: Problem, reply: Message) -> float:
        """The hidden utility of a reply in [0, 1]: `helpful` of `dunwu.world.general_judge`."""
        return float(self.general.judge(problem, reply.content).rewards["helpful"])

    def rank(self, problem: Problem, replies: Sequence[Message], draw: int = 0) -> Ranking:
        """The replies as one labeler ranks them, best first; equal texts are one reply.

        Args:
            draw: another number is another opinion, perhaps of another labeler.

        Returns:
            `meta`: "truth" utilities in the order of the ranking, "felt", what the labeler made of them, "labeler", "problem", "family".

        Raises:
            UsageError: fewer than two different replies.
        """
        different = _different(replies)
        if len(different) < 2:
            raise UsageError(f"{len(different)} different replies cannot be ranked", "give two or more")
        texts = [reply.content for reply in different]
        labeler, dice = self._asked("rank", problem, draw, *sorted(texts))
        truths = [self.truth(problem, reply) for reply in different]
        # In the texts' own order, so that who is asked in another order says the same.
        places = sorted(range(len(texts)), key=texts.__getitem__)
        felt = dict(zip(places, labeler.felt([labeler.value(truths[n], texts[n]) for n in places], dice), strict=True))
        best = sorted(places, key=felt.__getitem__, reverse=True)
        meta = {
            "truth": [truths[n] for n in best],
            "felt": [round(felt[n][0], 4) for n in best],
            "labeler": labeler.name,
            "problem": problem.id,
            "family": problem.meta.get("family"),
        }
        return Ranking(problem.messages, tuple(different[n] for n in best), tuple(range(len(best))), meta)

    def compare(self, problem: Problem, first: Message, second: Message, draw: int = 0) -> Preference:
        """A ranking of two, as a pair; `meta["margin"]` says how much better the labeler finds the chosen one, from 0,
        negligibly, to 3, significantly (the four words of Llama 2's labelers, arXiv 2307.09288, 3.2.1)."""
        return _pair(self.rank(problem, (first, second), draw))

    def grade(self, problem: Problem, reply: Message, draw: int = 0) -> ChatExample:
        """Whether a reply is good, with the chance σ((v − GOOD) / τ): a labelled conversation, `meta["label"]`."""
        labeler, dice = self._asked("grade", problem, draw, reply.content)
        truth = self.truth(problem, reply)
        good = dice.random() < labeler.chance(labeler.value(truth, reply.content) - GOOD)
        meta = {"label": int(good), "utility": truth, "labeler": labeler.name, "problem": problem.id}
        return ChatExample((*problem.messages, reply), meta)

    def _asked(self, what: str, problem: Problem, draw: int, *texts: str) -> tuple[Labeler, Random]:
        asked = [message.content for message in problem.messages]
        dice = Random(derive_seed("labeler", self.seed, what, problem.id, draw, *asked, *texts))
        return dice.choice(self.labelers), dice

    # ---- what can be known of the labels

    def chance(self, truths: Sequence[float], texts: Sequence[str]) -> float:
        """P(the first of two replies is preferred) where it is not known who will be asked: the labelers' mean."""
        (u, v), (a, b) = truths, texts
        return sum(p.chance(p.value(u, a) - p.value(v, b)) for p in self.labelers) / len(self.labelers)

    def good_chance(self, truth: float, text: str) -> float:
        """P(a reply is called good), likewise."""
        return sum(p.chance(p.value(truth, text) - GOOD) for p in self.labelers) / len(self.labelers)

    # ---- labelled data of the world

    def pairs(self, n: int, split: str = "train", start: int = 0) -> Iterator[Preference]:
        """`n` labelled pairs, each of a request of its own; row i, counted from `start`, depends on (seed, split, i) alone."""
        yield from map(_pair, self.rankings(n, 2, split, start))

    def rankings(self, n: int, replies: int = 4, split: str = "train", start: int = 0) -> Iterator[Ranking]:
        """`n` rankings of `replies` replies, fewer where a request does not have as many different ones."""
        for index, problem in self._problems(n, split, start):
            yield self.rank(problem, written(self.general, problem, replies, Random(self._name(split, index))))

    def grades(self, n: int, split: str = "train", start: int = 0) -> Iterator[ChatExample]:
        """`n` replies called good or not, each to a request of its own."""
        for index, problem in self._problems(n, split, start):
            yield self.grade(problem, written(self.general, problem, 1, Random(self._name(split, index)))[0])

    def _problems(self, n: int, split: str, start: int) -> Iterator[tuple[int, Problem]]:
        for index in range(start, start + n):
            yield index, self.general.draw(split, derive_seed("labelled requests", self.seed), index)

    def _name(self, split: str, index: int) -> int:
        return derive_seed("labelled replies", self.seed, split, index)


def written(general: General, problem: Problem, count: int, dice: Random) -> list[Message]:
    """`count` different replies of different kinds, fewer if the problem has no more; in no order of merit."""
    kinds = list(general.kinds(problem))
    dice.shuffle(kinds)
    return _different([general.reply(problem, kind, dice) for kind in kinds])[:count]


def _pair(ranking: Ranking) -> Preference:
    """A ranking of two."""
    chosen, rejected = ranking.replies
    high, low = ranking.meta["felt"]
    margin = min(3, int((high - low) / STRENGTH))
    return Preference(ranking.messages, chosen, rejected, {**ranking.meta, "margin": margin})


def _different(replies: Sequence[Message]) -> list[Message]:
    """The first of every text."""
    first: dict[str, Message] = {}
    for reply in replies:
        first.setdefault(reply.content, reply)
    return list(first.values())


def bayes_accuracy(chances: Sequence[float]) -> float:
    """The share of noisy labels that the best possible predictor gets right: E[max(p, 1 − p)].

    Args:
        chances: p of each case, the chance that its label is "the first one" (or "good").

    Raises:
        UsageError: no cases.

    Example:
        >>> bayes_accuracy([0.75, 0.25, 0.5, 1.0])  # (0.75 + 0.75 + 0.5 + 1) / 4
        0.75
    """
    if not chances:
        raise UsageError("no cases to be right about", "give at least one")
    return math.fsum(max(p, 1 - p) for p in chances) / len(chances)


def agreement(chances: Sequence[float]) -> float:
    """How often two labelers drawn for the same case say the same: E[p² + (1 − p)²]; people reach about 0.73 (InstructGPT, 3.4).

    Example:
        >>> agreement([0.5, 1.0])
        0.75
    """
    if not chances:
        raise UsageError("no cases to agree on", "give at least one")
    return math.fsum(p * p + (1 - p) * (1 - p) for p in chances) / len(chances)
