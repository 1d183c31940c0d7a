"""What learns, as one thing that can be saved and restored."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dunwu.model.transformer import Transformer
from dunwu.train.config import PolicyConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.stability import coefficients, steered
from dunwu.train.value import Critic


@dataclass
class Learner:
    """What learns: the policy, its optimizer, the frozen reference the KL pulls towards, and in PPO the critic."""

    policy: Transformer
    optimizer: MasterAdamW
    reference: Transformer | None = None
    critic: Critic | None = None
    coefficients: dict[str, float] = field(default_factory=dict)
    """Weights of KL and entropy where they steer themselves (stability.py); {} where they are constant."""

    def refresh_reference(self) -> None:
        """The reference becomes a frozen copy of the current policy; both share what is not trained, all but the adapters
        under LoRA."""
        shared = {id(p): p for p in self.policy.parameters() if not p.requires_grad}
        self.reference = copy.deepcopy(self.policy, shared).eval().requires_grad_(False)

    def reference_state(self) -> dict[str, Tensor]:
        """The reference's own tensors, without those it shares; {} without a reference."""
        if self.reference is None:
            return {}
        shared = {name for name, p in self.policy.named_parameters() if not p.requires_grad}
        return {name: t for name, t in self.reference.state_dict().items() if name not in shared}

    def load_reference(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `reference_state()`."""
        self.refresh_reference()
        assert self.reference is not None
        self.reference.load_state_dict({**self.reference.state_dict(), **tensors})

    def steer(self, config: PolicyConfig, metrics: Mapping[str, float], method: str) -> dict[str, float]:
        """Let the coefficients follow what a step measured; those in force in it, where they are steered, as metrics."""
        used = coefficients(self.coefficients, config)
        if f"{method}/entropy" in metrics:
            entropy, kl = metrics[f"{method}/entropy"], metrics.get(f"{method}/ref_kl")
            self.coefficients = steered(self.coefficients, config, entropy, kl)
        return {f"{method}/{name}": used[name] for name in self.coefficients}
