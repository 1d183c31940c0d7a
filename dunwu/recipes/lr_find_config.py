"""The knobs of the recipe `lr-find`: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dunwu.recipes.grpo_config import GrpoRunConfig
from dunwu.train.config import GrpoConfig
from dunwu.types import UsageError

_SHORT = GrpoConfig(steps=8, problems=16, group_size=16, warmup=0, schedule="constant")


@dataclass(frozen=True)
class LrFindConfig(GrpoRunConfig):
    """A few steps of GRPO at each of several learning rates, from the same weights on the same problems."""

    grpo: GrpoConfig = field(default_factory=lambda: _SHORT)
    """One trial; its `lr` is not used."""
    low: float = 1e-5
    """Smallest learning rate."""
    high: float = 1e-2
    """Largest learning rate; after two in a row that break, larger ones are not tried."""
    points: int = 7
    """Learning rates, in equal ratios."""
    held_out: int = 64
    """Validation problems on which every trial is measured."""
    samples: int = 8
    """Samples of each."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        super().validate()
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise UsageError(f"learning rates from {self.low} to {self.high}", "give finite --low and --high")
        if not 0 < self.low <= self.high or self.points < 1 or (self.points > 1 and self.low == self.high):
            what = f"{self.points} learning rates from {self.low} to {self.high}"
            raise UsageError(what, "give --low above 0, --high above it, and --points of 2 or more")
        if self.samples < 1 or self.held_out < 2:
            raise UsageError(f"{self.held_out} held_out problems of {self.samples} samples", "use 2 and 1 or more")


LR_FIND_PRESETS: dict[str, LrFindConfig] = {
    "cpu": LrFindConfig(),
    "tiny": LrFindConfig(
        grpo=GrpoConfig(steps=3, problems=8, group_size=8, max_tokens=32, warmup=0, schedule="constant"),
        low=1e-4,
        points=4,
        held_out=16,
        samples=4,
        save_every=1,
    ),
}
