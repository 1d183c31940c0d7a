"""Settings of a reward model. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dunwu.train.config import Schedule
from dunwu.types import UsageError

Kind = Literal["pairwise", "pointwise"]
View = Literal["summary", "whole"]


@dataclass(frozen=True)
class RmConfig:
    """A scalar head on a language model (R1, section B.3.4; InstructGPT, arXiv 2203.02155, eq. 1)."""

    kind: Kind = "pairwise"
    """"pairwise": which of two replies is better (R1's helpful model); "pointwise": is one reply safe (its safety model)."""
    view: Literal["auto", "summary", "whole"] = "auto"
    """What of a reply is seen: the summary alone, or the thinking as well; "auto": summary for pairs, whole for single replies."""
    epochs: int = 1
    """Passes over the data; 1 in R1, since a reward model overfits at once."""
    rows: int = 32
    """Pairs, or labelled replies, per update; 256 in R1."""
    context: int = 512
    """Longest conversation in tokens; a longer one is dropped and counted, never cut."""
    lr: float = 3e-4
    """Peak learning rate; 6e-6 in R1, whose model is six orders larger."""
    warmup: int = 10
    """Updates of linear warm-up."""
    schedule: Schedule = "cosine"
    """Shape after the warm-up."""
    final_lr: float = 0.1
    """Last learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β1, β2."""
    weight_decay: float = 0.1
    """λ of AdamW, on matrices."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    micro_tokens: int = 16_384
    """Tokens per forward pass, padding included; changes memory, never the result's mathematics."""
    held_out: float = 0.1
    """Share of the conversations kept for measuring; all rows of a conversation are on one side."""
    length_balance: bool = True
    """Pairs only: drop training pairs until chosen and rejected are equally long on average, so that length is no clue."""
    length_tolerance: float = 0.02
    """Difference of those mean lengths that is let pass, as a share of the mean length."""

    @property
    def sees(self) -> View:
        """The view, "auto" resolved.

        Example:
            >>> RmConfig().sees, RmConfig(kind="pointwise").sees
            ('summary', 'whole')
        """
        if self.view == "auto":
            return "summary" if self.kind == "pairwise" else "whole"
        return self.view

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        counts = ("epochs", "rows", "context", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose between 0 and 1, e.g. 0.1")
        if self.lr <= 0 or self.length_tolerance < 0:
            raise UsageError("lr must be above 0 and length_tolerance not below", "see the defaults with --help")
