"""What a thought does: hand-labelled completions in both languages, and the world's pages as oracle."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.eval.emergence import aggregate, analyse, annotate, counts
from dunwu.types import Completion, Group, Problem, Rollout, Verdict
from dunwu.world.countdown import CHINESE, ENGLISH, HANDS
from dunwu.world.knobs import Knobs
from dunwu.world.puzzles import draw_puzzle

P24 = {"numbers": [3, 7, 12], "target": 24}
P15 = {"numbers": [3, 7, 12], "target": 15}
P24B = {"numbers": [3, 5, 9], "target": 24}


def want(**counted: float) -> dict[str, float]:
    return counted


LABELLED: list[tuple[dict[str, Any], str, dict[str, float]]] = [
    (  # a search in English that ends well
        P15,
        "12+7=19, 19+3=22, not 15. Wait, 12*7=84, 84/3=28, not 15. Let me try 12-7=5, 5*3=15, yes!"
        "</think>\n<answer>(12-7)*3</answer>",
        want(equations=6, true_equations=6, tries=3, true_checks=3, false_checks=0, backtracks=2, reflection_words=1,
             wait_words=1, distinct_expressions=3, answer_works=1, answered=1),
    ),
    (  # the same in Chinese
        P15,
        "12+7=19, 19+3=22, 不是15。等等，换一个：12*7=84, 84/3=28, 不对。12-7=5, 5*3=15, 对了！</think>",
        want(equations=6, tries=3, true_checks=3, false_checks=0, backtracks=2, reflection_words=3, wait_words=1,
             answered=0),
    ),
    (  # a guess that claims to work on a false sum
        P24,
        "(12+7)*3=24, yes!</think><answer>(12+7)*3</answer>",
        want(equations=1, false_equations=1, tries=1, true_checks=0, false_success=1, false_failure=0, answer_fails=1),
    ),
    (P24, "(12+7)*3=24，对了！", want(false_equations=1, false_success=1, tries=1)),
    # a solution thrown away
    (P15, "(12-7)*3=15, no. 12+7+3=22, no", want(tries=2, true_checks=1, false_failure=1, backtracks=1)),
    # a right verdict on a wrong sum is neither a true nor a false check
    (P15, "(12+7)*3=50, no.", want(verifications=1, true_checks=0, false_checks=0, unsound_checks=1)),
    # a wrong step makes the stated value lie about the expression
    (P15, "12-7=6, 6*3=18, not 15", want(false_equations=1, true_equations=1, false_failure=1)),
    # numbers that are not the problem's do not work, whatever they make
    (P24, "4*6=24, yes!", want(true_equations=1, false_success=1)),
    # nor does a part of the numbers
    (P15, "3+12=15, yes!", want(true_equations=1, false_success=1)),
    # a stated value equal to the target is a try without a verdict: no check
    (P15, "(12-7)*3=15", want(tries=1, verifications=0, true_checks=0)),
    (P15, "12-7=5, 5*3=15</think>", want(tries=1, verifications=0)),
    # passing the target with a part of the numbers is not
    (P15, "3+12=15, 15*7=105, no", want(tries=1, true_checks=1, distinct_expressions=1)),
    # a sum alone is no try
    (P15, "12-7=5, 5*3=15. " [:6] + ". Hmm", want(equations=1, tries=0)),
    # ≠, !=, ticks and crosses, bare expressions
    (P15, "12+7+3≠15. (12-7)*3: ✓", want(equations=0, tries=2, true_checks=2, backtracks=1)),
    (P15, "12+7+3=22 ✗ (12-7)*3=15 ✓", want(equations=2, tries=2, true_checks=2, backtracks=1)),
    (P15, "(12+7)*3=57≠15", want(tries=1, true_checks=1)),
    (P15, "(12+7)*3=57, too big. 12*7+3=87, 太大", want(tries=2, true_checks=2, backtracks=1)),
    (P15, "12+7+3=22, not works. (12-7)*3=15 works", want(tries=2, true_checks=2)),
    # words between the sum and its verdict
    (P15, "12+7+3=22. Wait, that is 22, not 15.", want(tries=1, true_checks=1, backtracks=0)),
    # a verdict too far away judges nothing
    (P15, "12+7+3=22. I walked the dog for a very long while and said no", want(tries=0)),
    # "no" alone, "yes" alone, "no idea"
    (P15, "Yes. No! 不对。no idea", want(tries=0, verifications=0)),
    # words for the equals sign
    (P15, "(12-7)*3 is 15, yes! (12+7)*3得57，不对", want(equations=2, true_equations=2, true_checks=2)),
    # the same expression tried twice in another order
    (P15, "12+7+3=22, no. 3+12+7=22, no", want(tries=2, distinct_expressions=1, repeated_expressions=1)),
    # subgoals asked in words
    (
        P24,
        "Keep 7: need 24-7=17 or 24+7=31. 3 and 12: 3+12=15, 12-3=9, 3*12=36, 12/3=4, no. "
        "Keep 3: need 24-3=21 or 24*3=72 or 24/3=8. 7 and 12: 7+12=19, 12-7=5, 7*12=84, no. I give up.",
        want(equations=12, true_equations=12, backward_chains=5, subgoals=2, tries=2, true_checks=2, backtracks=1,
             gave_up=1, distinct_expressions=7),
    ),
    (
        P24,
        "留7：要24-7=17或24+7=31。3和12：3+12=15, 12-3=9, 3*12=36, 12/3=4，没有。算了，放弃。",
        want(equations=6, backward_chains=2, subgoals=1, tries=1, true_checks=1, backtracks=0, gave_up=1),
    ),
    (  # a subgoal met: 3*5 is the 15 that 9 needs
        P24B,
        "Keep 9: need 24-9=15. 3 and 5: 3+5=8, 3*5=15, Yes!",
        want(backward_chains=1, subgoals=1, tries=1, true_checks=1),
    ),
    (P24B, "Keep 9: need 15. 3 and 5: 3*5=15, yes", want(backward_chains=0, subgoals=1, true_checks=1)),
    # a subgoal said to be met that is not, and one missed
    (P24B, "Keep 9: need 24-9=15. 3+5=8, Yes!", want(false_success=1, true_checks=0)),
    (P24B, "Keep 9: need 24-9=15. 3*5=15, no", want(false_failure=1, true_checks=0)),
    # a need that does not follow cannot be met
    (P24B, "Keep 9: need 24-9=8. 3+5=8, Yes!", want(false_equations=1, false_success=1)),
    (P24B, "Keep 9: need 8. 3+5=8, yes", want(false_success=1)),
    # subgoals asked one by one, each with its own verdict
    (
        P24B,
        "Keep 5:3+9=12,9-3=6,3*9=27,9/3=3\n24-5=19 no,24+5=29 no\nWait, keep 9:3+5=8,5-3=2,3*5=15\n"
        "24-9=15 yes!\n3*5=15,15+9=24</think>\n<answer>(3*5)+9</answer>",
        want(subgoals=2, backward_chains=3, verifications=3, true_checks=3, false_checks=0, backtracks=2, tries=4,
             answer_works=1, wait_words=1),
    ),
    (P24B, "留5：3+9=12,9-3=6\n24-5=19对了！", want(backward_chains=1, false_success=1)),
    (P24B, "留9：3+5=8,3*5=15\n24-9=15不对", want(backward_chains=1, false_failure=1)),
    # the target as a number of the problem is a number first
    ({"numbers": [24, 2, 3], "target": 24}, "24-2=22, 22+3=25, no", want(backward_chains=0, true_checks=1)),
    # answers
    (P15, "</think><answer>(12-7)×3</answer>", want(answered=1, answer_works=1)),
    (P15, "</think><answer>12+3</answer>", want(answered=1, answer_fails=1)),
    (P15, "</think><answer>I do not know</answer>", want(answered=1, answer_fails=1)),
    (P15, "<answer>1</answer><answer>(12-7)*3</answer>", want(answered=0, answer_works=0, answer_fails=0)),
    (P15, "(12-7)*3=15, yes", want(answered=0)),
    # the answer's text is no part of the thought
    (P15, "hm</think>\n<answer>12+7=19, no</answer>", want(equations=0, tries=0, answer_fails=1)),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "text", "expected"), LABELLED, ids=[str(i) for i in range(len(LABELLED))])
def test_labelled(problem: dict[str, Any], text: str, expected: dict[str, float]) -> None:
    found = counts(analyse(problem, text))
    assert {key: found[key] for key in expected} == expected


def test_the_words_of_the_paper_and_their_chinese_likeness() -> None:
    english = "Wait mistake however but retry error verify wrong evaluate check"
    assert analyse(P24, english).reflections == 10
    assert analyse(P24, "等等，不对，错，但是，重新，再试，检查，验证，换一个").reflections == 9
    assert analyse(P24, "butter, waiting, checkers, await").reflections == 0
    assert analyse({"question": "?"}, "Wait. But no.").waits == 1  # another task: words only


def world_traces(hand: str, knobs: Knobs, count: int = 150) -> list[tuple[dict[str, float], bool]]:
    dice = random.Random(hand)
    found = []
    for index in range(count):
        puzzle = draw_puzzle(dice, knobs, "train")
        thinking = HANDS[hand](dice, puzzle, knobs, CHINESE if index % 2 else ENGLISH)
        text = f"<think>{thinking.text}</think>\n<answer>{thinking.answer}</answer>"
        trace = analyse({"numbers": list(puzzle.numbers), "target": puzzle.target}, text)
        assert trace.answer_works == thinking.solved
        found.append((counts(trace), thinking.solved))
    return found


@pytest.mark.parametrize("hand", ["search", "backward", "worked"])
def test_honest_pages_have_no_false_sum_and_no_false_check(hand: str) -> None:
    found = world_traces(hand, replace(Knobs(), false_check=0.0, arithmetic_error=0.0))
    for trace, solved in found:
        assert trace["false_equations"] == trace["false_checks"] == trace["unsound_checks"] == 0
        assert trace["true_checks"] >= solved
    if hand != "worked":
        assert sum(trace["backtracks"] for trace, _ in found) > len(found) / 4
    if hand == "backward":
        assert sum(trace["subgoals"] for trace, _ in found) > len(found) / 2
        assert sum(trace["backward_chains"] for trace, _ in found) > len(found)


def test_lying_pages_have_one_false_check_each() -> None:
    for trace, solved in world_traces("search", replace(Knobs(), false_check=1.0, arithmetic_error=0.0)):
        assert (trace["false_success"], trace["true_checks"]) == ((0, 1) if solved else (1, 0))


def test_guesses_claim_what_the_verifier_refutes() -> None:
    found = world_traces("guess", replace(Knobs(), guess_wrong=0.5))
    for trace, solved in found:
        assert trace["equations"] == trace["tries"] == 1
        assert trace["true_equations"] == solved
        assert trace["true_checks"] == (trace["verifications"] if solved else 0)


PIECES = st.sampled_from(
    ["12-7=5", "5*3=15", "15", "24-7=17", "=", "(", ")", " no", " yes!", "不对", "对了", "keep 7", "留3", "need ", "要",
     ", ", "\n", "。", "Wait, ", "≠24", "not 24", "3+", "/0", "</think>", "<answer>", "</answer>", "<think>", "9" * 30]
)  # fmt: skip


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=25).map("".join)), st.sampled_from([P24, P15, {}]))
def test_never_crashes_and_spans_are_in_order(text: str, problem: dict[str, Any]) -> None:
    trace = analyse(problem, text)
    found = counts(trace)
    assert all(value >= 0 and math.isfinite(value) for value in found.values())
    assert found["backtracks"] <= found["tries"] or not found["tries"]
    last = 0
    for start, end, kind, _ in annotate(problem, text):
        assert last <= start < end <= len(text) and kind
        last = end


@given(st.dictionaries(st.sampled_from(["numbers", "target", "gold"]), st.one_of(
    st.none(), st.integers(), st.text(max_size=3), st.lists(st.one_of(st.integers(), st.none()), max_size=20))))  # fmt: skip
def test_any_problem_data(problem: dict[str, Any]) -> None:
    analyse(problem, "keep 3: need 24-3=21. 12-7=5, 5*3=15, no <answer>12-7</answer>")


@pytest.mark.parametrize(
    "piece", ["12-7=5,", "(", "24-7=17 no,", "keep 7: need 17. 12+5=17, ", "不是 ", "not  ", "1-", "=1"]
)
def test_linear_time(piece: str) -> None:
    """Eight times the text takes about eight times the processor time, not sixty-four."""

    def seconds(repeats: int) -> float:
        start = time.process_time()
        analyse(P24, piece * repeats)
        return time.process_time() - start

    seconds(100)
    small = min(seconds(300) for _ in range(3))
    assert min(seconds(2400) for _ in range(2)) < 30 * small + 0.05


def test_annotate_marks_sums_verdicts_and_the_answer() -> None:
    text = "12-7=5, 5*3=16, not 15. Wait, (12-7)*3=15, yes!</think>\n<answer>(12-7)*3</answer>"
    spans = [(text[start:end], kind, is_true) for start, end, kind, is_true in annotate(P15, text)]
    assert spans == [
        ("12-7=5", "equation", True),
        ("5*3=16", "equation", False),
        ("not 15", "verdict", False),
        ("Wait", "reflection", None),
        ("(12-7)*3=15", "equation", True),
        ("yes", "verdict", True),
        ("(12-7)*3", "answer", True),
    ]
    assert [kind for _, _, kind, _ in annotate(P15, "(12+7)*3=57，不对。留7。算了")] == [
        "equation", "verdict", "subgoal", "give_up"]  # fmt: skip


def rollout(text: str, length: int, accuracy: float | None, status: Any = "ok") -> Rollout:
    rewards = {} if accuracy is None else {"accuracy": accuracy}
    completion = Completion(text, tuple(range(length)), tuple([0.0] * length), "stop", 0)
    return Rollout(completion, Verdict(rewards, accuracy or 0.0, status))


def test_aggregate_by_hand() -> None:
    right = rollout("12+7+3=22, no. Wait, (12-7)*3=15, yes</think><answer>(12-7)*3</answer>", 10, 1.0)
    wrong = rollout("12+7+3=15, yes</think><answer>12+7+3</answer>", 4, 0.0)
    error = rollout("", 2, 0.0, "error")
    problem = Problem("countdown", "c", P15, "…")
    groups = [Group(problem, (1,), (right, wrong)), Group(problem, (1,), (error, error))]
    found = aggregate(groups)
    expected = {
        "length_all": (10 + 4 + 2 + 2) / 4,
        "length_right": 10.0,
        "length_wrong": 4.0,
        "equations": 3 / 4,
        "true_checks": 2 / 4,
        "false_success": 1 / 4,
        "backtracks": 1 / 4,
        "check_accuracy": 2 / 3,
        "equation_accuracy": 2 / 3,
        "distinct_expressions": (2 + 1) / 4,
        "distinct_per_problem": (2 + 0) / 2,  # 12+7+3 is the same expression in both completions
        "answer_works": 1 / 4,
        "answer_fails": 1 / 4,
    }
    assert {key: found[f"emergence/{key}"] for key in expected} == pytest.approx(expected)
    records = [
        {
            "problem": dict(group.problem.data),
            "rollouts": [
                {"completion": r.completion.text, "length": len(r.completion.token_ids),
                 "rewards": dict(r.verdict.rewards), "status": r.verdict.status}
                for r in group.rollouts
            ],
        }
        for group in groups
    ]  # fmt: skip
    assert aggregate(records) == found


def test_aggregate_of_nothing_and_of_silence() -> None:
    assert aggregate([]) == {}
    silent = aggregate([Group(Problem("t", "i", P15, ""), (), (rollout("…", 3, None),))])
    assert silent["emergence/length_all"] == 3 and "emergence/length_right" not in silent
    assert "emergence/check_accuracy" not in silent
