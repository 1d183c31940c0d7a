"""Knights and knaves: one solution each, disjoint splits up to renaming, a strict verifier."""

from __future__ import annotations

from itertools import permutations

import pytest

from dunwu.tasks.knights import (
    SAYINGS,
    Knights,
    all_cases,
    puzzle_question,
    puzzles,
    read_answer,
    say,
    solutions,
    true_of,
    try_cases,
)
from dunwu.tasks.language import consistency
from dunwu.types import DunwuError, Problem, UsageError

PUZZLE = [["A", "knave", "B"], ["B", "different", "A", "B"]]
"""A knight → B knave → "different" true from a knave, no; A knave → B knight → "different" true: the solution."""


def test_every_saying_by_its_truth_table() -> None:
    tables = {
        "same": (True, False, False, True),
        "different": (False, True, True, False),
        "knights": (True, False, False, False),
        "knaves": (False, False, False, True),
        "some-knight": (True, True, True, False),
        "some-knave": (False, True, True, True),
    }
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    for what, expected in tables.items():
        assert tuple(true_of(what, pair) for pair in pairs) == expected, what
    assert [true_of("knight", [kind]) for kind in (True, False)] == [True, False]
    assert [true_of("knave", [kind]) for kind in (True, False)] == [False, True]
    assert set(tables) | {"knight", "knave"} == set(SAYINGS)


def test_solved_by_hand() -> None:
    assert solutions([tuple(statement) for statement in PUZZLE]) == [{"A": False, "B": True}]
    assert len(solutions([("A", "knave", "B"), ("B", "knave", "A")])) == 2
    assert solutions([("A", "knave", "A")]) == []


@pytest.mark.parametrize("people", [2, 3])
def test_generated_puzzles_have_one_solution_and_disjoint_splits(people: int) -> None:
    """Disjoint under every renaming of the people."""
    listed = puzzles(people)
    held_out = {frozenset(p) for split in ("valid", "test") for p in listed[split]}
    assert all(len(listed[split]) >= 20 for split in listed)
    names = "ABC"[:people]
    for place, puzzle in enumerate(listed["train"]):
        if place % 10 == 0:
            assert len(solutions(puzzle)) == 1
        for renamed in permutations(names):
            new = dict(zip(names, renamed))
            said = frozenset((new[who], what, *sorted(new[name] for name in whom)) for who, what, *whom in puzzle)
            assert said not in held_out


def test_a_split_comes_once_before_anything_comes_twice() -> None:
    exercise = Knights(chinese=0.0, three=0.0)
    count = len(puzzles(2)["test"])
    asked = [exercise.draw("test", 5, index).messages[0].content for index in range(count)]
    assert len(set(asked)) == count
    assert asked != [exercise.draw("test", 6, index).messages[0].content for index in range(count)]


def test_questions_and_statements_in_both_languages() -> None:
    for what, (count, *_) in SAYINGS.items():
        statement = ("A", what, *"BC"[:count])
        assert consistency(say(statement, "en"), "en") == consistency(say(statement, "zh"), "zh") == 1.0
    statements = [tuple(statement) for statement in PUZZLE]
    assert puzzle_question(statements, "zh") == "骑士说真话，无赖说谎。A说：B是无赖。B说：A和B不同。谁是什么？"


def test_cases_by_hand() -> None:
    statements = [tuple(statement) for statement in PUZZLE]
    lines = try_cases(statements, all_cases("AB"), "en")
    assert lines == [
        ("If A knight, B knight: A false no", False),
        ("If A knight, B knave: A true, B true no", False),
        ("If A knave, B knight: A false, B true yes!", True),
        ("If A knave, B knave: A true no", False),
    ]
    assert try_cases(statements, all_cases("AB"), "zh")[2] == ("若A无赖，B骑士：A假，B真，对了！", True)


