"""PPO on a model of a few thousand weights: hand-worked advantages, independent implementations, invariances, resuming."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_learner import (
    FirstLetter,
    Judged,
    coin,
    critic_of,
    engine_of,
    learner_of,
    letters,
    made_groups,
    made_rows,
    network,
    plain_logprobs,
    steps_of,
    vector,
)
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.data.tokenizer import Tokenizer
from dunwu.model.hf import save_model
from dunwu.recipes.reinforce import open_learner, save_state
from dunwu.train import update as update_module
from dunwu.train.collect import rows_of, with_advantages
from dunwu.train.config import GrpoConfig, StabilityConfig
from dunwu.train.grpo import update as grpo_update
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.ppo import _order, judged, ppo, update, with_scores
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.rows import MicroBatch
from dunwu.train.update import cut
from dunwu.train.value import Critic
from dunwu.types import Completion, DunwuError, Group, SamplingParams, UsageError, Verdict

CONFIG = PpoConfig(steps=3, problems=4, group_size=4, max_tokens=11, warmup=0, lr=3e-3, value_lr=3e-3)
KINDS = ["own", "shared", "none"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


def updated(
    tokenizer: Tokenizer, config: PpoConfig, groups: Sequence[Group] | None = None, pages: Any = None, **more: Any
) -> tuple[Learner, list[Group], dict[str, float]]:
    """A learner after one step's updates on made groups; its reference is another model, so that the KL says something."""
    learner = learner_of(tokenizer, config, eps=1e-3, head=more.get("head", 0.5))
    if config.kl_coef:
        learner.reference = network(tokenizer, seed=3).eval().requires_grad_(False)
        learner.optimizer.version = 1  # not the first update of a run: there the KL has to be 0
    groups = made_groups(network(tokenizer)) if groups is None else groups
    found, metrics = update(learner, groups, config, 1e-2, 1e-2, 0, more.get("step", 0), None, pages)
    return learner, found, metrics


# ---- advantages -----------------------------------------------------------------------------------------


class Spoken(nn.Module):
    """A critic that says ½ before the first token of a row and 0.6 before each other one."""

    backbone = None

    def values(self, micro: MicroBatch, states_ND: Tensor | None = None) -> Tensor:
        parts = [torch.tensor([0.5] + [0.6] * (len(row) - 1)) for _, row in micro.by_row(micro.targets_N.float())]
        return torch.cat(parts)


def spoken_learner(tokenizer: Tokenizer) -> Learner:
    learner = learner_of(tokenizer)
    learner.critic = Critic(Spoken(), learner.optimizer)  # type: ignore[arg-type]
    return learner


def pair_of_two_tokens(model: Any) -> list[Group]:
    """One problem, two completions of two tokens each, rewards 1 and 0."""
    (group,) = made_groups(model, 2, 2)
    rollouts = []
    for place, rollout in enumerate(group.rollouts):
        ids = (11 + place, 40)
        logprobs = tuple(plain_logprobs(model, (*group.prompt_ids, *ids), len(group.prompt_ids)).tolist())
        completion = replace(rollout.completion, token_ids=ids, sampler_logprobs=logprobs)
        rollouts.append(replace(rollout, completion=completion, verdict=Verdict({}, float(place == 0))))
    return [replace(group, rollouts=tuple(rollouts))]


def table(parts: Sequence[Any], field: str) -> dict[tuple[int, int], list[float]]:
    """(group, place) → a field's numbers, token by token."""
    found = {}
    for part in parts:
        for micro in part.micros:
            for b, numbers in micro.by_row(getattr(micro, field)):
                found[part.rows[b].group, part.rows[b].place] = numbers.tolist()
    return found


