"""Next-token training on packed shards: a generator of steps, resumable at any of them.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.data.shards import PackedShards
from dunwu.model.transformer import Transformer
from dunwu.train.config import PretrainConfig
from dunwu.train.losses import token_logprobs
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.steps import TrainStep, check_finite


def next_token_loss(model: Transformer, ids_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ids[:, 1:] given what stands before; logits in fp32."""
    hidden = model.hidden(ids_BT[:, :-1])
    logprobs, _ = token_logprobs(F.linear(hidden, model.head_weight), ids_BT[:, 1:])
    return -logprobs.mean()


def pretrain(
    model: Transformer,
    optimizer: MasterAdamW,
    shards: PackedShards,
    config: PretrainConfig,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every update from `start` (updates already done) to `config.steps`.

    The batch of a step and its learning rate are functions of the step alone, so a caller that
    restores model and optimizer and passes `start` continues bit for bit.

    Args:
        folder: where an offending batch is saved if the loss or gradient goes bad.
    """
    device = model.head_weight.device
    model.train()
    for step in range(start, config.steps):
        began = time.perf_counter()
        ids_BT = torch.from_numpy(shards.batch(step, config.rows)).to(device)
        torch.manual_seed(step)  # dropout is the only user of the global generator
        loss = next_token_loss(model, ids_BT)
        check_finite(float(loss.detach()), "loss", step + 1, ids_BT.tolist(), folder)
        torch.autograd.backward(loss)
        lr = learning_rate(step, config.steps, config.lr, config.warmup, config.schedule, config.final_lr)
        norm = optimizer.step(lr, config.max_grad_norm)
        check_finite(norm, "gradient norm", step + 1, ids_BT.tolist(), folder)
        yield TrainStep(
            step + 1,
            {
                "pretrain/loss": float(loss.detach()),
                "pretrain/lr": lr,
                "pretrain/grad_norm": norm,
                "pretrain/tokens": float((step + 1) * config.rows * config.context),
                "pretrain/tokens_per_second": config.rows * config.context / (time.perf_counter() - began),
            },
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
