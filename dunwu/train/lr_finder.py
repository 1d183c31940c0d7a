"""A learning rate for reinforcement learning: short trials from one start, and the largest rate before something breaks.

The range test of Smith (2015, arXiv 1506.01186, 3.3) raises the rate until the loss breaks. A policy's loss says nothing of
its worth, so here a trial is measured by what reinforcement learning loses first: the reward of the same held-out
problems, and the entropy that exploration lives on (Cui et al. 2025, arXiv 2505.22617). Every rate begins from the same
weights and sees the same problems, for what a long sweep does to a policy would be charged to its last rates.

Not covered: rates that break a run only after hundreds of steps; a trial is short, and the rule cannot see them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch

from dunwu.model.transformer import Transformer
from dunwu.train.config import PolicyConfig
from dunwu.train.rows import Row, micro_batches
from dunwu.types import Group

IN_A_ROW = 2
"""Broken rates in a row that end the search; one alone may be noise, unless it is the last of the grid."""
ERRORS = 2.0
"""Standard errors of a paired difference by which a reward must have fallen, to be broken."""
CLOSE = 1.0
"""Standard errors within which the recommended rate's reward is that of the best smaller one (the one-standard-error rule,
Breiman et al. 1984, "Classification and Regression Trees", 3.4.3)."""
ENTROPY_LEFT = 0.1
"""Share of the entropy that must be left; healthy rates left a fifth."""


@dataclass(frozen=True)
class Start:
    """What all trials begin from."""

    rewards: tuple[float, ...]
    """Mean reward of each held-out problem."""
    entropy: float
    """Nats a token."""


@dataclass(frozen=True)
class Trial:
    """A few steps at one rate."""

    lr: float
    rewards: tuple[float, ...] = ()
    """Of the same problems, in the same order; empty if the trial stopped."""
    entropy: float = math.nan
    """Nats a token, of its own held-out samples."""
    kl: float = math.nan
    """KL(end ‖ start), nats a token."""
    clipped: float = math.nan
    """Clipped tokens, mean over its steps."""
    stopped: str = ""
    """Why, where the numbers went bad."""


@dataclass(frozen=True)
class Point:
    """A trial, judged."""

    lr: float
    gain: float
    """Mean reward at the end less at the start."""
    error: float
    """Its standard error, paired over the problems."""
    kl: float
    entropy_left: float
    """Entropy at the end over that at the start."""
    clipped: float
    broke: str
    """What broke, or "" """
    behind: float = 0.0
    """Standard errors by which its reward is below that of the best smaller rate; 0 if it is not."""


@dataclass(frozen=True)
class Advice:
    """The recommendation."""

    lr: float | None
    """None if every rate broke."""
    breaks_at: float | None
    """The lowest rate that broke for good; None if none did."""
    why: str


def grid(low: float, high: float, points: int) -> tuple[float, ...]:
    """Learning rates in equal ratios from `low` to `high`, rounded to three digits.

    Example:
        >>> grid(1e-4, 1e-2, 5)
        (0.0001, 0.000316, 0.001, 0.00316, 0.01)
    """
    if points == 1:
        return (low,)
    return tuple(float(f"{low * (high / low) ** (n / (points - 1)):.3g}") for n in range(points))


def judge(start: Start, trials: Sequence[Trial]) -> list[Point]:
    """What each trial gained, and whether it broke; a trial is compared with the start and with every lower rate.

    Example:
        >>> start = Start((0.0, 1.0, 0.0, 1.0), 1.0)
        >>> good, bad = Trial(1e-3, (1.0, 1.0, 0.5, 1.0), 0.8), Trial(1e-2, (0.0, 0.0, 0.0, 0.0), 0.8)
        >>> [point.broke for point in judge(start, [good, bad])]
        ['', 'reward below that at 0.001']
    """
    points: list[Point] = []
    best: Trial | None = None
    for trial in trials:
        if trial.stopped:
            points.append(Point(trial.lr, math.nan, math.nan, trial.kl, math.nan, trial.clipped, trial.stopped))
            continue
        gain, error = paired(trial.rewards, start.rewards)
        left = trial.entropy / start.entropy if start.entropy > 0 else math.nan
        behind, broke = _behind(trial.rewards, best.rewards) if best is not None else 0.0, ""
        if best is not None and behind > ERRORS:
            broke = f"reward below that at {best.lr:g}"
        elif _behind(trial.rewards, start.rewards) > ERRORS:
            broke = "reward below the start"
        elif left < ENTROPY_LEFT:
            broke = f"{left:.0%} of the entropy left"
        points.append(Point(trial.lr, gain, error, trial.kl, left, trial.clipped, broke, behind))
        if not broke and (best is None or fmean(trial.rewards) > fmean(best.rewards)):
            best = trial
    return points


def is_over(points: Sequence[Point]) -> bool:
    """Whether higher rates need not be tried: the last `IN_A_ROW` all broke."""
    return len(points) >= IN_A_ROW and all(point.broke for point in points[-IN_A_ROW:])


def advise(points: Sequence[Point]) -> Advice:
    """The largest rate before the break whose reward is as good as any smaller one's.

    The break is the first of `IN_A_ROW` broken rates, or the last of the grid if it broke.

    Example:
        >>> def at(lr, broke=""): return Point(lr, 0.0, 0.0, 0.0, 1.0, 0.0, broke)
        >>> advise([at(1e-4), at(1e-3, "noise"), at(1e-2), at(1e-1, "reward"), at(1.0, "reward")]).lr
        0.01
        >>> advise([at(1e-4), at(1e-3)]).why
        'nothing broke up to 0.001: raise --high'
    """
    border = next(
        (n for n in range(len(points)) if all(p.broke for p in points[n : n + IN_A_ROW])),
        None,
    )
    whole = [point for point in points[:border] if not point.broke and point.behind <= CLOSE]
    if border is None:
        return Advice(whole[-1].lr if whole else None, None, f"nothing broke up to {points[-1].lr:g}: raise --high")
    breaks = points[border]
    if not whole:
        return Advice(None, breaks.lr, f"already {breaks.lr:g} broke ({breaks.broke}): lower --low")
    return Advice(whole[-1].lr, breaks.lr, f"at {breaks.lr:g}: {breaks.broke}")


def paired(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Mean difference over the same problems, and its standard error.

    Example:
        >>> paired((1.0, 1.0, 0.5), (0.0, 1.0, 0.5))
        (0.3333333333333333, 0.3333333333333333)
    """
    differences = [a - b for a, b in zip(after, before, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return fmean(differences), error


def _behind(after: Sequence[float], before: Sequence[float]) -> float:
    """Standard errors by which `after` is lower; 0 if it is not."""
    difference, error = paired(after, before)
    if difference >= 0:
        return 0.0
    return -difference / error if error > 0 else math.inf


def group_rewards(groups: Sequence[Group]) -> tuple[float, ...]:
    """Mean reward of each problem over its scored samples; 0 where none was scored."""
    scored = (
        [r.verdict.reward for r in group.rollouts if r.verdict.status in ("ok", "unparsable")] for group in groups
    )
    return tuple(fmean(rewards) if rewards else 0.0 for rewards in scored)


@torch.inference_mode()
def drift(
    policy: Transformer, start: Transformer, groups: Sequence[Group], config: PolicyConfig
) -> tuple[float, float]:
    """(KL(policy ‖ start), entropy of the policy), nats a token, over samples of `policy` at the sampling temperature.

    The KL is Schulman's k3, the mean of exp(d) − 1 − d with d = log start − log policy: never below 0.
    """
    rows = [
        Row(group.prompt_ids + done.token_ids, len(group.prompt_ids), done.sampler_logprobs, 0.0, n, done.routing)
        for n, group in enumerate(groups)
        for done in (rollout.completion for rollout in group.rollouts)
        if done.token_ids
    ]
    if not rows:
        return math.nan, math.nan
    kl = entropy = count = 0.0
    for micro in micro_batches(rows, config, policy.head_weight.device, policy.native and start.native):
        mine_N, entropy_N = micro.logprobs(policy, config.temperature)
        gap_N = (micro.logprobs(start, config.temperature)[0] - mine_N).double().clamp(-20.0, 20.0)
        kl += float((gap_N.exp() - 1.0 - gap_N).sum())
        entropy += float(entropy_N.double().sum())
        count += mine_N.numel()
    return kl / count, entropy / count
