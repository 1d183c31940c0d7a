"""Distillation by distributions: a generator of steps in which a student learns what its teacher would say at every token.

One step is three verbs: `collect` what the student writes, `collect_given` what it is shown instead, `update` it on the mean,
over all their completion tokens, of

    D(s, t),   s, t = softmax(logits / T) over the full vocabulary,   D one of `divergences`

Algorithm 1 of GKD (arXiv 2306.13649) with `on_policy_share` as its λ. All the student's own and the reverse KL is on-policy
distillation (DeepSeek-V4 trains its last stage so); all given is logit distillation (Hinton et al. 2015; Sanh et al. 2019).
Unlike a reward the teacher says of every token what should have stood there; unlike SFT on its texts it says so where the
student really goes. What the task says of the samples is measured and not trained on.

Legend: P problems, B rows, T tokens, N completion tokens of a micro-batch, V vocabulary. Not covered: teachers with
another vocabulary, teachers behind an endpoint (their logits are needed), the gradient through what was sampled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import Transformer
from dunwu.tasks.score import judge_groups
from dunwu.train.collect import group_metrics
from dunwu.train.config import GrpoConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.divergences import forward_kl, jsd, reverse_kl
from dunwu.train.learner import Learner
from dunwu.train.losses import Tally, add_tallies, token_logprobs
from dunwu.train.optim import learning_rate
from dunwu.train.rows import MicroBatch, Row, micro_batches
from dunwu.train.steps import TrainStep, check_finite
from dunwu.train.update import MISMATCH_TOLERANCE
from dunwu.types import (
    Completion,
    DunwuError,
    Group,
    Problem,
    Rollout,
    Sampler,
    SamplingParams,
    Task,
    UsageError,
    Verdict,
    derive_seed,
)

NOT_SAMPLED = math.inf
"""In the place of a sampler's logprob: the student did not draw this token. No probability has this logarithm."""


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
    given: Sampler | None = None,
) -> Iterator[TrainStep]:
    """Yield after every step from `start` (steps already done) to `config.steps`; a step's groups are the student's own.

    Every draw is seeded by (seed, problem, sample): a caller that restores the learner and passes `start` continues
    bit for bit. The learner's `reference` is not used.

    Args:
        teacher: frozen; on the student's device, with its vocabulary.
        sampler: draws from the student's current weights.
        folder: where an offending batch is saved if the loss or gradient goes bad.
        given: answers the prompts that the student does not: the teacher, or `Replies` that are known.

    Raises:
        DunwuError: vocabularies of different sizes, a sampler that is not the student, or numbers gone bad.
        UsageError: `on_policy_share` is below 1 and nobody answers the others.
    """
    config.validate()
    if config.on_policy_share < 1 and given is None:
        what = f"on_policy_share is {config.on_policy_share}, and there are no given answers"
        raise UsageError(what, "leave it at 1, or use `dunwu run distill`")
    check_vocabularies(learner.policy, teacher)
    teacher.eval().requires_grad_(False)
    for step in range(start, config.steps):
        began = time.perf_counter()
        groups = collect(sampler, tokenizer, task, config, seed, step)
        shown = [] if given is None else collect_given(given, tokenizer, task, config, seed, step)
        sampled = time.perf_counter()
        lr = learning_rate(step, config.steps, config.lr, config.warmup, config.schedule, config.final_lr)
        metrics = update(learner, teacher, rows_of(groups) + given_rows(shown), config, lr, step, folder)
        done = time.perf_counter()
        tokens = sum(len(rollout.completion.token_ids) for group in groups + shown for rollout in group.rollouts)
        metrics |= sample_metrics(groups) if groups else {}
        metrics |= {"distill/on_policy": len(groups) / config.problems} if given is not None else {}
        metrics |= {
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


# ---- what is written


def on_policy_indices(config: DistillConfig, seed: int, step: int) -> tuple[list[int], list[int]]:
    """Indices of the step's problems: those the student answers itself, and those that come with an answer.

    Example:
        >>> on_policy_indices(DistillConfig(problems=8, on_policy_share=0.5), seed=0, step=1)
        ([8, 9, 11, 13], [10, 12, 14, 15])
    """
    own: list[int] = []
    given: list[int] = []
    for index in range(step * config.problems, (step + 1) * config.problems):
        dice = derive_seed("on-policy", seed, index) / 2**63 if 0 < config.on_policy_share < 1 else 0.5
        (own if dice < config.on_policy_share else given).append(index)
    return own, given


def collect(
    sampler: Sampler, tokenizer: Tokenizer, task: Task, config: DistillConfig, seed: int, step: int
) -> list[Group]:
    """The student's completions of this step's own prompts, each with the task's verdict."""
    indices = on_policy_indices(config, seed, step)[0]
    problems, prompts, drawn = _draw(sampler, tokenizer, task, config, seed, indices, "distill", config.group_size)
    verdicts = judge_groups(task, problems, drawn)
    return [
        Group(problem, prompt, tuple(map(Rollout, completions, judged)))
        for problem, prompt, completions, judged in zip(problems, prompts, drawn, verdicts, strict=True)
    ]


def collect_given(
    given: Sampler, tokenizer: Tokenizer, task: Task, config: DistillConfig, seed: int, step: int
) -> list[Group]:
    """One given completion for each of the step's other prompts, not judged; siblings would be the same answer again."""
    indices = on_policy_indices(config, seed, step)[1]
    drawn = _draw(given, tokenizer, task, config, seed, indices, "given", 1)
    unjudged = Verdict({}, 0.0)
    return [Group(problem, prompt, (Rollout(one, unjudged),)) for problem, prompt, (one,) in zip(*drawn, strict=True)]


def _draw(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    config: DistillConfig,
    seed: int,
    indices: Sequence[int],
    name: str,
    size: int,
) -> tuple[list[Problem], list[tuple[int, ...]], list[list[Completion]]]:
    """(problems, their prompts, `size` completions of each)."""
    problems = [task.problem("train", seed, index) for index in indices]
    prompts = [tuple(prompt_ids(tokenizer, problem)) for problem in problems]
    seeds = [[derive_seed(name, seed, index, g) for g in range(size)] for index in indices]
    params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)
    return problems, prompts, sampler.sample(prompts, seeds, params) if indices else []


