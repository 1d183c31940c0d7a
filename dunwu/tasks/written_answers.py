r"""Answers as people and models write them, LaTeX or plain, in a form in which equal answers are equal.

    \frac{3}{6}  1/2  0.5  .50  50\%          one number
    1\frac{4}{5}  \frac95  1.8                 mixed numbers
    2\sqrt{3}/6  \frac{1}{\sqrt3}              roots
    90^\circ  5.4\text{ cents}  \$32,\!348     units, degrees, money, thousands
    x=5  5   ·   3x - y = 0  2y = 6x           equations, up to a factor
    1 \pm \sqrt2   {1+√2, 1-√2}                sets in any order
    (2,\infty)  \left[0, \frac12\right)        tuples and intervals, unions, matrices
    52_8   \text{Evelyn}   \cot x              other bases, words, functions

`read` gives the forms an answer may be taken for, `same` compares. Parsing is ours: no `eval`, exact fractions only.
Not covered: inequalities, piecewise answers, identities that need more than multiplying constants out.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from fractions import Fraction

from dunwu.tasks.algebra import (
    AlgebraError,
    Sum,
    add,
    atom,
    multiply,
    negate,
    number,
    power,
    rational,
    scaled,
    whole_factorial,
)

MAX_LENGTH = 400
"""Longest answer that is read, in characters."""
MAX_DEPTH = 30
"""Deepest nesting."""
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp")
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "phi", "omega", "rho", "sigma", "tau")
_UNITS = ("cm", "mm", "km", "kg", "mg", "ml", "ft", "in", "hr", "mph")
_PLAIN = {
    "−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "°": "", "，": ",",
    "±": r"\pm ", "∪": r"\cup ", "％": "%", "（": "(", "）": ")", "′": "'",
}  # fmt: skip
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\([A-Za-z]+)|([A-Za-z]+)|(.))", re.DOTALL)
_SPACING = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|bigl?|bigr|Bigl?|Bigr|quad|qquad)(?![A-Za-z])|(?<!\\)\\[!,;: ]|~"
)
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|mathbf|operatorname|textrm)\s*\{([^{}]*)\}")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")


_POWER = r"(?:\s*\^?\s*(?:[23]|\{[23]\}))?\s*$"
_WORDS_LAST = re.compile(_WORDS.pattern + r"(?P<plain>(?!))?" + _POWER)
_WORD_LAST = re.compile(r"(?<![A-Za-z\\])(?P<plain>[A-Za-z]+)(?:\s*\^?[23])?\s*$")
_NAMES = ("pi", *_FUNCTIONS, *_GREEK)


class AnswerError(Exception):
    """The text is no answer that can be read."""


def same(left: str, right: str) -> bool:
    r"""Whether two answers say the same; False where one cannot be read and they differ as text.

    Example:
        >>> same(r"\frac{\sqrt{3}}{3}", "1/sqrt(3)"), same("0.33", "1/3")
        (True, False)
    """
    try:
        return not read(left).isdisjoint(read(right))
    except AnswerError:
        return False


def read(text: str) -> frozenset[Hashable]:
    """The forms of an answer: two answers that share one are the same.

    Raises:
        AnswerError: it is empty, too long or not understood.
    """
    if len(text) > MAX_LENGTH:
        raise AnswerError(f"more than {MAX_LENGTH} characters")
    text = _cleaned(text)
    if not text:
        raise AnswerError("empty")
    try:
        return frozenset(_forms(text))
    except AlgebraError as error:
        raise AnswerError(str(error)) from None


def _cleaned(text: str) -> str:
    for old, new in _PLAIN.items():
        text = text.replace(old, new)
    text = text.replace(r"\$", "").replace("$", "").replace(r"\(", "").replace(r"\)", "").replace(r"\%", "%")
    text = re.sub(r"([0-9]),\\!\s*([0-9]{3})", r"\1\2", re.sub(r"(,\\!)\s+", r"\1", text))
    text = re.sub(r"([0-9]),\\!\s*([0-9]{3})", r"\1\2", text)
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", "", text).replace(r"\degree", "")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text).replace(r"\times", "*").replace(r"\cdot", "*")
    text = text.replace(r"\div", "/").replace(r"\lbrace", r"\{").replace(r"\rbrace", r"\}")
    return text.strip().rstrip(".").strip()


def _forms(text: str) -> list[Hashable]:
    words = _as_words(text)
    if words is not None:
        return [("words", words)]
    text = _without_unit(text)
    if member := re.fullmatch(r"\s*[A-Za-z]\s*\\in(?![A-Za-z])(.*)", text, re.DOTALL):
        text = member[1].strip()
    sides = text.split("=")
    if len(sides) > 1 and text[-1:] != "=":
        return _equation(sides)
    if text.endswith("%"):
        value = _expression(text[:-1])
        return [("percent", value), multiply(value, number(Fraction(1, 100)))]
    form = _structure(text, 0)
    if isinstance(form, tuple) and form[:1] == ("value",):
        value = form[1]
        # A bare number may be a count of per cent: 50 and 50% are the same answer to "what per cent?".
        return [value, ("percent", value)] if rational(value) is not None else [value]
    return [form]


def _equation(sides: list[str]) -> list[Hashable]:
    """`x = 5` may be told as 5; two equations are compared as equations, whatever side things stand on."""
    if len(sides) > 2:
        if not re.fullmatch(r"\s*[A-Za-z]\w*\s*", sides[0]):
            raise AnswerError("several equal signs")
        sides = [sides[0], sides[-1]]
    left, right = sides
    forms: list[Hashable] = []
    named = re.fullmatch(r"\s*[A-Za-z](?:_\{?\w+\}?)?(?:\s*\(\s*[A-Za-z]\s*\))?\s*", left) is not None
    if named:
        forms = [form for form in _forms(_cleaned(right)) if not (isinstance(form, tuple) and form[:1] == ("percent",))]
    try:
        difference = add(_expression(left), negate(_expression(right)))
        if difference:
            forms.append(("equation", scaled(difference)))
    except (AnswerError, AlgebraError):
        if not forms:
            raise
    return forms


def _as_words(text: str) -> str | None:
    """An answer that is words, or one letter in brackets: without case, brackets and TeX around it."""
    bare = _WORDS.sub(r" \1 ", text)
    if bare == text and not re.search(r"[A-Za-z]{3}", text):
        letter = re.fullmatch(r"\(\s*([A-Z])\s*\)|([A-Z])", text.strip())
        return (letter[1] or letter[2]).lower() if letter else None
    if "\\" in bare or re.search(r"[0-9=^]", bare):
        return None
    letters = re.findall(r"[A-Za-z]+", bare)
    known = [word for word in letters if word in ("sqrt", *_NAMES)]
    if not letters or known or re.search(r"[^A-Za-z\s().,'\-]", bare):
        return None
    return " ".join(letters).lower()


def _without_unit(text: str) -> str:
    """Without words behind a value (\\text{ cents}, \\mbox{ cm}^2, plain words, short units); "and", "or" are commas."""
    text = re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", ",", text)
    text = re.sub(r",\s*,", ",", text)
    if "," in text and text.count("=") > 1:  # x=1 or x=2
        text = re.sub(r"(^|,)\s*[A-Za-z]\s*=", r"\1", text)
    while True:
        found = _WORDS_LAST.search(text) or _WORD_LAST.search(text)
        if found is None or (found["plain"] is not None and not _is_unit(found["plain"])):
            return text
        rest = text[: found.start()].strip()
        if not rest or rest[-1] in "+-*/^_=,(\\":
            return text
        text = rest


def _is_unit(word: str) -> bool:
    return word in _UNITS or (len(word) > 2 and word not in ("sqrt", *_NAMES))


def _structure(text: str, depth: int) -> Hashable:
    """A number, tuple, interval, set, union, matrix or number in another base."""
    if depth > MAX_DEPTH:
        raise AnswerError("nested too deeply")
    text = text.strip()
    if not text:
        raise AnswerError("empty")
    if (matrix := _MATRIX.fullmatch(text)) is not None:
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        return ("matrix", tuple(tuple(_expression(cell) for cell in row.split("&")) for row in rows))
    if (based := re.fullmatch(r"([0-9A-F]+)\s*_\s*(?:\{\s*([0-9]+)\s*\}|([0-9]+))", text)) is not None:
        return ("base", based[1], int(based[2] or based[3]))
    parts = _split(text, r"\cup")
    if len(parts) > 1:
        return ("union", frozenset(_structure(part, depth + 1) for part in parts))
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return _set(_split(text[2:-2], ","), depth)
    if text[0] in "([" and text[-1] in ")]" and _closes(text) and len(inside := _split(text[1:-1], ",")) > 1:
        return ("row", text[0], tuple(_structure(part, depth + 1) for part in inside), text[-1])
    whole = text if "," not in text else _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    parts = _split(whole, ",")
    if len(parts) > 1 or r"\pm" in whole:
        return _set(parts, depth)
    return ("value", _expression(whole))


def _set(parts: list[str], depth: int) -> Hashable:
    """Its members in any order; a set of one is its member."""
    members = []
    for part in parts:
        for sign in ("+", "-") if r"\pm" in part else ("",):
            members.append(_structure(part.replace(r"\pm", sign) if sign else part, depth + 1))
    found = frozenset(members)
    return next(iter(found)) if len(found) == 1 else ("set", found)


def _split(text: str, mark: str) -> list[str]:
    """Cut at `mark` where no bracket is open."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(mark, at):
            parts.append(text[start:at])
            start = at + len(mark)
            at = start - 1
        at += 1
    return [*parts, text[start:]]


