"""On-policy distillation: a generator of steps in which a student learns, on its own samples, a teacher's distribution.

One step is two verbs: `collect` what the student writes, `update` it on the mean, over all tokens it wrote, of

    KL(student ‖ teacher) = Σ_v s_v (log s_v − log t_v),   s, t = softmax(logits / T),

over the full vocabulary (the reverse KL of GKD, arXiv 2306.13649; DeepSeek-V4 trains its last stage so). Unlike a
reward it says of every token what should have stood there; unlike SFT it says so where the student really goes.
What the task says of the samples is measured and not trained on.

Legend: P problems, B rows, T tokens, N completion tokens of a micro-batch, V vocabulary. Not covered: teachers with
another vocabulary, teachers behind an endpoint (their logits are needed), the gradient through what was sampled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import Transformer
from dunwu.tasks.score import judge_groups
from dunwu.train.config import GrpoConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.grpo import MISMATCH_TOLERANCE, Learner, group_metrics
from dunwu.train.losses import Tally, add_tallies, token_logprobs
from dunwu.train.optim import learning_rate
from dunwu.train.rows import MicroBatch, Row, micro_batches
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import DunwuError, Group, Rollout, Sampler, SamplingParams, Task, derive_seed

CHUNK_VALUES = 2**18
"""Positions × vocabulary for which fp32 distributions exist at once."""


def on_policy_distill(
    learner: Learner,
    teacher: Transformer,
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    config: DistillConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every step from `start` (steps already done) to `config.steps`.

    Every draw is seeded by (seed, problem, sample): a caller that restores the learner and passes `start` continues
    bit for bit. The learner's `reference` is not used.

    Args:
        teacher: frozen; on the student's device, with its vocabulary.
        sampler: draws from the student's current weights.
        folder: where an offending batch is saved if the loss or gradient goes bad.

    Raises:
        DunwuError: vocabularies of different sizes, a sampler that is not the student, or numbers gone bad.
    """
    config.validate()
    check_vocabularies(learner.policy, teacher)
    teacher.eval().requires_grad_(False)
    for step in range(start, config.steps):
        began = time.perf_counter()
        groups = collect(sampler, tokenizer, task, config, seed, step)
        sampled = time.perf_counter()
        lr = learning_rate(step, config.steps, config.lr, config.warmup, config.schedule, config.final_lr)
        metrics = update(learner, teacher, rows_of(groups), config, lr, step, folder)
        done = time.perf_counter()
        tokens = sum(len(rollout.completion.token_ids) for group in groups for rollout in group.rollouts)
        metrics |= sample_metrics(groups) | {
            "distill/lr": lr,
            "distill/weight_version": float(learner.optimizer.version),
            "distill/rollout_tokens_per_second": tokens / (sampled - began),
            "distill/update_tokens_per_second": tokens / (done - sampled),
            "distill/seconds": done - began,
        }
        yield TrainStep(step + 1, metrics, tuple(groups))


def check_vocabularies(student: Transformer, teacher: Transformer) -> None:
    """Raise DunwuError unless both models give a probability to the same number of tokens."""
    mine, theirs = student.config.vocab_size, teacher.config.vocab_size
    if mine != theirs:
        raise DunwuError(
            f"the student has {mine} tokens, the teacher {theirs}: their distributions cannot be compared",
            "use two models with one tokenizer, or distil by SFT on the teacher's samples",
        )


# ---- what the student writes


def collect(
    sampler: Sampler, tokenizer: Tokenizer, task: Task, config: DistillConfig, seed: int, step: int
) -> list[Group]:
    """The student's completions of this step's prompts, each with the task's verdict."""
    indices = range(step * config.problems, (step + 1) * config.problems)
    problems = [task.problem("train", seed, index) for index in indices]
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    seeds = [[derive_seed("distill", seed, index, g) for g in range(config.group_size)] for index in indices]
    params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)
    drawn = sampler.sample(prompts, seeds, params)
    verdicts = judge_groups(task, problems, drawn)
    return [
        Group(problem, tuple(prompt), tuple(Rollout(c, v) for c, v in zip(completions, judged, strict=True)))
        for problem, prompt, completions, judged in zip(problems, prompts, drawn, verdicts, strict=True)
    ]


def rows_of(groups: Sequence[Group]) -> list[Row]:
    """Every completion as a training row, truncated and unscored ones included: each token has its teacher."""
    return [
        Row(group.prompt_ids + c.token_ids, len(group.prompt_ids), c.sampler_logprobs, 0.0, number)
        for number, group in enumerate(groups)
        for c in (rollout.completion for rollout in group.rollouts)
        if c.token_ids
    ]


