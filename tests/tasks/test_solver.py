"""The solver against brute force written another way, and against published counts."""

from __future__ import annotations

import random
from fractions import Fraction
from functools import lru_cache
from itertools import permutations, product

import pytest

from dunwu.tasks.expression import evaluate
from dunwu.tasks.solver import reachable, solve, value_table

Tree = int | tuple[str, "Tree", "Tree"]


@lru_cache
def shapes(leaves: int) -> list[object]:
    """Every binary tree shape: None is a leaf."""
    if leaves == 1:
        return [None]
    return [(left, right) for cut in range(1, leaves) for left in shapes(cut) for right in shapes(leaves - cut)]


def fill(shape: object, numbers: list[int], signs: list[str]) -> Tree:
    """The tree of a shape, leaves and operators taken from the lists in order."""
    if shape is None:
        return numbers.pop(0)
    assert isinstance(shape, tuple)
    sign = signs.pop(0)
    return (sign, fill(shape[0], numbers, signs), fill(shape[1], numbers, signs))


def trees(numbers: list[int]) -> list[Tree]:
    """All orders × shapes × operators, with every duplicate."""
    size = len(numbers)
    return [
        fill(shape, list(order), list(signs))
        for order in permutations(numbers)
        for shape in shapes(size)
        for signs in product("+-*/", repeat=size - 1)
    ]


def value(tree: Tree) -> Fraction | None:
    if isinstance(tree, int):
        return Fraction(tree)
    sign, a, b = tree[0], value(tree[1]), value(tree[2])
    if a is None or b is None or (sign == "/" and b == 0):
        return None
    return {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b


def normal(tree: Tree) -> str:
    """Equal for trees that differ by commutativity, associativity and the bracketing of - and / only."""
    if isinstance(tree, int):
        return str(tree)
    kind = "sum" if tree[0] in "+-" else "product"
    parts: list[str] = []

    def collect(node: Tree, direct: bool) -> None:
        if isinstance(node, tuple) and ("sum" if node[0] in "+-" else "product") == kind:
            collect(node[1], direct)
            collect(node[2], direct if node[0] in "+*" else not direct)
        else:
            parts.append(("" if direct else "~") + normal(node))

    collect(tree, True)
    return f"{kind}({','.join(sorted(parts))})"


CASES = [[5], [4, 2], [3, 3], [0, 4], [3, 7, 12], [2, 2, 4], [1, 1, 1], [0, 0, 5], [0, 3, 3], [20, 19, 1]]


@pytest.mark.parametrize("numbers", [*CASES, [3, 3, 8, 8], [1, 2, 3, 4], [0, 5, 5, 7]])
def test_table_equals_brute_force(numbers: list[int]) -> None:
    """Same values, and for each value as many expressions as brute force has normal forms."""
    expected: dict[Fraction, set[str]] = {}
    for tree in trees(numbers):
        result = value(tree)
        if result is not None:
            expected.setdefault(result, set()).add(normal(tree))
    table = value_table(numbers)
    assert {key: len(texts) for key, texts in table.items()} == {key: len(forms) for key, forms in expected.items()}
    assert reachable(numbers) == set(expected)


@pytest.mark.parametrize(("operands", "inequivalent"), [(1, 1), (2, 6), (3, 68), (4, 1170), (5, 27142)])
def test_count_of_inequivalent_expressions(operands: int, inequivalent: int) -> None:
    """OEIS A140606: rational functions of n variables, each used once, counted as values at numbers in general position."""
    assert len(reachable([100003, 200063, 400009, 700001, 900007][:operands])) == inequivalent


@pytest.mark.parametrize("numbers", [*CASES, [3, 5, 7, 11], [2, 2, 2, 2]])
def test_every_expression_says_what_it_makes_from_what(numbers: list[int]) -> None:
    for made, texts in value_table(numbers).items():
        assert len(set(texts)) == len(texts)
        assert list(texts) == sorted(texts, key=lambda text: (len(text), text))
        for text in texts:
            assert evaluate(text).value == made
            assert sorted(evaluate(text).numbers) == sorted(numbers)


def test_solve_is_the_row_of_the_table() -> None:
    rng = random.Random(0)
    for _ in range(20):
        numbers = [rng.randint(0, 12) for _ in range(rng.choice((2, 3, 4)))]
        target = rng.randint(-5, 40)
        assert solve(numbers, target) == list(value_table(numbers).get(target, ()))
        assert solve(numbers, target, limit=1) == solve(numbers, target)[:1]


def test_order_of_the_numbers_does_not_matter() -> None:
    assert solve([8, 3, 8, 3], 24) == solve([3, 3, 8, 8], 24) == ["8/(3-8/3)"]


def test_five_numbers_are_solved() -> None:
    found = solve([1, 5, 7, 11, 20], 97, limit=3)
    assert len(found) == 3
    assert all(evaluate(text).value == 97 for text in found)


@pytest.mark.parametrize("numbers", [[], [1] * 7, [-1, 2]])
def test_out_of_bounds(numbers: list[int]) -> None:
    for function in (value_table, reachable):
        with pytest.raises(ValueError, match="cannot solve"):
            function(numbers)
