"""Knights and knaves: knights tell the truth, knaves lie; from what two or three people say, find who is what.

The problem is `{"statements": [["A", "knave", "B"], ["B", "same", "A", "B"]]}`: a speaker, what is said, of whom. The answer names everyone once, `A knight, B knave` or `A骑士，B无赖`, in any order, all in one language; right if
it is the one assignment that fits (found by trying all). No partial credit.
Every puzzle of two and of three people is listed. Its split is a hash of the puzzle up to renaming and reordering, so a
held-out puzzle is held out under every name and in both languages; the split's list comes once before anything comes twice.
Not covered: people with other names than A to F; generated puzzles of more than three people (given ones may have six).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from itertools import permutations, product
from random import Random
from typing import Any

from dunwu.tasks.expression import SPACE
from dunwu.tasks.language import check_share, draw_language
from dunwu.tasks.rewrite import rewrite
from dunwu.tasks.splits import SPLITS, check_draw, permuted, split_by
from dunwu.types import DunwuError, Message, Problem, Verdict, derive_seed

MAX_PEOPLE = 6
"""Most people in a puzzle to be judged; generated ones have two or three."""
MAX_STATEMENTS = 24
"""Most statements in a puzzle to be judged."""

Statement = tuple[str, ...]
"""(speaker, what, of whom…), what being one of `SAYINGS`."""

SAYINGS: dict[str, tuple[int, str, str]] = {
    "knight": (1, "{0} is a knight", "{0}是骑士"),
    "knave": (1, "{0} is a knave", "{0}是无赖"),
    "same": (2, "{0} and {1} are the same", "{0}和{1}相同"),
    "different": (2, "{0} and {1} are different", "{0}和{1}不同"),
    "knights": (2, "{0} and {1} are knights", "{0}和{1}都是骑士"),
    "knaves": (2, "{0} and {1} are knaves", "{0}和{1}都是无赖"),
    "some-knight": (2, "{0} or {1} is a knight", "{0}或{1}是骑士"),
    "some-knave": (2, "{0} or {1} is a knave", "{0}或{1}是无赖"),
}
"""What can be said: of how many, in English, in Chinese. "or" is true of both as well."""

_SPEAKERS = {2: ("AB", "ABA", "ABB"), 3: ("ABC",)}
"""Who speaks in turn in a generated puzzle; two people alone have too few puzzles with one statement each."""

_PERSON = re.compile(r"[A-F]")
_ANSWERS = (
    (re.compile(r"[A-F] knight|[A-F] knave"), re.compile(r", ?")),
    (re.compile(r"[A-F] ?骑士|[A-F] ?无赖"), re.compile(r"[，,] ?")),
)


def true_of(what: str, kinds: Sequence[bool]) -> bool:
    """Whether a saying holds of people who are knights (True) or knaves (False).

    Example:
        >>> true_of("same", [True, False]), true_of("some-knave", [True, False])
        (False, True)
    """
    if what in ("knight", "knights"):
        return all(kinds)
    if what in ("knave", "knaves"):
        return not any(kinds)
    if what == "some-knight":
        return any(kinds)
    if what == "some-knave":
        return not all(kinds)
    return (kinds[0] == kinds[1]) == (what == "same")


def solutions(statements: Sequence[Statement]) -> list[dict[str, bool]]:
    """Every assignment (person → is a knight) under which knights' statements are true and knaves' false.

    Example:
        >>> solutions([("A", "knave", "B"), ("B", "different", "A", "B")])
        [{'A': False, 'B': True}]
    """
    people = people_of(statements)
    found = []
    for kinds in product((True, False), repeat=len(people)):
        assigned = dict(zip(people, kinds))
        if all(true_of(what, [assigned[x] for x in whom]) == assigned[who] for who, what, *whom in statements):
            found.append(assigned)
    return found


def people_of(statements: Sequence[Statement]) -> list[str]:
    """Everyone who speaks or is spoken of, in alphabetical order."""
    return sorted({name for who, _, *whom in statements for name in (who, *whom)})


def say(statement: Statement, language: str) -> str:
    """One statement in words, without its speaker.

    Example:
        >>> say(("A", "same", "B", "C"), "en")
        'B and C are the same'
    """
    _, english, chinese = SAYINGS[statement[1]]
    return (english if language == "en" else chinese).format(*statement[2:])


def puzzle_question(statements: Sequence[Statement], language: str) -> str:
    """The question.

    Example:
        >>> puzzle_question([("A", "knave", "B"), ("B", "different", "A", "B")], "en")
        'Knights tell the truth, knaves lie. A says: B is a knave. B says: A and B are different. Who is what?'
    """
    if language == "zh":
        return "骑士说真话，无赖说谎。" + "".join(f"{s[0]}说：{say(s, language)}。" for s in statements) + "谁是什么？"
    said = " ".join(f"{s[0]} says: {say(s, language)}." for s in statements)
    return f"Knights tell the truth, knaves lie. {said} Who is what?"


def answer_text(assigned: Mapping[str, bool], language: str) -> str:
    """An assignment as an answer.

    Example:
        >>> answer_text({"A": False, "B": True}, "en"), answer_text({"A": False, "B": True}, "zh")
        ('A knave, B knight', 'A无赖，B骑士')
    """
    if language == "zh":
        return "，".join(f"{who}{'骑士' if knight else '无赖'}" for who, knight in assigned.items())
    return ", ".join(f"{who} {'knight' if knight else 'knave'}" for who, knight in assigned.items())


def read_answer(text: str) -> dict[str, bool] | None:
    """The assignment an answer states; None if it does not say one kind for each of its people, in one language.

    Example:
        >>> read_answer("B knight, A knave"), read_answer("A knight, A knave")
        ({'A': False, 'B': True}, None)
    """
    text = text.strip(SPACE)
    for part, comma in _ANSWERS:
        parts = comma.split(text, maxsplit=MAX_PEOPLE)
        if all(part.fullmatch(piece) for piece in parts):
            stated = {piece[0]: piece.endswith(("knight", "骑士")) for piece in parts}
            return dict(sorted(stated.items())) if len(stated) == len(parts) else None
    return None


def try_cases(
    statements: Sequence[Statement], order: Sequence[Mapping[str, bool]], language: str
) -> list[tuple[str, bool]]:
    """One line for each assignment of `order`, and whether it fits: speakers are checked up to the first that breaks it.

    Example:
        >>> try_cases([("A", "knave", "B"), ("B", "different", "A", "B")], [{"A": True, "B": True}], "en")
        [('If A knight, B knight: A false no', False)]
    """
    lines = []
    for assigned in order:
        checks, fits = [], True
        for who, what, *whom in statements:
            truth = true_of(what, [assigned[name] for name in whom])
            if language == "zh":
                checks.append(f"{who}{'真' if truth else '假'}")
            else:
                checks.append(f"{who} {'true' if truth else 'false'}")
            fits = truth == assigned[who]
            if not fits:
                break
        if language == "zh":
            line = f"若{answer_text(assigned, 'zh')}：{'，'.join(checks)}，{'对了！' if fits else '不对'}"
        else:
            line = f"If {answer_text(assigned, 'en')}: {', '.join(checks)} {'yes!' if fits else 'no'}"
        lines.append((line, fits))
    return lines


def all_cases(people: Sequence[str]) -> list[dict[str, bool]]:
    """Every assignment, knights first."""
    return [dict(zip(people, kinds)) for kinds in product((True, False), repeat=len(people))]


@lru_cache(maxsize=2)
def puzzles(people: int) -> dict[str, tuple[tuple[Statement, ...], ...]]:
    """Every puzzle of 2 or 3 people (`_SPEAKERS`) with exactly one solution, by split, in a fixed order."""
    names = "ABC"[:people]
    splits: dict[str, list[tuple[Statement, ...]]] = {split: [] for split in SPLITS}
    cases = all_cases(names)
    options: dict[str, list[tuple[Statement, int]]] = {}  # of a speaker: statement, the cases it leaves as a bit mask
    for speaker in names:
        options[speaker] = []
        for what, (count, *_) in SAYINGS.items():
            for whom in _whom(speaker, names, count):
                fits = [true_of(what, [case[name] for name in whom]) == case[speaker] for case in cases]
                options[speaker].append(((speaker, what, *whom), sum(fit << place for place, fit in enumerate(fits))))
    for speakers in _SPEAKERS[people]:
        for chosen in product(*(options[speaker] for speaker in speakers)):
            left = -1
            for _, mask in chosen:
                left &= mask
            statements = tuple(statement for statement, _ in chosen)
            if left > 0 and left & (left - 1) == 0 and len(set(statements)) == len(statements):
                splits[split_by("knights", _canonical(statements, names))].append(statements)
    return {split: tuple(found) for split, found in splits.items()}


def _whom(speaker: str, names: str, count: int) -> list[tuple[str, ...]]:
    """Of whom something can be said: never of oneself alone."""
    if count == 1:
        return [(name,) for name in names if name != speaker]
    return [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]


def _canonical(statements: Sequence[Statement], names: str) -> str:
    """The same text for puzzles that differ only in who is called what."""
    texts = []
    for renamed in permutations(names):
        new = dict(zip(names, renamed))
        said = sorted((new[who], what, *sorted(new[name] for name in whom)) for who, what, *whom in statements)
        texts.append(";".join(" ".join(statement) for statement in said))
    return min(texts)


class Knights:
    """The exercise: `dunwu.types.Exercise` for knights and knaves.

    Args:
        chinese: share of the problems asked in Chinese.
        three: share of the problems with three people; the others have two.

    Example:
        >>> exercise = Knights()
        >>> problem = exercise.draw("test", seed=0, index=0)
        >>> answer = answer_text(solutions(problem.data["statements"])[0], "zh")
        >>> exercise.judge(problem, answer).rewards
        {'accuracy': 1.0}
    """

    name = "knights"
    reasoning = True

    def __init__(self, chinese: float = 0.4, three: float = 0.6) -> None:
        self.chinese = check_share(self.name, "chinese", chinese)
        self.three = check_share(self.name, "three", three)

    def draw(self, split: str, seed: int, index: int) -> Problem:
        """The problem at (split, seed, index).

        Raises:
            UsageError: unknown split, negative index.
        """
        check_draw(split, index)
        people = 3 if derive_seed(self.name, "people", split, seed, index) / 2**63 < self.three else 2
        listed = puzzles(people)[split]
        lap, place = divmod(index, len(listed))
        statements = listed[permuted(place, len(listed), self.name, people, split, seed, lap)]
        language = draw_language(self.name, self.chinese, split, seed, index)
        meta = {"split": split, "seed": seed, "index": index, "language": language, "family": self.name}
        asked = puzzle_question(statements, language)
        data = {"statements": [list(statement) for statement in statements], "language": language}
        return Problem(self.name, f"{self.name}-{derive_seed(asked):016x}", data, "", meta, (Message("user", asked),))

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        """Accuracy 1 if the answer is the only solution; "unparsable" if it states no kinds; "error" without exactly one."""
        statements, fault = read_statements(problem.data)
        found = [] if fault else solutions(statements)
        if fault is None and len(found) != 1:
            fault = f"problem: {len(found)} solutions, not one"
        if fault is not None:
            return Verdict({}, 0.0, "error", fault)
        stated = None if answer is None else read_answer(answer)
        if answer is None or stated is None:
            reason = "no answer" if answer is None else 'answer: not of the form "A knight, B knave"'
            return Verdict({"accuracy": 0.0}, 0.0, "unparsable", reason)
        text = answer.strip(SPACE)
        if stated != found[0]:
            return Verdict({"accuracy": 0.0}, 0.0, "ok", f"not {answer_text(found[0], 'en')}", text)
        return Verdict({"accuracy": 1.0}, 1.0, "ok", None, text)

    def key(self, problem: Problem, answer: str | None) -> Hashable:
        """Who is said to be what; None if the answer states no kinds."""
        stated = None if answer is None else read_answer(answer)
        return None if stated is None else tuple(stated.items())

    def solution(self, problem: Problem) -> Message:
        """All cases up to the one that fits, in the style of `rewrite`.

        Raises:
            DunwuError: the problem is malformed or has not exactly one solution.
        """
        statements, fault = read_statements(problem.data)
        found = [] if fault else solutions(statements)
        if len(found) != 1:
            raise DunwuError(f"problem {problem.id}: {fault or f'{len(found)} solutions'}", "give one that has one")
        language = "zh" if problem.meta.get("language", problem.data.get("language")) == "zh" else "en"
        cases = all_cases(people_of(statements))
        lines = try_cases(statements, cases[: cases.index(found[0]) + 1], language)
        thinking = "\n".join(line for line, _ in lines)
        return rewrite(problem, thinking, answer_text(found[0], language), derive_seed(problem.id, "gold"))


def draw_puzzle_of(dice: Random, split: str, three: float) -> tuple[Statement, ...]:
    """A puzzle of `split` at random, of three people with probability `three`."""
    return dice.choice(puzzles(3 if dice.random() < three else 2)[split])


def read_statements(data: Mapping[str, Any]) -> tuple[tuple[Statement, ...], str | None]:
    """The statements of a problem's data, and what is wrong with them."""
    raw = data.get("statements")
    if not isinstance(raw, list | tuple) or not 1 <= len(raw) <= MAX_STATEMENTS:
        return (), f'problem: "statements" is not a list of 1 to {MAX_STATEMENTS} statements'
    statements = []
    for place, item in enumerate(raw, 1):
        if not isinstance(item, list | tuple) or len(item) < 3 or not all(isinstance(part, str) for part in item):
            return (), f"problem: statement {place} is not [speaker, what, of whom]"
        who, what, *whom = item
        if what not in SAYINGS or len(whom) != SAYINGS[what][0]:
            return (), f"problem: statement {place} does not say one of {', '.join(SAYINGS)} of one or two people"
        if not all(_PERSON.fullmatch(name) for name in (who, *whom)):
            return (), f"problem: statement {place} is about people other than A to F"
        statements.append((who, what, *whom))
    return tuple(statements), None
