"""The rule of the finder on made-up trials, and its KL and entropy against what they are by definition."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dunwu.data.tokenizer import train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.train.config import GrpoConfig
from dunwu.train.lr_finder import Point, Start, Trial, advise, drift, grid, group_rewards, is_over, judge, paired
from dunwu.types import Group, Problem, Rollout, SamplingParams, Verdict

START = Start((0.2, 0.4, 0.6, 0.4), 1.0)


def trial(lr: float, gain: float, entropy: float = 0.8, noise: float = 0.01) -> Trial:
    rewards = (reward + gain + noise * sign for reward, sign in zip(START.rewards, (1, -1, 1, -1), strict=True))
    return Trial(lr, tuple(rewards), entropy, 0.01, 0.0)


@pytest.mark.parametrize(
    ("gains", "advised", "breaks"),
    [
        ([0.0, 0.1, 0.3, 0.1, -0.2], 1e-3, 1e-2),  # below the best before it, and below the start
        ([0.0, 0.1, 0.3, 0.305, 0.31], 1e-1, None),  # nothing broke
        ([0.0, 0.3, 0.1, 0.35, 0.0], 1e-2, 1e-1),  # one dip is noise; the last is the grid's end
        ([-0.1, -0.2, -0.2], None, 1e-5),
    ],
)
def test_the_largest_rate_before_the_break(gains: list[float], advised: float | None, breaks: float | None) -> None:
    points = judge(START, [trial(10.0 ** (n - 5), gain) for n, gain in enumerate(gains)])
    advice = advise(points)
    assert (advice.lr, advice.breaks_at) == (advised, breaks), advice
    assert [point.gain for point in points] == pytest.approx(gains)


def test_lost_entropy_and_stops_break_too() -> None:
    points = judge(
        START, [trial(1e-3, 0.2), trial(1e-2, 0.3, entropy=0.05), Trial(1e-1, stopped="loss is nan at step 2")]
    )
    assert [point.broke for point in points] == ["", "5% of the entropy left", "loss is nan at step 2"]
    assert advise(points).lr == 1e-3 and is_over(points) and not is_over(points[:2])


def test_a_difference_within_its_error_breaks_nothing_and_recommends_nothing() -> None:
    def noisy(lr: float, gain: float) -> Trial:
        return Trial(lr, tuple(r + gain + d for r, d in zip(START.rewards, (0.3, -0.3, 0.1, -0.1), strict=True)), 0.8)

    good = trial(1e-3, 0.1)
    doubtful, fine = judge(START, [good, noisy(1e-2, -0.1), noisy(1e-1, 0.05)])[1:]
    assert doubtful.broke == fine.broke == "" and doubtful.behind > 1 > fine.behind > 0
    assert advise(judge(START, [good, noisy(1e-2, -0.1)])).lr == 1e-3
    assert advise(judge(START, [good, noisy(1e-2, 0.05)])).lr == 1e-2
    mean, error = paired((0.0, 2.0, 4.0), (0.0, 0.0, 0.0))
    assert (mean, error) == (2.0, pytest.approx(2.0 / math.sqrt(3)))


def test_a_grid_has_equal_ratios_and_both_ends() -> None:
    rates = grid(1e-5, 1e-2, 7)
    assert (rates[0], rates[-1], len(rates)) == (1e-5, 1e-2, 7)
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([10**0.5] * 6, rel=3e-3)
    assert grid(0.1, 0.5, 1) == (0.1,)
    assert advise([Point(0.1, 0, 0, 0, 1, 0, "")]).lr == 0.1


def test_drift_is_zero_at_home_and_the_kl_of_the_two_policies_away() -> None:
    """One token a completion: the sampled mean nears Σ p log(p / q), and the entropy −Σ p log p."""
    tokenizer = train_from_texts(["ab"], 271)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32
    )
    start = Transformer(replace(config, initializer_range=0.3))
    start.init_weights(torch.Generator().manual_seed(0))
    policy = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    prompt = tuple(tokenizer.encode("a"))
    (drawn,) = Engine(policy, tokenizer).sample([list(prompt)], [list(range(4000))], SamplingParams(max_tokens=1))
    rollouts = tuple(Rollout(completion, Verdict({}, float(n % 2))) for n, completion in enumerate(drawn))
    groups = [Group(Problem("t", "1", {}, "a"), prompt, rollouts)]
    settings = GrpoConfig(max_tokens=1)
    with torch.no_grad():
        p, q = (torch.log_softmax(m(torch.tensor([prompt]))[0, -1].double(), -1) for m in (policy, start))
    kl, entropy = drift(policy, start, groups, settings)
    assert kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.1)
    assert entropy == pytest.approx(float(-(p.exp() * p).sum()), rel=1e-4)
    assert drift(policy, policy, groups, settings)[0] == 0.0
    assert group_rewards(groups) == (0.5,)
