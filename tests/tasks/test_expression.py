"""The expression language: what is worked out, exactly, and what is refused, with the reason."""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.tasks.expression import MAX_CHARACTERS, MAX_NESTING, ExpressionError, divide, evaluate

ACCEPTED = [
    ("24", 24, (24,)),
    ("0", 0, (0,)),
    ("8/(3-8/3)", 24, (8, 3, 8, 3)),  # PITFALLS 16: floats give 23.999999999999996 or so
    ("1/3+1/3+1/3", 1, (1, 3, 1, 3, 1, 3)),
    ("7/2", Fraction(7, 2), (7, 2)),
    ("3-7", -4, (3, 7)),
    ("2-3-4", -5, (2, 3, 4)),  # left to right
    ("24/4/3", 2, (24, 4, 3)),
    ("2+3*4", 14, (2, 3, 4)),
    ("((((5))))", 5, (5,)),
    ("(" * MAX_NESTING + "5" + ")" * MAX_NESTING, 5, (5,)),
    ("(1)" + "+(1)" * 40, 41, (1,) * 41),  # many parentheses, none deep
    (" 3 * ( 7 + 1 ) ", 24, (3, 7, 1)),
    ("3\n*\t(7\r\n+1)\n", 24, (3, 7, 1)),
    ("3×(7+1)", 24, (3, 7, 1)),
    ("48÷2", 24, (48, 2)),
    ("25−1", 24, (25, 1)),
    ("999999999", 999_999_999, (999_999_999,)),
    ("1" + "+1" * 99, 100, (1,) * 100),  # 199 characters
]

REFUSED = [
    ("", "empty"),
    (" \n\t ", "empty"),
    ("2**3", "operator **"),
    ("2 ** 3", "operator **"),
    ("2×*3", "operator **"),  # becomes ** after mapping
    ("2××3", "operator **"),
    ("99**99**99", "operator **"),
    ("9**(9**(9**9))", "operator **"),
    ("7//2", "operator //"),
    ("7÷÷2", "operator //"),
    ("7÷/2", "operator //"),
    ("7%2", "unexpected character '%'"),
    ("1.5*2", "unexpected character '.'"),
    ("24.0", "unexpected character '.'"),
    (".5", "unexpected character '.'"),
    ("1e3", "unexpected character 'e'"),
    ("0x18", "unexpected character 'x'"),
    ("24j", "unexpected character 'j'"),
    ("1_000", "unexpected character '_'"),
    ("1,000", "unexpected character ','"),
    ("12,12", "unexpected character ','"),
    ("12 = 12", "unexpected character '='"),
    ("(12-7)*3=15", "unexpected character '='"),
    ("12==12", "unexpected character '='"),
    ("１２", r"unexpected character '\uff11'"),  # full-width digits
    ("٣", r"unexpected character '\u0663'"),  # Arabic-Indic
    ("²", r"unexpected character '\xb2'"),
    ("3＋4", r"unexpected character '\uff0b'"),
    ("（3+4）", r"unexpected character '\uff08'"),
    ("3·4", r"unexpected character '\xb7'"),
    ("3–4", r"unexpected character '\u2013'"),  # en dash
    ("3\u30004", r"unexpected character '\u3000'"),
    ("3\xa0+4", r"unexpected character '\xa0'"),
    ("3\x0b+4", r"unexpected character '\x0b'"),
    ("3\x00+4", r"unexpected character '\x00'"),
    ("\ud800", r"unexpected character '\ud800'"),
    ("abs(24)", "unexpected character 'a'"),
    ("eval('24')", "unexpected character 'e'"),
    ("__import__('os').system('x')", "unexpected character '_'"),
    ("lambda:24", "unexpected character 'l'"),
    ("24 if 1 else 0", "unexpected character 'i'"),
    ("[24]", "unexpected character '['"),
    ("{24}", "unexpected character '{'"),
    ("'24'", 'unexpected character "\'"'),
    ("24#", "unexpected character '#'"),
    ("24;24", "unexpected character ';'"),
    ("24\\", r"unexpected character '\\'"),
    ("\\frac{48}{2}", r"unexpected character '\\'"),
    ("3:4", "unexpected character ':'"),
    ("3<4", "unexpected character '<'"),
    ("3^4", "unexpected character '^'"),
    ("3|4", "unexpected character '|'"),
    ("~3", "unexpected character '~'"),
    ("3@4", "unexpected character '@'"),
    ("<answer>24", "unexpected character '<'"),
    ("-3+7", "a sign in front"),
    ("+3", "a sign in front"),
    ("3--4", "a sign in front"),
    ("3*-4", "a sign in front"),
    ("-(3-7)", "a sign in front"),
    ("−3", "a sign in front"),
    ("()", "not a well-formed expression"),
    ("3(4)", "not a well-formed expression"),
    ("(3)(4)", "not a well-formed expression"),
    ("3()", "not a well-formed expression"),
    ("3 4", "not a well-formed expression"),
    ("3\n4", "not a well-formed expression"),
    ("3+", "not a well-formed expression"),
    ("*3", "not a well-formed expression"),
    ("(3+4", "not a well-formed expression"),
    ("3+4)", "not a well-formed expression"),
    (")(", "not a well-formed expression"),
    ("012", "leading zero in 012"),
    ("3+00", "leading zero in 00"),
    ("1000000000", "more than 9 digits"),
    ("9" * 150, "more than 9 digits"),
    ("1/0", "division by zero"),
    ("1/(3-3)", "division by zero"),
    ("0/0", "division by zero"),
    ("1/(1/3-1/3)", "division by zero"),
    ("(" * (MAX_NESTING + 1) + "5" + ")" * (MAX_NESTING + 1), "parentheses open at once"),
    ("(" * 100, "parentheses open at once"),
    ("1" + "+1" * 100, f"longer than {MAX_CHARACTERS}"),
    ("(" * 1_000_000, f"longer than {MAX_CHARACTERS}"),
]


@pytest.mark.parametrize(("text", "value", "numbers"), ACCEPTED)
def test_exact_value_and_numbers(text: str, value: Fraction | int, numbers: tuple[int, ...]) -> None:
    assert evaluate(text) == (value, numbers)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_white_space_around_a_long_expression_is_bounded() -> None:
    assert evaluate(" " * 300 + "24" + "\n" * 300).value == 24
    with pytest.raises(ExpressionError, match="longer"):
        evaluate(" " * 1_000_000 + "24")


def test_hostile_texts_cost_microseconds() -> None:
    hostile = [
        "(" * 199,
        "9" * 10_000_000,
        "99**99**99",
        "1/" * 99 + "1",
        "(((1+" * 40 + "1",
        "3(" * 60,
        "-" * 200 + "1",
    ]
    start = time.process_time()
    for text in hostile:
        for _ in range(10):
            with suppress(ExpressionError):
                evaluate(text)
    assert time.process_time() - start < 0.5


def test_division_stays_int_where_exact() -> None:
    assert type(divide(12, 4)) is int
    assert divide(-7, 2) == Fraction(-7, 2)
    assert divide(Fraction(3, 2), 3) == Fraction(1, 2)
    with pytest.raises(ZeroDivisionError):
        divide(Fraction(1, 2), 0)


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/() ×÷−.,=", max_size=30) | st.text(max_size=300))
def test_any_text_is_a_value_or_a_reason(text: str) -> None:
    try:
        value, numbers = evaluate(text)
    except ExpressionError:
        return
    assert isinstance(value, int | Fraction)
    assert numbers
