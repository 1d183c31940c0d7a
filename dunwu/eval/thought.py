"""A thought, read left to right: sums, what they are compared with, and what is said of them.

One pass over tokens (sums, verdict words, subgoal words, sentence ends) with a small state. The
meaning of each thing counted is defined in `dunwu.eval.emergence`; here is how it is recognised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dunwu.eval.fragments import (
    MAX_OPERANDS,
    RUN_PATTERN,
    Expr,
    Fragment,
    combine,
    number,
    parse,
    read_number,
    split_run,
)
from dunwu.eval.trace import Equation, Span, Try
from dunwu.tasks.expression import Rational

VERDICT_REACH = 24
"""Characters between a sum and the words that judge it."""
NEED_REACH = 8
"""Characters between "need" and the value needed."""
MAX_ITEMS = 64
"""Sums of one attempt that are remembered; a longer attempt is judged by its last ones."""
MAX_NEEDS = 256
"""Different values needed that are remembered."""

_NO = (
    r"\bnot\s+(?:equal\s+to\s+)?-?[0-9]+|\bnot\s+(?:right|correct|it|the\s+target|work(?:s|ing)?)\b|\bno(?:pe)?\b(?!\s+(?:idea|solution))|\bwrong\b|\bincorrect\b"
    r"|\b(?:doesn'?t|does\s+not)\s+work\b|\bfail(?:s|ed)?\b|\btoo\s+(?:big|small|high|low|large)\b|[✗✘❌]"
    r"|(?:≠|!=|=/=)\s*-?[0-9]+|(?<!是)不是\s*-?[0-9]*|不等于\s*-?[0-9]*|不对|不行|不可以|不成|没有|没用|错了?|失败|太大|太小"
)
_YES = (
    r"\byes\b|\byep\b|\b(?:it\s+)?works\b|\bcorrect\b|\bthat(?:'s|\s+is)\s+(?:right|it)\b|\bperfect\b|\bgot\s+it\b"
    r"|\bfound\s+it\b|[✓✔✅√]|对了|对的|正确|成功|成了|可以|找到|行了|没错|就是它|是的|对(?![于比着面])"
)
_TOKEN = re.compile(
    rf"(?P<run>{RUN_PATTERN})"
    r"|(?P<keep>\bkeep(?:ing)?\s+(?P<kept_en>[0-9]+)|留(?:下|着|住)?\s*(?P<kept_zh>[0-9]+))"
    r"|(?P<need>\bneed(?:s|ed)?\b(?:\s+to\s+(?:make|get|reach))?|需要|还差|凑出?|(?<![不只主])要(?=\s*[0-9(（]))"
    rf"|(?P<yes_first>没错)|(?P<no>{_NO})|(?P<yes>{_YES})"
    r"|(?P<equals>={1,2}|＝|等于|得到?|\bequals?\b|\bis\b|\bmakes\b|\bgives\b)"
    r"|(?P<turn>\bwait\b|\blet\s+me\b|\btry(?:ing)?\b|\binstead\b|\banother\b|\bhow\s+about\b|\bbut\b|\bhmm\b|等等|等一下|但是|换|再试|试试|重新)"
    r"|(?P<end>[.。!！?？;；\n:：])",
    re.IGNORECASE,
)


@dataclass(eq=False)
class _Item:
    """One stated sum of the attempt being read."""

    start: int
    end: int
    expr: Expr | None
    stated: Rational | None
    is_true: bool
    consumed: bool = False


_Needs = dict[Rational, list[tuple[Rational, ...]]]
"""Value needed → which numbers of the problem are then left over for the last steps. `needs` holds all that the
thought stated, `needs_here` those of the current subgoal: a failure is a failure of these only."""


@dataclass(frozen=True)
class _Asked:
    """A backward equation waiting for its verdict: is `value` among what was made, with `kept` left over?"""

    equation: Equation
    key: str
    value: Rational
    kept: tuple[Rational, ...]


@dataclass
class Thought:
    """The state of one left-to-right pass; every token is handled in amortised constant time.

    `numbers` are the problem's, sorted. `equations`, `tries`, `spans`, `backtracks` and `subgoals` are the result.
    """

    numbers: tuple[Rational, ...]
    target: Rational
    equations: list[Equation] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    items: list[_Item] = field(default_factory=list)
    backtracks: int = 0
    subgoals: int = 0
    failed: bool = False
    turning: bool = False
    bare: Fragment | None = None
    asked: _Asked | None = None
    subgoal_open: bool = False
    kept: Rational | None = None
    need_at: int | None = None
    needs: _Needs = field(default_factory=dict)
    needs_here: _Needs = field(default_factory=dict)

    def token(self, match: re.Match[str]) -> None:
        """Anything but a sum."""
        kind, start, end = match.lastgroup, match.start(), match.end()
        if kind == "keep":
            kept = read_number(match.group("kept_en") or match.group("kept_zh"))
            if kept is not None:
                self.keep(kept, start, end)
        elif kind == "need":
            self.need_at = end
            self.spans.append(Span(start, end, "subgoal", None))
        elif kind in ("yes", "yes_first"):
            self.verdict(True, start, end)
        elif kind == "no":
            self.verdict(False, start, end)
        elif kind == "turn":
            self.turning = True
        elif kind == "end":
            self.need_at = None

    # -- sums ---------------------------------------------------------------------------------

    def statement(self, fragments: Sequence[Fragment]) -> None:
        """`a`, `a = b` or `a = b = c`: the expressions of one chain of equals signs."""
        first = next((f for f in fragments if f.has_operator), None)
        if self.need_at is not None and self._need(fragments, first):
            return
        self.need_at = None
        if first is None:
            return
        if len(fragments) == 1:
            self.bare = first
            return
        exprs = [parse(f.pieces) for f in fragments]
        values = [expr.value if expr else None for expr in exprs]
        is_true = values[0] is not None and all(value == values[0] for value in values)
        stated = values[0] if first is not fragments[0] else values[-1]
        backward = self._is_backward(first)
        self._note_equations(fragments, values, backward)
        if not backward or self._is_made(first):
            self._add(_Item(fragments[0].start, fragments[-1].end, None, stated, is_true), first)
        if backward:
            self._ask(first, is_true)

    def _note_equations(self, fragments: Sequence[Fragment], values: Sequence[Rational | None], backward: bool) -> None:
        for left, right, a, b in zip(fragments, fragments[1:], values, values[1:]):
            is_true = a is not None and a == b
            self.equations.append(Equation(left.start, right.end, is_true, backward))
            # A chain a=b=c shares b: the second span starts where the first ended.
            start = max(left.start, self.spans[-1].end if self.spans and self.spans[-1].kind == "equation" else 0)
            self.spans.append(Span(start, right.end, "equation", is_true))

    def _add(self, item: _Item, fragment: Fragment) -> None:
        if self.items and (self.turning or self._reached(self.items[-1])):
            uses_last = not self.turning and str(self.items[-1].stated) in fragment.pieces
            if not uses_last:
                self.close(None)
        self.turning = False
        self._another_attempt()
        item.expr = self._compose(fragment)
        self.items.append(item)
        del self.items[:-MAX_ITEMS]
        self.bare, self.asked = None, None

    def _another_attempt(self) -> None:
        """After a failure, whatever is attempted next is a backtrack: a sum, or another value asked for."""
        if self.failed:
            self.backtracks += 1
            self.failed = False

    def _compose(self, fragment: Fragment) -> Expr | None:
        """The expression with earlier results put back in, if that still uses the problem's numbers only."""
        used: list[_Item] = []

        def resolve(value: Rational) -> Expr:
            for item in results:
                if item.stated == value and item.expr is not None and item not in used:
                    used.append(item)
                    return item.expr
            return number(value)

        results = [item for item in self.items[: -MAX_OPERANDS - 1 : -1] if not item.consumed]
        composed = parse(fragment.pieces, resolve) if results else None
        if used and composed is not None and _within(composed.leaves, self.numbers):
            for item in used:
                item.consumed = True
            return composed
        return parse(fragment.pieces)

    def _reached(self, item: _Item) -> bool:
        """Does it state the target, with as many numbers as there are? (Fewer: a step that happens to pass it.)"""
        return item.stated == self.target and item.expr is not None and len(item.expr.leaves) >= len(self.numbers)

    # -- subgoals ------------------------------------------------------------------------------

    def keep(self, value: Rational, start: int, end: int) -> None:
        """A kept number (keep 7, 留7): a new subgoal; the attempt before it is over."""
        self.turning = True
        self.kept = value
        self.needs_here = {}
        self.subgoals += 1
        self.subgoal_open = True
        self.spans.append(Span(start, end, "subgoal", None))

    def _need(self, fragments: Sequence[Fragment], first: Fragment | None) -> bool:
        """Inside "need …": a bare value, or an expression that starts from the target."""
        if first is None and len(fragments) == 1 and self._near_need(fragments[0].start):
            value = parse(fragments[0].pieces)
            if value is not None:
                self._open_subgoal()
                self._add_kept_need(value.value)
            return True
        if first is not None and len(fragments) == 1 and self._is_backward(first):
            self._open_subgoal()
            self._add_need(parse(first.pieces))
            return True
        if first is not None and self._near_need(fragments[0].start):
            self._open_subgoal()
        return False

    def _near_need(self, position: int) -> bool:
        return self.need_at is not None and position - self.need_at <= NEED_REACH

    def _open_subgoal(self) -> None:
        if not self.subgoal_open:
            self.subgoals += 1
            self.turning = True
            self.needs_here = {}
        self.subgoal_open = True

    def _is_backward(self, fragment: Fragment) -> bool:
        """Two numbers, one of them the target (or a value needed) and not a number at hand."""
        if len(fragment.pieces) != 3:
            return False
        expr = parse(fragment.pieces)
        if expr is None or len(expr.leaves) != 2:
            return False
        in_need = self.need_at is not None
        for goal, other in (expr.leaves, expr.leaves[::-1]):
            if goal != self.target and not (in_need and goal in self.needs):
                continue
            if other == self.kept or (other in self.numbers and (in_need or not self._at_hand(goal))):
                return True
        return False

    def _is_made(self, fragment: Fragment) -> bool:
        """Keep 1 of 1, 1, 18 for 18: `18-1=17` may be made from the others as well as ask for what is missing."""
        expr = parse(fragment.pieces)
        return self.kept is not None and expr is not None and _within((*expr.leaves, self.kept), self.numbers)

    def _at_hand(self, value: Rational) -> bool:
        """Is it a number of the problem, or a result not yet used?"""
        return value in self.numbers or any(item.stated == value and not item.consumed for item in self.items)

    def _ask(self, fragment: Fragment, is_true: bool) -> None:
        """A backward equation gives a value needed, and may be judged itself: `24-7=17 no`."""
        expr = parse(fragment.pieces)
        kept = self._add_need(expr)
        if kept and expr is not None and expr.value is not None:
            equation = Equation(fragment.start, self.equations[-1].end, is_true, True)
            self.asked = _Asked(equation, expr.key, expr.value, kept)

    def _add_need(self, expr: Expr | None) -> tuple[Rational, ...]:
        """Remember the value of a backward expression; gives the numbers left over, () if it is none."""
        if expr is None or expr.value is None:
            return ()
        pairs = (expr.leaves, expr.leaves[::-1])
        for goal, kept in pairs:
            if goal == self.target and kept in self.numbers:
                return self._remember(expr.value, (kept,))
        for goal, kept in pairs:
            for leaves in self.needs.get(goal, ()):
                if _within((*leaves, kept), self.numbers):
                    return self._remember(expr.value, (*leaves, kept))
        return ()

    def _remember(self, value: Rational, kept: tuple[Rational, ...]) -> tuple[Rational, ...]:
        for needs in (self.needs, self.needs_here):
            known = needs.setdefault(value, []) if len(needs) < MAX_NEEDS else needs.get(value, [])
            if kept not in known and len(known) < MAX_OPERANDS:
                known.append(kept)
        return kept

    def _add_kept_need(self, value: Rational | None) -> None:
        """ "Keep 7: need 17" holds only if some operation on 17 and 7 gives the target."""
        if value is None or self.kept is None:
            return
        whole, kept = number(value), number(self.kept)
        ways = [combine(op, a, b).value for op in "+-*/" for a, b in ((whole, kept), (kept, whole))]
        if self.target in ways and self.kept in self.numbers:
            self._remember(value, (self.kept,))

    # -- verdicts ------------------------------------------------------------------------------

    def verdict(self, claims: bool, start: int, end: int) -> None:
        """Judge the attempt just read, if one is near enough."""
        if self.bare is not None and start - self.bare.end <= VERDICT_REACH:
            bare = self.bare
            self._add(_Item(bare.start, bare.end, None, None, True), bare)
        if self.asked is not None:
            if start - self.asked.equation.end <= VERDICT_REACH:
                self._answer_asked(self.asked, claims, start, end)
        elif self.items and start - self.items[-1].end <= VERDICT_REACH:
            self.close((claims, start, end))

    def _answer_asked(self, asked: _Asked, claims: bool, start: int, end: int) -> None:
        made = [item.expr for item in self.items if item.expr is not None]
        works = any(
            expr.value == asked.value and tuple(sorted(expr.leaves + asked.kept)) == self.numbers for expr in made
        )
        sound = asked.equation.is_true and all(item.is_true for item in self.items)
        self._another_attempt()
        self._judged(Try(asked.equation.start, end, claims, True, works, sound, (asked.key,)), start)
        self.asked, self.turning = None, claims

    def close(self, verdict: tuple[bool, int, int] | None) -> None:
        """End the attempt: with a verdict, or because its stated value is the target; else it is no try."""
        items, self.items = self.items, []
        self.bare, self.turning = None, False
        if not items or (verdict is None and not self._reached(items[-1])):
            return
        claims, start, end = verdict or (True, items[-1].end, items[-1].end)
        works = (
            self._works(items[-1], self.needs) if claims else any(self._works(item, self.needs_here) for item in items)
        )
        keys = tuple(item.expr.key for item in items if item.expr is not None and not item.consumed)
        sound = all(item.is_true for item in items)
        attempt = Try(items[0].start, end, claims, verdict is not None, works, sound, keys)
        self._judged(attempt, start if verdict else None)

    def _judged(self, attempt: Try, verdict_start: int | None) -> None:
        self.tries.append(attempt)
        self.subgoal_open = False
        self.failed = not attempt.claims
        if verdict_start is not None:
            self.spans.append(Span(verdict_start, attempt.end, "verdict", attempt.is_true_check))

    def _works(self, item: _Item, needs: _Needs) -> bool:
        expr = item.expr
        if expr is None or expr.value is None:
            return False
        if expr.value == self.target and expr.leaves == self.numbers:
            return True
        return any(tuple(sorted(expr.leaves + kept)) == self.numbers for kept in needs.get(expr.value, ()))


def read_thought(text: str, end: int, numbers: tuple[Rational, ...], target: Rational) -> Thought:
    """Read `text[:end]` against a problem's sorted numbers and its target."""
    thought = Thought(numbers, target)
    chain: list[Fragment] = []
    equals_end: int | None = None

    def flush() -> None:
        if chain:
            thought.statement(tuple(chain))
            chain.clear()

    for match in _TOKEN.finditer(text, 0, end):
        kind, start = match.lastgroup, match.start()
        if kind == "run":
            for index, fragment in enumerate(split_run(match.group(), start)):
                gap = text[equals_end : fragment.start] if equals_end is not None and index == 0 else "no equals sign"
                if gap.strip(" \t(（"):
                    flush()
                chain.append(fragment)
            equals_end = None
        elif kind == "equals" and chain and not text[chain[-1].end : start].strip(" \t)）"):
            equals_end = match.end()
        else:
            flush()
            equals_end = None
            thought.token(match)
    flush()
    thought.close(None)
    return thought


def _within(leaves: Sequence[Rational], numbers: Sequence[Rational]) -> bool:
    """Is the first a sub-multiset of the second?"""
    left = list(numbers)
    for leaf in leaves:
        if leaf not in left:
            return False
        left.remove(leaf)
    return True
