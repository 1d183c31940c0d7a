"""General prompts rewarded by learned preference instead of the truth (R1, arXiv 2501.12948, 3.2 and B.3.5).

    reward = w_helpful · helpful + w_safety · safety + w_format · format + w_language · language

`helpful` is the pairwise model's score in standard deviations of its calibration set, `safety` the pointwise model's
probability; format and language are the wrapped task's own. Either model may be an `Ensemble`. What the wrapped task knows of
the truth stays on record under `truth/…` and never counts, so that proxy and truth can be compared; nor does an ensemble's
disagreement about `helpful`, which is beside it, unless it combines by "uncertainty".

Not covered: reasoning prompts, which rules judge (R1 gives them no neural reward, since it would be hacked).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

from dunwu.data.chat import parse_reply
from dunwu.train.ensemble import Ensemble, Scoring
from dunwu.train.reward_model import probability
from dunwu.types import Message, Problem, Task, UsageError, Verdict

HELPFUL, SAFETY, TRUTH = "preference/helpful", "preference/safety", "truth/"
"""Names of the rewards on record."""
DISAGREEMENT = "preference/disagreement"
"""Standard deviation of `helpful` over an ensemble's members."""
KEPT = ("format", "language")
"""Rewards of the wrapped task that count here too."""


@dataclass(frozen=True)
class PreferenceWeights:
    """How the rewards of a general prompt are summed."""

    helpful: float = 1.0
    """Weight of the helpful reward model."""
    safety: float = 1.0
    """Weight of the safety reward model."""
    format: float = 1.0
    """Weight of the format reward."""
    language: float = 1.0
    """Weight of the language-consistency reward."""
    clip: float = 3.0
    """The helpful score counts within ± so many standard deviations; a reply without content gets the lowest."""


class PreferenceTask:
    """A task whose completions reward models judge: `dunwu.types.BatchTask`.

    Args:
        task: asks the problems; of its verdicts only format and language count.
        helpful: pairwise model, or None for none.
        safety: pointwise model, or None for none.
        names: the sub-tasks (`Problem.task`) judged by preference, the others' verdicts pass through; empty: all.
    """

    def __init__(
        self,
        task: Task,
        helpful: Scoring | None,
        safety: Scoring | None = None,
        weights: PreferenceWeights | None = None,
        names: Collection[str] = (),
    ) -> None:
        self.task, self.helpful, self.safety = task, helpful, safety
        self.weights, self.names = weights or PreferenceWeights(), frozenset(names)
        self.name = task.name
        if helpful is None and safety is None:
            raise UsageError("a preference task has no reward model", "give a helpful or a safety model")
        for scorer, kind in ((helpful, "pairwise"), (safety, "pointwise")):
            if scorer is not None and scorer.meaning.kind != kind:
                raise UsageError(f"a {scorer.meaning.kind} reward model where a {kind} one belongs", "swap the two")
        if not self.weights.clip > 0:
            raise UsageError(f"clip is {self.weights.clip}", "use a number above 0, such as 3")

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The wrapped task's problem."""
        return self.task.problem(split, seed, index)

    def gold(self, problem: Problem) -> str:
        """The wrapped task's gold: best by the truth, not necessarily by the reward models."""
        return self.task.gold(problem)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The wrapped task's key."""
        return self.task.answer_key(problem, answer)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """`score_all` of one."""
        return self.score_all([problem], [completion])[0]

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """A verdict each, in order; every reward model sees all replies in one call."""
        many = getattr(self.task, "score_all", None)
        pairs = zip(problems, completions, strict=True)
        verdicts: list[Verdict]
        verdicts = list(many(problems, completions)) if many else [self.task.score(p, c) for p, c in pairs]
        judged = [
            n
            for n, (problem, verdict) in enumerate(zip(problems, verdicts, strict=True))
            if (not self.names or problem.task in self.names) and verdict.status in ("ok", "unparsable")
        ]
        replies = [parse_reply(completions[n].strip()) for n in judged]
        talks = [[*_asked(problems[n]), reply] for n, reply in zip(judged, replies, strict=True)]
        spread: list[float | None] = [None] * len(talks)
        if isinstance(self.helpful, Ensemble):
            helpful, spread[:] = self.helpful.judged(talks)
        else:
            helpful = self.helpful.score(talks) if self.helpful else [math.nan] * len(talks)
        safety = self.safety.score(talks) if self.safety else [math.nan] * len(talks)
        for n, reply, likes, apart, safe in zip(judged, replies, helpful, spread, safety, strict=True):
            verdicts[n] = self._verdict(verdicts[n], bool(reply.content.strip()), likes, safe)
            if apart is not None and HELPFUL in verdicts[n].rewards:
                verdicts[n] = replace(verdicts[n], rewards={**verdicts[n].rewards, DISAGREEMENT: apart})
        return verdicts

    def _verdict(self, truth: Verdict, said_something: bool, likes: float, safe: float) -> Verdict:
        """The reward models' scores and the wrapped verdict as one verdict."""
        rewards = {name: truth.rewards[name] for name in KEPT if name in truth.rewards}
        if self.helpful is not None:
            likes = self.helpful.normalised([likes])[0]
            if not math.isfinite(likes):
                return Verdict({}, 0.0, "error", f"the helpful reward model's score is {likes}", truth.answer)
            clip = self.weights.clip
            # No reply like this was in the preference data: what the model makes of it means nothing.
            rewards[HELPFUL] = min(clip, max(-clip, likes)) if said_something else -clip
        if self.safety is not None:
            if not math.isfinite(safe):
                return Verdict({}, 0.0, "error", f"the safety reward model's score is {safe}", truth.answer)
            rewards[SAFETY] = probability(safe) if said_something else 0.0
        weights = {
            HELPFUL: self.weights.helpful,
            SAFETY: self.weights.safety,
            "format": self.weights.format,
            "language": self.weights.language,
        }
        reward = sum(weights[name] * value for name, value in rewards.items())
        known = {TRUTH + name: value for name, value in truth.rewards.items() if name not in KEPT}
        return Verdict(rewards | known, reward, truth.status, truth.reason, truth.answer)


def _asked(problem: Problem) -> tuple[Message, ...]:
    return problem.messages or (Message("user", problem.prompt),)
