"""The knobs of the recipe `r1`, stage by stage: frozen dataclasses, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dunwu.model.config import model_preset
from dunwu.rollout.judge import JudgeConfig
from dunwu.train.config import GrpoConfig, PretrainConfig, SftConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.rm_config import RmConfig
from dunwu.types import UsageError
from dunwu.world.crawl import CrawlKnobs
from dunwu.world.knobs import Knobs

URL = ("http://", "https://")
"""How the address of an endpoint begins."""


class Settings(Protocol):
    """Settings that know what cannot work."""

    def validate(self) -> None: ...


def _check_counts(section: str, settings: Any, *names: str, least: int = 1) -> None:
    for name in names:
        if getattr(settings, name) < least:
            raise UsageError(f"{section}{name} is {getattr(settings, name)}", f"use {least} or more")


def _check_shares(section: str, settings: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise UsageError(f"{section}{name} {getattr(settings, name)} is no share", "choose between 0 and 1")


def _check_part(name: str, settings: Settings) -> None:
    """Validate settings that other recipes have as well, and name the stage whose they are."""
    try:
        settings.validate()
    except UsageError as error:
        raise UsageError(f"{name}: {error.what}", error.cure) from None


@dataclass(frozen=True)
class TasksConfig:
    """Which prompts the reasoning stages ask."""

    countdown: float = 0.6
    """Share of Countdown, the hard reasoning task."""
    word_problems: float = 0.2
    """Share of arithmetic word problems, the easy one."""
    knights: float = 0.2
    """Share of knights-and-knaves puzzles, hard as well."""
    three: float = 0.3
    """Share of those puzzles that have three people; the others have two."""
    chinese: float = 0.3
    """Share of prompts in Chinese."""
    name: str = ""
    """Instead of all these: a name from `dunwu tasks` (gsm8k, math, …) or your own task file (FILE.py)."""
    data: str = ""
    """Problems for a named task: a file, or for gsm8k and math also a folder with train.jsonl and test.jsonl."""

    def validate(self) -> None:
        """Raise UsageError for shares that cannot be drawn."""
        if min(self.countdown, self.word_problems, self.knights) < 0 or not (
            self.countdown + self.word_problems + self.knights > 0
        ):
            raise UsageError("tasks: no task has a share above 0", "give countdown, word_problems or knights a share")
        _check_shares("tasks.", self, "chinese")


@dataclass(frozen=True)
class CrawlConfig:
    """The web as a crawler brings it, which the data pipeline cleans before anything is learned from it."""

    pages: int = 0
    """Pages of the crawl, rubbish included; 0: the world's pages go to the tokenizer as they are."""
    rubbish: CrawlKnobs = field(default_factory=lambda: CrawlKnobs(contaminated=0.002))
    """What is among them."""

    def validate(self) -> None:
        """Raise UsageError for a negative count and shares that cannot be drawn."""
        _check_counts("crawl.", self, "pages", least=0)
        self.rubbish.validate()


@dataclass(frozen=True)
class ColdStartConfig:
    """Data of stage 2: R1-Zero's own samples, kept if correct and readable, rewritten (R1, B.3.2)."""

    problems: int = 800
    """Training problems R1-Zero is asked."""
    samples: int = 4
    """Samples of each at temperature 1."""
    examples: int = 3000
    """Most examples kept; "thousands" in R1."""
    general: float = 0.6
    """Share of conversations on general requests among them, with a short first-person thought."""
    consistency: float = 0.99
    """Least language consistency of a chain that is kept."""

    def validate(self) -> None:
        """Raise UsageError for counts below 1 and shares outside 0 to 1."""
        _check_counts("cold_start.", self, "problems", "samples", "examples")
        _check_shares("cold_start.", self, "general", "consistency")
        if self.general == 1:
            raise UsageError("cold_start.general 1 leaves no room for reasoning", "choose 0 or more and less than 1")


@dataclass(frozen=True)
class RejectionConfig:
    """Data of stage 4: rejection sampling from Dev2, and general data (R1, B.3.3)."""

    problems: int = 6500
    """Training problems Dev2 is asked."""
    first: int = 1_000_000
    """Index of the first of them: far beyond what the RL stages ask."""
    samples: int = 4
    """Samples of each at temperature 1."""
    per_problem: int = 3
    """Most samples kept of one problem."""
    ratio: float = 3.0
    """Reasoning : general; 600k : 200k in R1."""
    least_general: int = 64
    """Fewest general conversations, if that few chains are kept that the ratio would leave less."""
    paragraph: int = 400
    """Longest paragraph of a chain that is kept, in characters."""
    consistency: float = 0.99
    """Least language consistency of a chain that is kept."""
    clean: float = 0.8
    """Share of the general conversations answered as well as the world can; the rest is what collections are like."""

    def validate(self) -> None:
        """Raise UsageError for counts below 1, a ratio that is none, and shares outside 0 to 1."""
        _check_counts("rejection.", self, "problems", "samples", "per_problem", "least_general", "paragraph")
        _check_counts("rejection.", self, "first", least=0)
        _check_shares("rejection.", self, "consistency", "clean")
        if not self.ratio > 0:
            raise UsageError(f"rejection.ratio is {self.ratio}", "reasoning rows for each general row: above 0, e.g. 3")


