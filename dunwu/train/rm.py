"""Training of reward models (`reward_model.py`): which replies are better, or which are safe.

* Pairwise (R1's helpful model, arXiv 2501.12948, B.3.4): one of two replies was chosen. It sees the summary of a reply only.
* Rankings (InstructGPT, arXiv 2203.02155, 3.5): K replies to a prompt in order, together one batch element.
* Pointwise (R1's safety model): a reply is labelled good or bad. It sees the whole reply, thinking included.

The losses are in `rm_losses.py`, the rows in `rm_rows.py`, several models as one in `ensemble.py`.
Not covered: process rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.reward_model import AnyRewardModel, family_scores
from dunwu.train.rm_config import RmConfig
from dunwu.train.rm_losses import margin, margin_loss, plackett_luce_loss, ranking_loss
from dunwu.train.rm_rows import AnyRow, RankedRow, Row, held_out_rows, label_of
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import DunwuError, derive_seed

__all__ = ["held_out_rows", "label_of", "rm_steps", "row_losses", "rows_of_step", "train_rm"]


def rm_steps(rows: Sequence[AnyRow], config: RmConfig) -> int:
    """Updates in all; the last one of an epoch may be short, so that no row is left out.

    Example:
        >>> rm_steps([Row((1,), (2,))] * 65, RmConfig(rows=32, epochs=2))
        6
    """
    return config.epochs * math.ceil(len(rows) / config.rows)


def rows_of_step(rows: Sequence[AnyRow], config: RmConfig, seed: int, step: int) -> list[AnyRow]:
    """The rows of update `step` (0-based): a new order every epoch, a pure function of (rows, seed, step)."""
    per_epoch = math.ceil(len(rows) / config.rows)
    epoch, place = divmod(step, per_epoch)
    order = list(range(len(rows)))
    Random(derive_seed("rm order", seed, epoch)).shuffle(order)
    return [rows[n] for n in order[place * config.rows : (place + 1) * config.rows]]


def train_rm(
    model: AnyRewardModel,
    optimizer: MasterAdamW,
    rows: Sequence[AnyRow],
    config: RmConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every update from `start` (updates already done) to the end; the loss is the mean over the update's rows.

    A caller that restores model and optimizer and passes `start` continues bit for bit.

    Raises:
        DunwuError: there are no rows, or the numbers go bad.
    """
    config.validate()
    if not rows:
        raise DunwuError("a reward model has no rows to learn from", "give more data")
    model.train()
    total = rm_steps(rows, config)
    for step in range(start, total):
        chosen = rows_of_step(rows, config, seed, step)
        check = partial(
            check_finite, step=step + 1, batch=[side for row in chosen for side in row.sides], folder=folder
        )
        loss_sum, margins = 0.0, list[list[float]]()
        for micro in _micro_batches(chosen, config.micro_tokens):
            scores = family_scores(model, [row.sides for row in micro])
            losses_B, found = row_losses(micro, scores, config)
            loss = losses_B.sum() / len(chosen)
            torch.autograd.backward(loss)
            loss_sum += float(loss.detach())
            margins += found
        check(loss_sum, "loss")
        lr = learning_rate(step, total, config.lr, config.warmup, config.schedule, config.final_lr)
        norm = optimizer.step(lr, config.max_grad_norm, partial(check, name="gradient norm"))
        metrics = {
            "rm/loss": loss_sum,
            "rm/accuracy": fmean(fmean(m > 0 for m in row) for row in margins),
            "rm/margin": fmean(fmean(row) for row in margins),
            "rm/lr": lr,
            "rm/grad_norm": norm,
            "rm/epoch": (step + 1) * config.epochs / total,
        }
        yield TrainStep(step + 1, metrics)
    model.eval()


def _micro_batches(rows: Sequence[AnyRow], tokens: int) -> list[list[AnyRow]]:
    """Rows of similar length together, a row's sides never apart; the order of the rows within an update changes no sum."""
    left = sorted(rows, key=lambda row: -max(map(len, row.sides)))
    batches = []
    while left:
        take = max(1, tokens // sum(max(map(len, left[0].sides)) for _ in left[0].sides))
        batches.append(left[:take])
        left = left[take:]
    return batches


def row_losses(rows: Sequence[AnyRow], scores: Tensor, config: RmConfig) -> tuple[Tensor, list[list[float]]]:
    """Loss of each row (B,), with gradient, and the margins of each: one of a pair or a label, one a pair of a ranking.

    Args:
        rows: all rankings, or none.
        scores: of all sides of all rows, in order.
    """
    sides = torch.split(scores, [len(row.sides) for row in rows])
    ranked = [row for row in rows if isinstance(row, RankedRow)]
    if ranked:
        loss = ranking_loss if config.ranking == "pairs" else plackett_luce_loss
        ranks = [torch.tensor(row.ranks, device=scores.device) for row in ranked]
        values = (side.tolist() for side in sides)
        margins = [[found[b] - found[w] for b, w in row.pairs] for row, found in zip(ranked, values, strict=True)]
        return loss(pad_sequence(list(sides), True), pad_sequence(ranks, True, -1)), margins
    pairs = [row for row in rows if isinstance(row, Row)]
    margin_B = torch.stack([_margin(row, found) for row, found in zip(pairs, sides, strict=True)])
    wanted_B = torch.tensor([row.margin for row in pairs], device=scores.device) if config.margin else None
    return margin_loss(margin_B, wanted_B), [[m] for m in margin_B.detach().tolist()]


def _margin(row: Row, scores: Tensor) -> Tensor:
    """The margin () of a row with one side or two."""
    return margin(scores[0] if row.good is not None else None, scores[-1] if row.bad is not None else None)
