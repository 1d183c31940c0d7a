"""The critic against oracles: its loss by hand and as TRL's PPO trainer had it, a reward model's scores, numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_learner import FirstLetter, critic_of, engine_of, letters, made_rows, network, steps_of, vector
from torch import Tensor

from dunwu.data.tokenizer import Tokenizer
from dunwu.model.config import ModelConfig, model_preset
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.recipes.reinforce import make_critic, open_learner
from dunwu.train.collect import rows_of, sample_groups
from dunwu.train.config import GrpoConfig
from dunwu.train.learner import Learner
from dunwu.train.losses import add_tallies, token_weights
from dunwu.train.optim import MasterAdamW
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.reward_model import Meaning, RewardModel, save_reward_model, score_ids
from dunwu.train.rows import Row, micro_batches
from dunwu.train.value import Critic, ValueModel, explained_variance, value_loss
from dunwu.types import DunwuError

F64 = torch.float64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


# ---- the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "old", "target", "error", "gradient", "held"),
    [
        (0.1, 0.0, 1.0, 0.9**2, -0.9, 0),  # within ±0.2
        (0.5, 0.0, 1.0, 0.8**2, 0.0, 1),  # moved 0.5 towards R: counts as 0.2, and is held
        (-0.5, 0.0, 1.0, 1.5**2, -1.5, 0),  # moved away: counts in full, and is pulled back
        (1.5, 0.0, 1.0, 0.8**2, 0.0, 1),  # beyond R by half: the clipped error is the larger one
        (3.0, 0.0, 1.0, 2.0**2, 2.0, 0),  # so far beyond that its own error is the larger one
        (1.0, 1.0, 1.0, 0.0, 0.0, 0),
    ],
)
def test_one_value_by_hand(value: float, old: float, target: float, error: float, gradient: float, held: int) -> None:
    v = torch.tensor([value], requires_grad=True)
    loss, tallies = value_loss(v, torch.tensor([old]), torch.tensor([target]), torch.ones(1), clip=0.2)
    assert loss.item() == pytest.approx(error / 2, abs=1e-6)
    loss.backward()
    assert v.grad is not None and v.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert tallies["value_clip_frac"].total == held
    assert tallies["value_loss"].mean == pytest.approx(error / 2, abs=1e-6)


@pytest.mark.parametrize("clip", [None, 0])
def test_without_a_clip_it_is_half_the_squared_error(clip: float | None) -> None:
    values, old, returns = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(4), torch.ones(4)
    loss, tallies = value_loss(values[0], old, returns, torch.full((4,), 0.25), clip)
    assert loss.item() == pytest.approx(0.5 * float((values[0] - 1).square().mean()), rel=1e-6)
    assert tallies["value_clip_frac"].total == 0


def test_trls_formula() -> None:
    """Its PPO trainer (no longer in 1.16): 0.5 · masked_mean(max((V − R)², (clamp(V, V_old ± ε) − R)²)), and the share of
    tokens where the clipped error is the larger one."""
    g = torch.Generator().manual_seed(1)
    values, old, returns = (torch.randn(5, 7, generator=g) for _ in range(3))
    mask = torch.rand(5, 7, generator=g) < 0.7
    v = values.clone().requires_grad_()
    clamped = torch.clamp(v, old - 0.2, old + 0.2)
    losses1, losses2 = torch.square(v - returns), torch.square(clamped - returns)
    theirs = 0.5 * (torch.max(losses1, losses2) * mask).sum() / mask.sum()
    share = ((losses2 > losses1) * mask).sum() / mask.sum()
    (expected,) = torch.autograd.grad(theirs, v)
    mine = torch.where(mask, values, math.nan).requires_grad_()
    loss, tallies = value_loss(mine, old, torch.where(mask, returns, math.inf), token_weights(mask, "token"), 0.2)
    (gradient,) = torch.autograd.grad(loss, mine)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)
    assert tallies["value_clip_frac"].mean == pytest.approx(float(share)) and 0 < float(share) < 1


def test_finite_differences() -> None:
    g = torch.Generator().manual_seed(2)
    old, returns = (torch.randn(9, generator=g) for _ in range(2))
    values = old + torch.randn(9, generator=g)
    weights = torch.rand(9, generator=g)
    v = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value_loss(v, old, returns, weights)[0], v)
    for n in range(9):
        step = torch.zeros(9)
        step[n] = 1e-2  # a parabola: the central difference is exact, but for fp32
        up, down = (float(value_loss(values + sign * step, old, returns, weights)[0]) for sign in (1, -1))
        assert float(gradient[n]) == pytest.approx((up - down) / 2e-2, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 100), st.permutations(range(6)), st.integers(1, 5), st.sampled_from(["token", "sequence", "prompt"])
)
def test_no_cut_and_no_order_changes_it(seed: int, order: list[int], border: int, norm: Any) -> None:
    g = torch.Generator().manual_seed(seed)
    values, old, returns = (torch.randn(6, 5, generator=g) for _ in range(3))
    mask = torch.rand(6, 5, generator=g) < 0.6
    weights = token_weights(mask, norm, group_ids_B=[0, 0, 1, 1, 2, 2])
    found = []
    for cuts in ([list(range(6))], [list(order[:border]), list(order[border:])]):
        v = values.clone().requires_grad_()
        parts = [value_loss(v[rows], old[rows], returns[rows], weights[rows]) for rows in cuts]
        total = torch.stack([loss for loss, _ in parts]).sum()
        found.append((total.detach(), torch.autograd.grad(total, v)[0], add_tallies([tally for _, tally in parts])))
    torch.testing.assert_close(found[0][:2], found[1][:2], rtol=0, atol=1e-6)
    for key, tally in found[0][2].items():
        assert found[1][2][key].count == tally.count == int(mask.sum())
        assert found[1][2][key].mean == pytest.approx(tally.mean, abs=1e-6)


def test_nothing_to_learn_is_zero() -> None:
    nan = torch.full((2, 2), math.nan, requires_grad=True)
    loss, tallies = value_loss(nan, nan, nan, torch.zeros(2, 2))
    loss.backward()
    assert loss.item() == 0.0 and nan.grad is not None and not nan.grad.any()
    assert all(tally.count == 0 and tally.mean == 0.0 for tally in tallies.values())


# ---- explained variance -----------------------------------------------------------------------------


def test_explained_variance_is_numpys_and_stable_baselines() -> None:
    g = torch.Generator().manual_seed(3)
    returns = torch.randn(50, generator=g)
    values = returns + 0.5 * torch.randn(50, generator=g) + 3.0  # a constant offset explains all the same
    expected = 1 - np.var(returns.numpy() - values.numpy()) / np.var(returns.numpy())
    assert explained_variance(values, returns) == pytest.approx(float(expected), rel=1e-5)
    theirs = pytest.importorskip("stable_baselines3.common.utils").explained_variance
    assert explained_variance(values, returns) == pytest.approx(
        float(theirs(values.numpy(), returns.numpy())), rel=1e-5
    )


def test_explained_variance_at_its_ends() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 5.0), returns) == 0.0
    assert explained_variance(-returns, returns) == -3.0
    assert explained_variance(returns, torch.ones(3)) == explained_variance(torch.zeros(0), torch.zeros(0)) == 0.0


# ---- the model ----------------------------------------------------------------------------------------

CONFIG = GrpoConfig(micro_tokens=40, max_tokens=11)


def values_of(model: Any, rows: list[Row], states_of: Any = None, trees: bool = False) -> list[Tensor]:
    """V(s_t) of every row's tokens, in the rows' order."""
    found: dict[int, Tensor] = {}
    for micro in micro_batches(rows, CONFIG, CPU, trees):
        found |= dict(micro.by_row(model.values(micro, None if states_of is None else micro.states(states_of))))
    return [found[b] for b in range(len(rows))]


def test_values_begin_at_zero_and_learn_their_head_first(tokenizer: Tokenizer) -> None:
    critic = critic_of("own", tokenizer)
    rows = made_rows(network(tokenizer))
    values = torch.cat(values_of(critic.model, rows))
    assert values.dtype == torch.float32 and not values.any()
    value_loss(values, values.detach(), torch.ones_like(values), torch.ones_like(values))[0].backward()
    assert critic.model.score.weight.grad is not None and bool(critic.model.score.weight.grad.any())
    assert critic.model.backbone is not None
    assert all(p.grad is None or not p.grad.any() for p in critic.model.backbone.parameters())


@pytest.mark.parametrize("kind", ["own", "shared"])
@pytest.mark.parametrize("trees", [False, True])
def test_a_value_is_read_before_its_token(tokenizer: Tokenizer, kind: str, trees: bool) -> None:
    """The definition: the head on the last state of the row up to t, alone, with no padding."""
    critic, policy = critic_of(kind, tokenizer, head=0.5), network(tokenizer)
    if trees and not policy.native:
        pytest.skip("no C compiler: models share no prompts")
    rows = made_rows(policy)
    trunk = critic.model.backbone or policy
    for row, values in zip(rows, values_of(critic.model, rows, policy, trees), strict=True):
        assert len(values) == row.completion_length
        for t, value in enumerate(values.tolist(), start=row.prompt_length):
            state = trunk.hidden(torch.tensor(row.ids[:t])[None])[0, -1]
            assert value == pytest.approx(float(state.detach() @ critic.model.score.weight[0].detach()), abs=1e-5)


def test_a_shared_critic_has_but_its_head(tokenizer: Tokenizer) -> None:
    shared, own = critic_of("shared", tokenizer), critic_of("own", tokenizer)
    assert shared.shared and not own.shared
    assert sum(p.numel() for p in shared.model.parameters()) == 32
    (micro,) = micro_batches(made_rows(network(tokenizer)), replace(CONFIG, micro_tokens=10**6), CPU)
    with pytest.raises(ValueError, match="policy's states"):
        shared.model.values(micro)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_critic_with_experts_chooses_its_own(tokenizer: Tokenizer, layers: int) -> None:
    """The sampler's experts are told to the policy; a critic may have another depth, and other routers in any case."""
    shape = replace(model_preset("tiny", tokenizer.vocab_size, "v3"), mtp_depth=0)
    policy, backbone = (Transformer(replace(shape, num_layers=n)) for n in (2, layers))
    for model in (policy, backbone):
        model.init_weights(torch.Generator().manual_seed(layers))
    config = PpoConfig(steps=1, problems=2, group_size=2, max_tokens=5, warmup=0)
    value_model = ValueModel(64, backbone, torch.randn(1, 64, generator=torch.Generator().manual_seed(0)))
    learner = Learner(policy, MasterAdamW(policy), critic=Critic(value_model, MasterAdamW(value_model)))
    groups = sample_groups(engine_of(learner, tokenizer), tokenizer, FirstLetter(), config, 0, range(2))
    groups = [replace(g, rollouts=tuple(replace(r, advantage=1.0) for r in g.rollouts)) for g in groups]
    rows = rows_of(groups, config)
    assert all(row.routing is not None for row in rows)
    alone = values_of(value_model, [replace(row, routing=None) for row in rows])
    for found, expected in zip(values_of(value_model, rows), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    (step,) = steps_of(learner, tokenizer, config)
    assert math.isfinite(step.metrics["ppo/value_loss"])


def test_state_and_load_are_the_whole_critic(tokenizer: Tokenizer) -> None:
    one, other = critic_of("own", tokenizer, head=0.5), critic_of("own", tokenizer)
    for critic in (one, other):
        values = torch.cat(values_of(critic.model, made_rows(network(tokenizer))))
        values.square().mean().backward()
        critic.optimizer.step(1e-2)
    assert not torch.equal(vector(one.model), vector(other.model))
    other.load({name: t.clone() for name, t in one.state().items()}, one.optimizer.version)
    assert torch.equal(vector(one.model), vector(other.model)) and other.optimizer.version == 1


# ---- begun from a folder ---------------------------------------------------------------------------------


def policy_folder(tokenizer: Tokenizer, folder: Path) -> Path:
    save_model(network(tokenizer), folder, tokenizer.end_id)
    tokenizer.save(folder)
    return folder


def reward_folder(tokenizer: Tokenizer, folder: Path, width: int = 32, vocab: int | None = None) -> RewardModel:
    config = ModelConfig(
        vocab_size=vocab or tokenizer.vocab_size,
        hidden_size=width,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = RewardModel(config)
    model.backbone.init_weights(torch.Generator().manual_seed(5))
    save_reward_model(model, folder, tokenizer, Meaning())
    return model


@pytest.mark.parametrize("width", [32, 16])
def test_a_critic_from_a_reward_model_begins_with_its_scores(tokenizer: Tokenizer, tmp_path: Path, width: int) -> None:
    """V(s_t) is what the reward model says of the row up to t; it may be smaller than the policy."""
    folder = policy_folder(tokenizer, tmp_path / "policy")
    judge = reward_folder(tokenizer, tmp_path / "rm", width)
    learner, _, state = open_learner(tmp_path, folder, PpoConfig(), "cpu", critic_from=tmp_path / "rm")
    assert state == {"step": 0} and learner.critic is not None and not learner.critic.shared
    rows = made_rows(learner.policy)
    for row, values in zip(rows, values_of(learner.critic.model, rows), strict=True):
        prefixes = [row.ids[:t] for t in range(row.prompt_length, len(row.ids))]
        assert values.tolist() == pytest.approx(score_ids(judge, prefixes), abs=1e-4)
    assert max(abs(v) for values in values_of(learner.critic.model, rows) for v in values.tolist()) > 0.1


@pytest.mark.parametrize("kind", ["own", "shared", "none"])
def test_a_critic_from_the_policy(tokenizer: Tokenizer, tmp_path: Path, kind: Any) -> None:
    folder = policy_folder(tokenizer, tmp_path / "policy")
    learner, _, _ = open_learner(tmp_path, folder, PpoConfig(critic=kind), "cpu")
    if kind == "none":
        assert learner.critic is None
        return
    assert learner.critic is not None
    backbone = learner.critic.model.backbone
    assert (backbone is None) == (kind == "shared")
    if backbone is not None:
        assert backbone is not learner.policy and torch.equal(vector(backbone), vector(learner.policy))
    rows = made_rows(learner.policy)
    assert not torch.cat(values_of(learner.critic.model, rows, learner.policy)).any()


def test_a_reward_model_of_another_vocabulary_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = policy_folder(tokenizer, tmp_path / "policy")
    reward_folder(tokenizer, tmp_path / "rm", vocab=tokenizer.vocab_size + 8)
    with pytest.raises(DunwuError, match="tokens, the policy"):
        make_critic(network(tokenizer), folder, PpoConfig(), "cpu", reward_model=tmp_path / "rm")
    with pytest.raises(DunwuError, match="no reward model"):
        make_critic(network(tokenizer), folder, PpoConfig(), "cpu", reward_model=folder)
