"""Pages about puzzles and word problems: true where they say so, held out where they must be, mixed as the knobs say."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

import pytest

from dunwu.tasks.expression import evaluate
from dunwu.tasks.frames import Framed
from dunwu.tasks.knights import Knights, answer_text, puzzles, solutions, true_of
from dunwu.tasks.language import consistency
from dunwu.tasks.splits import split_by
from dunwu.tasks.word_problems import WordProblems
from dunwu.types import Problem, UsageError
from dunwu.world.knobs import Hands, Knobs
from dunwu.world.web import Page, pages

KNOBS = Knobs(knights=0.5, worked_problems=0.5, chinese=0.4)
CASE = re.compile(
    r"(?:[Ii]f |若)((?:[A-C] ?(?:knight|knave|骑士|无赖)(?:, |，)?)+)(?:: |：)(.*?)(?: |，)(yes!|no|对了！|不对)$", re.M
)


def take(knobs: Knobs, n: int, seed: int = 0, **options: object) -> list[Page]:
    return list(islice(pages(knobs, seed, **options), n))  # type: ignore[arg-type]


def test_nothing_changes_unless_asked() -> None:
    """The default web has none of these pages, and what it has does not depend on these knobs."""
    plain = take(Knobs(), 300)
    assert not any(page.domain.startswith(("knights", "worked")) for page in plain)
    assert plain == take(Knobs(chinese_hands=Hands(0, 0, 0, 0), mixed_thinking=0.0), 300)


def test_shares() -> None:
    drawn = take(Knobs(knights=0.2, worked_problems=0.1), 4000)
    for topic, share in (("knights", 0.2), ("worked-problem", 0.1)):
        assert abs(sum(page.domain.startswith(topic) for page in drawn) / 4000 - share) < 0.02
    with pytest.raises(UsageError, match="sum to more than 1"):
        take(Knobs(knights=0.6, worked_problems=0.6), 1)
    with pytest.raises(UsageError, match="hands are zero"):
        take(Knobs(forum_hands=Hands(0, 0, 0, 0)), 1)
    with pytest.raises(UsageError, match="mixed_thinking"):
        take(Knobs(mixed_thinking=1.5), 1)


def test_truth_is_true() -> None:
    for page in take(KNOBS, 1500):
        truth = page.truth
        if page.domain.startswith("knights"):
            (found,) = solutions([tuple(statement) for statement in truth["statements"]])
            right = answer_text(found, page.language)
        else:
            right = str(truth["gold"])
        assert truth["solved"] == (truth["answer"] == right)
        assert page.text.removesuffix("</answer>").endswith(truth["answer"])


def test_each_case_is_checked_rightly() -> None:
    """Every line of every search: the truth of each statement and the conclusion, worked out again from the text."""
    lines = 0
    for page in take(replace(KNOBS, knights=1.0, worked_problems=0.0), 800):
        for kinds, checks, conclusion in CASE.findall(page.text):
            found = re.findall(r"([A-C]) ?(knight|knave|骑士|无赖)", kinds)
            assigned = {who: kind in ("knight", "骑士") for who, kind in found}
            said = [check in ("true", "真") for check in re.findall(r"true|false|真|假", checks)]
            fits = True
            for told, (who, what, *whom) in zip(said, page.truth["statements"]):
                assert fits, "checked on after a contradiction"
                assert told == true_of(what, [assigned[name] for name in whom])
                fits = told == assigned[who]
            assert fits == (conclusion in ("yes!", "对了！"))
            assert not fits or len(said) == len(page.truth["statements"])
            lines += 1
    assert lines > 1500


def test_arithmetic_is_right() -> None:
    for page in take(replace(KNOBS, knights=0.0, worked_problems=1.0), 1500):
        for left, right in re.findall(r"(\d+[-+*]\d+)=(\d+)", page.text):
            assert evaluate(left).value == int(right)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_page_shows_a_held_out_problem(split: str) -> None:
    listed = {tuple(puzzle) for people in (2, 3) for puzzle in puzzles(people)[split]}
    for page in take(KNOBS, 800, split=split):
        if page.domain.startswith("knights"):
            assert tuple(tuple(statement) for statement in page.truth["statements"]) in listed
        else:
            assert split_by("word-problems", page.truth["kind"], *page.truth["given"]) == split


def test_template_pages_continue_the_tasks_prompts_and_format() -> None:
    tasks = {"knights-template": Framed(Knights(), "zero"), "worked-problem-template": Framed(WordProblems(), "zero")}
    seen = 0
    for page in take(replace(KNOBS, template=1.0), 400):
        task = tasks[page.domain]
        data = {**page.truth, "language": page.language}
        # The template itself names the tags; the completion begins after the last turn's mark.
        completion = re.split("Assistant:|助手：", page.text)[-1]
        assert completion.startswith("<think>")
        verdict = task.score(Problem(task.name, "", data, ""), completion)
        assert verdict.rewards["format"] == verdict.rewards["language"] == 1.0
        assert verdict.rewards["accuracy"] == float(page.truth["solved"])
        seen += 1
    assert seen == 400
    asked = Framed(Knights(chinese=0.0), "zero").problem("train", 0, 0).prompt
    assert asked.split("User: ")[0] == take(replace(KNOBS, template=1.0, chinese=0.0), 1)[0].text.split("User: ")[0]


def test_mixed_thinking_is_english_and_better() -> None:
    """The share asked for, on Chinese pages only; English thinking is right more often: why RL drifts to it."""
    knobs = Knobs(chinese=0.5, mixed_thinking=0.4, chinese_hands=Hands(guess=0.6, worked=0.1, search=0.3, backward=0.0))
    for extra in ({}, {"knights": 1.0}):
        chosen = [
            page
            for page in take(replace(knobs, **extra), 3000)
            if page.domain.startswith(("countdown", "knights")) and page.language == "zh"
        ]
        mixed = [page for page in chosen if page.truth["thinking_language"] == "en"]
        own = [page for page in chosen if page.truth["thinking_language"] == "zh"]
        assert abs(len(mixed) / len(chosen) - 0.4) < 0.05
        assert {page.truth["hand"] for page in mixed} == {"backward"}
        assert "backward" not in {page.truth["hand"] for page in own}
        rates = [sum(page.truth["solved"] for page in group) / len(group) for group in (mixed, own)]
        assert rates[0] > rates[1] + 0.2
        for page in mixed[:200]:
            if page.domain.endswith("-template"):
                thinking = page.text.rsplit("<think>", 1)[1].split("</think>")[0]
                assert consistency(thinking, "en") == 1.0 and consistency(thinking, "zh") < 1.0


def test_hands_show() -> None:
    """Guessers never work a case; who works through all never gives up."""
    guessers = replace(KNOBS, forum_hands=Hands(1, 0, 0, 0), template_hands=Hands(1, 0, 0, 0), guess_wrong=1.0)
    for page in take(guessers, 300):
        assert not page.truth["solved"] and not CASE.search(page.text)
    solvers = replace(KNOBS, forum_hands=Hands(0, 0, 0, 1), template_hands=Hands(0, 0, 0, 1))
    assert all(page.truth["solved"] for page in take(solvers, 300))
    searchers = replace(KNOBS, forum_hands=Hands(0, 0, 1, 0), give_up=0.5, knights=1.0, worked_problems=0.0)
    solved = [page.truth["solved"] for page in take(searchers, 500)]
    assert 0.1 < sum(solved) / 500 < 0.9
