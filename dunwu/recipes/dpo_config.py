"""The knobs of the recipe `dpo`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from dunwu.model.lora_config import LoraConfig
from dunwu.train.config import Precision
from dunwu.train.dpo_config import DpoConfig
from dunwu.types import UsageError


@dataclass(frozen=True)
class DpoRunConfig:
    """A user's own preferences taught to a user's own model, without a reward model and without sampling."""

    model: str = ""
    """Model folder in Hugging Face's layout, or RUN:STAGE; it is also the reference."""
    data: tuple[str, ...] = ()
    """JSONL files of pairs (messages, chosen, rejected); for kto also of conversations labelled good or bad."""
    dpo: DpoConfig = field(default_factory=DpoConfig)
    """The training."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters instead of full training, from rank 1 on; the artifact then has them in `adapter/` as well."""
    held_out_every: int = 20
    """Updates between held-out figures."""
    save_every: int = 20
    """Updates between checkpoints."""
    precision: Precision = "auto"
    """Weights and activations; "auto" is bf16 where the processor multiplies it fast."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to start from", "name a model folder: --model FOLDER")
        if not self.data:
            raise UsageError("there is nothing to learn from", "name your files: --data FILE [FILE …]")
        if self.held_out_every < 1 or self.save_every < 1:
            raise UsageError("held_out_every and save_every begin at 1", "raise the one below 1")
        if self.lora.dropout:
            raise UsageError(f"lora.dropout is {self.lora.dropout}", "leave it out: policy and reference begin as one")
        self.dpo.validate()
        self.lora.validate()


DPO_PRESETS: dict[str, DpoRunConfig] = {
    "cpu": DpoRunConfig(),
    "tiny": DpoRunConfig(dpo=DpoConfig(rows=16, warmup=2, lr=3e-4), held_out_every=5, save_every=5),
    # Rates of the papers, for models of billions (SimPO's table of them, arXiv 2405.14734, appendix B).
    "gpu": DpoRunConfig(dpo=DpoConfig(rows=128, context=2048, lr=5e-7, warmup=20, micro_tokens=65_536)),
}
