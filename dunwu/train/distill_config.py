"""Settings of distillation by distributions. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dunwu.disk import later
from dunwu.train.config import Schedule, check_rate
from dunwu.types import UsageError

DivergenceName = Literal["reverse", "forward", "jsd"]


@dataclass(frozen=True)
class DistillConfig:
    """The student or a given text writes, the teacher's distribution says what each token should have been (GKD, 2306.13649)."""

    steps: int = 40
    """Rollout batches; one update each."""
    problems: int = 32
    """Prompts per step."""
    group_size: int = 2
    """G: the student's samples per prompt. Nothing is compared between siblings, so 1 is enough."""
    max_tokens: int = 192
    """Longest completion."""
    temperature: float = 1.0
    """T: the student samples at T, and both models' logits are divided by it in the loss."""
    lr: float = 5e-4
    """Peak learning rate."""
    warmup: int = 5
    """Steps of linear warm-up."""
    schedule: Schedule = "cosine"
    """Shape after the warm-up."""
    final_lr: float = 0.1
    """Last learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β1, β2."""
    weight_decay: float = 0.0
    """λ of AdamW."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    micro_tokens: int = 16_384
    """Tokens per forward pass, padding included; changes memory, never the result's mathematics."""
    divergence: DivergenceName = later("reverse")
    """D: KL(student ‖ teacher), KL(teacher ‖ student), or the Jensen–Shannon divergence between them."""
    jsd_beta: float = later(0.5)
    """β of "jsd": near 0 it points as the forward KL does, near 1 as the reverse."""
    on_policy_share: float = later(1.0)
    """λ of GKD: chance of each prompt that the student answers it itself; the others bring one given answer each."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        counts = ("steps", "problems", "group_size", "max_tokens", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        check_rate(self.lr)
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature} has no distribution to learn", "use one above 0")
        if self.divergence not in ("reverse", "forward", "jsd"):
            raise UsageError(f"divergence is {self.divergence!r}", "use reverse, forward or jsd")
        if not 0 < self.jsd_beta < 1:
            cure = "choose between 0 and 1; the ends are divergence forward and reverse"
            raise UsageError(f"jsd_beta is {self.jsd_beta}", cure)
        if not 0 <= self.on_policy_share <= 1:
            raise UsageError(f"on_policy_share {self.on_policy_share} is no share", "choose from 0 to 1")
