"""Settings of the trainers. No torch: recipes and the command line read this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from dunwu.disk import later
from dunwu.train.advantages import Baseline, StdNormalize
from dunwu.types import UsageError

Schedule = Literal["cosine", "wsd", "constant", "linear"]
LossNorm = Literal["token", "sequence", "constant", "prompt"]
KlEstimator = Literal["k1", "k3", "k3_unbiased"]
Precision = Literal["auto", "bf16", "fp32"]
Objective = Literal["clip", "cispo", "reinforce"]
Ratio = Literal["token", "sequence"]
Tis = Literal["none", "truncate", "mask"]


def check_rate(lr: float) -> None:
    """Raise UsageError for a learning rate that climbs the loss, or is no number."""
    if not 0 <= lr < math.inf:
        raise UsageError(f"lr is {lr}", "use 0 or more")


def check_amounts(settings: object, *names: str) -> None:
    """Raise UsageError for one of these fields that is negative, infinite or no number."""
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise UsageError(f"{name} is {getattr(settings, name)}", "use 0 or more")


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
class OffPolicyConfig:
    """What is done about tokens that another policy sampled than the one that learns from them (train/off_policy.py)."""

    tis: Tis = "none"
    """Correction of a sampler that computes otherwise than the trainer, by w = π_old / π_sampler: none, w cut at `tis_cap`
    (truncated importance sampling), or 0 where w is outside [1/tis_cap, tis_cap], else w (masked importance sampling)."""
    tis_cap: float = 2.0
    """C of that correction."""
    sequence_mask: float = 0.0
    """δ: completions with A < 0 and mean log(π_sampler / π) above it do not train (DeepSeek-V3.2, 3.1); 0 for none."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.tis not in ("none", "truncate", "mask"):
            raise UsageError(f"off_policy.tis is {self.tis!r}", 'use "none", "truncate" or "mask"')
        if not self.tis_cap >= 1:
            raise UsageError(f"off_policy.tis_cap {self.tis_cap} would cut ratios of 1", "use 1 or more, such as 2")
        if not self.sequence_mask >= 0:
            raise UsageError(f"off_policy.sequence_mask is {self.sequence_mask}", "use 0 (none) or more")


@dataclass(frozen=True)
class StabilityConfig:
    """What steers a run that drifts (train/stability.py)."""

    entropy_coef: float = 0.0
    """Weight of the entropy bonus in the loss (A3C, arXiv 1602.01783)."""
    entropy_target: float = 0.0
    """Nats a token: under it `entropy_coef` grows by `entropy_rate` a step, above it shrinks, down to 0; 0 leaves it constant."""
    entropy_rate: float = 0.001
    """Step of that coefficient."""
    kl_target: float = 0.0
    """Nats a token to the reference that `kl_coef` is steered to (Ziegler et al. 2019, arXiv 1909.08593, 2.2); 0: constant."""
    kl_gain: float = 0.1
    """K_β: how fast; each step multiplies β by 1 + K_β · clip(KL / target − 1, ±0.2)."""
    stop_kl: float = 0.0
    """Mean approx_kl of an update from which on the batch's remaining updates are left out; 0 for never."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        for name in ("entropy_coef", "entropy_target", "entropy_rate", "kl_target", "kl_gain", "stop_kl"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"stability.{name} is {getattr(self, name)}", "use 0 or more")


@dataclass(frozen=True)
class PolicyConfig:
    """What every policy-gradient method here has in common; `GrpoConfig` and `PpoConfig` add what an advantage is."""

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
    objective: Objective = later("clip")
    """What bounds an update: the clipped ratio (PPO), the clipped ratio as a constant weight (CISPO), or nothing (REINFORCE)."""
    ratio: Ratio = later("token")
    """Probability ratio of each token, or of the whole completion to the power 1/length (GSPO)."""
    off_policy: OffPolicyConfig = later(OffPolicyConfig())
    """Corrections for tokens that another policy sampled."""
    stability: StabilityConfig = later(StabilityConfig())
    """Control of entropy and KL on the way."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature {self.temperature} cannot explore", "use a temperature above 0")
        counts = ("steps", "problems", "group_size", "minibatches", "max_tokens", "micro_tokens")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        check_rate(self.lr)
        check_amounts(self, "clip_low", "clip_high", "kl_coef", "max_grad_norm", "weight_decay", "warmup", "final_lr")
        check_amounts(self, "reference_every", "bias_rate")
        if self.overlong == "penalty" and not 0 <= self.overlong_buffer <= self.max_tokens:
            raise UsageError(
                f"overlong_buffer {self.overlong_buffer} of {self.max_tokens} tokens", "use 0 to max_tokens"
            )
        if self.objective not in ("clip", "cispo", "reinforce") or self.ratio not in ("token", "sequence"):
            what = f"objective is {self.objective!r}, ratio {self.ratio!r}"
            raise UsageError(what, "use clip, cispo or reinforce; token or sequence")
        self.off_policy.validate()
        self.stability.validate()
        if self.stability.kl_target and not self.kl_coef > 0:
            raise UsageError("stability.kl_target steers a kl_coef of 0", "begin with a kl_coef above 0")


@dataclass(frozen=True)
class GrpoConfig(PolicyConfig):
    """Group relative policy optimisation (DeepSeekMath, section 4.1; R1, section 2.1), choices named."""

    std_normalize: StdNormalize = "group"
    """Divisor of the advantages."""
    std_eps: float = 1e-4
    """ε in that divisor."""
    drop_zero_variance: bool = True
    """Leave groups whose rewards are all equal out of the update and of its denominator."""
    dynamic_rounds: int = 1
    """Rollout rounds per step at most: above 1, groups without variance are replaced by new questions (DAPO)."""
    baseline: Baseline = later("group")
    """What a reward is compared with: its group's mean (GRPO), the other siblings' (RLOO), the batch's, or nothing (REINFORCE)."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.group_size < 2 and self.baseline in ("group", "leave-one-out"):
            raise UsageError(f"group_size {self.group_size} has no siblings to compare", "use 2 or more")
        if self.dynamic_rounds < 1:
            raise UsageError(f"dynamic_rounds is {self.dynamic_rounds}", "use 1 or more")
        check_amounts(self, "std_eps")
        super().validate()
