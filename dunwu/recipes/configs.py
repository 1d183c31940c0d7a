"""The knobs of every recipe: frozen dataclasses, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dunwu.model.config import model_preset
from dunwu.tasks.countdown import CountdownConfig
from dunwu.train.config import GrpoConfig, PretrainConfig
from dunwu.types import UsageError
from dunwu.world.knobs import Knobs, without_search


@dataclass(frozen=True)
class EvidenceConfig:
    """How the result is measured."""

    problems: int = 1024
    """Held-out problems of the headline score, one sample each at temperature 1."""
    curve_problems: int = 256
    """Validation problems behind each point of the held-out curve."""
    curve_every: int = 10
    """RL steps between those points."""
    pass_k_problems: int = 128
    """Held-out problems sampled `pass_k_samples` times for pass@k and cons@k."""
    pass_k_samples: int = 16
    """Samples of each."""
    four_operands: int = 256
    """Held-out problems with four numbers, one sample each."""
    shown: int = 4
    """Held-out problems whose completions at five checkpoints stand side by side in the report."""

    def validate(self) -> None:
        """Raise UsageError for a count of nothing."""
        for name in ("problems", "curve_problems", "curve_every", "pass_k_problems", "pass_k_samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"evidence.{name} is {getattr(self, name)}", "use 1 or more")


@dataclass(frozen=True)
class R1ZeroConfig:
    """From generated pages to R1-Zero and its evidence."""

    model: str = "0.8M"
    """Size preset of the model trained from scratch."""
    arch: str = "dense"
    """What it is built of: dense, mla, moe, moe-mla, or v3 (moe-mla with multi-token prediction), all with as many weights a token."""
    vocab_size: int = 1024
    """Tokenizer size."""
    tokenizer_pages: int = 20_000
    """Pages the tokenizer is trained on."""
    world: Knobs = field(default_factory=Knobs)
    """What the generated web contains."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """The base model's training."""
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    """The reinforcement learning."""
    task: CountdownConfig = field(default_factory=CountdownConfig)
    """Which problems are asked."""
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    """How the result is measured."""
    base: str = ""
    """Hugging Face model folder to start from instead of pretraining one."""
    data: str = ""
    """File of Countdown problems ({"nums": […], "target": n}, JSONL or Parquet) instead of generated ones."""
    prompt_template: str = ""
    """File with a prompt template ({question}, or {numbers} and {target}) instead of ours."""
    base_seed: int = -1
    """Seed of the world and the base; -1 takes the run's seed. Runs that agree share one base."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    save_every: int = 10
    """RL steps between checkpoints."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        model_preset(self.model, self.vocab_size, self.arch)
        self.world.validate()
        self.pretrain.validate()
        self.grpo.validate()
        self.evidence.validate()
        if self.save_every < 1:
            raise UsageError(f"save_every is {self.save_every}", "use 1 or more")


_TINY = R1ZeroConfig(
    model="tiny",
    vocab_size=512,
    tokenizer_pages=1500,
    pretrain=PretrainConfig(
        tokens=600_000, rows=16, context=128, warmup=20, log_every=10, eval_every=150, save_every=50
    ),
    grpo=GrpoConfig(steps=6, problems=8, group_size=8, max_tokens=96, warmup=2),
    evidence=EvidenceConfig(
        problems=64,
        curve_problems=32,
        curve_every=2,
        pass_k_problems=16,
        pass_k_samples=8,
        four_operands=16,
        shown=2,
    ),
    save_every=2,
)

R1_ZERO_PRESETS: dict[str, R1ZeroConfig] = {
    "cpu": R1ZeroConfig(),
    "tiny": _TINY,
    "gpu": replace(
        R1ZeroConfig(),
        model="12M",
        vocab_size=2048,
        pretrain=PretrainConfig(tokens=400_000_000, rows=256, context=256, warmup=200, save_every=500),
        grpo=GrpoConfig(steps=200, problems=128, group_size=16, lr=1e-4),
    ),
}


@dataclass(frozen=True)
class StudyConfig:
    """R1-Zero over several seeds, with its controls."""

    recipe: R1ZeroConfig = field(default_factory=R1ZeroConfig)
    """What every run of the study is made with."""
    more_seeds: tuple[int, ...] = (1, 2)
    """Seeds of the claim besides the run's own; each pretrains its own base."""
    controls: tuple[str, ...] = ("random", "format", "no-search")
    """Controls, run with the run's seed: random reward, format-only reward, a base without search pages."""

    def validate(self) -> None:
        """Raise UsageError for an unknown control."""
        self.recipe.validate()
        unknown = set(self.controls) - set(CONTROLS)
        if unknown:
            raise UsageError(f"unknown control {sorted(unknown)[0]!r}", "choose from " + ", ".join(CONTROLS))


CONTROLS = ("random", "format", "no-search")


def control_config(config: R1ZeroConfig, control: str) -> R1ZeroConfig:
    """The recipe under one control: everything else stays as it is."""
    if control == "random":
        return replace(config, grpo=replace(config.grpo, reward="random"))
    if control == "format":
        return replace(config, grpo=replace(config.grpo, reward="format"))
    return replace(config, world=without_search(config.world))


STUDY_PRESETS: dict[str, StudyConfig] = {
    "cpu": StudyConfig(),
    "tiny": StudyConfig(recipe=_TINY, more_seeds=(1,), controls=("random",)),
}


