"""Countdown: make the target from the given numbers, each used exactly once, with + - * /.

Problems come from a seed, verdicts from exact arithmetic. Two rewards, as in R1-Zero: accuracy (the expression in the
answer block uses the given numbers once each and equals the target) and format (`formats.py`); no partial credit.
The verifier does not look at the thinking. Not covered: problems from a file (`files.py`).
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from math import isfinite
from typing import Any, Literal

from dunwu.tasks.expression import SPACE, Evaluated, ExpressionError, evaluate
from dunwu.tasks.formats import ANSWER, ANSWER_END, THINK, THINK_END, split_completion
from dunwu.tasks.solver import MAX_OPERANDS, reachable, solve, value_table
from dunwu.tasks.splits import SPLITS, check_draw, count_multisets, multiset, permuted, split_of
from dunwu.tasks.templates import (
    TEMPLATE_EN,
    TEMPLATE_ZH,
    TEMPLATES,
    Language,
    check_template,
    opens_think,
    question,
    render,
)
from dunwu.types import DunwuError, Problem, UsageError, Verdict, derive_seed

__all__ = ["TEMPLATE_EN", "TEMPLATE_ZH", "Countdown", "CountdownConfig", "question", "solve", "split_of", "value_table"]

MAX_GIVEN = 16
"""Most numbers a problem to be scored may give."""
MAX_NUMBER = 10**9 - 1
"""Largest number a problem may give: `expression.MAX_DIGITS` nines."""
MAX_TARGET = 10**12
"""Largest target a generated problem may have."""
LISTABLE = 500_000
"""Up to this many candidates, of at most 3 numbers, the splits are listed in full; beyond, they are drawn from."""

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (float, int),
    "bool | None": (bool, type(None)),
    "str | None": (str, type(None)),
    "Language": (str,),
    "Solvable": (str,),
}
"""What a field's annotation allows; a bool is no int here."""

Solvable = Literal["only", "any", "never"]
Pair = tuple[tuple[int, ...], int]
"""A problem in canonical form: sorted numbers, target."""


@dataclass(frozen=True)
class CountdownConfig:
    """Which problems are asked, how they are put, and what the rewards weigh."""

    operands: int = 3
    """How many numbers a problem gives, 2 to 6."""
    low: int = 1
    """Smallest number given."""
    high: int = 20
    """Largest number given."""
    target_low: int = 1
    """Smallest target."""
    target_high: int = 99
    """Largest target."""
    solvable: Solvable = "only"
    """Whether problems have a solution: all, as it comes, none."""
    min_solutions: int | None = None
    """Fewest distinct solutions (`solver.solve`) of a problem; more make it easier."""
    max_solutions: int | None = None
    """Most distinct solutions of a problem."""
    language: Language = "en"
    """Language of the question and of the default template: "en" or "zh"."""
    prompt_template: str | None = None
    """Template text with {question}, or {numbers} and {target}; None takes the language's own."""
    think_opened: bool | None = None
    """Whether the prompt has already opened <think>; None reads it off the template's end."""
    accuracy_weight: float = 1.0
    """Weight of the accuracy reward in the sum."""
    format_weight: float = 1.0
    """Weight of the format reward in the sum."""

    def __post_init__(self) -> None:
        for field in fields(self):  # options reach this from files and command lines, where nothing checks types
            value, allowed = getattr(self, field.name), _TYPES[str(field.type)]
            if type(value) not in allowed:
                names = " or ".join(kind.__name__.replace("NoneType", "null") for kind in allowed)
                raise UsageError(f"countdown: {field.name} = {value!r} has the wrong type", f"give {names}")
        if not 2 <= self.operands <= MAX_OPERANDS:
            raise UsageError(f"countdown: operands = {self.operands}", f"2 to {MAX_OPERANDS}")
        if not 0 <= self.low <= self.high <= MAX_NUMBER:
            raise UsageError(f"countdown: numbers from {self.low} to {self.high}", f"0 <= low <= high <= {MAX_NUMBER}")
        if not -MAX_TARGET <= self.target_low <= self.target_high <= MAX_TARGET:
            raise UsageError(
                f"countdown: targets from {self.target_low} to {self.target_high}", f"low <= high, within ±{MAX_TARGET}"
            )
        if self.solvable not in ("only", "any", "never"):
            raise UsageError(f"countdown: solvable = {self.solvable!r}", "only, any or never")
        if self.language not in TEMPLATES:
            raise UsageError(f"countdown: language = {self.language!r}", f"one of {', '.join(TEMPLATES)}")
        fewest, most = self.solution_range
        if fewest > most or most < 0:
            raise UsageError(
                f"countdown: solvable = {self.solvable!r} leaves no room for {self.min_solutions} to "
                f"{self.max_solutions} solutions",
                "min_solutions <= max_solutions, and neither with solvable = 'never'",
            )
        if not (isfinite(self.accuracy_weight) and isfinite(self.format_weight)):
            raise UsageError(
                f"countdown: reward weights {self.accuracy_weight} and {self.format_weight}", "give finite numbers"
            )
        if self.prompt_template is not None:
            check_template(self.prompt_template)

    @property
    def solution_range(self) -> tuple[float, float]:
        """Fewest and most distinct solutions a problem may have, all knobs together."""
        fewest = 1 if self.solvable == "only" else 0
        most = 0 if self.solvable == "never" else float("inf")
        return (
            max(fewest, self.min_solutions if self.min_solutions is not None else 0),
            min(most, self.max_solutions if self.max_solutions is not None else float("inf")),
        )

    @property
    def counts_solutions(self) -> bool:
        """Whether solutions must be counted, not only known to exist."""
        return self.min_solutions is not None or self.max_solutions is not None


