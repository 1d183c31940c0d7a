"""Supervised fine-tuning on conversations: a generator of updates, resumable at any of them.

Several conversations stand in one row (packing), each with its own positions and seeing only itself, so an update is
the same whether its examples are packed, padded, or cut into other micro-batches: the loss is the sum over the
trained tokens divided by what the *whole* update holds. Which examples make an update follows from (seed, step).

Legend: B rows, T tokens, N trained tokens. Not covered: examples longer than the context (left out and counted),
loss on anything but the assistant's own tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from dunwu.data.chat import Encoded
from dunwu.model.transformer import Transformer
from dunwu.train.config import SftConfig
from dunwu.train.losses import state_logprobs
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import DunwuError, derive_seed


def trainable(examples: Sequence[Encoded], config: SftConfig) -> list[int]:
    """Places of the examples that are trained: no longer than the context, and with something to learn.

    Example:
        >>> long, fine, mute = Encoded((1,) * 9, (1,) * 9), Encoded((1, 2), (0, 1)), Encoded((1, 2), (0, 0))
        >>> trainable([long, fine, mute], SftConfig(context=8))
        [1]
    """
    return [
        place
        for place, example in enumerate(examples)
        if len(example.ids) <= config.context and any(example.loss_mask[1:])
    ]


def sft_steps(examples: Sequence[Encoded], config: SftConfig) -> int:
    """Updates in all: those of an epoch, each of `batch_tokens` tokens on average, times the epochs."""
    return config.epochs * _updates_per_epoch([examples[n] for n in trainable(examples, config)], config)


def sft(
    model: Transformer,
    optimizer: MasterAdamW,
    examples: Sequence[Encoded],
    config: SftConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every update from `start` (updates already done) to `sft_steps(examples, config)`.

    A caller that restores model and optimizer and passes `start` continues bit for bit. Examples that cannot be
    trained (`trainable`) are left out; every step's metrics count them.

    Args:
        folder: where an offending batch is saved if the loss or gradient goes bad.

    Raises:
        DunwuError: no example can be trained, or the numbers go bad.
    """
    config.validate()
    kept = [examples[n] for n in trainable(examples, config)]
    per_epoch = _updates_per_epoch(kept, config)
    steps = config.epochs * per_epoch
    device = model.head_weight.device
    model.set_dropout(config.dropout)
    model.train()
    for step in range(start, steps):
        began = time.perf_counter()
        batch = batch_of(kept, config, seed, step)
        torch.manual_seed(derive_seed("dropout", seed, step))  # dropout is the only user of the global generator
        loss = trained = 0.0
        for micro in micro_batches(batch, config, device):
            part = micro.loss(model)
            torch.autograd.backward(part)
            loss += float(part.detach())
            trained += len(micro.targets_N)
        check = partial(check_finite, step=step + 1, batch=[example.ids for example in batch], folder=folder)
        check(loss, "loss")
        lr = learning_rate(step, steps, config.lr, config.warmup, config.schedule, config.final_lr)
        norm = optimizer.step(lr, config.max_grad_norm, partial(check, name="gradient norm"))
        tokens = sum(len(example.ids) for example in batch)
        yield TrainStep(
            step + 1,
            {
                "sft/loss": loss,
                "sft/lr": lr,
                "sft/grad_norm": norm,
                "sft/trained_tokens": float(trained),
                "sft/epoch": (step + 1) / per_epoch,
                "sft/left_out": float(len(examples) - len(kept)),
                "sft/tokens_per_second": tokens / (time.perf_counter() - began),
            },
        )


@torch.inference_mode()
def sft_loss(model: Transformer, examples: Sequence[Encoded], config: SftConfig) -> float:
    """Mean loss in nats over all trained tokens of the examples, dropout off; those not `trainable` are left out.

    Raises:
        DunwuError: no example is left.
    """
    was_training = model.training
    model.eval()
    kept = [examples[n] for n in trainable(examples, config)]
    if not kept:
        raise _nothing(config)
    nats, tokens = 0.0, 0
    for micro in micro_batches(kept, config, model.head_weight.device):
        nats -= float(micro.logprobs(model).double().sum())
        tokens += len(micro.targets_N)
    model.train(was_training)
    return nats / tokens


# ---- which examples make an update