class Replies:
    """Known answers as a `Sampler`: a prompt's answers are drawn with equal chances, what has none goes to `others`.

    Args:
        known: prompt ids → the ids of its answers, their stop token included.
        others: asked for all other prompts; None if there are none.

    Example:
        >>> one, two = Replies({(1, 2): [(7, 0), (8, 9, 0)]}).sample([[1, 2]], [[4, 5]], SamplingParams(max_tokens=4))[0]
        >>> {one.token_ids, two.token_ids} <= {(7, 0), (8, 9, 0)}
        True
    """

    def __init__(
        self, known: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]], others: Sampler | None = None
    ) -> None:
        self.known, self.others = known, others

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        """As the protocol says; the known answers have no text, and are not cut to `params.max_tokens`."""
        drawn: dict[int, list[Completion]] = {}
        unknown = [place for place, prompt in enumerate(prompts) if tuple(prompt) not in self.known]
        if unknown:
            if self.others is None:
                raise DunwuError("a prompt has no known answer", "give a sampler for the others")
            asked = self.others.sample([prompts[n] for n in unknown], [seeds[n] for n in unknown], params)
            drawn = dict(zip(unknown, asked, strict=True))
        for place, (prompt, group) in enumerate(zip(prompts, seeds, strict=True)):
            if place not in drawn:
                answers = self.known[tuple(prompt)]
                drawn[place] = [_as_completion(answers[seed % len(answers)], seed) for seed in group]
        return [drawn[place] for place in range(len(prompts))]


def _as_completion(ids: tuple[int, ...], seed: int) -> Completion:
    return Completion("", ids, (NOT_SAMPLED,) * len(ids), "stop", seed)


def rows_of(groups: Sequence[Group]) -> list[Row]:
    """Every completion as a training row, truncated and unscored ones included: each token has its teacher."""
    return [
        Row(group.prompt_ids + c.token_ids, len(group.prompt_ids), c.sampler_logprobs, 0.0, number)
        for number, group in enumerate(groups)
        for c in (rollout.completion for rollout in group.rollouts)
        if c.token_ids
    ]


