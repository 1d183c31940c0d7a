"""Our systems are gymnasium's, step by step; the LQR's optimum is the optimum."""

from __future__ import annotations

import numpy as np
import pytest

from dunwu.control.envs import Acrobot, CartPole, Environment, Lqr, Pendulum, environment
from dunwu.types import UsageError


@pytest.mark.parametrize("system", [CartPole(), Pendulum(), Acrobot()], ids=lambda system: system.name)
def test_a_step_is_gymnasiums(system: Environment) -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="the extra [control] is not installed")
    theirs = gymnasium.make(system.gym_id).unwrapped
    rng = np.random.default_rng(0)
    ended = 0
    for episode in range(10):
        theirs.reset(seed=episode)
        # Wild starts as well, so that limits, wrapped angles and clipped torques are met.
        state = system.start(rng, 1) * (1.0 if episode < 5 else rng.uniform(1.0, 8.0))
        theirs.state = state[0].copy()
        for time in range(60):
            action = rng.integers(0, system.choices, 1) if system.choices else rng.normal(0.0, 2.0, (1, 1))
            seen, reward, terminated, _, _ = theirs.step(int(action[0]) if system.choices else action[0])
            after, mine, over = system.step(state, action)
            np.testing.assert_allclose(after[0], theirs.state, rtol=0, atol=1e-10)
            assert abs(mine[0] - reward) < 1e-10 and bool(over[0]) is terminated
            np.testing.assert_allclose(system.observe(after, time)[0], seen, rtol=1e-6, atol=1e-6)
            if terminated:
                ended += 1
                break
            state = np.asarray(theirs.state, dtype=np.float64)[None]
    assert ended > 0 or system.name != "cartpole"
    assert gymnasium.make(system.gym_id).spec.max_episode_steps == system.horizon


def test_starts_are_gymnasiums_ranges() -> None:
    for system, low, high in (
        (CartPole(), [-0.05] * 4, [0.05] * 4),
        (Pendulum(), [-np.pi, -1], [np.pi, 1]),
        (Acrobot(), [-0.1] * 4, [0.1] * 4),
    ):
        drawn = system.start(np.random.default_rng(0), 4000)
        np.testing.assert_allclose(drawn.min(axis=0), low, rtol=0.02)
        np.testing.assert_allclose(drawn.max(axis=0), high, rtol=0.02)


def test_acrobot_ends_when_its_tip_is_up() -> None:
    state = np.array([[np.pi, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    _, reward, up = Acrobot().step(state, np.array([1, 1]))
    assert up.tolist() == [True, False] and reward.tolist() == [0.0, -1.0]


# ---- the LQR


def test_riccatis_gains_are_the_least_squares_solution() -> None:
    """Without shocks the best forces of an episode solve one big least squares problem."""
    system, start = Lqr(6), np.array([1.0, -2.0])
    powers = [np.linalg.matrix_power(system.A, n) for n in range(7)]
    reach = np.zeros((7, 2, 6))  # what every force does to every state
    for t in range(1, 7):
        for k in range(t):
            reach[t, :, k] = (powers[t - 1 - k] @ system.B)[:, 0]
    weights = np.sqrt(np.diag(system.Q))
    rows = [weights[:, None] * reach[t] for t in range(6)] + [np.sqrt(system.R[0, 0]) * np.eye(6)]
    aims = [-weights * (powers[t] @ start) for t in range(6)] + [np.zeros(6)]
    forces, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(aims), rcond=None)
    gains, costs = system.riccati()
    state, total = start[None], 0.0
    for gain, force in zip(gains, forces):
        mine = -state @ gain.T
        np.testing.assert_allclose(mine[0, 0], force, atol=1e-10)
        state, reward, over = system.step(state, mine)
        total -= float(reward[0])
        assert not over[0]
    assert total == pytest.approx(start @ costs[0] @ start, abs=1e-10)


def test_the_expected_optimum_counts_the_shocks() -> None:
    system, rng = Lqr(30), np.random.default_rng(1)
    start = np.repeat(system.start(rng, 5), 4000, axis=0)
    paid = system.best_cost(start, rng.standard_normal((30, len(start), 1))).reshape(5, 4000)
    expected = system.optimum(start).reshape(5, 4000)[:, 0]
    assert (np.abs(paid.mean(axis=1) - expected) < 4 * paid.std(axis=1) / np.sqrt(4000)).all()


def test_no_other_gain_costs_less() -> None:
    system, rng = Lqr(40), np.random.default_rng(2)
    start, shocks = system.start(rng, 2000), rng.standard_normal((40, 2000, 1))
    best = system.best_cost(start, shocks).mean()
    gain = system.riccati()[0][0]
    for change in ([0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5], [0.0, 0.0]):
        state, total = start, 0.0
        for shock in shocks:
            state, reward, _ = system.step(state, -state @ (gain + change).T, shock)
            total -= reward.mean()
        assert total > best


def test_systems_have_names() -> None:
    assert environment("lqr-100").horizon == 100 and environment("acrobot").choices == 3
    for name in ("lqr", "lqr-0", "mountaincar"):
        with pytest.raises(UsageError, match="no control system"):
            environment(name)