class Countdown:
    """The task: `dunwu.types.Task` for Countdown.

    Example:
        >>> task = Countdown()
        >>> problem = task.problem("test", seed=0, index=0)
        >>> task.score(problem, task.gold(problem)).rewards
        {'accuracy': 1.0, 'format': 1.0}
    """

    name = "countdown"

    def __init__(self, config: CountdownConfig | None = None) -> None:
        self.config = config = config if config is not None else CountdownConfig()
        template = config.prompt_template
        self.template = check_template(TEMPLATES[config.language] if template is None else template)
        self.think_opened = opens_think(self.template) if config.think_opened is None else config.think_opened

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The `index`-th problem of a seed's ordering of a split. Where the split can be listed (up to 3 operands from
        small ranges), all of it comes once before anything comes twice; elsewhere the first thousand differ.

        Raises:
            UsageError: unknown split, negative index. DunwuError: the config leaves the split empty.
        """
        check_draw(split, index)
        numbers, target = self._draw(split, seed, index)
        shown = list(numbers)
        random.Random(derive_seed(self.name, "order", split, seed, index)).shuffle(shown)
        return self.make_problem(shown, target, {"split": split, "seed": seed, "index": index})

    def make_problem(self, numbers: Sequence[int], target: int, meta: Mapping[str, Any] | None = None) -> Problem:
        """The problem of these numbers, in this order, and this target; its id names its canonical form."""
        identity = f"{self.name}-{'-'.join(map(str, sorted(numbers)))}-{target}"
        data = {"numbers": list(numbers), "target": target}
        return Problem(self.name, identity, data, self.prompt(numbers, target), meta or {})

    def prompt(self, numbers: Sequence[int], target: int) -> str:
        """The text the model continues; it does not end in white space."""
        return render(self.template, numbers, target, self.config.language)

    def gold(self, problem: Problem) -> str:
        """A completion with the shortest solution and the thinking that checks it.

        Raises:
            DunwuError: the problem is malformed or has no solution.
        """
        numbers, target, fault = read_problem(problem.data)
        if fault is not None:
            raise DunwuError(f"problem {problem.id}: {fault}", 'give {"numbers": [3, 7, 12], "target": 24}')
        if len(numbers) > MAX_OPERANDS:
            raise DunwuError(f"problem {problem.id}: {len(numbers)} numbers", f"at most {MAX_OPERANDS} can be solved")
        solutions = solve(numbers, target, limit=1)
        if not solutions:
            raise DunwuError(f"problem {problem.id} has no solution", "only solvable problems have a gold answer")
        opening = "" if self.think_opened else THINK
        return f"{opening}{solutions[0]}={target}{THINK_END}\n{ANSWER}{solutions[0]}{ANSWER_END}"

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """(value, whether it uses the given numbers exactly) of an answer; None if it cannot be parsed."""
        numbers, _, fault = read_problem(problem.data)
        if answer is None or fault is not None:
            return None
        try:
            found = evaluate(answer)
        except ExpressionError:
            return None
        return found.value, sorted(found.numbers) == sorted(numbers)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """Judge one completion. Status "unparsable": no answer that can be worked out, accuracy 0; "error": the
        problem itself is malformed, no rewards. A wrong or illegal but readable expression is "ok" with accuracy 0."""
        numbers, target, fault = read_problem(problem.data)
        if fault is not None:
            return Verdict({}, 0.0, "error", fault)
        parsed = split_completion(completion, self.think_opened)
        formatted = 1.0 if parsed.well_formed else 0.0
        if parsed.answer is None:
            return self._verdict(0.0, formatted, True, parsed.reason, None)
        try:
            found = evaluate(parsed.answer)
        except ExpressionError as error:
            return self._verdict(0.0, formatted, True, f"answer: {error}", None)
        answer = parsed.answer.strip(SPACE)
        fault = _wrong(found, numbers, target)
        if fault is not None:
            return self._verdict(0.0, formatted, False, fault, answer)
        return self._verdict(1.0, formatted, False, parsed.reason, answer)

    def _verdict(
        self, accuracy: float, formatted: float, unparsable: bool, reason: str | None, answer: str | None
    ) -> Verdict:
        config = self.config
        reward = config.accuracy_weight * accuracy + config.format_weight * formatted
        rewards = {"accuracy": accuracy, "format": formatted}
        return Verdict(rewards, reward, "unparsable" if unparsable else "ok", reason, answer)

    def _draw(self, split: str, seed: int, index: int) -> Pair:
        """The canonical problem at (split, seed, index)."""
        if not _can_list(self.config):
            return _sample(self.config, split, seed, index)
        listed = _listed(self.config)[split]
        if not listed:
            raise _empty(self.config, split)
        lap, place = divmod(index, len(listed))
        return listed[permuted(place, len(listed), self.name, split, seed, lap)]


def read_problem(data: Mapping[str, Any]) -> tuple[list[int], int, str | None]:
    """The numbers and target of a problem's data, and what is wrong with them."""
    numbers, target = data.get("numbers"), data.get("target")
    if not isinstance(numbers, list | tuple) or not 1 <= len(numbers) <= MAX_GIVEN:
        return [], 0, f'problem: "numbers" is not a list of 1 to {MAX_GIVEN} integers'
    for number in numbers:
        if type(number) is not int or not 0 <= number <= MAX_NUMBER:  # bool is an int to isinstance
            return [], 0, f'problem: "numbers" holds something else than integers from 0 to {MAX_NUMBER}'
    if type(target) is not int:
        return [], 0, 'problem: "target" is not an integer'
    return list(numbers), target, None