def _closes(text: str) -> bool:
    """Whether the bracket that opens the text is closed by its last character."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


# ---- expressions ----------------------------------------------------------------------------


def _expression(text: str) -> Sum:
    parser = _Parser(text)
    value = parser.sum()
    if parser.here:
        raise AnswerError(f"{parser.here!r} is not understood")
    return value


class _Parser:
    """Recursive descent over tokens; letters are separate factors, but for known names."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        for digits, command, letters, other in _TOKEN.findall(text):
            if letters:
                self.tokens += [letters] if letters in ("sqrt", *_NAMES) else list(letters)
            elif not other.isspace():
                self.tokens.append(digits or (f"\\{command}" if command else other))
        self.at = self.depth = 0

    @property
    def here(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.here
        if not token or (wanted and token != wanted):
            raise AnswerError(f"{wanted or 'more'} is missing")
        self.at += 1
        return token

    def sum(self) -> Sum:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise AnswerError("nested too deeply")
        sign = self._sign()
        value = self.product()
        value = negate(value) if sign < 0 else value
        while self.here in ("+", "-"):
            sign = self._sign()
            term = self.product()
            value = add(value, negate(term) if sign < 0 else term)
        self.depth -= 1
        return value

    def _sign(self) -> int:
        sign = 1
        while self.here in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign

    def product(self) -> Sum:
        value = self.mixed()
        while True:
            if self.here == "*":
                self.take()
                sign = self._sign()
                value = multiply(value, multiply(number(sign), self.factor()))
            elif self.here == "/":
                self.take()
                sign = self._sign()
                value = multiply(value, multiply(number(sign), power(self.factor(), number(-1))))
            elif self.here and (self.here[0] in "\\(" or self.here[0].isalpha()) and self.here != "\\pm":
                value = multiply(value, self.factor())
            else:
                return value

    def mixed(self) -> Sum:
        r"""A factor; a whole number before a plain fraction is added to it: 1\frac{4}{5}, 1 4/5."""
        if not self.here.isdigit():
            return self.factor()
        start, whole = self.at, int(self.here)
        self.at += 1
        if self.here == "\\frac":
            part = rational(self.factor())
            if part is not None and 0 < part < 1:
                return number(whole + part)
        elif self.here.isdigit() and self.tokens[self.at + 1 : self.at + 2] == ["/"]:
            part = Fraction(int(self.take()))
            self.take("/")
            if self.here.isdigit() and int(self.here):
                return number(whole + part / int(self.take()))
        self.at = start
        return self.factor()

    def factor(self) -> Sum:
        value = self.unit()
        while self.here in ("^", "!"):
            value = whole_factorial(value) if self.take() == "!" else power(value, self.exponent())
        return value

    def exponent(self) -> Sum:
        if self.here == "{":
            return self.braced()
        sign = self._sign()
        return multiply(number(sign), self.unit())

    def unit(self) -> Sum:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return number(Fraction(f"0{token}" if token[0] == "." else token))
        if token in ("(", "[", "{"):
            value = self.sum()
            self.take({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token == "\\frac":
            above = self.argument()
            return multiply(above, power(self.argument(), number(-1)))
        if token == "\\binom":
            above, below = self.argument(), self.argument()
            under = multiply(whole_factorial(below), whole_factorial(add(above, negate(below))))
            return multiply(whole_factorial(above), power(under, number(-1)))
        if token in ("\\sqrt", "sqrt"):
            return self.root()
        name = token.lstrip("\\")
        if name in _FUNCTIONS:
            return self.function(name)
        if name in ("pi", "infty", *_GREEK):
            return atom(name)
        if len(token) == 1 and token.isascii() and token.isalpha():
            if self.here == "_":
                self.take()
                return atom((token, self.braced() if self.here == "{" else self.take()))
            return atom(token)
        raise AnswerError(f"{token!r} is not understood")

    def root(self) -> Sum:
        degree = number(2)
        if self.here == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        under = self.unit() if self.here == "(" else self.argument()
        return power(under, power(degree, number(-1)))

    def function(self, name: str) -> Sum:
        base: Sum | None = None
        raised: Sum | None = None
        while self.here in ("_", "^"):
            if self.take() == "_":
                base = self.argument()
            else:
                raised = self.exponent()
        value = atom((name, base, self.factor()))
        return value if raised is None else power(value, raised)

    def braced(self) -> Sum:
        self.take("{")
        value = self.sum()
        self.take("}")
        return value

    def argument(self) -> Sum:
        r"""TeX's argument: a group, or one character, so that \frac43 is four thirds."""
        if self.here == "{":
            return self.braced()
        if self.here.isdigit() and len(self.here) > 1:
            digit, self.tokens[self.at] = self.here[0], self.here[1:]
            return number(int(digit))
        return self.unit()
