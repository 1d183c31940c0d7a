"""What is found in one completion: its sums, tries, marks. The terms are defined in `dunwu.eval.emergence`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A coloured stretch of a completion: `kind` is "equation", "verdict", "subgoal", "reflection",
    "give_up" or "answer"; `is_true` is None where truth means nothing."""

    start: int
    end: int
    kind: str
    is_true: bool | None


@dataclass(frozen=True)
class Equation:
    """A stated sum. `backward`: it starts from the target (or from a value needed)."""

    start: int
    end: int
    is_true: bool
    backward: bool


@dataclass(frozen=True)
class Try:
    """An attempt compared with the target.

    Attributes:
        start, end: the text, verdict included.
        claims: what the text says of it: it works (True) or not (False).
        explicit: a verdict was written; False if only the stated value equals the target.
        works: whether it does, by exact arithmetic and the problem's numbers.
        sound: every sum stated in it is right.
        expressions: canonical keys of the whole expressions it tried.
    """

    start: int
    end: int
    claims: bool
    explicit: bool
    works: bool
    sound: bool
    expressions: tuple[str, ...]

    @property
    def is_true_check(self) -> bool:
        """The verdict is right, and so is every sum it rests on."""
        return self.explicit and self.sound and self.claims == self.works

    @property
    def is_false_check(self) -> bool:
        """The verdict is wrong, whatever the sums."""
        return self.explicit and self.claims != self.works


@dataclass(frozen=True)
class Trace:
    """One completion, read.

    Attributes:
        equations, tries: in order of appearance.
        subgoals: subgoals set.
        backtracks: failures followed by another attempt.
        reflections: reflection words, and `waits` those that are "wait" or 等等.
        gave_up: the thought says so.
        answer: text inside `<answer>`; None without one.
        answer_works: the answer reaches the target with every number once; None without an answer
            or for a problem that is not Countdown.
        spans: what `annotate` colours, sorted, not overlapping.
    """

    equations: tuple[Equation, ...] = ()
    tries: tuple[Try, ...] = ()
    subgoals: int = 0
    backtracks: int = 0
    reflections: int = 0
    waits: int = 0
    gave_up: bool = False
    answer: str | None = None
    answer_works: bool | None = None
    spans: tuple[Span, ...] = ()

    @property
    def true_checks(self) -> int:
        """Checks that are right in their sums and in their verdict."""
        return sum(t.is_true_check for t in self.tries)

    @property
    def false_success(self) -> int:
        """Checks that claim to work and do not."""
        return sum(t.is_false_check and t.claims for t in self.tries)

    @property
    def false_failure(self) -> int:
        """Checks that claim not to work and do."""
        return sum(t.is_false_check and not t.claims for t in self.tries)

    @property
    def verifications(self) -> int:
        """Explicit comparisons with the target: true, false and unsound checks together."""
        return sum(t.explicit for t in self.tries)

    @property
    def distinct(self) -> frozenset[str]:
        """Canonical keys of all whole expressions tried."""
        return frozenset(key for t in self.tries for key in t.expressions)
