"""Group relative policy optimisation with verifiable rewards: a generator of steps.

One step is two verbs: `collect` groups (sample, score, compare siblings), `update` the policy on
them. Objective: DeepSeek-R1, arXiv 2501.12948, section 2.1, eq. 1-3; every normalisation and
denominator that implementations silently choose is a named field of GrpoConfig.

Legend: P problems, G group, N trained tokens of a micro-batch.
Not covered: sequence-level ratios (GSPO), value models (PPO), off-policy lag.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from torch import Tensor

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import Transformer
from dunwu.tasks.score import judge_groups
from dunwu.train.advantages import group_advantages, overlong_penalty
from dunwu.train.config import GrpoConfig
from dunwu.train.experts import balance_by, sampled_loads
from dunwu.train.losses import Tally, add_tallies, policy_loss
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.rows import MicroBatch, Row, micro_batches
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import (
    DunwuError,
    Group,
    Rollout,
    Sampler,
    SamplingParams,
    Task,
    Verdict,
    derive_seed,
)

ON_POLICY_TOLERANCE = 1e-5
MISMATCH_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean |sampler - trainer| logprob, in nats, before the first update."""


@dataclass
class Learner:
    """What learns: the policy, its optimizer, and the frozen reference the KL pulls towards."""

    policy: Transformer
    optimizer: MasterAdamW
    reference: Transformer | None = None

    def refresh_reference(self) -> None:
        """The reference becomes a frozen copy of the current policy; both share what is not trained, all but the adapters
        under LoRA."""
        shared = {id(p): p for p in self.policy.parameters() if not p.requires_grad}
        self.reference = copy.deepcopy(self.policy, shared).eval().requires_grad_(False)

    def reference_state(self) -> dict[str, Tensor]:
        """The reference's own tensors, without those it shares; {} without a reference."""
        if self.reference is None:
            return {}
        shared = {name for name, p in self.policy.named_parameters() if not p.requires_grad}
        return {name: t for name, t in self.reference.state_dict().items() if name not in shared}

    def load_reference(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `reference_state()`."""
        self.refresh_reference()
        assert self.reference is not None
        self.reference.load_state_dict({**self.reference.state_dict(), **tensors})


def grpo(
    learner: Learner,
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    config: GrpoConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every step from `start` (steps already done) to `config.steps`.

    Every draw is seeded by (seed, step, problem, sample): a caller that restores the learner and
    passes `start` continues bit for bit.
    """
    config.validate()
    if config.kl_coef and learner.reference is None:
        learner.refresh_reference()
    for step in range(start, config.steps):
        if config.kl_coef and config.reference_every and step and step % config.reference_every == 0:
            learner.refresh_reference()
        began = time.perf_counter()
        groups, counts = collect(sampler, tokenizer, task, config, seed, step)
        sampled = time.perf_counter()
        lr = learning_rate(step, config.steps, config.lr, config.warmup, config.schedule, config.final_lr)
        metrics = update(learner, rows_of(groups, config), config, lr, seed, step, folder)
        done = time.perf_counter()
        metrics |= group_metrics(groups) | counts
        if shape := learner.policy.config.moe:
            metrics |= balance_by(learner.policy, sampled_loads(groups, shape.experts), config.bias_rate)
        tokens = sum(len(rollout.completion.token_ids) for group in groups for rollout in group.rollouts)
        metrics |= {
            "grpo/lr": lr,
            "grpo/weight_version": float(learner.optimizer.version),
            "grpo/rollout_tokens_per_second": tokens / (sampled - began),
            "grpo/update_tokens_per_second": tokens / (done - sampled),
            "grpo/seconds": done - began,
        }
        yield TrainStep(step + 1, metrics, tuple(groups))


# ---- groups ---------------------------------------------------------------------------------


def collect(
    sampler: Sampler, tokenizer: Tokenizer, task: Task, config: GrpoConfig, seed: int, step: int
) -> tuple[list[Group], dict[str, float]]:
    """Sample and score the groups of one step, and give every rollout its advantage.

    With dynamic sampling, groups without variance are replaced by new questions for up to
    `dynamic_rounds` rounds; what was replaced is counted.
    """
    kept: list[Group] = []
    flat: list[Group] = []
    rounds = 0
    for attempt in range(config.dynamic_rounds):
        rounds += 1
        wanted = config.problems - len(kept)
        first = (step * config.dynamic_rounds + attempt) * config.problems
        fresh = _sample_groups(sampler, tokenizer, task, config, seed, range(first, first + wanted))
        fresh = with_advantages(fresh, config)
        for group in fresh:
            (kept if any(rollout.advantage for rollout in group.rollouts) else flat).append(group)
        if len(kept) == config.problems:
            break
    # What could not be filled stays in view: its rewards belong to the step's means.
    shown = kept + flat[len(flat) - (config.problems - len(kept)) :] if len(kept) < config.problems else kept
    groups = with_advantages([_without_advantages(group) for group in shown], config)
    counts = {
        "grpo/zero_variance_groups": float(len(flat)),
        "grpo/replaced_groups": float(len(kept) + len(flat) - len(groups)),
        "grpo/rounds": float(rounds),
    }
    return groups, counts


def _sample_groups(
    sampler: Sampler, tokenizer: Tokenizer, task: Task, config: GrpoConfig, seed: int, indices: range
) -> list[Group]:
    problems = [task.problem("train", seed, index) for index in indices]
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    seeds = [[derive_seed("rollout", seed, index, g) for g in range(config.group_size)] for index in indices]
    params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)
    drawn = sampler.sample(prompts, seeds, params)
    groups = []
    for problem, prompt, row, verdicts in zip(
        problems, prompts, drawn, judge_groups(task, problems, drawn), strict=True
    ):
        scored = (Rollout(c, _controlled(verdict, config, c.seed)) for c, verdict in zip(row, verdicts, strict=True))
        groups.append(Group(problem, tuple(prompt), tuple(scored)))
    return groups


