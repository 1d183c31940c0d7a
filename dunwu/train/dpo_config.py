"""Settings of preference training. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dunwu.train.config import Schedule, check_rate
from dunwu.types import UsageError

PreferenceLoss = Literal["dpo", "ipo", "kto", "orpo", "simpo"]
REFERENCED: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "kto")
"""The losses that compare the policy with a reference, the model it started from."""


@dataclass(frozen=True)
class DpoConfig:
    """A policy trained on preferences without sampling and without a reward model; `dpo_losses.py` has the equations."""

    loss: PreferenceLoss = "dpo"
    """dpo (arXiv 2305.18290), ipo (2310.12036), kto (2402.01306), orpo (2403.07691) or simpo (2405.14734)."""
    beta: float = 0.1
    """β of DPO and KTO, τ of IPO: how dear it is to leave the reference. Small: far away."""
    label_smoothing: float = 0.0
    """ε, dpo only: the share of judgements taken to be wrong (conservative DPO); below 0.5."""
    length_normalize: bool = False
    """dpo and ipo: log-ratios per token instead of per reply; so are IPO's own results made, and Tülu 3's DPO (β = 5)."""
    desirable: float = 1.0
    """λ_D of KTO: weight of desirable replies. Where there are fewer of them, the paper wants λ_D n_D / (λ_U n_U) in 1 to 4/3."""
    undesirable: float = 1.0
    """λ_U of KTO: weight of undesirable replies."""
    orpo_lambda: float = 0.1
    """λ of ORPO: weight of the odds ratio beside the SFT loss."""
    simpo_beta: float = 2.0
    """β of SimPO, on the mean log-probability of a token."""
    simpo_gamma: float = 1.0
    """γ of SimPO: the margin of rewards that is asked for; 0.3 to 0.8 of β in the paper."""
    sft_coef: float = 0.0
    """α: weight of −log π / |y| of the chosen reply beside the loss, so that it does not fall with the rejected one (Pang et
    al., arXiv 2404.19733; 0.2 in Llama 3). ORPO has it in itself."""
    epochs: int = 1
    """Passes over the data; 1 in the papers, 3 at most."""
    rows: int = 32
    """Pairs, or labelled replies, per update; 64 in DPO, 128 in SimPO."""
    context: int = 512
    """Longest conversation in tokens; a longer one is dropped and counted, never cut."""
    lr: float = 1e-4
    """Peak learning rate; 1e-6 in DPO, whose models are three orders larger."""
    warmup: int = 10
    """Updates of linear warm-up."""
    schedule: Schedule = "cosine"
    """Shape after the warm-up."""
    final_lr: float = 0.1
    """Last learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β1, β2."""
    weight_decay: float = 0.0
    """λ of AdamW, on matrices."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    micro_tokens: int = 16_384
    """Tokens per forward pass, padding included; changes memory, never the result's mathematics."""
    held_out: float = 0.1
    """Share of the conversations kept for measuring; all rows of a conversation are on one side."""

    @property
    def referenced(self) -> bool:
        """Whether the loss needs the reference's log-probabilities.

        Example:
            >>> DpoConfig().referenced, DpoConfig(loss="simpo").referenced
            (True, False)
        """
        return self.loss in REFERENCED

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        counts = ("epochs", "rows", "context", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        check_rate(self.lr)
        above = ("beta", "simpo_beta", "orpo_lambda", "desirable", "undesirable")
        if low := [name for name in above if not getattr(self, name) > 0]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use a number above 0; see --help")
        if not self.simpo_gamma >= 0:
            raise UsageError(f"simpo_gamma is {self.simpo_gamma}", "use 0 or more")
        if not self.sft_coef >= 0:
            raise UsageError(f"sft_coef is {self.sft_coef}", "use 0 or more, e.g. 0.2")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose between 0 and 1, e.g. 0.1")
        if not 0 <= self.label_smoothing < 0.5:
            raise UsageError(f"label_smoothing is {self.label_smoothing}", "choose 0 or more and less than 0.5")
        if self.label_smoothing and self.loss != "dpo":
            raise UsageError(f"label_smoothing is for dpo, the loss is {self.loss}", "leave it at 0")
        if self.sft_coef and self.loss == "orpo":
            raise UsageError("sft_coef is what orpo has in itself", "leave it at 0, and weigh with orpo_lambda")
        if self.length_normalize and self.loss not in ("dpo", "ipo"):
            raise UsageError(f"length_normalize is for dpo and ipo, the loss is {self.loss}", "leave it off")
