"""GRPO on a model of a few thousand weights: it learns, its controls do not, and no defect of the loop stays silent."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.train import update as update_module
from dunwu.train.checkpoint import load_checkpoint, save_checkpoint
from dunwu.train.collect import collect, group_metrics, rows_of, with_advantages
from dunwu.train.config import GrpoConfig
from dunwu.train.grpo import grpo, update
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.rows import Row, micro_batches
from dunwu.train.steps import TrainStep
from dunwu.types import Completion, DunwuError, Group, Problem, Rollout, SamplingParams, UsageError, Verdict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)


class FirstLetter:
    """Reward 1 if the completion's first character is one of 64 (of 280 tokens): chance is near 1/4."""

    name = "first-letter"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, f"{split}-{seed}-{index}", {"index": index}, f"{index % 7}+{index % 3}=")

    def score(self, problem: Problem, completion: str) -> Verdict:
        right = float(32 <= ord(completion[0]) < 96) if completion else 0.0
        return Verdict({"accuracy": right}, right)

    def gold(self, problem: Problem) -> str:
        return "A"

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


class Judged(FirstLetter):
    """The same problems, judged by a function of the completion's text."""

    def __init__(self, judge: Callable[[str], Verdict | float]) -> None:
        self.judge = judge
        self.asked: list[int] = []

    def problem(self, split: str, seed: int, index: int) -> Problem:
        self.asked.append(index)
        return super().problem(split, seed, index)

    def score(self, problem: Problem, completion: str) -> Verdict:
        verdict = self.judge(completion)
        return verdict if isinstance(verdict, Verdict) else Verdict({"accuracy": verdict}, verdict)


