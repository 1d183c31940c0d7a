"""An arithmetic expression, read and worked out exactly.

The language: unsigned integers in ASCII digits, `+ - * /` (also written `× ÷ −`), parentheses and ASCII
white space, which is free between tokens. Division is exact: `8/(3-8/3)` is 24, not 23.99….

Everything else is refused with a reason: `**`, `//`, `%`, decimals, commas, `=`, names, calls, signs in front of a
number (each given number is used as it is, so there is no `-3`), leading zeros, other scripts' digits and full-width
forms. Length and nesting are bounded, so a hostile text costs microseconds and cannot exhaust the stack.

The text is checked character by character, parsed by `ast` and walked; nothing is ever executed.
Not covered: anything but one expression (equations, units, LaTeX).
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 200
"""Longest expression read, after stripping; six operands need about 40."""
MAX_NESTING = 20
"""Most parentheses open at once."""
MAX_DIGITS = 9
"""Most digits in one number."""

SPACE = " \t\r\n"
"""What counts as white space, here and around the tags of a completion."""

Rational = int | Fraction
"""An exact value: int where it is whole and cheap, Fraction otherwise; the two compare and hash alike."""

_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "\t": " ", "\r": " ", "\n": " "})
_FOREIGN = re.compile(r"[^0-9+\-*/() ]")
_NUMBER = re.compile(r"[0-9]+")
_REFUSED_OPERATORS: dict[type[ast.operator], str] = {ast.Pow: "**", ast.FloorDiv: "//"}


class ExpressionError(ValueError):
    """The text is not an expression of this language; `str(error)` is the reason, one line."""


class Evaluated(NamedTuple):
    """An expression's exact value, and the numbers it is written with, in order of appearance."""

    value: Rational
    numbers: tuple[int, ...]


def evaluate(text: str) -> Evaluated:
    """Work out `text` exactly.

    Raises:
        ExpressionError: the text is not an expression of this language, or divides by zero.

    Example:
        >>> evaluate("8 ÷ (3 − 8/3)")
        Evaluated(value=Fraction(24, 1), numbers=(8, 3, 8, 3))
    """
    plain = _plain(text)
    literals: list[str] = _NUMBER.findall(plain)
    for literal in literals:
        if len(literal) > MAX_DIGITS:
            raise ExpressionError(f"a number of more than {MAX_DIGITS} digits")
        if literal[0] == "0" and len(literal) > 1:
            raise ExpressionError(f"leading zero in {literal}")
    try:
        tree = ast.parse(plain, mode="eval")
    except SyntaxError:
        raise ExpressionError("not a well-formed expression") from None
    return Evaluated(_walk(tree.body), tuple(map(int, literals)))


def divide(left: Rational, right: Rational) -> Rational:
    """The exact quotient; an int where the division of two ints is exact.

    Raises:
        ZeroDivisionError: `right` is zero.

    Example:
        >>> divide(12, 4), divide(8, 3)
        (3, Fraction(8, 3))
    """
    if isinstance(left, int) and isinstance(right, int):
        quotient, remainder = divmod(left, right)
        return Fraction(left, right) if remainder else quotient
    return Fraction(left) / right


def _plain(text: str) -> str:
    """`text` in the twelve-and-a-few characters `ast` may see; refuses the rest and anything oversized."""
    if len(text) > 4 * MAX_CHARACTERS:  # before any work that grows with the text
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    plain = text.translate(_SIGNS).strip(" ")
    if not plain:
        raise ExpressionError("empty")
    if len(plain) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    foreign = _FOREIGN.search(plain)
    if foreign:
        raise ExpressionError(f"unexpected character {foreign.group()!a}")
    if plain.count("(") > MAX_NESTING:  # only then can the depth exceed it
        depth = 0
        for character in plain:
            depth += (character == "(") - (character == ")")
            if depth > MAX_NESTING:
                raise ExpressionError(f"more than {MAX_NESTING} parentheses open at once")
    return plain


def _walk(node: ast.expr) -> Rational:
    """The exact value of a syntax tree, at most `MAX_CHARACTERS` deep."""
    if isinstance(node, ast.Constant):
        assert type(node.value) is int  # the characters allowed can spell no other literal
        return node.value
    if not isinstance(node, ast.BinOp):
        if isinstance(node, ast.UnaryOp):
            raise ExpressionError("a sign in front of a number or a parenthesis")
        raise ExpressionError("not a well-formed expression")  # 3(4) is a call, () a tuple
    left, right, operator = _walk(node.left), _walk(node.right), type(node.op)
    if operator is ast.Add:
        return left + right
    if operator is ast.Sub:
        return left - right
    if operator is ast.Mult:
        return left * right
    if operator is ast.Div:
        if right == 0:
            raise ExpressionError("division by zero")
        return divide(left, right)
    raise ExpressionError(f"operator {_REFUSED_OPERATORS[operator]} is not one of + - * /")
