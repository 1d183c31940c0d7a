"""Every value some numbers can make, each number used exactly once with + - * /, and the expressions that make it.

Two expressions are one if they differ only by the commutative and associative laws, by how a difference or quotient is
bracketed, or by which of two equal numbers stands where: `7+12-3`, `12-3+7` and `12-(3-7)` are the same solution. It is
written with the fewest parentheses, larger terms first. Other ways are different even if they agree: `4*1` and `4/1`.

On one core, with 3, 4, 5 numbers: `value_table` 0.25 ms, 8 ms, 0.3 s (60, 1,300, 30,000 expressions); `solve` 3 ms and
100 ms for 4 and 5, 4 s for 6; `reachable` 0.1 ms, 2.5 ms, 0.1 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from dunwu.tasks.expression import Rational, divide

MAX_OPERANDS = 6
"""Most numbers solved; each one more costs about thirty times the time."""


def value_table(numbers: Sequence[int]) -> Mapping[Rational, tuple[str, ...]]:
    """Every value `numbers` can make → its distinct expressions, shortest first.

    Keys are ints where whole, Fractions otherwise (the two hash alike). Small tables are cached: do not modify them.

    Raises:
        ValueError: no number, more than `MAX_OPERANDS`, or a negative one.

    Example:
        >>> value_table([4, 2])
        {6: ('4+2',), 2: ('4-2', '4/2'), -2: ('2-4',), 8: ('4*2',), Fraction(1, 2): ('2/4',)}
    """
    given = _checked(numbers)
    return _small_table(given) if len(given) <= 3 else _table(given)


def solve(numbers: Sequence[int], target: int, limit: int | None = None) -> list[str]:
    """The distinct expressions of `numbers` that equal `target`, shortest first, at most `limit`; [] if there is none.

    Raises:
        ValueError: as `value_table`.

    Example:
        >>> solve([3, 3, 8, 8], 24)
        ['8/(3-8/3)']
    """
    given = _checked(numbers)
    found = _small_table(given).get(target, ()) if len(given) <= 3 else _solutions(given, target)
    return list(found[:limit])


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
        raise ValueError(f"cannot solve {list(numbers)}: 1 to {MAX_OPERANDS} numbers, none negative")
    return tuple(sorted(numbers))


# The caches are bounded by what they hold, not only by how many: tables of 3 numbers are 5 kB, of 5 numbers megabytes.


@lru_cache(maxsize=4096)
def _small_table(numbers: tuple[int, ...]) -> dict[Rational, tuple[str, ...]]:
    return _table(numbers)


def _table(numbers: tuple[int, ...]) -> dict[Rational, tuple[str, ...]]:
    table: dict[Rational, list[str]] = {}
    for node in _nodes(numbers, None):
        table.setdefault(node.value, []).append(node.text)
    return {value: _shortest_first(texts) for value, texts in table.items()}


@lru_cache(maxsize=1024)
def _solutions(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    return _shortest_first(node.text for node in _nodes(numbers, target))


def _shortest_first(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: (len(text), text)))


@lru_cache(maxsize=64)
def _reachable(numbers: tuple[int, ...]) -> frozenset[Rational]:
    values: list[set[Rational | None]] = [set() for _ in range(1 << len(numbers))]
    for place, number in enumerate(numbers):
        values[1 << place] = {number}
    for whole, part in _halves(len(numbers)):
        for x in values[part]:
            for y in values[whole ^ part]:
                if x is not None and y is not None:
                    values[whole].update(_six(x, y))
    return frozenset(value for value in values[-1] if value is not None)


class _Node(NamedTuple):
    """A sum (`+`), a product (`*`) or a plain number (``), flattened.

    `gain` are its terms or factors, `loss` those subtracted or divided by; both sorted, neither a node of the same kind.
    """

    value: Rational
    text: str
    kind: str
    gain: tuple[_Node, ...] = ()
    loss: tuple[_Node, ...] = ()


def _nodes(numbers: tuple[int, ...], wanted: int | None) -> Iterable[_Node]:
    """Every distinct expression of all `numbers`, or only those equal to `wanted`."""
    # By text: a normal form is written in one way, so equal text means the same expression.
    nodes: list[dict[str, _Node]] = [{} for _ in range(1 << len(numbers))]
    for place, number in enumerate(numbers):
        nodes[1 << place] = {str(number): _Node(number, str(number), "")}
    for whole, part in _halves(len(numbers)):
        found, only = nodes[whole], wanted if whole == len(nodes) - 1 else None
        for left in nodes[part].values():
            for right in nodes[whole ^ part].values():
                for way, value in enumerate(_six(left.value, right.value)):
                    if value is not None and (only is None or value == only):
                        node = _join(way, value, left, right)
                        found[node.text] = node
    return [node for node in nodes[-1].values() if wanted is None or node.value == wanted]


def _halves(size: int) -> Iterator[tuple[int, int]]:
    """(subset, part of it), as bit masks: each split of each subset in two, once, smaller subsets first."""
    for whole in range(1, 1 << size):
        part = (whole - 1) & whole
        while part > whole ^ part:
            yield whole, part
            part = (part - 1) & whole


def _six(x: Rational, y: Rational) -> tuple[Rational, Rational, Rational, Rational, Rational | None, Rational | None]:
    """x+y, x-y, y-x, x*y, x/y, y/x; None for a division by zero."""
    return (x + y, x - y, y - x, x * y, divide(x, y) if y != 0 else None, divide(y, x) if x != 0 else None)


def _join(way: int, value: Rational, left: _Node, right: _Node) -> _Node:
    """The node of `_six(left.value, right.value)[way]`."""
    if way in (2, 5):
        left, right = right, left
    kind = "+" if way < 3 else "*"
    gain, loss = (left.gain, left.loss) if left.kind == kind else ((left,), ())
    more, less = (right.gain, right.loss) if right.kind == kind else ((right,), ())
    if way in (0, 3):
        gain, loss = gain + more, loss + less
    else:
        gain, loss = gain + less, loss + more
    gain, loss = (tuple(sorted(gain, key=_larger_first)), tuple(sorted(loss, key=_larger_first)))
    if kind == "+":
        text = "+".join([term.text for term in gain]) + "".join(["-" + term.text for term in loss])
    else:
        text = "*".join([_factor(term) for term in gain]) + "".join(["/" + _factor(term) for term in loss])
    return _Node(value, text, kind, gain, loss)


def _larger_first(node: _Node) -> tuple[Rational, str]:
    return -node.value, node.text


def _factor(node: _Node) -> str:
    return f"({node.text})" if node.kind == "+" else node.text
