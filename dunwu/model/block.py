"""A decoder block: attention and feed-forward of the kinds the config names, each behind a norm, with residuals.

Legend: B rows, T tokens, N = B·T, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.attention import SegmentMask
from dunwu.model.cache import KVCache
from dunwu.model.config import ModelConfig
from dunwu.model.gqa import Attention
from dunwu.model.layers import FeedForward, RMSNorm
from dunwu.model.mla import LatentAttention
from dunwu.model.moe import MixtureOfExperts, Routing
from dunwu.native import train as native


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals.

    Args:
        layer: its number, from 0; the module of `mtp_depth` counts on.
    """

    dropout = 0.0
    """Share of each residual branch's channels set to zero in training mode; see `Transformer.set_dropout`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.self_attn: Attention | LatentAttention = LatentAttention(config) if config.mla else Attention(config)
        self.mlp: FeedForward | MixtureOfExperts
        if config.moe and config.is_moe(layer):
            self.mlp = MixtureOfExperts(config, layer - config.moe.first_dense)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        mask: SegmentMask | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), cos, sin, cache, self.layer, mask))
        y = self.post_attention_layernorm(x)
        out: Tensor = x + self._drop(self.mlp(y, routing) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(y))
        return out

    def packed(
        self, h_ND: Tensor, branch_ND: Tensor | None, layout: native.Layout, rows: int, routing: Routing | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream is h + branch, before and after; the sum is made inside the next norm.

        Args:
            rows: B, for dropout.
        """
        before, after = self.input_layernorm, self.post_attention_layernorm
        h_ND, y_ND = native.norm(h_ND, branch_ND, before.weight, before.eps)
        branch = self._drop_packed(self.self_attn.packed(y_ND, layout), rows)
        h_ND, y_ND = native.norm(h_ND, branch, after.weight, after.eps)
        if isinstance(self.mlp, MixtureOfExperts):
            return h_ND, self._drop_packed(self.mlp.packed(y_ND, routing), rows)
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