def network(tokenizer: Tokenizer, spread: float = 0.3) -> Transformer:
    """A model whose next-token distribution is far from flat."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        initializer_range=spread,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def learner_of(model: Transformer, eps: float = 1e-8) -> Learner:
    return Learner(model, MasterAdamW(model, eps=eps, weight_decay=0.0))


def engine_of(learner: Learner, tokenizer: Tokenizer) -> Engine:
    return Engine(learner.policy, tokenizer, lambda: learner.optimizer.version)


CONFIG = GrpoConfig(steps=3, problems=4, group_size=4, max_tokens=6, warmup=0, lr=3e-3)


def run(tokenizer: Tokenizer, config: GrpoConfig, task: Any = None, spread: float = 0.3) -> list[TrainStep]:
    learner = learner_of(network(tokenizer, spread))
    return list(grpo(learner, engine_of(learner, tokenizer), tokenizer, task or FirstLetter(), config, seed=0))


# ---- learning and its control -------------------------------------------------------------------


def test_reward_rises_and_under_a_random_reward_it_does_not(tokenizer: Tokenizer) -> None:
    config = GrpoConfig(steps=40, problems=8, group_size=8, max_tokens=2, warmup=0, lr=1e-2)
    curves = {}
    for reward in ("rule", "random"):
        steps = run(tokenizer, replace(config, reward=reward), spread=0.05)  # type: ignore[arg-type]
        curves[reward] = [step.metrics["grpo/reward/accuracy"] for step in steps]
    chance = 64 / 280
    samples = 64
    for curve in curves.values():
        assert abs(curve[0] - chance) < 4 * math.sqrt(chance * (1 - chance) / samples)
    assert sum(curves["rule"][-5:]) / 5 > 0.9
    assert sum(curves["random"][-5:]) / 5 < 2 * chance


def test_countdown_trains_on_its_own_verdicts(tokenizer: Tokenizer) -> None:
    task = Countdown(CountdownConfig(high=4, target_high=9))
    config = replace(CONFIG, steps=1, reward="random", max_tokens=4)
    (step,) = run(tokenizer, config, task)
    assert step.n == 1 and len(step.groups) == 4
    assert {"grpo/reward/accuracy", "grpo/reward/format"} <= step.metrics.keys()
    assert step.metrics["grpo/reward/accuracy"] == 0.0 < step.metrics["grpo/reward"] < 1.0
    assert all(group.problem.task == "countdown" for group in step.groups)
    assert all(tuple(tokenizer.encode(group.problem.prompt)) == group.prompt_ids for group in step.groups)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tokenizer: Tokenizer) -> None:
    def weights(seed: int) -> Tensor:
        learner = learner_of(network(tokenizer))
        for _ in grpo(learner, engine_of(learner, tokenizer), tokenizer, FirstLetter(), CONFIG, seed):
            pass
        return learner.optimizer.master

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


# ---- the update: cuts, minibatches, places --------------------------------------------------------


def made_rows(model: Transformer, count: int = 10) -> list[Row]:
    """Rows of many lengths and both signs, sampled from the model, three to a group."""
    dice = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        prompt = torch.randint(0, 256, (2 + number % 4,), generator=dice).tolist()
        completion = torch.randint(0, 256, (1 + 3 * number % 11,), generator=dice).tolist()
        ids = torch.tensor(prompt + completion)
        advantage = (-1.0) ** number * (0.5 + number / 10)
        logprobs = plain_logprobs(model, ids, len(prompt), 1.0).tolist()
        rows.append(Row(tuple(ids.tolist()), len(prompt), tuple(logprobs), advantage, number // 3))
    return rows


@torch.no_grad()
def plain_logprobs(model: Transformer, ids: Tensor, prompt_length: int, temperature: float) -> Tensor:
    """The definition: one row alone, softmax over the whole vocabulary, one position before each token."""
    logprobs = (model(ids[None])[0] / temperature).log_softmax(-1)
    return torch.stack([logprobs[t - 1, ids[t]] for t in range(prompt_length, len(ids))])


@pytest.mark.parametrize("loss_norm", ["token", "sequence", "constant", "prompt"])
def test_the_update_does_not_depend_on_how_the_rows_are_cut(tokenizer: Tokenizer, loss_norm: Any) -> None:
    start = network(tokenizer)
    rows = made_rows(start)
    results = []
    for micro_tokens, order in ((10**6, 1), (40, 1), (1, 1), (40, -1)):
        learner = learner_of(copy.deepcopy(start), eps=1e-3)  # so that rounding of a gradient near 0 cannot flip a step
        config = replace(CONFIG, loss_norm=loss_norm, micro_tokens=micro_tokens, max_tokens=11)
        metrics = update(learner, rows[::order], config, 1e-2, seed=0, step=0, folder=None)
        results.append((learner.optimizer.first.clone(), learner.optimizer.master.clone(), metrics))
    (gradient, weights, metrics), *others = results
    assert float((weights - network_vector(start)).abs().max()) > 1e-3
    for other_gradient, other_weights, other_metrics in others:
        torch.testing.assert_close(other_gradient, gradient, atol=1e-6, rtol=0)
        torch.testing.assert_close(other_weights, weights, atol=1e-6, rtol=0)
        assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def network_vector(model: Transformer) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_the_four_denominators_are_four_updates(tokenizer: Tokenizer) -> None:
    start = network(tokenizer)
    rows = made_rows(start)
    norms = set()
    for loss_norm in ("token", "sequence", "constant", "prompt"):
        config = replace(CONFIG, loss_norm=loss_norm, max_tokens=50)  # type: ignore[arg-type]
        metrics = update(learner_of(copy.deepcopy(start)), rows, config, 1e-3, seed=0, step=0, folder=None)
        norms.add(round(metrics["grpo/grad_norm"], 6))
    assert len(norms) == 4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_sit_at_the_right_places(tokenizer: Tokenizer, temperature: float) -> None:
    model = network(tokenizer)
    rows = made_rows(model)
    seen = 0
    for micro in micro_batches(rows, replace(CONFIG, micro_tokens=40), CPU):
        logprobs_N, entropy_N = micro.logprobs(model, temperature)
        assert float(entropy_N.min()) > 0
        at = 0
        for line in micro.ids:
            row = next(r for r in rows if list(r.ids[:-1]) == line[: len(r.ids) - 1].tolist())
            length = len(row.ids) - row.prompt_length
            expected = plain_logprobs(model, torch.tensor(row.ids), row.prompt_length, temperature)
            torch.testing.assert_close(logprobs_N[at : at + length].detach(), expected, atol=1e-5, rtol=1e-4)
            assert tuple(micro.targets_N[at : at + length].tolist()) == row.ids[row.prompt_length :]
            assert micro.advantages_N[at : at + length].tolist() == pytest.approx([row.advantage] * length)
            assert micro.sampler_N[at : at + length].tolist() == pytest.approx(row.sampler_logprobs)
            at += length
            seen += 1
        assert at == len(logprobs_N)  # completion tokens only: no prompt, no padding
    assert seen == len(rows)


@pytest.fixture
def losses_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(policy logprobs, old logprobs) of every call of the loss."""
    calls: list[tuple[Tensor, Tensor]] = []
    original = update_module.policy_loss

    def spy(policy: Tensor, old: Tensor, *args: Any, **named: Any) -> Any:
        calls.append((policy.detach().clone(), old.clone()))
        return original(policy, old, *args, **named)

    monkeypatch.setattr(update_module, "policy_loss", spy)
    return calls


