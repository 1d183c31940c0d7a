"""Multi-token prediction (V3, 2.2): a module behind the last block that predicts the token after the next.

At place t it sees the main model's state h_t and the embedding of token t + 1, and its state predicts token t + 2, through the
main model's embedding and head. Trained beside the main loss; in use it is dropped, or guesses ahead (`rollout/speculative.py`).

Legend: B rows, T tokens, N = B·T, D width. Not covered: depths above 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dunwu.model.attention import SegmentMask
from dunwu.model.block import Block
from dunwu.model.cache import KVCache
from dunwu.model.config import ModelConfig
from dunwu.model.layers import Linear, RMSNorm
from dunwu.model.moe import Routing
from dunwu.native import train as native


class MtpModule(nn.Module):
    """One further block over (embedding of the next token, state)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.eh_proj = Linear(2 * width, width, bias=False)
        self.block = Block(config, config.num_layers)
        self.norm = RMSNorm(width, eps)

    def joined(self, embedded: Tensor, states: Tensor) -> Tensor:
        """M [norm(embedding); norm(h)] (V3, eq. 21, in the order of the released weights): (…, D) each → (…, D)."""
        out: Tensor = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(states)), -1))
        return out

    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        mask: SegmentMask | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """(B, T, D) embeddings of the next tokens and states → (B, T, D) normed states that predict the ones after."""
        x = self.joined(embedded, states)
        out: Tensor = self.norm(self.block(x, cos, sin, cache, mask, routing))
        return out

    def packed(
        self, embedded_ND: Tensor, states_ND: Tensor, layout: native.Layout, rows: int, routing: Routing | None = None
    ) -> Tensor:
        """The same on (N, D) tokens in segments, by the kernels."""
        h_ND, branch = self.block.packed(self.joined(embedded_ND, states_ND), None, layout, rows, routing)
        out: Tensor = native.norm(h_ND, branch, self.norm.weight, self.norm.eps)[1]
        return out