@dataclass(frozen=True)
class PreferenceConfig:
    """Data of stage 6: pairs for the helpful reward model, labelled replies for the safety one (R1, B.3.4)."""

    pairs: int = 24_000
    """Pairs the judge is shown, each several times (`judging`); 66k in R1."""
    sampled: float = 0.3
    """Share of the pairs whose replies Dev3 wrote; the others are replies of known kinds from the world."""
    safety: int = 2000
    """Labelled replies; 106k in R1."""
    judging: JudgeConfig = field(default_factory=lambda: JudgeConfig(threshold=0.5))
    """How the judge is asked: rounds in both orders, retries, the difference that keeps a pair (1 in R1; at 1 the pairs
    of a full and a bare answer drop out here, and the model learns that bare is good)."""
    noise: float = 0.15
    """Standard deviation of the stand-in judge's error, on a scale where utility goes from 0 to 1."""
    position_bias: float = 0.1
    """How much the stand-in judge prefers the reply that stands first, on the same scale."""
    judge: str = ""
    """A model folder, or the URL of an endpoint, that judges instead of the stand-in."""
    judge_model: str = ""
    """Name of the model at that URL."""

    def validate(self) -> None:
        """Raise UsageError for counts below 1, a share outside 0 to 1, or a judge who is never asked."""
        _check_counts("preferences.", self, "pairs", "safety")
        _check_shares("preferences.", self, "sampled")
        _check_part("preferences", self.judging)
        if self.judge.startswith(URL) and not self.judge_model:
            raise UsageError(f"{self.judge} serves models by name", "name one: --preferences.judge_model NAME")


@dataclass(frozen=True)
class FinalConfig:
    """Stage 7: rules on reasoning prompts, preference on general ones, language everywhere (R1, B.3.5)."""

    grpo: GrpoConfig = field(
        default_factory=lambda: GrpoConfig(steps=40, temperature=0.7, lr=1e-4, max_tokens=192, schedule="constant")
    )
    """The reinforcement learning; temperature 0.7 as in R1."""
    preference_steps: int = 15
    """Last steps, in which general prompts and preference rewards take part; 400 of 1,700 in R1."""
    general: float = 0.5
    """Share of general prompts in those steps."""
    helpful_weight: float = 1.0
    """Weight of the helpful reward model."""
    safety_weight: float = 1.0
    """Weight of the safety reward model."""
    over_steps: int = 30
    """Steps a side branch goes on with preference alone, to see whether the proxy comes off the truth; 0 for none."""

    def validate(self) -> None:
        """Raise UsageError for steps and shares that cannot be."""
        _check_part("final.grpo", self.grpo)
        if not 0 <= self.preference_steps <= self.grpo.steps:
            raise UsageError(
                f"final.preference_steps {self.preference_steps} of {self.grpo.steps} steps",
                "use 0 to final.grpo.steps",
            )
        _check_shares("final.", self, "general")
        _check_counts("final.", self, "over_steps", least=0)


@dataclass(frozen=True)
class StudentsConfig:
    """Stage 8: two smaller students, and the small one by RL alone and by on-policy distillation."""

    models: tuple[str, ...] = ("0.5M", "tiny")
    """Size presets, or model folders; the first also takes the RL and the on-policy arms. None: no students."""
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(tokens=8_000_000, save_every=400))
    """Their bases' training, on the same shards."""
    rl: GrpoConfig = field(default_factory=lambda: GrpoConfig(steps=40, lr=1e-4, max_tokens=192))
    """The RL arm, from the student's base in the R1-Zero frame."""
    on_policy: DistillConfig = field(default_factory=DistillConfig)
    """The on-policy arm, from the student's SFT."""
    on_policy_from: str = "sft"
    """Where the on-policy arm starts: "sft" or "base"."""

    def validate(self) -> None:
        """Raise UsageError for students of one name, and for settings that cannot work."""
        names = [Path(model).name for model in self.models]
        if twice := [name for name in names if names.count(name) > 1]:
            what = f"students.models has two students named {twice[0]!r}, and a stage is named after its student"
            raise UsageError(what, "rename a folder, or leave one out")
        _check_part("students.pretrain", self.pretrain)
        _check_part("students.rl", self.rl)
        _check_part("students.on_policy", self.on_policy)
        if self.on_policy_from not in ("sft", "base"):
            raise UsageError(f"students.on_policy_from is {self.on_policy_from!r}", "use sft or base")


