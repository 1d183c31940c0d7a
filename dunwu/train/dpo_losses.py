"""Losses of preference training: pure functions of the log-probabilities of whole replies.

With y_w the chosen and y_l the rejected reply to x, log π(y|x) the sum over the tokens of y, |y| their number, and
r(y) = log π(y|x) − log π_ref(y|x):

    dpo    −log σ(β (r(y_w) − r(y_l)))                              Rafailov et al., arXiv 2305.18290, eq. 7
    ipo    (r(y_w) − r(y_l) − 1 / (2τ))²                            Azar et al., arXiv 2310.12036, eq. 17
    kto    λ_D (1 − σ(β (r(y) − z₀))) of a desirable reply,         Ethayarajh et al., arXiv 2402.01306, section 4.1
           λ_U (1 − σ(β (z₀ − r(y)))) of an undesirable one
    orpo   −log π(y_w) / |y_w| − λ log σ(log odds(y_w) / odds(y_l))  Hong et al., arXiv 2403.07691, eq. 6 and 7
    simpo  −log σ(β (log π(y_w) / |y_w| − log π(y_l) / |y_l|) − γ)  Meng et al., arXiv 2405.14734, eq. 6

dpo and ipo take sums, or log-probabilities per token if the caller gives them so; orpo and simpo take them per token.
Every function gives one loss a row and no mean: what the sum is divided by is the whole update's affair.

Legend: B rows. Log-probabilities are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SUREST = -1e-6
"""Largest mean log-probability whose odds are told apart: at 0 they are infinite."""


def dpo_loss(
    chosen_B: Tensor,
    rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO, eq. 7: the policy is its own reward model, r = β log π / π_ref, under Bradley and Terry's likelihood.

    Args:
        chosen_B, rejected_B: log π, with gradient.
        ref_chosen_B, ref_rejected_B: log π_ref of the same replies.
        beta: β, in nats⁻¹.
        label_smoothing: ε: a judgement is taken to be the other way round with this probability (conservative DPO).

    Returns:
        (B,); log 2 where policy and reference are equal.

    Example:
        >>> policy, reference = (torch.tensor([-1.0]), torch.tensor([-4.0])), (torch.tensor([-2.0]), torch.tensor([-3.0]))
        >>> loss = dpo_loss(*policy, *reference, beta=0.5)  # r is +1 and −1: log(1 + e^(−0.5 · 2))
        >>> smooth = dpo_loss(*policy, *reference, beta=0.5, label_smoothing=0.1)  # 0.9 · 0.3133 + 0.1 · 1.3133
        >>> f"{float(loss):.4f} {float(smooth):.4f}"
        '0.3133 0.4133'
    """
    margin_B = beta * ((chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B))
    # −(1 − ε) log σ(m) − ε log σ(−m), and log σ(−m) = log σ(m) − m
    return F.softplus(-margin_B) + label_smoothing * margin_B


def ipo_loss(chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, tau: float) -> Tensor:
    """IPO, eq. 17: the difference of log-ratios shall be 1 / (2τ), no more, however sure the judges are.

    DPO's optimum is at infinity where one reply always wins; this one's stays near the reference.

    Args:
        chosen_B, rejected_B, ref_chosen_B, ref_rejected_B: as in `dpo_loss`.
        tau: τ, in nats⁻¹.

    Returns:
        (B,), in nats².

    Example:
        >>> policy, reference = (torch.tensor([-1.0]), torch.tensor([-4.0])), (torch.tensor([-2.0]), torch.tensor([-3.0]))
        >>> float(ipo_loss(*policy, *reference, tau=0.1))  # (1 − (−1) − 1 / 0.2)² = (2 − 5)²
        9.0
    """
    gap_B = (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)
    return (gap_B - 1 / (2 * tau)) ** 2


