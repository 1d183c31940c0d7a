"""Control systems learned by the language models' own functions: their advantages, their loss, their value loss.

    for step in learn(environment, config, seeds):
        # collect:  start states → siblings → whole episodes                               collect.py
        # credit:   returns → advantages, by group_advantages or gae                        train/advantages.py, train/gae.py
        # update:   steps → minibatches → policy_loss, value_loss → one move of every seed  train/losses.py, train/value.py

An episode stands for a completion and a step for a token: tensors are (B, T), and what is past an episode's end is masked as
padding is. Ten seeds learn at once (policies.py); they share nothing but the clock.

Shapes: S seeds, B = P · G episodes of each (P start states, G siblings), T steps, N = B · T.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dunwu.control.collect import Episodes, collect, draws, shocks, starts
from dunwu.control.config import LearnConfig
from dunwu.control.envs import Environment
from dunwu.control.policies import Adam, Critic, Policy
from dunwu.train.advantages import group_advantages
from dunwu.train.gae import gae, whiten
from dunwu.train.losses import Tally, add_tallies, policy_loss, token_weights
from dunwu.train.value import explained_variance, value_loss
from dunwu.types import DunwuError, derive_seed

UNIT_SHARE = 0.2
"""How far the critic's unit follows the returns of an update."""


@dataclass(frozen=True)
class Step:
    """One update of the seeds that still learn (`rows`, of R)."""

    update: int
    """Updates done, from 1."""
    rows: list[int]
    """Which seeds it moved, by place."""
    steps: list[int]
    """Steps every seed has taken in all, (S,)."""
    metrics: dict[str, float]
    """Means over the seeds moved; names as in docs/metrics.md, without `control/`."""


class Learners:
    """Policies and critics of all seeds, with their optimizers."""

    def __init__(self, environment: Environment, config: LearnConfig, seeds: list[int]) -> None:
        self.environment, self.config, self.seeds = environment, config, seeds
        observed = len(environment.scale)
        self.policy = Policy(observed, config.hidden, environment.choices, log_std=config.log_std)
        self.weights_SW = self.policy.first_weights(seeds)
        self.optimizer = Adam(self.weights_SW)
        self.critic = Critic(observed, config.value_hidden)
        self.value_weights_SW, self.unit_S2 = self.critic.first_weights(seeds)
        self.value_optimizer = Adam(self.value_weights_SW)

    def greedy_returns(self, rows: list[int], count: int, *name: object) -> Tensor:
        """(R, count): returns of the likeliest actions from `count` start states, the same for all seeds."""
        every = starts(self.environment, [0], count, 1, "held-out", *name).repeat(len(rows), axis=0)
        shock = shocks(self.environment, [0], count, "held-out", *name)
        shock = None if shock is None else np.tile(shock, (1, len(rows), 1))
        return collect(self.environment, self.policy, self.weights_SW[rows], every, None, shock).returns_SB


def learn(learners: Learners) -> Iterator[Step]:
    """Update after update until every seed has taken its `env_steps`; each stops when it has.

    Raises:
        DunwuError: the loss of a seed is no longer finite.
    """
    environment, config, seeds = learners.environment, learners.config, learners.seeds
    taken, update = [0] * len(seeds), 0
    while rows := [n for n, steps in enumerate(taken) if steps < config.env_steps]:
        began, update = time.process_time(), update + 1
        moved = [seeds[n] for n in rows]
        episodes = collect(
            environment,
            learners.policy,
            learners.weights_SW[rows],
            starts(environment, moved, config.starts, config.group_size, "train", update),
            draws(environment, learners.policy, moved, config.episodes, update),
            shocks(environment, moved, config.episodes, update),
        )
        collected = time.process_time()
        left = torch.tensor([1.0 - (1.0 - config.final_lr) * taken[n] / config.env_steps for n in rows])
        metrics = _update(learners, rows, episodes, left, update)
        for n, steps in zip(rows, episodes.steps_S.tolist()):
            taken[n] += steps
        metrics |= {"collect_seconds": collected - began, "seconds": time.process_time() - began}
        yield Step(update, rows, list(taken), metrics)


