"""The knobs of the recipe `rm`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from dunwu.model.lora_config import LoraConfig
from dunwu.train.rm_config import RmConfig
from dunwu.types import UsageError


@dataclass(frozen=True)
class RmRunConfig(RmConfig):
    """A reward model from any model folder and a user's own pairs or labelled replies."""

    model: str = ""
    """Model folder in Hugging Face's layout, or RUN:STAGE, that becomes the reward model."""
    data: tuple[str, ...] = ()
    """JSONL files: pairs (messages, chosen, rejected), rankings (messages, replies), or conversations whose meta says "safe": true or false."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters instead of full training, from rank 1 on; the artifact then has them in `adapter/` as well."""
    held_out_every: int = 20
    """Updates between held-out figures."""
    save_every: int = 20
    """Updates between checkpoints."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    @property
    def rm(self) -> RmConfig:
        """The training's settings alone."""
        return RmConfig(**{setting.name: getattr(self, setting.name) for setting in fields(RmConfig)})

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to start from", "name a model folder: --model FOLDER")
        if not self.data:
            raise UsageError("there is nothing to learn from", "name your files: --data FILE [FILE …]")
        if self.held_out_every < 1 or self.save_every < 1:
            raise UsageError("held_out_every and save_every begin at 1", "raise the one below 1")
        self.rm.validate()
        self.lora.validate()


RM_PRESETS: dict[str, RmRunConfig] = {
    "cpu": RmRunConfig(),
    "tiny": RmRunConfig(rows=16, warmup=2, held_out_every=5, save_every=5),
    "gpu": RmRunConfig(rows=256, context=8192, lr=6e-6, micro_tokens=65_536),
}