def kto_loss(
    logprobs_B: Tensor,
    ref_B: Tensor,
    desirable_B: Tensor,
    z0: float | Tensor,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """KTO, section 4.1: every reply alone, desirable or not, beside a reference point.

    Args:
        logprobs_B: log π, with gradient.
        ref_B: log π_ref.
        desirable_B: bool; which replies are desirable.
        z0: the reference point, `reference_point`; no gradient goes through it.
        beta: β.
        desirable, undesirable: λ_D, λ_U.

    Returns:
        (B,): λ_y − v(x, y), between 0 and λ_y.

    Example:
        >>> policy, reference = torch.tensor([-1.0, -1.0]), torch.tensor([-3.0, -3.0])  # r = 2 of both
        >>> loss = kto_loss(policy, reference, torch.tensor([True, False]), z0=1.0, beta=1.0, undesirable=2.0)
        >>> [round(value, 4) for value in loss.tolist()]  # 1 − σ(2 − 1), 2 (1 − σ(1 − 2))
        [0.2689, 1.4621]
    """
    surprise_B = beta * (logprobs_B - ref_B - z0)
    signed_B = torch.where(desirable_B, surprise_B, -surprise_B)
    weight_B = torch.where(desirable_B, desirable, undesirable).to(signed_B.dtype)
    return weight_B * torch.sigmoid(-signed_B)  # 1 − σ(s) = σ(−s)


def reference_point(logprobs_B: Tensor, ref_B: Tensor) -> float:
    """z₀ of KTO (section 4.1): KL(π ‖ π_ref) as replies to other questions say it, not below 0; 0 of no replies.

    Args:
        logprobs_B: log π(y'|x) of replies y' that answer something else than x.
        ref_B: log π_ref of the same.

    Example:
        >>> reference_point(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0]))  # (1 + 0) / 2
        0.5
        >>> reference_point(torch.tensor([-3.0]), torch.tensor([-2.0]))
        0.0
    """
    if not len(logprobs_B):
        return 0.0
    return max(0.0, float((logprobs_B - ref_B).double().mean()))


def log_odds(mean_B: Tensor) -> Tensor:
    """log(p / (1 − p)) of p = exp(mean): ORPO, eq. 4. p is bounded below 1, where odds end.

    Args:
        mean_B: log-probability per token.

    Example:
        >>> p = torch.tensor([0.5, 0.8], dtype=torch.float64)
        >>> [round(value, 4) for value in log_odds(p.log()).tolist()]  # log 1, log 4
        [0.0, 1.3863]
    """
    bounded_B = mean_B.clamp(max=SUREST)
    # log(1 − e^x): near 0 by expm1, elsewhere by log1p, each kept from the other's range so that no gradient is NaN.
    near_B = torch.log(-torch.expm1(bounded_B.clamp(min=-math.log(2))))
    far_B = torch.log1p(-torch.exp(bounded_B.clamp(max=-math.log(2))))
    return bounded_B - torch.where(bounded_B > -math.log(2), near_B, far_B)


def orpo_loss(chosen_mean_B: Tensor, rejected_mean_B: Tensor, weight: float) -> Tensor:
    """ORPO, eq. 6: SFT on the chosen reply, and λ times the odds ratio's −log σ (eq. 7). It needs no reference.

    Args:
        chosen_mean_B, rejected_mean_B: log π / |y|, with gradient.
        weight: λ.

    Returns:
        (B,), in nats.

    Example:
        >>> chosen, rejected = torch.tensor([0.8]).log(), torch.tensor([0.5]).log()
        >>> f"{float(orpo_loss(chosen, rejected, weight=0.5)):.4f}"  # −log 0.8 + 0.5 · log(1 + 1/4)
        '0.3347'
    """
    return -chosen_mean_B + weight * F.softplus(log_odds(rejected_mean_B) - log_odds(chosen_mean_B))


def simpo_loss(chosen_mean_B: Tensor, rejected_mean_B: Tensor, beta: float, gamma: float) -> Tensor:
    """SimPO, eq. 6: the reward is what decoding goes by, β log π / |y|, and must differ by γ. It needs no reference.

    Args:
        chosen_mean_B, rejected_mean_B: log π / |y|, with gradient.
        beta: β.
        gamma: γ, in units of the reward.

    Returns:
        (B,).

    Example:
        >>> chosen, rejected = torch.tensor([-0.5]), torch.tensor([-1.5])
        >>> f"{float(simpo_loss(chosen, rejected, beta=2.0, gamma=1.0)):.4f}"  # log(1 + e^−(2 · 1 − 1))
        '0.3133'
    """
    return F.softplus(gamma - beta * (chosen_mean_B - rejected_mean_B))