def test_minibatches_are_compared_with_the_weights_that_sampled(
    tokenizer: Tokenizer, losses_seen: list[tuple[Tensor, Tensor]]
) -> None:
    start = network(tokenizer)
    rows = made_rows(start, 12)
    learner = learner_of(copy.deepcopy(start))
    config = replace(CONFIG, minibatches=3, max_tokens=11)
    metrics = update(learner, rows, config, 1e-2, seed=0, step=0, folder=None)
    assert learner.optimizer.version == len(losses_seen) == 3
    ratios = [(policy - old).exp() for policy, old in losses_seen]
    assert float((ratios[0] - 1).abs().max()) < 1e-5
    assert all(float((ratio - 1).abs().max()) > 1e-2 for ratio in ratios[1:])
    assert metrics["grpo/ratio_max"] == pytest.approx(max(float(ratio.max()) for ratio in ratios), rel=1e-5)
    sampled = sorted(p for row in rows for p in row.sampler_logprobs)
    assert sorted(torch.cat([old for _, old in losses_seen]).tolist()) == pytest.approx(sampled, abs=1e-5)


def test_more_minibatches_than_rows_lose_no_row(tokenizer: Tokenizer) -> None:
    start = network(tokenizer)
    rows = made_rows(start, 3)
    learner = learner_of(start)
    metrics = update(learner, rows, replace(CONFIG, minibatches=5, max_tokens=11), 1e-3, seed=0, step=0, folder=None)
    assert learner.optimizer.version == 3
    assert metrics["grpo/trained_tokens"] == sum(len(row.ids) - row.prompt_length for row in rows)


# ---- ids ------------------------------------------------------------------------------------------


def test_sampled_ids_are_trained_and_the_stop_token_with_them(tokenizer: Tokenizer) -> None:
    learner = learner_of(network(tokenizer, spread=0.02))  # near uniform: bytes that are no text, and early stops
    config = replace(CONFIG, problems=32, max_tokens=40)
    groups, _ = collect(engine_of(learner, tokenizer), tokenizer, FirstLetter(), config, seed=0, step=0)
    rows = rows_of(groups, replace(config, drop_zero_variance=False))
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    prompts = [group.prompt_ids for group in groups for _ in group.rollouts]
    assert [row.ids for row in rows] == [p + c.token_ids for p, c in zip(prompts, completions, strict=True)]
    changed = [c for c in completions if tokenizer.encode(c.text) != list(c.token_ids)]
    assert len(changed) > len(completions) / 2  # so re-encoding the text would train other ids
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped and all(c.token_ids[-1] in tokenizer.stop_ids for c in stopped)
    assert not any(stop in c.text for c in stopped for stop in ("<|endoftext|>", "<|im_end|>"))
    targets = [t for micro in micro_batches(rows, config, CPU) for t in micro.targets_N.tolist()]
    assert sum(targets.count(stop) for stop in tokenizer.stop_ids) == len(stopped)
    assert len(targets) == sum(len(c.token_ids) for c in completions)


def test_rollouts_carry_the_version_of_the_weights_that_wrote_them(tokenizer: Tokenizer) -> None:
    steps = run(tokenizer, replace(CONFIG, minibatches=2, problems=8))
    versions = [{r.completion.weight_version for group in step.groups for r in group.rollouts} for step in steps]
    assert versions == [{0}, {2}, {4}]
    assert [step.metrics["grpo/weight_version"] for step in steps] == [2.0, 4.0, 6.0]


