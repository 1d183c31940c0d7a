"""Training of reward models (`reward_model.py`): which replies are better, or which are safe.

* Pairwise (R1's helpful model, arXiv 2501.12948, B.3.4; InstructGPT, arXiv 2203.02155, eq. 1): Bradley-Terry, the loss
  of a pair is -log σ(r_chosen - r_rejected). It sees the summary of a reply only.
* Pointwise (R1's safety model): binary cross-entropy, the loss of a reply is -log σ(r) if it is labelled good, else
  -log σ(-r). It sees the whole reply, thinking included.

Legend: B rows of a batch.
Not covered: ensembles, process rewards, several replies ranked at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.data.chat import encode_conversation
from dunwu.data.tokenizer import Tokenizer
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.reward_model import RewardModel, batch_scores, seen
from dunwu.train.rm_config import RmConfig, View
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import ChatExample, DunwuError, Message, Preference, derive_seed

# ---- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One training row: a pair has both sides, a labelled reply the one of its label."""

    good: tuple[int, ...] | None
    """Ids of the conversation with the chosen reply, or with one labelled good."""
    bad: tuple[int, ...] | None
    """Ids of the conversation with the rejected reply, or with one labelled bad."""

    @property
    def sides(self) -> list[tuple[int, ...]]:
        """The conversations to score, the good one first."""
        return [side for side in (self.good, self.bad) if side is not None]


def pair_row(tokenizer: Tokenizer, pair: Preference, view: View) -> Row:
    """A preference as ids."""
    good, bad = (
        tuple(encode_conversation(tokenizer, seen([*pair.messages, reply], view)).ids)
        for reply in (pair.chosen, pair.rejected)
    )
    return Row(good, bad)


def label_row(tokenizer: Tokenizer, example: ChatExample, view: View) -> Row:
    """A labelled conversation as ids; see `label_of`."""
    ids = tuple(encode_conversation(tokenizer, seen(example.messages, view)).ids)
    return Row(ids, None) if label_of(example) else Row(None, ids)


def label_of(example: ChatExample) -> bool:
    """The label of a pointwise row: `meta["safe"]`, else `meta["label"]`; true and 1 are good, false and 0 bad.

    Raises:
        DunwuError: there is none, or another value.

    Example:
        >>> label_of(ChatExample((), {"safe": True})), label_of(ChatExample((), {"label": 0}))
        (True, False)
    """
    label = example.meta.get("safe", example.meta.get("label"))
    if not isinstance(label, int | float) or label not in (0, 1):  # True and 1 are equal
        raise DunwuError(
            "no label" if label is None else f"the label is {label!r}", 'write "meta": {"safe": true} or false'
        )
    return bool(label)


def held_out_rows(conversations: Sequence[Sequence[Message]], share: float, seed: int) -> list[bool]:
    """Which rows are held out: whole conversations, the `share` of them whose hash is lowest, one at least.

    Args:
        conversations: what was asked, row by row, without the replies; equal ones go to the same side.

    Raises:
        DunwuError: fewer than two different conversations, so one side would be empty.

    Example:
        >>> hi, bye = [Message("user", "hi")], [Message("user", "bye")]
        >>> flags = held_out_rows([hi, bye, hi], 0.5, seed=0)
        >>> flags[0] == flags[2] != flags[1]
        True
    """
    keys = [json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False) for messages in conversations]
    order = sorted(set(keys), key=lambda key: (derive_seed("rm held out", seed, key), key))
    if len(order) < 2:
        raise DunwuError(
            f"{len(order)} different conversations cannot be split into training and held-out ones", "give more data"
        )
    chosen = set(order[: min(len(order) - 1, math.ceil(share * len(order)))])
    return [key in chosen for key in keys]


def balance_lengths(rows: Sequence[Row], tolerance: float) -> list[Row]:
    """The pairs without those that make length a clue; order kept, nothing drawn by chance.

    While the mean lengths of chosen and rejected differ by more than `tolerance` of the mean length, a pair that differs
    in that direction goes, those that differ most first, so that few are lost. Rows with one side are kept.

    Example:
        >>> pairs = [Row((1, 1, 1, 1), (1,)), Row((1, 1), (1, 1)), Row((1,), (1, 1))]
        >>> [len(balance_lengths(pairs, tolerance)) for tolerance in (0.5, 0.3, 0.0)]
        [3, 2, 1]
    """
    excess = {n: len(row.good) - len(row.bad) for n, row in enumerate(rows) if row.good and row.bad}
    total = sum(len(side) for n in excess for side in rows[n].sides)
    surplus = sum(excess.values())
    dropped: set[int] = set()
    for n in sorted(excess, key=lambda n: (-abs(excess[n]), n)):
        # Mean difference ≤ tolerance · mean length; both means are over the same pairs, so the counts cancel.
        if abs(surplus) <= tolerance * total / 2:
            break
        if abs(surplus - excess[n]) < abs(surplus):
            dropped.add(n)
            surplus -= excess[n]
            total -= sum(len(side) for side in rows[n].sides)
    return [row for n, row in enumerate(rows) if n not in dropped]


