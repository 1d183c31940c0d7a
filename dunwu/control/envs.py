"""Four control systems, many copies at a time: CartPole-v1, Pendulum-v1, Acrobot-v1 as gymnasium has them, and an LQR.

States and rewards are float64, so that a step equals gymnasium's to rounding (a test holds them to 1e-10); policies see float32.
A state is a row of numbers; nothing is kept between steps, so siblings of a group start from equal rows.

An episode ends in one of three ways. The system may *terminate* (the pole has fallen, the acrobot has swung up): nothing follows.
A time limit may *truncate* it: the system would go on, and a critic that looks ahead must say what would have followed. Or the
horizon belongs to the problem, as in the LQR: then time is part of what is observed, and its end is an end.

Shapes: N copies, D numbers of a state, O of an observation, K of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dunwu.types import UsageError

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
After = tuple[Array, Array, NDArray[np.bool_]]


class Environment(Protocol):
    """What an algorithm sees of a system."""

    @property
    def name(self) -> str:
        """As in reports, e.g. "cartpole"."""

    @property
    def gym_id(self) -> str:
        """Its name in gymnasium; empty if it is not there."""

    @property
    def horizon(self) -> int:
        """Steps after which an episode is over."""

    @property
    def truncates(self) -> bool:
        """Whether the horizon cuts off what would go on (a time limit), or is the end of the problem."""

    @property
    def scale(self) -> tuple[float, ...]:
        """What observations are divided by before a network sees them, O numbers."""

    @property
    def choices(self) -> int:
        """Number of actions to choose from; 0: the action is a vector of numbers."""

    @property
    def force(self) -> float:
        """What a policy's number 1 stands for in the system's unit, where the action is a number."""

    @property
    def shocks(self) -> int:
        """Standard normal numbers that disturb each step; 0: the system does what it is told."""

    def start(self, rng: np.random.Generator, count: int) -> Array:
        """`count` start states, (N, D)."""

    def step(self, state_ND: Array, action: NDArray[Any], shock: Array | None = None) -> After:
        """States after the action ((N,) choices or (N, K) numbers) and the shock (N, `shocks`), rewards (N,), and which have
        terminated (N,)."""

    def observe(self, state_ND: Array, time: int) -> Floats:
        """What a policy sees after `time` steps, (N, O), as gymnasium gives it: not yet divided by `scale`."""


class CartPole:
    """A pole on a cart that is pushed left or right; 1 for every step it stands (Barto, Sutton and Anderson 1983)."""

    name, gym_id, horizon, truncates = "cartpole", "CartPole-v1", 500, True
    scale, choices, force, shocks = (2.4, 2.0, 0.21, 2.0), 2, 10.0, 0

    def start(self, rng: np.random.Generator, count: int) -> Array:
        return rng.uniform(-0.05, 0.05, (count, 4))

    def step(self, state_ND: Array, action: NDArray[Any], shock: Array | None = None) -> After:
        gravity, cart, pole, half, seconds = 9.8, 1.0, 0.1, 0.5, 0.02
        x, speed, angle, turn = state_ND.T
        sine, cosine, total, moment = np.sin(angle), np.cos(angle), cart + pole, pole * half
        pushed = (np.where(action == 1, self.force, -self.force) + moment * np.square(turn) * sine) / total
        turned = (gravity * sine - cosine * pushed) / (half * (4.0 / 3.0 - pole * np.square(cosine) / total))
        moved = pushed - moment * turned * cosine / total
        after = np.stack(
            [x + seconds * speed, speed + seconds * moved, angle + seconds * turn, turn + seconds * turned], 1
        )
        fallen = (np.abs(after[:, 0]) > 2.4) | (np.abs(after[:, 2]) > 12 * 2 * math.pi / 360)
        return after, np.ones(len(after)), fallen

    def observe(self, state_ND: Array, time: int) -> Floats:
        return state_ND.astype(np.float32)


class Pendulum:
    """A pendulum to be swung up and held there by a weak motor; costs angle, speed and torque. The state is (angle, speed)."""

    name, gym_id, horizon, truncates = "pendulum", "Pendulum-v1", 200, True
    scale, choices, force, shocks = (1.0, 1.0, 8.0), 0, 2.0, 0

    def start(self, rng: np.random.Generator, count: int) -> Array:
        return rng.uniform((-math.pi, -1.0), (math.pi, 1.0), (count, 2))

    def step(self, state_ND: Array, action: NDArray[Any], shock: Array | None = None) -> After:
        gravity, mass, length, seconds = 10.0, 1.0, 1.0, 0.05
        angle, speed = state_ND.T
        torque = np.clip(action[:, 0], -self.force, self.force)
        upright = (angle + math.pi) % (2 * math.pi) - math.pi
        cost = upright**2 + 0.1 * speed**2 + 0.001 * torque**2
        pull = 3 * gravity / (2 * length) * np.sin(angle) + 3.0 / (mass * length**2) * torque
        speed = np.clip(speed + pull * seconds, -8.0, 8.0)
        return np.stack([angle + speed * seconds, speed], 1), -cost, np.zeros(len(state_ND), dtype=bool)

    def observe(self, state_ND: Array, time: int) -> Floats:
        angle, speed = state_ND.T
        return np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32)


class Acrobot:
    """Two links, a motor at the joint between them; −1 a step until the tip is a link's length above the upper joint (Sutton 1996)."""

    name, gym_id, horizon, truncates = "acrobot", "Acrobot-v1", 500, True
    scale, choices, force, shocks = (1.0, 1.0, 1.0, 1.0, 4 * math.pi, 9 * math.pi), 3, 1.0, 0

    def start(self, rng: np.random.Generator, count: int) -> Array:
        return rng.uniform(-0.1, 0.1, (count, 4)).astype(np.float32).astype(np.float64)

    def step(self, state_ND: Array, action: NDArray[Any], shock: Array | None = None) -> After:
        torque = (np.asarray(action) - 1) * self.force
        after = _runge_kutta(lambda state: self._slope(state, torque), state_ND, 0.2)
        angles = (after[:, :2] + math.pi) % (2 * math.pi) - math.pi
        # Inside the range an angle keeps its last digits: the remainder would round them.
        after[:, :2] = np.where(np.abs(after[:, :2]) <= math.pi, after[:, :2], angles)
        limits = (4 * math.pi, 9 * math.pi)
        after[:, 2:] = np.clip(after[:, 2:], [-limit for limit in limits], limits)
        up = -np.cos(after[:, 0]) - np.cos(after[:, 1] + after[:, 0]) > 1.0
        return after, np.where(up, 0.0, -1.0), up

    def _slope(self, state_ND: Array, torque: Array) -> Array:
        """Velocities and accelerations; masses, lengths and moments of both links are 1, their centres at 1/2."""
        gravity = 9.8
        first, second, turn1, turn2 = state_ND.T
        d1 = 0.25 + (1.25 + np.cos(second)) + 2.0
        d2 = (0.25 + 0.5 * np.cos(second)) + 1.0
        phi2 = 0.5 * gravity * np.cos(first + second - math.pi / 2)
        phi1 = -0.5 * turn2**2 * np.sin(second) - turn2 * turn1 * np.sin(second)
        phi1 = phi1 + 1.5 * gravity * np.cos(first - math.pi / 2) + phi2
        bend = (torque + d2 / d1 * phi1 - 0.5 * turn1**2 * np.sin(second) - phi2) / (1.25 - d2**2 / d1)
        return np.stack([turn1, turn2, -(d2 * bend + phi1) / d1, bend], 1)

    def observe(self, state_ND: Array, time: int) -> Floats:
        first, second = state_ND[:, 0], state_ND[:, 1]
        turned = [np.cos(first), np.sin(first), np.cos(second), np.sin(second)]
        return np.stack([*turned, state_ND[:, 2], state_ND[:, 3]], 1).astype(np.float32)


