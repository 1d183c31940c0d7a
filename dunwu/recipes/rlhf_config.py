"""The knobs of the recipe `rlhf`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dunwu.model.config import model_preset
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.train.config import GrpoConfig, PretrainConfig, SftConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.rm_config import RmConfig
from dunwu.types import UsageError
from dunwu.world.knobs import Knobs

Judges = Literal["one", "mean", "worst", "uncertainty"]
WORDS = "join with +: one, mean, worst, uncertainty (the judges), no-kl or kl-0.02 (β), ptx-0.5 (γ), grpo"


@dataclass(frozen=True)
class Arm:
    """One way to optimise the SFT model against learned preference, spelled in words: one judge, β = 0, no ptx and PPO are
    what is not said; `no-kl` says it.

    Example:
        >>> Arm.parse("worst+kl-0.02")
        Arm(name='worst+kl-0.02', judges='worst', kl_coef=0.02, ptx_coef=0.0, method='ppo')
    """

    name: str
    judges: Judges = "one"
    """The reward: the first reward model, or what all of them make together (Coste et al., arXiv 2310.02743)."""
    kl_coef: float = 0.0
    """β of the KL to the SFT model; 0.02 in InstructGPT."""
    ptx_coef: float = 0.0
    """γ of the pretraining mix; 27.8 in InstructGPT's PPO-ptx."""
    method: Literal["ppo", "grpo"] = "ppo"
    """PPO, with a value model that begins as the reward model, and the KL in the reward; or GRPO, and the KL in the loss."""

    @property
    def plain(self) -> bool:
        """Whether nothing holds it back: one judge, no KL, PPO."""
        return (self.judges, self.kl_coef, self.ptx_coef, self.method) == ("one", 0.0, 0.0, "ppo")

    @classmethod
    def parse(cls, name: str) -> Arm:
        """Read an arm's name.

        Raises:
            UsageError: a word that says nothing, or two that say the same kind of thing.
        """
        said: dict[str, Any] = {}
        value: str | float
        for word in name.split("+"):
            number = _number(word[word.find("-") + 1 :])
            if word in ("one", "mean", "worst", "uncertainty"):
                kind, value = "judges", word
            elif word == "grpo":
                kind, value = "method", word
            elif word == "no-kl" or (word.startswith("kl-") and number is not None):
                kind, value = "kl_coef", number or 0.0
            elif word.startswith("ptx-") and number is not None:
                kind, value = "ptx_coef", number
            else:
                raise UsageError(f"arm {name!r}: {word!r} says nothing", WORDS)
            if kind in said:
                raise UsageError(f"arm {name!r}: {word!r} is the second word of its kind", "say one of each kind")
            said[kind] = value
        arm = cls(name, **said)
        if arm.ptx_coef and arm.method == "grpo":
            raise UsageError(f"arm {name!r}: the pretraining mix is PPO's", "leave ptx out, or grpo")
        return arm


def _number(text: str) -> float | None:
    """A number from 0 on, written plainly."""
    return float(text) if text.replace(".", "", 1).isdecimal() and text.isascii() else None


@dataclass(frozen=True)
class DemonstrationConfig:
    """Conversations the SFT model learns from, of mixed quality, as collections are."""

    rows: int = 4000
    """Conversations; 12,725 in InstructGPT."""
    clean: float = 0.5
    """Share of them answered as well as the world can; the rest is bare, wrong, rude, or in the wrong language."""
    held_out: float = 0.1
    """Share that is not trained on; what the reward models make of it on average counts as 0."""

    def validate(self) -> None:
        """Raise UsageError for counts and shares that cannot be."""
        if self.rows < 20:
            raise UsageError(f"demonstrations.rows is {self.rows}", "use 20 or more")
        if not 0 <= self.clean <= 1 or not 0 < self.held_out < 1:
            what = f"demonstrations.clean {self.clean} and held_out {self.held_out}"
            raise UsageError(what, "choose shares, and hold something out")


