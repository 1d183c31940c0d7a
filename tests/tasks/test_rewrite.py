"""Rewriting: the equations stay, the style is the first person in the question's language, and it stays short."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from dunwu.tasks.countdown_exercise import CountdownExercise, steps
from dunwu.tasks.expression import ExpressionError, evaluate
from dunwu.tasks.frames import Framed, RewardWeights, reply_text, split_reply
from dunwu.tasks.language import consistency, wordless
from dunwu.tasks.rewrite import rewrite, translate
from dunwu.types import Problem
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

EQUATION = re.compile(r"[\d()+\-*/]+=\d+")
THOUGHT = re.compile(r".*<think>(.*)</think>\n<answer>(.*)</answer>", re.S)
"""The last ones of a page: the template names the tags as well."""
KNOBS = Knobs(template=1.0, knights=0.3, worked_problems=0.2, chinese=0.5)
TASKS = {"countdown": "countdown", "knights": "knights", "worked-problem": "word-problems"}


def samples() -> list[tuple[Problem, str, str]]:
    """(problem, thinking, answer) of solved template pages: what R1-Zero's good samples look like."""
    found = []
    for page in islice(pages(KNOBS, 0), 600):
        match = THOUGHT.fullmatch(page.text)
        task = TASKS.get(page.domain.removesuffix("-template"))
        if match and task and page.truth["solved"]:
            found.append((Problem(task, "x", {**page.truth, "language": page.language}, ""), *match.groups()))
    assert len(found) > 250
    return found


def test_equations_and_answers_are_untouched() -> None:
    for problem, thinking, answer in samples():
        message = rewrite(problem, thinking, answer, seed=7)
        opening, _, body = str(message.reasoning_content).partition("\n")
        assert EQUATION.findall(body) == EQUATION.findall(thinking)
        assert len(body.splitlines()) == len(thinking.splitlines())
        assert "<answer>" + answer + "</answer>" in message.content
        assert len(opening) + len(message.content) - len(answer) < 100


def test_rewritten_replies_earn_format_and_language() -> None:
    for problem, thinking, answer in samples():
        message = rewrite(problem, thinking, answer, seed=1)
        language = problem.data["language"]
        reply = split_reply(reply_text(message), reasoning=True)
        assert reply.well_formed and reply.answer == answer, reply
        assert reply.thinking == message.reasoning_content
        assert consistency(str(reply.thinking), language) == 1.0
        assert not wordless(str(reply.thinking)) and not wordless(reply.content)
        assert consistency(message.content, language) == 1.0
        assert not re.search(r"[#*_`]{2}|^\s*[-*] ", reply_text(message), re.M)  # no markdown


def test_a_chain_is_translated_whole() -> None:
    for problem, thinking, _ in samples():
        chinese = translate(thinking, "zh")
        assert EQUATION.findall(chinese) == EQUATION.findall(thinking)
        assert len(chinese.splitlines()) == len(thinking.splitlines())
        assert consistency(chinese, "zh") == 1.0, chinese
        assert translate(thinking, "en") == thinking
        if problem.data["language"] == "zh":
            assert chinese == thinking


def test_translations_by_hand() -> None:
    phrases = {
        "12+7=19 not 24": "12+7=19不是24",
        "Wait, if A knight, B knave: A true, B false no": "等等，若A骑士，B无赖：A真，B假，不对",
        "Hmm, If B knave: A true, B true yes!": "等等，若B无赖：A真，B真，对了！",
        "Hmm, 3+8=11 no": "等等，3+8=11不对",
        "First 5+3=8, then 8-2=6": "先5+3=8，再8-2=6",
        "So 6.": "所以6。",
        "Try keeping 7:3+12=15": "换一个，留7:3+12=15",
        "I give up.": "算了，放弃。",
        "Mein Hut": "Mein Hut",  # no phrase of the world's
    }
    for english, chinese in phrases.items():
        assert translate(english, "zh") == chinese


