"""The knobs of the recipe `grpo`, and what it shares with `ppo`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite

from dunwu.model.lora_config import LoraConfig
from dunwu.train.config import GrpoConfig, PolicyConfig
from dunwu.train.variants import variant_config
from dunwu.types import UsageError


@dataclass(frozen=True)
class RlRunConfig:
    """Reinforcement learning from any model folder, on any task: what GRPO and PPO share."""

    model: str = ""
    """Model folder in Hugging Face's layout, or RUN:STAGE."""
    task: str = "countdown"
    """Name from `dunwu tasks`, or a task file (FILE.py)."""
    data: str = ""
    """Problems for a named task: a file, or for gsm8k and math also a folder with train.jsonl and test.jsonl."""
    options: tuple[str, ...] = ()
    """Options of a named task as NAME=VALUE."""
    reward: tuple[str, ...] = ()
    """Reward functions in TRL's signature, FILE.py:FUNCTION; none: the task's own score is the reward."""
    reward_weights: tuple[float, ...] = ()
    """Weight of each of them; none: 1 each."""
    task_weight: float = 0.0
    """Weight of the task's own score beside those functions."""
    variant: str = ""
    """A named algorithm (docs/algorithms.md); its settings take the place of these. None: as the settings say."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters instead of full training, from rank 1 on; the artifact then has them in `adapter/` as well."""
    held_out: int = 128
    """Validation problems behind each point of the held-out curve."""
    held_out_every: int = 10
    """Steps between those points."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    save_every: int = 10
    """Steps between checkpoints."""

    def check(self, settings: PolicyConfig) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to start from", "name a model folder: --model FOLDER")
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            what = f"{len(self.reward_weights)} reward_weights for {len(self.reward)} rewards"
            raise UsageError(what, "give one weight for each")
        if not all(map(isfinite, (*self.reward_weights, self.task_weight))):
            raise UsageError("a reward weight is no finite number", "give numbers")
        if self.task_weight and not self.reward:
            raise UsageError("task_weight without reward functions", "add --reward FILE.py:FUNCTION, or leave it out")
        if min(self.held_out, self.held_out_every, self.save_every, settings.steps) < 1:
            raise UsageError("held_out, held_out_every, save_every and grpo.steps begin at 1", "raise the one below 1")
        if self.lora.dropout:
            raise UsageError(f"lora.dropout is {self.lora.dropout}", "leave it out: what is trained is what sampled")
        settings.validate()
        self.lora.validate()


@dataclass(frozen=True)
class GrpoRunConfig(RlRunConfig):
    """GRPO and its relatives, from any model folder, on any task."""

    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    """The reinforcement learning."""

    @property
    def settings(self) -> GrpoConfig:
        """The algorithm, its variant's settings included.

        Raises:
            UsageError: no such variant, or one of PPO's.
        """
        found = variant_config(self.variant, self.grpo) if self.variant else self.grpo
        if not isinstance(found, GrpoConfig):
            raise UsageError(f"{self.variant} is a variant of PPO", f"dunwu run ppo --variant {self.variant}")
        return found

    def resolved(self) -> GrpoRunConfig:
        """The same with the variant's settings in their places, as run folder and report show them."""
        return replace(self, grpo=self.settings)

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        self.check(self.settings)


GRPO_PRESETS: dict[str, GrpoRunConfig] = {
    "cpu": GrpoRunConfig(),
    "tiny": GrpoRunConfig(
        grpo=GrpoConfig(steps=6, problems=8, group_size=8, max_tokens=32, warmup=2),
        held_out=32,
        held_out_every=3,
        save_every=2,
    ),
    "gpu": GrpoRunConfig(grpo=GrpoConfig(steps=200, problems=32, group_size=16, max_tokens=1024, lr=1e-6)),
}