def _controlled(verdict: Verdict, config: GrpoConfig, seed: int) -> Verdict:
    """The reward under the run's control, if it is one; the verifier's rewards stay on record."""
    if config.reward == "random":
        return replace(verdict, reward=float(Random(seed).random() < 0.5))
    if config.reward == "format":
        return replace(verdict, reward=verdict.rewards.get("format", 0.0))
    return verdict


def with_advantages(groups: Sequence[Group], config: GrpoConfig) -> list[Group]:
    """Fill in the advantages, from statistics over every scored sibling (truncated ones included)."""
    rewards = [[_reward(rollout, config) for rollout in group.rollouts] for group in groups]
    advantages, _ = group_advantages(rewards, config.std_normalize, config.std_eps)
    return [
        replace(group, rollouts=tuple(replace(r, advantage=a) for r, a in zip(group.rollouts, row, strict=True)))
        for group, row in zip(groups, advantages, strict=True)
    ]


def _without_advantages(group: Group) -> Group:
    return replace(group, rollouts=tuple(replace(rollout, advantage=None) for rollout in group.rollouts))


def _reward(rollout: Rollout, config: GrpoConfig) -> float | None:
    """What the baseline sees; None where the verifier failed (an error is not a zero)."""
    if not _scored(rollout):
        return None
    reward = rollout.verdict.reward
    if config.overlong == "penalty":
        reward += overlong_penalty(len(rollout.completion.token_ids), config.max_tokens, config.overlong_buffer)
    return reward


def _scored(rollout: Rollout) -> bool:
    return rollout.verdict.status in ("ok", "unparsable") and math.isfinite(rollout.verdict.reward)


def rows_of(groups: Sequence[Group], config: GrpoConfig) -> list[Row]:
    """Groups as training rows.

    Out of them, and so out of the loss's denominator, stay rows without an advantage, truncated ones under overlong
    "mask" (their rewards have counted for their siblings), and groups without variance if so configured.
    """
    rows = []
    for number, group in enumerate(groups):
        if config.drop_zero_variance and not any(rollout.advantage for rollout in group.rollouts):
            continue
        for rollout in group.rollouts:
            completion = rollout.completion
            if rollout.advantage is None or not completion.token_ids:
                continue
            if config.overlong == "mask" and completion.finish_reason == "length":
                continue
            ids = group.prompt_ids + completion.token_ids
            routing = completion.routing if config.routing_replay else None
            rows.append(
                Row(ids, len(group.prompt_ids), completion.sampler_logprobs, rollout.advantage, number, routing)
            )
    return rows


# ---- the update -----------------------------------------------------------------------------


