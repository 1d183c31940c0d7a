"""The recipe `r1` in three sizes, and over several seeds: values for the settings of `r1_config.py`; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dunwu.recipes.r1_config import (
    ColdStartConfig,
    CrawlConfig,
    FinalConfig,
    PreferenceConfig,
    R1Config,
    RejectionConfig,
    StudentsConfig,
    TableConfig,
)
from dunwu.train.config import GrpoConfig, PretrainConfig, SftConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.rm_config import RmConfig
from dunwu.world.crawl import CrawlKnobs
from dunwu.world.knobs import Hands, Knobs

WIDE = Knobs(
    countdown=0.9,
    general=0.22,
    knights=0.1,
    worked_problems=0.05,
    chinese=0.25,
    mixed_thinking=0.5,
    chinese_hands=Hands(guess=0.25, worked=0.2, search=0.15, backward=0.4),
)
"""The web of R1: Countdown, puzzles, sums, and everything else people talk about; Chinese authors who think in English."""

_RL = GrpoConfig(steps=60, lr=2e-4, minibatches=2, max_tokens=192)
"""Reinforcement at the cpu preset; two updates a batch, where R1 has sixteen."""
_TINY_GRPO = GrpoConfig(steps=4, problems=6, group_size=4, max_tokens=64, warmup=1, lr=1e-4)
_TINY_SFT = SftConfig(epochs=2, context=256, batch_tokens=2048, warmup=2)
_TINY_RM = RmConfig(rows=16, warmup=2)

R1_PRESETS: dict[str, R1Config] = {
    "cpu": R1Config(
        world=WIDE,
        crawl=CrawlConfig(pages=880_000),
        pretrain=PretrainConfig(tokens=56_000_000),
        zero=_RL,
        cold_start=ColdStartConfig(examples=900),
        cold_sft=SftConfig(epochs=2, context=320, batch_tokens=4096, lr=1e-3, warmup=5),
        reasoning=replace(_RL, steps=100),
        sft=SftConfig(epochs=2, context=320, batch_tokens=8192, lr=1e-3, warmup=10),
        preferences=PreferenceConfig(pairs=96_000),
        helpful=RmConfig(lr=5e-4),
        safety=RmConfig(kind="pointwise", lr=5e-4),
        final=FinalConfig(grpo=replace(_RL, steps=30, lr=1e-4, temperature=0.7, schedule="constant")),
        students=StudentsConfig(rl=replace(_RL, steps=30), on_policy=DistillConfig(steps=160, group_size=1)),
    ),
    "tiny": R1Config(
        model="tiny",
        vocab_size=640,
        tokenizer_pages=2000,
        world=WIDE,
        crawl=CrawlConfig(pages=3000, rubbish=CrawlKnobs(contaminated=0.002, dump=1500)),
        pretrain=PretrainConfig(
            tokens=400_000, rows=16, context=128, warmup=10, log_every=10, eval_every=150, save_every=50
        ),
        zero=_TINY_GRPO,
        cold_start=ColdStartConfig(problems=48, samples=2, examples=40, general=0.6),
        cold_sft=_TINY_SFT,
        reasoning=_TINY_GRPO,
        ablation_steps=4,
        rejection=RejectionConfig(problems=48, samples=2),
        sft=_TINY_SFT,
        preferences=PreferenceConfig(pairs=120, safety=80),
        helpful=_TINY_RM,
        safety=replace(_TINY_RM, kind="pointwise"),
        final=FinalConfig(grpo=replace(_TINY_GRPO, temperature=0.7), preference_steps=2, over_steps=2),
        students=StudentsConfig(
            models=("tiny",),
            pretrain=PretrainConfig(
                tokens=100_000, rows=16, context=128, warmup=5, log_every=10, eval_every=40, save_every=20
            ),
            rl=_TINY_GRPO,
            on_policy=DistillConfig(steps=3, problems=6, group_size=1, max_tokens=64, warmup=1),
        ),
        table=TableConfig(problems=16, general=16, max_tokens=64, shown=2, curve_problems=16, curve_every=2),
        save_every=2,
    ),
    "gpu": R1Config(
        model="12M",
        vocab_size=4096,
        world=WIDE,
        crawl=CrawlConfig(pages=6_000_000),
        pretrain=PretrainConfig(tokens=400_000_000, rows=256, context=256, warmup=200, save_every=500),
        zero=GrpoConfig(steps=200, problems=128, lr=1e-4),
        reasoning=GrpoConfig(steps=200, problems=128, lr=1e-4),
    ),
}


@dataclass(frozen=True)
class R1StudyConfig:
    """R1 over several seeds."""

    recipe: R1Config = field(default_factory=lambda: R1_PRESETS["cpu"])
    """What every run of the study is made with."""
    more_seeds: tuple[int, ...] = (1, 2)
    """Seeds besides the run's own; each has a base of its own, and no students and side branches."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        self.recipe.validate()


def without_side_branches(config: R1Config) -> R1Config:
    """The line from the base to R1 alone: no students, no ablation, no over-optimisation."""
    return replace(
        config,
        ablation_steps=0,
        final=replace(config.final, over_steps=0),
        students=replace(config.students, models=()),
    )


R1_STUDY_PRESETS: dict[str, R1StudyConfig] = {
    "cpu": R1StudyConfig(),
    "tiny": R1StudyConfig(recipe=R1_PRESETS["tiny"], more_seeds=(1,)),
}