def test_advantages_of_two_completions_by_hand(tokenizer: Tokenizer) -> None:
    """λ = ½, γ = 1, V = (0.5, 0.6). Row 0: δ = (0.1, 0.4), A = (0.3, 0.4). Row 1: δ = (0.1, −0.6), A = (−0.2, −0.6)."""
    learner = spoken_learner(tokenizer)
    config = replace(CONFIG, lam=0.5, whiten=False)
    groups = with_scores(pair_of_two_tokens(learner.policy), config)
    parts, metrics = judged(learner, cut(learner, rows_of(groups, config), config, 0, 0), config)
    advantages, returns, values = (table(parts, field) for field in ("advantages_N", "returns_N", "values_N"))
    assert advantages == {(0, 0): pytest.approx([0.3, 0.4]), (0, 1): pytest.approx([-0.2, -0.6])}
    assert returns == {(0, 0): pytest.approx([0.8, 1.0]), (0, 1): pytest.approx([0.3, 0.0], abs=1e-7)}
    assert values == {(0, 0): pytest.approx([0.5, 0.6]), (0, 1): pytest.approx([0.5, 0.6])}
    mean = (0.3 + 0.4 - 0.2 - 0.6) / 4
    std = math.sqrt((0.09 + 0.16 + 0.04 + 0.36) / 4 - mean**2)
    assert metrics["ppo/advantage_std"] == pytest.approx(std, rel=1e-5)
    assert metrics["ppo/return"] == pytest.approx((0.8 + 1.0 + 0.3) / 4)
    # R = (0.8, 1, 0.3, 0), R − V = A: means 0.525 and −0.025.
    explained = 1 - (0.65 / 4 - 0.025**2) / ((0.64 + 1 + 0.09) / 4 - 0.525**2)
    assert metrics["ppo/explained_variance"] == pytest.approx(explained, rel=1e-4)
    white, _ = judged(learner, cut(learner, rows_of(groups, config), config, 0, 0), replace(config, whiten=True))
    assert table(white, "advantages_N")[0, 0] == pytest.approx([(0.3 - mean) / std, (0.4 - mean) / std], rel=1e-4)


def test_the_kl_is_taken_off_every_token(tokenizer: Tokenizer) -> None:
    """β = 0.1, no critic, λ and γ 1: A_t = score − β Σ_{s ≥ t} (log π − log π_ref)."""
    config = replace(CONFIG, critic="none", lam=1.0, kl_coef=0.1, whiten=False)
    learner = learner_of(tokenizer, config)
    learner.reference = network(tokenizer, seed=3)
    learner.optimizer.version = 1
    groups = with_scores(made_groups(learner.policy), config)
    rows = rows_of(groups, config)
    parts, metrics = judged(learner, cut(learner, rows, config, 0, 0), config)
    found, charged = table(parts, "advantages_N"), []
    for row in rows:
        gap = torch.tensor(row.sampler_logprobs) - plain_logprobs(learner.reference, row.ids, row.prompt_length)
        to_come = gap.flip(0).cumsum(0).flip(0)
        assert found[row.group, row.place] == pytest.approx((row.advantage - 0.1 * to_come).tolist(), abs=1e-4)
        charged.append(0.1 * float(gap.sum()))
    assert metrics["ppo/kl_reward"] == pytest.approx(sum(charged) / len(charged), abs=1e-4)
    assert metrics["ppo/ref_kl"] > 0


def test_a_rollout_shows_the_mean_of_its_tokens_advantages(tokenizer: Tokenizer) -> None:
    learner = spoken_learner(tokenizer)
    config = replace(CONFIG, lam=0.5, whiten=False, minibatches=2)
    learner.critic.optimizer = MasterAdamW(nn.Linear(1, 1))  # type: ignore[union-attr]
    groups = pair_of_two_tokens(learner.policy)
    groups += made_groups(learner.policy, 3, 3, status="error")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:  # a critic that only speaks has no gradient
        patch.setattr(
            "dunwu.train.ppo._critic_loss", lambda c, m, s, k: (m.targets_N.new_zeros((), dtype=torch.float), {})
        )
        shown, _ = update(learner, groups, config, 0.0, 0.0, 0, 0, None)
    assert [r.advantage for r in shown[0].rollouts] == pytest.approx([0.35, -0.4], abs=1e-6)
    assert [r.advantage is None for r in shown[1].rollouts] == [False, False, True]


# ---- the update against independent ones --------------------------------------------------------------------


