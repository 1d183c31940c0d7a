"""Grouped-query attention (Ainslie et al. 2023): Qwen2 with biases on q, k, v; Llama without; Qwen3 with normed q and k.

Legend: B rows, T tokens, N = B·T, D width, H query heads, K key/value heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.attention import SegmentMask, causal_attention
from dunwu.model.cache import KVCache, cached_attention
from dunwu.model.config import ModelConfig
from dunwu.model.layers import Linear, RMSNorm
from dunwu.model.rope import score_scale, turn
from dunwu.native import train as native


class Attention(nn.Module):
    """Causal grouped-query attention with RoPE."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.scale = score_scale(config)
        width, q, kv = config.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(width, q, bias=config.qkv_bias)
        self.k_proj = Linear(width, kv, bias=config.qkv_bias)
        self.v_proj = Linear(width, kv, bias=config.qkv_bias)
        self.o_proj = Linear(q, width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int, mask: SegmentMask | None = None
    ) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = turn(q.transpose(1, 2), cos, sin), turn(k.transpose(1, 2), cos, sin)
        if cache is None:
            y = causal_attention(q, k, v, mask, self.scale)
        else:
            y = cached_attention(q, *cache.append(layer, k, v), self.scale)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, -1))
        return out

    def packed(self, x_ND: Tensor, layout: native.Layout) -> Tensor:
        """(N, D) → (N, D); one product for queries, keys and values."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([projection.full_weight() for projection in projections])
        bias = None if self.q_proj.bias is None else torch.cat([projection.bias for projection in projections])
        qkv = F.linear(x_ND, weight, bias)
        if self.qk_norm:
            qkv = self._normed(qkv)
        out: Tensor = self.o_proj(native.attention(qkv, layout))
        return out

    def _normed(self, qkv: Tensor) -> Tensor:
        """(N, (H + 2K)·d) with q and k normed head by head."""
        heads = qkv.view(len(qkv), -1, self.head_dim)
        q, k, v = torch.split(heads, [self.heads, self.kv_heads, self.kv_heads], 1)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), dim=1).view_as(qkv)
