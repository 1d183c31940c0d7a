"""When the tokens come from another policy than the one that learns: weights and masks. Pure functions.

Two reasons for it. The sampler computes in another way (other kernels, precision, engine), so that π_sampler is not the
trainer's π_old for the same weights:

    "truncate"   w = min(π_old / π_sampler, C)                     truncated importance sampling (TIS): Yao et al. 2025
    "mask"       w = π_old / π_sampler if in [1/C, C], else 0      masked (IcePop, MIS): a token too far off teaches nothing

and the weights have moved on since (several updates a batch, stale rollouts):

    M_b = 0 where A_b < 0 and mean_t log(π_sampler / π) > δ, else 1     DeepSeek-V3.2, arXiv 2512.02556, 3.1

Failures that the policy would hardly write any more are left out; what it did well is kept, however old. Both multiply a
token's loss and leave the denominator as it is, as the papers do. Shapes: N tokens of a micro-batch, in any layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dunwu.train.config import Tis
from dunwu.types import UsageError


def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, tis: Tis, cap: float) -> Tensor:
    """w of every token, without gradient; 1 everywhere for "none".

    Raises:
        UsageError: unknown `tis`.

    Example:
        >>> old, sampler = torch.tensor([0.5, 0.3, 0.1]).log(), torch.tensor([0.1, 0.3, 0.4]).log()
        >>> importance_weights(old, sampler, "truncate", 2.0).tolist()  # ratios 5, 1, 0.25
        [2.0, 1.0, 0.25]
        >>> importance_weights(old, sampler, "mask", 2.0).tolist()
        [0.0, 1.0, 0.0]
    """
    if tis == "none":
        return torch.ones_like(old_logprobs)
    # Beyond e^20 the cap has long decided; exp of more would be infinite.
    ratio = (old_logprobs.detach().float() - sampler_logprobs.float()).clamp(-20.0, 20.0).exp()
    if tis == "truncate":
        return ratio.clamp(max=cap)
    if tis == "mask":
        return torch.where((ratio >= 1.0 / cap) & (ratio <= cap), ratio, torch.zeros_like(ratio))
    raise UsageError(f"off_policy.tis is {tis!r}", 'use "none", "truncate" or "mask"')


def row_means(values_N: Tensor, rows_N: Tensor, mask_N: Tensor) -> Tensor:
    """At every token the mean over the masked-in tokens of its row, with gradient; 0 for rows without any.

    Args:
        rows_N: number of the completion each token belongs to, from 0.

    Example:
        >>> row_means(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([0, 0, 1]), torch.tensor([True, True, True])).tolist()
        [2.0, 2.0, 9.0]
    """
    count = int(rows_N.max()) + 1 if rows_N.numel() else 0
    live_N = mask_N.to(values_N.dtype)
    totals_R = values_N.new_zeros(count).index_add(0, rows_N, torch.where(mask_N, values_N, 0.0))
    lengths_R = values_N.new_zeros(count).index_add(0, rows_N, live_N)
    return (totals_R / lengths_R.clamp(min=1.0))[rows_N]


def sequence_mask(
    policy_logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    advantages_N: Tensor,
    rows_N: Tensor,
    mask_N: Tensor,
    delta: float,
) -> Tensor:
    """M at every token: False where the row has failed (A < 0) and lies further than `delta` from the policy, per token.

    Example:
        >>> policy, sampler = torch.tensor([-3.0, -3.0, -3.0]), torch.tensor([-1.0, -1.0, -1.0])  # 2 nats a token apart
        >>> rows, ones = torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.bool)
        >>> sequence_mask(policy, sampler, torch.tensor([1.0, -1.0, -1.0]), rows, ones, delta=0.5).tolist()
        [True, False, False]
    """
    gap_N = row_means((sampler_logprobs_N - policy_logprobs_N.detach()).float(), rows_N, mask_N)
    return ~((advantages_N < 0) & (gap_N > delta))
