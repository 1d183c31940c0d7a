"""The knobs of the recipe `rl-study`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dunwu.model.config import model_preset
from dunwu.recipes.r1_presets import R1_PRESETS, WIDE
from dunwu.train.config import GrpoConfig, PolicyConfig, PretrainConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.variants import VARIANTS, variant_config
from dunwu.types import UsageError
from dunwu.world.knobs import Knobs

TASKS = ("countdown", "knights")
"""What can be asked."""
VARIANT_TASK = "countdown"
"""What the variants are compared on."""


@dataclass(frozen=True)
class RlStudyConfig:
    """One base, many ways to reinforce it: every arm on the same problems, with as many samples.

    A part of the study (`--tasks knights --variants`) makes the same artifacts as the whole, so parts can be made
    by processes side by side, and the whole then finds them.
    """

    tasks: tuple[str, ...] = TASKS
    """What is asked, in R1-Zero's frame: countdown, knights."""
    arms: tuple[str, ...] = ("grpo", "dunwu", "ppo", "ppo-lambda-1")
    """Variants compared on every task and seed; dunwu is GRPO with PPO's denominator and without a KL."""
    more_seeds: tuple[int, ...] = (1, 2)
    """Seeds of the reinforcement besides the run's own; the base is the same for all."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Compared on Countdown, seeds below; none: --variants."""
    variant_seeds: int = 1
    """Seeds of each variant: the run's own and the first of more_seeds."""
    shared: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(steps=60, problems=16, lr=4e-4, minibatches=2, max_tokens=192)
    )
    """What all arms have in common; each changes only what makes it what it is."""
    three: float = 0.3
    """Share of knights-and-knaves puzzles that have three people; the others have two."""
    chinese: float = 0.3
    """Share of problems asked in Chinese."""
    held_out: int = 256
    """Validation problems behind each point of the held-out curve; knights has fewer."""
    held_out_samples: int = 1
    """Samples of each."""
    held_out_every: int = 5
    """Steps between those points."""
    test: int = 256
    """Test problems of the final score; knights has fewer."""
    test_samples: int = 16
    """Samples of each: pass@k up to this k."""
    base: str = ""
    """Model folder, or RUN:STAGE, to start from instead of pretraining one."""
    model: str = "0.8M"
    """Size preset of the base."""
    arch: str = "dense"
    """What it is built of: dense, mla, moe, moe-mla, or v3."""
    vocab_size: int = 1536
    """Tokenizer size."""
    tokenizer_pages: int = 30_000
    """Pages the tokenizer is trained on."""
    world: Knobs = WIDE
    """What the pages contain."""
    pretrain: PretrainConfig = field(default_factory=lambda: R1_PRESETS["cpu"].pretrain)
    """The base's training."""
    base_seed: int = -1
    """Seed of the world and the base; -1 takes the run's seed."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    save_every: int = 10
    """Steps between checkpoints."""

    def settings(self, arm: str) -> GrpoConfig | PpoConfig:
        """The whole settings of an arm.

        Raises:
            UsageError: no such variant.
        """
        return variant_config(arm, self.shared)

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if unknown := set(self.tasks) - set(TASKS):
            raise UsageError(f"no task {min(unknown)!r} in this study", "choose from " + ", ".join(TASKS))
        if not (self.tasks and self.arms) and not self.variants:
            raise UsageError("there is nothing to compare", "name --tasks and --arms, or --variants")
        for arm in (*self.arms, *self.variants):
            self._check_arm(arm)
        counts = ("held_out", "held_out_samples", "held_out_every", "test", "test_samples", "save_every")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        if not 0 <= self.variant_seeds <= 1 + len(self.more_seeds):
            what = f"variant_seeds is {self.variant_seeds}, and there are {1 + len(self.more_seeds)} seeds"
            raise UsageError(what, "name more with --more_seeds")
        if len(set(self.more_seeds)) < len(self.more_seeds):
            raise UsageError(f"more_seeds {' '.join(map(str, self.more_seeds))}: a seed is there twice", "name others")
        for name in ("three", "chinese"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)} is no share", "choose between 0 and 1")
        if not self.base:
            model_preset(self.model, self.vocab_size, self.arch)
            self.world.validate()
            self.pretrain.validate()

    def _check_arm(self, arm: str) -> None:
        settings = self.settings(arm)
        try:
            settings.validate()
        except UsageError as error:
            raise UsageError(f"{arm}: {error.what}", error.cure) from None


RL_STUDY_PRESETS: dict[str, RlStudyConfig] = {
    "cpu": RlStudyConfig(),
    "tiny": RlStudyConfig(
        arms=("grpo", "ppo", "ppo-lambda-1"),
        more_seeds=(1,),
        variants=("grpo", "dapo", "reinforce++"),
        shared=PolicyConfig(steps=4, problems=4, group_size=4, max_tokens=48, warmup=1, overlong_buffer=16),
        held_out=8,
        held_out_every=2,
        test=8,
        test_samples=4,
        model="tiny",
        vocab_size=512,
        tokenizer_pages=1500,
        pretrain=replace(R1_PRESETS["tiny"].pretrain, tokens=200_000),
        save_every=2,
    ),
}
