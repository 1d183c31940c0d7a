"""The knobs of the recipe `rm-study`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dunwu.model.config import model_preset
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.recipes.rlhf_config import RLHF_PRESETS, DemonstrationConfig
from dunwu.train.config import PretrainConfig, SftConfig, check_rate
from dunwu.train.rm_config import RmConfig
from dunwu.types import UsageError
from dunwu.world.knobs import Knobs


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


_R1, _TINY = R1_PRESETS["cpu"], RLHF_PRESETS["tiny"]


@dataclass(frozen=True)
class RmStudyConfig:
    """Reward models of every kind on the same number of labelled replies, held to the best that can be had of noisy labels."""

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
    arms: tuple[str, ...] = ("pairs", "margin", "rankings", "plackett-luce", "labels", "ensemble", "likelihood")
    """What is compared; all but `likelihood` have a scalar head."""
    crowd: CrowdConfig = field(default_factory=CrowdConfig)
    """Who labels."""
    rm: RmConfig = field(default_factory=lambda: RmConfig(lr=1e-3, length_balance=False, held_out=0.01))
    """What all arms share; kind, rows, ranking, margin, head and members are each arm's own."""
    likelihood_lr: float = 4e-4
    """Learning rate of the arm `likelihood`, instead of the others': it lives by what it knew before, and forgets less at a lower one."""
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
    world: Knobs = field(default_factory=lambda: replace(_R1.world, general=0.9, chinese=0.4))
    """What the pages contain: mostly what the labelled requests are about."""
    pretrain: PretrainConfig = field(default_factory=lambda: replace(_R1.pretrain, tokens=30_000_000))
    """The base's training."""
    base_seed: int = -1
    """Seed of the world and the base; -1 takes the run's seed."""
    chinese: float = 0.4
    """Share of demonstrations in Chinese."""
    demonstrations: DemonstrationConfig = field(default_factory=lambda: DemonstrationConfig(rows=80_000, clean=0.7))
    """What the base is fine-tuned on before any label is seen."""
    sft: SftConfig = field(
        default_factory=lambda: SftConfig(epochs=1, context=256, batch_tokens=8192, lr=1e-3, warmup=10)
    )
    """How."""
    held_out_every: int = 100
    """Updates between held-out figures."""
    save_every: int = 100
    """Updates between checkpoints."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def settings(self) -> dict[str, RmConfig]:
        """What is compared: the settings of each arm by its name."""
        shared = replace(self.rm, head="scalar", margin=0.0, ranking="pairs", members=1)
        pairs = replace(shared, kind="pairwise", rows=max(1, self.batch // 2))
        rankings = replace(shared, kind="ranking", rows=max(1, self.batch // self.ranked))
        every = {
            "pairs": pairs,
            "margin": replace(pairs, margin=1 / 3),
            "rankings": rankings,
            "plackett-luce": replace(rankings, ranking="plackett-luce"),
            "labels": replace(shared, kind="pointwise", rows=self.batch),
            "ensemble": replace(rankings, members=self.members),
            "likelihood": replace(rankings, head="likelihood", lr=self.likelihood_lr),
        }
        return {name: every[name] for name in self.arms}

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
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
        if not self.arms:
            raise UsageError("there is nothing to compare", f"some of {', '.join(type(self).arms)}")
        check_rate(self.likelihood_lr)
        for part in (self.crowd, self.demonstrations, self.sft):
            part.validate()
        for settings in self.settings().values():
            settings.validate()
        if not self.base:
            longest = model_preset(self.model, self.vocab_size, self.arch).max_position_embeddings
            if max(self.rm.context, self.sft.context) > longest:
                raise UsageError(f"a context beyond the model's {longest}", "lower --rm.context or --sft.context")
            self.world.validate()
            self.pretrain.validate()


RM_STUDY_PRESETS: dict[str, RmStudyConfig] = {
    "cpu": RmStudyConfig(),
    "tiny": RmStudyConfig(
        replies=1280,
        batch=32,
        test=200,
        members=2,
        model=_TINY.model,
        vocab_size=_TINY.vocab_size,
        tokenizer_pages=_TINY.tokenizer_pages,
        pretrain=_TINY.pretrain,
        demonstrations=_TINY.demonstrations,
        sft=_TINY.sft,
        held_out_every=10,
        save_every=10,
    ),
    "gpu": RmStudyConfig(
        replies=1_500_000,
        batch=256,
        model="12M",
        vocab_size=4096,
        pretrain=replace(R1_PRESETS["gpu"].pretrain, tokens=200_000_000),
    ),
}