def update(
    learner: Learner, rows: Sequence[Row], config: GrpoConfig, lr: float, seed: int, step: int, folder: Path | None
) -> dict[str, float]:
    """One pass over the rows in `config.minibatches` optimizer updates; returns the step's metrics.

    At the first update of a run the ratio must be 1, the KL to the reference 0, and the sampler's
    logprobs those of the trainer.

    Raises:
        DunwuError: an on-policy check fails at the first update, or the numbers go bad.
    """
    policy = learner.policy
    policy.eval()  # dropout stays off: the ratio compares two passes of one network
    if not rows:
        return {"grpo/trained_tokens": 0.0, "grpo/moved_tensors": 0.0}
    trained = [p for p in policy.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    first_of_run = learner.optimizer.version == 0
    order = list(range(len(rows)))
    if config.minibatches > 1:
        Random(derive_seed("minibatches", seed, step)).shuffle(order)
    share = -(-len(order) // config.minibatches)
    parts = [[rows[i] for i in order[at : at + share]] for at in range(0, len(order), share)]
    trees = policy.native and (learner.reference is None or learner.reference.native)
    batches = [micro_batches(part, config, policy.head_weight.device, trees) for part in parts]
    with torch.inference_mode():  # the first update's own pass is made with the weights that sampled
        old: list[list[Tensor]] = [[]]
        old += [[micro.logprobs(policy, config.temperature)[0].clone() for micro in part] for part in batches[1:]]
    tallies: list[dict[str, Tally]] = []
    norms, losses = [], []
    for number, part in enumerate(batches):
        loss_sum = 0.0
        for m, micro in enumerate(part):
            loss, tally = _micro_loss(learner, micro, old[number][m] if old[number] else None, config)
            torch.autograd.backward(loss)
            loss_sum += float(loss.detach())
            tallies.append(tally)
        if first_of_run and number == 0:
            _check_on_policy(add_tallies(tallies), policy.head_weight.dtype, config)
        batch_ids = [row.ids for row in parts[number]]
        check_finite(loss_sum, "loss", step + 1, batch_ids, folder)
        check = partial(check_finite, name="gradient norm", step=step + 1, batch=batch_ids, folder=folder)
        norms.append(learner.optimizer.step(lr, config.max_grad_norm, check))
        losses.append(loss_sum)
    moved = [bool((p.detach() != b).any()) for p, b in zip(trained, before, strict=True)]
    total = add_tallies(tallies)
    metrics = {f"grpo/{name}": tally.mean for name, tally in total.items()}
    metrics |= {
        "grpo/ratio_max": total["ratio"].maximum,
        "grpo/trained_tokens": float(total["ratio"].count),
        "grpo/loss": fmean(losses),
        "grpo/grad_norm": fmean(norms),
        "grpo/moved_tensors": sum(moved) / sum(1 for _ in policy.parameters()),
    }
    return metrics


def _micro_loss(
    learner: Learner, micro: MicroBatch, old_N: Tensor | None, config: GrpoConfig
) -> tuple[Tensor, dict[str, Tally]]:
    logprobs_N, entropy_N = micro.logprobs(learner.policy, config.temperature)
    if old_N is None:
        old_N = logprobs_N.detach()
    reference_N = None
    if config.kl_coef and learner.reference is not None:
        with torch.inference_mode():
            reference_N = micro.logprobs(learner.reference, config.temperature)[0].clone()
    loss, tally = policy_loss(
        logprobs_N,
        old_N,
        micro.advantages_N,
        micro.weights_N,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        ref_logprobs_BT=reference_N,
        kl_coef=config.kl_coef,
        kl_estimator=config.kl_estimator,
        entropy_BT=entropy_N,
    )
    gap_N = (old_N - micro.sampler_N)[micro.weights_N > 0].double()
    tally["sampler_mismatch"] = Tally(
        float(gap_N.abs().sum()), gap_N.numel(), float(gap_N.abs().max()) if len(gap_N) else 0.0
    )
    return loss, tally


def _check_on_policy(total: dict[str, Tally], dtype: torch.dtype, config: GrpoConfig) -> None:
    """Before the first update policy, sampler and reference are one network: numbers must say so."""
    cure = "sampler and trainer must share weights, temperature, dtype and alignment"
    if abs(total["ratio"].maximum - 1) > ON_POLICY_TOLERANCE or total["approx_kl"].maximum > ON_POLICY_TOLERANCE:
        raise DunwuError(f"policy ratio is {total['ratio'].maximum} before the first update, not 1", cure)
    if "ref_kl" in total and total["ref_kl"].maximum > ON_POLICY_TOLERANCE:
        raise DunwuError(f"KL to the reference is {total['ref_kl'].maximum} before the first update, not 0", cure)
    gap = total["sampler_mismatch"].mean
    if not gap <= MISMATCH_TOLERANCE.get(dtype, 0.1):  # so that NaN fails too
        raise DunwuError(f"sampler and trainer disagree by {gap:.4f} nats a token before the first update", cure)


# ---- metrics --------------------------------------------------------------------------------


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the step's rollouts, as sampled."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [r for r in rollouts if _scored(r)]
    lengths = [len(r.completion.token_ids) for r in rollouts]
    metrics = {
        "grpo/reward": fmean([r.verdict.reward for r in scored]) if scored else 0.0,
        "grpo/length": fmean(lengths),
        "grpo/truncated": fmean([r.completion.finish_reason == "length" for r in rollouts]),
        "grpo/verifier_errors": float(len(rollouts) - len(scored)),
    }
    for name in sorted({name for r in scored for name in r.verdict.rewards}):
        metrics[f"grpo/reward/{name}"] = fmean([r.verdict.rewards.get(name, 0.0) for r in scored])
    return metrics