@dataclass(frozen=True)
class ComparisonConfig:
    """Replies of the SFT model, ranked by labelers who err (`world/labelers.py`)."""

    prompts: int = 3000
    """Prompts with ranked replies; 33,207 in InstructGPT. Few on purpose: what is studied is an imperfect judge."""
    replies: int = 4
    """K: replies to each; 4 to 9 in InstructGPT. Equal ones are one."""
    held_out: int = 300
    """Further prompts, of another split, on which the reward models are measured."""
    labelers: int = 5
    """Labelers who share the work; about 40 in InstructGPT."""
    noise: float = 0.15
    """τ: the difference of true utility, from 0 to 1, that a labeler prefers with odds e : 1."""
    length_taste: float = 0.0
    """What labelers add to a reply's worth for every 100 characters, whatever it says."""

    def validate(self) -> None:
        """Raise UsageError for what cannot be ranked."""
        if min(self.prompts, self.held_out) < 8 or self.replies < 2:
            raise UsageError("comparisons: too few", "use 8 prompts or more, 8 held_out or more, 2 replies or more")
        if self.noise < 0 or self.labelers < 1:
            raise UsageError("comparisons: noise counts from 0, labelers from 1", "raise the one below")


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured on the way, and at the end."""

    every: int = 5
    """Steps between two points of a curve; the model of every point is kept."""
    problems: int = 256
    """Validation prompts behind a point, one reply each."""
    final: int = 2000
    """Test prompts behind the claims: SFT, and of each arm the peak, the stop and the end."""
    kl_budget: float = 2.0
    """Nats a reply beyond which early stopping stops: the last point before is taken, whatever the truth."""
    best_of: int = 32
    """Replies of the SFT model to each validation prompt, for the curve of best-of-n; 0 for none."""
    shown: int = 4
    """Test prompts whose replies stand side by side in the report."""

    def validate(self) -> None:
        """Raise UsageError for counts below what can be measured."""
        if min(self.every, self.problems, self.shown) < 1 or self.final < 2 or self.best_of < 0:
            raise UsageError("measure: counts begin at 1, final at 2, best_of at 0", "raise the one below")
        if not self.kl_budget > 0:
            raise UsageError(f"measure.kl_budget is {self.kl_budget}", "use a number of nats above 0")


@dataclass(frozen=True)
class RlhfConfig:
    """InstructGPT's pipeline (arXiv 2203.02155), and what over-optimisation does in it (arXiv 2210.10760)."""

    model: str = "0.8M"
    """Size preset of the model trained from scratch."""
    arch: str = "dense"
    """What it is built of: dense, mla, moe, moe-mla, or v3, all with as many weights a token."""
    vocab_size: int = 1536
    """Tokenizer size."""
    tokenizer_pages: int = 30_000
    """Pages the tokenizer is trained on."""
    world: Knobs = field(default_factory=Knobs)
    """What the generated web contains."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """0. The base."""
    chinese: float = 0.4
    """Share of prompts in Chinese."""
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    """1. Data of the SFT model."""
    sft: SftConfig = field(default_factory=SftConfig)
    """1. The SFT model; 16 epochs in InstructGPT, 2 before its RL."""
    comparisons: ComparisonConfig = field(default_factory=ComparisonConfig)
    """2. Data of the reward models."""
    rm: RmConfig = field(default_factory=lambda: RmConfig(kind="ranking", members=3))
    """2. The reward models: the first is the judge of most arms, all are the ensemble."""
    ppo: PpoConfig = field(default_factory=PpoConfig)
    """3. PPO; an arm brings its own β and γ."""
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    """3. GRPO, of the arms that say so."""
    reward_clip: float = 10.0
    """3. A reward counts within ± so many standard deviations; a reply without content gets the lowest."""
    arms: tuple[str, ...] = ("no-kl", "kl-0.02", "kl-0.5", "mean", "worst", "grpo")
    """3. What is compared, each from the SFT model: one, mean, worst, uncertainty, kl-β, ptx-γ, grpo, joined with +."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """What is measured."""
    base: str = ""
    """Hugging Face model folder or name to start from instead of pretraining one."""
    base_seed: int = -1
    """Seed of the world and the base; -1 takes the run's seed. Runs that agree share one base."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    save_every: int = 10
    """Steps between checkpoints."""

    @property
    def parsed(self) -> tuple[Arm, ...]:
        """The arms.

        Raises:
            UsageError: a name that says nothing.
        """
        return tuple(map(Arm.parse, self.arms))

    def settings(self, arm: Arm) -> PpoConfig | GrpoConfig:
        """The reinforcement of an arm."""
        if arm.method == "grpo":
            return replace(self.grpo, kl_coef=arm.kl_coef)
        return replace(self.ppo, kl_coef=arm.kl_coef, ptx_coef=arm.ptx_coef)

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        model_preset(self.model, self.vocab_size, self.arch)
        for part in (self.world, self.pretrain, self.demonstrations, self.sft, self.comparisons, self.rm, self.measure):
            part.validate()
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise UsageError(f"arms: {' '.join(self.arms) or 'none'}", "name at least one, each once")
        if len({replace(arm, name="") for arm in self.parsed}) < len(self.arms):
            raise UsageError(f"arms: {' '.join(self.arms)}: two are one arm", "spell each once")
        for arm in self.parsed:
            self.settings(arm).validate()
            if arm.judges != "one" and self.rm.members < 2:
                raise UsageError(f"arm {arm.name!r} with one reward model", "use --rm.members 3, or leave it out")
            if arm.ptx_coef and self.base:
                raise UsageError(f"arm {arm.name!r}: --base brings no pretraining pages", "leave ptx out, or --base")
        if self.rm.kind != "ranking":
            raise UsageError(f"rm.kind is {self.rm.kind}, and replies are ranked", "leave it at ranking")
        if not 0 <= self.chinese <= 1 or not self.reward_clip > 0 or self.save_every < 1:
            raise UsageError("chinese is a share, reward_clip above 0, save_every 1 or more", "see --help")


