"""Rewards of sibling rollouts → advantages. Plain Python floats: these lists are tiny and must be exact.

Shapes: P problems, G rollouts of one problem (groups may be ragged).

"GRPO" in the wild divides by at least three different things; here each has a name (`std_normalize`):

    "none"   A = r - mean(group)                           Dr. GRPO, arXiv 2503.20783
    "group"  A = (r - mean(group)) / (std(group) + eps)    DeepSeek-R1, arXiv 2501.12948, section 2.1
    "batch"  A = (r - mean(group)) / (std(batch) + eps)    "Lite PPO", arXiv 2508.08221

and mean(group) is one of four baselines (`baseline`), the rungs of a ladder:

    "none"            0: the reward itself                 REINFORCE, reinforce.py
    "batch"           mean of the whole batch              REINFORCE with a baseline, reinforce.py
    "leave-one-out"   mean of the other siblings           RLOO, rloo.py
    "group"           mean of all siblings                 GRPO

Order matters: compute advantages over every scored rollout of a group first; drop truncated or rejected rows from
the loss afterwards (by their `loss_mask`), or the survivors' baseline moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from dunwu.train.reinforce import reinforce_advantages
from dunwu.train.rloo import leave_one_out
from dunwu.types import UsageError

StdNormalize = Literal["none", "group", "batch"]
Baseline = Literal["group", "leave-one-out", "batch", "none"]


@dataclass(frozen=True)
class AdvantageStats:
    """What became of every reward: `scored + excluded` = rewards in, and
    `informative_groups + zero_variance_groups + unscored_groups` = groups in."""

    scored: int
    """Rewards that entered a baseline."""
    excluded: int
    """Rewards that were None, NaN or infinite: advantage None, no influence on anything."""
    zero_variance_groups: int
    """Groups whose scored rewards are all equal (a single one included): advantage exactly 0."""
    unscored_groups: int
    """Groups without one scored reward."""
    informative_P: tuple[bool, ...]
    """Per group: does it carry a gradient (at least two different rewards)?"""
    reward_mean: float
    """Mean of all scored rewards; 0 if there are none."""
    reward_std: float
    """Standard deviation of all scored rewards, with the `std_ddof` asked for; 0 for fewer than two."""

    @property
    def informative_groups(self) -> int:
        """Number of groups that carry a gradient."""
        return sum(self.informative_P)


def group_advantages(
    rewards_PG: Sequence[Sequence[float | None]],
    std_normalize: StdNormalize = "none",
    std_eps: float = 1e-4,
    std_ddof: int = 0,
    baseline: Baseline = "group",
) -> tuple[list[list[float | None]], AdvantageStats]:
    """Advantage of every rollout against its siblings; see the module docstring for the three formulas.

    Args:
        rewards_PG: rewards by problem. None, NaN and infinity mean "not scored" (the verifier failed or timed
            out): such a row gets advantage None and leaves mean, standard deviation and counts.
        std_normalize: what the centred reward is divided by.
        std_eps: added to the standard deviation (same unit as the reward).
        std_ddof: 0 for the population standard deviation (divides by n, our default: the paper names no
            correction), 1 for the sample one (n - 1), as `torch.std` and so TRL compute it.
        baseline: what a reward is compared with.

    Returns:
        Advantages in the shape of `rewards_PG`, and the counts. A group whose scored rewards have max == min gets
        exactly 0.0: the float mean of eight 0.1s is not 0.1, so a tiny eps would turn rounding into a gradient.

    Raises:
        UsageError: unknown `std_normalize` or `baseline`, negative `std_eps`, or `std_ddof` other than 0 and 1.

    Example:
        >>> group_advantages([[1.0, 0.0, None]], "group", std_eps=0.0)[0]
        [[1.0, -1.0, None]]
        >>> group_advantages([[1.0, 0.0], [0.0, 0.0]], baseline="batch")[0]
        [[0.75, -0.25], [-0.25, -0.25]]
    """
    if std_normalize not in ("none", "group", "batch"):
        raise UsageError(f"std_normalize is {std_normalize!r}", 'use "none", "group" or "batch"')
    if baseline not in ("group", "leave-one-out", "batch", "none"):
        raise UsageError(f"baseline is {baseline!r}", 'use "group", "leave-one-out", "batch" or "none"')
    if not std_eps >= 0.0 or std_ddof not in (0, 1):
        raise UsageError(f"std_eps is {std_eps}, std_ddof is {std_ddof}", "use std_eps >= 0 and std_ddof 0 or 1")

    scored_PG = [[r for r in group if _is_scored(r)] for group in rewards_PG]
    every_reward = [r for group in scored_PG for r in group]
    batch_std, all_differ = _std(every_reward, std_ddof), _differ(every_reward)

    centred = iter(reinforce_advantages(every_reward, baseline == "batch"))
    advantages_PG: list[list[float | None]] = []
    for rewards, scored in zip(rewards_PG, scored_PG):
        if baseline in ("none", "batch"):
            found = [next(centred) for _ in scored]
        elif baseline == "leave-one-out":
            found = leave_one_out(scored)
        else:
            found = _from_mean(scored)
        scale = 1.0
        if std_normalize == "group" and _differ(scored):
            scale = _std(scored, std_ddof) + std_eps
        elif std_normalize == "batch" and all_differ:
            scale = batch_std + std_eps
        left = iter(found)
        advantages_PG.append([next(left) / scale if _is_scored(r) else None for r in rewards])

    informative_P = tuple(_differ(scored) for scored in scored_PG)
    unscored = sum(not scored for scored in scored_PG)
    stats = AdvantageStats(
        scored=len(every_reward),
        excluded=sum(len(group) for group in rewards_PG) - len(every_reward),
        zero_variance_groups=len(scored_PG) - sum(informative_P) - unscored,
        unscored_groups=unscored,
        informative_P=informative_P,
        reward_mean=_mean(every_reward),
        reward_std=batch_std,
    )
    return advantages_PG, stats


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft punishment of length, added to the reward (arXiv 2503.14476, equation 13).

        0                                     if length <= max_tokens - buffer
        (max_tokens - buffer - length)/buffer if max_tokens - buffer < length <= max_tokens
        -1                                    if length > max_tokens

    Args:
        length: tokens of the completion.
        max_tokens: longest completion allowed (L_max).
        buffer: width in tokens of the slope (L_cache); 0 makes a step at `max_tokens`.

    Returns:
        A number in [-1, 0].

    Raises:
        UsageError: `buffer` outside [0, max_tokens].

    Example:
        >>> overlong_penalty(90, max_tokens=100, buffer=20)
        -0.5
    """
    if not 0 <= buffer <= max_tokens:
        raise UsageError(f"overlong buffer is {buffer} of {max_tokens} tokens", "use 0 <= buffer <= max_tokens")
    if length > max_tokens:
        return -1.0
    excess = length - (max_tokens - buffer)
    return -excess / buffer if excess > 0 else 0.0


def _is_scored(reward: float | None) -> TypeGuard[float]:
    return reward is not None and math.isfinite(reward)


def _differ(scored: Sequence[float]) -> bool:
    return bool(scored) and max(scored) != min(scored)


def _from_mean(scored: Sequence[float]) -> list[float]:
    if not _differ(scored):
        return [0.0] * len(scored)
    mean = _mean(scored)
    return [reward - mean for reward in scored]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _std(values: Sequence[float], ddof: int) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - ddof))
