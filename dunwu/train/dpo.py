"""Preference training: a policy taught by judged replies alone, without sampling and without a reward model.

A generator of updates, resumable at any of them, for the five losses of `dpo_losses.py`. What the reference says of
every reply is computed once, before the first update, while the policy still is the reference; it stays with the row,
and no second model is kept. Dropout is off: the losses compare two passes of one network.

The loss of an update is a sum over its rows divided by what the whole update holds, and a pair is never cut apart, so
micro-batches, padding and the order of the rows cannot change the gradient. KTO's reference point z₀ wants replies that
answer another question: each row is given its own once (`with_others`), so that is no affair of the batch either.

Legend: B rows, S replies. Not covered: a reference other than the model at the start, replies
sampled on the way (online DPO), labels between desirable and undesirable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from torch import Tensor

from dunwu.model.transformer import Transformer
from dunwu.train.dpo_config import DpoConfig
from dunwu.train.dpo_losses import dpo_loss, ipo_loss, kto_loss, log_odds, orpo_loss, reference_point, simpo_loss
from dunwu.train.dpo_rows import Row
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.reply_logprobs import all_logprobs, micro_batches, reply_logprobs
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import DunwuError, derive_seed

MISMATCH_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean |policy - reference| logprob of a token, in nats, before the first update."""


# ---- training -------------------------------------------------------------------------------


def with_reference(model: Transformer, rows: Sequence[Row], config: DpoConfig) -> list[Row]:
    """Each row with what `model`, the reference, says of its replies; as they are if the loss needs none.

    To be called before the first update, when policy and reference are one; after a kill, before the checkpoint is
    loaded. Equal inputs give equal bits.
    """
    if not config.referenced:
        return list(rows)
    asked = [(row.prompt, [*row.sides, *row.others]) for row in rows]
    found = all_logprobs(model, asked, config.micro_tokens)
    return [replace(row, reference=logprobs) for row, logprobs in zip(rows, found, strict=True)]


def dpo_steps(rows: Sequence[Row], config: DpoConfig) -> int:
    """Updates in all; the last one of an epoch may be short, so that no row is left out.

    Example:
        >>> dpo_steps([Row((1,), (2,), (3,))] * 65, DpoConfig(rows=32, epochs=2))
        6
    """
    return config.epochs * math.ceil(len(rows) / config.rows)


def rows_of_step(rows: Sequence[Row], config: DpoConfig, seed: int, step: int) -> list[Row]:
    """The rows of update `step` (0-based): a new order every epoch, a pure function of (rows, seed, step)."""
    epoch, place = divmod(step, math.ceil(len(rows) / config.rows))
    order = list(range(len(rows)))
    Random(derive_seed("dpo order", seed, epoch)).shuffle(order)
    return [rows[n] for n in order[place * config.rows : (place + 1) * config.rows]]


