"""Coefficients that steer themselves: the papers' formulas by hand, in a run, and through a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_learner import Judged, coin, learner_of, letters, steps_of, vector

from dunwu.data.tokenizer import Tokenizer
from dunwu.recipes.reinforce import STATE, save_state
from dunwu.train.checkpoint import load_checkpoint
from dunwu.train.config import GrpoConfig, StabilityConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.stability import coefficients, next_entropy_coef, next_kl_coef, steered
from dunwu.types import UsageError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.98), (0.05, 0.98), (0.08, 0.98), (0.09, 0.99), (0.1, 1.0), (0.11, 1.01), (0.12, 1.02), (9.0, 1.02)],
)
def test_the_kl_controller_of_ziegler_et_al(kl: float, factor: float) -> None:
    """e = clip(KL / target − 1, ±0.2); β ← β (1 + 0.1 e), with a target of 0.1 nats."""
    assert next_kl_coef(0.5, kl, 0.1) == pytest.approx(0.5 * factor, rel=1e-12)
    assert next_kl_coef(0.5, kl, 0.1, gain=1.0) == pytest.approx(0.5 * (1 + 10 * (factor - 1)), rel=1e-12)


@given(st.floats(1e-6, 10), st.floats(0, 100), st.floats(1e-4, 10))
def test_the_kl_coefficient_moves_towards_its_target_and_stays_above_zero(
    coef: float, kl: float, target: float
) -> None:
    following = next_kl_coef(coef, kl, target)
    assert following > 0 and 0.98 * coef * (1 - 1e-12) <= following <= 1.02 * coef * (1 + 1e-12)
    assert (following - coef) * (kl - target) >= 0


def test_the_entropy_controller_by_hand() -> None:
    curve, coef = [], 0.001
    for entropy in (0.1, 0.1, 0.3, 0.5, 0.5, 0.5, 0.1):
        coef = next_entropy_coef(coef, entropy, target=0.3, rate=0.002)
        curve.append(coef)
    assert curve == pytest.approx([0.003, 0.005, 0.003, 0.001, 0.0, 0.0, 0.002], abs=1e-15)


def test_nothing_is_held_where_nothing_is_steered() -> None:
    config = GrpoConfig(kl_coef=0.1, stability=StabilityConfig(entropy_coef=0.02))
    assert coefficients({}, config) == {"kl_coef": 0.1, "entropy_coef": 0.02}
    assert coefficients({"kl_coef": 0.3}, config) == {"kl_coef": 0.3, "entropy_coef": 0.02}
    assert steered({}, config, entropy=1.0, ref_kl=0.5) == {}
    both = replace(config, stability=StabilityConfig(entropy_target=2.0, kl_target=0.1))
    assert steered({}, both, 1.0, 0.5) == pytest.approx({"kl_coef": 0.102, "entropy_coef": 0.001})
    assert steered({"kl_coef": 0.2, "entropy_coef": 0.5}, both, 3.0, 0.0) == pytest.approx(
        {"kl_coef": 0.196, "entropy_coef": 0.499}
    )


RULES = StabilityConfig(kl_target=0.01, kl_gain=1.0, entropy_target=4.0, entropy_rate=0.01)
SHARED: dict[str, Any] = {"problems": 4, "group_size": 4, "max_tokens": 4, "warmup": 0, "lr": 3e-3, "kl_coef": 0.05}
CONFIGS = {
    "grpo": GrpoConfig(steps=6, stability=RULES, reference_every=4, minibatches=2, **SHARED),
    "ppo": PpoConfig(steps=6, stability=RULES, reference_every=4, minibatches=2, epochs=2, **SHARED),
    "ppo, KL in the loss": PpoConfig(steps=6, stability=RULES, kl_place="loss", **SHARED),
    "ppo without critic": PpoConfig(steps=6, stability=RULES, critic="none", lam=1.0, **SHARED),
}


@pytest.mark.parametrize("method", CONFIGS)
def test_each_step_uses_what_the_last_one_measured(tokenizer: Tokenizer, method: str) -> None:
    config, name = CONFIGS[method], method.split(",")[0].split()[0]
    learner = learner_of(tokenizer, config)
    held: dict[str, float] = {}
    for step in steps_of(learner, tokenizer, config, Judged(coin)):
        expected = coefficients(held, config)
        for key, value in expected.items():
            assert step.metrics[f"{name}/{key}"] == value
        held = {
            "kl_coef": next_kl_coef(expected["kl_coef"], step.metrics[f"{name}/ref_kl"], 0.01, 1.0),
            "entropy_coef": next_entropy_coef(expected["entropy_coef"], step.metrics[f"{name}/entropy"], 4.0, 0.01),
        }
    assert learner.coefficients == held
    assert held["kl_coef"] != config.kl_coef


def test_constant_coefficients_are_no_metric(tokenizer: Tokenizer) -> None:
    config = replace(CONFIGS["grpo"], steps=1, stability=StabilityConfig(entropy_coef=0.1))
    learner = learner_of(tokenizer)
    (step,) = steps_of(learner, tokenizer, config, Judged(coin))
    assert not {"grpo/kl_coef", "grpo/entropy_coef"} & step.metrics.keys() and learner.coefficients == {}


def test_the_bonus_keeps_the_entropy_up(tokenizer: Tokenizer) -> None:
    """A task that one letter solves, with and without a bonus: the entropy falls, and falls far less."""
    config = GrpoConfig(steps=25, problems=4, group_size=8, max_tokens=1, warmup=0, lr=1e-2)
    ends = []
    for coef in (0.0, 0.5):
        learner = learner_of(tokenizer, spread=0.05)
        steps = steps_of(learner, tokenizer, replace(config, stability=StabilityConfig(entropy_coef=coef)))
        ends.append(next(step.metrics["grpo/entropy"] for step in reversed(steps) if "grpo/entropy" in step.metrics))
    assert ends[0] < ends[1] - 0.3


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_steered_coefficients_survive_a_checkpoint(tokenizer: Tokenizer, tmp_path: Path, method: str) -> None:
    config = CONFIGS[method]
    whole = learner_of(tokenizer, config)
    steps_of(whole, tokenizer, config, Judged(coin))
    killed = learner_of(tokenizer, config)
    steps_of(killed, tokenizer, config, Judged(coin), end=3)
    save_state(tmp_path, killed, {"step": 3})
    found = load_checkpoint(tmp_path)
    assert found is not None
    tensors, state = found
    assert set(state) <= set(STATE) and state["coefficients"] == killed.coefficients

    def resumed(**other: Any) -> torch.Tensor:
        learner = learner_of(tokenizer, config)
        learner.optimizer.load(tensors, state["version"])
        learner.load_reference(
            {k.removeprefix("reference."): t for k, t in tensors.items() if k.startswith("reference.")}
        )
        if learner.critic is not None:
            own = {k.removeprefix("critic."): t for k, t in tensors.items() if k.startswith("critic.")}
            learner.critic.load(own, state["critic_version"])
        learner.coefficients = other.get("coefficients", state["coefficients"])
        steps_of(learner, tokenizer, config, Judged(coin), start=3)
        return vector(learner.policy)

    assert torch.equal(resumed(), vector(whole.policy))
    assert not torch.equal(resumed(coefficients={}), vector(whole.policy))


@pytest.mark.parametrize("wrong", [{"kl_target": 0.1}, {"entropy_coef": -1.0}, {"stop_kl": float("nan")}])
def test_rules_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"stability.{next(iter(wrong))}"):
        GrpoConfig(stability=StabilityConfig(**wrong)).validate()
