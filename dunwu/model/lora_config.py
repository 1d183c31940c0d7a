"""Settings of LoRA. No torch: recipes and the command line read this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dunwu.types import UsageError

MOST = 256
"""Largest rank. At it a matrix of a small model has no fewer trained weights than in full training."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021) in place of full fine-tuning: W stays, W + s·B·A is what the model computes.

    Example:
        >>> LoraConfig(rank=16, alpha=32).scale, LoraConfig(rank=16, alpha=32, rslora=True).scale
        (2.0, 8.0)
    """

    rank: int = 0
    """r: rows of A and columns of B, 1 to 256; 0 trains all weights instead. RL learns with 1 to 32, much text wants more."""
    alpha: float = 32.0
    """α: with the rank it sets the factor s = α / r on B·A."""
    dropout: float = 0.0
    """Dropout before A, in supervised training only."""
    targets: tuple[str, ...] = ("all",)
    """Linear layers that get adapters, by the last part of their names (q_proj v_proj …); "all": every one of a block."""
    rslora: bool = False
    """s = α / √r (Kalajdzievski 2023), so that large ranks learn as fast as small ones."""

    @property
    def scale(self) -> float:
        """s: factor on B·A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def key(self) -> dict[str, Any]:
        """What an artifact's key says of it: nothing while it is off, so older results keep their keys."""
        return {"lora": self} if self.rank else {}

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if not 0 <= self.rank <= MOST:
            raise UsageError(f"lora.rank is {self.rank}", f"use 1 to {MOST}, or 0 to train all weights")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"lora.alpha is {self.alpha}", "use a number above 0, e.g. twice the rank")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"lora.dropout {self.dropout} is no share", "choose 0 or more and less than 1")
        if not self.targets:
            raise UsageError("lora.targets names no layers", "name some, or all")
