"""The knobs of the recipe `ppo`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dunwu.recipes.grpo_config import RlRunConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.variants import variant_config
from dunwu.types import UsageError


@dataclass(frozen=True)
class PpoRunConfig(RlRunConfig):
    """PPO and REINFORCE++, from any model folder, on any task."""

    ppo: PpoConfig = field(default_factory=PpoConfig)
    """The reinforcement learning."""
    critic_from: str = ""
    """Reward model (folder or RUN:STAGE) that the critic begins from, as in InstructGPT; none: from the policy."""
    ptx_data: str = ""
    """Folder of token shards, or RUN:STAGE, for the pretraining mix of `ppo.ptx_coef`."""
    ptx_rows: int = 32
    """Windows of it an update; InstructGPT takes 8 pretraining examples for every episode."""
    ptx_context: int = 256
    """Tokens of such a window."""

    @property
    def settings(self) -> PpoConfig:
        """The algorithm, its variant's settings included.

        Raises:
            UsageError: no such variant, or one of GRPO's.
        """
        found = variant_config(self.variant, self.ppo) if self.variant else self.ppo
        if not isinstance(found, PpoConfig):
            raise UsageError(f"{self.variant} is a variant of GRPO", f"dunwu run grpo --variant {self.variant}")
        return found

    def resolved(self) -> PpoRunConfig:
        """The same with the variant's settings in their places, as run folder and report show them."""
        return replace(self, ppo=self.settings)

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        settings = self.settings
        self.check(settings)
        if settings.ptx_coef and not self.ptx_data:
            raise UsageError("ppo.ptx_coef without pretraining pages", "name token shards: --ptx_data FOLDER")
        if settings.ptx_coef and settings.minibatches * settings.epochs >= 4096:  # ppo.pages_of counts on it
            raise UsageError("the pretraining mix with 4096 updates a step or more", "lower ppo.minibatches or epochs")
        if min(self.ptx_rows, self.ptx_context) < 1:
            raise UsageError("ptx_rows and ptx_context begin at 1", "raise the one below 1")
        if self.critic_from and settings.critic != "own":
            raise UsageError(f"critic_from with a critic that is {settings.critic}", "use --ppo.critic own")


PPO_PRESETS: dict[str, PpoRunConfig] = {
    "cpu": PpoRunConfig(),
    "tiny": PpoRunConfig(
        ppo=PpoConfig(steps=6, problems=8, group_size=8, max_tokens=32, warmup=2),
        held_out=32,
        held_out_every=3,
        save_every=2,
    ),
    "gpu": PpoRunConfig(
        ppo=PpoConfig(steps=200, problems=512, group_size=1, max_tokens=1024, lr=1e-6, value_lr=9e-6, minibatches=8)
    ),
}
