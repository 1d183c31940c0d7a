"""What every training loop yields, and how it stops when the numbers go bad."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dunwu.types import DunwuError, Group

EXPLODED = 1e4
"""A gradient norm above this, before clipping, is no longer training."""


@dataclass(frozen=True)
class TrainStep:
    """One finished update (or rollout batch): its number, counted from 1, and what was measured."""

    n: int
    metrics: dict[str, float]
    groups: tuple[Group, ...] = field(default=())


def check_finite(value: float, name: str, step: int, batch: Sequence[Sequence[int]], folder: Path | None) -> None:
    """Stop on NaN, infinity or an exploded gradient, with the offending batch saved.

    Raises:
        DunwuError: names the step, the saved batch and the checkpoint that is still good.
    """
    if math.isfinite(value) and not (name == "gradient norm" and value > EXPLODED):
        return
    where, cure = "", "lower the learning rate"
    if folder is not None:
        path = folder / "offending_batch.json"
        path.write_text(json.dumps([list(map(int, row)) for row in batch]), encoding="utf-8")
        where = f"; batch saved as {path}"
        if (folder / "checkpoint.safetensors").exists():
            cure += f"; last good state: {folder / 'checkpoint.safetensors'}"
    raise DunwuError(f"{name} is {value} at step {step}{where}", cure)