def reinforce_plus_plus(policy: Any, reference: Any, groups: Sequence[Group], config: PpoConfig) -> Any:
    """arXiv 2501.03262 written out on rows one by one: −mean_t min(ρ Â, clip(ρ) Â), Â the whitened KL-penalised return."""
    samples = [(g.prompt_ids, r.completion.token_ids, r.verdict.reward) for g in groups for r in g.rollouts]
    old = [plain_logprobs(policy, (*p, *c), len(p)) for p, c, _ in samples]
    raw = []
    for (p, c, reward), logprobs in zip(samples, old, strict=True):
        kl = logprobs - plain_logprobs(reference, (*p, *c), len(p))
        raw.append(torch.stack([reward - config.kl_coef * kl[t:].sum() for t in range(len(c))]))
    every = torch.cat(raw)
    optimizer = MasterAdamW(policy, eps=1e-3, weight_decay=0.0)
    optimizer.version = 1
    for _ in range(config.epochs):
        terms = []
        for (p, c, _), before, returns in zip(samples, old, raw, strict=True):
            logits = policy(torch.tensor([*p, *c])[None])[0].log_softmax(-1)
            now = torch.stack([logits[len(p) - 1 + t, token] for t, token in enumerate(c)])
            a = (returns - every.mean()) / every.std(correction=0)
            ratio = (now - before).exp()
            terms.append(torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a))
        (-torch.cat(terms).mean()).backward()
        optimizer.step(1e-2, config.max_grad_norm)
    return policy


@pytest.mark.parametrize("epochs", [1, 3])
def test_without_a_critic_it_is_reinforce_plus_plus(tokenizer: Tokenizer, epochs: int) -> None:
    config = replace(CONFIG, critic="none", lam=1.0, kl_coef=0.1, epochs=epochs, max_grad_norm=0.0)
    groups = made_groups(network(tokenizer))
    learner, _, metrics = updated(tokenizer, config)
    expected = reinforce_plus_plus(network(tokenizer), network(tokenizer, seed=3), groups, config)
    assert float((vector(expected) - vector(network(tokenizer))).abs().max()) > 1e-3
    torch.testing.assert_close(vector(learner.policy), vector(expected), rtol=0, atol=2e-5)
    assert metrics["ppo/ratio_max"] > 1.05 if epochs > 1 else metrics["ppo/ratio_max"] == 1.0


def test_with_the_groups_mean_and_no_whitening_it_is_grpo(tokenizer: Tokenizer) -> None:
    """No critic, γ = λ = 1, no KL: the return after every token is the score; less the group's mean it is GRPO's advantage."""
    config = replace(CONFIG, critic="none", lam=1.0, whiten=False, group_baseline=True)
    learner, shown, _ = updated(tokenizer, config)
    relative = GrpoConfig(
        clip_high=0.2, std_normalize="none", drop_zero_variance=False, group_size=3, max_tokens=11, loss_norm="token"
    )
    other = learner_of(tokenizer, eps=1e-3)
    compared = with_advantages(made_groups(other.policy), relative)
    grpo_update(other, rows_of(compared, relative), relative, 1e-2, 0, 0, None)
    assert [[r.advantage for r in g.rollouts] for g in shown] == [
        pytest.approx([r.advantage for r in g.rollouts], abs=1e-6) for g in compared
    ]
    torch.testing.assert_close(vector(learner.policy), vector(other.policy), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_the_critic_learns_what_plain_torch_would(tokenizer: Tokenizer, kind: Any) -> None:
    """One update: ½ · mean (V − R)² on rows one by one, R with λ = 1 the score; times `value_coef` into head and trunk."""
    config = replace(CONFIG, critic=kind, lam=1.0, whiten=False, value_coef=0.7, max_grad_norm=0.0)
    learner, _, metrics = updated(tokenizer, config)
    policy, critic = network(tokenizer), critic_of(kind, tokenizer, head=0.5)
    trunk = critic.model.backbone or policy
    rows = made_rows(network(tokenizer))
    tokens = sum(row.completion_length for row in rows)
    value, gain = torch.zeros(()), torch.zeros(())
    for row in rows:
        places = torch.arange(row.prompt_length - 1, len(row.ids) - 1)
        v = trunk.hidden(torch.tensor(row.ids)[None])[0, places] @ critic.model.score.weight[0]
        value = value + 0.5 * (v - row.advantage).square().sum() / tokens
        now = policy(torch.tensor(row.ids)[None])[0].log_softmax(-1)[places, list(row.ids[row.prompt_length :])]
        gain = gain + (now * (row.advantage - v.detach())).sum() / tokens
    (0.7 * value - gain).backward()
    assert metrics["ppo/value_loss"] == pytest.approx(value.item(), rel=1e-4)
    assert learner.critic is not None
    for mine, theirs in ((learner.policy, policy), (learner.critic.model, critic.model)):
        optimizer = learner.optimizer if mine is learner.policy else learner.critic.optimizer
        gradient = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in theirs.parameters()]
        )
        torch.testing.assert_close(optimizer.first / 0.1, gradient, rtol=0, atol=2e-5)
    assert float(gradient.norm()) > 0.01


