"""Countdown problems for pages, with the solutions and the plausible failures an author can write down.

Three numbers are enumerated outright. Four or more have hundreds of chains each, so there a
solution is a random chain whose value becomes the target: memory and time stay flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from dunwu.tasks.splits import split_of
from dunwu.types import DunwuError
from dunwu.world.chains import Chain, chains, random_chain
from dunwu.world.knobs import Knobs

PLAUSIBLE = 150
"""Failed tries above this value are rare on pages: nobody hopes for 24 from 12*13."""


@dataclass(frozen=True)
class Puzzle:
    """A problem and what an author knows of it.

    Example:
        >>> puzzle = draw_puzzle(Random(0), Knobs(four_operands=0.0), "train")
        >>> all(chain.value == puzzle.target for chain in puzzle.solutions)
        True
    """

    numbers: tuple[int, ...]
    target: int
    solutions: tuple[Chain, ...]

    def failures(self, dice: Random, count: int) -> list[Chain]:
        """At most `count` different chains that miss the target."""
        if len(self.numbers) <= 3:
            wrong = [chain for chain in chains(tuple(sorted(self.numbers))) if chain.value != self.target]
            plausible = [chain for chain in wrong if chain.value <= PLAUSIBLE] or wrong
            return dice.sample(plausible, min(len(plausible), count))
        drawn = {chain.expression: chain for chain in (random_chain(dice, self.numbers) for _ in range(3 * count))}
        wrong = [chain for chain in drawn.values() if chain.value != self.target]
        return sorted(wrong, key=lambda chain: chain.value > PLAUSIBLE)[:count]

    def answer_wrongly(self, dice: Random) -> Chain:
        """A chain that misses (a solution if, oddly, every chain hits)."""
        return (self.failures(dice, 1) or list(self.solutions))[0]


def draw_puzzle(dice: Random, knobs: Knobs, split: str) -> Puzzle:
    """A problem of `split`, solvable or not as the knob says.

    Raises:
        DunwuError: the ranges of the knobs hold no such problem.
    """
    operands = 4 if dice.random() < knobs.four_operands else 3
    solvable = dice.random() >= knobs.unsolvable
    for _ in range(10_000):
        numbers = tuple(dice.randint(knobs.low, knobs.high) for _ in range(operands))
        if operands > 3 and solvable:
            solution = random_chain(dice, numbers)
            target = solution.value
            if knobs.target_low <= target <= knobs.target_high and split_of(numbers, target) == split:
                return Puzzle(numbers, target, (solution,))
            continue
        ordered = tuple(sorted(numbers))
        targets = _targets(ordered, knobs.target_low, knobs.target_high, split, solvable)
        if targets:
            target = dice.choice(targets)
            return Puzzle(numbers, target, tuple(chain for chain in chains(ordered) if chain.value == target))
    raise DunwuError(
        f"no {'solvable' if solvable else 'unsolvable'} {operands}-number problem found in the world's ranges",
        "widen low/high or target_low/target_high",
    )


@lru_cache(maxsize=4096)
def _targets(numbers: tuple[int, ...], low: int, high: int, split: str, solvable: bool) -> list[int]:
    """Targets of `split` that these numbers can (or cannot) make in whole positive steps."""
    possible = {chain.value for chain in chains(numbers)}
    return [t for t in range(low, high + 1) if (t in possible) == solvable and split_of(numbers, t) == split]