@dataclass(frozen=True)
class TableConfig:
    """How every stage is measured."""

    problems: int = 1000
    """Held-out reasoning problems, one sample each, in the shares of the training prompts."""
    general: int = 256
    """Held-out prompts of each general family."""
    max_tokens: int = 224
    """Longest completion of the table."""
    temperature: float = 0.6
    """Sampling temperature of the table; 0.6 in R1."""
    top_p: float = 0.95
    """Nucleus of the table; 0.95 in R1."""
    shown: int = 3
    """Prompts of each language shown side by side."""
    curve_problems: int = 192
    """Validation problems behind each point of a training curve."""
    curve_every: int = 10
    """RL steps between those points."""

    def validate(self) -> None:
        """Raise UsageError for counts below 1 and dice that cannot be thrown."""
        _check_counts("table.", self, "problems", "general", "max_tokens", "shown", "curve_problems", "curve_every")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            what = f"table.temperature {self.temperature} and top_p {self.top_p} draw nothing"
            raise UsageError(what, "use a temperature of 0 or more and a top_p above 0, at most 1")


@dataclass(frozen=True)
class R1Config:
    """The whole of R1."""

    model: str = "0.8M"
    """Size preset of the model trained from scratch."""
    arch: str = "dense"
    """What it is built of: dense, mla, moe, moe-mla, or v3 (moe-mla with multi-token prediction), all with as many weights a token."""
    vocab_size: int = 1536
    """Tokenizer size."""
    tokenizer_pages: int = 30_000
    """Pages the tokenizer is trained on."""
    world: Knobs = field(default_factory=Knobs)
    """What the generated web contains."""
    crawl: CrawlConfig = field(default_factory=CrawlConfig)
    """How it comes to us."""
    tasks: TasksConfig = field(default_factory=TasksConfig)
    """What the reasoning stages ask."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """1. The base."""
    zero: GrpoConfig = field(default_factory=GrpoConfig)
    """1. R1-Zero."""
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    """2. Its data."""
    cold_sft: SftConfig = field(default_factory=SftConfig)
    """2. SFT of the base: Dev1."""
    reasoning: GrpoConfig = field(default_factory=GrpoConfig)
    """3. Reasoning RL with the language reward: Dev2."""
    language_weight: float = 1.0
    """3. Weight of the language-consistency reward; 1 in R1."""
    ablation_steps: int = 30
    """3. Steps of a side branch without that reward, for the comparison; 0 for none."""
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    """4. Rejection sampling."""
    sft: SftConfig = field(default_factory=SftConfig)
    """5. SFT of the base on the union: Dev3."""
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    """6. Pairs and labels."""
    helpful: RmConfig = field(default_factory=RmConfig)
    """6. The helpful reward model."""
    safety: RmConfig = field(default_factory=lambda: RmConfig(kind="pointwise"))
    """6. The safety reward model."""
    final: FinalConfig = field(default_factory=FinalConfig)
    """7. The final RL: R1."""
    students: StudentsConfig = field(default_factory=StudentsConfig)
    """8. Distillation."""
    table: TableConfig = field(default_factory=TableConfig)
    """The stage table."""
    base: str = ""
    """Hugging Face model folder or name to start from instead of pretraining one."""
    sampler: str = ""
    """URL of an endpoint that answers in the data stages (cold start, rejection) instead of the run's own model."""
    sampler_model: str = ""
    """Name of the model at that URL."""
    base_seed: int = -1
    """Seed of the world and the base; -1 takes the run's seed. Runs that agree share one base."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    save_every: int = 10
    """Steps between checkpoints of RL and SFT."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        model_preset(self.model, self.vocab_size, self.arch)
        own: tuple[Settings, ...] = (
            self.world,
            self.crawl,
            self.tasks,
            self.cold_start,
            self.rejection,
            self.preferences,
        )
        for settings in (*own, self.final, self.students, self.table):
            settings.validate()
        for name in ("pretrain", "zero", "cold_sft", "reasoning", "sft", "helpful", "safety"):
            _check_part(name, getattr(self, name))
        if (self.helpful.kind, self.safety.kind) != ("pairwise", "pointwise"):
            what = f"helpful is {self.helpful.kind} and safety {self.safety.kind}"
            raise UsageError(
                what, "pairs teach the helpful model, labelled replies the safety one: leave kind as it is"
            )
        _check_counts("", self, "tokenizer_pages", "save_every")
        _check_counts("", self, "ablation_steps", least=0)
        if self.sampler and not self.sampler.startswith(URL):
            raise UsageError(f"sampler {self.sampler!r} is no URL", "give one that begins with http:// or https://")
        if self.sampler and not self.sampler_model:
            raise UsageError(f"{self.sampler} serves models by name", "name one: --sampler_model NAME")