@pytest.mark.parametrize("coef", [0.3, 2.0])
def test_the_pretraining_mix_adds_its_gradient(tokenizer: Tokenizer, coef: float) -> None:
    """One update: the gradient is PPO's, plus `ptx_coef` times that of plain cross-entropy on the page."""
    page = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(4))
    asked: list[tuple[int, int]] = []

    def pages(step: int, number: int) -> Tensor:
        asked.append((step, number))
        return page

    config = replace(CONFIG, max_grad_norm=0.0, minibatches=2, epochs=2)
    single = replace(config, minibatches=1, epochs=1)
    plain, _, _ = updated(tokenizer, single)
    mixed, _, metrics = updated(tokenizer, replace(single, ptx_coef=coef), None, pages)
    policy = network(tokenizer)
    loss = F.cross_entropy(policy(page)[:, :-1].flatten(0, 1), page[:, 1:].flatten())
    loss.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(
        (mixed.optimizer.first - plain.optimizer.first) / 0.1, coef * gradient, rtol=0, atol=2e-5
    )
    assert metrics["ppo/ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    asked.clear()
    updated(tokenizer, replace(config, ptx_coef=coef), None, pages, step=2)
    assert asked == [(2, 0), (2, 1), (2, 2), (2, 3)]


# ---- however the step is cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kl_place", ["reward", "loss"])
def test_micro_batches_and_trees_change_nothing(
    tokenizer: Tokenizer, kind: Any, kl_place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        CONFIG,
        critic=kind,
        kl_coef=0.05,
        kl_place=kl_place,
        epochs=2,
        minibatches=2,
        value_clip=0.05,
        lam=1.0 if kind == "none" else 0.9,
    )
    learner, shown, metrics = updated(tokenizer, replace(config, micro_tokens=10**6))
    assert float((vector(learner.policy) - vector(network(tokenizer))).abs().max()) > 1e-3
    original = update_module.micro_batches
    for micro_tokens, padded in ((40, False), (1, False), (10**6, True), (40, True)):
        with monkeypatch.context() as patch:
            if padded:
                patch.setattr(update_module, "micro_batches", lambda rows, c, device, trees: original(rows, c, device))
            other, other_shown, other_metrics = updated(tokenizer, replace(config, micro_tokens=micro_tokens))
        torch.testing.assert_close(vector(other.policy), vector(learner.policy), rtol=0, atol=2e-6)
        if learner.critic is not None and other.critic is not None:
            torch.testing.assert_close(vector(other.critic.model), vector(learner.critic.model), rtol=0, atol=2e-6)
        assert other_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)
        for one, same in zip(shown, other_shown, strict=True):
            assert [r.advantage for r in same.rollouts] == pytest.approx([r.advantage for r in one.rollouts], abs=1e-5)


