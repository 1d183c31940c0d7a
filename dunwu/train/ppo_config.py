"""Settings of PPO. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dunwu.train.config import PolicyConfig, check_amounts, check_rate
from dunwu.types import UsageError


@dataclass(frozen=True)
class PpoConfig(PolicyConfig):
    """Proximal policy optimisation with a critic (Schulman et al. 2017, arXiv 1707.06347; InstructGPT, arXiv 2203.02155)."""

    clip_high: float = 0.2
    """ε above 1; PPO clips both sides alike."""
    epochs: int = 1
    """Passes over a rollout batch; 1 in InstructGPT, 4 and more in control."""
    gamma: float = 1.0
    """γ: discount a token; 1 in InstructGPT."""
    lam: float = 0.95
    """λ of generalised advantage estimation; R1's paper finds 1.0 much better on mathematics."""
    critic: Literal["own", "shared", "none"] = "own"
    """A value model of its own, a head on the policy's trunk, or none: then the advantage is the return (REINFORCE++)."""
    value_lr: float = 1e-3
    """Peak learning rate of the critic; 9e-6 in InstructGPT. Higher than the policy's: it has to keep up."""
    value_coef: float = 0.5
    """Weight of the value loss; with a shared trunk it decides how much the critic pulls at it."""
    value_clip: float = 0.0
    """Range in which a value may move from what it was when the batch was sampled; 0.2 in InstructGPT, 0 for none: it keeps a
    critic from learning fast, and does not help (Andrychowicz et al. 2020, arXiv 2006.05990)."""
    value_warmup: int = 0
    """First steps in which the critic alone learns."""
    whiten: bool = True
    """Advantages of the step to mean 0 and variance 1."""
    group_baseline: bool = False
    """Take the group's mean off the scores first (REINFORCE++-baseline); needs two samples a question."""
    kl_place: Literal["reward", "loss"] = "reward"
    """Where β acts: off every token's reward (InstructGPT, eq. 2), or as a term of the loss (GRPO)."""
    ptx_coef: float = 0.0
    """γ of the pretraining mix: weight of the language-model loss beside PPO's; 27.8 in InstructGPT, per episode."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        super().validate()
        if self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}", "use 1 or more")
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise UsageError(f"gamma is {self.gamma}, lam {self.lam}", "choose both from 0 to 1")
        if self.critic not in ("own", "shared", "none") or self.kl_place not in ("reward", "loss"):
            what = f"critic is {self.critic!r}, kl_place {self.kl_place!r}"
            raise UsageError(what, "use own, shared or none; reward or loss")
        check_rate(self.value_lr)
        check_amounts(self, "value_coef", "value_clip", "value_warmup", "ptx_coef")
        if self.critic == "none" and (self.lam != 1 or self.value_warmup):
            what = f"lam {self.lam} and value_warmup {self.value_warmup} are a critic's, and there is none"
            raise UsageError(what, "use lam 1 and value_warmup 0 with critic none")
        if self.group_baseline and self.group_size < 2:
            raise UsageError(
                "group_baseline with a group_size of 1 leaves every score 0", "use a group_size of 2 or more"
            )
