"""Settings of a reward model. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dunwu.disk import later
from dunwu.train.config import Schedule
from dunwu.types import UsageError

Kind = Literal["pairwise", "pointwise", "ranking"]
"""What a row of data is."""
Says = Literal["pairwise", "pointwise"]
"""What a score says: rankings, as pairs, teach which of two replies is better."""
View = Literal["summary", "whole"]
Head = Literal["scalar", "likelihood"]


@dataclass(frozen=True)
class RmConfig:
    """A language model that scores replies (R1, section B.3.4; InstructGPT, arXiv 2203.02155, eq. 1)."""

    kind: Kind = "pairwise"
    """"pairwise": which of two replies is better (R1's helpful model); "pointwise": is one reply safe (its safety model);
    "ranking": several replies in order (InstructGPT)."""
    view: Literal["auto", "summary", "whole"] = "auto"
    """What of a reply is seen: the summary alone, or the thinking as well; "auto": whole for "pointwise", else summary."""
    epochs: int = 1
    """Passes over the data; 1 in R1, since a reward model overfits at once."""
    rows: int = 32
    """Pairs, labelled replies or rankings per update; 256 pairs in R1, 64 rankings in InstructGPT."""
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
    """Pairs and rankings: drop training rows until chosen and rejected are equally long on average, so that length is no clue."""
    length_tolerance: float = 0.02
    """Difference of those mean lengths that is let pass, as a share of the mean length."""
    ranking: Literal["pairs", "plackett-luce"] = later("pairs")
    """Rankings only: the loss is over all pairs of a prompt (InstructGPT, eq. 1), or over its choices, best first."""
    margin: float = later(0.0)
    """Pairs only: weight of the row's `meta.margin` m in -log σ(r_chosen - r_rejected - m) (Llama 2); 0 reads no margins."""
    centre: Literal["all", "best"] = later("all")
    """What scores 0 once normalised: the mean of all held-out replies, or of the chosen ones, as InstructGPT's demonstrations."""
    head: Head = later("scalar")
    """What scores: a scalar head on the last state, or "likelihood", β times the mean log-probability of the reply's tokens
    (SimPO, arXiv 2405.14734), for which the model should have been fine-tuned; pairs and rankings only."""
    beta: float = later(2.0)
    """β of "likelihood"; 2 to 10 in SimPO."""
    members: int = later(1)
    """Models trained alike but for the seed of head and order (likelihood has no head); several are an ensemble (arXiv 2310.02743)."""
    bootstrap: bool = later(False)
    """Members of an ensemble only: each draws its training rows with replacement."""

    @property
    def sees(self) -> View:
        """The view, "auto" resolved.

        Example:
            >>> RmConfig().sees, RmConfig(kind="pointwise").sees
            ('summary', 'whole')
        """
        if self.view == "auto":
            return "whole" if self.kind == "pointwise" else "summary"
        return self.view

    @property
    def says(self) -> Says:
        """What a score says.

        Example:
            >>> RmConfig(kind="ranking").says
            'pairwise'
        """
        return "pointwise" if self.kind == "pointwise" else "pairwise"

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        counts = ("epochs", "rows", "context", "micro_tokens", "members")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose between 0 and 1, e.g. 0.1")
        if self.lr <= 0 or self.length_tolerance < 0:
            raise UsageError("lr must be above 0 and length_tolerance not below", "see the defaults with --help")
        if self.margin < 0 or (self.margin and self.kind != "pairwise"):
            raise UsageError(f"margin {self.margin:g} with {self.kind} rows", "it is for pairs, and at least 0")
        if self.ranking != "pairs" and self.kind != "ranking":
            raise UsageError(f"ranking {self.ranking!r} with {self.kind} rows", "use --kind ranking")
        if self.centre != "all" and self.kind == "pointwise":
            raise UsageError("a pointwise score is log-odds and has its own 0", "leave centre at all")
        if self.head != "scalar" and self.kind == "pointwise":
            raise UsageError("labels of single replies need a score above and below 0", "use --head scalar")
        if not self.beta > 0:
            raise UsageError(f"beta is {self.beta}", "use a number above 0, e.g. 4")
        if self.bootstrap and self.members == 1:
            raise UsageError("bootstrap is for the members of an ensemble", "use --members 3, or leave it out")