def group_credit(episodes: Episodes, config: LearnConfig) -> Tensor:
    """Advantages (S, B, T) of reinforce, rloo and grpo: each seed's by `group_advantages`, 0 where masked.

    "outcome": the whole episode's discounted return, beside its siblings'. "to-go": the return from each step on, beside that of
    the siblings that still act at the same step; a sibling whose episode is over has none.
    """
    found = []
    for rewards_BT, mask_BT in zip(episodes.rewards_SBT, episodes.mask_SBT):
        # With values of 0 and λ = 1 an advantage is the discounted return to go.
        to_go_BT, _ = gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, config.gamma, 1.0)
        if config.algorithm == "reinforce" and config.credit == "to-go":
            found.append(whiten(to_go_BT, mask_BT))
            continue
        at_PCG = _groups(to_go_BT if config.credit == "to-go" else to_go_BT[:, :1], config.group_size)
        acted_PCG = _groups(mask_BT[:, : at_PCG.shape[1]], config.group_size)
        rewards = torch.where(acted_PCG, at_PCG, torch.nan).flatten(0, 1).tolist()  # NaN: no reward, and no influence
        if config.algorithm == "reinforce":
            advantages, _ = group_advantages(rewards, "batch", config.std_eps, baseline="batch")
        elif config.algorithm == "rloo":
            advantages, _ = group_advantages(rewards, "none", baseline="leave-one-out")
        else:
            advantages, _ = group_advantages(rewards, config.std_normalize, config.std_eps)
        numbers = [0.0 if number is None else number for group in advantages for number in group]
        chosen = torch.tensor(numbers, dtype=torch.float32).view(at_PCG.shape).transpose(1, 2).flatten(0, 1)
        found.append(chosen * mask_BT)
    return torch.stack(found)


def _groups(values_BC: Tensor, group_size: int) -> Tensor:
    """(B, C) → (P, C, G): siblings side by side, a group per start state and column."""
    return values_BC.view(-1, group_size, values_BC.shape[1]).transpose(1, 2)


