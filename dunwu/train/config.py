"""Settings of the trainers. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from dunwu.disk import later
from dunwu.train.advantages import StdNormalize
from dunwu.types import UsageError

Schedule = Literal["cosine", "wsd", "constant", "linear"]
LossNorm = Literal["token", "sequence", "constant", "prompt"]
KlEstimator = Literal["k1", "k3", "k3_unbiased"]
Precision = Literal["auto", "bf16", "fp32"]


def check_rate(lr: float) -> None:
    """Raise UsageError for a learning rate that climbs the loss, or is no number."""
    if not lr >= 0:
        raise UsageError(f"lr is {lr}", "use 0 or more")


def _check_context_steps(steps: tuple[tuple[int, float], ...], last: int) -> None:
    """Raise UsageError unless contexts grow by whole factors up to the last and their shares make one."""
    if not steps:
        return
    contexts, shares = [context for context, _ in steps], [share for _, share in steps]
    shown = " ".join(map(str, contexts))
    if min(contexts) < 1 or any(b % a or b == a for a, b in pairwise(contexts)):
        raise UsageError(
            f"context_steps {shown} do not grow by whole factors", "let each divide the next, e.g. 64 128 256"
        )
    if contexts[-1] != last:
        raise UsageError(
            f"context_steps end with {contexts[-1]}, the context is {last}", "let them end with the context"
        )
    if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(f"the shares of context_steps sum to {sum(shares):g}", "give shares above 0 that sum to 1")


@dataclass(frozen=True)
class PretrainConfig:
    """Next-token training on packed shards.

    With `context_steps` the context grows by whole factors. An update sees the same tokens as without, cut into shorter
    windows (sequence length warmup: Li et al. 2022, "The Stability-Efficiency Dilemma", section 4).
    """

    tokens: int = 24_000_000
    """Training tokens in all; the data repeats in new orders if it is shorter."""
    rows: int = 32
    """Windows per update."""
    context: int = 256
    """T: tokens per window."""
    lr: float = 3e-3
    """Peak learning rate."""
    warmup: int = 100
    """Updates of linear warm-up."""
    schedule: Schedule = "cosine"
    """Shape after the warm-up."""
    final_lr: float = 0.05
    """Last learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β1, β2 (V3, section 4.2)."""
    weight_decay: float = 0.1
    """λ of AdamW, on matrices."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    dropout: float = 0.0
    """Dropout on the two residual branches of every block; for small texts read many times."""
    precision: Precision = "auto"
    """Weights and activations; "auto" is bf16 where the processor multiplies it fast."""
    log_every: int = 20
    """Updates between metric lines."""
    eval_every: int = 500
    """Updates between held-out losses and sample texts."""
    save_every: int = 200
    """Updates between checkpoints."""
    context_steps: tuple[tuple[int, float], ...] = later(())
    """Growing context: pairs of context and share of the updates, e.g. 64 0.5 128 0.3 256 0.2; the last is `context`."""
    bias_rate: float = later(0.01)
    """γ: step of the routers' biases after every update, against the load; 0.001 in V3, which takes far more updates."""
    balance_loss: float = later(1e-4)
    """α: weight of the sequence-wise balance loss of models with experts (V3, eq. 17)."""
    mtp_weight: float = later(0.3)
    """λ: weight of the loss on the token after the next, of models with `mtp_depth` (V3, 2.2)."""
    mtp_final: float = later(0.1)
    """λ in the last part of the training."""
    mtp_share: float = later(0.67)
    """Share of the updates before that part; 10 of 14.8 trillion tokens in V3."""

    @property
    def steps(self) -> int:
        """Updates in all."""
        return max(1, self.tokens // (self.rows * self.context))

    @property
    def context_borders(self) -> list[tuple[int, int]]:
        """(first update, context) of every step of a growing context; updates count from 0.

        Example:
            >>> PretrainConfig(tokens=100 * 4 * 64, rows=4, context=64, context_steps=((16, 0.5), (64, 0.5))).context_borders
            [(0, 16), (50, 64)]
        """
        found, before = [], 0.0
        for context, share in self.context_steps:
            found.append((round(self.steps * before), context))
            before += share
        return found or [(0, self.context)]

    def context_at(self, step: int) -> int:
        """Tokens of a window in update `step`, the first being 0."""
        return next(context for first, context in reversed(self.context_borders) if step >= first)

    def mtp_weight_at(self, step: int) -> float:
        """λ of update `step`, the first being 0.

        Example:
            >>> [PretrainConfig(tokens=4, rows=1, context=1).mtp_weight_at(step) for step in range(4)]
            [0.3, 0.3, 0.3, 0.1]
        """
        return self.mtp_weight if step < self.mtp_share * self.steps else self.mtp_final

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        _check_context_steps(self.context_steps, self.context)
        if min(self.tokens, self.rows, self.context, self.log_every, self.eval_every, self.save_every) < 1:
            raise UsageError("tokens, rows, context and the every-counts begin at 1", "raise the one below 1")
        check_rate(self.lr)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout} is no share", "choose 0 or more and less than 1")


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on conversations, loss on what the assistant wrote (DeepSeek-R1, 3.1 and B.4)."""

    epochs: int = 2
    """Passes over the examples, each in a new order; 2 in R1."""
    context: int = 512
    """T: longest example in tokens; longer ones are left out and counted, never cut."""
    batch_tokens: int = 8_192
    """Tokens of an update, on average."""
    lr: float = 1e-3
    """Peak learning rate; 5e-5 in R1, whose model is six orders larger."""
    warmup: int = 5
    """Updates of linear warm-up."""
    schedule: Schedule = "cosine"
    """Shape after the warm-up."""
    final_lr: float = 0.1
    """Last learning rate as a share of the peak; R1 goes from 5e-5 to 5e-6."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β1, β2."""
    weight_decay: float = 0.1
    """λ of AdamW, on matrices."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    dropout: float = 0.0
    """Dropout on the two residual branches of every block."""
    packing: bool = True
    """Several examples in one row, each seeing only itself; the same mathematics, less padding."""
    micro_tokens: int = 16_384
    """Tokens per forward pass, padding included; changes memory, never the result's mathematics."""
    loss_norm: Literal["token", "sequence"] = "token"
    """Denominator of the loss: trained tokens of the update, or each example's own mean."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        counts = ("epochs", "context", "batch_tokens", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        check_rate(self.lr)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout} is no share", "choose 0 or more and less than 1")
        if self.loss_norm not in ("token", "sequence"):
            raise UsageError(f"loss_norm is {self.loss_norm!r}", 'use "token" or "sequence"')


@dataclass(frozen=True)
class GrpoConfig:
    """Group relative policy optimisation (DeepSeekMath, section 4.1; R1, section 2.1), choices named."""

    steps: int = 100
    """Rollout batches."""
    problems: int = 32
    """Questions per step; 32 in R1."""
    group_size: int = 16
    """G: samples per question; 16 in R1."""
    max_tokens: int = 256
    """Longest completion."""
    temperature: float = 1.0
    """Sampling temperature; the trainer divides its logits by the same."""
    lr: float = 5e-5
    """Peak learning rate; 3e-6 in R1, whose model is six orders larger."""
    warmup: int = 5
    """Steps of linear warm-up."""
    schedule: Schedule = "linear"
    """Shape after the warm-up."""
    final_lr: float = 0.1
    """Last learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's β1, β2."""
    weight_decay: float = 0.0
    """λ of AdamW."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    minibatches: int = 1
    """Updates per rollout batch; rows are split at random. 16 in R1; 1 is fully on-policy."""
    micro_tokens: int = 16_384
    """Tokens per forward pass, padding included; changes memory, never the result's mathematics."""
    std_normalize: StdNormalize = "group"
    """Divisor of the advantages."""
    std_eps: float = 1e-4
    """ε in that divisor."""
    loss_norm: LossNorm = "token"
    """Denominator of the loss."""
    clip_low: float = 0.2
    """ε below 1."""
    clip_high: float = 0.28
    """ε above 1 (DAPO's clip-higher)."""
    kl_coef: float = 0.0
    """β of the KL to the reference; 0.001 in R1."""
    kl_estimator: KlEstimator = "k3"
    """How that KL is estimated and differentiated."""
    reference_every: int = 400
    """Steps after which the reference becomes the current policy; 400 in R1-Zero, 0 for never."""
    drop_zero_variance: bool = True
    """Leave groups whose rewards are all equal out of the update and of its denominator."""
    dynamic_rounds: int = 1
    """Rollout rounds per step at most: above 1, groups without variance are replaced by new questions (DAPO)."""
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    """Truncated completions: trained with their reward, left out of the loss, or softly punished (DAPO, eq. 13)."""
    overlong_buffer: int = 64
    """Tokens before max_tokens over which the soft punishment grows."""
    reward: Literal["rule", "random", "format"] = "rule"
    """What is rewarded: the rules, a coin (control), or the format alone (control)."""
    bias_rate: float = later(0.01)
    """γ: with experts, the step of the routers' biases after every step, against the load of its rollouts."""
    routing_replay: bool = later(True)
    """With experts: the update sends every token to the experts it was sampled with, so that sampler and trainer agree."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.group_size < 2:
            raise UsageError(f"group_size {self.group_size} has no siblings to compare", "use 2 or more")
        if self.temperature <= 0:
            raise UsageError(f"temperature {self.temperature} cannot explore", "use a temperature above 0")
        counts = ("steps", "problems", "minibatches", "dynamic_rounds", "max_tokens", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        check_rate(self.lr)
        if self.overlong == "penalty" and not 0 <= self.overlong_buffer <= self.max_tokens:
            raise UsageError(
                f"overlong_buffer {self.overlong_buffer} of {self.max_tokens} tokens", "use 0 to max_tokens"
            )