# ---- before the first update -----------------------------------------------------------------------


class Tampered:
    """An engine whose logprobs are changed on their way to the trainer."""

    def __init__(self, engine: Engine, change: Callable[[Completion], Completion], **params: float) -> None:
        self.engine, self.change, self.params = engine, change, params

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        drawn = self.engine.sample(prompts, seeds, replace(params, **self.params))  # type: ignore[arg-type]
        return [[self.change(completion) for completion in group] for group in drawn]


def _shifted(completion: Completion) -> Completion:
    logprobs = completion.sampler_logprobs
    return replace(completion, sampler_logprobs=logprobs[1:] + logprobs[:1])


def _unknown(completion: Completion) -> Completion:
    return replace(completion, sampler_logprobs=(math.nan,) * len(completion.token_ids))


@pytest.mark.parametrize("fault", ["temperature", "top_k", "stale", "shifted", "nan"])
def test_a_sampler_that_is_not_the_trainer_is_refused(tokenizer: Tokenizer, fault: str) -> None:
    learner = learner_of(network(tokenizer))
    stale = copy.deepcopy(learner.policy)
    with torch.no_grad():
        for p in stale.parameters():
            p.mul_(1.03)
    engine = engine_of(learner, tokenizer)
    samplers = {
        "temperature": Tampered(engine, lambda c: c, temperature=0.8),
        "top_k": Tampered(engine, lambda c: c, top_k=50),
        "stale": Engine(stale, tokenizer),
        "shifted": Tampered(engine, _shifted),
        "nan": Tampered(engine, _unknown),
    }
    before = network_vector(learner.policy)
    with pytest.raises(DunwuError, match="before the first update"):
        next(grpo(learner, samplers[fault], tokenizer, FirstLetter(), CONFIG, seed=0))
    assert torch.equal(network_vector(learner.policy), before)


def test_the_check_waits_for_the_first_update_there_is(tokenizer: Tokenizer) -> None:
    learner = learner_of(network(tokenizer))
    wrong = Tampered(engine_of(learner, tokenizer), _shifted)
    rewards = itertools.chain([0.0] * 16, itertools.cycle([0.0, 1.0]))
    flat_at_first = Judged(lambda _: next(rewards))
    steps = grpo(learner, wrong, tokenizer, flat_at_first, CONFIG, seed=0)
    assert next(steps).metrics["grpo/trained_tokens"] == 0.0
    with pytest.raises(DunwuError, match="before the first update"):
        next(steps)


def test_a_right_sampler_is_within_a_ten_thousandth(tokenizer: Tokenizer) -> None:
    for temperature in (1.0, 0.7):
        for step in run(tokenizer, replace(CONFIG, temperature=temperature)):
            assert step.metrics["grpo/sampler_mismatch"] < 1e-4
            assert step.metrics["grpo/ratio"] == 1.0
            assert step.metrics["grpo/approx_kl"] == 0.0
    for step in run(tokenizer, replace(CONFIG, minibatches=4, lr=1e-2)):
        assert step.metrics["grpo/sampler_mismatch"] < 1e-4  # it is not the policy's own way since
        assert step.metrics["grpo/ratio_max"] > 1.01


# ---- the reference ---------------------------------------------------------------------------------


def test_kl_is_zero_at_first_grows_and_falls_at_a_refresh(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, steps=5, kl_coef=0.1, reference_every=3)
    kl = [step.metrics["grpo/ref_kl"] for step in run(tokenizer, config)]
    assert kl[0] == pytest.approx(0.0, abs=1e-7) and kl[3] == pytest.approx(0.0, abs=1e-7)
    assert min(kl[1], kl[2], kl[4]) > 1e-4
    never = [step.metrics["grpo/ref_kl"] for step in run(tokenizer, replace(config, reference_every=0))]
    assert never[:3] == kl[:3] and never[3] > 1e-4


def test_a_reference_that_is_not_the_policy_is_refused_at_first(tokenizer: Tokenizer) -> None:
    learner = learner_of(network(tokenizer))
    learner.reference = network(tokenizer, spread=0.2).requires_grad_(False)
    config = replace(CONFIG, kl_coef=0.1)
    with pytest.raises(DunwuError, match=r"KL to the reference is .* before the first update"):
        next(grpo(learner, engine_of(learner, tokenizer), tokenizer, FirstLetter(), config, seed=0))