def train_dpo(
    model: Transformer,
    optimizer: MasterAdamW,
    rows: Sequence[Row],
    config: DpoConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every update from `start` (updates already done) to `dpo_steps(rows, config)`.

    A caller that restores model and optimizer and passes `start` continues bit for bit.

    Args:
        rows: with their `reference`, if the loss needs it, and with `others` for kto.
        folder: where an offending batch is saved if the loss or gradient goes bad.

    Raises:
        DunwuError: there are no rows, the reference is not the model at the start, or the numbers go bad.
        ValueError: a row without what the loss needs.
    """
    config.validate()
    if not rows:
        raise DunwuError("there are no rows to learn from", "give more data")
    check_rows(rows, config)
    model.eval()  # dropout stays off: policy and reference are compared
    total = dpo_steps(rows, config)
    for step in range(start, total):
        began = time.perf_counter()
        chosen = rows_of_step(rows, config, seed, step)
        z0 = _reference_point(model, chosen, config)
        measured = accumulate(model, chosen, config, z0)
        if config.referenced and optimizer.version == 0:
            _check_reference(chosen, measured, model.head_weight.dtype)
        batch = [row.prompt + side for row in chosen for side in row.sides]
        check = partial(check_finite, step=step + 1, batch=batch, folder=folder)
        metrics = figures(measured, config)
        check(metrics["loss"], "loss")
        lr = learning_rate(step, total, config.lr, config.warmup, config.schedule, config.final_lr)
        metrics["grad_norm"] = optimizer.step(lr, config.max_grad_norm, partial(check, name="gradient norm"))
        if config.loss == "kto":
            metrics["z0"] = z0
        metrics |= {
            "lr": lr,
            "epoch": (step + 1) * config.epochs / total,
            "trained_tokens": float(sum(len(side) for row in chosen for side in row.sides)),
            "tokens_per_second": sum(map(len, batch)) / (time.perf_counter() - began),
        }
        yield TrainStep(step + 1, {f"dpo/{name}": value for name, value in metrics.items()})


def accumulate(model: Transformer, rows: Sequence[Row], config: DpoConfig, z0: float = 0.0) -> list[Measured]:
    """Add the gradient of the update's mean loss to the model's parameters; what was measured on the way, row by row.

    Args:
        rows: all of the update; they are cut into micro-batches here.
        z0: KTO's reference point of the update.
    """
    count = _denominator(rows, config)
    measured: list[Measured | None] = [None] * len(rows)
    asked = [(row.prompt, row.sides) for row in rows]
    for places in micro_batches(asked, config.micro_tokens, model.native):
        part = [rows[n] for n in places]
        loss, found = _losses(reply_logprobs(model, [asked[n] for n in places]), part, config, z0)
        torch.autograd.backward(loss / count)
        for n, each in zip(places, found, strict=True):
            measured[n] = each
    return [each for each in measured if each is not None]


@torch.inference_mode()
def measure(model: Transformer, rows: Sequence[Row], config: DpoConfig) -> list[Measured]:
    """The same of rows that are not trained on, dropout off, the model left as it was."""
    was_training = model.training
    model.eval()
    z0 = _reference_point(model, rows, config)
    found = all_logprobs(model, [(row.prompt, row.sides) for row in rows], config.micro_tokens)
    flat = torch.tensor([value for values in found for value in values])
    model.train(was_training)
    return _losses(flat, rows, config, z0)[1]


def check_rows(rows: Sequence[Row], config: DpoConfig) -> None:
    """Raise ValueError if a row lacks what the loss needs."""
    for row in rows:
        if config.loss != "kto" and len(row.sides) < 2:
            raise ValueError(f"{config.loss} learns from pairs, a row has one side")
        if config.referenced and len(row.reference) != len(row.sides) + len(row.others):
            raise ValueError(f"{config.loss} needs the reference's log-probabilities: call with_reference")


def _denominator(rows: Sequence[Row], config: DpoConfig) -> int:
    """What an update's loss is divided by: its pairs; of KTO its replies."""
    return sum(len(row.sides) for row in rows) if config.loss == "kto" else len(rows)


def _reference_point(model: Transformer, rows: Sequence[Row], config: DpoConfig) -> float:
    """z₀ of the update, from all its `others`; 0 for the other losses."""
    if config.loss != "kto":
        return 0.0
    with torch.inference_mode():
        found = all_logprobs(model, [(row.prompt, row.others) for row in rows], config.micro_tokens)
    policy = [value for values in found for value in values]
    reference = [value for row in rows for value in row.reference[len(row.sides) :]]
    return reference_point(torch.tensor(policy), torch.tensor(reference))


def _check_reference(rows: Sequence[Row], measured: Sequence[Measured], dtype: torch.dtype) -> None:
    """Before the first update policy and reference are one network: their log-probabilities must say so."""
    gaps = [abs(a - b) for row, each in zip(rows, measured, strict=True) for a, b in zip(each.logprobs, row.reference)]
    gap = sum(gaps) / sum(len(side) for row in rows for side in row.sides)
    if not gap <= MISMATCH_TOLERANCE.get(dtype, 0.1):  # so that NaN fails too
        raise DunwuError(
            f"policy and reference disagree by {gap:.4f} nats a token before the first update",
            "the reference's log-probabilities must be made with the model that training starts from",
        )


# ---- what a row shows -----------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A row under the policy."""

    good: float | None
    """Implicit reward of the good side; None if the row has none."""
    bad: float | None
    """Implicit reward of the bad side."""
    logprobs: tuple[float, ...]
    """log π of the sides, in nats."""
    loss: float
    """Summed over its replies under kto."""

    @property
    def margin(self) -> float:
        """How much the rewards say what they should: r_good − r_bad, r_good alone, or −r_bad alone."""
        return (self.good or 0.0) - (self.bad or 0.0)


def figures(measured: Sequence[Measured], config: DpoConfig) -> dict[str, float]:
    """Means over the rows, in no order: loss, accuracy, margin, rewards and log-probabilities of the sides there are."""
    replies = sum(len(each.logprobs) for each in measured)
    pairs = [each for each in measured if each.good is not None and each.bad is not None]
    found = {
        "loss": math.fsum(each.loss for each in measured) / (replies if config.loss == "kto" else len(measured)),
        "accuracy": fmean(each.margin > 0 for each in measured),
        "margin": fmean(each.margin for each in measured),
    }
    sides = {
        "chosen": [(each.good, each.logprobs[0]) for each in measured if each.good is not None],
        "rejected": [(each.bad, each.logprobs[-1]) for each in measured if each.bad is not None],
    }
    for name, values in sides.items():
        if values:
            found[f"reward_{name}"] = fmean(reward for reward, _ in values)
            found[f"logprob_{name}"] = fmean(logprob for _, logprob in values)
    if pairs:
        found["ranking"] = fmean(each.logprobs[0] > each.logprobs[1] for each in pairs)
    return found


def implicit_rewards(logprobs_S: Tensor, ref_S: Tensor | None, lengths_S: Tensor, config: DpoConfig) -> Tensor:
    """What the loss takes for the reward of a reply, (S,); a pair is ordered rightly if the chosen one's is higher.

        dpo, ipo, kto   β log π / π_ref, of a token with `length_normalize`
        orpo            log odds
        simpo           β log π of a token

    Example:
        >>> policy, reference, lengths = torch.tensor([-4.0]), torch.tensor([-6.0]), torch.tensor([2])
        >>> float(implicit_rewards(policy, reference, lengths, DpoConfig(beta=0.5)))
        1.0
        >>> float(implicit_rewards(policy, None, lengths, DpoConfig(loss="simpo")))
        -4.0
    """
    if config.loss == "orpo":
        return log_odds(logprobs_S / lengths_S)
    if config.loss == "simpo":
        return config.simpo_beta * logprobs_S / lengths_S
    assert ref_S is not None
    ratio_S = logprobs_S - ref_S
    return config.beta * (ratio_S / lengths_S if config.length_normalize else ratio_S)


def _losses(logprobs_S: Tensor, rows: Sequence[Row], config: DpoConfig, z0: float) -> tuple[Tensor, list[Measured]]:
    """(sum of the rows' losses, what each row shows); `logprobs_S` are those of all sides, row by row."""
    like = partial(torch.tensor, device=logprobs_S.device)
    lengths_S = like([len(side) for row in rows for side in row.sides])
    known = [value for row in rows for value in row.reference[: len(row.sides)]]
    ref_S = like(known, dtype=logprobs_S.dtype) if config.referenced else None
    good_S = like([flag for row in rows for flag, side in ((True, row.good), (False, row.bad)) if side is not None])
    losses = pair_or_reply_losses(logprobs_S, ref_S, lengths_S, good_S, config, z0)
    with torch.no_grad():
        rewards = iter(implicit_rewards(logprobs_S, ref_S, lengths_S, config).tolist())
        each = iter(losses.tolist())
        logprobs = iter(logprobs_S.tolist())
    measured = []
    for row in rows:
        cases = len(row.sides) if config.loss == "kto" else 1
        measured.append(
            Measured(
                next(rewards) if row.good is not None else None,
                next(rewards) if row.bad is not None else None,
                tuple(next(logprobs) for _ in row.sides),
                sum(next(each) for _ in range(cases)),
            )
        )
    return losses.sum(), measured


def pair_or_reply_losses(
    logprobs_S: Tensor, ref_S: Tensor | None, lengths_S: Tensor, good_S: Tensor, config: DpoConfig, z0: float
) -> Tensor:
    """The configured loss: (S,) of replies under kto, else (S / 2,) of pairs, whose chosen reply stands first."""
    losses = _bare_losses(logprobs_S, ref_S, lengths_S, good_S, config, z0)
    if not config.sft_coef:
        return losses
    nll_S = torch.where(good_S, -logprobs_S / lengths_S, 0.0)
    return losses + config.sft_coef * (nll_S if config.loss == "kto" else nll_S[0::2])


def _bare_losses(
    logprobs_S: Tensor, ref_S: Tensor | None, lengths_S: Tensor, good_S: Tensor, config: DpoConfig, z0: float
) -> Tensor:
    if config.loss == "kto":
        assert ref_S is not None
        return kto_loss(logprobs_S, ref_S, good_S, z0, config.beta, config.desirable, config.undesirable)
    if config.length_normalize or not config.referenced:
        logprobs_S = logprobs_S / lengths_S
        ref_S = None if ref_S is None else ref_S / lengths_S
    chosen_B, rejected_B = logprobs_S[0::2], logprobs_S[1::2]
    if config.loss == "orpo":
        return orpo_loss(chosen_B, rejected_B, config.orpo_lambda)
    if config.loss == "simpo":
        return simpo_loss(chosen_B, rejected_B, config.simpo_beta, config.simpo_gamma)
    assert ref_S is not None
    if config.loss == "ipo":
        return ipo_loss(chosen_B, rejected_B, ref_S[0::2], ref_S[1::2], config.beta)
    return dpo_loss(chosen_B, rejected_B, ref_S[0::2], ref_S[1::2], config.beta, config.label_smoothing)
