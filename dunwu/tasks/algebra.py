"""Exact sums of products in one normal form, for telling whether two written answers are the same.

A `Sum` is a set of monomials with rational coefficients; a monomial is a product of atoms to rational powers. Atoms are
primes under roots, letters (`pi` and `i` among them), functions of a sum, and sums that stand as a factor.
Constants are multiplied out; products with letters in them are not, or every product would equal its expansion.

Not covered: trigonometric and logarithmic identities, nested roots, fractions with several terms below the line, if they
differ as written. Nothing here evaluates Python, and numbers are bounded, so no input takes long.
"""

from __future__ import annotations

from fractions import Fraction
from math import factorial
from typing import Any

Monomial = tuple[tuple[Any, Fraction], ...]
"""(atom, power) pairs in order; powers of primes are between 0 and 1."""
Sum = tuple[tuple[Monomial, Fraction], ...]
"""(monomial, coefficient) pairs in order; no coefficient is 0. Equal sums are equal tuples."""

MAX_BITS = 2048
"""Longest numerator or denominator."""
MAX_POWER = 12
"""Highest power a constant sum of several terms is multiplied out to."""
MAX_TERMS = 200
"""Most terms of a sum."""
PRIMES_TO = 10_000
"""Primes taken out of a root; what is left counts as one."""


class AlgebraError(Exception):
    """Not a number, or too large to be worked out."""


def number(value: Fraction | int) -> Sum:
    """A rational number.

    Example:
        >>> number(Fraction(1, 2)) == power(number(2), number(-1))
        True
    """
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise AlgebraError("a number is too large")
    return (((), value),) if value else ()


def atom(name: Any) -> Sum:
    """A letter, or (function, argument)."""
    return ((((name, Fraction(1)),), Fraction(1)),)


def rational(value: Sum) -> Fraction | None:
    """The sum as a plain number; None if it is none."""
    if not value:
        return Fraction(0)
    return value[0][1] if len(value) == 1 and value[0][0] == () else None


def add(left: Sum, right: Sum) -> Sum:
    """left + right."""
    return _collect([*left, *right])


def negate(value: Sum) -> Sum:
    """-value."""
    return tuple((monomial, -coefficient) for monomial, coefficient in value)


def multiply(left: Sum, right: Sum) -> Sum:
    """left * right; a sum with letters stays a factor, unless the other side is a constant.

    Example:
        >>> root2 = power(number(2), number(Fraction(1, 2)))
        >>> multiply(root2, root2) == number(2)
        True
    """
    if not left or not right:
        return ()
    plain = (_is_constant(left) and (len(left) == 1 or _is_constant(right))) or (
        _is_constant(right) and len(right) == 1
    )
    if not plain and not (len(left) == 1 and len(right) == 1):
        left, right = _as_factor(left), _as_factor(right)
    return _collect([_times(a, b) for a in left for b in right])


def power(base: Sum, exponent: Sum) -> Sum:
    """base ** exponent.

    Raises:
        AlgebraError: 0 to a power below 1, or too large.
    """
    by = rational(exponent)
    if by is None:
        return atom(("power", base, exponent))
    if not base:
        if by <= 0:
            raise AlgebraError("division by zero")
        return ()
    if abs(by.numerator) > MAX_BITS or by.denominator > 100:
        raise AlgebraError("an exponent is too large")
    if len(base) == 1:
        return _power_of_term(base[0], by)
    if _is_constant(base) and by.denominator == 1 and 0 <= by <= MAX_POWER:
        result = number(1)
        for _ in range(int(by)):
            result = multiply(result, base)
        return result
    (monomial, scale), *_ = _as_factor(base)
    return multiply(_power_of_term(((), scale), by), (((tuple((a, p * by) for a, p in monomial)), Fraction(1)),))


def whole_factorial(value: Sum) -> Sum:
    """value! of a small whole number."""
    found = rational(value)
    if found is None or found.denominator != 1 or not 0 <= found <= 200:
        raise AlgebraError("a factorial of something else than 0 to 200")
    return number(factorial(int(found)))


def scaled(value: Sum) -> Sum:
    """`value` divided by its first coefficient: equal for two equations `… = 0` that are multiples of each other."""
    return tuple((monomial, coefficient / value[0][1]) for monomial, coefficient in value)


def _collect(terms: list[tuple[Monomial, Fraction]]) -> Sum:
    total: dict[Monomial, Fraction] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, Fraction(0)) + coefficient
    if len(total) > MAX_TERMS:
        raise AlgebraError("too many terms")
    for coefficient in total.values():
        number(coefficient)  # within bounds
    return tuple(sorted(((m, c) for m, c in total.items() if c), key=repr))


def _times(left: tuple[Monomial, Fraction], right: tuple[Monomial, Fraction]) -> tuple[Monomial, Fraction]:
    powers: dict[Any, Fraction] = {}
    for name, by in (*left[0], *right[0]):
        powers[name] = powers.get(name, Fraction(0)) + by
    return _reduced(powers, left[1] * right[1])


def _reduced(powers: dict[Any, Fraction], coefficient: Fraction) -> tuple[Monomial, Fraction]:
    """Whole powers of primes go into the coefficient, i² is -1, powers of 0 go."""
    kept: list[tuple[Any, Fraction]] = []
    for name, by in powers.items():
        if isinstance(name, int):
            whole = by.numerator // by.denominator
            if abs(whole) * name.bit_length() > MAX_BITS:
                raise AlgebraError("a number is too large")
            coefficient *= Fraction(name) ** whole
            by -= whole
        elif name == "i" and by.denominator == 1:
            coefficient *= -1 if by % 4 >= 2 else 1
            by = by % 2
        if by:
            kept.append((name, by))
    return tuple(sorted(kept, key=repr)), coefficient


def _power_of_term(term: tuple[Monomial, Fraction], by: Fraction) -> Sum:
    monomial, coefficient = term
    if by.denominator == 1:
        bits = max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length())
        if bits * abs(by.numerator) > 2 * MAX_BITS:
            raise AlgebraError("a number is too large")
        return _collect([_reduced({name: p * by for name, p in monomial}, coefficient ** int(by))])
    powers = {name: p * by for name, p in monomial}
    if coefficient < 0:
        if by.denominator != 2:
            return atom(("power", (term,), number(by)))
        powers["i"] = powers.get("i", Fraction(0)) + 2 * by
    for prime, count in _factors(abs(coefficient)).items():
        powers[prime] = powers.get(prime, Fraction(0)) + count * by
    return _collect([_reduced(powers, Fraction(1))])


def _factors(value: Fraction) -> dict[int, int]:
    """Primes of a positive number with their powers; those above `PRIMES_TO` stay together."""
    found: dict[int, int] = {}
    for part, sign in ((value.numerator, 1), (value.denominator, -1)):
        candidate = 2
        while candidate * candidate <= part and candidate <= PRIMES_TO:
            while part % candidate == 0:
                part //= candidate
                found[candidate] = found.get(candidate, 0) + sign
            candidate += 1 if candidate == 2 else 2
        if part > 1:
            found[part] = found.get(part, 0) + sign
    return found


def _as_factor(value: Sum) -> Sum:
    """A sum of several terms as one term: its first coefficient times an atom."""
    if len(value) == 1:
        return value
    return (((((("sum", scaled(value)), Fraction(1)),), value[0][1])),)


def _is_constant(value: Sum) -> bool:
    return all(isinstance(name, int) or name in ("pi", "i", "e") for monomial, _ in value for name, _ in monomial)
