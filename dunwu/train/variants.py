"""Which of the twelve? Every variant that has a name in a paper, as settings of `GrpoConfig` or `PpoConfig`. No torch.

A variant says only what is its own; budget, learning rate and model are the caller's, the same for all. Constants are the
papers' where they print them. docs/algorithms.md is made from this table, and has what each did on equal budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from dunwu.train.config import GrpoConfig, OffPolicyConfig, PolicyConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.types import UsageError


@dataclass(frozen=True)
class Variant:
    """One named algorithm."""

    name: str
    """How it is asked for."""
    title: str
    """How its paper calls it."""
    paper: str
    """Where it is from."""
    equation: str
    """Where in there."""
    settings: Mapping[str, Any]
    """Fields in which it differs from ours."""
    helps: str
    """What it is for."""
    kind: Literal["grpo", "ppo"] = "grpo"
    """Whose config its settings are of, and which loop runs it."""


_NEVER = 10.0
"""A clip range that is never reached below: 1 − 10 is negative."""
_FIVE = 4.0
"""CISPO's weights are cut at 1 + 4 = 5, ScaleRL's choice."""
_SYMMETRIC = {"clip_low": 0.2, "clip_high": 0.2}
_SUM = {"loss_norm": "constant", "std_normalize": "none"}

_ALL = (
    Variant(
        "reinforce",
        "REINFORCE",
        "Williams 1992",
        "eq. 4, with the batch's mean as baseline",
        {**_SUM, "baseline": "batch", "objective": "reinforce", "minibatches": 1},
        "the ground: no siblings, no clip, one update a batch",
    ),
    Variant(
        "rloo",
        "RLOO",
        "arXiv 2402.14740",
        "eq. 6",
        {**_SUM, "baseline": "leave-one-out", "objective": "reinforce", "minibatches": 1},
        "siblings as an unbiased baseline, still one update a batch",
    ),
    Variant(
        "grpo",
        "GRPO",
        "DeepSeekMath, arXiv 2402.03300",
        "eq. 3 and 4",
        {**_SYMMETRIC, "loss_norm": "sequence", "kl_coef": 0.04},
        "several updates a batch, deviation 1 in every group; long wrong answers are punished less a token",
    ),
    Variant(
        "r1",
        "GRPO as in R1",
        "DeepSeek-R1, arXiv 2501.12948",
        "2.1, eq. 1 to 3",
        {"clip_low": _NEVER, "clip_high": 10.0, "loss_norm": "sequence", "kl_coef": 0.001},
        "a clip that hardly ever acts, and a faint KL to a reference that moves along",
    ),
    Variant(
        "dr-grpo",
        "Dr. GRPO",
        "arXiv 2503.20783",
        "3.2",
        {**_SYMMETRIC, **_SUM},
        "takes the bias for length and for difficulty out of GRPO",
    ),
    Variant(
        "dapo",
        "DAPO",
        "arXiv 2503.14476",
        "eq. 8, 11, 12 and 13",
        {"loss_norm": "token", "dynamic_rounds": 2, "overlong": "penalty"},
        "keeps entropy (clip-higher), replaces questions that teach nothing, damps overlong answers",
    ),
    Variant(
        "lite-ppo",
        "Lite PPO",
        "arXiv 2508.08221",
        "section 5",
        {**_SYMMETRIC, "loss_norm": "token", "std_normalize": "batch"},
        "two choices in place of all tricks: the batch's deviation, the token mean",
    ),
    Variant(
        "gspo",
        "GSPO",
        "arXiv 2507.18071",
        "eq. 5 and 7",
        {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "loss_norm": "sequence"},
        "one ratio for a whole answer: steadier for experts and long answers",
    ),
    Variant(
        "cispo",
        "CISPO",
        "MiniMax-M1, arXiv 2506.13585",
        "eq. 4",
        {"objective": "cispo", "clip_low": _NEVER, "clip_high": _FIVE, "loss_norm": "token"},
        "rare tokens that open a new thought keep their gradient however much they grew",
    ),
    Variant(
        "scale-rl",
        "ScaleRL",
        "arXiv 2510.13786",
        "section 4",
        {
            "objective": "cispo",
            "clip_low": _NEVER,
            "clip_high": _FIVE,
            "loss_norm": "prompt",
            "std_normalize": "batch",
        },
        "CISPO, every question weighs alike, the batch's deviation: what scaled furthest",
    ),
    Variant(
        "tis",
        "truncated importance sampling",
        "Yao et al. 2025",
        "the policy term times min(π_old / π_sampler, 2)",
        {"off_policy": OffPolicyConfig(tis="truncate", tis_cap=2.0)},
        "a sampler with other numerics than the trainer (another engine, another precision)",
    ),
    Variant(
        "v3.2",
        "GRPO as in V3.2",
        "DeepSeek-V3.2, arXiv 2512.02556",
        "3.1: unbiased KL, off-policy sequence mask",
        {
            **_SYMMETRIC,
            "loss_norm": "sequence",
            "kl_coef": 0.001,
            "kl_estimator": "k3_unbiased",
            "off_policy": OffPolicyConfig(sequence_mask=0.1),
        },
        "many updates a batch, stale samples: failures far from the policy no longer teach",
    ),
    Variant(
        "reinforce++",
        "REINFORCE++",
        "arXiv 2501.03262",
        "eq. 6 to 8",
        {"critic": "none", "lam": 1.0, "kl_coef": 0.01},
        "PPO's clip and its KL in the reward, no critic, one sample a question is enough",
        "ppo",
    ),
    Variant(
        "reinforce++-baseline",
        "REINFORCE++-baseline",
        "arXiv 2501.03262",
        "3.3",
        # The paper's k2 in the loss has the gradient of our "k1": rho d grad log policy.
        {
            "critic": "none",
            "lam": 1.0,
            "group_baseline": True,
            "kl_coef": 0.01,
            "kl_place": "loss",
            "kl_estimator": "k1",
        },
        "the group's mean as baseline, the batch's deviation as scale",
        "ppo",
    ),
    Variant(
        "ppo",
        "PPO",
        "arXiv 1707.06347; InstructGPT, arXiv 2203.02155",
        "eq. 7; eq. 2",
        {"lam": 0.95},
        "credit for every token by a critic; costs a second model",
        "ppo",
    ),
    Variant(
        "ppo-lambda-1",
        "PPO, λ = 1",
        "DeepSeek-R1, arXiv 2501.12948",
        "its comparison with PPO",
        {"lam": 1.0},
        "the critic as baseline only: no bias from what it does not know yet",
        "ppo",
    ),
    Variant(
        "ppo-shared",
        "PPO, one trunk",
        "arXiv 1707.06347",
        "eq. 9",
        {"lam": 1.0, "critic": "shared"},
        "a critic for the price of a vector; its loss pulls at the policy's trunk",
        "ppo",
    ),
    Variant(
        "dunwu",
        "our default",
        "`dunwu run r1-zero`",
        "GRPO with DAPO's clip and token mean, no KL",
        {"loss_norm": "token"},
        "what the recipes use",
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def get_variant(name: str) -> Variant:
    """A variant by name.

    Raises:
        UsageError: naming the nearest one.
    """
    if name not in VARIANTS:
        near = get_close_matches(name, VARIANTS, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(VARIANTS)}"
        raise UsageError(f"unknown variant {name!r}", cure)
    return VARIANTS[name]


def variant_config(name: str, shared: PolicyConfig) -> GrpoConfig | PpoConfig:
    """The config of a variant under what is shared by all: budget, learning rate, sampling.

    Args:
        shared: of a `GrpoConfig` or `PpoConfig` all other fields are kept too where the variant is of its kind.

    Raises:
        UsageError: no such variant.

    Example:
        >>> config = variant_config("gspo", PolicyConfig(steps=7))
        >>> config.steps, config.ratio, config.clip_high
        (7, 'sequence', 0.0004)
    """
    variant = get_variant(name)
    kind = GrpoConfig if variant.kind == "grpo" else PpoConfig
    if isinstance(shared, kind):
        return replace(shared, **variant.settings)
    taken = {field.name: getattr(shared, field.name) for field in fields(PolicyConfig)}
    if kind is PpoConfig and shared.clip_high == PolicyConfig().clip_high:
        del taken["clip_high"]  # PPO's own default is symmetric
    return kind(**(taken | dict(variant.settings)))