_R1, _TINY = R1_PRESETS["cpu"], R1_PRESETS["tiny"]
_RL: dict[str, Any] = {"clip_high": 0.2, "reference_every": 0, "schedule": "constant"}
_CPU_RL = _RL | {"steps": 40, "max_tokens": 64, "lr": 1e-4, "minibatches": 8}
_TINY_RL = _RL | {"steps": 4, "max_tokens": 16, "lr": 3e-4, "minibatches": 2, "warmup": 1}

RLHF_PRESETS: dict[str, RlhfConfig] = {
    # The base is that of `dunwu run r1 --crawl.pages 0`. 512 episodes in 8 minibatches are InstructGPT's.
    "cpu": RlhfConfig(
        model=_R1.model,
        vocab_size=_R1.vocab_size,
        tokenizer_pages=_R1.tokenizer_pages,
        world=_R1.world,
        pretrain=_R1.pretrain,
        sft=SftConfig(epochs=4, context=256, batch_tokens=4096, lr=1e-3, warmup=10),
        rm=RmConfig(kind="ranking", rows=16, context=256, lr=5e-4, length_balance=False, members=3),
        ppo=PpoConfig(problems=512, group_size=1, **_CPU_RL),
        grpo=GrpoConfig(problems=64, group_size=8, **_CPU_RL),
    ),
    "tiny": RlhfConfig(
        model=_TINY.model,
        vocab_size=_TINY.vocab_size,
        tokenizer_pages=_TINY.tokenizer_pages,
        world=_TINY.world,
        pretrain=_TINY.pretrain,
        demonstrations=DemonstrationConfig(rows=300),
        sft=SftConfig(epochs=2, context=256, batch_tokens=2048, lr=3e-3, warmup=2),
        comparisons=ComparisonConfig(prompts=32, held_out=16),
        rm=RmConfig(kind="ranking", rows=8, context=256, warmup=1, length_balance=False, members=2),
        ppo=PpoConfig(problems=32, group_size=1, **_TINY_RL),
        grpo=GrpoConfig(problems=8, group_size=4, **_TINY_RL),
        arms=("no-kl", "kl-0.02", "worst", "grpo"),
        measure=MeasureConfig(every=2, problems=16, final=24, kl_budget=0.05, best_of=4, shown=2),
        save_every=2,
    ),
}