def sample_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Length, truncation and the task's verdicts of the step's samples; reward and accuracy where the task has them."""
    measured = group_metrics(groups)
    metrics = {f"distill/{name}": measured[f"grpo/{name}"] for name in ("length", "truncated", "verifier_errors")}
    if any(rollout.verdict.rewards for group in groups for rollout in group.rollouts):
        metrics["distill/reward"] = measured["grpo/reward"]
    if "grpo/reward/accuracy" in measured:
        metrics["distill/accuracy"] = measured["grpo/reward/accuracy"]
    return metrics


# ---- the update


def update(
    learner: Learner,
    teacher: Transformer,
    rows: Sequence[Row],
    config: DistillConfig,
    lr: float,
    step: int,
    folder: Path | None,
) -> dict[str, float]:
    """One optimizer update on all rows, cut into micro-batches that cannot change it; returns the step's metrics.

    Raises:
        DunwuError: the sampler's logprobs are not the student's at a run's first update, or the numbers go bad.
    """
    policy = learner.policy
    policy.eval()  # dropout stays off: what is trained is what sampled
    tallies = []
    # The update's weights are GRPO's with loss_norm "token": 1 / (all completion tokens of the step).
    cut = GrpoConfig(max_tokens=config.max_tokens, micro_tokens=config.micro_tokens, loss_norm="token")
    for micro in micro_batches(rows, cut, policy.head_weight.device, policy.native and teacher.native):
        loss, tally = _micro_loss(policy, teacher, micro, config.temperature)
        torch.autograd.backward(loss)
        tallies.append(tally)
    total = add_tallies(tallies)
    if learner.optimizer.version == 0:
        _check_sampler(total["sampler_mismatch"].mean, policy.head_weight.dtype)
    ids = [row.ids for row in rows]
    check_finite(total["reverse_kl"].mean, "loss", step + 1, ids, folder)
    check = partial(check_finite, name="gradient norm", step=step + 1, batch=ids, folder=folder)
    norm = learner.optimizer.step(lr, config.max_grad_norm, check)
    metrics = {f"distill/{name}": tally.mean for name, tally in total.items()}
    return metrics | {
        "distill/reverse_kl_max": total["reverse_kl"].maximum,
        "distill/grad_norm": norm,
        "distill/trained_tokens": float(total["reverse_kl"].count),
    }


def _micro_loss(
    policy: Transformer, teacher: Transformer, micro: MicroBatch, temperature: float
) -> tuple[Tensor, dict[str, Tally]]:
    logits_NV = _completion_logits(policy, micro)
    with torch.no_grad():
        teacher_NV = _completion_logits(teacher, micro)
        logprobs_N, entropy_N = token_logprobs(logits_NV.detach(), micro.targets_N, temperature)
        agree_N = logits_NV.argmax(-1) == teacher_NV.argmax(-1)
    kl_N = reverse_kl(logits_NV, teacher_NV, temperature)
    tally = {
        "reverse_kl": _tally(kl_N.detach()),
        "entropy": _tally(entropy_N),
        "agreement": _tally(agree_N.float()),
        "sampler_mismatch": _tally((logprobs_N - micro.sampler_N).abs()),
    }
    return (micro.weights_N * kl_N).sum(), tally


def _completion_logits(model: Transformer, micro: MicroBatch) -> Tensor:
    """(N, V): the predictions of the completion tokens only."""
    return F.linear(micro.states(model), model.head_weight)


def _tally(values_N: Tensor) -> Tally:
    return Tally(float(values_N.double().sum()), len(values_N), float(values_N.max()))


def _check_sampler(gap: float, dtype: torch.dtype) -> None:
    """Before the first update sampler and student are one network: their logprobs must say so."""
    if not gap <= MISMATCH_TOLERANCE.get(dtype, 0.1):  # so that NaN fails too
        raise DunwuError(
            f"sampler and student disagree by {gap:.4f} nats a token before the first update",
            "they must share weights, temperature, dtype and alignment",
        )


# ---- the loss


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(student / T) ‖ softmax(teacher / T)) of every position, in nats; differentiable in the student only.

    Computed in fp32 (fp64 for fp64 logits), `CHUNK_VALUES` values at a time; the gradient
    s_i (log s_i − log t_i − KL) / T is made on the way, so no fp32 distribution outlives its chunk.

    Args:
        student_NV: logits (N, V).
        teacher_NV: logits (N, V) of the same tokens.

    Returns:
        (N,) fp32 or fp64.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)  # s = 1/2, 1/2
        >>> teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()  # t = 3/4, 1/4
        >>> kl = reverse_kl(student, teacher)  # ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3)
        >>> kl.backward()
        >>> f"{float(kl.detach()):.6f}", student.grad.numpy().round(6).tolist()  # ½ (ln(2/3) − KL), the other its negative
        ('0.143841', [[-0.274653, 0.274653]])
    """
    if student_NV.shape != teacher_NV.shape:
        raise ValueError(f"student {tuple(student_NV.shape)} and teacher {tuple(teacher_NV.shape)} differ in shape")
    kl_N: Tensor = _ReverseKl.apply(student_NV, teacher_NV, temperature)  # type: ignore[no-untyped-call]
    return kl_N


class _ReverseKl(torch.autograd.Function):
    """Value and gradient in one pass over chunks of positions."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
        rows = max(1, CHUNK_VALUES // student_NV.shape[-1])
        grad_NV = torch.empty_like(student_NV)
        values = []
        for out, student, teacher in zip(*(torch.split(x, rows) for x in (grad_NV, student_NV, teacher_NV))):
            log_s, log_t = (torch.log_softmax(_wide(x) / temperature, dim=-1) for x in (student, teacher))
            s, gap = log_s.exp(), log_s - log_t
            kl = (s * gap).sum(-1, keepdim=True)
            out.copy_(s * (gap - kl) / temperature)
            values.append(kl.squeeze(-1))
        ctx.save_for_backward(grad_NV)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * grads[0][:, None].to(grad_NV.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
