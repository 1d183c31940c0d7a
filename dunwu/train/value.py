"""The critic: what a completion is worth before each of its tokens, and how that is learned.

A value is read at the state from which a token is predicted, V(s_t), before the token is known. The critic is a model of
its own, begun from the policy or from a reward model (InstructGPT, arXiv 2203.02155, C.4), or a head on the policy's
trunk. Temperature divides logits, never values.

Legend: N completion tokens of a micro-batch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.transformer import Transformer
from dunwu.train.losses import Tally
from dunwu.train.optim import MasterAdamW
from dunwu.train.rows import MicroBatch


class ValueModel(nn.Module):
    """A scalar head on the states of `backbone`, or without one on those of the policy.

    The head is fp32 and begins at 0 (so all values do) unless a reward model's is given.
    """

    def __init__(self, width: int, backbone: Transformer | None = None, head: Tensor | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            self.score.weight.zero_() if head is None else self.score.weight.copy_(head)

    def values(self, micro: MicroBatch, policy_states_ND: Tensor | None = None) -> Tensor:
        """V(s_t) (N,) in fp32 of every completion token, with gradient.

        Args:
            policy_states_ND: `micro.states(policy)`; needed, and used, only where the trunk is the policy's.
        """
        if self.backbone is not None:
            own = replace(micro, routing=None)  # the sampler's experts are the policy's
            policy_states_ND = own.states(self.backbone)
        if policy_states_ND is None:
            raise ValueError("a critic on the policy's trunk needs the policy's states")
        return F.linear(policy_states_ND.float(), self.score.weight)[:, 0]


@dataclass
class Critic:
    """A value model with its optimizer."""

    model: ValueModel
    optimizer: MasterAdamW

    @property
    def shared(self) -> bool:
        """Whether it has the policy's trunk."""
        return self.model.backbone is None

    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint; with the optimizer's version they are the whole state."""
        return self.optimizer.state()

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Restore `state()`."""
        self.optimizer.load(dict(tensors), version)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, clip: float | None = 0.2
) -> tuple[Tensor, dict[str, Tally]]:
    """½ Σ w · max((V − R)², (clip(V, V_old ± ε) − R)²): the clipped value loss of PPO's reference code.

    Args:
        values: V now, with gradient; any shape.
        old_values: V before the step's first update.
        returns: R of `gae`.
        weights: this micro-batch's slice of `token_weights`; where it is 0 nothing is looked at.
        clip: ε, in units of the reward; None or 0 for no clipping.

    Returns:
        A scalar, 0 with zero gradient if every weight is 0; tallies `value_loss` (before the weights), `value_clip_frac`
        (share of tokens whose gradient the clipping holds back).

    Example:
        Two tokens: V moved from 0 to 0.5 towards R = 1, but is counted as 0.2; the other stands still.

        >>> loss, tallies = value_loss(*(torch.tensor(x) for x in ([0.5, 1.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5])))
        >>> round(float(loss), 4), tallies["value_clip_frac"].mean  # ½ (½ · 0.8² + ½ · 1²)
        (0.41, 0.5)
    """
    mask = weights > 0
    values, old_values, returns = (torch.where(mask, x.float(), 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    held = torch.zeros_like(mask)
    if clip:
        clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        held = clipped > error
        error = torch.maximum(error, clipped)
    loss = 0.5 * (weights * error).sum()
    found = 0.5 * error.detach()[mask].double()
    tallies = {
        "value_loss": Tally(float(found.sum()), found.numel(), float(found.max()) if len(found) else 0.0),
        "value_clip_frac": Tally(float(held[mask].sum()), found.numel(), float(bool(held[mask].any()))),
    }
    return loss, tallies


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 − Var(R − V) / Var(R): 1 for a perfect critic, 0 for one that knows no more than the mean, below for worse; 0 where
    all returns are equal.

    Example:
        >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        0.75
    """
    returns_N, values_N = returns_N.double(), values_N.double()
    spread = float(returns_N.var(correction=0)) if len(returns_N) else 0.0
    return 1.0 - float((returns_N - values_N).var(correction=0)) / spread if spread else 0.0