# ---- training -------------------------------------------------------------------------------


def margin(good_B: Tensor | None, bad_B: Tensor | None) -> Tensor:
    """How much the scores of a row say what they should: r_good - r_bad, r_good alone, or -r_bad alone."""
    if good_B is not None:
        return good_B if bad_B is None else good_B - bad_B
    if bad_B is None:
        raise ValueError("a row has neither side")
    return -bad_B


def margin_loss(margin_B: Tensor) -> Tensor:
    """Loss of each row (B,), -log σ(margin): Bradley-Terry of two scores, or cross-entropy of the one label.

    Example:
        >>> good, bad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])  # -log σ(1) = 0.3133, -log σ(0) = log 2
        >>> pairs, single = margin_loss(margin(good, bad)), margin_loss(margin(None, good))
        >>> [round(loss, 4) for loss in pairs.tolist()], round(float(single[0]), 4)
        ([0.3133, 0.6931], 1.3133)
    """
    return F.softplus(-margin_B)


def rm_steps(rows: Sequence[Row], config: RmConfig) -> int:
    """Updates in all; the last one of an epoch may be short, so that no row is left out.

    Example:
        >>> rm_steps([Row((1,), (2,))] * 65, RmConfig(rows=32, epochs=2))
        6
    """
    return config.epochs * math.ceil(len(rows) / config.rows)


def rows_of_step(rows: Sequence[Row], config: RmConfig, seed: int, step: int) -> list[Row]:
    """The rows of update `step` (0-based): a new order every epoch, a pure function of (rows, seed, step)."""
    per_epoch = math.ceil(len(rows) / config.rows)
    epoch, place = divmod(step, per_epoch)
    order = list(range(len(rows)))
    Random(derive_seed("rm order", seed, epoch)).shuffle(order)
    return [rows[n] for n in order[place * config.rows : (place + 1) * config.rows]]


def train_rm(
    model: RewardModel,
    optimizer: MasterAdamW,
    rows: Sequence[Row],
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
        loss_sum, margins = 0.0, []
        for micro in _micro_batches(chosen, config.micro_tokens):
            margin_B = _row_margins(model, micro)
            loss = margin_loss(margin_B).sum() / len(chosen)
            torch.autograd.backward(loss)
            loss_sum += float(loss.detach())
            margins += margin_B.detach().tolist()
        check(loss_sum, "loss")
        lr = learning_rate(step, total, config.lr, config.warmup, config.schedule, config.final_lr)
        norm = optimizer.step(lr, config.max_grad_norm, partial(check, name="gradient norm"))
        metrics = {
            "rm/loss": loss_sum,
            "rm/accuracy": fmean(m > 0 for m in margins),
            "rm/margin": fmean(margins),
            "rm/lr": lr,
            "rm/grad_norm": norm,
            "rm/epoch": (step + 1) * config.epochs / total,
        }
        yield TrainStep(step + 1, metrics)
    model.eval()


def _micro_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Rows of similar length together, a pair never apart; the order of the rows within an update changes no sum."""
    left = sorted(rows, key=lambda row: -max(map(len, row.sides)))
    batches = []
    while left:
        take = max(1, tokens // sum(max(map(len, left[0].sides)) for _ in left[0].sides))
        batches.append(left[:take])
        left = left[take:]
    return batches


def _row_margins(model: RewardModel, rows: Sequence[Row]) -> Tensor:
    """Margins (B,) of the rows, with gradient; all sides go through the model in one batch."""
    scores = iter(batch_scores(model, [side for row in rows for side in row.sides]))
    margins = []
    for row in rows:
        good = next(scores) if row.good is not None else None
        margins.append(margin(good, next(scores) if row.bad is not None else None))
    return torch.stack(margins)
