"""Control goes through the language models' functions, and what is past an episode's end does nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dunwu.control import learn as module
from dunwu.control.collect import Episodes, collect, draws, shocks, starts
from dunwu.control.config import LearnConfig
from dunwu.control.envs import CartPole, Environment, Lqr, environment
from dunwu.control.learn import Learners, critic_credit, group_credit, learn, weights_of
from dunwu.train.advantages import group_advantages
from dunwu.train.gae import gae
from dunwu.types import DunwuError, UsageError

GRPO = LearnConfig(algorithm="grpo", starts=2, group_size=2, epochs=2, minibatches=2, gamma=1.0, std_eps=0.0)
PPO = LearnConfig(algorithm="ppo", starts=4, epochs=2, minibatches=2, hidden=(8,), value_hidden=(8,))


def episodes(rewards: list[list[float]], truncated: list[int] | None = None) -> Episodes:
    """One seed's, from the rewards of each; shorter ones are padded with what must not be looked at."""
    longest = max(map(len, rewards))
    padded = torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rewards])
    mask = torch.tensor([[n < len(row) for n in range(longest)] for row in rewards])
    count = len(rewards)
    return Episodes(
        torch.randn(1, count, longest, 4),
        torch.randint(0, 2, (1, count, longest)),
        padded[None],
        mask[None],
        torch.randn(1, count, 4),
        torch.tensor([truncated or [0] * count]).bool(),
    )


# ---- credit


def test_outcome_credit_by_hand() -> None:
    """Returns 3 and 1 of the first start, 2 and 2 of the second: ±1 by the group's deviation, and exactly 0."""
    found = group_credit(episodes([[1.0, 1.0, 1.0], [1.0], [1.0, 1.0], [2.0]]), GRPO)
    assert found.tolist() == [[[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    none = group_credit(episodes([[1.0, 1.0, 1.0], [1.0]]), replace(GRPO, std_normalize="none"))
    assert none.tolist() == [[[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]]]
    rloo = group_credit(episodes([[1.0, 1.0, 1.0], [1.0]]), replace(GRPO, algorithm="rloo"))
    assert rloo.tolist() == [[[2.0, 2.0, 2.0], [-2.0, 0.0, 0.0]]]


def test_credit_to_go_by_hand() -> None:
    """Returns to go 3, 2, 1 and 2, 1, over: a sibling that has ended is no measure for the one that has not."""
    config = replace(GRPO, credit="to-go", std_normalize="none")
    found = group_credit(episodes([[1.0, 1.0, 1.0], [1.0, 1.0]]), config)
    assert found.tolist() == [[[0.5, 0.5, 0.0], [-0.5, -0.5, 0.0]]]
    halved = group_credit(episodes([[1.0, 1.0], [0.0, 0.0]]), replace(config, gamma=0.5))
    assert halved.tolist() == [[[0.75, 0.5], [-0.75, -0.5]]]


def test_credit_is_the_language_models() -> None:
    rewards = torch.randn(8, 5).tolist()
    found = group_credit(episodes(rewards), replace(GRPO, starts=2, group_size=4, std_normalize="batch", std_eps=1e-4))
    returns = episodes(rewards).rewards_SBT[0]
    returns = gae(returns, torch.zeros_like(returns), torch.ones_like(returns), 1.0, 1.0)[0][:, 0].tolist()
    expected, _ = group_advantages([returns[:4], returns[4:]], "batch", 1e-4)
    assert torch.equal(found[0, :, 0], torch.tensor(expected).flatten())
    assert torch.equal(found[0, :, 0], found[0, :, 4])
    batch = group_credit(episodes(rewards), LearnConfig(algorithm="reinforce", starts=8, credit="to-go", gamma=1.0))
    assert abs(float(batch.mean())) < 1e-6 and float(batch.var(correction=0)) == pytest.approx(1.0, rel=1e-5)


def test_a_time_limit_goes_on_with_the_critic_and_an_end_does_not() -> None:
    """γ 0.5, λ 1: the return of the last step is its reward, and half the value of what a time limit cut off."""
    learners = Learners(CartPole(), replace(PPO, gamma=0.5, lam=1.0), [0])
    played = episodes([[1.0, 1.0], [1.0, 1.0], [1.0]], truncated=[1, 0, 0])
    after = learners.critic.values(learners.value_weights_SW, learners.unit_S2, played.last_SBO)[0]
    _, returns, _ = critic_credit(learners, [0], played, learners.config)
    expected = [1.0 + 0.5 * (1.0 + 0.5 * float(after[0])), 1.0 + 0.5 * float(after[0]), 1.5, 1.0, 1.0, 0.0]
    torch.testing.assert_close(returns.flatten(), torch.tensor(expected))


def test_every_seeds_weights_sum_to_one() -> None:
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]]).bool()
    for norm in ("token", "sequence"):
        weights = weights_of(mask, replace(GRPO, loss_norm=norm), 3)
        torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2))
        assert (weights[~mask] == 0).all()


