"""How an algorithm learns a control system: one frozen dataclass, the names those of the language models' settings. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dunwu.types import UsageError

Algorithm = Literal["reinforce", "rloo", "grpo", "ppo"]
Credit = Literal["outcome", "to-go"]
ALGORITHMS: tuple[Algorithm, ...] = ("reinforce", "rloo", "grpo", "ppo")


@dataclass(frozen=True)
class LearnConfig:
    """One algorithm's settings on one system.

    An update collects `starts` × `group_size` whole episodes, siblings of a group from one start state.
    """

    algorithm: Algorithm = "ppo"
    """reinforce: returns from each step on, less their mean over the batch; rloo: less the siblings' mean; grpo: that, divided
    by the group's standard deviation, clipped, over several epochs; ppo: less a critic's value (GAE), clipped likewise."""
    credit: Credit = "outcome"
    """What a step of rloo and grpo is held to: "outcome", the whole episode's return, as on language; "to-go", its return from
    that step on, beside what its siblings still get from the same step on."""
    env_steps: int = 100_000
    """Steps of the system a run may take; it ends with the update that reaches them."""
    starts: int = 16
    """Start states of an update (P)."""
    group_size: int = 1
    """Episodes from each of them (G)."""
    epochs: int = 10
    """Passes over the steps of an update."""
    minibatches: int = 8
    """Optimizer steps a pass."""
    lr: float = 1e-3
    """Learning rate of the policy."""
    final_lr: float = 1.0
    """Share of the learning rates that is left at the end; they fall in proportion to the steps taken."""
    value_lr: float = 1e-3
    """Learning rate of the critic (ppo)."""
    clip_low: float = 0.2
    """ε of the lower clip of the ratio; not used by reinforce and rloo."""
    clip_high: float = 0.2
    """ε of the upper clip."""
    value_clip: float = 0.0
    """Furthest the value may move in an update without losing its gradient, in standard deviations of returns; 0: no clip."""
    gamma: float = 0.99
    """γ, discount."""
    lam: float = 0.95
    """λ of GAE (ppo)."""
    std_normalize: Literal["none", "group", "batch"] = "group"
    """What grpo's centred return is divided by."""
    std_eps: float = 1e-4
    """Added to that standard deviation."""
    loss_norm: Literal["token", "sequence", "constant"] = "token"
    """Denominator of the loss, over the steps of an update: as `train.losses.token_weights` has them, a step for a token."""
    max_grad_norm: float = 0.5
    """The gradient's L2 norm is cut to this."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the policy's tanh layers; none: a linear policy."""
    value_hidden: tuple[int, ...] = (64, 64)
    """Widths of the critic's."""
    log_std: float = 0.0
    """First log σ of a Gaussian policy, whose σ is learned and the same in all states."""

    @property
    def episodes(self) -> int:
        """Episodes of an update."""
        return self.starts * self.group_size

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"no algorithm {self.algorithm!r}", "choose from " + ", ".join(ALGORITHMS))
        if self.algorithm in ("rloo", "grpo") and self.group_size < 2:
            raise UsageError(f"{self.algorithm} with groups of {self.group_size}", "use 2 siblings or more")
        for name in ("env_steps", "starts", "group_size", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "use 1 or more")
        if self.algorithm in ("reinforce", "rloo") and (self.epochs, self.minibatches) != (1, 1):
            raise UsageError(
                f"{self.algorithm} with {self.epochs} epochs of {self.minibatches} minibatches",
                "it has no clip, so every batch trains once: use 1 and 1",
            )


@dataclass(frozen=True)
class Trial:
    """One algorithm on one system, with several seeds at once: everything its result follows from."""

    system: str
    """cartpole, pendulum, acrobot, or lqr-H."""
    config: LearnConfig
    """How it learns."""
    seeds: tuple[int, ...]
    """A learner for each."""
    points: int = 16
    """Places of the learning curve after the start, at equal distances of `config.env_steps`."""
    held_out: int = 16
    """Episodes behind each of them: likeliest actions, the same start states for all."""
    final: int = 100
    """Episodes behind the result, from other start states."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trial:
        """What `dataclasses.asdict` and JSON made of a trial, as a trial."""
        config: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["config"].items()
        }
        return cls(**{**record, "config": LearnConfig(**config), "seeds": tuple(record["seeds"])})
