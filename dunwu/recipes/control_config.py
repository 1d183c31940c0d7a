"""The knobs of the recipe `control`: which systems, which algorithms, how long, and each one's settings. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dunwu.control.config import LearnConfig, Trial
from dunwu.types import UsageError, derive_seed

SYSTEMS = ("cartpole", "pendulum", "acrobot", "lqr")
VARIANTS = ("ppo", "grpo", "grpo-to-go", "rloo", "reinforce")
"""grpo holds every step to the whole episode's return, as on language; grpo-to-go to what came after it."""
SWEPT_EPISODES = 64
"""Episodes of an update in the sweeps of the group size: the groups get larger, their number smaller."""

_PPO = LearnConfig(algorithm="ppo", starts=16, epochs=10, minibatches=4, lr=1e-3, value_lr=1e-3)
_GRPO = LearnConfig(
    algorithm="grpo", starts=4, group_size=4, epochs=4, minibatches=1, lr=3e-3, gamma=1.0, loss_norm="sequence"
)
_TO_GO = LearnConfig(
    algorithm="grpo", credit="to-go", starts=4, group_size=4, epochs=10, minibatches=4, lr=1e-3, gamma=0.99
)
_RLOO = LearnConfig(algorithm="rloo", starts=4, group_size=4, epochs=1, minibatches=1, lr=1e-2, gamma=1.0)
_REINFORCE = LearnConfig(algorithm="reinforce", credit="to-go", starts=16, epochs=1, minibatches=1, lr=1e-2)
_CARTPOLE = {
    "ppo": _PPO,
    "grpo": replace(_GRPO, starts=16),
    "grpo-to-go": _TO_GO,
    "rloo": _RLOO,
    "reinforce": _REINFORCE,
}

_PENDULUM = {
    "ppo": replace(_PPO, minibatches=16, gamma=0.9),
    "grpo": replace(_GRPO, minibatches=4),
    "grpo-to-go": replace(_TO_GO, lr=3e-3, gamma=0.9, std_normalize="batch"),
    "rloo": _RLOO,
    "reinforce": replace(_REINFORCE, gamma=0.9),
}
_ACROBOT = {
    "ppo": _PPO,
    "reinforce": _REINFORCE,
    "grpo": replace(_GRPO, starts=1, group_size=16, epochs=10, minibatches=4, lr=1e-3),
    "grpo-to-go": replace(_TO_GO, starts=1, group_size=16),
    "rloo": replace(_RLOO, starts=1, group_size=16),
}
_LQR = {
    "ppo": replace(_PPO, starts=64, epochs=2, lr=3e-2, value_lr=3e-3, value_hidden=(32, 32)),
    "grpo": replace(_GRPO, group_size=16, epochs=1, lr=1e-1, loss_norm="token"),
    "grpo-to-go": replace(_TO_GO, group_size=16, epochs=1, minibatches=1, lr=1e-1, std_normalize="batch"),
    "rloo": replace(_RLOO, group_size=16, lr=1e-1),
    "reinforce": replace(_REINFORCE, starts=64, lr=1e-1),
}
_TUNED = {"cartpole": _CARTPOLE, "pendulum": _PENDULUM, "acrobot": _ACROBOT, "lqr": _LQR}
_STEPS = {"cartpole": 100_000, "pendulum": 200_000, "acrobot": 200_000}


def settings(system: str, variant: str) -> LearnConfig:
    """What a variant learns a system with; the same learning rates at all horizons of the LQR.

    Raises:
        UsageError: no such system or variant.
    """
    kind, _, horizon = system.partition("-")
    if kind not in SYSTEMS or variant not in VARIANTS or (kind == "lqr") != horizon.isdecimal():
        raise UsageError(
            f"no settings for {variant} on {system}",
            f"systems are {', '.join(SYSTEMS)} (lqr-H), variants {', '.join(VARIANTS)}",
        )
    config = replace(_TUNED[kind][variant], final_lr=0.1)
    if kind != "lqr":
        return replace(config, env_steps=_STEPS[kind])
    updates = 150 if int(horizon) < 50 else 100
    return replace(config, env_steps=updates * SWEPT_EPISODES * int(horizon), gamma=1.0, hidden=())


@dataclass(frozen=True)
class Arm:
    """A variant on a system, as reports name it."""

    system: str
    variant: str
    config: LearnConfig
    swept: bool = False
    """Whether it stands in a sweep of the group size only."""

    @property
    def name(self) -> str:
        """Of its stage."""
        group = f"-g{self.config.group_size}" if self.swept else ""
        return f"{self.system}-{self.variant}{group}"


