"""Sums in running text: split, evaluated, canonical."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunwu.eval.fragments import MAX_OPERANDS, parse, split_run
from dunwu.tasks.expression import ExpressionError, evaluate


def value(text: str) -> Fraction | int | None:
    fragments = split_run(text, 0)
    assert len(fragments) == 1
    expr = parse(fragments[0].pieces)
    return expr.value if expr else None


def key(text: str) -> str:
    expr = parse(split_run(text, 0)[0].pieces)
    assert expr is not None
    return expr.key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8/(3-8/3)", 24),
        ("2+3*4", 14),
        ("20-6-4", 10),
        ("24/4/2", 3),
        ("-3+5", 2),
        ("2*-3", -6),
        ("7 × 3 ÷ 2", Fraction(21, 2)),
        ("（12−7）*3", 15),
        ("1.5*2", 3),
        ("5/0", None),
        ("5/(3-3)", None),
    ],
)
def test_values_by_hand(text: str, expected: Fraction | int | None) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("12-7 5*3", ["12-7", "5*3"]),
        ("(12-7", ["12-7"]),
        ("15)", ["15"]),
        ("((3+4)*2", ["(3+4)*2"]),
        ("5*3 - ", ["5*3"]),
        (")*3+4", ["3+4"]),
        ("3(4)", ["3", "(4)"]),
    ],
)
def test_runs_are_cut_where_one_sum_ends(text: str, pieces: list[str]) -> None:
    fragments = split_run(text, 0)
    assert ["".join(fragment.pieces) for fragment in fragments] == pieces
    for fragment in fragments:
        assert text[fragment.start : fragment.end].replace(" ", "") == "".join(fragment.pieces)


def test_keys_forget_order_and_nothing_else() -> None:
    assert key("3*(12-7)") == key("(12-7)*3") == key("(12-7)*(3)")
    assert key("1+2+3") == key("3+(2+1)") == key("(1+3)+2")
    assert key("8-(3-2)") == key("8+2-3") != key("8-3-2")
    assert key("8/(4/2)") == key("8*2/4") != key("8/4/2")
    assert len({key("12-7"), key("7-12"), key("12+7"), key("12*7"), key("12/7")}) == 5


def test_too_long_has_no_value_instead_of_a_slow_one() -> None:
    assert value("+".join(["1"] * MAX_OPERANDS)) == MAX_OPERANDS
    assert parse(split_run("+".join(["1"] * (MAX_OPERANDS + 1)), 0)[0].pieces) is None
    assert parse(("1" * 10,)) is None
    assert parse(("(",) * 500 + ("1",) + (")",) * 500) is None


def random_expression(dice: random.Random, operands: int) -> str:
    if operands == 1:
        return str(dice.randint(1, 20))
    left = dice.randint(1, operands - 1)
    text = random_expression(dice, left) + dice.choice("+-*/") + random_expression(dice, operands - left)
    return f"({text})" if dice.random() < 0.7 else text


def test_equals_the_verifier_on_random_expressions() -> None:
    """Oracle: the task's own evaluator, which goes through `ast`."""
    dice = random.Random(7)
    undefined = 0
    for _ in range(1500):
        text = random_expression(dice, dice.randint(1, 6))
        try:
            expected, numbers = evaluate(text)
        except ExpressionError:
            undefined += 1
            assert value(text) is None
            continue
        expr = parse(split_run(text, 0)[0].pieces)
        assert expr is not None and expr.value == expected and expr.leaves == tuple(sorted(numbers))
    assert 0 < undefined < 300


@given(st.text(alphabet="0123456789+-*/×÷−()（） .", max_size=60))
def test_any_run_splits_without_a_crash(text: str) -> None:
    last = 0
    for fragment in split_run(text, 0):
        assert last <= fragment.start < fragment.end <= len(text)
        last = fragment.end
        parse(fragment.pieces)