def given_rows(groups: Sequence[Group]) -> list[Row]:
    """As `rows_of`, for what the student did not draw: its sampler has no logprobs of it."""
    rows = rows_of(groups)
    return [replace(row, sampler_logprobs=(NOT_SAMPLED,) * row.completion_length, group=-1 - row.group) for row in rows]


def sample_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Length, truncation and the task's verdicts of the step's samples; reward and accuracy where the task has them."""
    measured = group_metrics(groups, "distill")
    metrics = {f"distill/{name}": measured[f"distill/{name}"] for name in ("length", "truncated", "verifier_errors")}
    if any(rollout.verdict.rewards for group in groups for rollout in group.rollouts):
        metrics["distill/reward"] = measured["distill/reward"]
    if "distill/reward/accuracy" in measured:
        metrics["distill/accuracy"] = measured["distill/reward/accuracy"]
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
        loss, tally = _micro_loss(policy, teacher, micro, config)
        torch.autograd.backward(loss)
        tallies.append(tally)
    total = add_tallies(tallies)
    if learner.optimizer.version == 0 and total["sampler_mismatch"].count:
        _check_sampler(total["sampler_mismatch"].mean, policy.head_weight.dtype)
    ids = [row.ids for row in rows]
    check_finite(total[LOSSES[config.divergence]].mean, "loss", step + 1, ids, folder)
    check = partial(check_finite, name="gradient norm", step=step + 1, batch=ids, folder=folder)
    norm = learner.optimizer.step(lr, config.max_grad_norm, check)
    metrics = {f"distill/{name}": tally.mean for name, tally in total.items() if tally.count}
    return metrics | {
        "distill/reverse_kl_max": total["reverse_kl"].maximum,
        "distill/grad_norm": norm,
        "distill/trained_tokens": float(total["reverse_kl"].count),
    }


LOSSES = {"reverse": "reverse_kl", "forward": "forward_kl", "jsd": "jsd"}
"""`config.divergence` → the metric, below `distill/`, that is the loss."""


def divergence(config: DistillConfig) -> Callable[[Tensor, Tensor, float], Tensor]:
    """D of the config: (student's logits (N, V), teacher's, T) → (N,)."""
    if config.divergence == "jsd":
        return partial(jsd, beta=config.jsd_beta)
    return reverse_kl if config.divergence == "reverse" else forward_kl


def _micro_loss(
    policy: Transformer, teacher: Transformer, micro: MicroBatch, config: DistillConfig
) -> tuple[Tensor, dict[str, Tally]]:
    logits_NV, temperature = _completion_logits(policy, micro), config.temperature
    with torch.no_grad():
        teacher_NV = _completion_logits(teacher, micro)
        logprobs_N, entropy_N = token_logprobs(logits_NV.detach(), micro.targets_N, temperature)
        agree_N = logits_NV.argmax(-1) == teacher_NV.argmax(-1)
    loss_N = divergence(config)(logits_NV, teacher_NV, temperature)
    losses = {LOSSES[config.divergence]: _tally(loss_N.detach())}
    if config.divergence != "reverse":  # measured all the same, so that runs can be compared
        losses["reverse_kl"] = _tally(reverse_kl(logits_NV.detach(), teacher_NV, temperature))
    own_N = micro.sampler_N != NOT_SAMPLED
    tally = losses | {
        "entropy": _tally(entropy_N),
        "agreement": _tally(agree_N.float()),
        "sampler_mismatch": _tally((logprobs_N - micro.sampler_N).abs()[own_N]),
    }
    return (micro.weights_N * loss_N).sum(), tally


def _completion_logits(model: Transformer, micro: MicroBatch) -> Tensor:
    """(N, V): the predictions of the completion tokens only."""
    return F.linear(micro.states(model), model.head_weight)


def _tally(values_N: Tensor) -> Tally:
    return Tally(float(values_N.double().sum()), len(values_N), float(values_N.max()) if len(values_N) else -math.inf)


def _check_sampler(gap: float, dtype: torch.dtype) -> None:
    """Before the first update sampler and student are one network: their logprobs must say so."""
    if not gap <= MISMATCH_TOLERANCE.get(dtype, 0.1):  # so that NaN fails too
        raise DunwuError(
            f"sampler and student disagree by {gap:.4f} nats a token before the first update",
            "they must share weights, temperature, dtype and alignment",
        )
