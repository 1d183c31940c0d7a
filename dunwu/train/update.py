"""Rows to optimizer updates: what every policy-gradient method does after its advantages.

    minibatches = cut(rows, …)          split at random, each cut into micro-batches that cannot change its gradient
    before_updates(policy, minibatches) log-probabilities under the weights that sampled, where they will be needed
    optimise(learner, minibatches, …)   one optimizer update per minibatch, every number checked before it acts

Legend: N completion tokens of a micro-batch, D width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Protocol

import torch
from torch import Tensor

from dunwu.train.config import PolicyConfig
from dunwu.train.experts import balance_by, sampled_loads
from dunwu.train.learner import Learner
from dunwu.train.losses import Tally, add_tallies, policy_loss
from dunwu.train.off_policy import importance_weights, sequence_mask
from dunwu.train.rows import MicroBatch, Row, micro_batches
from dunwu.train.stability import coefficients
from dunwu.train.steps import check_finite
from dunwu.types import DunwuError, Group, derive_seed

ON_POLICY_TOLERANCE = 1e-5
MISMATCH_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean |sampler - trainer| logprob, in nats, before the first update."""


@dataclass(frozen=True)
class Minibatch:
    """The rows of one optimizer update, and how they go through the model."""

    rows: tuple[Row, ...]
    micros: tuple[MicroBatch, ...]


class Beside(Protocol):
    """What is learned in the same updates as the policy: a critic, a pretraining mix."""

    def micro_loss(self, micro: MicroBatch, states_ND: Tensor) -> tuple[Tensor, dict[str, Tally]]:
        """A loss to be added to the policy's on this micro-batch; `states_ND` are the policy's states, with gradient."""
        ...

    def update_loss(self, number: int) -> tuple[Tensor | None, dict[str, Tally]]:
        """A loss to be added once, in the step's update `number`."""
        ...

    def step(self, number: int) -> dict[str, float]:
        """Update what is its own, after the policy's update; figures of it."""
        ...


