"""The policy-gradient loss, its KL term and its metrics: pure functions of log-probabilities.

Shapes: B rows (completions), T completion tokens (padded), V vocabulary. Log-probabilities are in nats.

The objective (DeepSeek-R1, arXiv 2501.12948, section 2.1; per token as in DeepSeekMath, arXiv 2402.03300):

    loss = sum_bt w_bt * ( -min(rho_bt A_b, clip(rho_bt, 1 - clip_low, 1 + clip_high) A_b) + kl_coef * KL_bt )
    rho_bt = policy_bt / old_bt

The four denominators in use differ only in the weights w (`token_weights`). The weights are made once, from the
masks of the *whole* optimizer step; micro-batches, packing and data-parallel ranks slice or reorder them and add
up their losses. The sum, and so the gradient, cannot depend on how the step was cut.

The KL term pulls the policy towards a reference. With d = log policy - log ref and samples from `old`:

    "k3"           exp(-d) + d - 1           R1's own term. Where policy = old its mean is KL(policy || ref), but its
                                             gradient is that of KL(ref || policy); elsewhere it is neither.
    "k1"           rho * stop_gradient(d)    gradient rho d grad log policy: the exact gradient of KL(policy || ref).
                                             (d alone, differentiated, has expected gradient 0: it does nothing.)
    "k3_unbiased"  rho * (exp(-d) + d - 1)   DeepSeek-V3.2, arXiv 2512.02556. Its mean under `old` is KL(policy || ref)
                                             for every policy, so value and gradient are both exact.

"Exact" is meant per token given its prefix, as the objective above is: that an earlier token changes which prefixes
occur later is not counted.

What bounds the update (`objective`), beside the minimum above ("clip"):

    "cispo"      -sg(clip(rho)) A log policy      every token keeps a gradient: MiniMax-M1, arXiv 2506.13585, eq. 4
    "reinforce"  -A log policy                    no ratio at all: on-policy data only

and whose ratio (`ratio`): each token's, or "sequence", the whole completion's to the power 1/length, the same at all its
tokens (GSPO, arXiv 2507.18071, eq. 7). Critics: value.py. Samplers that are another policy: off_policy.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dunwu.native import train as native
from dunwu.train.config import KlEstimator, LossNorm, Objective, Ratio
from dunwu.train.off_policy import row_means
from dunwu.types import UsageError

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped here before exp: e^20 is finite in fp32, and a token this far off gets no gradient."""


@dataclass(frozen=True)
class Tally:
    """A mean that adds up exactly over micro-batches: sum and count (and maximum) over the loss mask.

    Example:
        >>> (Tally(3.0, 2, 2.0) + Tally(5.0, 2, 4.0)).mean
        2.0
    """

    total: float
    count: int
    maximum: float

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.total + other.total, self.count + other.count, max(self.maximum, other.maximum))

    @property
    def mean(self) -> float:
        """Mean over all tokens counted; 0 if there are none."""
        return self.total / self.count if self.count else 0.0


