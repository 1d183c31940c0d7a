"""Every variant that has a name: it builds, says what its paper says, and takes a step."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tiny_learner import Judged, coin, learner_of, letters, steps_of, vector

from dunwu.data.tokenizer import Tokenizer
from dunwu.train.config import GrpoConfig, OffPolicyConfig, PolicyConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.variants import VARIANTS, get_variant, variant_config
from dunwu.types import UsageError

SHARED = PolicyConfig(steps=2, problems=4, group_size=4, max_tokens=5, warmup=0, lr=1e-3, overlong_buffer=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_builds_and_says_what_it_is(name: str) -> None:
    variant = get_variant(name)
    assert variant.name == name
    assert all((variant.title, variant.paper, variant.equation, variant.helps))
    config = variant_config(name, SHARED)
    config.validate()
    assert isinstance(config, GrpoConfig) == (variant.kind == "grpo")
    known = {field.name for field in fields(config)}
    assert variant.settings.keys() <= known
    for field, value in variant.settings.items():
        assert getattr(config, field) == value
    shared = {field.name for field in fields(PolicyConfig)} - variant.settings.keys() - {"clip_high"}
    assert all(getattr(config, field) == getattr(SHARED, field) for field in shared)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_its_steps(tokenizer: Tokenizer, name: str) -> None:
    config = variant_config(name, replace(SHARED, minibatches=2))
    learner = learner_of(tokenizer, config)
    before = vector(learner.policy)
    steps = steps_of(learner, tokenizer, config, Judged(coin))
    assert [step.n for step in steps] == [1, 2]
    for step in steps:
        assert all(math.isfinite(value) for value in step.metrics.values())
        assert all(key.startswith(VARIANTS[name].kind + "/") for key in step.metrics)
        assert step.metrics[f"{VARIANTS[name].kind}/trained_tokens"] > 0
    assert not torch.equal(vector(learner.policy), before)
    assert bool(torch.isfinite(learner.optimizer.master).all())


def test_no_two_variants_are_one(tokenizer: Tokenizer) -> None:
    """Two steps of two minibatches each: other settings, other weights; only `tis` may be ours where sampler and trainer agree."""
    ends: dict[bytes, list[str]] = {}
    for name in VARIANTS:
        config = variant_config(name, replace(SHARED, minibatches=2, lr=1e-2))
        learner = learner_of(tokenizer, config)
        steps_of(learner, tokenizer, config, Judged(coin))
        ends.setdefault(vector(learner.policy).numpy().tobytes(), []).append(name)
    doubles = [names for names in ends.values() if len(names) > 1]
    assert doubles in ([], [["tis", "dunwu"]])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reinforce", {"objective": "reinforce", "baseline": "batch", "std_normalize": "none", "minibatches": 1}),
        ("rloo", {"objective": "reinforce", "baseline": "leave-one-out", "std_normalize": "none"}),
        (
            "grpo",
            {"std_normalize": "group", "loss_norm": "sequence", "clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.04},
        ),
        ("r1", {"kl_coef": 0.001, "clip_high": 10.0, "loss_norm": "sequence"}),
        ("dr-grpo", {"std_normalize": "none", "loss_norm": "constant"}),
        ("dapo", {"clip_low": 0.2, "clip_high": 0.28, "loss_norm": "token", "overlong": "penalty", "kl_coef": 0.0}),
        ("lite-ppo", {"std_normalize": "batch", "loss_norm": "token"}),
        ("gspo", {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}),
        ("cispo", {"objective": "cispo", "ratio": "token"}),
        ("scale-rl", {"objective": "cispo", "loss_norm": "prompt", "std_normalize": "batch"}),
        ("tis", {"off_policy": OffPolicyConfig(tis="truncate", tis_cap=2.0)}),
        ("v3.2", {"kl_estimator": "k3_unbiased"}),
        ("reinforce++", {"critic": "none", "kl_place": "reward", "whiten": True, "clip_high": 0.2}),
        ("reinforce++-baseline", {"critic": "none", "group_baseline": True, "kl_place": "loss"}),
        ("ppo", {"critic": "own", "lam": 0.95, "clip_high": 0.2}),
        ("ppo-lambda-1", {"critic": "own", "lam": 1.0}),
        ("ppo-shared", {"critic": "shared"}),
    ],
)
def test_settings_that_make_a_variant_what_it_is(name: str, settings: dict[str, Any]) -> None:
    config = variant_config(name, PolicyConfig())
    for field, value in settings.items():
        assert getattr(config, field) == value


def test_a_caller_keeps_what_the_variant_says_nothing_of() -> None:
    config = variant_config("gspo", GrpoConfig(std_eps=0.5, lr=1e-3))
    assert isinstance(config, GrpoConfig) and config.std_eps == 0.5 and config.lr == 1e-3
    critic = variant_config("ppo", PpoConfig(epochs=3, clip_high=0.3))
    assert isinstance(critic, PpoConfig) and critic.epochs == 3 and critic.clip_high == 0.3
    # From what both share, PPO's symmetric clip stays, unless another was asked for.
    assert variant_config("ppo", PolicyConfig()).clip_high == 0.2
    assert variant_config("ppo", PolicyConfig(clip_high=0.5)).clip_high == 0.5


@pytest.mark.parametrize(("name", "near"), [("gsop", "'gspo'"), ("dr_grpo", "'dr-grpo'"), ("xyzzy", "reinforce, rloo")])
def test_an_unknown_name_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        variant_config(name, PolicyConfig())