def test_the_kl_term_holds_the_policy_back(tokenizer: Tokenizer) -> None:
    free, held = (
        run(tokenizer, replace(CONFIG, steps=8, kl_coef=coef, reference_every=0))[-1] for coef in (1e-9, 10.0)
    )
    assert held.metrics["grpo/ref_kl"] < free.metrics["grpo/ref_kl"] / 2


@pytest.mark.parametrize("stop", [2, 3])  # at a refresh, and one step after it
def test_resumed_with_its_reference_it_is_bit_for_bit_the_same(tokenizer: Tokenizer, tmp_path: Path, stop: int) -> None:
    config = replace(CONFIG, steps=5, kl_coef=0.5, reference_every=2, minibatches=2)

    def continued(learner: Learner, start: int, end: int) -> Tensor:
        steps = grpo(learner, engine_of(learner, tokenizer), tokenizer, FirstLetter(), config, 0, start)
        while next(steps).n < end:
            pass
        return learner.optimizer.master

    whole = continued(learner_of(network(tokenizer)), 0, 5)
    killed = learner_of(network(tokenizer))
    continued(killed, 0, stop)
    assert killed.reference is not None
    reference = {f"reference.{name}": tensor for name, tensor in killed.reference.state_dict().items()}
    save_checkpoint(tmp_path, killed.optimizer.state() | reference, {"version": killed.optimizer.version})

    def restored(with_reference: bool) -> Learner:
        found = load_checkpoint(tmp_path)
        assert found is not None
        tensors, state = found
        learner = learner_of(network(tokenizer))
        learner.optimizer.load(tensors, state["version"])
        if with_reference:
            learner.refresh_reference()
            assert learner.reference is not None
            learner.reference.load_state_dict(
                {name: tensors[f"reference.{name}"] for name in learner.policy.state_dict()}
            )
        return learner

    assert torch.equal(continued(restored(True), stop, 5), whole)
    if stop == 3:
        assert not torch.equal(continued(restored(False), stop, 5), whole)


# ---- groups: verdicts that are not rewards, groups that say nothing ----------------------------------


def group_of(*marks: float | str, length: int = 3, cut: Sequence[int] = ()) -> Group:
    """A group with these rewards ("error" and "timeout" are verdicts without one); rows in `cut` are truncated."""
    rollouts = []
    for number, mark in enumerate(marks):
        verdict = Verdict({}, 0.0, mark) if isinstance(mark, str) else Verdict({"accuracy": mark}, mark)  # type: ignore[arg-type]
        reason = "length" if number in cut else "stop"
        ids = tuple(range(1, 1 + length + number))
        rollouts.append(Rollout(Completion("", ids, (-1.0,) * len(ids), reason, number), verdict))  # type: ignore[arg-type]
    return Group(Problem("toy", "toy-0", {}, "p"), (7, 8), tuple(rollouts))


def advantages(group: Group, config: GrpoConfig) -> list[float | None]:
    return [rollout.advantage for rollout in with_advantages([group], config)[0].rollouts]


@pytest.mark.parametrize("fault", ["error", "timeout", math.nan, math.inf])
def test_a_verdict_without_a_reward_is_no_zero(fault: Any) -> None:
    config = replace(CONFIG, std_normalize="none")
    assert advantages(group_of(1.0, 1.0, 0.0, fault), config) == pytest.approx([1 / 3, 1 / 3, -2 / 3, None])
    assert advantages(group_of(1.0, 1.0, fault, fault), config) == [0.0, 0.0, None, None]  # with zeros: 1/2, 1/2, …
    assert advantages(group_of(1.0, fault, fault, fault), config) == [0.0, None, None, None]
    group = with_advantages([group_of(1.0, 0.0, 0.5, fault)], config)[0]
    rows = rows_of([group], config)
    assert [row.advantage for row in rows] == [0.5, -0.5, 0.0]
    metrics = group_metrics([group])
    assert metrics["grpo/verifier_errors"] == 1.0
    assert metrics["grpo/reward"] == metrics["grpo/reward/accuracy"] == 0.5


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_verifier_errors_are_counted_in_a_whole_step(tokenizer: Tokenizer, status: Any) -> None:
    def judge(text: str) -> Verdict | float:
        return Verdict({}, 0.0, status, "the gold is broken") if len(text) % 2 else float(len(text) % 4 == 0)

    (step,) = run(tokenizer, replace(CONFIG, steps=1, problems=8), Judged(judge))
    rollouts = [rollout for group in step.groups for rollout in group.rollouts]
    failed = [rollout for rollout in rollouts if rollout.verdict.status == status]
    assert 0 < len(failed) < len(rollouts)
    assert step.metrics["grpo/verifier_errors"] == len(failed)
    assert all((rollout.advantage is None) == (rollout in failed) for rollout in rollouts)
    right = [r.verdict.reward for r in rollouts if r not in failed]
    assert step.metrics["grpo/reward"] == pytest.approx(sum(right) / len(right))


