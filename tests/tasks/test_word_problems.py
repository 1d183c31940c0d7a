"""Word problems: true stories, disjoint splits, a strict verifier."""

from __future__ import annotations

import re
from random import Random

import pytest

from dunwu.tasks.expression import evaluate
from dunwu.tasks.language import consistency, wordless
from dunwu.tasks.word_problems import KINDS, MOST, WordProblems, draw_story
from dunwu.types import DunwuError, Problem, UsageError

STORIES = [draw_story(Random(seed), "train", language) for seed in range(1500) for language in ("en", "zh")]


def test_work_is_right_and_leads_to_the_gold() -> None:
    for story in STORIES:
        results = []
        for equation in story.work.split(","):
            left, result = equation.split("=")
            assert evaluate(left).value == int(result)
            assert 1 <= int(result) <= MOST
            results.append(int(result))
        assert results[-1] == story.gold


def test_a_story_by_hand() -> None:
    """What the words say is what the work does: each kind read back from its English text alone."""
    read = {
        "buy": lambda a, b: a + b,
        "give": lambda a, b: a - b,
        "boxes": lambda b, a: b * a,
        "more": lambda a, b: a - b,
        "give-buy": lambda a, b, c: a - b + c,
        "boxes-buy": lambda b, a, c: b * a + c,
        "boxes-give": lambda b, a, c: b * a - c,
        "together": lambda a, b: a + a + b,
    }
    assert set(read) == set(KINDS) == {story.kind for story in STORIES}
    for story in STORIES:
        told = [int(number) for number in re.findall(r"\d+", story.question)]
        assert read[story.kind](*told) == story.gold, story


def test_stories_are_in_one_language_and_short() -> None:
    for place, story in enumerate(STORIES):
        assert consistency(story.question, ("en", "zh")[place % 2]) == 1.0
        assert not wordless(story.question) and len(story.question) <= 100
        assert "{" not in story.question and "  " not in story.question


def test_splits_share_no_sum() -> None:
    kinds = {}
    for split in ("train", "valid", "test"):
        drawn = [draw_story(Random(seed), split, "en") for seed in range(1500)]
        kinds[split] = {(story.kind, story.numbers) for story in drawn}
    assert not kinds["train"] & kinds["test"] and not kinds["train"] & kinds["valid"]
    assert not kinds["valid"] & kinds["test"]
    assert len(kinds["test"]) > 300


@pytest.mark.parametrize(
    ("answer", "accuracy", "status"),
    [
        ("8", 1, "ok"),
        (" 8\n", 1, "ok"),
        ("9", 0, "ok"),
        ("-8", 0, "ok"),
        ("08", 0, "unparsable"),
        ("8.", 0, "unparsable"),
        ("8.0", 0, "unparsable"),
        ("5+3", 0, "unparsable"),
        ("8 apples", 0, "unparsable"),
        ("8个", 0, "unparsable"),
        ("８", 0, "unparsable"),
        ("٨", 0, "unparsable"),
        ("8 or 9", 0, "unparsable"),
        ("+8", 0, "unparsable"),
        ("1" * 100_000, 0, "unparsable"),
        ("", 0, "unparsable"),
        (None, 0, "unparsable"),
    ],
)
def test_answers(answer: str | None, accuracy: float, status: str) -> None:
    verdict = WordProblems().judge(Problem("word-problems", "", {"question": "?", "gold": 8}, ""), answer)
    assert (verdict.rewards, verdict.reward, verdict.status) == ({"accuracy": accuracy}, accuracy, status)


@pytest.mark.parametrize("gold", [None, "8", 8.0, True, [8], 10**9])
def test_a_gold_that_is_no_integer_is_an_error_and_never_free(gold: object) -> None:
    problem = Problem("word-problems", "w", {"question": "?", "gold": gold}, "")
    for answer in ("8", None, ""):
        assert WordProblems().judge(problem, answer).status == "error"
    with pytest.raises(DunwuError, match="gold"):
        WordProblems().solution(problem)


def test_solution_without_its_working() -> None:
    message = WordProblems().solution(Problem("word-problems", "w", {"question": "?", "gold": 8}, ""))
    assert message.reasoning_content and "<answer>8</answer>" in message.content


def test_keys() -> None:
    exercise, problem = WordProblems(), Problem("word-problems", "", {"gold": 8}, "")
    assert exercise.key(problem, " 8 ") == exercise.key(problem, "8") == 8
    assert exercise.key(problem, "eight") is None and exercise.key(problem, None) is None


def test_bad_places() -> None:
    with pytest.raises(UsageError, match="unknown split"):
        WordProblems().draw("dev", 0, 0)
    with pytest.raises(UsageError, match="negative"):
        WordProblems().draw("train", 0, -1)
