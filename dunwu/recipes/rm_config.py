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
    """Model folder in Hugging Face's layout, or RUN:STAGE, that gets the scalar head."""
    data: tuple[str, ...] = ()
    """JSONL files: pairs (messages, chosen, rejected), or conversations whose meta says "safe": true or false."""
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


@dataclass(frozen=True)
class CrowdConfig:
    """Labelers of the world (`dunwu.world.labelers`): who they are, without what they label."""

    labelers: int = 5
    """People who share the work."""
    temperature: float = 0.2
    """Mean τ; at 0.2 two of them agree on 0.75 of the world's pairs, as InstructGPT's did on 0.73 to 0.77 of theirs."""
    spread: float = 0.5
    """Their temperatures lie from τ·(1 − spread) to τ·(1 + spread)."""
    length_taste: float = 0.0
    """Value they all see in 100 more characters."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.labelers < 1 or self.temperature < 0 or not 0 <= self.spread <= 1:
            raise UsageError(
                f"labelers that cannot be: {self}", "one or more, a temperature from 0, a spread from 0 to 1"
            )


@dataclass(frozen=True)
class RmStudyConfig:
    """Reward models of every kind on the same number of labelled replies, held to the best that can be had of noisy labels."""

    model: str = ""
    """Model folder in Hugging Face's layout, or RUN:STAGE, that has read the world."""
    replies: int = 192_000
    """Replies that every arm learns from, once: half as many pairs, an eighth as many rankings of eight."""
    ranked: int = 8
    """Replies of a ranking, K; 4 to 9 in InstructGPT."""
    test: int = 4000
    """Pairs of requests that no arm has seen, to measure on."""
    batch: int = 128
    """Replies per update in every arm."""
    members: int = 3
    """Models of the arm `ensemble`, which learns from rankings."""
    arms: tuple[str, ...] = ("pairs", "margin", "rankings", "plackett-luce", "labels", "ensemble")
    """What is compared."""
    crowd: CrowdConfig = field(default_factory=CrowdConfig)
    """Who labels."""
    rm: RmConfig = field(default_factory=lambda: RmConfig(lr=7e-4, length_balance=False, held_out=0.01))
    """What all arms share; kind, rows and members are each arm's own."""
    held_out_every: int = 100
    """Updates between held-out figures."""
    save_every: int = 100
    """Updates between checkpoints."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to start from", "name one that has read the world: --model RUN:base")
        counts = ("test", "held_out_every", "save_every")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        if self.ranked < 3 or self.members < 2:
            raise UsageError("a ranking has 3 replies or more, an ensemble 2 members or more", "raise the one below")
        if self.batch < self.ranked or self.replies < 20 * self.batch:
            raise UsageError(
                f"{self.replies} replies in batches of {self.batch}", "20 batches or more, each of a ranking or more"
            )
        if odd := set(self.arms) - set(type(self).arms):
            raise UsageError(f"unknown arm {min(odd)!r}", f"some of {', '.join(type(self).arms)}")
        self.crowd.validate()
        self.rm.validate()


RM_STUDY_PRESETS: dict[str, RmStudyConfig] = {
    "cpu": RmStudyConfig(),
    "tiny": RmStudyConfig(replies=1280, batch=32, test=200, members=2, held_out_every=10, save_every=10),
    "gpu": RmStudyConfig(replies=1_500_000, batch=256),
}