def add_tallies(parts: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Metrics of a whole step from those of its micro-batches, key by key."""
    whole: dict[str, Tally] = {}
    for part in parts:
        for key, tally in part.items():
            whole[key] = whole[key] + tally if key in whole else tally
    return whole


def token_weights(
    loss_mask_BT: Tensor,
    loss_norm: LossNorm,
    *,
    max_tokens: int | None = None,
    group_ids_B: Sequence[int] | None = None,
) -> Tensor:
    """Weight of every token in the loss of one optimizer step; 0 exactly where `loss_mask_BT` is 0.

        "token"     1 / N                     N trained tokens of the step          DAPO, arXiv 2503.14476
        "sequence"  1 / (n_b R)               n_b tokens of the row, R live rows    GRPO, DeepSeekMath
        "constant"  1 / (max_tokens R)        length-independent                    Dr. GRPO, arXiv 2503.20783
        "prompt"    1 / (N_g P)               N_g tokens of the row's group, P live groups   ScaleRL, arXiv 2510.13786

    A row (group) is live if it trains at least one token. So a truncated, failed or zero-variance row whose mask the
    caller zeroed leaves the numerator and the denominator alike.

    Args:
        loss_mask_BT: (B, T) bool or 0/1, of **all** rows of the optimizer step, not of a micro-batch.
        loss_norm: the denominator.
        max_tokens: the sampling limit; needed by "constant".
        group_ids_B: a problem's number for each row; needed by "prompt".

    Returns:
        (B, T) float32. With every mask 0 all weights are 0 (not NaN).

    Raises:
        UsageError: unknown `loss_norm`, or the argument it needs is missing.
    """
    mask_BT = loss_mask_BT.bool()
    counts_B = mask_BT.sum(dim=1).double()
    live_rows = (counts_B > 0).sum().double()
    if loss_norm == "token":
        denominator_B = counts_B.sum().expand_as(counts_B)
    elif loss_norm == "sequence":
        denominator_B = counts_B * live_rows
    elif loss_norm == "constant":
        if max_tokens is None or max_tokens <= 0:
            raise UsageError(f'loss_norm "constant" with max_tokens {max_tokens}', "pass the sampling limit")
        denominator_B = (max_tokens * live_rows).expand_as(counts_B)
    elif loss_norm == "prompt":
        if group_ids_B is None or len(group_ids_B) != len(counts_B):
            raise UsageError('loss_norm "prompt" needs one group id per row', "pass group_ids_B")
        ids = torch.as_tensor(group_ids_B, device=counts_B.device)
        distinct, group_B = torch.unique(ids, return_inverse=True)
        tokens_P = counts_B.new_zeros(len(distinct)).index_add(0, group_B, counts_B)
        denominator_B = tokens_P[group_B] * (tokens_P > 0).sum()
    else:
        raise UsageError(f"loss_norm is {loss_norm!r}", 'use "token", "sequence", "constant" or "prompt"')
    weights_B = 1.0 / denominator_B.clamp(min=1.0)
    return (mask_BT * weights_B[:, None]).float()


def policy_loss(
    policy_logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages: Tensor,
    weights_BT: Tensor,
    *,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    ref_logprobs_BT: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KlEstimator = "k3",
    entropy_BT: Tensor | None = None,
    entropy_coef: float = 0.0,
    objective: Objective = "clip",
    ratio: Ratio = "token",
    rows_BT: Tensor | None = None,
    token_scale_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tally]]:
    """Loss of one micro-batch (its share of the step's loss: add them up, divide by nothing) and its metrics.

    Args:
        policy_logprobs_BT: (B, T) of the policy being trained, with gradient. A packed (N,) works as well.
        old_logprobs_BT: same shape; of the policy that sampled. On the first pass over a batch of your own model,
            `policy_logprobs_BT.detach()` is the same number.
        advantages: (B,) one per row, or the shape of `policy_logprobs_BT`.
        weights_BT: same shape; this micro-batch's slice of `token_weights`. Tokens of weight 0 are not looked at
            (their log-probabilities may be NaN) and count in no metric.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; None leaves that side open.
        ref_logprobs_BT: same shape, without gradient; needed if `kl_coef` is not 0. Given alone it is only measured.
        kl_coef: weight of the KL term (beta).
        kl_estimator: which KL term; see the module docstring.
        entropy_BT: same shape; measured, and with gradient if `entropy_coef` is not 0.
        entropy_coef: weight of the entropy bonus, taken off the loss.
        objective: what bounds an update; see the module docstring.
        ratio: of each token, or of the whole completion.
        rows_BT: same shape; number of the completion each token belongs to, from 0. Needed by "sequence" for a packed
            (N,); rows of (B, T) are their own.
        token_scale_BT: same shape; factor of each token's policy term (`off_policy.py`), without gradient.

    Returns:
        A scalar in at least fp32 (0 with zero gradient if every weight is 0), and tallies over the tokens of non-zero
        weight; see `policy_metrics`.

    Raises:
        ValueError: shapes that differ, a sequence ratio without rows. UsageError: unknown `kl_estimator` or `objective`,
            or no reference for a KL.

    Example:
        Two tokens of one completion with A = 1, each of weight 1/2; the second has become 1.5 times as likely, and is clipped:

        >>> policy, old = torch.tensor([[0.2, 0.3]]).log(), torch.tensor([[0.2, 0.2]]).log()
        >>> shared = (policy, old, torch.tensor([1.0]), torch.tensor([[0.5, 0.5]]))
        >>> round(float(policy_loss(*shared)[0]), 4)  # −½ (1 + 1.2)
        -1.1
        >>> round(float(policy_loss(*shared, ratio="sequence", clip_high=1.0)[0]), 4)  # −(1 · 1.5)^½
        -1.2247
        >>> round(float(policy_loss(*shared, objective="cispo")[0]), 4)  # −½ (ln 0.2 + 1.2 ln 0.3)
        1.5271
    """
    others = (("old", old_logprobs_BT), ("ref", ref_logprobs_BT), ("weights", weights_BT), ("rows", rows_BT))
    for name, other in (*others, ("token scale", token_scale_BT)):
        if other is not None and other.shape != policy_logprobs_BT.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, policy {tuple(policy_logprobs_BT.shape)}")
    if kl_coef and ref_logprobs_BT is None:
        raise UsageError(f"kl_coef is {kl_coef} without a reference model", "pass ref_logprobs_BT or kl_coef 0")

    mask_BT = weights_BT > 0
    policy_BT = _masked(policy_logprobs_BT, mask_BT)
    old_BT = _masked(old_logprobs_BT.detach(), mask_BT)
    advantages_BT = _masked(_per_token(advantages, policy_logprobs_BT), mask_BT)

    gap_BT = policy_BT - old_BT
    if ratio == "sequence":
        gap_BT = _sequence_gap(gap_BT, mask_BT, rows_BT)
    ratio_BT = gap_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low = -math.inf if clip_low is None else 1.0 - clip_low
    high = math.inf if clip_high is None else 1.0 + clip_high
    clipped_BT = ratio_BT.clamp(low, high)
    if objective == "clip":
        loss_BT = -torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    elif objective == "cispo":
        loss_BT = -clipped_BT.detach() * advantages_BT * policy_BT
    elif objective == "reinforce":
        loss_BT = -advantages_BT * policy_BT
    else:
        raise UsageError(f"objective is {objective!r}", 'use "clip", "cispo" or "reinforce"')
    if token_scale_BT is not None:
        loss_BT = _masked(token_scale_BT, mask_BT) * loss_BT
    if entropy_coef:
        if entropy_BT is None:
            raise UsageError(f"entropy_coef is {entropy_coef} without entropies", "pass entropy_BT with gradient")
        loss_BT = loss_BT - entropy_coef * _masked(entropy_BT, mask_BT)
    if kl_coef and ref_logprobs_BT is not None:
        ref_BT = _masked(ref_logprobs_BT.detach(), mask_BT)
        loss_BT = loss_BT + kl_coef * kl_term(policy_BT, old_BT, ref_BT, kl_estimator)
    loss = (weights_BT.to(loss_BT.dtype) * loss_BT).sum()

    metrics = policy_metrics(
        (old_BT + gap_BT) if ratio == "sequence" else policy_logprobs_BT,
        old_BT if ratio == "sequence" else old_logprobs_BT,
        advantages,
        mask_BT,
        clip_low=clip_low,
        clip_high=clip_high,
        ref_logprobs_BT=ref_logprobs_BT,
        entropy_BT=entropy_BT,
    )
    if ratio == "sequence" and ref_logprobs_BT is not None:  # the KL is a token's affair in any case
        metrics["ref_kl"] = _tally(
            kl_term(policy_BT.detach(), old_BT, _masked(ref_logprobs_BT, mask_BT), "k3")[mask_BT]
        )
    return loss, metrics


def _sequence_gap(gap_BT: Tensor, mask_BT: Tensor, rows_BT: Tensor | None) -> Tensor:
    """Mean log-ratio of a row's trained tokens, at each of them."""
    if rows_BT is None:
        if gap_BT.dim() != 2:
            raise ValueError('ratio "sequence" on packed tokens needs rows_BT')
        rows_BT = torch.arange(len(gap_BT), device=gap_BT.device)[:, None].expand_as(gap_BT)
    means_N = row_means(gap_BT.flatten(), rows_BT.flatten(), mask_BT.flatten())
    return torch.where(mask_BT, means_N.view_as(gap_BT), 0.0)


def kl_term(policy_BT: Tensor, old_BT: Tensor, ref_BT: Tensor, estimator: KlEstimator) -> Tensor:
    """The per-token KL term whose gradient through `policy_BT` is the one promised in the module docstring.

    Args:
        policy_BT, old_BT, ref_BT: log-probabilities of the sampled tokens, equal shapes.
        estimator: "k1", "k3" or "k3_unbiased".

    Returns:
        Same shape, in nats.

    Raises:
        UsageError: unknown estimator.
    """
    # Clamped below only: above, exp(-d) vanishes and the linear part must keep pulling.
    d = (policy_BT - ref_BT).clamp(min=-MAX_LOG_RATIO)
    if estimator == "k1":
        return _ratio(policy_BT, old_BT) * d.detach()
    k3 = torch.exp(-d) + d - 1.0
    if estimator == "k3":
        return k3
    if estimator == "k3_unbiased":
        return _ratio(policy_BT, old_BT) * k3
    raise UsageError(f"kl_estimator is {estimator!r}", 'use "k1", "k3" or "k3_unbiased"')


@torch.no_grad()
def policy_metrics(
    policy_logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages: Tensor,
    loss_mask_BT: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    ref_logprobs_BT: Tensor | None = None,
    entropy_BT: Tensor | None = None,
) -> dict[str, Tally]:
    """Means over the trained tokens, as tallies. With `rho` = policy / old and `d` = log policy - log ref:

        ratio           rho (its maximum too)
        approx_kl       rho - 1 - log rho: k3 estimate of KL(old || policy), from samples of old
        clip_low_frac   1 where A < 0 and rho < 1 - clip_low: the clip holds back the gradient
        clip_high_frac  1 where A > 0 and rho > 1 + clip_high
        ref_kl          exp(-d) + d - 1, if a reference is given
        entropy         if given, in nats

    Arguments as in `policy_loss`; `loss_mask_BT` is True where a token trains.
    """
    mask_BT = loss_mask_BT.bool()
    policy_N = _fp32(policy_logprobs_BT[mask_BT])
    old_N = _fp32(old_logprobs_BT[mask_BT])
    advantages_N = _per_token(advantages, policy_logprobs_BT)[mask_BT]
    ratio_N = _ratio(policy_N, old_N)
    zeros_N = torch.zeros_like(ratio_N)
    values = {
        "ratio": ratio_N,
        "approx_kl": ratio_N - 1.0 - _log_ratio(policy_N, old_N),
        "clip_low_frac": zeros_N if clip_low is None else (advantages_N < 0) & (ratio_N < 1.0 - clip_low),
        "clip_high_frac": zeros_N if clip_high is None else (advantages_N > 0) & (ratio_N > 1.0 + clip_high),
    }
    if ref_logprobs_BT is not None:
        values["ref_kl"] = kl_term(policy_N, old_N, _fp32(ref_logprobs_BT[mask_BT]), "k3")
    if entropy_BT is not None:
        values["entropy"] = entropy_BT[mask_BT]
    return {key: _tally(value_N) for key, value_N in values.items()}


def token_logprobs(
    logits_BTV: Tensor, ids_BT: Tensor, temperature: float = 1.0, chunk_values: int = 2**18
) -> tuple[Tensor, Tensor]:
    """Log-probability of each chosen token, and the entropy of the distribution it was chosen from.

    Computed in fp32 whatever the logits' dtype, `chunk_values` logits at a time; the backward pass recomputes each
    chunk, so neither fp32 logits nor probabilities ever exist for more than one chunk.

    Args:
        logits_BTV: (..., V); position t must already be the prediction *of* `ids_BT[t]` (shifted by one).
        ids_BT: (...) token ids; any valid id at masked positions.
        temperature: divides the logits, as in the sampler (1 = the model's own distribution). No top-k or top-p.
        chunk_values: positions x V per chunk; at least one position.

    Returns:
        logprobs (...) with gradient and entropy (...) without, in nats, fp32 (float64 for float64 logits).

    Raises:
        UsageError: `temperature` not positive. ValueError: shapes that do not fit.
    """
    if not temperature > 0.0:
        raise UsageError(f"temperature is {temperature}", "a policy gradient needs temperature > 0")
    if logits_BTV.shape[:-1] != ids_BT.shape:
        raise ValueError(f"logits {tuple(logits_BTV.shape)} do not fit ids {tuple(ids_BT.shape)}")
    vocab_size = logits_BTV.shape[-1]
    rows = max(1, chunk_values // vocab_size)
    logprobs_N, entropy_N = _ChosenLogprobs.apply(  # type: ignore[no-untyped-call]
        logits_BTV.reshape(-1, vocab_size), ids_BT.reshape(-1), temperature, rows
    )
    return logprobs_N.view(ids_BT.shape), entropy_N.view(ids_BT.shape)


def state_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor, temperature: float = 1.0, chunk_values: int | None = None
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of the logits `hidden @ head^T`, which exist for a chunk of them at a time only.

    Forward and backward make each chunk of logits anew, so memory grows with N + V, not with N x V.

    Args:
        hidden_ND: final states; state n predicts `ids_N[n]`.
        head_VD: the output matrix.
        chunk_values: logits at a time; default: two million, but 512 rows at least, since every chunk reads the whole head.

    Returns:
        logprobs (N,) with gradient and entropy (N,) without, in nats, fp32.

    Raises:
        UsageError: `temperature` not positive. ValueError: shapes that do not fit.
    """
    if not temperature > 0.0:
        raise UsageError(f"temperature is {temperature}", "a policy gradient needs temperature > 0")
    if hidden_ND.dim() != 2 or hidden_ND.shape[:1] != ids_N.shape or hidden_ND.shape[1:] != head_VD.shape[1:]:
        raise ValueError(f"states {tuple(hidden_ND.shape)}, head {tuple(head_VD.shape)}, ids {tuple(ids_N.shape)}")
    rows = max(512, 2**21 // len(head_VD)) if chunk_values is None else max(1, chunk_values // len(head_VD))
    if hidden_ND.device.type == "cpu" and native.available(hidden_ND.dtype):
        return native.chosen_logprobs(hidden_ND, head_VD, ids_N, temperature, rows)
    logprobs_N, entropy_N = _StateLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, ids_N, temperature, rows
    )
    return logprobs_N, entropy_N


def state_entropies(
    hidden_ND: Tensor, head_VD: Tensor, temperature: float = 1.0, chunk_values: int | None = None
) -> Tensor:
    """Entropies (N,) of the predictions at these states, with gradient, in nats, fp32: for an entropy bonus.

    Each chunk of logits is made anew in the backward pass. Arguments as in `state_logprobs`, whose own entropies have no
    gradient and cost nothing.
    """
    rows = max(512, 2**21 // len(head_VD)) if chunk_values is None else max(1, chunk_values // len(head_VD))

    def entropies(hidden: Tensor, head: Tensor) -> Tensor:
        log_p = torch.log_softmax(_fp32(F.linear(hidden, head)) / temperature, dim=-1)
        return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(dim=-1)

    return torch.cat(
        [checkpoint(entropies, part, head_VD, use_reentrant=False) for part in torch.split(hidden_ND, rows)]
    )


class _StateLogprobs(torch.autograd.Function):
    """In plain torch; the oracle of the native one."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor, temperature: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        parts = [
            _ChosenLogprobs.apply(F.linear(hidden, head_VD), ids, temperature, rows)  # type: ignore[no-untyped-call]
            for hidden, ids in zip(torch.split(hidden_ND, rows), torch.split(ids_N, rows))
        ]
        ctx.save_for_backward(hidden_ND, head_VD, ids_N)
        ctx.temperature, ctx.rows = temperature, rows
        logprobs, entropies = (torch.cat(column) for column in zip(*parts))
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_ND, head_VD, ids_N = ctx.saved_tensors
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD = None  # a frozen head, as under LoRA, costs neither product nor room
        if ctx.needs_input_grad[1]:
            grad_VD = torch.zeros_like(head_VD, dtype=torch.promote_types(head_VD.dtype, torch.float32))
        chunks = (torch.split(x, ctx.rows) for x in (grad_ND, hidden_ND, ids_N, grads[0] / ctx.temperature))
        for out, hidden, ids, grad in zip(*chunks):
            grad_logits = torch.softmax(_fp32(F.linear(hidden, head_VD)) / ctx.temperature, dim=-1).mul_(-grad[:, None])
            grad_logits = grad_logits.scatter_add_(-1, ids[:, None], grad[:, None]).to(head_VD.dtype)
            out.copy_(grad_logits @ head_VD)
            if grad_VD is not None:
                grad_VD += grad_logits.T @ hidden
        return grad_ND, None if grad_VD is None else grad_VD.to(head_VD.dtype), None, None, None


class _ChosenLogprobs(torch.autograd.Function):
    """log softmax(logits / temperature)[id]; its gradient is (onehot(id) - softmax) / temperature, made chunk by chunk.

    Plain autograd would keep the fp32 log-softmax of every position alive until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor, temperature: float, rows: int) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for logits, ids in zip(torch.split(logits_NV, rows), torch.split(ids_N, rows)):
            log_p = torch.log_softmax(_fp32(logits) / temperature, dim=-1)
            logprobs.append(log_p.gather(-1, ids[:, None]).squeeze(-1))
            # A vocabulary entry masked to -inf has p = 0 and adds nothing; 0 * -inf would add NaN.
            entropies.append(-(log_p.exp() * log_p.clamp(min=-1e4)).sum(dim=-1))
        ctx.save_for_backward(logits_NV, ids_N)
        ctx.temperature, ctx.rows = temperature, rows
        outputs = torch.cat(logprobs), torch.cat(entropies)
        ctx.mark_non_differentiable(outputs[1])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits_NV, ids_N = ctx.saved_tensors
        chunks = (torch.split(x, ctx.rows) for x in (logits_NV, ids_N, grads[0] / ctx.temperature))
        grad_NV = torch.empty_like(logits_NV)
        for out, logits, ids, grad in zip(torch.split(grad_NV, ctx.rows), *chunks):
            grad_logits = torch.softmax(_fp32(logits) / ctx.temperature, dim=-1).mul_(-grad[:, None])
            out.copy_(grad_logits.scatter_add_(-1, ids[:, None], grad[:, None]))
        return grad_NV, None, None, None


def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _masked(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """0 where masked, before any exp: a padded NaN or -inf then reaches neither value nor gradient."""
    return torch.where(mask_BT, _fp32(x_BT), 0.0)


def _per_token(advantages: Tensor, like_BT: Tensor) -> Tensor:
    if advantages.shape == like_BT.shape:
        return advantages.detach()
    if advantages.shape == like_BT.shape[:-1]:
        return advantages.detach().unsqueeze(-1).expand_as(like_BT)
    raise ValueError(f"advantages have shape {tuple(advantages.shape)}, log-probabilities {tuple(like_BT.shape)}")


def _log_ratio(policy: Tensor, old: Tensor) -> Tensor:
    return (policy - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _ratio(policy: Tensor, old: Tensor) -> Tensor:
    return torch.exp(_log_ratio(policy, old))


def _tally(values_N: Tensor) -> Tally:
    if values_N.numel() == 0:
        return Tally(0.0, 0, float("-inf"))
    return Tally(float(values_N.double().sum()), values_N.numel(), float(values_N.double().max()))
