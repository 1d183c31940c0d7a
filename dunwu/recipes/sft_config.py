"""The knobs of the recipe `sft`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from dunwu.model.lora_config import LoraConfig
from dunwu.train.config import Precision, SftConfig
from dunwu.types import UsageError


@dataclass(frozen=True)
class SftRunConfig:
    """A user's own conversations taught to a user's own model."""

    model: str = ""
    """Hugging Face model folder to start from, or RUN:STAGE."""
    data: tuple[str, ...] = ()
    """Files of conversations: one JSON object a line, {"messages": […]}, ShareGPT's or Alpaca's."""
    held_out: float = 0.05
    """Share of the conversations that is never trained on; 0 for none. Equal conversations stay on one side."""
    sft: SftConfig = field(default_factory=SftConfig)
    """The training."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters instead of full training, from rank 1 on; the artifact then has them in `adapter/` as well."""
    eval_every: int = 50
    """Updates between held-out losses."""
    save_every: int = 50
    """Updates between checkpoints."""
    precision: Precision = "auto"
    """Weights and activations; "auto" is bf16 where the processor multiplies it fast."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to train", "name one: --model FOLDER, or RUN:STAGE")
        if not self.data:
            raise UsageError("there is nothing to train on", "name your files: --data FILE [FILE …]")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose 0 or more and less than 1, e.g. 0.05")
        if min(self.eval_every, self.save_every) < 1:
            raise UsageError("eval_every and save_every count from 1", "raise the one below 1")
        self.sft.validate()
        self.lora.validate()


SFT_PRESETS: dict[str, SftRunConfig] = {
    "cpu": SftRunConfig(),
    "tiny": SftRunConfig(
        held_out=0.2, sft=SftConfig(context=256, batch_tokens=1024, warmup=2, lr=3e-3), eval_every=5, save_every=5
    ),
    # R1's rate, for a model of billions (arXiv 2501.12948, B.4).
    "gpu": SftRunConfig(
        sft=SftConfig(context=4096, batch_tokens=262_144, micro_tokens=32_768, lr=5e-5, warmup=20, weight_decay=0.0)
    ),
}
