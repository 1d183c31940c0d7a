"""The KV cache, and attention to what stands in it.

Legend: L layers, B rows, T new tokens, S filled columns, H query heads, K key/value heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dunwu.model.config import ModelConfig


class KVCache:
    """Keys and values of every layer for B rows, filled from the left up to `length` columns.

    Rows are left-padded: `pad_B` columns at the start of each row hold nothing and are masked. Layout
    (L, B, K, S, width): one decode step writes one column of all rows. With latent attention a column is the latent and
    the shared RoPE key, one "head" for all, and the values are a part of the keys.

    Args:
        layers: numbers of the blocks it is for; default: all but the module of `mtp_depth`, which runs at its own pace.
    """

    def __init__(
        self, config: ModelConfig, pad_B: Tensor, capacity: int, dtype: torch.dtype, layers: range | None = None
    ) -> None:
        layers = range(config.num_layers) if layers is None else layers
        self.first = layers.start
        if config.mla:
            heads, width, self.value_width = 1, config.mla.kv_rank + config.mla.rope_dim, config.mla.kv_rank
        else:
            heads, width, self.value_width = config.num_kv_heads, config.head_dim, config.head_dim
        shape = (len(layers), len(pad_B), heads, capacity, width)
        self.keys = torch.empty(shape, dtype=dtype, device=pad_B.device)
        self.values = None if config.mla else torch.empty(shape, dtype=dtype, device=pad_B.device)
        self.pad_B = pad_B
        self.length = 0
        columns = torch.arange(capacity, device=pad_B.device)
        self.bias_BS = torch.zeros(len(pad_B), capacity, dtype=dtype, device=pad_B.device)
        self.bias_BS.masked_fill_(columns[None, :] < pad_B[:, None], float("-inf"))

    def positions(self, T: int) -> Tensor:
        """(B, T) RoPE positions of the next T tokens of every row."""
        columns = torch.arange(T, device=self.pad_B.device)[None]
        return (columns + self.length - self.pad_B[:, None]).clamp_(min=0)

    def append(self, layer: int, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Write a layer's keys and values (B, K, T, width) behind what is there; no values where they are part of the keys.

        Returns:
            keys and values (B, K, S, width) to attend to, and what is added to their scores, (B, S).
        """
        layer, end = layer - self.first, self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        keys = self.keys[layer, :, :, :end]
        if self.values is None or v is None:
            return keys, keys[..., : self.value_width], self.bias_BS[:, :end]
        self.values[layer, :, :, self.length : end] = v
        return keys, self.values[layer, :, :, :end], self.bias_BS[:, :end]

    def advance(self, T: int) -> None:
        """The T tokens now stand in all layers; negative: the last ones are taken back."""
        self.length += T

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows, in this order; copies only the filled columns."""
        self.keys = self._selected(self.keys, rows)
        if self.values is not None:
            self.values = self._selected(self.values, rows)
        self.pad_B = self.pad_B[rows]
        self.bias_BS = self.bias_BS[rows]

    def _selected(self, old: Tensor, rows: Tensor) -> Tensor:
        new = old.new_empty(old.shape[0], len(rows), *old.shape[2:])
        for layer in range(old.shape[0]):
            new[layer, :, :, : self.length] = old[layer, :, :, : self.length].index_select(0, rows)
        return new


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, bias_BS: Tensor, scale: float) -> Tensor:
    """Attention of T new tokens to all S columns, the last T of which are their own.

    One batched matmul per key/value head, the group's query heads side by side: on CPU this beats
    scaled_dot_product_attention at query length 1 several times.

    Args:
        q: (B, H, T, width).
        keys, values: (B, K, S, width), the values' width may be another.
    Returns:
        (B, H, T, values' width).
    """
    B, H, T, width = q.shape
    K, S = keys.shape[1:3]
    q = (q * scale).reshape(B, K, H // K * T, width)
    scores = (q @ keys.transpose(-1, -2)).view(B, K, H // K, T, S)
    scores = scores + bias_BS[:, None, None, None]
    if T > 1:
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(future, float("-inf"))
        # A padded query sees nothing; give it zeros, not NaN.
        weights = scores.softmax(-1, dtype=torch.float32).nan_to_num(0.0).to(q.dtype)
    else:
        weights = scores.softmax(-1)
    y = weights.view(B, K, H // K * T, S) @ values
    return y.view(B, H, T, values.shape[-1])
