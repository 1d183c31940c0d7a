"""Rotary positions (Su et al. 2021, eq. 34), and three ways to make them reach further than a model was trained.

Legend: B rows, T tokens, d width that is turned. Not covered: scalings that depend on the text's length (dynamic NTK, LongRoPE).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dunwu.model.config import LinearRope, Llama3Rope, ModelConfig, RopeScaling, Yarn


def rope_tables(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, halves repeated as Hugging Face does; YaRN's factor is in both.

    Args:
        positions: (B, T) or (1, T) integer positions.
    Returns:
        two tensors (B or 1, 1, T, d), broadcast over heads.
    """
    turns, factor = frequencies(config.rope_dim, config.rope_theta, config.rope_scaling)
    angles = positions[..., None].float() * turns.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def frequencies(d: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Radians per position of each of the d/2 pairs, float32, and the factor on cos and sin.

    Example:
        >>> frequencies(4, 100.0, None)[0].tolist(), frequencies(4, 100.0, LinearRope(2.0))[0][0].item()
        ([1.0, 0.10000000149011612], 0.5)
    """
    plain = theta ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
    if scaling is None:
        return plain, 1.0
    if isinstance(scaling, LinearRope):
        return plain / scaling.factor, 1.0
    if isinstance(scaling, Llama3Rope):
        return _llama3(plain, scaling), 1.0
    return _yarn(plain, d, theta, scaling), yarn_factor(scaling)


def _llama3(plain: Tensor, scaling: Llama3Rope) -> Tensor:
    """Llama 3.1's code: divided where the old context holds few turns, kept where it holds many, mixed between."""
    turned = scaling.original * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turned - low) / (high - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _yarn(plain: Tensor, d: int, theta: float, scaling: Yarn) -> Tensor:
    """YaRN, section 3.2 ("NTK-by-parts"), the ramp over the number of a pair as in the authors' code."""

    def pair_that_turns(times: float) -> float:
        return d * math.log(scaling.original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)).clamp(0, 1)
    return ramp * plain / scaling.factor + (1 - ramp) * plain


def yarn_factor(scaling: Yarn) -> float:
    """Factor on cos and sin, √(1/t) of YaRN's eq. 22: 0.1 ln s + 1 unless the config says otherwise.

    Example:
        >>> yarn_factor(Yarn(factor=1.0, original=64)), yarn_factor(Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0))
        (1.0, 1.0)
    """
    if scaling.attention_factor:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _sharpening(scaling.factor, scaling.mscale) / _sharpening(scaling.factor, scaling.mscale_all_dim)
    return _sharpening(scaling.factor, 1.0)


def score_scale(config: ModelConfig) -> float:
    """What scores are multiplied by before the softmax: 1/√d, and with latent attention YaRN's square (V3, 4.3)."""
    if config.mla is None:
        return float(config.head_dim**-0.5)
    scale, scaling = float(config.mla.query_dim**-0.5), config.rope_scaling
    if isinstance(scaling, Yarn) and scaling.mscale_all_dim:
        scale *= _sharpening(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def _sharpening(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, heads, T, d) by position, halves (i, i + d/2) together."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def apart(x: Tensor) -> Tensor:
    """Neighbours (2i, 2i + 1) to halves (i, i + d/2) of the last axis: V3's files keep RoPE's pairs side by side.

    Example:
        >>> apart(torch.tensor([0, 1, 2, 3])).tolist()
        [0, 2, 1, 3]
    """
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
