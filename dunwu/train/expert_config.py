"""Settings of a round of expert iteration. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dunwu.rollout.selection import SelectionRules
from dunwu.types import UsageError

ANY_RIGHT = SelectionRules(per_prompt=2, prefer="random", language=0.0, paragraph=0, code=True, repeats=0)
"""What is right and well formed, however it reads: STaR's filter."""


@dataclass(frozen=True)
class ExpertConfig:
    """What a round asks, and what it keeps to train on (STaR, arXiv 2203.14465, algorithm 1; RAFT, 2304.06767; ReST, 2308.08998)."""

    problems: int = 256
    """Training problems of a round."""
    samples: int = 4
    """Samples of each; 1 in STaR, K in RAFT."""
    max_tokens: int = 192
    """Longest sample."""
    temperature: float = 1.0
    """Of the samples; 0 is greedy, as in STaR."""
    keep: Literal["right", "best"] = "right"
    """Every right sample that passes `rules` (STaR), or each problem's best by reward, right or not (RAFT)."""
    rules: SelectionRules = ANY_RIGHT
    """For "right": what else a kept sample must be, and how many of one problem."""
    least_reward: float = 0.0
    """For "best": τ, the reward below which even the best is dropped (ReST)."""
    rationalize: Literal["none", "hint", "gold"] = "none"
    """For problems without a right sample: ask again with the answer told (STaR, 3.2), or take the task's own solution."""
    same_problems: bool = True
    """Every round asks the same problems (STaR); else new ones (RAFT)."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if low := [name for name in ("problems", "samples", "max_tokens") if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature {self.temperature} is out of range", "0 is greedy, 1 usual")
        if self.temperature == 0 and self.samples > 1:
            raise UsageError(
                f"temperature 0 draws the same sample {self.samples} times", "use 1 sample, or a temperature"
            )
        if self.keep not in ("right", "best"):
            raise UsageError(f"keep is {self.keep!r}", "use right or best")
        if self.rationalize not in ("none", "hint", "gold"):
            raise UsageError(f"rationalize is {self.rationalize!r}", "use none, hint or gold")
        if self.rationalize != "none" and self.keep == "best":
            raise UsageError("rationalize is for problems without a right sample", "use it with keep right")
        if self.keep == "right" and not self.rules.correct:
            raise UsageError("rules.correct is off", "use keep best, which does not ask for right ones")
        self.rules.validate()