def test_groups_without_variance_leave_the_denominator(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, std_normalize="none")
    live, flat = group_of(1.0, 0.0), group_of(0.1, 0.1)
    groups = with_advantages([flat, live], config)
    assert [row.group for row in rows_of(groups, config)] == [1, 1]
    kept = rows_of(groups, replace(config, drop_zero_variance=False))
    assert [row.advantage for row in kept] == [0.0, 0.0, 0.5, -0.5]
    (dropped,), (diluted,) = (micro_batches(rows, config, CPU) for rows in (rows_of(groups, config), kept))
    assert float(dropped.weights_N[0]) == pytest.approx(1 / 7)
    assert float(diluted.weights_N[0]) == pytest.approx(1 / 14)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_when_every_group_is_flat_nothing_moves(tokenizer: Tokenizer, reward: float) -> None:
    learner = learner_of(network(tokenizer))
    before = network_vector(learner.policy)
    steps = list(grpo(learner, engine_of(learner, tokenizer), tokenizer, Judged(lambda _: reward), CONFIG, seed=0))
    assert torch.equal(network_vector(learner.policy), before)
    assert learner.optimizer.version == 0 and not learner.optimizer.first.any()
    for step in steps:
        assert all(math.isfinite(value) for value in step.metrics.values())
        assert step.metrics["grpo/zero_variance_groups"] == 4.0
        assert step.metrics["grpo/trained_tokens"] == step.metrics["grpo/moved_tensors"] == 0.0
        assert step.metrics["grpo/reward"] == pytest.approx(reward)


def test_one_live_group_trains_alone(tokenizer: Tokenizer) -> None:
    task = Judged(lambda _: 0.0)
    learner = learner_of(network(tokenizer))
    groups, _ = collect(engine_of(learner, tokenizer), tokenizer, task, CONFIG, seed=0, step=0)
    live = groups[2]
    rewarded = replace(live, rollouts=(replace(live.rollouts[0], verdict=Verdict({}, 1.0)), *live.rollouts[1:]))
    rows = rows_of(with_advantages([*groups[:2], rewarded, *groups[3:]], CONFIG), CONFIG)
    assert [row.group for row in rows] == [2] * 4
    metrics = update(learner, rows, CONFIG, 1e-3, seed=0, step=0, folder=None)
    assert metrics["grpo/trained_tokens"] == sum(len(r.completion.token_ids) for r in live.rollouts)
    assert metrics["grpo/moved_tensors"] == 1.0


class Scripted:
    """Writes "x" from every prompt in `live` as often as not, and "y" from all others."""

    def __init__(self, tokenizer: Tokenizer, live: set[str]) -> None:
        self.tokenizer, self.live = tokenizer, live

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        drawn = []
        for prompt, row in zip(prompts, seeds, strict=True):
            texts = ["x" if n % 2 and self.tokenizer.decode(prompt) in self.live else "y" for n in range(len(row))]
            drawn.append(
                [
                    Completion(text, tuple(self.tokenizer.encode(text)), (-1.0,), "stop", seed)
                    for text, seed in zip(texts, row, strict=True)
                ]
            )
        return drawn


class Numbered(Judged):
    """Problem n asks just "n"."""

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return replace(super().problem(split, seed, index), prompt=str(index))


