"""What a study's figures decide, on figures made up for it; and workers, whose number decides nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dunwu.control.config import LearnConfig, Trial
from dunwu.control.findings import Result, sentence, title, verdicts, who_needs_a_critic
from dunwu.control.trial import CURVE, best_cost, run_trial
from dunwu.control.workers import Workers
from dunwu.types import DunwuError


def result(system: str, variant: str, final: list[float], group_size: int = 16, swept: bool = False) -> Result:
    curve = [[3.0, 3.0, 3.0], [2.0, 1.04, 3.0], [1.04, 1.04, 1.04]]
    return Result(system, variant, group_size, 64, swept, final, [0, 10, 20], curve, updates=2, seconds=1.0)


RESULTS = [
    result("cartpole", "ppo", [500.0, 500.0, 500.0]),
    result("cartpole", "grpo", [500.0, 300.0, 500.0]),
    result("lqr-20", "ppo", [1.02, 1.02, 1.02]),
    result("lqr-20", "grpo", [1.01, 1.02, 1.03]),
    result("lqr-500", "ppo", [1.1, 1.1, 1.1]),
    result("lqr-500", "grpo", [2.0, 2.1, 2.2]),
    result("lqr-500", "grpo", [1.7, 1.8, 1.9], group_size=4, swept=True),
    result("lqr-500", "grpo-to-go", [1.2, 1.3, 1.4]),
]


def test_claims_follow_the_intervals() -> None:
    found = {verdict["claim"]: verdict["holds"] for verdict in verdicts(RESULTS)}
    assert found == {
        "CartPole-v1: PPO reaches 475": True,
        "CartPole-v1: GRPO reaches 475": None,
        "LQR, 20 steps: PPO costs at most 5% more than the best controller": True,
        "LQR, 20 steps: GRPO costs at most 5% more than the best controller": True,
        "LQR, 500 steps: PPO costs at most 5% more than the best controller": False,
        "LQR, 500 steps: GRPO costs at most 5% more than the best controller": False,
        "LQR, 500 steps: GRPO, return to go costs at most 5% more than the best controller": False,
        "A short horizon needs no critic: at 20 steps GRPO is at most 0.05 above PPO's cost over the optimum": True,
        "A long one does: at 500 steps GRPO is more than 0.05 above PPO": True,
        "Return to go, without any critic, closes half of that gap at 500 steps": True,
        "LQR, 500 steps: groups of 4 are better than groups of 16": True,
    }


def test_who_needs_a_critic_by_hand() -> None:
    rows = {(row["system"], row["variant"]): row["needed"] for row in who_needs_a_critic(RESULTS)}
    assert rows == {
        ("cartpole", "grpo"): None,
        ("lqr-20", "grpo"): False,
        ("lqr-500", "grpo"): True,
        ("lqr-500", "grpo-to-go"): None,
    }
    assert sentence(who_needs_a_critic(RESULTS)) == (
        "GRPO needs no critic on LQR, 20 steps, needs one on LQR, 500 steps, open on CartPole-v1. "
        "With the return to go open on LQR, 500 steps."
    )
    assert sentence([]) == "No PPO to compare with." and title("pendulum") == "Pendulum-v1"


def test_steps_to_the_target_are_the_median_seeds() -> None:
    record = RESULTS[3].as_json()
    assert record["steps_to_target"] == 20 and record["env_steps"] == 20
    assert record["curve"][2][:2] == [20, pytest.approx(1.04)]
    assert result("acrobot", "ppo", [1.0] * 3).steps_to_target() == 0
    assert result("cartpole", "ppo", [1.0] * 3).steps_to_target() is None
    assert RESULTS[0].as_json()["gym"] is None


# ---- workers

TRIAL = Trial("lqr-8", LearnConfig("grpo", env_steps=600, starts=2, group_size=4, hidden=(4,)), (1, 2), 2, 4, 4)


def test_the_number_of_workers_changes_no_bit() -> None:
    trials = [TRIAL, replace(TRIAL, system="lqr-5"), replace(TRIAL, seeds=(3,))]
    found = []
    for count in (1, 3):
        with Workers(count) as workers:
            found.append([future.result() for future in [workers.submit(trial) for trial in trials]])
    for one, three in zip(*found):
        assert torch.equal(one.weights, three.weights) and one.curve == three.curve and one.final == three.final
    here = run_trial(TRIAL)
    torch.testing.assert_close(here.weights, found[0][0].weights)
    assert here.steps == [0, 300, 600] and here.updates == 10 and len(here.metrics) == 2
    best = best_cost(TRIAL, CURVE)
    assert best is not None and all(-value >= 0.5 * best for value in here.curve[-1])


def test_a_workers_error_comes_through() -> None:
    with Workers(1) as workers:
        with pytest.raises(DunwuError, match="no control system 'moon'"):
            workers.submit(replace(TRIAL, system="moon")).result()
        assert workers.submit(TRIAL).result().updates == 10
        workers._children[0].kill()
        with pytest.raises(DunwuError, match="ended with code -9"):
            workers.submit(TRIAL).result()
        assert workers.submit(TRIAL).result().updates == 10
