"""The decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU.

Each part has a `forward` in plain torch, for any device, with or without a cache, and a `packed`
one on (N, D) tokens in segments, from the C kernels of `native/train.py`. `hidden` takes the
second where it can; tests hold them to equality, in value and gradient.

Legend: B rows, T tokens of this call, N = B·T, S cached columns, D width, H query heads,
K key/value heads, V vocabulary. Parameter names equal Hugging Face's Qwen2, so a
state dict needs no renaming. Not covered: sliding windows, attention dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.attention import SegmentMask, causal_attention, segment_mask
from dunwu.model.config import ModelConfig
from dunwu.model.rope import rope_tables, turn
from dunwu.native import train as native


class KVCache:
    """Keys and values of every layer for B rows, filled from the left up to `length` columns.

    Rows are left-padded: `pad_B` columns at the start of each row hold nothing and are
    masked. Layout (L, B, K, S, head_dim): one decode step writes one column of all rows.
    """

    def __init__(self, config: ModelConfig, pad_B: Tensor, capacity: int, dtype: torch.dtype) -> None:
        shape = (config.num_layers, len(pad_B), config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=pad_B.device)
        self.values = torch.empty(shape, dtype=dtype, device=pad_B.device)
        self.pad_B = pad_B
        self.length = 0
        columns = torch.arange(capacity, device=pad_B.device)
        self.bias_BS = torch.zeros(len(pad_B), capacity, dtype=dtype, device=pad_B.device)
        self.bias_BS.masked_fill_(columns[None, :] < pad_B[:, None], float("-inf"))

    def positions(self, T: int) -> Tensor:
        """(B, T) RoPE positions of the next T tokens of every row."""
        columns = torch.arange(T, device=self.pad_B.device)[None]
        return (columns + self.length - self.pad_B[:, None]).clamp_(min=0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write a layer's keys and values (B, K, T, head_dim) behind what is there.

        Returns:
            keys and values (B, K, S, head_dim) to attend to, and what is added to their scores, (B, S).
        """
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end], self.bias_BS[:, :end]

    def advance(self, T: int) -> None:
        """The T tokens now stand in all layers."""
        self.length += T

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows, in this order; copies only the filled columns."""
        filled = self.length
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(old.shape[0], len(rows), *old.shape[2:])
            for layer in range(old.shape[0]):
                new[layer, :, :, :filled] = old[layer, :, :, :filled].index_select(0, rows)
            setattr(self, name, new)
        self.pad_B = self.pad_B[rows]
        self.bias_BS = self.bias_BS[rows]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, statistics in fp32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def positions_in(segments_BT: Tensor) -> Tensor:
    """(B, T) place of every token in its own segment.

    Example:
        >>> positions_in(torch.tensor([[1, 1, 1, 2, 2, 0]])).tolist()
        [[0, 1, 2, 0, 1, 0]]
    """
    places = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    begins = torch.ones_like(segments_BT, dtype=torch.bool)
    begins[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return places - places.where(begins, torch.zeros_like(places)).cummax(1).values


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023), biases on q, k, v as in Qwen2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width, kv = config.hidden_size, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, kv)
        self.v_proj = nn.Linear(width, kv)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int, mask: SegmentMask | None = None
    ) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        y = causal_attention(q, k, v, mask) if cache is None else self._attend_cache(q, k, v, cache, layer)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, -1))
        return out

    def packed(self, x_ND: Tensor, layout: native.Layout) -> Tensor:
        """(N, D) → (N, D); one product for queries, keys and values."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        out: Tensor = self.o_proj(native.attention(F.linear(x_ND, weight, bias), layout))
        return out

    def _attend_cache(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Append k, v at `cache.length` and attend to all filled columns.

        One batched matmul per key/value head, the group's query heads side by side: on CPU this
        beats scaled_dot_product_attention at query length 1 several times.
        """
        B, _, T, hd = q.shape
        keys, values, bias_BS = cache.append(layer, k, v)
        end = keys.shape[2]
        group = self.heads // self.kv_heads
        q = (q * hd**-0.5).reshape(B, self.kv_heads, group * T, hd)
        scores = (q @ keys.transpose(-1, -2)).view(B, self.kv_heads, group, T, end)
        scores = scores + bias_BS[:, None, None, None]
        if T > 1:
            future = torch.ones(T, end, dtype=torch.bool, device=q.device).triu(end - T + 1)
            scores = scores.masked_fill(future, float("-inf"))
            # A padded query sees nothing; give it zeros, not NaN.
            weights = scores.softmax(-1, dtype=torch.float32).nan_to_num(0.0).to(q.dtype)
        else:
            weights = scores.softmax(-1)
        y = weights.view(B, self.kv_heads, group * T, end) @ values
        return y.view(B, self.heads, T, hd)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out

    def packed(self, x_ND: Tensor) -> Tensor:
        """(N, D) → (N, D); one product for gate and up."""
        out: Tensor = self.down_proj(
            native.swiglu(F.linear(x_ND, torch.cat([self.gate_proj.weight, self.up_proj.weight])))
        )
        return out


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    dropout = 0.0
    """Share of each residual branch's channels set to zero in training mode; see `Transformer.set_dropout`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int, mask: SegmentMask | None = None
    ) -> Tensor:
        x = x + self._drop(self.self_attn(self.input_layernorm(x), cos, sin, cache, layer, mask))
        out: Tensor = x + self._drop(self.mlp(self.post_attention_layernorm(x)))
        return out

    def packed(self, h_ND: Tensor, branch_ND: Tensor | None, layout: native.Layout, rows: int) -> tuple[Tensor, Tensor]:
        """The residual stream is h + branch, before and after; the sum is made inside the next norm.

        Args:
            rows: B, for dropout.
        """
        before, after = self.input_layernorm, self.post_attention_layernorm
        h_ND, y_ND = native.norm(h_ND, branch_ND, before.weight, before.eps)
        branch = self._drop_packed(self.self_attn.packed(y_ND, layout), rows)
        h_ND, y_ND = native.norm(h_ND, branch, after.weight, after.eps)
        return h_ND, self._drop_packed(self.mlp.packed(y_ND), rows)

    def _drop_packed(self, branch_ND: Tensor, rows: int) -> Tensor:
        if not self.training or self.dropout == 0.0:
            return branch_ND
        return self._drop(branch_ND.view(rows, -1, branch_ND.shape[-1])).view_as(branch_ND)

    def _drop(self, branch_BTD: Tensor) -> Tensor:
        """Dropout with one mask for all tokens of a row (Gal & Ghahramani 2016): drawing a mask per token
        would cost a quarter of a training step on CPU."""
        if not self.training or self.dropout == 0.0:
            return branch_BTD
        B, _, D = branch_BTD.shape
        return branch_BTD * F.dropout(branch_BTD.new_ones(B, 1, D), self.dropout)