@pytest.mark.parametrize(
    ("live", "rounds", "replaced", "trained"),
    [
        ({"0", "2", "5"}, 2, 1, ["0", "2", "5"]),  # 0..2, then one more number for each flat one
        ({"0", "1", "2"}, 1, 0, ["0", "1", "2"]),
        ({"1"}, 3, 4, ["1"]),  # 3 + 2 + 2 sampled, 3 shown
        (set(), 3, 6, []),
    ],
)
def test_flat_groups_are_replaced_and_none_is_lost(
    tokenizer: Tokenizer, live: set[str], rounds: int, replaced: int, trained: list[str]
) -> None:
    task = Numbered(lambda text: float(text == "x"))
    config = replace(CONFIG, problems=3, dynamic_rounds=3)
    live = live | ({"3"} if live == {"0", "2", "5"} else set())
    trained = sorted([*trained, "3"])[:3] if "3" in live else trained
    groups, counts = collect(Scripted(tokenizer, live), tokenizer, task, config, seed=0, step=0)
    assert len(groups) == 3
    assert counts["grpo/rounds"] == rounds
    assert counts["grpo/replaced_groups"] == replaced
    assert len(task.asked) == len(set(task.asked)) == len(groups) + replaced  # in = out + replaced
    live_asked = [str(index) for index in task.asked if str(index) in live]
    assert counts["grpo/zero_variance_groups"] == len(task.asked) - len(live_asked)
    assert sorted(g.problem.prompt for g in groups if any(r.advantage for r in g.rollouts)) == trained == live_asked


def test_no_question_is_asked_twice(tokenizer: Tokenizer) -> None:
    task = Numbered(lambda text: float(text == "x"))
    config = replace(CONFIG, problems=3, dynamic_rounds=4)
    live = {str(index) for index in range(0, 400, 3)}
    for step in range(20):
        collect(Scripted(tokenizer, live), tokenizer, task, config, seed=0, step=step)
    assert len(task.asked) > 20 * 3
    assert len(set(task.asked)) == len(task.asked)


def test_every_sample_of_a_run_has_its_own_seed(tokenizer: Tokenizer) -> None:
    seeds = [r.completion.seed for step in run(tokenizer, CONFIG) for group in step.groups for r in group.rollouts]
    assert len(set(seeds)) == len(seeds) == 3 * 4 * 4


# ---- overlong -------------------------------------------------------------------------------------


def test_truncated_rows_count_for_their_siblings_whatever_becomes_of_them() -> None:
    group = group_of(1.0, 0.0, 0.0, 0.0, cut=[0])
    keep, mask = (replace(CONFIG, std_normalize="none", overlong=choice) for choice in ("keep", "mask"))  # type: ignore[arg-type]
    kept, masked = (rows_of(with_advantages([group], config), config) for config in (keep, mask))
    assert [row.advantage for row in kept] == [0.75, -0.25, -0.25, -0.25]
    assert [row.advantage for row in masked] == [-0.25, -0.25, -0.25]  # dropped first, all would be 0
    (batch,) = micro_batches(masked, mask, CPU)
    assert float(batch.weights_N.sum()) == pytest.approx(1.0)
    assert len(batch.weights_N) == 4 + 5 + 6


def test_the_length_punishment_is_part_of_the_reward() -> None:
    config = replace(CONFIG, std_normalize="none", overlong="penalty", max_tokens=6, overlong_buffer=2)
    # lengths 3, 4, 5, 6 of at most 6: punished 0, 0, 1/2, 1
    assert advantages(group_of(1.0, 1.0, 1.0, 1.0), config) == pytest.approx([0.375, 0.375, -0.125, -0.625])
    with pytest.raises(UsageError, match="overlong_buffer"):
        replace(config, overlong_buffer=7).validate()


