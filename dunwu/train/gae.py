"""Credit in time: rewards and values of every step → advantages and returns. Pure functions, for language and control alike.

    δ_t = r_t + γ V(s_{t+1}) − V(s_t)
    A_t = δ_t + γ λ A_{t+1}          generalised advantage estimation: Schulman et al. 2016, arXiv 1506.02438, eq. 16
    R_t = A_t + V(s_t)               what the critic learns

λ = 1 is the return minus the value (no bias from the critic, most variance); λ = 0 trusts the critic wholly. DeepSeek-R1's
paper (arXiv 2501.12948) finds λ = 0.95 considerably worse than GRPO on mathematics, and λ = 1 close to it.

Steps whose mask is 0 (padding, what a tool wrote) are not there: credit passes over them unchanged, discounted for the
steps of the policy only. Shapes: B rows, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every step, 0 where `mask_BT` is 0.

    Args:
        rewards_BT: reward of each step; at masked steps it is not looked at.
        values_BT: V(s_t), the critic's estimate before step t; zeros for none.
        mask_BT: 1 where the policy acted.
        gamma: γ, discount.
        lam: λ.
        last_values_B: (B,) value after a row's last step; None: every row ended there and nothing follows.

    Returns:
        (advantages_BT, returns_BT), without gradient, in the dtype of `values_BT`.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.6]])
        >>> advantages, returns = gae(rewards, values, torch.ones(1, 2), gamma=1.0, lam=0.5)
        >>> [round(a, 4) for a in advantages[0].tolist()]  # δ = (0.6 − 0.5, 1 − 0.6); A_0 = 0.1 + ½ · 0.4
        [0.3, 0.4]
        >>> [round(r, 4) for r in returns[0].tolist()]
        [0.8, 1.0]
    """
    if not rewards_BT.shape == values_BT.shape == mask_BT.shape:
        raise ValueError(
            f"rewards {tuple(rewards_BT.shape)}, values {tuple(values_BT.shape)}, mask {tuple(mask_BT.shape)} differ"
        )
    with torch.no_grad():
        acted_BT = mask_BT.bool()
        zero = torch.zeros((), dtype=values_BT.dtype, device=values_BT.device)
        # A masked step may hold anything, NaN included; where() keeps it out, a product would not.
        rewards_BT, values_BT = torch.where(acted_BT, rewards_BT, zero), torch.where(acted_BT, values_BT, zero)
        following_B = torch.zeros_like(values_BT[:, 0]) if last_values_B is None else last_values_B.to(values_BT.dtype)
        running_B = torch.zeros_like(values_BT[:, 0])
        advantages_BT = torch.zeros_like(values_BT)
        for t in range(values_BT.shape[1] - 1, -1, -1):
            delta_B = rewards_BT[:, t] + gamma * following_B - values_BT[:, t]
            found_B = delta_B + gamma * lam * running_B
            advantages_BT[:, t] = torch.where(acted_BT[:, t], found_B, zero)
            running_B = torch.where(acted_BT[:, t], found_B, running_B)
            following_B = torch.where(acted_BT[:, t], values_BT[:, t], following_B)
        return advantages_BT, advantages_BT + values_BT


def whiten(values_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Values of mean 0 and variance 1 over the mask, 0 elsewhere; equal ones become exactly 0.

    Args:
        values_BT: any shape.
        mask_BT: same shape; statistics are over its ones.
        shift_mean: False divides only, and leaves the mean where it was.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]])).tolist()
        [[-1.0, 1.0, 0.0]]
    """
    acted_BT = mask_BT.bool()
    chosen_N = values_BT[acted_BT].double()
    out_BT = torch.zeros_like(values_BT)
    if chosen_N.numel() == 0:
        return out_BT
    mean, equal = chosen_N.mean(), bool(chosen_N.max() == chosen_N.min())
    if equal:  # the float mean of equal numbers may differ from them; eps would make an advantage of the rounding
        scaled_N = torch.zeros_like(chosen_N) if shift_mean else chosen_N
    else:
        scaled_N = (chosen_N - mean) / (chosen_N.var(correction=0).sqrt() + eps)
        scaled_N = scaled_N if shift_mean else scaled_N + mean
    out_BT[acted_BT] = scaled_N.to(values_BT.dtype)
    return out_BT


def token_rewards(
    scores_B: Tensor, policy_logprobs_BT: Tensor, ref_logprobs_BT: Tensor | None, mask_BT: Tensor, kl_coef: float = 0.0
) -> Tensor:
    """Reward of every token: −β (log π − log π_ref) on each, and the row's score on its last (InstructGPT, eq. 2).

    Args:
        scores_B: one score a row.
        policy_logprobs_BT: of the policy that sampled.
        ref_logprobs_BT: of the reference; None for no KL.
        mask_BT: 1 where the policy wrote; a row without any gets no reward.
        kl_coef: β.

    Returns:
        (B, T), 0 where the mask is.

    Example:
        >>> policy, ref = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
        >>> token_rewards(torch.tensor([3.0]), policy, ref, torch.tensor([[1, 1, 0]]), kl_coef=0.5).tolist()
        [[-0.25, 3.5, 0.0]]
    """
    with torch.no_grad():
        acted_BT = mask_BT.bool()
        rewards_BT = torch.zeros_like(policy_logprobs_BT)
        if kl_coef and ref_logprobs_BT is not None:
            rewards_BT = torch.where(acted_BT, -kl_coef * (policy_logprobs_BT - ref_logprobs_BT), 0.0)
        places_T = torch.arange(1, acted_BT.shape[1] + 1, device=acted_BT.device)
        last_B = (acted_BT * places_T).argmax(dim=1)
        live_B = acted_BT.any(dim=1)
        rewards_BT[live_B, last_B[live_B]] += scores_B[live_B].to(rewards_BT.dtype)
        return rewards_BT
