"""The first rung: a reward, compared with nothing, or with what the whole batch got.

    A = r                       REINFORCE: Williams 1992, eq. 4
    A = r − mean(batch)         with a baseline that no single sample decides: less variance, the same expectation

Next rung: `rloo.py` compares samples of one question with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def reinforce_advantages(rewards: Sequence[float], baseline: bool = True) -> list[float]:
    """A of every scored sample of a batch; exactly 0 for all if their rewards are equal and there is a baseline.

    Example:
        >>> reinforce_advantages([1.0, 0.0, 0.0, 0.0]), reinforce_advantages([1.0, 0.0], baseline=False)
        ([0.75, -0.25, -0.25, -0.25], [1.0, 0.0])
    """
    if not baseline:
        return list(rewards)
    if not rewards or max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]