def critic_credit(
    learners: Learners, rows: list[int], episodes: Episodes, config: LearnConfig
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Advantages and returns (S, B, T) of ppo, and how well the critic knew them.

    An episode that a time limit cut off goes on with the critic's value of what came next; one that ended does not.
    """
    weights, unit, shape = learners.value_weights_SW[rows], learners.unit_S2[rows], episodes.mask_SBT.shape
    with torch.no_grad():
        values = learners.critic.values(weights, unit, episodes.observed_SBTO.flatten(1, 2)).view(shape)
        after_SB = learners.critic.values(weights, unit, episodes.last_SBO) * episodes.truncated_SB
    advantages, returns = gae(
        episodes.rewards_SBT.flatten(0, 1),
        values.flatten(0, 1),
        episodes.mask_SBT.flatten(0, 1),
        config.gamma,
        config.lam,
        after_SB.flatten(),
    )
    advantages, returns = advantages.view(shape), returns.view(shape)
    known = [
        explained_variance(value[mask], target[mask]) for value, target, mask in zip(values, returns, episodes.mask_SBT)
    ]
    whitened = torch.stack([whiten(found, mask) for found, mask in zip(advantages, episodes.mask_SBT)])
    return whitened, returns, {"explained_variance": sum(known) / len(known)}


def weights_of(mask_SBT: Tensor, config: LearnConfig, horizon: int) -> Tensor:
    """`token_weights` of every seed's own update, (S, B, T)."""
    return torch.stack([token_weights(mask, config.loss_norm, max_tokens=horizon) for mask in mask_SBT])


def _update(learners: Learners, rows: list[int], episodes: Episodes, left_R: Tensor, update: int) -> dict[str, float]:
    """Move the seeds of `rows` by what happened."""
    config, mask = learners.config, episodes.mask_SBT
    metrics = {
        "reward": float(episodes.returns_SB.mean()),
        "length": float(mask.sum(dim=2).float().mean()),
        "lr": config.lr * float(left_R.mean()),
    }
    returns = torch.zeros_like(episodes.rewards_SBT)
    if config.algorithm == "ppo":
        advantages, returns, known = critic_credit(learners, rows, episodes, config)
        metrics |= known
        value_weights, unit = learners.value_weights_SW[rows], learners.unit_S2[rows]
        share = 1.0 if update == 1 else UNIT_SHARE
        learners.critic.change_unit(value_weights, unit, returns.flatten(1), mask.flatten(1).float(), share)
        learners.value_weights_SW[rows], learners.unit_S2[rows] = value_weights, unit
        returns = (returns - unit[:, :1, None]) / unit[:, 1:, None]
    else:
        advantages = group_credit(episodes, config)
    steps = _Steps(learners, rows, episodes, advantages, returns)
    tallies, norms = [], []
    for epoch in range(config.epochs):
        for chosen, live in _minibatches(config, [learners.seeds[n] for n in rows], steps.counts, update, epoch):
            tally, norm_R = steps.move(chosen, live, left_R)
            tallies.append(tally)
            norms.append(norm_R.mean())
    whole = add_tallies(tallies)
    metrics |= {name: tally.mean for name, tally in whole.items()}
    return metrics | {"grad_norm": float(torch.stack(norms).mean()), "ratio_max": whole["ratio"].maximum}


def _minibatches(
    config: LearnConfig, seeds: list[int], counts: list[int], update: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Places (R, M) of the steps of each minibatch, and which of them count: every seed's own steps in an order of its own, so
    that it does not matter how many others have."""
    orders = torch.arange(max(counts)).repeat(len(seeds), 1)
    if config.minibatches > 1:
        for order, seed, count in zip(orders, seeds, counts):
            generator = torch.Generator().manual_seed(derive_seed("control-order", seed, update, epoch))
            order[:count] = torch.randperm(count, generator=generator)
    for number in range(config.minibatches):
        first, end = (torch.tensor([count * n // config.minibatches for count in counts]) for n in (number, number + 1))
        places = first[:, None] + torch.arange(int((end - first).max()))
        yield orders.gather(1, places.clamp(max=orders.shape[1] - 1)), places < end[:, None]


class _Steps:
    """The steps of an update as (R, N): every seed's in a row, without what is masked."""

    def __init__(
        self, learners: Learners, rows: list[int], episodes: Episodes, advantages: Tensor, returns: Tensor
    ) -> None:
        self.learners, self.config, self.rows = learners, learners.config, torch.tensor(rows)
        mask = episodes.mask_SBT.flatten(1)
        self.counts: list[int] = mask.sum(dim=1).tolist()
        acted = torch.argsort((~mask).byte(), dim=1, stable=True)[:, : max(self.counts)]
        self.observed = _take(episodes.observed_SBTO.flatten(1, 2), acted)
        self.actions = _take(episodes.actions.flatten(1, 2), acted)
        self.advantages, self.returns = _take(advantages.flatten(1), acted), _take(returns.flatten(1), acted)
        # A minibatch's weights sum to 1 in the mean, as the whole update's do.
        weights = weights_of(episodes.mask_SBT, self.config, learners.environment.horizon) * self.config.minibatches
        self.weights = _take(weights.flatten(1), acted)
        with torch.no_grad():
            flat = learners.weights_SW[self.rows]
            outputs = learners.policy.outputs(flat, self.observed)
            self.old, _ = learners.policy.logprobs(flat, outputs, self.actions)
            self.old_values = torch.zeros_like(self.old)
            if self.config.algorithm == "ppo":
                self.old_values = learners.critic.scaled(learners.value_weights_SW[self.rows], self.observed)

    def move(self, chosen_RM: Tensor, live_RM: Tensor, left_R: Tensor) -> tuple[dict[str, Tally], Tensor]:
        """One optimizer step on the chosen places; tallies over all seeds, and every seed's gradient norm."""
        learners, config, rows = self.learners, self.config, self.rows
        observed, weights = _take(self.observed, chosen_RM), _take(self.weights, chosen_RM) * live_RM
        advantages, old = _take(self.advantages, chosen_RM), _take(self.old, chosen_RM)
        flat = learners.weights_SW[rows].requires_grad_()
        outputs = learners.policy.outputs(flat, observed)
        logprobs, entropy = learners.policy.logprobs(flat, outputs, _take(self.actions, chosen_RM))
        clips = config.algorithm in ("grpo", "ppo")
        loss, tallies = policy_loss(
            logprobs,
            old,
            advantages,
            weights,
            clip_low=config.clip_low if clips else None,
            clip_high=config.clip_high if clips else None,
            objective="clip" if clips else "reinforce",
            entropy_BT=entropy,
        )
        if not torch.isfinite(loss):
            said = f"the loss of {learners.environment.name} is {float(loss.detach())}"
            raise DunwuError(said, "lower the learning rate")
        (grad,) = torch.autograd.grad(loss, flat)
        norm_R = learners.optimizer.step(learners.weights_SW, rows, grad, config.lr * left_R, config.max_grad_norm)
        if config.algorithm == "ppo":
            old_values, returns = _take(self.old_values, chosen_RM), _take(self.returns, chosen_RM)
            flat = learners.value_weights_SW[rows].requires_grad_()
            values = learners.critic.scaled(flat, observed)
            loss, more = value_loss(values, old_values, returns, weights, config.value_clip or None)
            (grad,) = torch.autograd.grad(loss, flat)
            lr_R = config.value_lr * left_R
            learners.value_optimizer.step(learners.value_weights_SW, rows, grad, lr_R, config.max_grad_norm)
            tallies = tallies | more
        return tallies, norm_R


def _take(values: Tensor, chosen_RM: Tensor) -> Tensor:
    """values (R, N, …) at places (R, M)."""
    if values.dim() == 2:
        return values.gather(1, chosen_RM)
    return values.gather(1, chosen_RM[..., None].expand(-1, -1, values.shape[2]))
