"""Every value some numbers can make, each number used exactly once with + - * /, and the expressions that make it.

Two expressions are one if they differ only by the commutative and associative laws, by how a difference or quotient is
bracketed, or by which of two equal numbers stands where: `7+12-3`, `12-3+7` and `12-(3-7)` are the same solution.
It is written with the fewest parentheses, larger terms first. Different ways are different even if they agree in value: `4*1` and `4/1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from dunwu.tasks.expression import Rational, divide

MAX_OPERANDS = 6
"""Most numbers solved; each one more costs about thirty times the time."""


class _Node(NamedTuple):
    """A sum (`+`), a product (`*`) or a plain number (`""`), flattened: `gain` over/minus `loss`, both sorted."""

    value: Rational
    text: str
    kind: str
    gain: tuple[_Node, ...] = ()
    loss: tuple[_Node, ...] = ()


def value_table(numbers: Sequence[int]) -> Mapping[Rational, tuple[str, ...]]:
    """Every value `numbers` can make → its distinct expressions, shortest first. Cached by the sorted numbers.

    Keys are ints where whole, Fractions otherwise (the two hash alike). Do not modify the result.

    Raises:
        ValueError: no number, more than `MAX_OPERANDS`, or a negative one.

    Example:
        >>> value_table([4, 2])
        {6: ('4+2',), 2: ('4-2', '4/2'), -2: ('2-4',), 8: ('4*2',), Fraction(1, 2): ('2/4',)}
    """
    return _value_table(_checked(numbers))


def solve(numbers: Sequence[int], target: int, limit: int | None = None) -> list[str]:
    """The distinct expressions (see the module) of `numbers` that equal `target`, shortest first; [] if there is none.

    Raises:
        ValueError: as `value_table`.

    Example:
        >>> solve([3, 3, 8, 8], 24)
        ['8/(3-8/3)']
    """
    return list(value_table(numbers).get(target, ()))[:limit]


def reachable(numbers: Sequence[int]) -> frozenset[Rational]:
    """The keys of `value_table`, several times faster because no expression is written.

    Raises:
        ValueError: as `value_table`.

    Example:
        >>> sorted(reachable([4, 2]))
        [-2, Fraction(1, 2), 2, 6, 8]
    """
    return _reachable(_checked(numbers))


def _checked(numbers: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= len(numbers) <= MAX_OPERANDS or min(numbers) < 0:
        raise ValueError(
            f"cannot solve {list(numbers)}: 1 to {MAX_OPERANDS} numbers, none negative"
        )
    return tuple(sorted(numbers))


@lru_cache(maxsize=4096)
def _value_table(numbers: tuple[int, ...]) -> dict[Rational, tuple[str, ...]]:
    """Subsets in order of size; each is every split of it in two, combined by the six operations."""
    whole = (1 << len(numbers)) - 1
    # By text: the normal form is written one way, so equal text means the same expression.
    nodes: list[dict[str, _Node]] = [{} for _ in range(whole + 1)]
    for place, number in enumerate(numbers):
        nodes[1 << place] = {str(number): _Node(number, str(number), "")}
    for mask in range(1, whole + 1):
        part = (mask - 1) & mask
        while part > mask ^ part:  # each unordered pair of halves once
            for left in nodes[part].values():
                for right in nodes[mask ^ part].values():
                    for node in _combine(left, right):
                        nodes[mask][node.text] = node
            part = (part - 1) & mask
    table: dict[Rational, list[str]] = {}
    for node in nodes[whole].values():
        table.setdefault(node.value, []).append(node.text)
    return {
        value: tuple(sorted(texts, key=lambda text: (len(text), text)))
        for value, texts in table.items()
    }


def _combine(left: _Node, right: _Node) -> list[_Node]:
    """left+right, left-right, right-left, left*right, left/right, right/left; the quotients where they exist."""
    (a, b), (c, d) = _terms(left, "+"), _terms(right, "+")
    (e, f), (g, h) = _terms(left, "*"), _terms(right, "*")
    x, y = left.value, right.value
    found = [
        _node(x + y, "+", a + c, b + d),
        _node(x - y, "+", a + d, b + c),
        _node(y - x, "+", c + b, d + a),
        _node(x * y, "*", e + g, f + h),
    ]
    if y != 0:
        found.append(_node(divide(x, y), "*", e + h, f + g))
    if x != 0:
        found.append(_node(divide(y, x), "*", g + f, h + e))
    return found


def _terms(node: _Node, kind: str) -> tuple[tuple[_Node, ...], tuple[_Node, ...]]:
    return (node.gain, node.loss) if node.kind == kind else ((node,), ())


def _node(
    value: Rational, kind: str, gain: tuple[_Node, ...], loss: tuple[_Node, ...]
) -> _Node:
    if len(gain) > 1:
        gain = tuple(sorted(gain, key=_larger_first))
    if len(loss) > 1:
        loss = tuple(sorted(loss, key=_larger_first))
    if kind == "+":
        text = "+".join([term.text for term in gain]) + "".join(
            ["-" + term.text for term in loss]
        )
    else:
        text = "*".join([_factor(term) for term in gain]) + "".join(
            ["/" + _factor(term) for term in loss]
        )
    return _Node(value, text, kind, gain, loss)


def _larger_first(node: _Node) -> tuple[Rational, str]:
    return (-node.value, node.text)


def _factor(node: _Node) -> str:
    return f"({node.text})" if node.kind == "+" else node.text


@lru_cache(maxsize=1 << 14)
def _reachable(numbers: tuple[int, ...]) -> frozenset[Rational]:
    whole = (1 << len(numbers)) - 1
    values: list[set[Rational]] = [set() for _ in range(whole + 1)]
    for place, number in enumerate(numbers):
        values[1 << place] = {number}
    for mask in range(1, whole + 1):
        found = values[mask]
        part = (mask - 1) & mask
        while part > mask ^ part:
            for x in values[part]:
                for y in values[mask ^ part]:
                    found.update((x + y, x - y, y - x, x * y))
                    if y != 0:
                        found.add(divide(x, y))
                    if x != 0:
                        found.add(divide(y, x))
            part = (part - 1) & mask
    return frozenset(values[whole])
