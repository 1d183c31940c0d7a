"""Settings of on-policy distillation. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass

from dunwu.train.config import Schedule, check_rate
from dunwu.types import UsageError


@dataclass(frozen=True)
class DistillConfig:
    """On-policy distillation: the student writes, the teacher's distribution says what each token should have been."""

    steps: int = 40
    """Rollout batches; one update each."""
    problems: int = 32
    """Prompts per step."""
    group_size: int = 2
    """G: samples per prompt. Nothing is compared between siblings, so 1 is enough."""
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

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        counts = ("steps", "problems", "group_size", "max_tokens", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        check_rate(self.lr)
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature} has no distribution to learn", "use one above 0")
