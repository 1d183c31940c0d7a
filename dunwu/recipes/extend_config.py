"""The knobs of the recipe `extend`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from dunwu.train.config import PretrainConfig
from dunwu.types import UsageError
from dunwu.world.needles import WRITERS


@dataclass(frozen=True)
class NeedleConfig:
    """How retrieval is measured."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Tokens of the texts, question and answer included."""
    depths: int = 10
    """Places of the fact, from the beginning to the end."""
    each: int = 20
    """Questions at every length and depth, English and Chinese by turns; 0 measures no retrieval."""


@dataclass(frozen=True)
class ExtendRunConfig:
    """A model's context made longer with YaRN and a short training at the new length.

    With `model` it is a user's own model on a user's own texts. Without, it is the whole demonstration: notes with facts to be
    found again, a tokenizer, a base at the short context, and what becomes of it.
    """

    model: str = ""
    """Hugging Face model folder to extend, or RUN:STAGE; empty: a base is trained first."""
    data: tuple[str, ...] = ()
    """Texts to train on at the new length, as in the recipe pretrain: [NAME=]PATH[:WEIGHT]. With `model` only."""
    original: int = 0
    """Context the model was trained at; 0 takes what its config says."""
    extend: PretrainConfig = field(
        default_factory=lambda: PretrainConfig(
            tokens=600_000,
            rows=4,
            context=1024,
            lr=1e-3,
            warmup=10,
            schedule="linear",
            log_every=5,
            eval_every=50,
            save_every=25,
        )
    )
    """The training at the new length, which is `extend.context`."""
    size: str = "0.8M"
    """Size preset of the demonstration's base."""
    vocab_size: int = 1024
    """Size of its tokenizer."""
    kv_heads: int = 4
    """Key/value heads of it; one for all heads, as in the preset, learns to find things much later."""
    initializer_range: float = 0.1
    """Standard deviation of its first weights, about 1/√D: at 0.02 a model this narrow attends to nothing for long."""
    pretrain: PretrainConfig = field(
        default_factory=lambda: PretrainConfig(
            tokens=8_000_000,
            rows=8,
            context=256,
            lr=2e-3,
            warmup=30,
            schedule="wsd",
            final_lr=0.1,
            context_steps=((16, 0.05), (32, 0.1), (64, 0.1), (128, 0.15), (256, 0.6)),
            save_every=500,
        )
    )
    """Its training, at the short context `pretrain.context`."""
    lessons: tuple[tuple[str, float], ...] = (
        ("english-pairs", 0.05),
        ("short", 0.1),
    )
    """What its training begins with: kinds of notes (`world.needles`) and shares of the updates. Finding begins there."""
    chinese: float = 0.3
    """Share of Chinese notes in it."""
    held_out: float = 0.1
    """Share at every source's end that is never trained on."""
    windows: int = 256
    """Held-out windows of the new length behind the loss by position."""
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    """How retrieval is measured."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if self.model and not self.data:
            raise UsageError("there is nothing to train on", "name your files: --data FILE [FILE …]")
        if self.data and not self.model:
            raise UsageError(
                "there is no model to extend", "name one: --model FOLDER, or RUN:STAGE; or leave --data away"
            )
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose between 0 and 1, e.g. 0.1")
        if self.windows < 2 or min(self.needle.depths, self.needle.each + 1) < 1 or self.original < 0:
            raise UsageError("windows begins at 2, needle.depths at 1, needle.each and original at 0", "raise it")
        if self.needle.each and (not self.needle.lengths or max(self.needle.lengths) > self.extend.context):
            raise UsageError(
                f"needle.lengths {list(self.needle.lengths)} must be up to extend.context {self.extend.context}",
                "give lengths in that range",
            )
        self.pretrain.validate()
        self.extend.validate()
        if not all(share > 0 for _, share in self.lessons) or sum(share for _, share in self.lessons) >= 1:
            raise UsageError(
                "the shares of lessons do not leave anything", "give shares above 0 that sum to less than 1"
            )
        if unknown := {kind for kind, _ in self.lessons} - set(WRITERS):
            raise UsageError(f"no kind of notes {min(unknown)!r}", "choose from " + ", ".join(WRITERS))
        if not self.model:
            self.check_growth(self.pretrain.context)

    def check_growth(self, original: int) -> None:
        """Raise UsageError unless the new context is longer than the old."""
        if self.extend.context <= original:
            raise UsageError(
                f"extend.context {self.extend.context} is not longer than the model's {original}",
                "raise --extend.context, or say what it was trained at: --original N",
            )


EXTEND_PRESETS: dict[str, ExtendRunConfig] = {
    "cpu": ExtendRunConfig(),
    "tiny": ExtendRunConfig(
        size="tiny",
        vocab_size=512,
        kv_heads=1,
        pretrain=PretrainConfig(
            tokens=60_000, rows=4, context=64, warmup=10, lr=2e-3, log_every=10, eval_every=100, save_every=50
        ),
        extend=PretrainConfig(
            tokens=10_240,
            rows=2,
            context=256,
            lr=1e-4,
            warmup=2,
            schedule="constant",
            log_every=5,
            eval_every=10,
            save_every=5,
        ),
        windows=8,
        needle=NeedleConfig(lengths=(64, 256), depths=2, each=2),
    ),
    "gpu": ExtendRunConfig(
        size="12M",
        vocab_size=2048,
        initializer_range=0.05,
        kv_heads=2,
        pretrain=PretrainConfig(
            tokens=200_000_000,
            rows=64,
            context=1024,
            lr=1e-3,
            warmup=200,
            eval_every=1000,
            save_every=500,
            context_steps=((16, 0.1), (64, 0.1), (256, 0.2), (1024, 0.6)),
        ),
        extend=PretrainConfig(
            tokens=8_000_000,
            rows=16,
            context=4096,
            lr=5e-5,
            warmup=10,
            schedule="constant",
            log_every=5,
            eval_every=50,
            save_every=25,
        ),
        needle=NeedleConfig(lengths=(256, 1024, 2048, 4096)),
    ),
}