class Lqr:
    """A mass on a line with friction, to be brought to 0 and held there against shocks: x' = A x + B u + w, at cost x'Qx + u'Ru a
    step, for `horizon` steps.

    x is (place, speed), u the force, w a normal shock to the speed, and the optimum is known: `riccati`. Start states are standard
    normal. The observation has the share of the time gone by, since near the end it pays to save force.
    """

    gym_id, truncates, choices, force, shocks = "", False, 0, 1.0, 1
    scale = (1.0, 1.0, 1.0)
    SECONDS, FRICTION, SHOCK = 0.2, 1.0, 0.2
    A: Array = np.array([[1.0, SECONDS], [0.0, 1.0 - FRICTION * SECONDS]])
    B: Array = np.array([[0.5 * SECONDS**2], [SECONDS]])
    Q: Array = np.diag([1.0, 0.1])
    R: Array = np.array([[0.1]])
    W: Array = np.diag([0.0, SHOCK**2])

    def __init__(self, horizon: int = 20) -> None:
        self.horizon, self.name = horizon, f"lqr-{horizon}"

    def start(self, rng: np.random.Generator, count: int) -> Array:
        return rng.standard_normal((count, 2))

    def step(self, state_ND: Array, action: NDArray[Any], shock: Array | None = None) -> After:
        force = np.asarray(action, dtype=np.float64)
        cost = np.einsum("nd,de,ne->n", state_ND, self.Q, state_ND) + np.einsum("nk,kl,nl->n", force, self.R, force)
        after = state_ND @ self.A.T + force @ self.B.T
        if shock is not None:
            after[:, 1] += self.SHOCK * shock[:, 0]
        return after, -cost, np.zeros(len(state_ND), dtype=bool)

    def observe(self, state_ND: Array, time: int) -> Floats:
        return np.concatenate([state_ND, np.full((len(state_ND), 1), time / self.horizon)], 1).astype(np.float32)

    def riccati(self) -> tuple[list[Array], list[Array]]:
        """The best gains K_t (u_t = −K_t x_t), t < H, and P_t, t ≤ H, of their cost x'P_t x from step t on, by Riccati's recursion.

            P_H = 0,  K_t = (R + B'P_{t+1}B)⁻¹ B'P_{t+1}A,  P_t = Q + A'P_{t+1}(A − B K_t)

        Example:
            >>> gains, _ = Lqr(2).riccati()
            >>> gains[1].tolist()  # before the last step force only costs
            [[0.0, 0.0]]
        """
        gains: list[Array] = []
        costs: list[Array] = [np.zeros_like(self.Q)]
        for _ in range(self.horizon):
            ahead = costs[-1]
            gain = np.asarray(np.linalg.solve(self.R + self.B.T @ ahead @ self.B, self.B.T @ ahead @ self.A), float)
            gains.append(gain)
            costs.append(self.Q + self.A.T @ ahead @ (self.A - self.B @ gain))
        return gains[::-1], costs[::-1]

    def optimum(self, state_ND: Array) -> Array:
        """Least expected cost of an episode from each start state, (N,): x'P_0 x, and tr(W P_t) for every shock to come."""
        _, costs = self.riccati()
        shocks = sum(float(np.trace(self.W @ cost)) for cost in costs[1:])
        return np.asarray(np.einsum("nd,de,ne->n", state_ND, costs[0], state_ND)) + shocks

    def best_cost(self, state_ND: Array, shocks_TNK: Array) -> Array:
        """What the best controller, which does not know the shocks beforehand, pays under these, (N,)."""
        gains, _ = self.riccati()
        total = np.zeros(len(state_ND))
        for gain, shock in zip(gains, shocks_TNK):
            state_ND, reward, _ = self.step(state_ND, -state_ND @ gain.T, shock)
            total -= reward
        return total


def environment(name: str) -> Environment:
    """A system by name: cartpole, pendulum, acrobot, or lqr-H of horizon H.

    Raises:
        UsageError: no such system.

    Example:
        >>> environment("lqr-100").horizon
        100
    """
    systems: dict[str, Callable[[], Environment]] = {"cartpole": CartPole, "pendulum": Pendulum, "acrobot": Acrobot}
    if name in systems:
        return systems[name]()
    kind, _, horizon = name.partition("-")
    if kind == "lqr" and horizon.isdecimal() and int(horizon) > 0:
        return Lqr(int(horizon))
    raise UsageError(f"no control system {name!r}", f"choose from {', '.join(systems)}, lqr-H")


def _runge_kutta(slope: Callable[[Array], Array], state: Array, seconds: float) -> Array:
    """One step of the classic fourth order."""
    first = slope(state)
    second = slope(state + seconds / 2 * first)
    third = slope(state + seconds / 2 * second)
    fourth = slope(state + seconds * third)
    return state + seconds / 6.0 * (first + 2 * second + 2 * third + fourth)
