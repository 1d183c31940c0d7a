"""Sums as they stand in running text: found, split, evaluated exactly, composed.

The verifier (`dunwu.tasks`) judges one final answer and is strict. A thought is looser: sums touch
each other (`12-7=5 5*3=15`), brackets open around an equation, and `5*3=15` may mean `(12-7)*3`
because an earlier line stated `12-7=5`. So this parser takes a `resolve` function that says what a
number stands for, and it returns the expression's value, the problem's numbers it uses and a
canonical key. Everything is linear in the text: expressions of more than `MAX_OPERANDS` numbers and
numbers of more than `MAX_DIGITS` characters have no value instead of a slow one.

Not covered: powers, roots, implicit multiplication.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from dunwu.tasks.expression import Rational, divide

MAX_OPERANDS = 16
MAX_DIGITS = 9

RUN_PATTERN = r"-?[0-9(（](?:[0-9+\-*/×÷−()（） \t]|\.(?=[0-9]))*"
"""A maximal stretch of digits, operators and brackets: where sums can be."""

_PIECE = re.compile(r"[0-9]+(?:\.[0-9]+)?|[-+*/×÷−()（）]")
_PLAIN = str.maketrans("−×÷（）", "-*/()")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2, "~": 3}


class Expr(NamedTuple):
    """An expression with everything the analysis asks of it.

    `value` is exact, None if undefined (division by zero). `leaves` are the numbers written or stood
    for, sorted, with repetition. `key` is canonical: `3*(12-7)` and `(12-7)*3` share it, `(7-12)*3`
    does not. `kind` names the outermost operation, "number", "sum" or "product", and `parts` are the
    signed keys of its terms or factors, sorted.
    """

    value: Rational | None
    leaves: tuple[Rational, ...]
    key: str
    kind: str = "number"
    parts: tuple[tuple[str, str], ...] = ()


class Fragment(NamedTuple):
    """One expression's place in the text and its pieces: number, operator and bracket texts."""

    start: int
    end: int
    pieces: tuple[str, ...]

    @property
    def has_operator(self) -> bool:
        """False for a bare number, with a sign or without."""
        return any(piece in "+-*/" for piece in self.pieces[1:])


def number(value: Rational) -> Expr:
    """The expression that is just this number."""
    return Expr(value, (value,), str(value))


def read_number(text: str) -> Rational | None:
    """A written number's exact value; None if it has too many digits to be meant seriously."""
    if len(text) > MAX_DIGITS:
        return None
    return Fraction(text) if "." in text else int(text)


def split_run(text: str, offset: int) -> list[Fragment]:
    """Cut a run into expressions: at touching operands, at unmatched brackets, at stray operators.

    Example:
        >>> [f.pieces for f in split_run("(12-7)*3 5", 0)]
        [('(', '12', '-', '7', ')', '*', '3'), ('5',)]
    """
    # Thoughts about one problem repeat the same short sums thousands of times.
    fragments = _split_cached(text) if len(text) <= 40 else _split(text)
    return [Fragment(start + offset, end + offset, pieces) for start, end, pieces in fragments]


def _split(text: str) -> list[Fragment]:
    found = [(match.start(), match.end(), match.group().translate(_PLAIN)) for match in _PIECE.finditer(text)]
    matched = _matched_brackets([piece for _, _, piece in found])
    fragments: list[Fragment] = []
    current: list[tuple[int, int, str]] = []

    def close() -> None:
        while current and current[-1][2] in "+-*/":
            current.pop()
        first = next((i for i, (_, _, piece) in enumerate(current) if piece not in "+*/"), 0)
        if current:
            fragments.append(
                Fragment(current[first][0], current[-1][1], tuple(piece for _, _, piece in current[first:]))
            )
        current.clear()

    for index, (start, end, piece) in enumerate(found):
        if piece in "()" and index not in matched:
            close()
            continue
        starts_operand = piece == "(" or piece[0].isdigit()
        if current and starts_operand and (current[-1][2] == ")" or current[-1][2][0].isdigit()):
            close()
        current.append((start, end, piece))
    close()
    return fragments


