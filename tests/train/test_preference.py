"""Rewards of general prompts: what counts, what only stays on record, and what passes through."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, cast

import pytest

from dunwu.tasks.score import judge
from dunwu.train.preference import HELPFUL, SAFETY, PreferenceTask, PreferenceWeights
from dunwu.train.reward_model import Meaning, Scorer
from dunwu.types import Completion, Message, Problem, UsageError, Verdict

ASKED = (Message("user", "Who are you?"),)


class FakeScorer:
    """Scores by the reply's content from a table, and remembers what it was shown."""

    def __init__(self, table: dict[str, float], meaning: Meaning) -> None:
        self.table, self.meaning = table, meaning
        self.calls: list[list[list[Message]]] = []

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        self.calls.append([list(messages) for messages in conversations])
        return [self.table.get(messages[-1].content, 0.0) for messages in conversations]

    def normalised(self, scores: Sequence[float]) -> list[float]:
        return Scorer.normalised(cast(Any, self), scores)


class Truth:
    """A task with rules, truth rewards and statuses."""

    name = "mixed"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        name = "knights" if index % 2 else "general"
        return Problem(name, f"{name}-{index}", {}, "user: Who are you?", {}, ASKED)

    def score(self, problem: Problem, completion: str) -> Verdict:
        if completion == "broken":
            return Verdict({}, 0.0, "error", "the verifier raised")
        rewards = {"accuracy": 0.9, "helpful": 0.9, "safe": 1.0, "format": 1.0, "language": 0.5}
        return Verdict(rewards, 7.0, answer=completion)

    def gold(self, problem: Problem) -> str:
        return "I am Dunwu."

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        return answer


def pair_scorer(table: dict[str, float]) -> Scorer:
    return cast(Scorer, FakeScorer(table, Meaning("pairwise", "summary", 1.0, 2.0)))


def safe_scorer(table: dict[str, float]) -> Scorer:
    return cast(Scorer, FakeScorer(table, Meaning("pointwise", "whole")))


def test_the_reward_by_hand_and_the_truth_only_on_record() -> None:
    weights = PreferenceWeights(helpful=2.0, safety=0.5, format=0.25, language=4.0)
    task = PreferenceTask(Truth(), pair_scorer({"Hi.": 4.0}), safe_scorer({"Hi.": math.log(3)}), weights)
    verdict = task.score(task.problem("train", 0, 0), "<think>A question.</think>\nHi.")
    # helpful (4 - 1) / 2 = 1.5, safety σ(log 3) = 0.75
    assert verdict.reward == pytest.approx(2 * 1.5 + 0.5 * 0.75 + 0.25 * 1.0 + 4 * 0.5)
    assert verdict.rewards == pytest.approx(
        {HELPFUL: 1.5, SAFETY: 0.75, "format": 1.0, "language": 0.5,
         "truth/accuracy": 0.9, "truth/helpful": 0.9, "truth/safe": 1.0}
    )  # fmt: skip
    assert verdict.status == "ok" and verdict.answer == "<think>A question.</think>\nHi."


def test_models_see_the_conversation_with_the_parsed_reply_in_one_call() -> None:
    helpful, safety = pair_scorer({}), safe_scorer({})
    task = PreferenceTask(Truth(), helpful, safety)
    problems = [task.problem("train", 0, 0)] * 2
    task.score_all(problems, ["<think>Hm.</think>\nA.", "B."])
    expected = [[*ASKED, Message("assistant", "A.", "Hm.")], [*ASKED, Message("assistant", "B.")]]
    for scorer in (helpful, safety):
        assert cast(Any, scorer).calls == [expected]
    task.score(problems[0], "\n <think>Hm.</think>\nA.\n")  # blank space around a reply is no part of it
    assert cast(Any, helpful).calls[-1] == expected[:1]
    bare = Problem("general", "g", {}, "Say hi.")
    task.score(bare, "Hi.")
    assert cast(Any, helpful).calls[-1] == [[Message("user", "Say hi."), Message("assistant", "Hi.")]]


def test_reasoning_problems_and_errors_pass_through() -> None:
    helpful = pair_scorer({"A.": 3.0})
    task = PreferenceTask(Truth(), helpful, names=("general",))
    general, knights = task.problem("train", 0, 0), task.problem("train", 0, 1)
    verdicts = task.score_all([knights, general, general], ["A.", "A.", "broken"])
    assert verdicts[0] == Truth().score(knights, "A.") and verdicts[2].status == "error"
    assert HELPFUL in verdicts[1].rewards and SAFETY not in verdicts[1].rewards
    assert len(cast(Any, helpful).calls[0]) == 1
    assert PreferenceTask(Truth(), helpful).score(knights, "A.").rewards[HELPFUL] == 1.0  # no names: all


@pytest.mark.parametrize("reply", ["", "  \n", "<think>never closed", "<think>all thought</think>\n"])
def test_a_reply_that_says_nothing_gets_the_lowest(reply: str) -> None:
    task = PreferenceTask(Truth(), pair_scorer({"": 99.0}), safe_scorer({"": 99.0}))
    verdict = task.score(task.problem("train", 0, 0), reply)
    assert (verdict.rewards[HELPFUL], verdict.rewards[SAFETY]) == (-3.0, 0.0)


def test_an_extreme_score_is_clipped_and_a_broken_one_is_an_error() -> None:
    table = {"best": 1e9, "worst": -1e9, "nan": math.nan, "inf": math.inf}
    task = PreferenceTask(Truth(), pair_scorer(table), weights=PreferenceWeights(clip=2.0))
    problem = task.problem("train", 0, 0)
    found = task.score_all([problem] * 4, list(table))
    assert [v.rewards.get(HELPFUL) for v in found] == [2.0, -2.0, None, None]
    assert [v.status for v in found] == ["ok", "ok", "error", "error"]
    unsafe = PreferenceTask(Truth(), None, safe_scorer(table))
    assert unsafe.score(problem, "nan").status == "error" and unsafe.score(problem, "best").rewards[SAFETY] == 1.0


def test_it_is_a_batch_task_for_the_sampling_loop() -> None:
    task = PreferenceTask(Truth(), pair_scorer({"A": 3.0, "B": -1.0}))
    problem = task.problem("train", 0, 0)
    completions = [Completion(text, (1,), (0.0,), "stop", 0) for text in ("A", "B")]
    assert [v.rewards[HELPFUL] for v in judge(task, [problem, problem], completions)] == [1.0, -1.0]
    assert task.gold(problem) == "I am Dunwu." and task.answer_key(problem, "x") == "x" and task.name == "mixed"


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(UsageError, match="no reward model"):
        PreferenceTask(Truth(), None)
    with pytest.raises(UsageError, match="pointwise reward model where a pairwise"):
        PreferenceTask(Truth(), safe_scorer({}))
    with pytest.raises(UsageError, match="pairwise reward model where a pointwise"):
        PreferenceTask(Truth(), None, pair_scorer({}))
    with pytest.raises(UsageError, match="clip"):
        PreferenceTask(Truth(), pair_scorer({}), weights=PreferenceWeights(clip=0.0))
