"""Our PPO beside Stable-Baselines3's on CartPole and Pendulum: the same steps of the same systems, one seed a turn.

Both take RL Baselines3 Zoo's tuned settings as far as they have them in common (network, learning rate, γ, λ, epochs, size of a
minibatch, steps between updates); ours begins every batch at a start state and plays whole episodes, theirs goes on where
it was. What is compared is the rate, steps a second with the updates; the return reached is in the row beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dunwu.bench import INSTALL, BenchConfig
from dunwu.bench.pairs import compare
from dunwu.control.config import LearnConfig
from dunwu.control.envs import environment
from dunwu.control.learn import Learners, learn


def _falling(left: float) -> float:
    """The Zoo's learning rate on CartPole, by the share of the training that is left."""
    return 1e-3 * left


EPISODES = 20
"""Episodes behind a return."""
SETTINGS: dict[str, tuple[LearnConfig, dict[str, Any]]] = {
    "cartpole": (
        LearnConfig(env_steps=50_000, starts=8, epochs=20, minibatches=2, gamma=0.98, lam=0.8, final_lr=0.05),
        {
            "n_envs": 8,
            "n_steps": 32,
            "batch_size": 256,
            "n_epochs": 20,
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "learning_rate": _falling,
        },
    ),
    "pendulum": (
        LearnConfig(env_steps=100_000, starts=16, epochs=10, minibatches=16, gamma=0.9, lr=1e-3),
        {
            "n_envs": 4,
            "n_steps": 1024,
            "batch_size": 64,
            "n_epochs": 10,
            "gamma": 0.9,
            "gae_lambda": 0.95,
            "learning_rate": 1e-3,
        },
    ),
}
"""Ours, and Stable-Baselines3's: the Zoo's, without gSDE on Pendulum."""


def bench_control(config: BenchConfig) -> dict[str, Any]:
    """Steps/s of PPO with its updates, and the return after equal steps, median over the turns."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    if config.peers:
        try:
            import stable_baselines3

            versions["stable_baselines3"] = stable_baselines3.__version__
        except ImportError:
            missing["stable_baselines3"] = INSTALL
    for name, (ours, theirs) in SETTINGS.items():
        steps = 1_000 if config.quick else ours.env_steps
        returns: dict[str, list[float]] = {"ours": [], "peer": []}
        mine = _Turn(partial(_ours, name, ours, steps), config.seed, returns["ours"])
        peer = None
        if versions:
            peer = _Turn(partial(_theirs, name, theirs, steps), config.seed, returns["peer"])
        figures = compare(mine, peer, config.pairs)
        reached = {who: round(statistics.median(found), 1) for who, found in returns.items() if found}
        work = f"return {reached['ours']}" + (f", theirs {reached['peer']}" if "peer" in reached else "")
        row = {"case": f"PPO, {environment(name).gym_id}, {steps:,} steps", "work": work, "returns": reached}
        rows.append(row | {"peer_name": "SB3" if peer else None} | figures)
    return {"unit": "steps/s", "rows": rows, "missing": missing, "versions": versions}


class _Turn:
    """A training with another seed every time; keeps the return it reached, and gives the rate."""

    def __init__(self, train: Callable[[int], tuple[float, float]], seed: int, returns: list[float]) -> None:
        self.train, self.seed, self.returns, self.turns = train, seed, returns, 0

    def __call__(self) -> float:
        self.turns += 1
        rate, found = self.train(self.seed * 1000 + self.turns)
        if self.turns > 1:  # the first warms up
            self.returns.append(found)
        return float(rate)


def _ours(name: str, config: LearnConfig, steps: int, seed: int) -> tuple[float, float]:
    learners = Learners(environment(name), replace(config, env_steps=steps), [seed])
    began, taken = time.perf_counter(), 0
    for step in learn(learners):
        taken = step.steps[0]
    seconds = time.perf_counter() - began
    return taken / seconds, float(learners.greedy_returns([0], EPISODES).mean())


def _theirs(name: str, settings: dict[str, Any], steps: int, seed: int) -> tuple[float, float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    system = environment(name)
    games = make_vec_env(system.gym_id, n_envs=settings["n_envs"], seed=seed)
    rest = {key: value for key, value in settings.items() if key != "n_envs"}
    model = PPO("MlpPolicy", games, seed=seed, device="cpu", **rest)
    began = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - began
    mean, _ = evaluate_policy(model, games, n_eval_episodes=EPISODES, deterministic=True)
    games.close()
    return model.num_timesteps / seconds, float(np.asarray(mean).item())