# ---- episodes


def test_siblings_share_their_start_and_nothing_else() -> None:
    system = CartPole()
    learners = Learners(system, GRPO, [3, 4])
    begin = starts(system, [3, 4], 2, 2, "train", 1)
    assert (begin[:, 0] == begin[:, 1]).all() and (begin[:, 0] != begin[:, 2]).all() and (begin[0] != begin[1]).all()
    played = collect(system, learners.policy, learners.weights_SW, begin, draws(system, learners.policy, [3, 4], 4, 1))
    assert not torch.equal(played.actions[0, 0, :5], played.actions[0, 1, :5])
    assert torch.equal(played.observed_SBTO[:, 0, 0], played.observed_SBTO[:, 1, 0])
    lengths = played.mask_SBT.sum(dim=2)
    torch.testing.assert_close(played.returns_SB, lengths.float())
    for seed in range(2):  # replayed by hand, one at a time
        state = begin[seed, :1]
        for time in range(int(lengths[seed, 0])):
            seen = system.observe(state, time)[0] / np.asarray(system.scale, dtype=np.float32)
            np.testing.assert_array_equal(played.observed_SBTO[seed, 0, time].numpy(), seen)
            state, _, over = system.step(state, played.actions[seed, :1, time].numpy())
        assert over[0]
        last = system.observe(state, 0)[0] / np.asarray(system.scale, dtype=np.float32)
        np.testing.assert_array_equal(played.last_SBO[seed, 0].numpy(), last)
    assert not played.truncated_SB.any()


@pytest.mark.parametrize(("name", "cut"), [("pendulum", True), ("lqr-30", False)])
def test_a_time_limit_cuts_off_what_a_horizon_ends(name: str, cut: bool) -> None:
    system = environment(name)
    learners = Learners(system, PPO, [0])
    noise, shock = draws(system, learners.policy, [0], 3, 1), shocks(system, [0], 3, 1)
    played = collect(system, learners.policy, learners.weights_SW, starts(system, [0], 3, 1), noise, shock)
    assert played.mask_SBT.shape[2] == system.horizon and played.mask_SBT.all()
    assert bool(played.truncated_SB.all()) is cut


# ---- learning


def moved(system: Environment, config: LearnConfig, change: Any = None, seeds: tuple[int, ...] = (0,)) -> torch.Tensor:
    """Weights after an update, of policy and critic."""
    learners = Learners(system, config, list(seeds))
    rows = list(range(len(seeds)))
    begin = starts(system, list(seeds), config.starts, config.group_size, "train", 1)
    noise = draws(system, learners.policy, list(seeds), config.episodes, 1)
    played = collect(system, learners.policy, learners.weights_SW, begin, noise)
    if change is not None:
        change(played)
    module._update(learners, rows, played, torch.ones(len(rows)), 1)
    return torch.cat([learners.weights_SW, learners.value_weights_SW], dim=1)


@pytest.mark.parametrize("config", [GRPO, replace(GRPO, credit="to-go"), PPO], ids=["grpo", "to-go", "ppo"])
def test_what_is_past_the_end_trains_nothing(config: LearnConfig) -> None:
    """The other known bug: steps after an episode's end that still count."""

    def spoil(played: Episodes) -> None:
        past = ~played.mask_SBT
        assert past.any()
        played.observed_SBTO[past] = 7.0
        played.actions[past] = 1
        played.rewards_SBT[past] = 1e6

    assert torch.equal(moved(CartPole(), config), moved(CartPole(), config, spoil))


