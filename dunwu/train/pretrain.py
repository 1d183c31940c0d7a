"""Next-token training on packed shards: a generator of steps, resumable at any of them.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dunwu.data.shards import PackedShards, TokenFolder
from dunwu.model.moe import Routing
from dunwu.model.transformer import Transformer
from dunwu.train.config import PretrainConfig
from dunwu.train.experts import balance_experts
from dunwu.train.losses import state_logprobs
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.steps import TrainStep, check_finite


class Windows(Protocol):
    """Where batches come from: `PackedShards` or `MixedShards`."""

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """(rows, T + 1) ids, a function of the step alone."""
        ...


def cut_windows(ids_BT: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    """(B·T/context, context + 1): the same windows in shorter ones, each token predicted once as before.

    Example:
        >>> cut_windows(np.arange(5)[None], 2).tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    if ids_BT.shape[1] == context + 1:
        return ids_BT
    starts = range(0, ids_BT.shape[1] - 1, context)
    return np.stack([ids_BT[:, start : start + context + 1] for start in starts], axis=1).reshape(-1, context + 1)


def next_token_loss(model: Transformer, ids_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ids[:, 1:] given what stands before; logits in fp32."""
    return _mean_loss(model, model.hidden(ids_BT[:, :-1]), ids_BT[:, 1:])


def _mean_loss(model: Transformer, states_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    logprobs, _ = state_logprobs(states_BTD.flatten(0, 1), model.head_weight, targets_BT.flatten())
    return -logprobs.mean()


@dataclass(frozen=True)
class Losses:
    """What an update of pretraining descends, and its parts."""

    total: Tensor
    next_token: Tensor
    """Mean cross-entropy, nats."""
    mtp: Tensor | None = None
    """The same of the token after the next, of models with `mtp_depth`."""
    routing: Routing | None = None
    """Of models with experts: their loads and balance loss."""


def pretraining_loss(model: Transformer, ids_BT: Tensor, mtp_weight: float, balance: float) -> Losses:
    """Next token + λ · the one after it (V3, eq. 24-25) + α · balance of the experts (eq. 17).

    Args:
        mtp_weight: λ. balance: α.
    """
    routing = Routing(sequences=len(ids_BT) if balance else 0) if model.config.moe else None
    states = model.hidden(ids_BT[:, :-1], routing=routing)
    total = main = _mean_loss(model, states, ids_BT[:, 1:])
    mtp = None
    if model.config.mtp_depth:
        ahead = model.mtp_hidden(states[:, :-1], ids_BT[:, 1:-1], routing=routing)
        mtp = _mean_loss(model, ahead, ids_BT[:, 2:])
        total = total + mtp_weight * mtp
    if routing and balance:
        total = total + balance * routing.loss
    return Losses(total, main, mtp, routing)


def pretrain(
    model: Transformer,
    optimizer: MasterAdamW,
    shards: Windows,
    config: PretrainConfig,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every update from `start` (updates already done) to `config.steps`.

    The batch of a step and its learning rate are functions of the step alone, so a caller that
    restores model and optimizer and passes `start` continues bit for bit.

    Args:
        shards: windows of `config.context` tokens; while the context grows they are cut into shorter ones.
        folder: where an offending batch is saved if the loss or gradient goes bad.
    """
    device = model.head_weight.device
    model.set_dropout(config.dropout)
    model.train()
    for step in range(start, config.steps):
        began = time.perf_counter()
        ids_BT = torch.from_numpy(cut_windows(shards.batch(step, config.rows), config.context_at(step))).to(device)
        torch.manual_seed(step)  # dropout is the only user of the global generator
        found = pretraining_loss(model, ids_BT, config.mtp_weight_at(step), config.balance_loss)
        check = partial(check_finite, step=step + 1, batch=ids_BT.tolist(), folder=folder)
        check(float(found.total.detach()), "loss")
        torch.autograd.backward(found.total)
        lr = learning_rate(step, config.steps, config.lr, config.warmup, config.schedule, config.final_lr)
        norm = optimizer.step(lr, config.max_grad_norm, partial(check, name="gradient norm"))
        also = {} if found.mtp is None else {"pretrain/mtp_loss": float(found.mtp.detach())}
        if found.routing:
            also |= balance_experts(model, found.routing, config.bias_rate)
        yield TrainStep(
            step + 1,
            {
                "pretrain/loss": float(found.next_token.detach()),
                "pretrain/lr": lr,
                "pretrain/grad_norm": norm,
                "pretrain/tokens": float((step + 1) * config.rows * config.context),
                "pretrain/tokens_per_second": config.rows * config.context / (time.perf_counter() - began),
            }
            | ({"pretrain/context": float(config.context_at(step))} if config.context_steps else {})
            | also,
        )


@torch.inference_mode()
def held_out_loss(model: Transformer, shards: PackedShards, rows: int, batches: int) -> float:
    """Mean loss in nats per token over the first `batches` batches of a held-out folder."""
    was_training = model.training
    model.eval()
    device = model.head_weight.device
    losses = [
        float(next_token_loss(model, torch.from_numpy(shards.batch(step, rows)).to(device))) for step in range(batches)
    ]
    model.train(was_training)
    return sum(losses) / len(losses)


@dataclass(frozen=True)
class HeldOutText:
    """How well a model predicts a text: nats over its tokens, and the bytes those tokens stand for."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Total nats / ln 2 / UTF-8 bytes: what the text costs whatever the tokenizer.

        Example:
            >>> HeldOutText(nats=100 * math.log(2), tokens=20, bytes=50).bits_per_byte
            2.0
        """
        return self.nats / math.log(2) / max(1, self.bytes)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(1, self.tokens)

    def __add__(self, other: HeldOutText) -> HeldOutText:
        return HeldOutText(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


@torch.inference_mode()
def held_out_text(
    model: Transformer,
    text: TokenFolder,
    bytes_V: NDArray[np.int64],
    end_id: int,
    context: int,
    limit: int | None = None,
    rows: int = 32,
) -> HeldOutText:
    """Predict every token of a text once, each from the `context` tokens before it, less where the window moves.

    Windows of `context` tokens move by a quarter of it, and only what is new in a window is counted: a token
    has at least three quarters of the context, or all that stands before it. The text's first token follows the
    end token. Tokens that stand for no bytes (the end of a document) are seen but not counted.

    Args:
        bytes_V: bytes of each id, from `token_bytes`.
        limit: only the first `limit` tokens; None for all.
        rows: windows per forward pass.
    """
    was_training = model.training
    model.eval()
    device = model.head_weight.device
    total = HeldOutText(0.0, 0, 0)
    ends = _window_ends(min(text.tokens, limit or text.tokens), context)
    while batch := list(islice(ends, rows)):
        ids_BT = torch.stack([_window(text, end, context, end_id) for end, _ in batch])
        news = torch.tensor([new for _, new in batch])
        hidden, targets = model.hidden(ids_BT[:, :-1].to(device)), ids_BT[:, 1:].to(device)
        logprobs_N, _ = state_logprobs(hidden.flatten(0, 1), model.head_weight, targets.flatten())
        logprobs_BT = logprobs_N.view_as(targets).double().cpu()
        sizes_BT = torch.from_numpy(bytes_V)[ids_BT[:, 1:]]
        places = torch.arange(ids_BT.shape[1] - 1)
        counted_BT = (places >= len(places) - news[:, None]) & (sizes_BT > 0)
        nats = -float(logprobs_BT[counted_BT].sum())
        total += HeldOutText(nats, int(counted_BT.sum()), int(sizes_BT[counted_BT].sum()))
    model.train(was_training)
    return total


def _window_ends(tokens: int, context: int) -> Iterator[tuple[int, int]]:
    """(position after a window, tokens of it that no earlier window held).

    Example:
        >>> list(_window_ends(11, 8))
        [(8, 8), (10, 2), (11, 1)]
    """
    done = 0
    while done < tokens:
        end = min(tokens, max(context, done + max(1, context // 4)))
        yield end, end - done
        done = end


def _window(text: TokenFolder, end: int, context: int, end_id: int) -> Tensor:
    """The `context` tokens before position `end` and the one before them; the end token stands before the text."""
    start = end - context - 1
    ids = torch.from_numpy(text.read(max(0, start), end - max(0, start)))
    return ids if start >= 0 else torch.cat((torch.tensor([end_id]), ids))
