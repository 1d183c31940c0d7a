"""Multi-head latent attention with decoupled RoPE (DeepSeek-V2, 2.1; V3, 2.1.1, eq. 1-11).

Keys and values of all heads are made from one latent of `kv_rank` numbers; position comes in by a second, small part of
queries and keys, whose key is shared by all heads. Only latent and shared key stand in the cache. Three ways to compute the
same:

    training      keys and values are expanded from the latents of the tokens at hand
    many tokens   into a cache: latents are stored, keys and values expanded from all that stand there
    few tokens    absorbed: the map latent → key goes into the query, latent → value behind the sum over tokens, so heads
                  attend to the latents themselves, as to one shared key/value head, and nothing is expanded

Legend: B rows, T tokens, N = B·T, S cached columns, D width, H heads, c kv_rank, n nope_dim, r rope_dim, v value_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.attention import SegmentMask, causal_attention
from dunwu.model.cache import KVCache, cached_attention
from dunwu.model.config import MlaShape, ModelConfig
from dunwu.model.layers import Linear, RMSNorm
from dunwu.model.rope import apart, score_scale, turn
from dunwu.native import train as native

LATENT_EPS = 1e-6
"""ε of the norms of the latents: fixed in DeepSeek's code and transformers', whatever `rms_norm_eps` is."""
FEW = 8
"""New tokens of a call up to which the absorbed way is taken."""


class LatentAttention(nn.Module):
    """Causal attention through latents."""

    few = FEW
    """0 never absorbs; for tests and measurements."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = config.mla
        assert shape is not None
        width, self.heads, self.shape = config.hidden_size, config.num_heads, shape
        self.scale = score_scale(config)
        queries = self.heads * shape.query_dim
        if shape.q_rank:
            self.q_a_proj = Linear(width, shape.q_rank, bias=False)
            self.q_a_layernorm = RMSNorm(shape.q_rank, LATENT_EPS)
            self.q_b_proj = Linear(shape.q_rank, queries, bias=False)
        else:
            self.q_proj = Linear(width, queries, bias=False)
        self.kv_a_proj_with_mqa = Linear(width, shape.kv_rank + shape.rope_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(shape.kv_rank, LATENT_EPS)
        self.kv_b_proj = Linear(shape.kv_rank, self.heads * (shape.nope_dim + shape.value_dim), bias=False)
        self.o_proj = Linear(self.heads * shape.value_dim, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int, mask: SegmentMask | None = None
    ) -> Tensor:
        B, T, _ = x.shape
        shape = self.shape
        q = self._queries(x).view(B, T, self.heads, shape.query_dim).transpose(1, 2)
        q_nope, q_rope = torch.split(q, [shape.nope_dim, shape.rope_dim], -1)
        latent, key = torch.split(self.kv_a_proj_with_mqa(x), [shape.kv_rank, shape.rope_dim], -1)
        latent, key = self.kv_a_layernorm(latent)[:, None], key[:, None]  # (B, 1, T, ·): one head for all
        if shape.rope_interleave:
            q_rope, key = apart(q_rope), apart(key)
        q_rope, key = turn(q_rope, cos, sin), turn(key, cos, sin)
        if cache is None:
            k, v = self._expand(latent, key)
            y = causal_attention(torch.cat((q_nope, q_rope), -1), k, v, mask, self.scale)
        else:
            keys, latents, bias = cache.append(layer, torch.cat((latent, key), -1))
            if self.few < T:
                k, v = self._expand(latents, keys[..., shape.kv_rank :])
                y = cached_attention(torch.cat((q_nope, q_rope), -1), k, v, bias, self.scale)
            else:
                y = self._absorbed(q_nope, q_rope, keys, latents, bias)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, -1))
        return out

    def _queries(self, x: Tensor) -> Tensor:
        """(…, D) → (…, H·(n + r)), not yet turned."""
        if self.shape.q_rank:
            x = self.q_a_layernorm(self.q_a_proj(x))
        out: Tensor = (self.q_b_proj if self.shape.q_rank else self.q_proj)(x)
        return out

    def _expand(self, latents: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, S, n + r) and values (B, H, S, v) from latents (B, 1, S, c) and turned shared keys (B, 1, S, r)."""
        B, _, S, _ = latents.shape
        both = self.kv_b_proj(latents).view(B, S, self.heads, -1).transpose(1, 2)
        nope, v = torch.split(both, [self.shape.nope_dim, self.shape.value_dim], -1)
        return torch.cat((nope, key.expand(B, self.heads, S, self.shape.rope_dim)), -1), v

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, keys: Tensor, latents: Tensor, bias: Tensor) -> Tensor:
        """(q W_k) c = q (W_k c): queries of c + r numbers against the columns as they stand; (B, H, T, v)."""
        weight = self.kv_b_proj.full_weight().view(self.heads, -1, self.shape.kv_rank)
        to_key, to_value = torch.split(weight, [self.shape.nope_dim, self.shape.value_dim], 1)
        # einsum lays heads outermost; a plain product would copy the matrices for every row.
        q = torch.cat((torch.einsum("bhtn,hnc->bhtc", q_nope, to_key), q_rope), -1)
        y = cached_attention(q, keys, latents, bias, self.scale)
        return torch.einsum("bhtc,hvc->bhtv", y, to_value)

    # ---- over the C kernels

    @property
    def packed_dim(self) -> int:
        """Width of a head in the kernels, which want it equal for queries and values."""
        return max(self.shape.query_dim, self.shape.value_dim)

    def packed(self, x_ND: Tensor, layout: native.Layout) -> Tensor:
        """(N, D) → (N, D), by the kernel for plain heads with RoPE over their whole width.

        That kernel turns pairs (i, i + w/2) of all w numbers. So a head's numbers are laid out as [r₁ n₁ | r₂ n₂], where r₁, r₂
        are the halves that RoPE turns and n₁, n₂ any halves of the rest, for which `packed_tables` has angle 0. The same order in
        queries and keys leaves their product as it is; it is made by reordering rows of the matrices.
        """
        shape, N, H, w = self.shape, len(x_ND), self.heads, self.packed_dim
        inner = self.q_a_layernorm(self.q_a_proj(x_ND)) if shape.q_rank else x_ND
        matrix = (self.q_b_proj if shape.q_rank else self.q_proj).full_weight().view(H, shape.query_dim, -1)
        order = self._order(x_ND.device)
        # The kernel multiplies scores by w^-½.
        q = F.linear(inner, (matrix[:, order] * (self.scale * w**0.5)).flatten(0, 1)).view(N, H, -1)
        latent, key = torch.split(self.kv_a_proj_with_mqa(x_ND), [shape.kv_rank, shape.rope_dim], -1)
        both = self.kv_b_proj(self.kv_a_layernorm(latent)).view(N, H, -1)
        nope, v = torch.split(both, [shape.nope_dim, shape.value_dim], -1)
        k = torch.cat((nope, key[:, None].expand(N, H, shape.rope_dim)), -1)[..., order]
        qkv = torch.cat((self._wide(q), self._wide(k), F.pad(v, (0, w - shape.value_dim))), dim=1)
        y = native.attention(qkv.view(N, -1), layout).view(N, H, w)[..., : shape.value_dim]
        out: Tensor = self.o_proj(y.reshape(N, -1))
        return out

    def _order(self, device: torch.device) -> Tensor:
        """Places in a head [nope, rope] of the numbers of [r₁ n₁ r₂ n₂]."""
        n, r = self.shape.nope_dim, self.shape.rope_dim
        rope = torch.arange(n, n + r, device=device)
        rope = apart(rope) if self.shape.rope_interleave else rope
        nope = torch.arange(n, device=device)
        return torch.cat((rope[: r // 2], nope[: n // 2], rope[r // 2 :], nope[n // 2 :]))

    def _wide(self, x: Tensor) -> Tensor:
        """(N, H, n + r) → (N, H, w): zeros behind each half."""
        room = self.packed_dim - self.shape.query_dim
        if not room:
            return x
        return F.pad(x.view(*x.shape[:2], 2, -1), (0, room // 2)).flatten(-2)


def packed_tables(shape: MlaShape, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE's tables (P, r/2) widened to (P, w/2) for `LatentAttention.packed`: angle 0 where nothing is turned."""
    room = max(shape.query_dim, shape.value_dim) // 2 - shape.rope_dim // 2
    return F.pad(cos, (0, room), value=1.0), F.pad(sin, (0, room))