def test_masked_rows_make_no_step(tokenizer: Tokenizer) -> None:
    learner = learner_of(network(tokenizer))
    half = Judged(lambda text: float(ord(text[0]) % 2) if text else 0.0)
    config = replace(CONFIG, max_tokens=1, overlong="mask", minibatches=2)
    first = next(grpo(learner, engine_of(learner, tokenizer), tokenizer, half, replace(config, overlong="keep"), 0))
    assert first.metrics["grpo/truncated"] > 0.9
    learner.optimizer.first.fill_(1.0)  # momentum that a step without gradient would still follow
    before, version = network_vector(learner.policy), learner.optimizer.version
    groups = with_advantages([group_of(1.0, 0.0, cut=[0, 1])], config)
    metrics = update(learner, rows_of(groups, config), config, 1e-2, seed=0, step=1, folder=None)
    assert metrics["grpo/trained_tokens"] == 0.0
    assert torch.equal(network_vector(learner.policy), before) and learner.optimizer.version == version
    mixed = with_advantages([group_of(1.0, 0.0, 0.0, 0.0, cut=[1, 2, 3])], config)
    update(learner, rows_of(mixed, config), config, 1e-2, seed=0, step=1, folder=None)
    assert learner.optimizer.version == version + 1  # two minibatches asked for, one with rows


# ---- what the metrics say ---------------------------------------------------------------------------


def test_a_frozen_tensor_shows_in_the_share_that_moved(tokenizer: Tokenizer) -> None:
    (step,) = run(tokenizer, replace(CONFIG, steps=1))
    assert step.metrics["grpo/moved_tensors"] == 1.0
    model = network(tokenizer)
    tensors = list(model.parameters())
    tensors[1].requires_grad_(False)
    tensors[4].requires_grad_(False)
    learner = learner_of(model)
    step = next(grpo(learner, engine_of(learner, tokenizer), tokenizer, FirstLetter(), CONFIG, seed=0))
    assert step.metrics["grpo/moved_tensors"] == pytest.approx(1 - 2 / len(tensors))


def test_lengths_and_truncation_are_means_over_all_rollouts() -> None:
    metrics = group_metrics([group_of(1.0, 0.0, "error", 1.0, cut=[1])])
    assert metrics["grpo/length"] == (3 + 4 + 5 + 6) / 4
    assert metrics["grpo/truncated"] == 0.25
    assert metrics["grpo/reward"] == pytest.approx(2 / 3)


# ---- numbers gone bad --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["loss", "gradient", "explosion"])
def test_bad_numbers_stop_the_run_and_leave_the_batch(tokenizer: Tokenizer, tmp_path: Path, fault: str) -> None:
    model = network(tokenizer)
    rows = made_rows(model, 4)
    learner = learner_of(model)
    if fault == "loss":
        rows[2] = replace(rows[2], advantage=math.nan)
    elif fault == "gradient":
        next(model.parameters()).register_hook(lambda grad: grad * math.nan)
    else:
        rows[2] = replace(rows[2], advantage=1e9)
    (tmp_path / "checkpoint.safetensors").touch()
    before = network_vector(model)
    with pytest.raises(DunwuError, match=r"(loss is nan|gradient norm is \S+) at step 8") as caught:
        update(learner, rows, replace(CONFIG, max_tokens=11), 1e-2, seed=0, step=7, folder=tmp_path)
    assert str(tmp_path / "offending_batch.json") in str(caught.value)
    assert str(tmp_path / "checkpoint.safetensors") in str(caught.value)
    saved = json.loads((tmp_path / "offending_batch.json").read_text())
    assert sorted(map(tuple, saved)) == sorted(row.ids for row in rows)
    assert torch.equal(network_vector(model), before)
    assert learner.optimizer.version == 0


def test_a_reward_that_is_no_number_reaches_neither_weights_nor_means(tokenizer: Tokenizer) -> None:
    learner = learner_of(network(tokenizer))
    rewards = itertools.cycle([math.nan, 1.0, 0.0])
    task = Judged(lambda _: next(rewards))
    for step in grpo(learner, engine_of(learner, tokenizer), tokenizer, task, CONFIG, seed=0):
        assert step.metrics["grpo/verifier_errors"] > 0
        assert math.isfinite(step.metrics["grpo/reward"])
        assert step.metrics["grpo/moved_tensors"] == 1.0
    assert bool(torch.isfinite(learner.optimizer.master).all())


@pytest.mark.parametrize(
    "setting",
    [
        {"group_size": 1},
        {"temperature": 0.0},
        {"problems": 0},
        {"minibatches": 0},
        {"dynamic_rounds": 0},
        {"steps": -3},
        {"lr": -1e-4},
    ],
)
def test_settings_that_cannot_work_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(CONFIG, **setting).validate()
