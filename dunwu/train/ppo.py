"""Proximal policy optimisation: the last rung, with a critic that says what every token was worth. A generator of steps.

One step: sample and score completions as GRPO does; give every token its reward, β times the KL off each and the score at
the end; let the critic's values turn them into advantages (gae.py); update policy and critic in `epochs` passes. Schulman
et al. 2017, arXiv 1707.06347; on language InstructGPT, arXiv 2203.02155, eq. 2, with its pretraining mix (ptx).

Without a critic (`critic="none"`) the advantage is the return after the token, whitened over the batch: REINFORCE++,
arXiv 2501.03262. With `group_baseline` the group's mean is taken off first, which leaves of GRPO its clip and of PPO its KL.

A completion cut at `max_tokens` counts as ended: nothing follows it, so nothing is bootstrapped there.
Legend: R rows of a step, T tokens, N tokens of a micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dunwu.data.tokenizer import Tokenizer
from dunwu.train.advantages import group_advantages
from dunwu.train.collect import group_metrics, reward_of, rows_of, sample_groups
from dunwu.train.gae import gae, token_rewards, whiten
from dunwu.train.learner import Learner
from dunwu.train.losses import Tally, add_tallies, kl_term
from dunwu.train.optim import learning_rate
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.pretrain import next_token_loss
from dunwu.train.rows import MicroBatch
from dunwu.train.stability import coefficients
from dunwu.train.steps import TrainStep, check_finite
from dunwu.train.update import Minibatch, after_step, check_reference, cut, optimise
from dunwu.train.value import Critic, explained_variance, value_loss
from dunwu.types import Group, Sampler, Task, UsageError, derive_seed

Pages = Callable[[int, int], Tensor]
"""(step, update of the step) → ids (B, T) of pretraining windows for the ptx mix."""


def ppo(
    learner: Learner,
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    config: PpoConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
    pages: Pages | None = None,
) -> Iterator[TrainStep]:
    """Yield after every step from `start` (steps already done) to `config.steps`; resumes as `grpo` does.

    Args:
        learner: with a critic, unless `config.critic` is "none".
        pages: pretraining windows; needed if `config.ptx_coef` is not 0.

    Raises:
        UsageError: no critic, or no pages, where the config wants them.
        DunwuError: an on-policy check fails at the first update, or the numbers go bad.
    """
    config.validate()
    if (learner.critic is None) != (config.critic == "none"):
        raise UsageError(f"critic is {config.critic!r}, the learner has {'none' if learner.critic is None else 'one'}")
    if config.ptx_coef and pages is None:
        raise UsageError(f"ptx_coef is {config.ptx_coef} without pretraining pages", "name token shards, or use 0")
    if config.kl_coef and learner.reference is None:
        learner.refresh_reference()
    for step in range(start, config.steps):
        if config.kl_coef and config.reference_every and step and step % config.reference_every == 0:
            learner.refresh_reference()
        began = time.perf_counter()
        indices = range(step * config.problems, (step + 1) * config.problems)
        groups = sample_groups(sampler, tokenizer, task, config, seed, indices)
        sampled = time.perf_counter()
        lr, value_lr = (
            learning_rate(step, config.steps, peak, config.warmup, config.schedule, config.final_lr)
            for peak in (config.lr, config.value_lr)
        )
        groups, metrics = update(learner, groups, config, lr, value_lr, seed, step, folder, pages)
        metrics |= after_step(learner, groups, config, "ppo", lr, began, sampled) | group_metrics(groups, "ppo")
        metrics |= learner.steer(config, metrics, "ppo")
        yield TrainStep(step + 1, metrics, tuple(groups))


def update(
    learner: Learner,
    groups: Sequence[Group],
    config: PpoConfig,
    lr: float,
    value_lr: float,
    seed: int,
    step: int,
    folder: Path | None,
    pages: Pages | None = None,
) -> tuple[list[Group], dict[str, float]]:
    """Advantages of a step's groups, and the updates on them.

    Returns:
        the groups with their advantages (a rollout's is the mean over its tokens), and the metrics.
    """
    scored = with_scores(groups, config)
    rows = rows_of(scored, config)
    if not rows:
        return list(scored), {"ppo/trained_tokens": 0.0, "ppo/moved_tensors": 0.0}
    parts, metrics = judged(learner, cut(learner, rows, config, seed, step), config)
    order = _order(len(parts), config, seed, step)
    chosen = [parts[n] for n in order]
    if step < config.value_warmup and learner.critic is not None:
        metrics |= _critic_alone(learner, learner.critic, chosen, config, value_lr, step, folder)
    else:
        # Of the first update the own pass is the old one: the ratio is 1 to the last bit.
        bare = tuple(replace(micro, old_N=None) for micro in chosen[0].micros)
        chosen[0] = replace(chosen[0], micros=bare)
        beside = _Beside(learner, config, value_lr, step, pages, chosen, folder)
        kl_in_loss = config.kl_place == "loss"
        metrics |= optimise(learner, chosen, config, lr, step, folder, "ppo", kl_in_loss, beside)
    return _with_advantages(scored, parts), metrics


def with_scores(groups: Sequence[Group], config: PpoConfig) -> list[Group]:
    """Every rollout's score in the place of its advantage: its reward, less its group's mean under `group_baseline`; None
    where the verifier failed."""
    scored = []
    for group in groups:
        rewards = [reward_of(rollout, config) for rollout in group.rollouts]
        if config.group_baseline:
            rewards = group_advantages([rewards])[0][0]
        pairs = zip(group.rollouts, rewards, strict=True)
        rollouts = tuple(replace(rollout, advantage=reward) for rollout, reward in pairs)
        scored.append(replace(group, rollouts=rollouts))
    return scored


def judged(learner: Learner, parts: Sequence[Minibatch], config: PpoConfig) -> tuple[list[Minibatch], dict[str, float]]:
    """The minibatches with old log-probabilities, values, advantages and returns of every token, and what was seen.

    All statistics are over the whole step, so neither the cut into minibatches nor their order has a part in them.
    """
    kl_coef = coefficients(learner.coefficients, config)["kl_coef"]
    looked: dict[str, list[Tensor]] = {"old": [], "values": [], "ref": []}
    for part in parts:
        found: dict[str, dict[int, Tensor]] = {name: {} for name in looked}
        for micro in part.micros:
            for name, values_N in _look(learner, micro, config, kl_coef > 0).items():
                found[name] |= dict(micro.by_row(values_N))
        for name, rows in looked.items():
            rows += [found[name][b] for b in range(len(part.rows))]
    old_RT, values_RT, ref_RT = (pad_sequence(rows, batch_first=True) for rows in looked.values())
    mask_RT = pad_sequence([torch.ones(len(row)) for row in looked["old"]], batch_first=True).to(old_RT.device)
    scores_R = torch.tensor([row.advantage for part in parts for row in part.rows], device=old_RT.device)
    in_reward = kl_coef if config.kl_place == "reward" else 0.0
    rewards_RT = token_rewards(scores_R, old_RT, ref_RT, mask_RT, in_reward)
    raw_RT, returns_RT = gae(rewards_RT, values_RT, mask_RT, config.gamma, config.lam)
    advantages_RT = whiten(raw_RT, mask_RT) if config.whiten else raw_RT
    acted = mask_RT.bool()
    metrics = {
        "ppo/advantage_std": float(raw_RT[acted].double().std(correction=0)),
        "ppo/return": float(returns_RT[acted].double().mean()),
    }
    if config.critic != "none":
        metrics["ppo/explained_variance"] = explained_variance(values_RT[acted], returns_RT[acted])
    if in_reward:
        metrics["ppo/kl_reward"] = float((in_reward * (old_RT - ref_RT) * mask_RT).sum(1).double().mean())
        kl_N = kl_term(old_RT[acted], old_RT[acted], ref_RT[acted], "k3").double()
        if learner.optimizer.version == 0:
            check_reference(float(kl_N.max()))
        metrics["ppo/ref_kl"] = float(kl_N.mean())
    return _filled(parts, advantages_RT, returns_RT, values_RT, old_RT), metrics


def _look(learner: Learner, micro: MicroBatch, config: PpoConfig, with_reference: bool) -> dict[str, Tensor]:
    """What policy, critic and reference say of a micro-batch's tokens before the step's first update."""
    with torch.inference_mode():
        states_ND = micro.states(learner.policy)
        old_N = micro.logprobs(learner.policy, config.temperature, states_ND)[0]
        critic = learner.critic
        values_N = torch.zeros_like(old_N) if critic is None else critic.model.values(micro, states_ND)
        ref_N = old_N
        if with_reference and learner.reference is not None:
            ref_N = micro.logprobs(learner.reference, config.temperature)[0]
    return {"old": old_N.clone(), "values": values_N.clone(), "ref": ref_N.clone()}


def _filled(parts: Sequence[Minibatch], *tables_RT: Tensor) -> list[Minibatch]:
    """Advantages, returns, values and old log-probabilities of a step's rows, put where its minibatches want them."""
    names = ("advantages_N", "returns_N", "values_N", "old_N")
    filled, first = [], 0
    for part in parts:
        lengths = [row.completion_length for row in part.rows]
        rows = {
            name: [table[first + b, :length] for b, length in enumerate(lengths)]
            for name, table in zip(names, tables_RT)
        }
        filled.append(replace(part, micros=tuple(micro.filled(**rows) for micro in part.micros)))
        first += len(lengths)
    return filled


def _with_advantages(groups: Sequence[Group], parts: Sequence[Minibatch]) -> list[Group]:
    """The groups with the mean advantage of every rollout's tokens; None for those that did not train."""
    found: dict[tuple[int, int], float] = {}
    for part in parts:
        for micro in part.micros:
            for b, advantages in micro.by_row(micro.advantages_N):
                row = part.rows[b]
                found[row.group, row.place] = float(advantages.double().mean())
    return [
        replace(
            group,
            rollouts=tuple(replace(r, advantage=found.get((number, place))) for place, r in enumerate(group.rollouts)),
        )
        for number, group in enumerate(groups)
    ]


def _order(parts: int, config: PpoConfig, seed: int, step: int) -> list[int]:
    """Which minibatch every update takes: each epoch all of them, from the second on in a new order."""
    order = list(range(parts))
    for epoch in range(1, config.epochs):
        again = list(range(parts))
        Random(derive_seed("epochs", seed, step, epoch)).shuffle(again)
        order += again
    return order


@dataclass
class _Beside:
    """Critic and pretraining mix in the policy's updates: `update.Beside`."""

    learner: Learner
    config: PpoConfig
    value_lr: float
    at: int
    pages: Pages | None
    chosen: Sequence[Minibatch]
    folder: Path | None

    def micro_loss(self, micro: MicroBatch, states_ND: Tensor) -> tuple[Tensor, dict[str, Tally]]:
        critic = self.learner.critic
        if critic is None:
            return states_ND.new_zeros(()), {}
        return _critic_loss(critic, micro, states_ND, self.config)

    def update_loss(self, number: int) -> tuple[Tensor | None, dict[str, Tally]]:
        if not self.config.ptx_coef or self.pages is None:
            return None, {}
        policy = self.learner.policy
        loss = next_token_loss(policy, self.pages(self.at, number).to(policy.head_weight.device))
        value = float(loss.detach())
        return self.config.ptx_coef * loss, {"ptx_loss": Tally(value, 1, value)}

    def step(self, number: int) -> dict[str, float]:
        critic = self.learner.critic
        if critic is None:
            return {}
        return _critic_step(critic, self.chosen[number], self.config, self.value_lr, self.at, self.folder)


def _critic_loss(
    critic: Critic, micro: MicroBatch, states_ND: Tensor | None, config: PpoConfig
) -> tuple[Tensor, dict[str, Tally]]:
    values_N = critic.model.values(micro, states_ND)
    assert micro.values_N is not None and micro.returns_N is not None  # `judged` filled them in
    loss, tally = value_loss(values_N, micro.values_N, micro.returns_N, micro.weights_N, config.value_clip)
    return config.value_coef * loss, tally


def _critic_step(
    critic: Critic, minibatch: Minibatch, config: PpoConfig, lr: float, step: int, folder: Path | None
) -> dict[str, float]:
    ids = [row.ids for row in minibatch.rows]
    check = partial(check_finite, name="gradient norm", step=step + 1, batch=ids, folder=folder)
    return {"value_grad_norm": critic.optimizer.step(lr, config.max_grad_norm, check)}


def _critic_alone(
    learner: Learner,
    critic: Critic,
    chosen: Sequence[Minibatch],
    config: PpoConfig,
    lr: float,
    step: int,
    folder: Path | None,
) -> dict[str, float]:
    """The updates of a warm-up step: the critic learns, the policy stands still."""
    tallies, norms = [], []
    for minibatch in chosen:
        for micro in minibatch.micros:
            with torch.no_grad():  # a shared trunk is the policy's: only the head learns
                states_ND = micro.states(learner.policy) if critic.shared else None
            loss, tally = _critic_loss(critic, micro, states_ND, config)
            torch.autograd.backward(loss)
            tallies.append(tally)
        check_finite(tallies[-1]["value_loss"].mean, "value loss", step + 1, [r.ids for r in minibatch.rows], folder)
        norms.append(_critic_step(critic, minibatch, config, lr, step, folder)["value_grad_norm"])
    metrics = {f"ppo/{name}": tally.mean for name, tally in add_tallies(tallies).items()}
    return metrics | {"ppo/value_grad_norm": fmean(norms), "ppo/trained_tokens": 0.0, "ppo/moved_tensors": 0.0}
