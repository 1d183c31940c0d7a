"""Causal attention for training: torch's fused kernel on accelerators, chunked matmuls on CPU.

Legend: B rows, T tokens, K key/value heads, G query heads per key/value head, d head width, v width of a value.

On CPU `scaled_dot_product_attention`'s backward in bf16 costs twice what the plain matrix
products cost (docs/log.md, 2026-11-21), so there the products are written out: queries in chunks,
each seeing only the keys at or before its end, probabilities kept for the backward pass.
Tests hold both paths to equality.

Several texts packed into one row are kept apart by a `SegmentMask`, made once for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
"""Queries per chunk on CPU; 64 beat 32, 128 and 256 at T = 256."""


@dataclass(frozen=True)
class SegmentMask:
    """Which keys a query of a packed row may see: those before it in its own segment."""

    visible: Tensor | None
    """(B, 1, T, T) bool, for `scaled_dot_product_attention`; None on CPU."""
    chunks: tuple[tuple[int, Tensor], ...] = ()
    """On CPU, per chunk of queries: the first key any of them sees, and what is added to the scores from that key
    to the chunk's end, (B, queries, keys) of 0 and -inf."""


def segment_mask(segments_BT: Tensor, dtype: torch.dtype) -> SegmentMask:
    """The mask of rows whose tokens carry the number of their segment; a segment's tokens stand side by side.

    Args:
        segments_BT: integers; padding is a segment like another.
        dtype: of the scores.
    """
    T = segments_BT.shape[1]
    if segments_BT.device.type != "cpu":
        return SegmentMask(visible_keys(segments_BT))
    chunks = []
    for start in range(0, T, CHUNK):
        end = min(T, start + CHUNK)
        # A row's tokens of its first query's segment begin at the first place where the numbers agree.
        first = int((segments_BT[:, : start + 1] == segments_BT[:, start : start + 1]).int().argmax(1).min())
        visible = segments_BT[:, start:end, None] == segments_BT[:, None, first:end]
        visible = visible.tril(start - first)
        bias = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
        chunks.append((first, bias))
    return SegmentMask(None, tuple(chunks))


def visible_keys(segments_BT: Tensor) -> Tensor:
    """(B, 1, T, T) bool: may the query of a place (third axis) see the key of another (fourth)?

    Example:
        >>> visible_keys(torch.tensor([[1, 1, 2]]))[0, 0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    return (segments_BT[:, :, None] == segments_BT[:, None, :]).tril()[:, None]


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T scale + causal mask) v.

    Args:
        q: (B, K·G, T, d).
        k, v: (B, K, T, d) and (B, K, T, v).
        mask: of packed rows; None where a row is one text.
        scale: 1/√d by default.
    Returns:
        (B, K·G, T, v).
    """
    B, heads, T, d = q.shape
    kv_heads = k.shape[1]
    scale = d**-0.5 if scale is None else scale
    if q.device.type != "cpu":
        gqa = kv_heads != heads
        if mask is not None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.visible, enable_gqa=gqa, scale=scale)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa, scale=scale)
    grouped = q.reshape(B, kv_heads, heads // kv_heads, T, d)
    out: Tensor = _ChunkedCausal.apply(grouped, k, v, mask, scale)  # type: ignore[no-untyped-call]
    return out.reshape(B, heads, T, v.shape[-1])


@lru_cache(maxsize=256)
def _causal_bias(start: int, end: int, groups: int, dtype: torch.dtype) -> Tensor:
    """(1, groups·(end-start), end): -inf above the diagonal of each query head's block."""
    future = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
    bias = torch.zeros(end - start, end, dtype=dtype).masked_fill_(future, float("-inf"))
    return bias.repeat(groups, 1)[None]


class _ChunkedCausal(torch.autograd.Function):
    """Forward and backward by batched matmuls over query chunks."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask | None, scale: float) -> Tensor:
        B, K, G, T, d = q.shape
        wide = v.shape[-1]
        keys, values = k.reshape(B * K, T, d), v.reshape(B * K, T, wide)
        out = torch.empty(B, K, G, T, wide, dtype=q.dtype)
        probabilities = []
        # The first key that a chunk sees: 0, unless the rows are packed.
        firsts = [0 if mask is None else mask.chunks[n][0] for n in range(-(-T // CHUNK))]
        for number, start in enumerate(range(0, T, CHUNK)):
            end, first = min(T, start + CHUNK), firsts[number]
            queries = q[:, :, :, start:end].reshape(B * K, G * (end - start), d)
            seen = keys[:, first:end].transpose(1, 2)
            if mask is None:
                scores = torch.baddbmm(_causal_bias(start, end, G, q.dtype), queries, seen, alpha=scale)
            else:
                scores = torch.bmm(queries * scale, seen)
                scores.view(B, K, G, end - start, end - first).add_(mask.chunks[number][1][:, None, None])
            p = torch.softmax(scores, -1)
            out[:, :, :, start:end] = torch.bmm(p, values[:, first:end]).view(B, K, G, end - start, wide)
            probabilities.append(p)
        ctx.firsts, ctx.scale = firsts, scale
        ctx.save_for_backward(q, keys, values, *probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, keys, values, *probabilities = ctx.saved_tensors
        grad_out = grad_outputs[0]
        B, K, G, T, d = q.shape
        wide = values.shape[-1]
        grad_q = torch.empty_like(q)
        # fp32 sums: every chunk adds to the gradient of the keys it saw.
        grad_k = torch.zeros(B * K, T, d, dtype=torch.float32)
        grad_v = torch.zeros(B * K, T, wide, dtype=torch.float32)
        for p, first, start in zip(probabilities, ctx.firsts, range(0, T, CHUNK), strict=True):
            end = min(T, start + CHUNK)
            rows = G * (end - start)
            queries = q[:, :, :, start:end].reshape(B * K, rows, d)
            grad_chunk = grad_out[:, :, :, start:end].reshape(B * K, rows, wide)
            grad_v[:, first:end] += torch.bmm(p.transpose(1, 2), grad_chunk)
            grad_p = torch.bmm(grad_chunk, values[:, first:end].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_chunk_q = torch.bmm(grad_s, keys[:, first:end]).mul_(ctx.scale)
            grad_q[:, :, :, start:end] = grad_chunk_q.view(B, K, G, end - start, d)
            grad_k[:, first:end] += torch.bmm(grad_s.transpose(1, 2), queries)
        grad_k = grad_k.mul_(ctx.scale).to(q.dtype)
        return grad_q, grad_k.view(B, K, T, d), grad_v.to(q.dtype).view(B, K, T, wide), None, None