def test_a_countdown_thought_by_hand() -> None:
    problem = Problem("countdown", "c", {"numbers": [3, 7, 12], "target": 15}, "", {"language": "en"})
    thinking = "Keep 7:3+12=15\n\n 15-7=8 no \nWait, keep 3:12-7=5\n15/3=5 yes!\n12-7=5,5*3=15"
    openings, summaries = set(), set()
    for seed in range(30):
        message = rewrite(problem, thinking, " (12-7)*3 ", seed)
        assert message == rewrite(problem, thinking, " (12-7)*3 ", seed)
        opening, *lines = str(message.reasoning_content).splitlines()
        assert lines == [
            "Let me keep 7:3+12=15",
            "15-7=8 no",
            "Wait, let me keep 3:12-7=5",
            "15/3=5 yes!",
            "12-7=5,5*3=15",
        ]
        openings.add(opening)
        summaries.add(message.content)
    assert openings == {"I need to make 15 from 3, 7 and 12.", "I want 15 out of 3, 7 and 12."}
    assert summaries == {
        "I can make 15 with <answer>(12-7)*3</answer>.",
        "15 is <answer>(12-7)*3</answer>.",
    }


def test_in_chinese_by_hand() -> None:
    problem = Problem("countdown", "c", {"numbers": [3, 7, 12], "target": 15}, "", {"language": "zh"})
    message = rewrite(problem, "留3:12-7=5\n15/3=5对了！", "(12-7)*3", seed=0)
    assert message.reasoning_content in {
        "我要用3、7、12凑出15。\n我留3:12-7=5\n15/3=5对了！",
        "我想用3、7、12得到15。\n我留3:12-7=5\n15/3=5对了！",
    }
    problem = Problem("word-problems", "w", {"question": "?", "gold": 8, "things": "个苹果"}, "", {"language": "zh"})
    said = {reply_text(rewrite(problem, "所以5+3=8。", "8", seed)) for seed in range(30)}
    assert all("苹果" in text and "个苹果" not in text for text in said) and len(said) == 4


def test_a_task_it_does_not_know_and_odd_answers() -> None:
    problem = Problem("mine", "m", {"target": {"a": 1}}, "", {"language": "en"})
    message = rewrite(problem, "2+2=4", "{target} \\1", seed=0)
    assert "<answer>{target} \\1</answer>" in message.content
    assert message.reasoning_content in ("I need to work this out.\n2+2=4", "Let me think about it.\n2+2=4")
    # Countdown data without its numbers: the general sentence, no hole in it.
    message = rewrite(Problem("countdown", "c", {}, ""), "", "1", seed=0)
    assert message.reasoning_content in ("I need to work this out.", "Let me think about it.")
    assert message.content == "The answer is <answer>1</answer>."


def test_solutions_look_like_rewritten_thoughts() -> None:
    exercise = CountdownExercise(chinese=0.0)
    problem = exercise.draw("train", 0, 0)
    text = reply_text(exercise.solution(problem))
    assert text.startswith(("<think>I need to make ", "<think>I want "))
    assert Framed(exercise, "chat", RewardWeights(language=1.0)).score(problem, text).reward == 3.0


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3*8", ["3*8=24"]),
        ("(12-7)*3", ["12-7=5", "5*3=15"]),
        ("12+7+5", ["12+7=19", "19+5=24"]),
        ("8/(3-8/3)", ["8/3=8/3", "3-(8/3)=1/3", "8/(1/3)=24"]),
        ("7", []),
    ],
)
def test_steps(expression: str, expected: list[str]) -> None:
    assert steps(expression) == expected


def test_steps_of_gold_are_true() -> None:
    exercise = CountdownExercise()
    for index in range(60):
        problem = exercise.draw("train", 2, index)
        answer = split_reply(reply_text(exercise.solution(problem)), True).answer
        for step in steps(str(answer)):
            left, right = step.split("=")
            assert evaluate(left).value == evaluate(right).value
    with pytest.raises(ExpressionError):
        steps("2**3")