@pytest.mark.parametrize("config", [GRPO, PPO], ids=["grpo", "ppo"])
def test_a_seed_learns_the_same_alone(config: LearnConfig) -> None:
    together = moved(CartPole(), config, seeds=(5, 6, 7))
    for n, seed in enumerate((5, 6, 7)):
        torch.testing.assert_close(together[n], moved(CartPole(), config, seeds=(seed,))[0], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_policy_gradient() -> None:
    """One plain step on an LQR's linear policy: −Σ A ∇log π, in numpy."""
    config = LearnConfig("reinforce", "outcome", starts=4, epochs=1, minibatches=1, hidden=(), gamma=1.0, lr=1e-3)
    system = Lqr(5)
    learners = Learners(system, config, [0])
    begin = starts(system, [0], 4, 1)
    played = collect(system, learners.policy, learners.weights_SW, begin, draws(system, learners.policy, [0], 4, 1))
    seen, actions = played.observed_SBTO[0].double().numpy(), played.actions[0].double().numpy()
    flat = learners.weights_SW[0].double().numpy()
    returns = played.rewards_SBT[0].sum(dim=1).double().numpy()
    advantages = (returns - returns.mean()) / (returns.std() + config.std_eps)
    apart = actions[..., 0] - seen @ flat[:3] - flat[3]
    per_step = advantages[:, None] / 20
    grad = [*np.einsum("bt,bt,bto->o", per_step, apart, seen), (per_step * apart).sum()]
    grad.append((per_step * (apart**2 - 1)).sum())
    taken: list[torch.Tensor] = []
    learners.optimizer.step = lambda flat, rows, grad, lr, norm: taken.append(grad) or torch.zeros(1)  # type: ignore[method-assign,func-returns-value]
    module._update(learners, [0], played, torch.ones(1), 1)
    np.testing.assert_allclose(-taken[0][0].numpy(), grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo", "ppo"])
def test_every_algorithm_learns(algorithm: str) -> None:
    once = (
        {"epochs": 1, "minibatches": 1, "lr": 1e-1} if algorithm in ("reinforce", "rloo") else {"epochs": 4, "lr": 3e-2}
    )
    config = LearnConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        env_steps=20 * 32 * 25,
        starts=4,
        group_size=8,
        gamma=1.0,
        hidden=(),
        value_hidden=(16,),
        value_lr=3e-3,
        **once,  # type: ignore[arg-type]
    )
    learners = Learners(Lqr(20), config, [0, 1])
    before = learners.greedy_returns([0, 1], 16).mean(dim=1)
    steps = list(learn(learners))
    assert [step.update for step in steps] == list(range(1, 26)) and steps[-1].steps == [16_000, 16_000]
    assert (learners.greedy_returns([0, 1], 16).mean(dim=1) > 0.5 * before).all()


def test_a_seed_rests_when_its_steps_are_spent() -> None:
    learners = Learners(CartPole(), replace(PPO, env_steps=200), [0, 1, 2])
    for step in learn(learners):
        before = learners.weights_SW.clone()
        assert step.rows == [n for n in range(3) if n in step.rows]
    rested = [n for n in range(3) if n not in step.rows]
    assert torch.equal(before[rested], learners.weights_SW[rested]) and min(step.steps) >= 200


def test_the_first_pass_is_on_policy() -> None:
    learners = Learners(CartPole(), replace(GRPO, epochs=1, minibatches=1), [0, 1])
    step = next(learn(learners))
    assert step.metrics["ratio"] == pytest.approx(1.0, abs=1e-6) and step.metrics["approx_kl"] < 1e-9


def test_what_is_not_finite_stops() -> None:
    def spoil(played: Episodes) -> None:
        played.rewards_SBT[0, 0, 0] = float("nan")

    with pytest.raises(DunwuError, match="the loss of cartpole is nan"):
        moved(CartPole(), PPO, spoil)


def test_settings_that_cannot_work_are_told() -> None:
    for config, said in (
        (replace(GRPO, group_size=1), "groups of 1"),
        (replace(PPO, epochs=0), "epochs is 0"),
        (LearnConfig(algorithm="reinforce"), "no clip"),
        (replace(PPO, algorithm="a2c"), "no algorithm"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=said):
            config.validate()
