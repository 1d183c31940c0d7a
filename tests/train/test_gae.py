"""Credit in time against oracles: hand-worked numbers, the definition as a double sum, Stable-Baselines3's buffer, numpy.

TRL 1.16 has neither a PPO trainer nor `masked_whiten` any more: its former formula of whitening is written out here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dunwu.train.gae import gae, token_rewards, whiten

F64 = torch.float64


def by_definition(
    rewards: list[float], values: list[float], mask: list[bool], gamma: float, lam: float, last: float = 0.0
) -> list[float]:
    """A_t = Σ_k (γλ)^k δ_{t+k} (arXiv 1506.02438, eq. 16) over the steps there are, as the double sum it is."""
    steps = [t for t, acted in enumerate(mask) if acted]
    found = [0.0] * len(rewards)
    for i, t in enumerate(steps):
        for k, s in enumerate(steps[i:]):
            following = values[steps[i + k + 1]] if i + k + 1 < len(steps) else last
            found[t] += (gamma * lam) ** k * (rewards[s] + gamma * following - values[s])
    return found


def random_case(seed: int, rows: int = 6, steps: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, masks with gaps at both ends and within, values after the end."""
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(rows, steps, generator=g, dtype=F64) for _ in range(2))
    return rewards, values, torch.rand(rows, steps, generator=g) < 0.6, torch.randn(rows, generator=g, dtype=F64)


def test_three_steps_by_hand() -> None:
    """γ = ½, λ = ½: δ = (1 + 1 − 1, 0 + 2 − 2, 3 − 4) = (1, 0, −1); A = (1 + ¼·(−¼), −¼, −1)."""
    rewards, values = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[1.0, 2.0, 4.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1 - 1 / 16, -0.25, -1.0]]
    assert returns.tolist() == [[2 - 1 / 16, 1.75, 3.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_one_is_the_return_less_the_value_and_zero_is_one_step(gamma: float) -> None:
    rewards, values, _, _ = random_case(0)
    ones = torch.ones_like(rewards)
    powers = gamma ** torch.arange(rewards.shape[1], dtype=F64)
    to_come = torch.stack([(rewards[:, t:] * powers[: rewards.shape[1] - t]).sum(1) for t in range(9)], 1)
    advantages, returns = gae(rewards, values, ones, gamma, lam=1.0)
    torch.testing.assert_close(advantages, to_come - values, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, to_come, rtol=0, atol=1e-12)
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1, dtype=F64)], 1)
    advantages, _ = gae(rewards, values, ones, gamma, lam=0.0)
    torch.testing.assert_close(advantages, rewards + gamma * following - values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.97, 0.5, 0.0])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.3, 0.0])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_definition_under_random_masks(gamma: float, lam: float, bootstrap: bool) -> None:
    rewards, values, mask, last = random_case(1)
    assert 0 < int(mask.sum()) < mask.numel() and bool((mask[:, 1:] > mask[:, :-1]).any())
    advantages, returns = gae(rewards, values, mask, gamma, lam, last if bootstrap else None)
    for b in range(len(rewards)):
        end = float(last[b]) if bootstrap else 0.0
        expected = by_definition(rewards[b].tolist(), values[b].tolist(), mask[b].tolist(), gamma, lam, end)
        assert advantages[b].tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0), rtol=0, atol=1e-12)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_what_a_tool_wrote_neither_adds_nor_blocks_nor_discounts() -> None:
    """The policy's three steps with a tool's four between them: the numbers of the three alone, at any γ."""
    rewards, values = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[0.3, 0.7, -0.2]])
    alone = gae(rewards, values, torch.ones(1, 3), gamma=0.9, lam=0.8)
    places = [0, 3, 6]
    wide_rewards, wide_values = torch.full((1, 7), 99.0), torch.full((1, 7), -99.0)
    wide_rewards[:, places], wide_values[:, places] = rewards, values
    mask = torch.zeros(1, 7)
    mask[:, places] = 1
    for found, expected in zip(gae(wide_rewards, wide_values, mask, gamma=0.9, lam=0.8), alone, strict=True):
        assert torch.equal(found[:, places], expected)
        assert not found[mask == 0].any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_at_masked_places_reaches_nothing(garbage: float) -> None:
    rewards, values, mask, last = random_case(2)
    clean = gae(rewards, values, mask, 0.9, 0.9, last)
    dirty = gae(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask, 0.9, 0.9, last)
    assert all(map(torch.equal, clean, dirty))
    assert torch.equal(whiten(rewards, mask), whiten(torch.where(mask, rewards, garbage), mask))


