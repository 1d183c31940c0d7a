"""The second rung: REINFORCE, leave one out. A sample is compared with the mean of its siblings, itself left out.

    A_i = r_i − 1/(G − 1) Σ_{j≠i} r_j = G/(G − 1) (r_i − mean)     Ahmadian et al. 2024, arXiv 2402.14740, eq. 6

Unbiased, since the baseline does not depend on the sample. Next rung: GRPO (`advantages.py`) takes the mean of all G and
may divide by their deviation, which weighs easy and hard questions more than middling ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """A of every scored sibling; exactly 0 for all if their rewards are equal, or there is one only.

    Example:
        >>> leave_one_out([1.0, 0.0, 0.0])
        [1.0, -0.5, -0.5]
    """
    if len(rewards) < 2 or max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    total = math.fsum(rewards)
    return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]
