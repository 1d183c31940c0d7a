"""Reward functions in TRL's signature: what they are called with, and what becomes of what they return."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dunwu.tasks.rewards import RewardFunctions, load_reward
from dunwu.tasks.score import judge_groups
from dunwu.types import Completion, DunwuError, Message, Problem, UsageError, Verdict


class Own:
    """A task whose own score is the share of a's."""

    name = "own"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, str(index), {"index": index, "prompts": "taken"}, "say a")

    def score(self, problem: Problem, completion: str) -> Verdict:
        if completion == "broken":
            return Verdict({}, 0.0, "error", "own error")
        return Verdict({"accuracy": completion.count("a") / 4}, completion.count("a") / 4)

    def gold(self, problem: Problem) -> str:
        return "aaaa"

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


def completion(text: str, *ids: int) -> Completion:
    return Completion(text, ids, tuple(0.0 for _ in ids), "stop", 0)


def test_columns_come_by_name_and_completions_in_the_prompts_form() -> None:
    seen: dict[str, Any] = {}

    def spy(completions: list[Any], **columns: Any) -> list[float]:
        seen.update(columns, completions=completions)
        return [1.0] * len(completions)

    task = RewardFunctions([(spy, 1.0)], Own())
    plain = task.problem("train", 0, 5)
    chat = Problem("own", "c", {"topic": "b"}, "user: hi", messages=(Message("system", "be"), Message("user", "hi")))
    verdicts = judge_groups(task, [plain, chat], [[completion("x", 1, 2), completion("y", 3)], [completion("z", 4)]])
    assert seen == {
        "completions": ["x", "y", [{"role": "assistant", "content": "z"}]],
        "prompts": ["say a", "say a", [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]],
        "completion_ids": [[1, 2], [3], [4]],
        "index": [5, 5, None],
        "topic": [None, None, "b"],
    }
    assert [len(row) for row in verdicts] == [2, 1]


def test_weights_none_and_the_tasks_own_score() -> None:
    def long(completions: list[str], **_: Any) -> list[float | None]:
        return [float(len(text)) if text else None for text in completions]

    def only_a(prompts: list[str], completions: list[str]) -> list[int | None]:  # without **columns
        return [1 if "a" in text else None for text in completions]

    problem = Own().problem("train", 0, 0)
    task = RewardFunctions([(long, 0.5), (only_a, 2.0)], Own())
    found = task.score_all([problem] * 3, ["aab", "bb", ""])
    assert [v.reward for v in found] == [0.5 * 3 + 2.0, 0.5 * 2, 0.0]
    assert [dict(v.rewards) for v in found[:2]] == [
        {"accuracy": 0.5, "long": 3.0, "only_a": 1.0}, {"accuracy": 0.0, "long": 2.0},
    ]  # fmt: skip
    assert [v.status for v in found] == ["ok", "ok", "error"] and found[2].reason == "no reward function applies"
    task = RewardFunctions([(long, 0.5)], Own(), task_weight=10.0)
    found = task.score_all([problem] * 3, ["aab", "", "broken"])
    assert [v.reward for v in found] == [0.5 * 3 + 5.0, 0.0, 0.0]
    assert [v.status for v in found] == ["ok", "ok", "error"] and found[2].reason == "own error"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda n: [1.0] * (n - 1), "gave 1 numbers for 2 completions"),
        (lambda n: ["good"] * n, "gave str, not a number"),
        (lambda n: [float("nan")] * n, "gave nan"),
        (lambda n: 1 / 0, "ZeroDivisionError"),
        (lambda n: None, "TypeError"),
    ],
)
def test_what_is_no_reward_is_an_error_and_never_a_zero(value: Any, said: str) -> None:
    def reward(completions: Sequence[str], **_: Any) -> Any:
        return value(len(completions))

    task = RewardFunctions([(reward, 1.0)], Own())
    for verdict in task.score_all([task.problem("train", 0, 0)] * 2, ["a", "b"]):
        assert verdict.status == "error" and verdict.rewards == {} and said in str(verdict.reason)


def test_coroutines_equal_names_and_files(tmp_path: Path) -> None:
    async def reward(completions: list[str], **_: Any) -> list[float]:
        return [2.0 for _ in completions]

    task = RewardFunctions([(reward, 1.0), (reward, 1.0)], Own())
    assert task.score(task.problem("train", 0, 0), "").rewards == {"accuracy": 0.0, "reward": 2.0, "reward-2": 2.0}
    file = tmp_path / "mine.py"
    file.write_text("def three(completions, **kwargs):\n    return [3.0] * len(completions) + [][0:0]\n")
    assert load_reward(f"{file}:three")(completions=["x"], more=1) == [3.0]
    file.write_text("\ndef three(completions, **kwargs):\n    return kwargs['nothing']\n")
    task = RewardFunctions([(load_reward(f"{file}:three"), 1.0)], Own())
    assert "mine.py:3: KeyError: 'nothing'" in str(task.score(task.problem("train", 0, 0), "").reason)
    for text, said in ((f"{file}:four", "has no function four"), (str(file), "is not FILE.py:FUNCTION")):
        with pytest.raises(DunwuError, match=said):
            load_reward(text)
    with pytest.raises(UsageError, match="no function, or a weight"):
        RewardFunctions([], Own())