def _wrong(found: Evaluated, numbers: Sequence[int], target: int) -> str | None:
    """Why an expression is not a solution; None if it is."""
    if sorted(found.numbers) != sorted(numbers):
        return f"uses {_listing(found.numbers)}, given {_listing(numbers)}"
    return None if found.value == target else f"value {found.value}, target {target}"


def _listing(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _fits(config: CountdownConfig, numbers: tuple[int, ...], target: int) -> bool:
    """Whether the problem has as many solutions as the config asks for."""
    fewest, most = config.solution_range
    if config.counts_solutions:
        return fewest <= len(solve(numbers, target)) <= most
    return fewest <= (target in reachable(numbers)) <= most


def _can_list(config: CountdownConfig) -> bool:
    targets = config.target_high - config.target_low + 1
    if config.solution_range[0] > 0:
        targets = min(targets, 68)  # three numbers make no more values
    return config.operands <= 3 and targets * count_multisets(config.low, config.high, config.operands) <= LISTABLE


@lru_cache(maxsize=16)
def _listed(config: CountdownConfig) -> dict[str, tuple[Pair, ...]]:
    """Every problem of each split, in a fixed order."""
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for rank in range(count_multisets(config.low, config.high, config.operands)):
        numbers = multiset(rank, config.low, config.high, config.operands)
        for target in _targets(config, numbers):
            if _fits(config, numbers, target):
                splits[split_of(numbers, target)].append((numbers, target))
    return {split: tuple(pairs) for split, pairs in splits.items()}


def _targets(config: CountdownConfig, numbers: tuple[int, ...]) -> Sequence[int]:
    """The targets of the range, in order; only the reachable ones if unreachable ones are not wanted."""
    if config.solution_range[0] == 0:
        return range(config.target_low, config.target_high + 1)
    return _reachable_targets(numbers, config.target_low, config.target_high)


@lru_cache(maxsize=1 << 14)
def _reachable_targets(numbers: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    return tuple(sorted(int(value) for value in reachable(numbers) if value.denominator == 1 and low <= value <= high))


def _sample(config: CountdownConfig, split: str, seed: int, index: int) -> Pair:
    """A problem of a split too large to list: the first multiset of the index's own that has one.

    A keyed permutation of all multisets is dealt out, a few to each index; so two indices (of a lap) never share a
    multiset, unless none of an index's own has a problem in the split and it must draw on.
    """
    multisets = count_multisets(config.low, config.high, config.operands)
    own = max(1, min(8, multisets // 2048))
    lap, place = divmod(index, multisets // own)
    rng = random.Random(derive_seed("countdown", "target", split, seed, index))
    for attempt in range(1000):
        if attempt < own:
            rank = permuted(place * own + attempt, multisets, "countdown", split, seed, lap)
        else:
            rank = rng.randrange(multisets)
        numbers = multiset(rank, config.low, config.high, config.operands)
        targets = _targets(config, numbers)
        for target in rng.sample(targets, min(len(targets), 200)):  # in random order, a large range not listed
            if split_of(numbers, target) == split and _fits(config, numbers, target):
                return numbers, target
    raise _empty(config, split)


def _empty(config: CountdownConfig, split: str) -> DunwuError:
    return DunwuError(
        f"countdown: no problem in split {split!r} with {config.operands} numbers from {config.low}..{config.high}, "
        f"targets {config.target_low}..{config.target_high}, solvable = {config.solvable!r}, "
        f"solutions {config.min_solutions}..{config.max_solutions}",
        "widen the ranges",
    )