@dataclass(frozen=True)
class ControlRunConfig:
    """The study: PPO, GRPO, RLOO and REINFORCE on systems that can be understood."""

    systems: tuple[str, ...] = SYSTEMS
    """cartpole, pendulum, acrobot, lqr."""
    algorithms: tuple[str, ...] = VARIANTS
    """ppo, grpo (whole return), grpo-to-go (return from each step on), rloo, reinforce."""
    seeds: int = 10
    """Independent learners of every arm."""
    horizons: tuple[int, ...] = (20, 100, 500)
    """Steps of the LQR."""
    group_sizes: tuple[int, ...] = (4, 16, 64)
    """Siblings of a group in the sweeps, on the LQR and (grpo) on CartPole, at 64 episodes an update; none for no sweep."""
    budget: float = 1.0
    """Factor on the steps that each arm may take."""
    rate: float = 1.0
    """Factor on the policies' learning rates: to look for better ones, on the seeds of another --seed."""
    points: int = 16
    """Places of the learning curves."""
    held_out: int = 16
    """Episodes behind each place and seed."""
    final: int = 100
    """Episodes behind each result and seed."""
    workers: int = 0
    """Processes, of one thread each; 0: one a core. The result does not depend on it."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        for what, named, known in (("system", self.systems, SYSTEMS), ("algorithm", self.algorithms, VARIANTS)):
            if unknown := [name for name in named if name not in known]:
                raise UsageError(f"no {what} {unknown[0]!r}", "choose from " + ", ".join(known))
            if not named or len(set(named)) < len(named):
                raise UsageError(f"{what}s are {list(named)}", "name each once, and one at least")
        if bad := [size for size in self.group_sizes if size < 2 or SWEPT_EPISODES % size]:
            raise UsageError(f"groups of {bad[0]} do not divide {SWEPT_EPISODES} episodes", "use 2, 4, 8, 16, 32 or 64")
        if "lqr" in self.systems and (not self.horizons or min(self.horizons) < 2):
            raise UsageError(f"horizons are {list(self.horizons)}", "name one at least, of 2 steps or more")
        for name in ("seeds", "points", "held_out", "final"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "use 1 or more")
        if self.workers < 0 or not (self.budget > 0 and self.rate > 0):
            said = f"workers {self.workers}, budget {self.budget}, rate {self.rate}"
            raise UsageError(said, "use workers from 0, a budget and a rate above 0")

    def arms(self) -> Iterator[Arm]:
        """Every arm of the study, in the order they are made."""
        for kind in self.systems:
            for system in [f"lqr-{horizon}" for horizon in sorted(self.horizons)] if kind == "lqr" else [kind]:
                for variant in self.algorithms:
                    yield Arm(system, variant, self._within(settings(system, variant)))
                    if (kind, variant) in (("cartpole", "grpo"), ("lqr", "grpo"), ("lqr", "grpo-to-go")):
                        yield from self._sweep(system, variant)

    def _sweep(self, system: str, variant: str) -> Iterator[Arm]:
        """The sweep of the group size; a size that is the arm's own is not run again."""
        own = settings(system, variant)
        for size in self.group_sizes:
            config = replace(own, group_size=size, starts=SWEPT_EPISODES // size)
            if config != own:
                yield Arm(system, variant, self._within(config), swept=True)

    def _within(self, config: LearnConfig) -> LearnConfig:
        steps = max(1, int(config.env_steps * self.budget))
        return replace(config, env_steps=steps, lr=config.lr * self.rate)

    def trial(self, arm: Arm, seed: int) -> Trial:
        """An arm with its seeds, which are the same for all arms of a run."""
        seeds = tuple(derive_seed("control", seed, n) for n in range(self.seeds))
        return Trial(arm.system, arm.config, seeds, self.points, self.held_out, self.final)


CONTROL_PRESETS: dict[str, ControlRunConfig] = {
    "cpu": ControlRunConfig(),
    "tiny": ControlRunConfig(
        systems=("cartpole", "lqr"),
        algorithms=("ppo", "grpo", "grpo-to-go"),
        seeds=2,
        horizons=(5, 10),
        group_sizes=(4, 16),
        budget=0.02,
        points=3,
        held_out=4,
        final=4,
    ),
}
