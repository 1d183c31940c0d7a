"""From logits to a token: temperature, top-k, top-p, and random numbers that belong to a sample.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dunwu.types import SamplingParams


def _signed(value: int) -> int:
    """An integer modulo 2^64, as torch's signed int64 holds it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def uniforms(seeds_B: Tensor, position: int) -> Tensor:
    """One number in (0, 1) per row: splitmix64 (Steele et al. 2014) of (seed, position).

    A counter, not a stream: a sample's randomness depends on its seed and on how many tokens it
    has, never on its neighbours in the batch.

    Args:
        seeds_B: int64 seeds.
    Returns:
        (B,) float64.
    """
    z = seeds_B + _signed(_GOLDEN * (position + 1))
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    z = z ^ _shift(z, 31)
    return (_shift(z, 11).double() + 0.5) * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of a signed 64-bit tensor."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def sample_tokens(logits_BV: Tensor, params: SamplingParams, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at u.

    Returns:
        tokens (B,) int64 and their logprobs (B,) fp32, nats, under the distribution drawn from
        (temperature and truncation applied). Temperature 0 is greedy with logprob 0.
    """
    logits = logits_BV.float()
    if params.temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if params.top_p < 1:
        logits = _nucleus(logits, params.top_p)
    probabilities = logits.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    # In fp32 a u next to 1 would be 1, above every cumulative sum: a token past the end, or one that was truncated.
    u = u_B.to(cumulative.dtype).clamp(max=1 - 2.0**-23)
    tokens = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    chosen = probabilities.gather(1, tokens[:, None]).squeeze(1)
    return tokens, chosen.log()


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose mass reaches top_p (Holtzman et al. 2020)."""
    ordered, order = logits.sort(-1, descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    drop = mass - ordered.softmax(-1) >= top_p
    return logits.masked_fill(drop.gather(1, order.argsort(-1)), float("-inf"))