def rows_of(B: int, T: int) -> list[native.Segment]:
    """Every row of (B, T) as one segment.

    Example:
        >>> [(s.start, s.end) for s in rows_of(2, 3)]
        [(0, 3), (3, 6)]
    """
    return [native.Segment(b * T, (b + 1) * T) for b in range(B)]


def segments_of(segments_BT: Tensor) -> list[native.Segment]:
    """The texts packed into rows, as segments of the rows laid end to end; padding is a segment like another.

    Example:
        >>> [(s.start, s.end) for s in segments_of(torch.tensor([[1, 1, 2], [1, 0, 0]]))]
        [(0, 2), (2, 3), (3, 4), (4, 6)]
    """
    begins = torch.ones_like(segments_BT, dtype=torch.bool)
    begins[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts = begins.flatten().nonzero().flatten().tolist()
    return [native.Segment(start, end) for start, end in zip(starts, [*starts[1:], segments_BT.numel()])]


class Decoder(nn.Module):
    """Everything below the output head; Hugging Face calls it `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A causal language model.

    Example:
        >>> model = Transformer(ModelConfig(vocab_size=32, hidden_size=32, num_heads=2, num_layers=1))
        >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 32])
    """

    native_allowed = True
    """False keeps its layers and its sampling to plain torch, whatever the machine could do."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) output matrix."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def set_dropout(self, share: float) -> None:
        """Dropout on the two residual branches of every block, in training mode only; no part of a saved model."""
        for part in self.modules():
            if isinstance(part, Block):
                part.dropout = share

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, initializer_range); projections into the residual are scaled by 1/sqrt(2L) (GPT-2)."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0 if "norm" in name else 0.0)
                continue
            scale = (2 * self.config.num_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            parameter.normal_(0.0, std * scale, generator=generator)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Final normed states (B, T, D).

        Args:
            ids_BT: token ids.
            positions_BT: RoPE positions; default 0..T-1 (of each segment, if there are some), or what follows in
                the cache per row.
            cache: if given, the T tokens are appended to it and attend to what it holds.
            segments_BT: numbers of the texts packed into a row, each text's tokens side by side: a token attends
                to its own text only. Not with a cache.

        Raises:
            ValueError: segments and a cache.
        """
        B, T = ids_BT.shape
        if segments_BT is not None and cache is not None:
            raise ValueError("packed rows have no cache")
        if cache is None and positions_BT is None and self.native:
            segments = segments_of(segments_BT) if segments_BT is not None else rows_of(B, T)
            return self.packed(ids_BT.reshape(-1), segments, rows=B).view(B, T, -1)
        if positions_BT is None and segments_BT is not None:
            positions_BT = positions_in(segments_BT)
        if positions_BT is None:
            positions_BT = torch.arange(T, device=ids_BT.device)[None] if cache is None else cache.positions(T)
        x = self.model.embed_tokens(ids_BT)
        cos, sin = rope_tables(positions_BT, self.config, x.dtype)
        mask = None if segments_BT is None else segment_mask(segments_BT, x.dtype)
        for layer, block in enumerate(self.model.layers):
            x = block(x, cos, sin, cache, layer, mask)
        if cache is not None:
            cache.advance(T)
        out: Tensor = self.model.norm(x)
        return out

    def packed(self, ids_N: Tensor, segments: Sequence[native.Segment], rows: int = 1) -> Tensor:
        """Final normed states (N, D) of tokens in segments, which may share prefixes. Only where `native` is true.

        Args:
            ids_N: token ids, all segments one after the other.
            rows: equal parts of the tokens that share a dropout mask each.
        """
        longest = max(s.end - s.start + s.prefix_end - s.prefix_start for s in segments)
        shape = self.config
        layout = native.Layout(segments, shape.num_heads, shape.num_kv_heads, shape.head_dim, *self.rope(longest))
        h_ND, branch = self.model.embed_tokens(ids_N), None
        for block in self.model.layers:
            assert isinstance(block, Block)
            h_ND, branch = block.packed(h_ND, branch, layout, rows)
        out: Tensor = native.norm(h_ND, branch, self.model.norm.weight, self.model.norm.eps)[1]
        return out

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """RoPE's cos and sin, (length, head_dim / 2), float32, for the native kernels."""
        shape = self.config
        tables = rope_tables(torch.arange(length)[None], shape, torch.float32)
        cos, sin = (table[0, 0, :, : shape.head_dim // 2] for table in tables)
        return cos, sin

    @property
    def native(self) -> bool:
        """Whether this model, as it is and on this machine, is computed by the C kernels."""
        shape, weight = self.config, self.head_weight
        if weight.device.type != "cpu" or not self.native_allowed:
            return False
        return native.supports(
            weight.dtype,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.hidden_size,
            shape.intermediate_size,
        )

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V)."""
        return F.linear(self.hidden(ids_BT, positions_BT, cache), self.head_weight)
