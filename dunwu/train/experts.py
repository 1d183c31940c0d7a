"""The load of experts: moved towards balance in pretraining and reinforcement learning, and told at every step.

Fine-tuning leaves the routers' biases as they are. Legend: L layers with experts, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dunwu.model.moe import Routing, move_biases
from dunwu.model.transformer import Transformer
from dunwu.types import Group


def balance_experts(model: Transformer, routing: Routing, rate: float) -> dict[str, float]:
    """`balance_by` the load of one forward pass."""
    assert model.config.moe is not None
    return balance_by(model, routing.loads(model.config.moe.experts), rate)


def balance_by(model: Transformer, loads_LE: Tensor | None, rate: float) -> dict[str, float]:
    """Move the routers' biases against the load of an update's whole batch, and tell that load.

    Args:
        loads_LE: tokens of every expert; None where nobody counted them.
        rate: γ; 0 leaves the biases alone, as do frozen routers (LoRA) and a softmax gate, which has none.
    """
    assert model.config.moe is not None
    if loads_LE is None:
        return {}
    # Under LoRA routers are frozen, and their biases with them: no adapter file could carry those.
    trained = model.gates[0].weight.requires_grad
    if rate and trained and model.config.moe.gate == "sigmoid":
        move_biases(model.gates, loads_LE, rate)
    return load_metrics(loads_LE)


def load_metrics(loads_LE: Tensor) -> dict[str, float]:
    """Tokens of every expert over the mean of its layer, and the largest of these.

    Example:
        >>> load_metrics(torch.tensor([[3, 1]]))
        {'moe/max_load': 1.5, 'moe/load/0/0': 1.5, 'moe/load/0/1': 0.5}
    """
    shares = loads_LE.double() / loads_LE.double().mean(1, keepdim=True)
    named = {f"moe/load/{layer}/{e}": float(x) for layer, row in enumerate(shares) for e, x in enumerate(row)}
    return {"moe/max_load": float(shares.max()), **named}


def sampled_loads(groups: Sequence[Group], experts: int) -> Tensor | None:
    """(L, E) tokens of the completions, and of their prompts, that each expert got; None where samplers did not tell."""
    told = [
        torch.from_numpy(r.completion.routing) for g in groups for r in g.rollouts if r.completion.routing is not None
    ]
    if not told:
        return None
    chosen_NLK = torch.cat(told)
    return torch.stack([torch.bincount(layer.flatten(), minlength=experts) for layer in chosen_NLK.unbind(1)])
