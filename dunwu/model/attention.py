"""Causal attention for training: torch's fused kernel on accelerators, chunked matmuls on CPU.

Legend: B rows, T tokens, K key/value heads, G query heads per key/value head, d head width.

On CPU `scaled_dot_product_attention`'s backward in bf16 costs twice what the plain matrix
products cost (docs/log.md, 2026-11-21), so there the products are written out: queries in chunks,
each seeing only the keys at or before its end, probabilities kept for the backward pass.
Tests hold both paths to equality.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Queries per chunk on CPU; 64 beat 32, 128 and 256 at T = 256."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + causal mask) v.

    Args:
        q: (B, K·G, T, d).
        k, v: (B, K, T, d).
    Returns:
        (B, K·G, T, d).
    """
    B, heads, T, d = q.shape
    kv_heads = k.shape[1]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != heads)
    grouped = q.reshape(B, kv_heads, heads // kv_heads, T, d)
    out: Tensor = _ChunkedCausal.apply(grouped, k, v)  # type: ignore[no-untyped-call]
    return out.reshape(B, heads, T, d)


@lru_cache(maxsize=256)
def _causal_bias(start: int, end: int, groups: int, dtype: torch.dtype) -> Tensor:
    """(1, groups·(end-start), end): -inf above the diagonal of each query head's block."""
    future = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
    bias = torch.zeros(end - start, end, dtype=dtype).masked_fill_(future, float("-inf"))
    return bias.repeat(groups, 1)[None]


class _ChunkedCausal(torch.autograd.Function):
    """Forward and backward by batched matmuls over query chunks."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, K, G, T, d = q.shape
        keys, values = k.reshape(B * K, T, d), v.reshape(B * K, T, d)
        out = torch.empty(B, K, G, T, d, dtype=q.dtype)
        probabilities = []
        for start in range(0, T, CHUNK):
            end = min(T, start + CHUNK)
            queries = q[:, :, :, start:end].reshape(B * K, G * (end - start), d)
            scores = torch.baddbmm(
                _causal_bias(start, end, G, q.dtype), queries, keys[:, :end].transpose(1, 2), alpha=d**-0.5
            )
            p = torch.softmax(scores, -1)
            out[:, :, :, start:end] = torch.bmm(p, values[:, :end]).view(B, K, G, end - start, d)
            probabilities.append(p)
        ctx.save_for_backward(q, keys, values, *probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, keys, values, *probabilities = ctx.saved_tensors
        grad_out = grad_outputs[0]
        B, K, G, T, d = q.shape
        grad_q = torch.empty_like(q)
        # fp32 sums: every chunk adds to the gradient of the keys it saw.
        grad_k = torch.zeros(B * K, T, d, dtype=torch.float32)
        grad_v = torch.zeros(B * K, T, d, dtype=torch.float32)
        for p, start in zip(probabilities, range(0, T, CHUNK), strict=True):
            end = min(T, start + CHUNK)
            rows = G * (end - start)
            queries = q[:, :, :, start:end].reshape(B * K, rows, d)
            grad_chunk = grad_out[:, :, :, start:end].reshape(B * K, rows, d)
            grad_v[:, :end] += torch.bmm(p.transpose(1, 2), grad_chunk)
            grad_p = torch.bmm(grad_chunk, values[:, :end].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, :, :, start:end] = torch.bmm(grad_s, keys[:, :end]).mul_(d**-0.5).view(B, K, G, end - start, d)
            grad_k[:, :end] += torch.bmm(grad_s.transpose(1, 2), queries)
        grad_k = grad_k.mul_(d**-0.5).to(q.dtype)
        return grad_q, grad_k.view(B, K, T, d), grad_v.to(q.dtype).view(B, K, T, d)