@pytest.mark.parametrize(
    ("answer", "accuracy", "status"),
    [
        ("A knave, B knight", 1, "ok"),
        ("B knight, A knave", 1, "ok"),
        ("B knight,A knave", 1, "ok"),
        (" A knave, B knight\n", 1, "ok"),
        ("A无赖，B骑士", 1, "ok"),
        ("B骑士,A无赖", 1, "ok"),
        ("A knight, B knave", 0, "ok"),
        ("A knave", 0, "ok"),  # B is left out
        ("A knave, B knight, C knight", 0, "ok"),
        ("A knave, B knight, B knave", 0, "unparsable"),
        ("A knave, B knight, A knave", 0, "unparsable"),
        ("A knave, B骑士", 0, "unparsable"),
        ("A is a knave, B is a knight", 0, "unparsable"),
        ("A Knave, B Knight", 0, "unparsable"),
        ("a knave, b knight", 0, "unparsable"),
        ("A knave, B knight.", 0, "unparsable"),
        ("A knave B knight", 0, "unparsable"),
        ("A knave,, B knight", 0, "unparsable"),
        ("A knave, B knight,", 0, "unparsable"),
        ("A knave or knight, B knight", 0, "unparsable"),
        ("knave, knight", 0, "unparsable"),
        ("A knave, " * 100_000, 0, "unparsable"),
        ("", 0, "unparsable"),
        (None, 0, "unparsable"),
    ],
)
def test_answers(answer: str | None, accuracy: float, status: str) -> None:
    verdict = Knights().judge(Problem("knights", "", {"statements": PUZZLE}, ""), answer)
    assert (verdict.rewards, verdict.reward, verdict.status) == ({"accuracy": accuracy}, accuracy, status), verdict


@pytest.mark.parametrize(
    "statements",
    [
        None,
        [],
        "A is a knave",
        [["A", "knave"]],
        [["A", "liar", "B"]],
        [["A", "same", "B"]],
        [["A", "knave", "B", "C"]],
        [["A", "knave", "Z"]],
        [["A", "knave", 3]],
        ["AB"],
        [["A", "knave", "B"]],  # two solutions
        [["A", "knave", "A"]],  # none
        [["A", "knave", "B"]] * 25,
    ],
)
def test_malformed_problems_are_errors_and_never_free(statements: object) -> None:
    problem = Problem("knights", "k", {"statements": statements}, "")
    for answer in ("A knight, B knave", "A knight", None):
        verdict = Knights().judge(problem, answer)
        assert (verdict.status, verdict.rewards) == ("error", {}) and str(verdict.reason).startswith("problem: ")
    with pytest.raises(DunwuError, match="problem k"):
        Knights().solution(problem)


def test_given_puzzles_may_be_larger_than_generated_ones() -> None:
    chain = [["A", "knight", "B"], ["B", "knight", "C"], ["C", "knight", "D"], ["D", "same", "A", "B"]]
    problem = Problem("knights", "", {"statements": [*chain, ["E", "knave", "A"], ["F", "knave", "E"]]}, "")
    message = Knights().solution(problem)
    answer = message.content.split("<answer>")[1].split("</answer>")[0]
    assert Knights().judge(problem, answer).reward == 1.0
    assert len(read_answer(answer) or {}) == 6


def test_keys() -> None:
    exercise, problem = Knights(), Problem("knights", "", {"statements": PUZZLE}, "")
    keys = {exercise.key(problem, answer) for answer in ("A knave, B knight", "B knight, A knave", "A无赖，B骑士")}
    assert len(keys) == 1 and None not in keys
    assert exercise.key(problem, "A knight, B knight") not in keys
    assert exercise.key(problem, "who knows") is None and exercise.key(problem, None) is None


def test_bad_places() -> None:
    with pytest.raises(UsageError, match="unknown split"):
        Knights().draw("dev", 0, 0)
    with pytest.raises(UsageError, match="three = 3 is not a share"):
        Knights(three=3)