_split_cached = lru_cache(maxsize=1 << 15)(_split)


def _matched_brackets(pieces: list[str]) -> set[int]:
    open_at: list[int] = []
    matched: set[int] = set()
    for index, piece in enumerate(pieces):
        if piece == "(":
            open_at.append(index)
        elif piece == ")" and open_at:
            matched |= {open_at.pop(), index}
    return matched


def parse(pieces: tuple[str, ...], resolve: Callable[[Rational], Expr] | None = None) -> Expr | None:
    """Evaluate pieces with the usual precedence (shunting-yard: no recursion, so no depth limit).

    Args:
        pieces: numbers, `+ - * /`, brackets, as `split_run` gives them.
        resolve: what a written number stands for; by default itself.

    Returns:
        The expression, or None if it is malformed, too long, or holds an absurd number.

    Example:
        >>> parse(("8", "/", "(", "3", "-", "8", "/", "3", ")")).value
        Fraction(24, 1)
    """
    if len(pieces) > 6 * MAX_OPERANDS:
        return None
    return _parse(pieces, resolve) if resolve else _parse_literal(pieces)


@lru_cache(maxsize=1 << 15)
def _parse_literal(pieces: tuple[str, ...]) -> Expr | None:
    return _parse(pieces, number)


def _parse(pieces: tuple[str, ...], resolve: Callable[[Rational], Expr]) -> Expr | None:
    output: list[Expr] = []
    stack: list[str] = []
    want_operand = True
    operands = 0
    for piece in pieces:
        if piece[0].isdigit():
            value = read_number(piece)
            operands += 1
            if not want_operand or value is None or operands > MAX_OPERANDS:
                return None
            output.append(resolve(value))
            want_operand = False
        elif piece == "(":
            if not want_operand:
                return None
            stack.append(piece)
        elif piece == ")":
            if want_operand:
                return None
            while stack and stack[-1] != "(":
                _reduce(stack.pop(), output)
            if not stack:
                return None
            stack.pop()
        else:
            if want_operand and piece != "-":
                return None
            operator = "~" if want_operand else piece
            while operator != "~" and stack and stack[-1] != "(" and _RANK[stack[-1]] >= _RANK[operator]:
                _reduce(stack.pop(), output)
            stack.append(operator)
            want_operand = True
    if want_operand or "(" in stack:
        return None
    while stack:
        _reduce(stack.pop(), output)
    return output[0]


def _reduce(operator: str, output: list[Expr]) -> None:
    right = output.pop()
    if operator == "~":
        output.append(combine("-", Expr(0, (), "", "sum"), right))
    else:
        output.append(combine(operator, output.pop(), right))


def combine(operator: str, left: Expr, right: Expr) -> Expr:
    """`left operator right`, exactly; sums and products are flattened and sorted for the key.

    Example:
        >>> combine("+", number(3), number(5)).key == combine("+", number(5), number(3)).key
        True
    """
    kind, inverse = ("sum", "-") if operator in "+-" else ("product", "/")
    parts = tuple(sorted([*_terms(left, kind, False), *_terms(right, kind, operator == inverse)]))
    key = "(" + "".join(sign + part for sign, part in parts) + ")"
    return Expr(_apply(operator, left.value, right.value), tuple(sorted(left.leaves + right.leaves)), key, kind, parts)


def _terms(expr: Expr, kind: str, inverted: bool) -> list[tuple[str, str]]:
    plain, inverse = ("+", "-") if kind == "sum" else ("*", "/")
    parts = expr.parts if expr.kind == kind else ((plain, expr.key),)
    if not inverted:
        return list(parts)
    return [(inverse if sign == plain else plain, part) for sign, part in parts]


def _apply(operator: str, left: Rational | None, right: Rational | None) -> Rational | None:
    if left is None or right is None:
        return None
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return divide(left, right) if right else None