def test_a_truncated_episode_is_continued_by_its_last_value() -> None:
    """One episode cut in two, the first half bootstrapped with the second's first value: at λ = 0 nothing is lost; at
    λ = 1 the value takes the place of the rewards to come."""
    rewards, values, _, _ = random_case(3, rows=2, steps=8)
    ones = torch.ones_like(rewards)
    whole, _ = gae(rewards, values, ones, 0.9, 0.0)
    half, _ = gae(rewards[:, :4], values[:, :4], ones[:, :4], 0.9, 0.0, values[:, 4])
    torch.testing.assert_close(half, whole[:, :4], rtol=0, atol=1e-12)
    _, returns = gae(rewards[:, :1], values[:, :1], ones[:, :1], 0.9, 1.0, values[:, 1])
    torch.testing.assert_close(returns[:, 0], rewards[:, 0] + 0.9 * values[:, 1], rtol=0, atol=1e-12)
    ended, _ = gae(rewards, values, ones, 0.9, 0.95)
    zero, _ = gae(rewards, values, ones, 0.9, 0.95, torch.zeros(2, dtype=F64))
    assert torch.equal(ended, zero)


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_stable_baselines_computes_the_same(gamma: float, lam: float) -> None:
    """Four environments of which two end at the last step and two go on."""
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    spaces = pytest.importorskip("gymnasium").spaces
    box = spaces.Box(-1, 1, (1,))
    buffer = buffers.RolloutBuffer(7, box, box, gae_lambda=lam, gamma=gamma, n_envs=4)
    rewards, values, _, last = random_case(4, rows=4, steps=7)
    dones = np.array([True, False, True, False])
    for t in range(7):
        none = np.zeros((4, 1), dtype=np.float32)
        first = np.full(4, t == 0, dtype=np.float32)
        buffer.add(none, none, rewards[:, t].numpy(), first, values[:, t].float(), torch.zeros(4))
    buffer.compute_returns_and_advantage(last.float(), dones)
    after = torch.where(torch.tensor(dones), 0.0, last)
    advantages, returns = gae(rewards, values, torch.ones(4, 7), gamma, lam, after)
    np.testing.assert_allclose(buffer.advantages.T, advantages.numpy(), atol=1e-5)
    np.testing.assert_allclose(buffer.returns.T, returns.numpy(), atol=1e-5)


NUMBERS = st.floats(-5, 5, allow_nan=False, width=32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[tuple[float, float, bool]]], float, float]:
    step = st.tuples(NUMBERS, NUMBERS, st.booleans())
    width = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(step, min_size=width, max_size=width), min_size=1, max_size=4))
    return rows, draw(st.sampled_from([1.0, 0.9, 0.0])), draw(st.sampled_from([1.0, 0.95, 0.0]))


@settings(max_examples=60, deadline=None)
@given(cases(), st.randoms(use_true_random=False), st.integers(0, 3), st.integers(0, 3))
def test_padding_and_the_order_of_rows_change_nothing(case: Any, dice: Any, left: int, right: int) -> None:
    rows, gamma, lam = case
    table = torch.tensor(rows, dtype=F64)
    rewards, values, mask = table[..., 0], table[..., 1], table[..., 2].bool()
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    order = list(range(len(rows)))
    dice.shuffle(order)
    wide_rewards, wide_values = (
        torch.nn.functional.pad(x[order], (left, right), value=math.nan) for x in (rewards, values)
    )
    wide_mask = torch.nn.functional.pad(mask[order], (left, right))
    width = mask.shape[1]
    for wide, plain in zip(gae(wide_rewards, wide_values, wide_mask, gamma, lam), (advantages, returns), strict=True):
        assert torch.equal(wide[:, left : left + width], plain[order])
        assert float(wide.abs().sum()) == pytest.approx(float(plain.abs().sum()))
    one_by_one = [gae(r[None], v[None], m[None], gamma, lam)[0] for r, v, m in zip(rewards, values, mask, strict=True)]
    assert torch.equal(torch.cat(one_by_one), advantages)