def cut(learner: Learner, rows: Sequence[Row], config: PolicyConfig, seed: int, step: int) -> list[Minibatch]:
    """The rows in `config.minibatches` parts drawn at random, each as micro-batches."""
    order = list(range(len(rows)))
    if config.minibatches > 1:
        Random(derive_seed("minibatches", seed, step)).shuffle(order)
    share = max(1, -(-len(order) // config.minibatches))
    policy = learner.policy
    others = (learner.reference, learner.critic.model.backbone if learner.critic else None)
    trees = policy.native and all(model is None or model.native for model in others)
    parts = [tuple(rows[i] for i in order[at : at + share]) for at in range(0, len(order), share)]
    return [Minibatch(part, tuple(micro_batches(part, config, policy.head_weight.device, trees))) for part in parts]


def before_updates(learner: Learner, minibatch: Minibatch, config: PolicyConfig) -> Minibatch:
    """The minibatch with `old_N`, computed now."""
    with torch.inference_mode():
        found = [micro.logprobs(learner.policy, config.temperature)[0] for micro in minibatch.micros]
    micros = tuple(replace(micro, old_N=old_N.clone()) for micro, old_N in zip(minibatch.micros, found))
    return replace(minibatch, micros=micros)


def optimise(
    learner: Learner,
    minibatches: Sequence[Minibatch],
    config: PolicyConfig,
    lr: float,
    step: int,
    folder: Path | None,
    method: str = "grpo",
    kl_in_loss: bool = True,
    beside: Beside | None = None,
) -> dict[str, float]:
    """One optimizer update per minibatch, in order; returns the step's metrics under names that begin with `method`.

    At the first update of a run the ratio must be 1, the KL to the reference 0, and the sampler's
    logprobs those of the trainer.

    Args:
        minibatches: their micro-batches have `old_N`, but for the first, whose weights have not moved yet.
        kl_in_loss: False if the KL acts elsewhere (in the reward).

    Raises:
        DunwuError: an on-policy check fails at the first update, or the numbers go bad.
    """
    policy = learner.policy
    policy.eval()  # dropout stays off: the ratio compares two passes of one network
    if not minibatches:
        return {f"{method}/trained_tokens": 0.0, f"{method}/moved_tensors": 0.0}
    trained = [p for p in policy.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    first_of_run = learner.optimizer.version == 0
    tallies: list[dict[str, Tally]] = []
    norms, losses = [], []
    figures: dict[str, float] = {}
    for number, minibatch in enumerate(minibatches):
        found, loss_sum = _backward(learner, minibatch, config, number, kl_in_loss, beside)
        tallies.append(found)
        if first_of_run and number == 0:
            _check_on_policy(found, policy.head_weight.dtype, config)
        ids = [row.ids for row in minibatch.rows]
        check_finite(loss_sum, "loss", step + 1, ids, folder)
        check = partial(check_finite, name="gradient norm", step=step + 1, batch=ids, folder=folder)
        norms.append(learner.optimizer.step(lr, config.max_grad_norm, check))
        losses.append(loss_sum)
        if beside is not None:
            figures |= beside.step(number)
        if 0 < config.stability.stop_kl <= found["approx_kl"].mean:
            break
    moved = [bool((p.detach() != b).any()) for p, b in zip(trained, before, strict=True)]
    total = add_tallies(tallies)
    metrics = {f"{method}/{name}": tally.mean for name, tally in total.items()}
    metrics |= {
        f"{method}/ratio_max": total["ratio"].maximum,
        f"{method}/trained_tokens": float(total["ratio"].count),
        f"{method}/loss": fmean(losses),
        f"{method}/grad_norm": fmean(norms),
        f"{method}/moved_tensors": sum(moved) / sum(1 for _ in policy.parameters()),
    }
    if config.stability.stop_kl:
        metrics[f"{method}/updates"] = float(len(norms))
    return metrics | {f"{method}/{name}": value for name, value in figures.items()}


def after_step(
    learner: Learner,
    groups: Sequence[Group],
    config: PolicyConfig,
    method: str,
    lr: float,
    began: float,
    sampled: float,
) -> dict[str, float]:
    """What ends a step of any method: experts are balanced by where their tokens went; rate, version and speed as metrics.

    Args:
        method: how the names of the metrics begin.
        began: `time.perf_counter()` before sampling.
        sampled: and behind it; the update lies between it and this call.
    """
    done = time.perf_counter()
    metrics: dict[str, float] = {}
    if shape := learner.policy.config.moe:
        metrics |= balance_by(learner.policy, sampled_loads(groups, shape.experts), config.bias_rate)
    tokens = sum(len(rollout.completion.token_ids) for group in groups for rollout in group.rollouts)
    return metrics | {
        f"{method}/lr": lr,
        f"{method}/weight_version": float(learner.optimizer.version),
        f"{method}/rollout_tokens_per_second": tokens / (sampled - began),
        f"{method}/update_tokens_per_second": tokens / (done - sampled),
        f"{method}/seconds": done - began,
    }


def _backward(
    learner: Learner, minibatch: Minibatch, config: PolicyConfig, number: int, kl_in_loss: bool, beside: Beside | None
) -> tuple[dict[str, Tally], float]:
    """Gradients of one update; the sum of its losses."""
    tallies, loss_sum = [], 0.0
    for micro in minibatch.micros:
        states_ND = micro.states(learner.policy)
        loss, tally = _policy_loss(learner, micro, states_ND, config, kl_in_loss)
        if beside is not None:
            more, beside_tally = beside.micro_loss(micro, states_ND)
            loss, tally = loss + more, tally | beside_tally
        torch.autograd.backward(loss)
        loss_sum += float(loss.detach())
        tallies.append(tally)
    if beside is not None:
        mixed, beside_tally = beside.update_loss(number)
        if mixed is not None:
            torch.autograd.backward(mixed)
            loss_sum += float(mixed.detach())
        tallies.append(beside_tally)
    return add_tallies(tallies), loss_sum


def _policy_loss(
    learner: Learner, micro: MicroBatch, states_ND: Tensor, config: PolicyConfig, kl_in_loss: bool
) -> tuple[Tensor, dict[str, Tally]]:
    weights = coefficients(learner.coefficients, config)
    entropic = bool(weights["entropy_coef"] or config.stability.entropy_target)
    logprobs_N, entropy_N = micro.logprobs(learner.policy, config.temperature, states_ND, entropic)
    old_N = logprobs_N.detach() if micro.old_N is None else micro.old_N
    kl_coef = weights["kl_coef"] if kl_in_loss else 0.0
    reference_N = None
    if kl_coef and learner.reference is not None:
        with torch.inference_mode():
            reference_N = micro.logprobs(learner.reference, config.temperature)[0].clone()
    mask_N, scale_N, counts = micro.weights_N > 0, None, {}
    rules = config.off_policy
    if rules.tis != "none":
        scale_N = importance_weights(old_N, micro.sampler_N, rules.tis, rules.tis_cap)
        counts["importance"] = _tally(scale_N[mask_N])
    if rules.sequence_mask:
        keep_N = sequence_mask(
            logprobs_N, micro.sampler_N, micro.advantages_N, micro.rows_N, mask_N, rules.sequence_mask
        )
        scale_N = keep_N.float() if scale_N is None else scale_N * keep_N
        counts["off_policy_masked"] = _tally((~keep_N)[mask_N])
    loss, tally = policy_loss(
        logprobs_N,
        old_N,
        micro.advantages_N,
        micro.weights_N,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        ref_logprobs_BT=reference_N,
        kl_coef=kl_coef,
        kl_estimator=config.kl_estimator,
        entropy_BT=entropy_N,
        entropy_coef=weights["entropy_coef"],
        objective=config.objective,
        ratio=config.ratio,
        rows_BT=micro.rows_N,
        token_scale_BT=scale_N,
    )
    gap_N = (old_N - micro.sampler_N)[mask_N].double()
    tally["sampler_mismatch"] = Tally(
        float(gap_N.abs().sum()), gap_N.numel(), float(gap_N.abs().max()) if len(gap_N) else 0.0
    )
    return loss, tally | counts


def _tally(values_N: Tensor) -> Tally:
    values_N = values_N.double()
    return Tally(float(values_N.sum()), values_N.numel(), float(values_N.max()) if len(values_N) else 0.0)


def _check_on_policy(total: dict[str, Tally], dtype: torch.dtype, config: PolicyConfig) -> None:
    """Before the first update policy, sampler and reference are one network: numbers must say so."""
    cure = "sampler and trainer must share weights, temperature, dtype and alignment"
    if abs(total["ratio"].maximum - 1) > ON_POLICY_TOLERANCE or total["approx_kl"].maximum > ON_POLICY_TOLERANCE:
        raise DunwuError(f"policy ratio is {total['ratio'].maximum} before the first update, not 1", cure)
    if "ref_kl" in total:
        check_reference(total["ref_kl"].maximum)
    gap = total["sampler_mismatch"].mean
    if not gap <= MISMATCH_TOLERANCE.get(dtype, 0.1):  # so that NaN fails too
        raise DunwuError(f"sampler and trainer disagree by {gap:.4f} nats a token before the first update", cure)


def check_reference(kl: float) -> None:
    """Raise DunwuError if the reference is not the policy: `kl` is the largest of a token before the first update."""
    if not kl <= ON_POLICY_TOLERANCE:
        what = f"KL to the reference is {kl} before the first update, not 0"
        raise DunwuError(what, "begin with the reference's weights; both need one temperature, dtype and alignment")
