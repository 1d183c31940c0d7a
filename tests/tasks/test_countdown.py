"""The Countdown task: generator, splits, gold, verdicts, answer keys, prompts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from subprocess import run
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.solver import solve
from dunwu.tasks.splits import SPLITS, split_of
from dunwu.tasks.templates import TEMPLATE_EN, TEMPLATE_ZH
from dunwu.types import DunwuError, Problem, Task, UsageError

TASK = Countdown()


def asked(numbers: Any, target: Any) -> Problem:
    """A problem as `dunwu score` makes it."""
    return Problem("countdown", "", {"numbers": numbers, "target": target}, "")


def said(answer: str) -> str:
    return f"<think>…</think>\n<answer>{answer}</answer>"


# --- the generator -------------------------------------------------------------------------------------------------

CONFIGS = [
    CountdownConfig(),
    CountdownConfig(operands=2, high=30),
    CountdownConfig(operands=4),
    CountdownConfig(high=100, target_high=1000),
    CountdownConfig(solvable="never"),
    CountdownConfig(solvable="any", operands=4, high=8),
    CountdownConfig(max_solutions=1),
    CountdownConfig(min_solutions=3, low=1, high=10),
    CountdownConfig(language="zh", low=0, high=12),
    CountdownConfig(low=1, high=30, target_low=-50, target_high=10**9, solvable="any"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_problems_are_what_the_config_says(config: CountdownConfig) -> None:
    task = Countdown(config)
    for split in SPLITS:
        for index in [*range(12), 10**6]:
            problem = task.problem(split, 3, index)
            numbers, target = problem.data["numbers"], problem.data["target"]
            assert len(numbers) == config.operands
            assert all(config.low <= number <= config.high for number in numbers)
            assert config.target_low <= target <= config.target_high
            assert split_of(numbers, target) == split
            solutions = len(solve(numbers, target))
            fewest, most = config.min_solutions or 0, config.max_solutions or 10**9
            assert fewest <= solutions <= most
            assert config.solvable == "any" or (solutions > 0) == (config.solvable == "only")


@pytest.mark.parametrize("config", [CountdownConfig(), CountdownConfig(operands=4, high=10)], ids=repr)
def test_gold_earns_everything_and_corrupted_gold_no_accuracy(config: CountdownConfig) -> None:
    task = Countdown(config)
    for index in range(150):
        problem = task.problem("valid", 0, index)
        gold = task.gold(problem)
        verdict = task.score(problem, gold)
        assert (verdict.rewards, verdict.reward) == ({"accuracy": 1.0, "format": 1.0}, 2.0)
        assert (verdict.status, verdict.reason) == ("ok", None)
        other = Problem("countdown", "", {**problem.data, "target": problem.data["target"] + 1}, "")
        assert task.score(other, gold).rewards == {"accuracy": 0.0, "format": 1.0}
        for wrong in ("+1</answer>", "*1</answer>", "-0</answer>", "=</answer>", "", "</answer></answer>"):
            assert task.score(problem, gold.replace("</answer>", wrong)).rewards["accuracy"] == 0.0


def test_same_draw_same_problem_and_neighbours_differ() -> None:
    first = [Countdown().problem("train", seed, index) for seed in (0, 1) for index in range(200)]
    assert first == [Countdown().problem("train", seed, index) for seed in (0, 1) for index in range(200)]
    # `seed + index` would make the second seed's problems the first's, shifted by one.
    assert [p.id for p in first[1:200]] != [p.id for p in first[200:399]]
    assert len({p.id for p in first[:200]} & {p.id for p in first[200:]}) < 20


def test_draws_are_pinned_across_processes_and_versions() -> None:
    code = (
        "from dunwu.tasks import get_task\n"
        "for options in ({}, {'operands': 4}):\n"
        "    task = get_task('countdown', **options)\n"
        "    print([list(task.problem('test', 0, i).data.values()) for i in range(3)])\n"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[[[3, 18, 18], 72], [[6, 9, 7], 22], [[11, 7, 4], 14]]",
        "[[[3, 11, 6, 7], 79], [[1, 8, 7, 13], 54], [[14, 11, 20, 13], 9]]",
    ]


def test_the_test_split_is_distinct_problems_and_no_other_splits() -> None:
    test = {TASK.problem("test", 0, index).id for index in range(1024)}
    assert len(test) == 1024
    assert len({Countdown(CountdownConfig(operands=4)).problem("test", 0, index).id for index in range(300)}) == 300
    rest = {
        TASK.problem(split, seed, index).id for split in ("train", "valid") for seed in (0, 1) for index in range(2000)
    }
    assert not test & rest


def test_a_lap_of_a_split_is_every_problem_of_it_once() -> None:
    """2 numbers of 1..5, target 1..9: the splits together are exactly the problems brute force finds."""
    task = Countdown(CountdownConfig(operands=2, high=5, target_high=9))
    expected = {
        (tuple(sorted((a, b))), target)
        for a in range(1, 6)
        for b in range(1, 6)
        for target in range(1, 10)
        if target in (a + b, a - b, a * b, Fraction(a, b))
    }
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for split in SPLITS:
        size = sum(split_of(*pair) == split for pair in expected)
        for index in range(2 * size):
            data = task.problem(split, 5, index).data
            found[tuple(sorted(data["numbers"])), data["target"]] += 1
    assert found == Counter(dict.fromkeys(expected, 2))


def test_numbers_are_shown_in_every_order() -> None:
    rising = sum(list(d) == sorted(d) for d in (TASK.problem("train", 0, i).data["numbers"] for i in range(600)))
    assert 60 < rising < 180  # a sixth, and some more from equal numbers


def test_wrong_draws_and_empty_splits() -> None:
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        TASK.problem("dev", 0, 0)
    with pytest.raises(DunwuError, match="no problem in split 'test'"):
        Countdown(CountdownConfig(low=1, high=1, target_low=50)).problem("test", 0, 0)
    with pytest.raises(DunwuError, match="no problem in split 'test'"):
        Countdown(CountdownConfig(operands=4, low=1, high=1, target_low=50)).problem("test", 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"operands": 1},
        {"operands": 7},
        {"low": -1},
        {"low": 9, "high": 8},
        {"high": 10**9},
        {"target_low": 5, "target_high": 4},
        {"target_high": 10**30},
        {"solvable": "sometimes"},
        {"language": "fr"},
        {"min_solutions": 3, "max_solutions": 2},
        {"max_solutions": 0},
        {"solvable": "never", "min_solutions": 1},
        {"prompt_template": "Solve it."},
        {"format_weight": float("nan")},
        {"operands": "3"},
        {"operands": 3.0},
        {"operands": True},
        {"low": None},
        {"max_solutions": "1"},
        {"language": 3},
        {"solvable": None},
        {"prompt_template": 3},
        {"think_opened": "maybe"},
        {"accuracy_weight": "1"},
    ],
)
def test_config_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CountdownConfig(**options)


# --- verdicts ------------------------------------------------------------------------------------------------------

# answer to [3, 8, 3, 8] → 24, accuracy, status
ANSWERS = [
    ("8/(3-8/3)", 1.0, "ok"),
    (" 8 ÷ ( 3 − 8 ÷ 3 )\n", 1.0, "ok"),
    ("(8/(3-(8/3)))", 1.0, "ok"),
    ("3*8", 0.0, "ok"),  # the value, but not all numbers
    ("24", 0.0, "ok"),
    ("3*8*(8-8+3)/3", 0.0, "ok"),  # a number too often
    ("3*8+3-8", 0.0, "ok"),  # all numbers, wrong value
    ("38-8-3-3", 0.0, "ok"),  # numbers run together
    ("8*3+(8-8)*3", 0.0, "ok"),
    ("8/(3-8/3)+0", 0.0, "ok"),  # a number that was not given
    ("8/(3-8/3)*1", 0.0, "ok"),
    ("8/(3-8/3)=24", 0.0, "unparsable"),
    ("8/(3-8/3.0)", 0.0, "unparsable"),
    ("8/(3-8/3) or 3*8", 0.0, "unparsable"),
    ("8/(3-8/3),24", 0.0, "unparsable"),
    ("８/(３-８/３)", 0.0, "unparsable"),
    ("8/(03-8/3)", 0.0, "unparsable"),
    ("--8/(3-8/3)", 0.0, "unparsable"),
    ("8//(3-8/3)", 0.0, "unparsable"),
    ("3**3-8+8-3", 0.0, "unparsable"),
    ("8/(8/3-8/3)", 0.0, "unparsable"),
    ("99**99**99", 0.0, "unparsable"),
    ("__import__('os')._exit(0)", 0.0, "unparsable"),
    ("", 0.0, "unparsable"),
]


@pytest.mark.parametrize(("answer", "accuracy", "status"), ANSWERS)
def test_answers(answer: str, accuracy: float, status: str) -> None:
    verdict = TASK.score(asked([3, 8, 3, 8], 24), said(answer))
    assert (verdict.rewards, verdict.status) == ({"accuracy": accuracy, "format": 1.0}, status)
    assert verdict.reward == accuracy + 1.0
    assert (verdict.reason is None) == (accuracy == 1.0)
    assert verdict.answer == (answer.strip() if status == "ok" else None)


def test_reasons_say_what_was_wrong() -> None:
    problem = asked([3, 7, 12], 24)
    assert TASK.score(problem, said("3*7")).reason == "uses 3, 7, given 3, 7, 12"
    assert TASK.score(problem, said("(12-7)/3")).reason == "value 5/3, target 24"
    assert TASK.score(problem, said("12-7=5")).reason == "answer: unexpected character '='"
    assert TASK.score(problem, "I give up.").reason == "no <answer>…</answer> block"
    assert TASK.score(asked([3, 7], 21), "<answer>3*7</answer>").reason == "no </think>"


def test_accuracy_and_format_are_independent() -> None:
    problem = asked([3, 7], 21)
    table = {"<answer>3*7</answer>": (1.0, 0.0), said("3*7"): (1.0, 1.0), said("3+7"): (0.0, 1.0), "21": (0.0, 0.0)}
    for completion, (accuracy, formatted) in table.items():
        assert TASK.score(problem, completion).rewards == {"accuracy": accuracy, "format": formatted}
    two = TASK.score(problem, said("3*7") + "<answer>3*7</answer>")
    assert (two.rewards, two.status) == ({"accuracy": 0.0, "format": 0.0}, "unparsable")


def test_weights() -> None:
    task = Countdown(CountdownConfig(accuracy_weight=2.0, format_weight=0.25))
    problem = asked([3, 7], 21)
    assert task.score(problem, said("3*7")).reward == 2.25
    assert task.score(problem, "<answer>3*7</answer>").reward == 2.0
    assert task.score(problem, said("3+7")).reward == 0.25


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"numbers": [3, 7]},
        {"target": 24},
        {"numbers": [], "target": 24},
        {"numbers": "3 7", "target": 24},
        {"numbers": {"3": 7}, "target": 24},
        {"numbers": None, "target": 24},
        {"numbers": [3, "7"], "target": 24},
        {"numbers": [3, 7.0], "target": 21},
        {"numbers": [3, True], "target": 3},
        {"numbers": [3, -7], "target": -21},
        {"numbers": [3, 10**9], "target": 3 * 10**9},
        {"numbers": [1] * 17, "target": 17},
        {"numbers": [3, 7], "target": "21"},
        {"numbers": [3, 7], "target": 21.0},
        {"numbers": [3, 7], "target": True},
        {"numbers": [3, 7], "target": None},
        {"numbers": [3, 7], "target": float("nan")},
        {"nums": [3, 7], "target": 21},
    ],
)
def test_a_bad_problem_is_an_error_never_a_score(data: Mapping[str, Any]) -> None:
    problem = Problem("countdown", "x", data, "")
    for completion in (said("3*7"), said("3"), ""):
        verdict = TASK.score(problem, completion)
        assert (verdict.status, verdict.rewards, verdict.reward) == ("error", {}, 0.0)
        assert (verdict.reason or "").startswith("problem: ")
    with pytest.raises(DunwuError, match="problem x: "):
        TASK.gold(problem)
    assert TASK.answer_key(problem, "3*7") is None


def test_gold_of_the_unsolvable() -> None:
    with pytest.raises(DunwuError, match="no solution"):
        TASK.gold(asked([1, 1], 24))
    with pytest.raises(DunwuError, match="at most 6"):
        TASK.gold(asked([1] * 7, 7))


def test_answer_keys_are_equal_when_the_verifier_cannot_tell_answers_apart() -> None:
    problem = asked([3, 7, 12], 24)
    keys = [TASK.answer_key(problem, answer) for answer in ("12+3+7", "(7+3)+12", "3+7+12 ")]
    assert keys == [(22, True)] * 3
    assert TASK.answer_key(problem, "22") == (22, False)
    assert TASK.answer_key(problem, "(12-7)/3") == TASK.answer_key(problem, "(12−7) ÷ 3") == (Fraction(5, 3), True)
    assert TASK.answer_key(problem, "7+") is None
    assert TASK.answer_key(problem, None) is None
    assert len({TASK.answer_key(problem, answer) for answer in ("12/3*7", "7*12/3", "28")}) == 2  # hashable


# --- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompt(language: Any) -> None:
    task = Countdown(CountdownConfig(language=language))
    problem = task.problem("train", 0, 0)
    template = {"en": TEMPLATE_EN, "zh": TEMPLATE_ZH}[language]
    head, tail = template.split("{question}")
    assert problem.prompt.startswith(head)
    assert problem.prompt.endswith(tail)
    for number in [*problem.data["numbers"], problem.data["target"]]:
        assert str(number) in problem.prompt[len(head) :]
    assert problem.prompt == problem.prompt.rstrip()
    assert not task.think_opened


def test_a_template_that_opens_the_thinking() -> None:
    task = Countdown(CountdownConfig(prompt_template="Use [{numbers}], make {target}. {x}\nAssistant: <think>\n"))
    problem = task.make_problem([3, 7], 21)
    assert problem.prompt == "Use [3, 7], make 21. {x}\nAssistant: <think>"
    assert task.think_opened
    gold = task.gold(problem)
    assert gold.count("<think>") == 0
    assert task.score(problem, gold).reward == 2.0
    assert task.score(problem, "<think>" + gold).rewards == {"accuracy": 1.0, "format": 0.0}
    assert Countdown(CountdownConfig(think_opened=True)).think_opened


# --- fuzz ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=400), st.booleans())
def test_any_text_is_judged_without_accuracy(text: str, wrap: bool) -> None:
    """2 and 3 make no 1000, so nothing earns accuracy."""
    verdict = TASK.score(asked([2, 3], 1000), said(text) if wrap else text)
    assert verdict.status in ("ok", "unparsable")
    assert verdict.rewards["accuracy"] == 0.0


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert task.name == "countdown"
