"""The knobs of the recipe `expert`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from dunwu.train.config import SftConfig
from dunwu.train.expert_config import ExpertConfig
from dunwu.types import UsageError


@dataclass(frozen=True)
class ExpertRunConfig:
    """Expert iteration: a model fine-tuned on its own right samples, round after round; nothing but a verifier is needed."""

    model: str = ""
    """Model folder in Hugging Face's layout, or RUN:STAGE."""
    task: str = "countdown"
    """Name from `dunwu tasks`, or a task file (FILE.py)."""
    data: str = ""
    """Problems for a named task: a file, or for gsm8k and math also a folder with train.jsonl and test.jsonl."""
    options: tuple[str, ...] = ()
    """Options of a named task as NAME=VALUE."""
    rounds: int = 3
    """Times of sampling, keeping and training."""
    from_start: bool = True
    """Every round trains the first model anew, as STaR does; else the round before goes on."""
    accumulate: bool = False
    """A round trains on what all rounds so far have kept, not on its own alone."""
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    """What a round asks and keeps."""
    sft: SftConfig = field(default_factory=SftConfig)
    """The training of a round."""
    held_out: int = 256
    """Validation problems behind the accuracy of the first model and of every round, one sample each."""
    save_every: int = 50
    """Updates between checkpoints."""
    chunk: int = 64
    """Problems sampled between two saves."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to start from", "name a model folder: --model FOLDER")
        if low := [name for name in ("rounds", "held_out", "save_every", "chunk") if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        self.expert.validate()
        self.sft.validate()


EXPERT_PRESETS: dict[str, ExpertRunConfig] = {
    "cpu": ExpertRunConfig(
        expert=ExpertConfig(problems=512),
        sft=SftConfig(epochs=2, batch_tokens=8192, lr=3e-4, weight_decay=0.0),
    ),
    "tiny": ExpertRunConfig(
        rounds=2,
        expert=ExpertConfig(problems=32, samples=4, max_tokens=48),
        sft=SftConfig(epochs=1, context=256, batch_tokens=1024, warmup=2, lr=3e-4, weight_decay=0.0),
        held_out=32,
        save_every=5,
        chunk=16,
    ),
    "gpu": ExpertRunConfig(
        expert=ExpertConfig(problems=8192, samples=16, max_tokens=4096),
        sft=SftConfig(context=8192, batch_tokens=262_144, micro_tokens=32_768, lr=1e-5, warmup=20, weight_decay=0.0),
        chunk=512,
    ),
}