def batch_of(examples: Sequence[Encoded], config: SftConfig, seed: int, step: int) -> list[Encoded]:
    """The examples of update `step` (0-based): a slice of the epoch's order, a function of (seed, step) alone.

    Every update of an epoch has the same number of examples (or one more), so none is empty, and every epoch shows
    each example once.
    """
    per_epoch = _updates_per_epoch(examples, config)
    epoch, place = divmod(step, per_epoch)
    order = list(range(len(examples)))
    Random(derive_seed("sft", seed, epoch)).shuffle(order)
    first, last = (n * len(order) // per_epoch for n in (place, place + 1))
    return [examples[n] for n in order[first:last]]


def _updates_per_epoch(examples: Sequence[Encoded], config: SftConfig) -> int:
    if not examples:
        raise _nothing(config)
    tokens = sum(len(example.ids) for example in examples)
    return min(len(examples), -(-tokens // config.batch_tokens))


def _nothing(config: SftConfig) -> DunwuError:
    return DunwuError(
        f"no example has something to learn within a context of {config.context} tokens",
        "raise the context, or give shorter examples",
    )


# ---- an update as rows


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, and where their trained tokens sit."""

    ids_BT: Tensor
    segments_BT: Tensor | None
    """Number of the example a token belongs to, padding 0; None where a row is one example."""
    places_N: Tensor
    """Indices into the flattened (B, T) of the position that predicts each trained token."""
    targets_N: Tensor
    weights_N: Tensor
    """1 / denominator of the whole update."""

    def logprobs(self, model: Transformer) -> Tensor:
        """(N,) of the trained tokens, in nats."""
        hidden = model.hidden(self.ids_BT, segments_BT=self.segments_BT)
        hidden_ND = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.places_N)
        return state_logprobs(hidden_ND, model.head_weight, self.targets_N)[0]

    def loss(self, model: Transformer) -> Tensor:
        """This micro-batch's share of the update's loss: add them up, divide by nothing."""
        return -(self.weights_N * self.logprobs(model)).sum()


def micro_batches(examples: Sequence[Encoded], config: SftConfig, device: torch.device) -> list[MicroBatch]:
    """Examples as rows, the rows as batches of at most `micro_tokens` tokens; longest first.

    Raises:
        ValueError: an example has nothing to learn.
    """
    cuts = sorted((_Cut.of(example) for example in examples), key=lambda cut: -len(cut.inputs))
    lengths = [len(cut.inputs) for cut in cuts]
    rows = _pack(lengths, lengths[0]) if config.packing else [[n] for n in range(len(cuts))]
    trained = sum(len(cut.targets) for cut in cuts)
    weights = [1 / (trained if config.loss_norm == "token" else len(cut.targets) * len(cuts)) for cut in cuts]
    batches = []
    while rows:
        widest = max(sum(lengths[n] for n in row) for row in rows)
        take = max(1, config.micro_tokens // widest)
        batches.append(_lay_out(cuts, rows[:take], weights, device))
        rows = rows[take:]
    return batches


@dataclass(frozen=True)
class _Cut:
    """An example up to its last trained token: what is put in, and what is predicted where."""

    inputs: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]

    @staticmethod
    def of(example: Encoded) -> _Cut:
        trained = [place for place, learned in enumerate(example.loss_mask) if learned and place]
        if not trained:
            raise ValueError("an example has nothing to learn")
        inputs = example.ids[: trained[-1]]
        return _Cut(inputs, tuple(place - 1 for place in trained), tuple(example.ids[place] for place in trained))


def _pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of at most `width` tokens: each example, longest first, goes into the first row with room for it.

    Example:
        >>> _pack([5, 3, 3, 2], width=5)
        [[0], [1, 3], [2]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        row = next((r for r, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(number)
        room[row] -= length
    return rows


def _lay_out(
    cuts: Sequence[_Cut], rows: Sequence[Sequence[int]], weights: Sequence[float], device: torch.device
) -> MicroBatch:
    width = max(sum(len(cuts[n].inputs) for n in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    for line, row in enumerate(rows):
        at = 0
        for number, n in enumerate(row, 1):
            cut = cuts[n]
            end = at + len(cut.inputs)
            ids[line, at:end] = torch.tensor(cut.inputs)
            segments[line, at:end] = number
            places += (line * width + at + place for place in cut.places)
            targets += cut.targets
            shares += [weights[n]] * len(cut.targets)
            at = end
    packed = any(len(row) > 1 for row in rows)
    return MicroBatch(
        ids.to(device),
        segments.to(device) if packed else None,
        torch.tensor(places, device=device),
        torch.tensor(targets, device=device),
        torch.tensor(shares, device=device),
    )
