"""What the generated web contains: every share is a knob, and the knobs are what the studies turn.

Two sets of hands are kept apart: how people on the open web solve Countdown (forum posts), and
how the few pages in the R1-Zero dialogue template do. A base first learns to search from the
former and first answers like the latter; reinforcement moves it from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from random import Random

from dunwu.types import UsageError


@dataclass(frozen=True)
class Hands:
    """Shares of the ways a Countdown problem is treated on a page; normalised by their sum.

    Example:
        >>> Hands(guess=1, worked=1, search=1, backward=1).shares()["guess"]
        0.25
    """

    guess: float = 0.08
    """An answer at once, claimed to work; wrong with `guess_wrong`."""
    worked: float = 0.15
    """A clean solution in steps, always right: shows which expressions solve what."""
    search: float = 0.2
    """Tries, each computed, compared with the target, and abandoned for another."""
    backward: float = 0.57
    """Subgoals: keep one number back, see what is needed, see what the others make."""

    @property
    def given(self) -> bool:
        """Whether a hand has a share at all."""
        return any(getattr(self, f.name) for f in fields(self))

    def shares(self) -> dict[str, float]:
        """Name → probability."""
        total = sum(getattr(self, f.name) for f in fields(self))
        if total <= 0:
            raise UsageError("all hands are zero", "give at least one hand a share above 0")
        return {f.name: getattr(self, f.name) / total for f in fields(self)}


@dataclass(frozen=True)
class Knobs:
    """The mixture of the generated web. Shares are probabilities in [0, 1]."""

    countdown: float = 0.85
    """Share of pages about Countdown; the rest is arithmetic."""
    general: float = 0.0
    """Share of all pages with general knowledge, requests and conversations; the other shares divide what it leaves."""
    knights: float = 0.0
    """Share, of what `general` leaves, about knights and knaves; `countdown` divides what these and the next leave."""
    worked_problems: float = 0.0
    """Share, of what `general` leaves, with a word problem of the task and its working."""
    word_problems: float = 0.15
    """Share of the arithmetic pages that are word problems in prose."""
    chinese: float = 0.15
    """Share of pages in Chinese; the rest is English."""
    template: float = 0.3
    """Share of the Countdown pages, and of the two kinds above, written in the R1-Zero dialogue template."""
    forum_hands: Hands = field(default_factory=Hands)
    """How Countdown pages outside the template solve."""
    template_hands: Hands = field(default_factory=lambda: Hands(guess=0.5, worked=0.1, search=0.15, backward=0.25))
    """How Countdown pages inside the template solve."""
    chinese_hands: Hands = field(default_factory=lambda: Hands(0.0, 0.0, 0.0, 0.0))
    """How Chinese pages solve, in and outside the template; all zero: as the English ones."""
    mixed_thinking: float = 0.0
    """Share of Chinese pages whose author thinks in English, and well: always by `Hands.backward`."""
    guess_wrong: float = 0.8
    """Share of direct guesses that are wrong though they claim to work."""
    hit: float = 0.15
    """Chance that a try of a search is a solution."""
    max_tries: int = 10
    """Longest search in tries."""
    give_up: float = 0.12
    """Chance, after each failed try or subgoal, that the author gives up and answers anyway."""
    repeat: float = 0.02
    """Chance that a try repeats an earlier one of the same page."""
    false_check: float = 0.02
    """Chance that a failed try is claimed to work (a lying check line)."""
    arithmetic_error: float = 0.0
    """Chance that a stated result is off; 0: arithmetic is right except in lying guesses."""
    four_operands: float = 0.04
    """Share of Countdown pages with four numbers; the rest has three."""
    unsolvable: float = 0.0
    """Share of Countdown pages whose target cannot be made; every honest author gives up on those."""
    low: int = 1
    """Smallest number."""
    high: int = 20
    """Largest number."""
    target_low: int = 1
    """Smallest target."""
    target_high: int = 99
    """Largest target."""

    def author(self, dice: Random, chinese: bool, in_template: bool) -> tuple[str, bool]:
        """Who writes a page: the name of a hand (`Hands`), and whether the thinking is in Chinese."""
        if chinese and self.mixed_thinking > 0 and dice.random() < self.mixed_thinking:
            return "backward", False
        hands = self.template_hands if in_template else self.forum_hands
        if chinese and self.chinese_hands.given:
            hands = self.chinese_hands
        shares = hands.shares()
        return dice.choices(list(shares), list(shares.values()))[0], chinese

    def validate(self) -> None:
        """Raise UsageError naming a share outside [0, 1]."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not 0.0 <= value <= 1.0:
                raise UsageError(f"world knob {f.name} = {value} is not a share", "use a value from 0 to 1")
        if self.knights + self.worked_problems > 1:
            raise UsageError("world knobs knights and worked_problems sum to more than 1", "give smaller shares")
        if self.chinese_hands.given:
            self.chinese_hands.shares()
        self.forum_hands.shares()
        self.template_hands.shares()


def without_search(knobs: Knobs | None = None) -> Knobs:
    """The same web, but its authors only guess or show clean solutions: the base that does not wake.

    Example:
        >>> without_search().forum_hands.search
        0.0
    """
    return replace(
        knobs or Knobs(),
        forum_hands=Hands(guess=0.3, worked=0.7, search=0.0, backward=0.0),
        template_hands=Hands(guess=0.85, worked=0.15, search=0.0, backward=0.0),
    )
