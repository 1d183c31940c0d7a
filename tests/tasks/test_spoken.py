"""Tasks that are no exercises, in R1's frames and with its language reward."""

from __future__ import annotations

import pytest

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.math_answers import QuestionTask
from dunwu.tasks.spoken import Spoken
from dunwu.types import Problem


def test_the_language_reward_is_added_with_its_weight() -> None:
    spoken = Spoken(Countdown(CountdownConfig(language="zh")), "chat", 2.0)
    problem = spoken.problem("test", 0, 0)
    assert problem.meta["language"] == "zh"
    gold = spoken.gold(problem)
    answer = gold[gold.index("<answer>") :]
    chinese = spoken.score(problem, f"<think>对了</think>\n{answer}")
    english = spoken.score(problem, f"<think>it works</think>\n{answer}")
    half = spoken.score(problem, f"<think>对 yes</think>\n{answer}")
    assert (chinese.rewards["language"], half.rewards["language"], english.rewards["language"]) == (1.0, 0.5, 0.0)
    assert chinese.reward - english.reward == pytest.approx(2.0)
    assert chinese.reward == pytest.approx(spoken.task.score(problem, f"<think>对了</think>\n{answer}").reward + 2.0)


def test_frames_move_the_question_between_prompt_and_messages() -> None:
    text, talk = Countdown(), QuestionTask("gsm8k")
    asked = Spoken(text, "chat", 0.0).problem("test", 0, 3)
    assert asked.messages[0].content == text.problem("test", 0, 3).prompt
    assert Spoken(text, "zero", 0.0).problem("test", 0, 3).messages == ()
    talk.rows = {"test": [{"question": "1+1?", "gold": "2"}]}
    plain = Spoken(talk, "zero", 0.0).problem("test", 0, 0)
    assert plain.messages == () and "1+1?" in plain.prompt


def test_an_error_of_the_verifier_stays_one() -> None:
    problem = Problem("gsm8k", "x", {"question": "?", "gold": "no number"}, "?", {"language": "en"})
    assert Spoken(QuestionTask("gsm8k"), "chat", 1.0).score(problem, "4").status == "error"