@dataclass(frozen=True)
class ArchStudyConfig:
    """r1-zero dense and with experts, side by side."""

    recipe: R1ZeroConfig = field(default_factory=R1ZeroConfig)
    """What both are made with, but for `arch`."""
    arch: str = "moe-mla"
    """The architecture beside the dense one; one with experts."""
    collapse_tokens: int = 3_000_000
    """Pretraining tokens of the control whose routers' biases are never moved."""
    settled: int = 200
    """Update from which on the load is judged."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        self.recipe.validate()
        if model_preset(self.recipe.model, self.recipe.vocab_size, self.arch).moe is None:
            raise UsageError(f"{self.arch} has no experts", "choose moe-mla or v3")
        updates = self.collapse_tokens // (self.recipe.pretrain.rows * self.recipe.pretrain.context)
        if not 0 < self.settled < updates:
            raise UsageError(f"settled {self.settled} of {updates} updates", "raise collapse_tokens, or lower settled")


ARCH_STUDY_PRESETS: dict[str, ArchStudyConfig] = {
    "cpu": ArchStudyConfig(),
    "tiny": ArchStudyConfig(recipe=_TINY, collapse_tokens=200_000, settled=60),
}


@dataclass(frozen=True)
class InContextConfig:
    """How in-context learning is measured."""

    windows: int = 256
    """Held-out windows behind the loss by position, as many from each source; 0 for none."""
    tasks: tuple[str, ...] = ("sums", "symbols")
    """Few-shot tasks: sums as the world's pages list them, symbols whose meaning only the prompt tells."""
    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Numbers of solved examples before the question."""
    problems: int = 200
    """Questions of each task, asked with every number of examples; 0 for none."""
    curve: bool = False
    """Measure at every held-out point of the training as well, not only at its end."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.windows < 0 or self.problems < 0:
            raise UsageError("in_context.windows and in_context.problems count from 0", "use 0 for none")
        if self.problems and (not self.shots or min(self.shots) < 0):
            raise UsageError(f"in_context.shots {list(self.shots)} are no counts", "use numbers from 0, e.g. 0 1 2 4 8")


@dataclass(frozen=True)
class PretrainRunConfig:
    """A model trained from scratch on a user's own texts, one file or a mixture of sources.

    A .jsonl file holds one document a line in its field `text`; so do .jsonl.zst and .parquet. A folder holds such files,
    or token shards, as `dunwu data build` leaves them. Anything else is plain text, one document.
    """

    data: tuple[str, ...] = ()
    """Sources, each [NAME=]PATH[:WEIGHT]: a text, .jsonl, .jsonl.zst or .parquet file, a folder of records or token shards."""
    temperature: float = 1.0
    """τ of the mixture: a source's share is its weight (its tokens, if none has one) to the power 1/τ, of their sum."""
    epochs: float = 0.0
    """Passes over a source at most; then its share goes to the others. 0 for no limit."""
    held_out: float = 0.1
    """Share at every source's end that is never trained on: bytes of a text, documents of records, tokens of shards."""
    model: str = "2M"
    """Size preset of the model."""
    arch: str = "dense"
    """What it is built of: dense, mla, moe, moe-mla, or v3 (moe-mla with multi-token prediction), all with as many weights a token."""
    vocab_size: int = 1024
    """Size of the tokenizer trained on the training part."""
    tokenizer_bytes: int = 100_000_000
    """Text the tokenizer is trained on, at most."""
    tokenizer: str = ""
    """Folder with a tokenizer.json to use instead."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """The training; `pretrain.tokens` is the budget."""
    curve_tokens: int = 100_000
    """Held-out tokens of each file behind a point of the curve; the last point uses all."""
    in_context: InContextConfig = field(default_factory=InContextConfig)
    """What is measured of learning inside the context."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.data:
            raise UsageError("there is nothing to train on", "name your files: --data FILE [FILE …]")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose between 0 and 1, e.g. 0.1")
        if self.curve_tokens < 1 or self.tokenizer_bytes < 1:
            raise UsageError("curve_tokens and tokenizer_bytes count from 1", "raise the one below 1")
        if not self.temperature > 0 or not self.epochs >= 0:
            raise UsageError(
                f"temperature {self.temperature}, epochs {self.epochs}", "use a temperature above 0 and epochs from 0"
            )
        self.pretrain.validate()
        self.in_context.validate()


PRETRAIN_PRESETS: dict[str, PretrainRunConfig] = {
    # Sized for a text of about a megabyte and five minutes on two cores (docs/log.md).
    "cpu": PretrainRunConfig(
        pretrain=PretrainConfig(tokens=5_000_000, dropout=0.1, eval_every=200),
    ),
    "tiny": PretrainRunConfig(
        model="tiny",
        vocab_size=512,
        pretrain=PretrainConfig(
            tokens=200_000, rows=16, context=128, warmup=10, log_every=10, eval_every=50, save_every=25
        ),
        curve_tokens=10_000,
    ),
    "gpu": PretrainRunConfig(
        model="50M",
        vocab_size=16_384,
        pretrain=PretrainConfig(
            tokens=1_000_000_000, rows=256, context=512, lr=1e-3, warmup=500, eval_every=1000, save_every=500
        ),
    ),
}
