"""Every way to work through Countdown numbers in steps, by brute force.

A chain is a list of binary steps on positive integers, the form in which people write their
tries ("12-7=5,5*3=15"); it carries the expression it amounts to. Fractions and negative
intermediate results are left out: hardly anybody tries them (the verifier accepts them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random


@dataclass(frozen=True)
class Chain:
    """A worked-through try.

    Example:
        >>> chain = chains((3, 7, 12))[0]
        >>> chain.steps, chain.expression, chain.value
        ((('3', '+', '7', '10'), ('10', '+', '12', '22')), '(3+7)+12', 22)
    """

    steps: tuple[tuple[str, str, str, str], ...]
    """(left, operator, right, result) of each step."""
    expression: str
    """The same as one expression."""
    value: int
    """Its value."""


def combine(a: int, b: int) -> list[tuple[int, str, int, int]]:
    """All (left, operator, right, result) of two numbers with a positive whole result.

    Example:
        >>> [result for *_, result in combine(3, 12)]
        [15, 9, 36, 4]
    """
    large, small = max(a, b), min(a, b)
    found = [(a, "+", b, a + b)]
    if large > small:
        found.append((large, "-", small, large - small))
    found.append((a, "*", b, a * b))
    if small > 0 and large % small == 0:
        found.append((large, "/", small, large // small))
    return found


@lru_cache(maxsize=2048)
def chains(numbers: tuple[int, ...]) -> tuple[Chain, ...]:
    """All chains that use every number exactly once; for three numbers (four have hundreds each)."""
    return tuple(dict.fromkeys(_extend(tuple((n, str(n)) for n in numbers), ())))


def random_chain(dice: Random, numbers: tuple[int, ...]) -> Chain:
    """One chain at random; small results are preferred to large products."""
    pool = [(n, str(n)) for n in numbers]
    steps: list[tuple[str, str, str, str]] = []
    while len(pool) > 1:
        first = pool.pop(dice.randrange(len(pool)))
        second = pool.pop(dice.randrange(len(pool)))
        options = _pairings(first, second)
        step, made = dice.choice([option for option in options if option[1][0] <= 150] or options)
        steps.append(step)
        pool.append(made)
    value, text = pool[0]
    return Chain(tuple(steps), text[1:-1], value)


_Value = tuple[int, str]
_Step = tuple[str, str, str, str]


def _pairings(first: _Value, second: _Value) -> list[tuple[_Step, _Value]]:
    """Each way to combine two (value, text): the step and what it makes."""
    # The running result leads: after 12-7=5 people write 5*3, not 3*5.
    if second[1].startswith("("):
        first, second = second, first
    made = []
    for left, operator, right, result in combine(first[0], second[0]):
        left_text, right_text = (first[1], second[1]) if left == first[0] else (second[1], first[1])
        made.append(((str(left), operator, str(right), str(result)), (result, f"({left_text}{operator}{right_text})")))
    return made


def _extend(pool: tuple[_Value, ...], steps: tuple[_Step, ...]) -> list[Chain]:
    if len(pool) == 1:
        value, text = pool[0]
        return [Chain(steps, text[1:-1] if text.startswith("(") else text, value)]
    found = []
    for i in range(len(pool)):
        for j in range(i + 1, len(pool)):
            rest = pool[:i] + pool[i + 1 : j] + pool[j + 1 :]
            for step, made in _pairings(pool[i], pool[j]):
                found += _extend((made, *rest), (*steps, step))
    return found