def test_misfits_are_refused_and_gradients_end_here() -> None:
    ones = torch.ones(2, 3, requires_grad=True)
    assert not any(x.requires_grad for x in gae(ones, ones, ones))
    with pytest.raises(ValueError, match="differ"):
        gae(ones, ones, torch.ones(2, 1))


# ---- whitening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_whitening_is_numpys_and_that_of_trls_former_ppo(shift_mean: bool, dtype: torch.dtype) -> None:
    values, _, mask, _ = random_case(5)
    values = (3 + 2 * values).to(dtype)
    ours = whiten(values, mask, shift_mean)
    kept = values.double().numpy()[mask.numpy()]
    expected = (kept - kept.mean()) / kept.std() + (0 if shift_mean else kept.mean())
    np.testing.assert_allclose(ours.numpy()[mask.numpy()], expected, atol=1e-6)
    assert not ours[~mask].any() and ours.dtype == dtype
    # TRL's masked_whiten had the unbiased variance; ours is the population's.
    n = len(kept)
    theirs = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8) + (0 if shift_mean else kept.mean())
    back = kept.mean() if not shift_mean else 0
    np.testing.assert_allclose((expected - back) * np.sqrt((n - 1) / n), theirs - back, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.3, 1e6, -0.7])
@pytest.mark.parametrize("count", [1, 3, 8, 10])
def test_equal_values_whiten_to_exactly_zero(value: float, count: int) -> None:
    values = torch.full((1, count), value)
    assert torch.equal(whiten(values, torch.ones(1, count), eps=0.0), torch.zeros(1, count))
    assert torch.equal(whiten(values, torch.ones(1, count), shift_mean=False), values)


def test_nothing_to_whiten() -> None:
    assert torch.equal(whiten(torch.full((2, 2), math.nan), torch.zeros(2, 2)), torch.zeros(2, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=12), st.floats(0.5, 4), NUMBERS)
def test_whitened_advantages_do_not_know_scale_and_shift(values: list[float], scale: float, shift: float) -> None:
    table = torch.tensor(values, dtype=F64)
    ones = torch.ones(len(values))
    white = whiten(table, ones)
    if max(values) - min(values) > 1e-3:
        torch.testing.assert_close(whiten(table * scale + shift, ones), white, rtol=0, atol=1e-4)
        assert float(white.mean()) == pytest.approx(0, abs=1e-9)
        assert float(white.std(correction=0)) == pytest.approx(1, abs=1e-4)


# ---- the reward of every token --------------------------------------------------------------------


def test_rewards_of_tokens_by_hand() -> None:
    """Three rows: two tokens, none, and two with a tool's between them; β = ½."""
    policy = torch.tensor([[-1.0, -2.0, math.nan], [math.nan] * 3, [-1.0, math.nan, -3.0]])
    ref = torch.tensor([[-1.5, -1.0, math.nan], [math.nan] * 3, [-3.0, math.nan, -3.0]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]])
    rewards = token_rewards(torch.tensor([3.0, 7.0, -1.0]), policy, ref, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.25, 3.5, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, -1.0]]
    plain = token_rewards(torch.tensor([3.0, 7.0, -1.0]), policy, None, mask, kl_coef=0.5)
    assert plain.tolist() == [[0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    assert torch.equal(token_rewards(torch.tensor([3.0, 7.0, -1.0]), policy, ref, mask), plain)


def test_the_rewards_of_a_row_sum_to_its_score_less_the_kl() -> None:
    policy, ref, mask, scores = random_case(6)
    rewards = token_rewards(scores, policy, ref, mask, kl_coef=0.1)
    live = mask.any(1)
    kl = torch.where(mask, policy - ref, 0.0).sum(1)
    torch.testing.assert_close(rewards.sum(1), torch.where(live, scores - 0.1 * kl, 0.0), rtol=0, atol=1e-12)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
    first = mask.int().argmax(1)
    torch.testing.assert_close(advantages[range(6), first], rewards.sum(1), rtol=0, atol=1e-12)
