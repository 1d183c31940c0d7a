"""A trial from beginning to end: learn, look at the held-out episodes on the way, and say what came of it.

Shapes: S seeds, W weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dunwu.control.collect import shocks, starts
from dunwu.control.config import Trial
from dunwu.control.envs import Lqr, environment
from dunwu.control.learn import Learners, learn

CURVE, FINAL = "curve", "end"
"""Names of the two sets of held-out start states."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial. Returns are those of the likeliest actions."""

    steps: list[int]
    """Steps of the system at each point of the curve, from 0."""
    curve: list[list[float]]
    """Mean held-out return at each point, by seed: after the first update that reached it."""
    metrics: list[dict[str, float]]
    """Of the last update before each point; seconds are the processor's, in all up to there."""
    final: list[float]
    """Mean return over the final episodes, by seed."""
    updates: int
    """Updates of the slowest seed."""
    weights: torch.Tensor
    """The policies', (S, W)."""


def run_trial(trial: Trial) -> Outcome:
    """Learn and measure. The same trial gives the same bits, on one thread of the same machine.

    Raises:
        UsageError: settings that cannot work. DunwuError: the loss is no longer finite.
    """
    trial.config.validate()
    began = time.process_time()
    learners = Learners(environment(trial.system), trial.config, list(trial.seeds))
    everyone = range(len(trial.seeds))
    budget = trial.config.env_steps
    steps = [budget * n // trial.points for n in range(trial.points + 1)]
    curve = [_greedy(learners, list(everyone), trial.held_out, CURVE)]
    curve += [[0.0] * len(trial.seeds) for _ in range(trial.points)]
    metrics: list[dict[str, float]] = [{} for _ in steps]
    reached, update = [0 for _ in everyone], 0
    for step in learn(learners):
        update = step.update
        crossed = [n for n in step.rows if reached[n] < trial.points and step.steps[n] >= steps[reached[n] + 1]]
        for n, value in zip(crossed, _greedy(learners, crossed, trial.held_out, CURVE)):
            while reached[n] < trial.points and step.steps[n] >= steps[reached[n] + 1]:
                reached[n] += 1
                curve[reached[n]][n] = value
                metrics[reached[n]] = step.metrics | {"seconds": time.process_time() - began}
    final = _greedy(learners, list(everyone), trial.final, FINAL)
    return Outcome(steps, curve, metrics[1:], final, update, learners.weights_SW)


def best_cost(trial: Trial, which: str) -> float | None:
    """What the best controller of an LQR pays on the held-out episodes of the curve or the end, mean; None for other systems."""
    system, count = environment(trial.system), trial.held_out if which == CURVE else trial.final
    if not isinstance(system, Lqr):
        return None
    disturbed = shocks(system, [0], count, "held-out", which)
    assert disturbed is not None
    return float(system.best_cost(starts(system, [0], count, 1, "held-out", which)[0], disturbed).mean())


def _greedy(learners: Learners, rows: list[int], count: int, which: str) -> list[float]:
    if not rows:
        return []
    found: list[float] = learners.greedy_returns(rows, count, which).double().mean(dim=1).tolist()
    return found


def play(trial: Trial, weights: torch.Tensor, episodes: int) -> list[float]:
    """Mean return of every seed's policy in gymnasium's own environment, likeliest actions, episodes reset with seeds 0, 1, ….

    Args:
        weights: `Outcome.weights`.

    Raises:
        ImportError: gymnasium is not installed.
    """
    import gymnasium

    system = environment(trial.system)
    policy = Learners(system, trial.config, list(trial.seeds)).policy
    games = [gymnasium.make(system.gym_id, disable_env_checker=True) for _ in range(len(trial.seeds) * episodes)]
    seen = np.stack([game.reset(seed=n % episodes)[0] for n, game in enumerate(games)])
    total, playing = np.zeros(len(games)), np.ones(len(games), dtype=bool)
    scale = np.asarray(system.scale, dtype=np.float32)
    while playing.any():
        with torch.no_grad():
            rows = torch.from_numpy(seen / scale).float().view(len(trial.seeds), episodes, -1)
            action = policy.best(policy.outputs(weights, rows)).flatten(0, 1).numpy()
        for n in np.flatnonzero(playing):
            told: Any = int(action[n]) if system.choices else action[n] * system.force
            seen[n], reward, ended, truncated, _ = games[n].step(told)
            total[n] += float(reward)
            playing[n] = not (ended or truncated)
    for game in games:
        game.close()
    means: list[float] = total.reshape(len(trial.seeds), episodes).mean(axis=1).tolist()
    return means
