"""What R1's stages ask: reasoning prompts, general prompts, and when each takes part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dunwu.recipes.r1_config import TasksConfig
from dunwu.recipes.stages import file_digest
from dunwu.store import Artifact
from dunwu.tasks.countdown_exercise import CountdownExercise
from dunwu.tasks.frames import Frame, Framed, Mixture, RewardWeights
from dunwu.tasks.knights import Knights
from dunwu.tasks.registry import get_task
from dunwu.tasks.spoken import Spoken
from dunwu.tasks.word_problems import WordProblems
from dunwu.types import Exercise, Problem, Task, Verdict
from dunwu.world.general import General


def reasoning_exercises(config: TasksConfig) -> list[tuple[Exercise, float]]:
    """The reasoning exercises with their shares."""
    chinese = config.chinese
    return [
        (CountdownExercise(chinese=chinese), config.countdown),
        (WordProblems(chinese=chinese), config.word_problems),
        (Knights(chinese=chinese, three=config.three), config.knights),
    ]


def reasoning_parts(config: TasksConfig, frame: Frame, language_weight: float) -> list[tuple[Task, float]]:
    """The reasoning tasks in a frame, with their shares: the user's task if there is one, else the world's."""
    if config.name:
        return [(Spoken(user_task(config, frame), frame, language_weight), 1.0)]
    weights = RewardWeights(language=language_weight)
    return [(Framed(exercise, frame, weights), share) for exercise, share in reasoning_exercises(config)]


def tasks_key(config: TasksConfig) -> dict[str, Any]:
    """What of the tasks decides a stage: the settings, and the content of the user's files."""
    files = [name for name in (config.name, config.data) if name and Path(name).exists()]
    parts = sorted(part for name in files for part in ([Path(name)] if Path(name).is_file() else Path(name).iterdir()))
    return {**asdict(config), "files": [file_digest(str(part)) for part in parts if part.is_file()]}


def user_task(config: TasksConfig, frame: Frame) -> Task:
    """The task the user named."""
    if config.name.endswith(".py") or config.name == "countdown":
        return get_task(config.name, **({"data": config.data} if config.data else {}))
    return get_task(config.name, frame=frame, **({"data": config.data} if config.data else {}))


def reasoning_task(config: TasksConfig, frame: Frame, language_weight: float) -> Mixture:
    """The mixture every reasoning stage asks.

    Frames of one config ask the same problem at the same (split, seed, index): a sample drawn in one frame can be
    rewritten for another.
    """
    return Mixture(reasoning_parts(config, frame, language_weight), "reasoning")


def general_exercise(config: TasksConfig, families: Sequence[str] | None = None) -> General:
    """The world's general requests."""
    return General(families, chinese=config.chinese)


def general_task(config: TasksConfig, frame: Frame = "chat", families: Sequence[str] | None = None) -> Framed:
    """General prompts, judged by the world's truth."""
    return Framed(general_exercise(config, families), frame, RewardWeights(language=1.0))


class Onward:
    """Reasoning up to a question's index, a mixture with general prompts from there on: `dunwu.types.BatchTask`.

    Preference takes part in the last steps only (R1, B.3.5): a step asks the indices step·problems …, so a turn at a
    step is a turn at an index, and a resumed run turns where the other would have.
    """

    name = "final"

    def __init__(self, reasoning: Sequence[tuple[Task, float]], general: Task, turn: int, share: float) -> None:
        total = sum(weight for _, weight in reasoning)
        mixed = [(task, (1 - share) * weight / total) for task, weight in reasoning]
        self.turn, self.before = turn, Mixture(reasoning, "reasoning")
        self.after = Mixture([*mixed, (general, share)], "final")

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """A reasoning problem before the turn, of both kinds after; held-out splits are always of both kinds."""
        return (self.before if split == "train" and index < self.turn else self.after).problem(split, seed, index)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """The verdict of the part that asked."""
        return self.after.score(problem, completion)

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """A verdict each, in order."""
        return self.after.score_all(problems, completions)

    def gold(self, problem: Problem) -> str:
        """The part's gold."""
        return self.after.gold(problem)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The part's key."""
        return self.after.answer_key(problem, answer)


def frame_of(model: Artifact) -> Frame:
    """The frame a model is asked in: the one its stage trained it in; a base knows R1-Zero's template from the web."""
    frame: Frame = "chat" if model.meta["config"].get("frame") == "chat" else "zero"
    return frame
