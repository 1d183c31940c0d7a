"""How far a student's distribution over the next token is from its teacher's, in three ways.

    reverse_kl   KL(s ‖ t) = Σ_v s_v (log s_v − log t_v)     the student pays where it is and the teacher is not: it picks modes
    forward_kl   KL(t ‖ s) = Σ_v t_v (log t_v − log s_v)     it pays where the teacher is and it is not: it covers all
    jsd          β KL(t ‖ m) + (1 − β) KL(s ‖ m),   m = β t + (1 − β) s     between them: GKD, arXiv 2306.13649, section 2

with s, t = softmax(logits / T). Each is a function (N, V), (N, V) → (N,), differentiable in the student only. Values are fp32
(fp64 for fp64 logits), made `CHUNK_VALUES` at a time; the gradient is derived by hand and made on the way, so no fp32
distribution outlives its chunk.

Legend: N positions, V vocabulary, z a student's logit. Not covered: Hinton's factor T² on the loss (2015, section 2.1): the
gradient shrinks as 1/T and the learning rate is yours; teachers of which only the likeliest tokens are known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, log1p
from typing import Any

import torch
from torch import Tensor

CHUNK_VALUES = 2**18
"""Positions × vocabulary for which fp32 distributions exist at once."""

Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log s, log t) of a chunk, (n, V) each → its divergences (n, 1), and their gradient in T·z (n, V)."""


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(student / T) ‖ softmax(teacher / T)) of every position, in nats; ∂/∂z_i = s_i (log s_i − log t_i − KL) / T.

    Args:
        student_NV: logits (N, V).
        teacher_NV: logits (N, V) of the same tokens.

    Returns:
        (N,) fp32 or fp64.

    Raises:
        ValueError: the two differ in shape.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)  # s = 1/2, 1/2
        >>> teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()  # t = 3/4, 1/4
        >>> kl = reverse_kl(student, teacher)  # ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3)
        >>> kl.backward()
        >>> f"{float(kl.detach()):.6f}", student.grad.numpy().round(6).tolist()  # ½ (ln(2/3) − KL), the other its negative
        ('0.143841', [[-0.274653, 0.274653]])
    """
    return _apply(_reverse, student_NV, teacher_NV, temperature)


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) of every position, in nats; ∂/∂z_i = (s_i − t_i) / T.

    The cross-entropy with the teacher's whole distribution as label, less the teacher's entropy: what supervised
    distillation minimises (Hinton et al. 2015; Sanh et al. 2019). Arguments and errors as `reverse_kl`.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)  # s = 1/2, 1/2
        >>> teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()  # t = 3/4, 1/4
        >>> kl = forward_kl(student, teacher)  # ¾ ln(¾ / ½) + ¼ ln(¼ / ½) = ¾ ln 3 − ln 2
        >>> kl.backward()
        >>> f"{float(kl.detach()):.6f}", student.grad.numpy().round(6).tolist()  # ½ − ¾, ½ − ¼
        ('0.130812', [[-0.25, 0.25]])
    """
    return _apply(_forward, student_NV, teacher_NV, temperature)


def jsd(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Generalised Jensen–Shannon divergence of every position, in nats (GKD, arXiv 2306.13649, eq. 1).

    β KL(t ‖ m) + (1 − β) KL(s ‖ m) with m = β t + (1 − β) s; ∂/∂z_i = (1 − β) s_i (log s_i − log m_i − KL(s ‖ m)) / T.
    Bounded by ln 2 at β = ½. It vanishes as β · forward_kl for β → 0 and as (1 − β) · reverse_kl for β → 1, so the limits
    themselves are those two functions. Arguments and errors as `reverse_kl`, and

    Args:
        beta: β, between 0 and 1, the two excluded.

    Raises:
        ValueError: β is not between them.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)  # s = 1/2, 1/2
        >>> teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()  # t = 3/4, 1/4; m = 5/8, 3/8
        >>> divergence = jsd(student, teacher)  # ½ (¾ ln(6/5) + ¼ ln(2/3)) + ½ (½ ln(4/5) + ½ ln(4/3))
        >>> divergence.backward()
        >>> f"{float(divergence.detach()):.6f}", student.grad.numpy().round(6).tolist()  # ⅛ (ln(4/5) − ln(4/3))
        ('0.033822', [[-0.063853, 0.063853]])
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta {beta} is not between 0 and 1: forward_kl and reverse_kl are the limits")
    return _apply(partial(_jsd, beta=beta), student_NV, teacher_NV, temperature)


# ---- values and gradients of a chunk


def _reverse(log_s: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    s, gap = log_s.exp(), log_s - log_t
    kl = (s * gap).sum(-1, keepdim=True)
    return kl, s * (gap - kl)


def _forward(log_s: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    t = log_t.exp()
    return (t * (log_t - log_s)).sum(-1, keepdim=True), log_s.exp() - t


def _jsd(log_s: Tensor, log_t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    log_m = torch.logaddexp(log_t + log(beta), log_s + log1p(-beta))
    to_teacher = (log_t.exp() * (log_t - log_m)).sum(-1, keepdim=True)
    # s stands in m too, but what comes through m adds up to zero: the gradient is that of KL(s ‖ m) with m held fast.
    to_student, grad = _reverse(log_s, log_m)
    return beta * to_teacher + (1 - beta) * to_student, (1 - beta) * grad


def _apply(rule: Rule, student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    if student_NV.shape != teacher_NV.shape:
        raise ValueError(f"student {tuple(student_NV.shape)} and teacher {tuple(teacher_NV.shape)} differ in shape")
    values_N: Tensor = _Divergence.apply(student_NV, teacher_NV, temperature, rule)  # type: ignore[no-untyped-call]
    return values_N


class _Divergence(torch.autograd.Function):
    """Value and gradient in one pass over chunks of positions."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, temperature: float, rule: Rule) -> Tensor:
        rows = max(1, CHUNK_VALUES // student_NV.shape[-1])
        wanted = ctx.needs_input_grad[0]
        grad_NV = torch.empty_like(student_NV) if wanted else student_NV
        values = []
        for out, student, teacher in zip(*(torch.split(x, rows) for x in (grad_NV, student_NV, teacher_NV))):
            log_s, log_t = (torch.log_softmax(_wide(x) / temperature, dim=-1) for x in (student, teacher))
            value, grad = rule(log_s, log_t)
            if wanted:
                out.copy_(grad / temperature)
            values.append(value.squeeze(-1))
        if wanted:
            ctx.save_for_backward(grad_NV)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * grads[0][:, None].to(grad_NV.dtype), None, None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
