"""Group relative policy optimisation with verifiable rewards: a generator of steps.

One step is two verbs: `collect` groups (sample, score, compare siblings), `update` the policy on
them. Objective: DeepSeek-R1, arXiv 2501.12948, section 2.1, eq. 1-3; every normalisation and
denominator that implementations silently choose is a named field of GrpoConfig, and with them
REINFORCE, RLOO, Dr. GRPO, DAPO, GSPO, CISPO and others are settings (variants.py).

Not covered: value models (ppo.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dunwu.data.tokenizer import Tokenizer
from dunwu.train.collect import collect, group_metrics, rows_of
from dunwu.train.config import GrpoConfig
from dunwu.train.learner import Learner
from dunwu.train.optim import learning_rate
from dunwu.train.rows import Row
from dunwu.train.steps import TrainStep
from dunwu.train.update import after_step, before_updates, cut, optimise
from dunwu.types import Sampler, Task


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
        metrics |= after_step(learner, groups, config, "grpo", lr, began, sampled) | group_metrics(groups) | counts
        metrics |= learner.steer(config, metrics, "grpo")
        yield TrainStep(step + 1, metrics, tuple(groups))


def update(
    learner: Learner, rows: Sequence[Row], config: GrpoConfig, lr: float, seed: int, step: int, folder: Path | None
) -> dict[str, float]:
    """One pass over the rows in `config.minibatches` optimizer updates; returns the step's metrics.

    Raises:
        DunwuError: an on-policy check fails at the first update, or the numbers go bad.
    """
    parts = cut(learner, rows, config, seed, step)
    # The first update's own pass is made with the weights that sampled.
    parts = [*parts[:1], *(before_updates(learner, part, config) for part in parts[1:])]
    return optimise(learner, parts, config, lr, step, folder)
