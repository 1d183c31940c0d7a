"""The decoder: embedding, blocks, norm, head; one forward for training and decoding.

Each part has a `forward` in plain torch, for any device, with or without a cache, and a `packed`
one on (N, D) tokens in segments, from the C kernels of `native/train.py`. `hidden` takes the
second where it can; tests hold them to equality, in value and gradient.

Legend: B rows, T tokens of this call, N = B·T, D width, V vocabulary. Parameter names equal Hugging Face's, so a
state dict needs no renaming but for experts and MTP (`hf_weights.py`). Not covered: sliding windows, attention dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.attention import segment_mask
from dunwu.model.block import Block
from dunwu.model.cache import KVCache
from dunwu.model.config import ModelConfig
from dunwu.model.layers import RMSNorm
from dunwu.model.mla import LatentAttention, packed_tables
from dunwu.model.moe import Gate, Routing
from dunwu.model.mtp import MtpModule
from dunwu.model.rope import rope_tables
from dunwu.native import train as native


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
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.mtp_depth:
            self.mtp = MtpModule(config)


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

    @property
    def gates(self) -> list[Gate]:
        """The routers, from the bottom up; none in a dense model."""
        return [part for part in self.modules() if isinstance(part, Gate)]

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
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
            scale = (2 * self.config.num_layers) ** -0.5 if into_residual else 1
            parameter.normal_(0.0, std * scale, generator=generator)
        for buffer in self.buffers():  # routers' biases
            buffer.zero_()

    def new_cache(self, pad_B: Tensor, capacity: int) -> KVCache:
        """An empty cache for rows that are left-padded by `pad_B` columns."""
        return KVCache(self.config, pad_B, capacity, self.head_weight.dtype)

    def new_mtp_cache(self, pad_B: Tensor, capacity: int) -> KVCache:
        """The same for `mtp_hidden`."""
        layers = range(self.config.num_layers, self.config.num_layers + 1)
        return KVCache(self.config, pad_B, capacity, self.head_weight.dtype, layers)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments_BT: Tensor | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Final normed states (B, T, D).

        Args:
            ids_BT: token ids.
            positions_BT: RoPE positions; default 0..T-1 (of each segment, if there are some), or what follows in
                the cache per row.
            cache: if given, the T tokens are appended to it and attend to what it holds.
            segments_BT: numbers of the texts packed into a row, each text's tokens side by side: a token attends
                to its own text only. Not with a cache.
            routing: of a model with experts: takes what the routers choose, or tells them.

        Raises:
            ValueError: segments and a cache.
        """
        B, T = ids_BT.shape
        if segments_BT is not None and cache is not None:
            raise ValueError("packed rows have no cache")
        if cache is None and positions_BT is None and self.native:
            segments = segments_of(segments_BT) if segments_BT is not None else rows_of(B, T)
            return self.packed(ids_BT.reshape(-1), segments, rows=B, routing=routing).view(B, T, -1)
        if positions_BT is None and segments_BT is not None:
            positions_BT = positions_in(segments_BT)
        if positions_BT is None:
            positions_BT = torch.arange(T, device=ids_BT.device)[None] if cache is None else cache.positions(T)
        x = self.model.embed_tokens(ids_BT)
        cos, sin = rope_tables(positions_BT, self.config, x.dtype)
        mask = None if segments_BT is None else segment_mask(segments_BT, x.dtype)
        for block in self.model.layers:
            x = block(x, cos, sin, cache, mask, routing)
        if cache is not None:
            cache.advance(T)
        out: Tensor = self.model.norm(x)
        return out

    def mtp_hidden(
        self,
        states_BTD: Tensor,
        next_ids_BT: Tensor,
        cache: KVCache | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """States (B, T, D) that predict the token after `next_ids_BT`; only with `mtp_depth`.

        Args:
            states_BTD: what `hidden` gave for the tokens before `next_ids_BT`.
            cache: of `new_mtp_cache`; advanced here.
        """
        B, T, D = states_BTD.shape
        embedded = self.model.embed_tokens(next_ids_BT)
        if cache is None and self.native:
            layout = self._layout(rows_of(B, T))
            flat = (embedded.reshape(-1, D), states_BTD.reshape(-1, D))
            return self.model.mtp.packed(*flat, layout, B, routing).view(B, T, D)
        positions = torch.arange(T, device=next_ids_BT.device)[None] if cache is None else cache.positions(T)
        cos, sin = rope_tables(positions, self.config, embedded.dtype)
        out: Tensor = self.model.mtp(embedded, states_BTD, cos, sin, cache, None, routing)
        if cache is not None:
            cache.advance(T)
        return out

    def packed(
        self, ids_N: Tensor, segments: Sequence[native.Segment], rows: int = 1, routing: Routing | None = None
    ) -> Tensor:
        """Final normed states (N, D) of tokens in segments, which may share prefixes. Only where `native` is true.

        Args:
            ids_N: token ids, all segments one after the other.
            rows: equal parts of the tokens that share a dropout mask each.
        """
        layout = self._layout(segments)
        h_ND, branch = self.model.embed_tokens(ids_N), None
        for block in self.model.layers:
            assert isinstance(block, Block)
            h_ND, branch = block.packed(h_ND, branch, layout, rows, routing)
        out: Tensor = native.norm(h_ND, branch, self.model.norm.weight, self.model.norm.eps)[1]
        return out

    def _layout(self, segments: Sequence[native.Segment]) -> native.Layout:
        longest = max(s.end - s.start + s.prefix_end - s.prefix_start for s in segments)
        shape = self.config
        cos, sin = self.rope(longest)
        if shape.mla:
            cos, sin = packed_tables(shape.mla, cos, sin)
        heads, kv_heads, width = self._kernel_heads()
        return native.Layout(segments, heads, kv_heads, width, cos, sin)

    def _kernel_heads(self) -> tuple[int, int, int]:
        """Query heads, key/value heads and width of a head, as the attention kernel sees them."""
        attention = self.model.layers[0].self_attn
        if isinstance(attention, LatentAttention):
            return attention.heads, attention.heads, attention.packed_dim
        return self.config.num_heads, self.config.num_kv_heads, self.config.head_dim

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """RoPE's cos and sin, (length, rope_dim / 2), float32, for the native kernels."""
        shape = self.config
        tables = rope_tables(torch.arange(length)[None], shape, torch.float32)
        cos, sin = (table[0, 0, :, : shape.rope_dim // 2] for table in tables)
        return cos, sin

    @property
    def native(self) -> bool:
        """Whether this model, as it is and on this machine, is trained by the C kernels."""
        weight, shape = self.head_weight, self.config
        if weight.device.type != "cpu" or not self.native_allowed:
            return False
        heads, kv_heads, width = self._kernel_heads()
        inner = [shape.intermediate_size] if shape.moe is None or shape.moe.first_dense else []
        inner += [shape.moe.width, shape.moe.shared * shape.moe.width] if shape.moe else []
        odd = bool(shape.mla and shape.mla.nope_dim % 2)  # `LatentAttention.packed` halves it
        return not odd and native.supports(weight.dtype, heads, kv_heads, width, shape.hidden_size, *inner)

    @property
    def fixed_shapes(self) -> bool:
        """Whether a decoding step can have the same shapes every time, as CUDA graphs want; experts' follow the load."""
        return self.config.moe is None

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V)."""
        return F.linear(self.hidden(ids_BT, positions_BT, cache), self.head_weight)