def test_minibatches_share_one_whitening_and_every_epoch_takes_all_rows(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    original = update_module.policy_loss

    def spy(policy: Tensor, old: Tensor, advantages: Tensor, *args: Any, **named: Any) -> Any:
        seen.append((policy.detach().clone(), old.clone(), advantages.clone()))
        return original(policy, old, advantages, *args, **named)

    monkeypatch.setattr(update_module, "policy_loss", spy)
    learner, _, metrics = updated(tokenizer, replace(CONFIG, minibatches=2, epochs=3))
    tokens = sum(row.completion_length for row in made_rows(network(tokenizer)))
    assert len(seen) == 6 and learner.optimizer.version == learner.critic.optimizer.version == 6  # type: ignore[union-attr]
    assert metrics["ppo/trained_tokens"] == 3 * tokens
    sampled = sorted(p for row in made_rows(network(tokenizer)) for p in row.sampler_logprobs)
    for epoch in range(3):
        _, old, advantages = (torch.cat(parts) for parts in zip(*seen[2 * epoch : 2 * epoch + 2], strict=True))
        assert sorted(old.tolist()) == pytest.approx(sampled, abs=1e-5)  # all of them, under the weights that sampled
        assert float(advantages.mean()) == pytest.approx(0, abs=1e-6)
        assert float(advantages.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(seen[0][0], seen[0][1])
    assert all(float((policy - old).abs().max()) > 1e-3 for policy, old, _ in seen[1:])


def test_every_epoch_takes_the_minibatches_in_an_order_of_its_own() -> None:
    config = replace(CONFIG, minibatches=6, epochs=4)
    order = _order(6, config, seed=0, step=0)
    epochs = [order[first : first + 6] for first in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] == list(range(6)) and len(set(map(tuple, epochs))) == 4
    assert order == _order(6, config, seed=0, step=0)
    assert order != _order(6, config, seed=0, step=1) and order != _order(6, config, seed=1, step=0)


# ---- before the first update ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kl_place", ["reward", "loss"])
def test_the_first_pass_is_on_policy(tokenizer: Tokenizer, kind: Any, kl_place: Any) -> None:
    config = replace(CONFIG, critic=kind, lam=1.0, kl_coef=0.1, kl_place=kl_place, temperature=0.8)
    steps = steps_of(learner_of(tokenizer, config), tokenizer, config)
    for step in steps:  # one update a step: each is the first on its samples
        assert step.metrics["ppo/ratio"] == step.metrics["ppo/ratio_max"] == 1.0
        assert (
            step.metrics["ppo/approx_kl"]
            == step.metrics["ppo/clip_low_frac"]
            == step.metrics["ppo/clip_high_frac"]
            == 0
        )
        assert step.metrics["ppo/sampler_mismatch"] < 1e-4
        assert all(math.isfinite(value) for value in step.metrics.values())
    assert steps[0].metrics["ppo/ref_kl"] == 0.0 < steps[-1].metrics["ppo/ref_kl"]
    assert ("ppo/kl_reward" in steps[0].metrics) == (kl_place == "reward")


class Tampered:
    """An engine whose log-probabilities are moved by one place on their way to the trainer."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        drawn = self.engine.sample(prompts, seeds, params)
        return [
            [replace(c, sampler_logprobs=c.sampler_logprobs[1:] + c.sampler_logprobs[:1]) for c in g] for g in drawn
        ]


def test_a_sampler_that_is_not_the_trainer_is_refused(tokenizer: Tokenizer) -> None:
    learner = learner_of(tokenizer, CONFIG)
    before = vector(learner.policy)
    with pytest.raises(DunwuError, match="sampler and trainer disagree"):
        next(ppo(learner, Tampered(engine_of(learner, tokenizer)), tokenizer, FirstLetter(), CONFIG, 0))
    assert torch.equal(vector(learner.policy), before)


@pytest.mark.parametrize("kl_place", ["reward", "loss"])
def test_a_reference_that_is_not_the_policy_is_refused_at_first(tokenizer: Tokenizer, kl_place: Any) -> None:
    config = replace(CONFIG, kl_coef=0.1, kl_place=kl_place)
    learner = learner_of(tokenizer, config)
    learner.reference = network(tokenizer, seed=3).requires_grad_(False)
    before = vector(learner.policy)
    with pytest.raises(DunwuError, match=r"KL to the reference is .* before the first update"):
        steps_of(learner, tokenizer, config)
    assert torch.equal(vector(learner.policy), before)


def test_a_critic_that_is_not_wanted_or_not_there_is_refused(tokenizer: Tokenizer) -> None:
    for config, other in (
        (CONFIG, replace(CONFIG, critic="none", lam=1.0)),
        (replace(CONFIG, critic="none", lam=1.0), CONFIG),
    ):
        with pytest.raises(UsageError, match="critic"):
            steps_of(learner_of(tokenizer, config), tokenizer, other)
    with pytest.raises(UsageError, match="pretraining pages"):
        steps_of(learner_of(tokenizer, CONFIG), tokenizer, replace(CONFIG, ptx_coef=1.0))


# ---- warm-up, early stop, errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_while_the_critic_warms_up_the_policy_stands_still_to_the_bit(tokenizer: Tokenizer, kind: Any) -> None:
    config = replace(CONFIG, critic=kind, value_warmup=2, minibatches=2, epochs=2, kl_coef=0.1)
    learner = learner_of(tokenizer, config)
    before = vector(learner.policy)
    assert learner.critic is not None
    values = vector(learner.critic.model)
    first, second = steps_of(learner, tokenizer, config, end=2)
    assert torch.equal(vector(learner.policy), before)
    assert learner.optimizer.version == 0 and not learner.optimizer.first.any()
    assert learner.critic.optimizer.version == 8 and not torch.equal(vector(learner.critic.model), values)
    assert first.metrics["ppo/weight_version"] == second.metrics["ppo/moved_tensors"] == 0.0
    assert {r.completion.weight_version for step in (first, second) for g in step.groups for r in g.rollouts} == {0}
    (third,) = steps_of(learner, tokenizer, config, start=2)
    assert third.metrics["ppo/moved_tensors"] == 1.0 and not torch.equal(vector(learner.policy), before)


def test_the_critic_comes_to_know_the_letter_that_was_written(tokenizer: Tokenizer) -> None:
    """The policy stands still; what a row is worth is decided by the first of its three tokens, so 2/3 can be explained."""
    config = PpoConfig(
        steps=30,
        problems=8,
        group_size=8,
        max_tokens=3,
        warmup=0,
        value_warmup=30,
        value_lr=1e-2,
        value_clip=0,
        lam=1.0,
    )
    config = replace(config, epochs=4, minibatches=2)
    steps = steps_of(learner_of(tokenizer, config, spread=0.05), tokenizer, config)
    explained = [step.metrics["ppo/explained_variance"] for step in steps]
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert sum(explained[-5:]) / 5 > 0.3


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_a_critic_alone_fits_the_batch_it_has(tokenizer: Tokenizer, kind: Any) -> None:
    config = replace(CONFIG, critic=kind, value_warmup=1, lam=1.0, value_clip=0)
    learner, groups = learner_of(tokenizer, config), made_groups(network(tokenizer))
    errors = [update(learner, groups, config, 0.0, 1e-2, 0, 0, None)[1]["ppo/value_loss"] for _ in range(60)]
    assert errors[-1] < (0.2 if kind == "own" else 0.7) * errors[0]


def test_a_kl_too_large_ends_the_steps_updates(tokenizer: Tokenizer) -> None:
    """The first update is on-policy and always taken; the second sees what the first has done."""
    config = replace(CONFIG, minibatches=2, epochs=4)
    learner, _, free = updated(tokenizer, config)
    assert learner.optimizer.version == 8 and "ppo/updates" not in free
    assert free["ppo/approx_kl"] > 1e-4
    stopped, _, metrics = updated(tokenizer, replace(config, stability=StabilityConfig(stop_kl=1e-9)))
    assert metrics["ppo/updates"] == stopped.optimizer.version == stopped.critic.optimizer.version == 2  # type: ignore[union-attr]
    never, _, metrics = updated(tokenizer, replace(config, stability=StabilityConfig(stop_kl=1e9)))
    assert metrics["ppo/updates"] == 8 and torch.equal(vector(never.policy), vector(learner.policy))


@pytest.mark.parametrize("status", ["error", "timeout"])
@pytest.mark.parametrize("group_baseline", [False, True])
def test_a_verifiers_error_is_not_trained(tokenizer: Tokenizer, status: str, group_baseline: bool) -> None:
    config = replace(CONFIG, group_baseline=group_baseline)
    model = network(tokenizer)
    failed = made_groups(model, 9, status=status)
    without = [*failed[:-1], replace(failed[-1], rollouts=failed[-1].rollouts[:-1])]
    one, shown, metrics = updated(tokenizer, config, failed)
    other, _, _ = updated(tokenizer, config, without)
    assert torch.equal(vector(one.policy), vector(other.policy))
    assert shown[-1].rollouts[-1].advantage is None and shown[-1].rollouts[0].advantage is not None
    assert metrics["ppo/trained_tokens"] == sum(len(r.completion.token_ids) for g in without for r in g.rollouts)


def test_when_every_verdict_fails_nothing_moves(tokenizer: Tokenizer) -> None:
    task = Judged(lambda text: Verdict({}, 0.0, "error", "the gold is broken"))
    config = replace(CONFIG, kl_coef=0.1, value_warmup=1, stability=StabilityConfig(kl_target=0.1, entropy_target=1.0))
    learner = learner_of(tokenizer, config)
    before = vector(learner.policy)
    for step in steps_of(learner, tokenizer, config, task):
        assert step.metrics["ppo/verifier_errors"] == 16 and step.metrics["ppo/trained_tokens"] == 0
        assert all(math.isfinite(value) for value in step.metrics.values())
    assert torch.equal(vector(learner.policy), before) and learner.optimizer.version == 0


def test_truncated_rows_under_mask_count_for_their_group_only(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, overlong="mask", group_baseline=True, whiten=False, critic="none", lam=1.0)
    groups = made_groups(network(tokenizer), 3)
    rollouts = [
        replace(r, completion=replace(r.completion, finish_reason="length" if n == 0 else "stop"))
        for n, r in enumerate(groups[0].rollouts)
    ]
    cut_group = replace(groups[0], rollouts=tuple(rollouts))
    _, (shown,), metrics = updated(tokenizer, config, [cut_group])
    rewards = [r.verdict.reward for r in rollouts]
    mean = sum(rewards) / 3
    assert [r.advantage for r in shown.rollouts] == [None, *(pytest.approx(r - mean, abs=1e-6) for r in rewards[1:])]
    assert metrics["ppo/trained_tokens"] == sum(len(r.completion.token_ids) for r in rollouts[1:])


@pytest.mark.parametrize("fault", ["reward", "critic"])
def test_bad_numbers_stop_the_run_before_they_act(tokenizer: Tokenizer, tmp_path: Path, fault: str) -> None:
    learner = learner_of(tokenizer, CONFIG, head=0.5)
    before = vector(learner.policy)
    groups = made_groups(learner.policy)
    assert learner.critic is not None
    if fault == "critic":
        learner.critic.model.score.weight.register_hook(lambda grad: grad * math.nan)
    else:
        last = groups[-1].rollouts[-1]
        groups[-1] = replace(groups[-1], rollouts=(*groups[-1].rollouts[:-1], replace(last, verdict=Verdict({}, 1e30))))
    values = vector(learner.critic.model)
    with pytest.raises(DunwuError, match="at step 8"):
        update(learner, groups, replace(CONFIG, whiten=False), 1e-2, 1e-2, 0, 7, tmp_path)
    assert (tmp_path / "offending_batch.json").exists()
    assert torch.equal(vector(learner.critic.model), values)
    if fault == "reward":
        assert torch.equal(vector(learner.policy), before)


# ---- learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "lam"), [*product(KINDS, [1.0]), ("own", 0.95), ("shared", 0.95)])
def test_the_reward_rises(tokenizer: Tokenizer, kind: Any, lam: float) -> None:
    config = PpoConfig(
        steps=40,
        problems=16,
        group_size=4,
        max_tokens=2,
        warmup=0,
        lr=1e-2,
        value_lr=1e-2,
        critic=kind,
        lam=lam,
        epochs=2,
    )
    learner = learner_of(tokenizer, config, spread=0.05)
    curve = [step.metrics["ppo/reward/accuracy"] for step in steps_of(learner, tokenizer, config)]
    assert curve[0] < 0.45
    assert sum(curve[-5:]) / 5 > 0.85


def test_one_sample_a_question_is_enough(tokenizer: Tokenizer) -> None:
    config = PpoConfig(steps=30, problems=64, group_size=1, max_tokens=2, warmup=0, lr=1e-2, critic="none", lam=1.0)
    learner = learner_of(tokenizer, config, spread=0.05)
    curve = [step.metrics["ppo/reward/accuracy"] for step in steps_of(learner, tokenizer, config)]
    assert sum(curve[-5:]) / 5 > 0.85
    with pytest.raises(UsageError, match="group_baseline"):
        replace(config, group_baseline=True).validate()


# ---- the same bits ------------------------------------------------------------------------------------------------


def whole_state(learner: Learner) -> Tensor:
    parts = [vector(learner.policy), learner.optimizer.second]
    if learner.critic is not None:
        parts += [vector(learner.critic.model), learner.critic.optimizer.second]
    return torch.cat(parts)


STEERED = StabilityConfig(kl_target=0.01, kl_gain=1.0, entropy_target=4.0, entropy_rate=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 3])  # in the warm-up, before a refresh of the reference, and after it
def test_resumed_from_a_checkpoint_it_is_bit_for_bit_the_same(
    tokenizer: Tokenizer, tmp_path: Path, kind: Any, stop: int
) -> None:
    folder, work = tmp_path / "model", tmp_path / "work"
    work.mkdir()
    save_model(network(tokenizer), folder, tokenizer.end_id)
    tokenizer.save(folder)
    config = replace(
        CONFIG,
        steps=5,
        max_tokens=5,
        critic=kind,
        value_warmup=0 if kind == "none" else 1,
        lam=1.0 if kind == "none" else 0.95,
        minibatches=2,
        epochs=2,
        kl_coef=0.1,
        reference_every=2,
        stability=STEERED,
    )

    def opened() -> tuple[Learner, dict[str, Any]]:
        learner, _, state = open_learner(work, folder, config, "cpu")
        return learner, state

    alone, _ = opened()
    lines = [step.metrics for step in steps_of(alone, tokenizer, config, Judged(coin))]
    killed, state = opened()
    assert state == {"step": 0}
    steps_of(killed, tokenizer, config, Judged(coin), end=stop)
    save_state(work, killed, {"step": stop})
    resumed, state = opened()
    assert state["step"] == stop and resumed.coefficients == killed.coefficients
    assert torch.equal(whole_state(resumed), whole_state(killed))
    again = [step.metrics for step in steps_of(resumed, tokenizer, config, Judged(coin), start=stop)]
    assert torch.equal(whole_state(resumed), whole_state(alone)) and resumed.coefficients == alone.coefficients

    def timeless(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if not name.endswith(("second", "seconds"))}

    assert list(map(timeless, again)) == list(map(timeless, lines[stop:]))
    if kind == "own":  # and what is left out would show
        forgetful, _ = opened()
        forgetful.critic = copy.deepcopy(opened()[0].critic)
        assert forgetful.critic is not None
        forgetful.critic.optimizer.second.zero_()
        steps_of(forgetful, tokenizer, config, Judged(coin), start=stop)
        assert not torch.equal(whole_state(forgetful), whole_state(alone))


def test_the_same_seed_gives_the_same_bits(tokenizer: Tokenizer) -> None:
    ends = []
    for _ in range(2):
        learner = learner_of(tokenizer, CONFIG)
        steps_of(learner, tokenizer, replace(CONFIG, minibatches=2, epochs=2))
        ends.append(whole_state(learner))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"gamma": 1.1},
        {"lam": -0.1},
        {"critic": "twin"},
        {"kl_place": "both"},
        {"value_lr": -1e-4},
        {"value_clip": -0.2},
        {"ptx_coef": -1.0},
    ],
)
def test_settings_that_cannot_work_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(CONFIG, **setting).validate()
