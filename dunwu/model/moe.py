"""A mixture of experts (DeepSeekMoE; V3, 2.1.2): shared experts for every token, routed ones for those sent to them.

A token's affinity to an expert is a sigmoid (V3) or a softmax over all (Qwen3). Under the sigmoid a bias per expert takes part
in the choice and in nothing else; it is moved against the load after every update (`move_biases`), so balance costs no
gradient. A tiny loss per sequence keeps single sequences from extremes. No token is ever dropped.

All experts are one product over tokens sorted by expert (`grouped`). What the routers chose in a pass is in its `Routing`,
which also can be told what to choose: the RL update replays the sampler's choices.

Legend: N tokens, D width, E experts, K experts of a token, F inner width of an expert.
Not covered: experts on several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.config import ModelConfig, MoeShape
from dunwu.model.layers import FeedForward
from dunwu.native import train as native


class Routing:
    """What the routers of one forward pass did, layer by layer, and what they were told to do.

    Args:
        replay: (N, layers, K) experts to be used instead of choosing, integers, or None.
        sequences: equal parts of the N tokens that are a sequence each, if the balance loss is wanted; 0 for none.
    """

    def __init__(self, replay: Tensor | None = None, sequences: int = 0) -> None:
        self.replay, self.sequences = replay, sequences
        self.chosen: dict[int, Tensor] = {}
        """(N, K) experts by number of the layer among those with experts."""
        self.losses: list[Tensor] = []
        """Balance loss of every layer, a scalar each, with gradient."""

    def told(self, layer: int) -> Tensor | None:
        """The experts (N, K) to use in this layer, if they are given."""
        return None if self.replay is None else self.replay[:, layer].long()

    def all_chosen(self) -> Tensor:
        """(N, layers, K) experts, as `replay` takes them."""
        return torch.stack([self.chosen[layer] for layer in sorted(self.chosen)], dim=1)

    def loads(self, experts: int) -> Tensor:
        """(layers, E) tokens that each expert got."""
        chosen = (self.chosen[layer].flatten() for layer in sorted(self.chosen))
        return torch.stack([torch.bincount(row, minlength=experts) for row in chosen])

    @property
    def loss(self) -> Tensor | float:
        """Balance losses of all layers added up; 0.0 if there are none."""
        return torch.stack(self.losses).sum() if self.losses else 0.0


class Gate(nn.Module):
    """The router of a layer; computes in fp32."""

    e_score_correction_bias: Tensor

    def __init__(self, width: int, shape: MoeShape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.zeros(shape.experts, width))
        if shape.gate == "sigmoid":
            self.register_buffer("e_score_correction_bias", torch.zeros(shape.experts, dtype=torch.float32))

    def affinities(self, x_ND: Tensor) -> Tensor:
        """(N, E) fp32: V3, eq. 15; Qwen3's softmax."""
        logits = F.linear(x_ND.float(), self.weight.float())
        return logits.sigmoid() if self.shape.gate == "sigmoid" else logits.softmax(-1)

    @torch.no_grad()
    def choose(self, scores_NE: Tensor) -> Tensor:
        """(N, K) experts of each token: the best K of the best groups, by affinity and bias (V3, eq. 16)."""
        shape = self.shape
        if shape.gate == "sigmoid":
            scores_NE = scores_NE + self.e_score_correction_bias
        if shape.groups > 1:
            # A group is as good as its two best experts together.
            grouped = scores_NE.view(len(scores_NE), shape.groups, -1)
            best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool)
            kept.scatter_(1, best.topk(shape.top_groups, dim=-1).indices, True)
            scores_NE = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        return scores_NE.topk(shape.per_token, dim=-1).indices

    def weigh(self, scores_NE: Tensor, chosen_NK: Tensor) -> Tensor:
        """(N, K) fp32 weights of the chosen experts' outputs; the bias has no part in them (V3, eq. 13)."""
        weights = scores_NE.gather(1, chosen_NK)
        if self.shape.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.shape.scale

    def balance_loss(self, scores_NE: Tensor, sequences: int) -> Tensor:
        """Σ f_i P_i of every sequence, their mean (V3, eq. 17-20, without α)."""
        shape = self.shape
        scores = scores_NE.view(sequences, -1, shape.experts)
        favourites = scores.detach().topk(shape.per_token, dim=-1).indices.flatten(1)  # by affinity alone
        counts = torch.zeros_like(scores[:, 0]).scatter_add_(
            1, favourites, torch.ones_like(favourites, dtype=scores.dtype)
        )
        share = counts * (shape.experts / (shape.per_token * scores.shape[1]))
        mean = (scores / scores.sum(-1, keepdim=True)).mean(1)
        return (share * mean).sum(-1).mean()

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Gate:
        """Moves with the model, but the bias stays fp32: in bf16 its steps of a thousandth would be lost."""
        bias = getattr(self, "e_score_correction_bias", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if bias is not None:
            moved = self.e_score_correction_bias
            self.e_score_correction_bias = moved.float() if bias.is_meta else bias.to(moved.device)
        return self


class Experts(nn.Module):
    """The routed experts of a layer, each a SwiGLU, as two stacked matrices."""

    def __init__(self, width: int, shape: MoeShape) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(shape.experts, 2 * shape.width, width))
        self.down_proj = nn.Parameter(torch.empty(shape.experts, width, shape.width))

    def forward(
        self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor, swiglu: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(N, D): each token through its K experts, weighed and added up.

        Args:
            swiglu: (M, 2F) → (M, F).
        """
        K = chosen_NK.shape[1]
        order = chosen_NK.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_NK.flatten(), minlength=len(self.down_proj))
        ends = counts.cumsum(0).int()
        inner = swiglu(self.into(x_ND.index_select(0, order // K), ends))
        out = self.out_of(inner, ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        by_token: Tensor = out.index_select(0, back).view(-1, K, out.shape[-1])
        return (by_token * weights_NK[..., None].to(out.dtype)).sum(1)

    def into(self, sorted_MD: Tensor, ends_E: Tensor) -> Tensor:
        """(M, D) tokens sorted by expert → (M, 2F), gate and up."""
        return grouped(sorted_MD, self.gate_up_proj, ends_E)

    def out_of(self, inner_MF: Tensor, ends_E: Tensor) -> Tensor:
        """(M, F) sorted by expert → (M, D)."""
        return grouped(inner_MF, self.down_proj, ends_E)


class MixtureOfExperts(nn.Module):
    """What stands in a block in place of the feed-forward.

    Args:
        number: of this layer among those with experts, from 0.
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        assert config.moe is not None
        shape = config.moe
        self.number = number
        self.gate = Gate(config.hidden_size, shape)
        self.experts = Experts(config.hidden_size, shape)
        if shape.shared:
            self.shared_experts = FeedForward(config.hidden_size, shape.shared * shape.width)
        self.shared = shape.shared

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        """(…, D) → (…, D)."""
        flat = x.reshape(-1, x.shape[-1])
        out = self._routed(flat, routing, _swiglu).view_as(x)
        return out + self.shared_experts(x) if self.shared else out

    def packed(self, x_ND: Tensor, routing: Routing | None = None) -> Tensor:
        """(N, D) → (N, D) with the C kernels' SwiGLU."""
        out = self._routed(x_ND, routing, native.swiglu)
        return out + self.shared_experts.packed(x_ND) if self.shared else out

    def _routed(self, x_ND: Tensor, routing: Routing | None, swiglu: Callable[[Tensor], Tensor]) -> Tensor:
        scores = self.gate.affinities(x_ND)
        told = routing.told(self.number) if routing else None
        chosen = self.gate.choose(scores) if told is None else told
        if routing:
            routing.chosen[self.number] = chosen
            if routing.sequences:
                routing.losses.append(self.gate.balance_loss(scores, routing.sequences))
        out: Tensor = self.experts(x_ND, chosen, self.gate.weigh(scores, chosen), swiglu)
        return out


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


# ---- one product for all experts


def grouped(x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    """(M, F): rows up to ends[0] times expert 0's matrix, those up to ends[1] times expert 1's, and so on.

    Example:
        >>> x, w = torch.ones(3, 2), torch.tensor([1.0, 10.0])[:, None, None] * torch.ones(2, 1, 2)
        >>> grouped(x, w, torch.tensor([1, 3], dtype=torch.int32)).flatten().tolist()
        [2.0, 20.0, 20.0]
    """
    if _has_grouped(x_MD, weight_EFD):
        out: Tensor = F.grouped_mm(x_MD, weight_EFD.transpose(1, 2), offs=ends_E)
        return out
    return _padded_products(x_MD, weight_EFD, ends_E)


def _has_grouped(x_MD: Tensor, weight_EFD: Tensor) -> bool:
    """torch's own grouped product: on CPUs, and on CUDA for bf16; it wants rows of whole 16 bytes."""
    there = hasattr(F, "grouped_mm") and (x_MD.device.type == "cpu" or (x_MD.is_cuda and x_MD.dtype == torch.bfloat16))
    return there and not any(size * x_MD.element_size() % 16 for size in weight_EFD.shape[1:])


def _padded_products(x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    """The same by one batched product over experts padded to the fullest of them."""
    ends = ends_E.long()
    counts = ends.diff(prepend=ends.new_zeros(1))
    expert = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), counts, output_size=len(x_MD))
    place = torch.arange(len(x_MD), device=ends.device) - (ends - counts)[expert]
    padded = x_MD.new_zeros(len(ends), int(counts.max()), x_MD.shape[1]).index_put((expert, place), x_MD)
    return torch.bmm(padded, weight_EFD.transpose(1, 2))[expert, place]


# ---- balance


@torch.no_grad()
def move_biases(gates: Sequence[Gate], loads_LE: Tensor, rate: float) -> None:
    """V3, 2.1.2: after an update, the bias of an expert with more than the mean load falls by γ, of one with less it rises.

    Args:
        loads_LE: tokens of each expert in the whole batch, a row per gate.
        rate: γ.
    """
    for gate, load_E in zip(gates, loads_LE.float()):
        gate.e_score_correction_bias += rate * torch.sign(load_E.mean() - load_E)
