"""What every block is made of: RMSNorm, linear maps, SwiGLU.

Legend: N tokens, D width, F inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.native import train as native


class RMSNorm(nn.Module):
    """x / rms(x) * weight, statistics in fp32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Linear(nn.Linear):
    """A linear map whose matrix can be asked for whole, whatever it is made of."""

    def full_weight(self) -> Tensor:
        """(out, in)."""
        return self.weight


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=False)
        self.up_proj = Linear(width, inner, bias=False)
        self.down_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out

    def packed(self, x_ND: Tensor) -> Tensor:
        """(N, D) → (N, D); one product for gate and up."""
        weight = torch.cat([self.gate_proj.full_weight(), self.up_proj.full_weight()])
        out: Tensor = self.down_proj(native.swiglu(F.linear(x_ND, weight)))
        return out
