"""Whole episodes of many seeds at a time: tensors in which a step of a system stands where a token of a completion stands.

Shapes: S seeds, B episodes of each, T steps (the longest episode's, the others padded), O numbers of an observation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dunwu.control.envs import Array, Environment
from dunwu.control.policies import Policy
from dunwu.types import derive_seed


@dataclass(frozen=True)
class Episodes:
    """What happened. Where `mask_SBT` is 0 the episode was over: what stands there is the padding's, and trains nothing."""

    observed_SBTO: Tensor
    """What the policy saw before each step, divided by the system's `scale`."""
    actions: Tensor
    """(S, B, T) choices, or (S, B, T, K) numbers."""
    rewards_SBT: Tensor
    """Reward of each step; 0 where masked."""
    mask_SBT: Tensor
    """1 where the policy acted."""
    last_SBO: Tensor
    """What would have been seen after the last step."""
    truncated_SB: Tensor
    """1 where a time limit ended the episode, and the system would have gone on from `last_SBO`."""

    @property
    def returns_SB(self) -> Tensor:
        """Sum of each episode's rewards, not discounted."""
        return self.rewards_SBT.sum(dim=2)

    @property
    def steps_S(self) -> Tensor:
        """Steps taken by each seed."""
        return self.mask_SBT.sum(dim=(1, 2)).long()


@torch.no_grad()
def collect(
    environment: Environment,
    policy: Policy,
    flat_SW: Tensor,
    starts_SBD: Array,
    noise_TSBK: NDArray[np.float32] | None,
    shocks_TNK: Array | None = None,
) -> Episodes:
    """Play every start state to its end.

    Args:
        flat_SW: the policy's weights, a row per seed.
        starts_SBD: siblings of a group have equal rows.
        noise_TSBK: what actions are drawn with, from `draws`; None takes the likeliest action.
        shocks_TNK: what disturbs the system (N = S · B), from `shocks`; None where nothing does.
    """
    seeds, count, _ = starts_SBD.shape
    state, scale = starts_SBD.reshape(seeds * count, -1), np.asarray(environment.scale, dtype=np.float32)
    alive, truncated = np.ones(len(state), dtype=bool), np.zeros(len(state), dtype=bool)

    def seen(time: int) -> Tensor:
        return torch.from_numpy(environment.observe(state, time) / scale).view(seeds, count, -1)

    observed, actions, rewards, masks = [], [], [], []
    now = seen(0)
    last = now.clone().view(len(state), -1)
    for time in range(environment.horizon):
        outputs = policy.outputs(flat_SW, now)
        noise = None if noise_TSBK is None else torch.from_numpy(noise_TSBK[time])
        action = policy.best(outputs) if noise is None else policy.sample(flat_SW, outputs, noise)
        state, reward, ended = environment.step(
            state, _in_units(environment, action), None if shocks_TNK is None else shocks_TNK[time]
        )
        observed.append(now)
        actions.append(action)
        rewards.append(reward * alive)
        masks.append(alive)
        now = seen(time + 1)
        last[alive] = now.view(len(state), -1)[alive]
        alive = alive & ~ended
        if not alive.any():
            break
    else:
        truncated = alive if environment.truncates else truncated
    shape = (len(masks), seeds, count)
    return Episodes(
        torch.stack(observed, dim=2),
        torch.stack(actions, dim=2),
        torch.from_numpy(np.stack(rewards)).float().view(shape).permute(1, 2, 0).contiguous(),
        torch.from_numpy(np.stack(masks)).view(shape).permute(1, 2, 0).contiguous(),
        last.view(seeds, count, -1),
        torch.from_numpy(truncated).view(seeds, count),
    )


def starts(environment: Environment, seeds: list[int], states: int, group_size: int, *name: object) -> Array:
    """(S, states × group_size, D): start states by seed and name, each `group_size` times in a row."""
    drawn = [
        environment.start(np.random.default_rng(derive_seed("control-starts", environment.name, seed, *name)), states)
        for seed in seeds
    ]
    return np.repeat(np.stack(drawn), group_size, axis=1)


def draws(environment: Environment, policy: Policy, seeds: list[int], count: int, *name: object) -> NDArray[np.float32]:
    """(T, S, count, K): what the actions of `count` episodes of every seed are drawn with, by seed and name."""
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng(derive_seed("control-actions", environment.name, seed, *name))
        shape = (environment.horizon, count, policy.numbers or 1)
        drawn.append(rng.standard_normal(shape, np.float32) if policy.numbers else rng.random(shape, np.float32))
    return np.stack(drawn, axis=1)


def shocks(environment: Environment, seeds: list[int], count: int, *name: object) -> Array | None:
    """(T, S · count, K): what disturbs `count` episodes of every seed, by seed and name; None where nothing does."""
    if not environment.shocks:
        return None
    shape = (environment.horizon, count, environment.shocks)
    drawn = [
        np.random.default_rng(derive_seed("control-shocks", environment.name, seed, *name)).standard_normal(shape)
        for seed in seeds
    ]
    return np.concatenate(drawn, axis=1)


def _in_units(environment: Environment, action: Tensor) -> NDArray[np.float64] | NDArray[np.int64]:
    """Actions as the system takes them: (N,) choices, or (N, K) numbers in its unit."""
    if environment.choices:
        return np.asarray(action.flatten().numpy())
    return np.asarray(action.flatten(0, 1).double().numpy() * environment.force)
