"""On-policy distillation: the loss equals its oracles, the student comes to its teacher, a resumed run is the same run."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.train.checkpoint import load_checkpoint, save_checkpoint
from dunwu.train.distill import (
    LOSSES,
    Replies,
    collect,
    collect_given,
    on_policy_distill,
    on_policy_indices,
    rows_of,
    update,
)
from dunwu.train.distill_config import DistillConfig, DivergenceName
from dunwu.train.divergences import forward_kl, jsd, reverse_kl
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.rows import Row
from dunwu.train.steps import TrainStep
from dunwu.types import Completion, DunwuError, Message, Problem, Sampler, SamplingParams, UsageError, Verdict

CONFIG = DistillConfig(steps=3, problems=4, group_size=2, max_tokens=6, warmup=0, lr=3e-3, schedule="constant")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)


class Lengths:
    """Verdict "accuracy" 1 for completions of an even length; one problem in two is a conversation."""

    name = "lengths"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        messages = (Message("user", f"{index}?"),) if index % 2 else ()
        return Problem(self.name, f"{split}-{seed}-{index}", {"index": index}, f"{index % 7}+", messages=messages)

    def score(self, problem: Problem, completion: str) -> Verdict:
        right = float(len(completion) % 2 == 0)
        return Verdict({"accuracy": right}, right)

    def gold(self, problem: Problem) -> str:
        return "ok"

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


def network(tokenizer: Tokenizer, seed: int = 0, width: int = 32, vocab: int = 0) -> Transformer:
    config = ModelConfig(
        vocab_size=vocab or tokenizer.vocab_size,
        hidden_size=width,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def learner_of(model: Transformer) -> Learner:
    return Learner(model, MasterAdamW(model, weight_decay=0.0))


def steps_of(
    learner: Learner, teacher: Transformer, tokenizer: Tokenizer, config: DistillConfig = CONFIG, start: int = 0
) -> list[TrainStep]:
    engine = Engine(learner.policy, tokenizer, lambda: learner.optimizer.version)
    return list(on_policy_distill(learner, teacher, engine, tokenizer, Lengths(), config, 0, start))


# ---- the update


def rows_drawn(tokenizer: Tokenizer, model: Transformer, count: int = 8) -> list[Row]:
    """Completions of several lengths with the model's own logprobs."""
    rows = []
    engine = Engine(model, tokenizer)
    for n in range(count):
        prompt = list(range(40, 42 + n % 3))
        c = engine.sample([prompt], [[n]], SamplingParams(max_tokens=1 + n))[0][0]
        rows.append(Row((*prompt, *c.token_ids), len(prompt), c.sampler_logprobs, 0.0, n))
    return rows


def gradient_after(tokenizer: Tokenizer, rows: Sequence[Row], micro_tokens: int) -> tuple[Tensor, dict[str, float]]:
    """The first moment after one update from zero is (1 - β1) × the gradient."""
    student, teacher = network(tokenizer), network(tokenizer, seed=1)
    learner = learner_of(student)
    metrics = update(
        learner, teacher, rows, replace(CONFIG, micro_tokens=micro_tokens, max_grad_norm=0.0), 0.0, 0, None
    )
    return learner.optimizer.first / 0.1, metrics


def test_micro_batches_padding_and_row_order_change_nothing(tokenizer: Tokenizer) -> None:
    rows = rows_drawn(tokenizer, network(tokenizer))
    whole, metrics = gradient_after(tokenizer, rows, 10_000)
    for micro_tokens, order in ((1, rows), (24, rows), (24, rows[::-1])):
        part, same = gradient_after(tokenizer, order, micro_tokens)
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-7)
        assert same["distill/reverse_kl"] == pytest.approx(metrics["distill/reverse_kl"], rel=1e-5)


def test_loss_is_the_mean_over_completion_tokens_and_prompts_have_no_part(tokenizer: Tokenizer) -> None:
    student, teacher = network(tokenizer), network(tokenizer, seed=1)
    rows = rows_drawn(tokenizer, student)
    total = count = agreed = 0.0
    for row in rows:
        ids = torch.tensor([row.ids])
        logits_T = (model(ids)[0, row.prompt_length - 1 : -1].detach().double() for model in (student, teacher))
        s, t = (F.log_softmax(logits, -1) for logits in logits_T)
        total += float((s.exp() * (s - t)).sum())
        count += row.completion_length
        agreed += float((s.argmax(-1) == t.argmax(-1)).sum())
    _, metrics = gradient_after(tokenizer, rows, 64)
    assert metrics["distill/reverse_kl"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["distill/trained_tokens"] == count
    assert metrics["distill/agreement"] == pytest.approx(agreed / count)  # two strangers: nowhere


def test_teacher_is_left_as_it_was(tokenizer: Tokenizer) -> None:
    teacher = network(tokenizer, seed=1)
    teacher.set_dropout(0.5)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    steps_of(learner_of(network(tokenizer)), teacher, tokenizer)
    assert not teacher.training
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


# ---- the loop


def test_a_student_that_is_its_teacher_does_not_move(tokenizer: Tokenizer) -> None:
    student = network(tokenizer)
    before = [p.detach().clone() for p in student.parameters()]
    (step,) = steps_of(learner_of(student), copy.deepcopy(student), tokenizer, replace(CONFIG, steps=1))
    assert step.metrics["distill/reverse_kl"] == 0 and step.metrics["distill/agreement"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_the_student_comes_to_a_larger_teacher(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, steps=40, problems=8, lr=1e-2)
    steps = steps_of(learner_of(network(tokenizer)), network(tokenizer, seed=1, width=48), tokenizer, config)
    curve = [step.metrics["distill/reverse_kl"] for step in steps]
    assert sum(curve[-5:]) < 0.65 * sum(curve[:5])


def test_steps_carry_groups_and_metrics_of_what_was_sampled(tokenizer: Tokenizer) -> None:
    first, second, _ = steps_of(learner_of(network(tokenizer)), network(tokenizer, seed=1), tokenizer)
    rollouts = [rollout for group in first.groups for rollout in group.rollouts]
    assert len(rollouts) == 8 and len({rollout.completion.text for rollout in rollouts}) > 2
    assert {group.problem.data["index"] for group in (*first.groups, *second.groups)} == set(range(8))
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    assert first.metrics["distill/length"] == pytest.approx(sum(lengths) / 8)
    assert first.metrics["distill/trained_tokens"] == sum(lengths)
    assert first.metrics["distill/accuracy"] == sum(r.verdict.reward for r in rollouts) / 8
    assert first.metrics["distill/sampler_mismatch"] < 1e-3
    assert [step.metrics["distill/weight_version"] for step in (first, second)] == [1.0, 2.0]
    chat = next(group for group in first.groups if group.problem.messages)
    assert tokenizer.decode(chat.prompt_ids).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("divergence", ["forward", "jsd"])
def test_the_loss_is_the_divergence_that_is_named_and_the_reverse_is_measured(
    tokenizer: Tokenizer, divergence: DivergenceName
) -> None:
    config = replace(CONFIG, steps=1, divergence=divergence, jsd_beta=0.3)
    student, teacher = network(tokenizer), network(tokenizer, seed=1)
    before = copy.deepcopy(student)
    (step,) = steps_of(learner_of(student), teacher, tokenizer, config)
    (plain,) = steps_of(learner_of(copy.deepcopy(before)), teacher, tokenizer, replace(CONFIG, steps=1))
    losses: list[float] = []
    for row in rows_of(step.groups):
        ids = torch.tensor([row.ids])
        logits = (net(ids)[0, row.prompt_length - 1 : -1].detach() for net in (before, teacher))
        losses += (forward_kl(*logits) if divergence == "forward" else jsd(*logits, beta=0.3)).tolist()
    assert step.metrics[f"distill/{LOSSES[divergence]}"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert step.metrics["distill/reverse_kl"] == pytest.approx(plain.metrics["distill/reverse_kl"], rel=1e-6)
    assert not torch.equal(student.head_weight, before.head_weight)


def test_what_is_sampled_and_what_is_compared_have_the_same_temperature(tokenizer: Tokenizer) -> None:
    student, teacher = network(tokenizer), network(tokenizer, seed=1)
    before = copy.deepcopy(student)
    (step,) = steps_of(learner_of(student), teacher, tokenizer, replace(CONFIG, steps=1, temperature=0.5))
    assert step.metrics["distill/sampler_mismatch"] < 1e-3
    by_hand = []
    for row in rows_of(step.groups):
        ids = torch.tensor([row.ids])
        logits = (net(ids)[0, row.prompt_length - 1 : -1].detach() for net in (before, teacher))
        by_hand += reverse_kl(*logits, 0.5).tolist()
    assert step.metrics["distill/reverse_kl"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_dropout_is_off_where_the_students_samples_are_compared(tokenizer: Tokenizer) -> None:
    student = network(tokenizer)
    student.set_dropout(0.5)
    student.train()
    (step,) = steps_of(learner_of(student), network(tokenizer, seed=1), tokenizer, replace(CONFIG, steps=1))
    assert step.metrics["distill/sampler_mismatch"] < 1e-3


def test_every_sample_has_dice_of_its_own(tokenizer: Tokenizer) -> None:
    engine, drawn = Engine(network(tokenizer), tokenizer), []

    class Noting:
        def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams):  # type: ignore[no-untyped-def]
            drawn.extend(seed for row in seeds for seed in row)
            return engine.sample(prompts, seeds, params)

    for seed, step in ((0, 0), (0, 1), (1, 0)):
        collect(Noting(), tokenizer, Lengths(), CONFIG, seed, step)
    assert len(set(drawn)) == len(drawn) == 3 * 8


def test_a_resumed_run_is_the_same_bit_for_bit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    teacher = network(tokenizer, seed=1)
    whole = learner_of(network(tokenizer))
    reference = steps_of(whole, teacher, tokenizer)
    killed = learner_of(network(tokenizer))
    engine = Engine(killed.policy, tokenizer, lambda: killed.optimizer.version)
    loop = on_policy_distill(killed, teacher, engine, tokenizer, Lengths(), CONFIG, 0)
    next(loop)
    save_checkpoint(tmp_path, killed.optimizer.state(), {"version": killed.optimizer.version})
    resumed = learner_of(network(tokenizer, seed=9))
    tensors, state = load_checkpoint(tmp_path) or pytest.fail("no checkpoint")
    resumed.optimizer.load(tensors, state["version"])
    rest = steps_of(resumed, teacher, tokenizer, start=1)
    assert [step.n for step in rest] == [2, 3]
    assert [step.groups for step in rest] == [step.groups for step in reference[1:]]
    assert torch.equal(resumed.optimizer.master, whole.optimizer.master)


# ---- given texts


def given_steps(
    learner: Learner, teacher: Transformer, tokenizer: Tokenizer, config: DistillConfig, given: Sampler, start: int = 0
) -> list[TrainStep]:
    engine = Engine(learner.policy, tokenizer, lambda: learner.optimizer.version)
    return list(on_policy_distill(learner, teacher, engine, tokenizer, Lengths(), config, 0, start, given=given))


@pytest.mark.parametrize("divergence", ["forward", "jsd", "reverse"])
def test_on_the_teachers_texts_the_student_learns_its_distribution(
    tokenizer: Tokenizer, divergence: DivergenceName
) -> None:
    teacher, learner = network(tokenizer, seed=1, width=48), learner_of(network(tokenizer))
    config = replace(CONFIG, steps=60, problems=16, lr=1e-2, on_policy_share=0.0, divergence=divergence)
    steps = given_steps(learner, teacher, tokenizer, config, Engine(teacher, tokenizer))
    curve = [step.metrics[f"distill/{LOSSES[divergence]}"] for step in steps]
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])
    assert all(not step.groups and step.metrics["distill/on_policy"] == 0 for step in steps)
    assert not {"distill/length", "distill/accuracy", "distill/sampler_mismatch"} & steps[0].metrics.keys()


def test_known_replies_are_trained_to_the_last_token_with_the_teachers_distribution(tokenizer: Tokenizer) -> None:
    student, teacher = network(tokenizer), network(tokenizer, seed=1)
    prompts = [tuple(prompt_ids(tokenizer, Lengths().problem("train", 0, index))) for index in range(4)]
    known = {prompt: [(40, 41, 42, tokenizer.end_id)] for prompt in prompts}
    kls: list[float] = []
    for prompt in prompts:
        ids = torch.tensor([[*prompt, 40, 41, 42, tokenizer.end_id]])
        logits = (net(ids)[0, len(prompt) - 1 : -1].detach() for net in (student, teacher))
        kls += forward_kl(*logits).tolist()
    config = replace(CONFIG, steps=1, on_policy_share=0.0, divergence="forward")
    (step,) = given_steps(learner_of(student), teacher, tokenizer, config, Replies(known))
    assert step.metrics["distill/trained_tokens"] == 16  # one row of a problem, whatever the group size
    assert step.metrics["distill/forward_kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-4)


def test_a_mixture_trains_both_and_measures_the_students_own(tokenizer: Tokenizer) -> None:
    teacher, learner = network(tokenizer, seed=1), learner_of(network(tokenizer))
    config = replace(CONFIG, problems=16, on_policy_share=0.5)
    given = Engine(teacher, tokenizer)
    steps = given_steps(learner, teacher, tokenizer, config, given)
    for n, step in enumerate(steps):
        own, others = on_policy_indices(config, 0, n)
        assert sorted(own + others) == list(range(16 * n, 16 * n + 16)) and own and others
        assert [group.problem.data["index"] for group in step.groups] == own
        assert step.metrics["distill/on_policy"] == len(own) / 16
        tokens = sum(row.completion_length for row in rows_of(step.groups))
        shown = collect_given(given, tokenizer, Lengths(), config, 0, n)
        assert step.metrics["distill/trained_tokens"] == tokens + sum(r.completion_length for r in rows_of(shown))
        assert step.metrics["distill/length"] == pytest.approx(tokens / (2 * len(own)))
    assert steps[0].metrics["distill/sampler_mismatch"] < 1e-3


def test_the_share_of_the_students_own_is_what_was_asked_for() -> None:
    config = replace(CONFIG, problems=4000, on_policy_share=0.3)
    assert len(on_policy_indices(config, 0, 0)[0]) / 4000 == pytest.approx(0.3, abs=0.03)
    assert on_policy_indices(replace(config, on_policy_share=1.0), 0, 2)[1] == []
    assert on_policy_indices(replace(config, on_policy_share=0.0), 0, 2)[0] == []


def test_a_resumed_mixture_is_the_same_bit_for_bit(tokenizer: Tokenizer) -> None:
    teacher, config = network(tokenizer, seed=1), replace(CONFIG, on_policy_share=0.5, divergence="jsd")
    given = Engine(teacher, tokenizer)
    whole, killed = learner_of(network(tokenizer)), learner_of(network(tokenizer))
    given_steps(whole, teacher, tokenizer, config, given)
    engine = Engine(killed.policy, tokenizer, lambda: killed.optimizer.version)
    next(on_policy_distill(killed, teacher, engine, tokenizer, Lengths(), config, 0, given=given))
    resumed = learner_of(network(tokenizer, seed=9))
    resumed.optimizer.load({name: t.clone() for name, t in killed.optimizer.state().items()}, 1)
    given_steps(resumed, teacher, tokenizer, config, given, start=1)
    assert torch.equal(resumed.optimizer.master, whole.optimizer.master)


def test_a_sampler_without_numbers_is_not_taken_for_a_given_text(tokenizer: Tokenizer) -> None:
    engine = Engine(network(tokenizer), tokenizer)

    class Broken:
        def sample(self, *args: object) -> list[list[Completion]]:
            drawn = engine.sample(*args)  # type: ignore[arg-type]
            return [[replace(c, sampler_logprobs=(math.nan,) * len(c.token_ids)) for c in row] for row in drawn]

    loop = on_policy_distill(
        learner_of(network(tokenizer)), network(tokenizer), Broken(), tokenizer, Lengths(), CONFIG, 0
    )
    with pytest.raises(DunwuError, match="sampler and student disagree by nan"):
        next(loop)


def test_nobody_to_answer_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no given answers"):
        steps_of(learner_of(network(tokenizer)), network(tokenizer), tokenizer, replace(CONFIG, on_policy_share=0.5))
    with pytest.raises(DunwuError, match="no known answer"):
        Replies({}).sample([[1]], [[2]], SamplingParams())


# ---- what is refused


def test_vocabularies_that_differ_are_refused(tokenizer: Tokenizer) -> None:
    teacher = network(tokenizer, vocab=tokenizer.vocab_size + 8)
    size = tokenizer.vocab_size
    with pytest.raises(DunwuError, match=f"the student has {size} tokens, the teacher {size + 8}"):
        steps_of(learner_of(network(tokenizer)), teacher, tokenizer)


def test_a_sampler_that_is_not_the_student_is_refused(tokenizer: Tokenizer) -> None:
    learner = learner_of(network(tokenizer))
    stranger = Engine(network(tokenizer, seed=5), tokenizer)
    with pytest.raises(DunwuError, match="sampler and student disagree"):
        next(on_policy_distill(learner, network(tokenizer), stranger, tokenizer, Lengths(), CONFIG, 0))


def test_numbers_gone_bad_stop_the_run_before_the_update(tokenizer: Tokenizer, tmp_path: Path) -> None:
    teacher = network(tokenizer, seed=1)
    with torch.no_grad():
        teacher.head_weight.fill_(math.nan)
    learner = learner_of(network(tokenizer))
    before = learner.optimizer.master.clone()
    engine = Engine(learner.policy, tokenizer)
    with pytest.raises(DunwuError, match="loss is nan at step 1"):
        next(on_policy_distill(learner, teacher, engine, tokenizer, Lengths(), CONFIG, 0, folder=tmp_path))
    assert torch.equal(before, learner.optimizer.master)
    saved = json.loads((tmp_path / "offending_batch.json").read_text())
    groups = collect(engine, tokenizer, Lengths(), CONFIG, 0, 0)
    assert saved == [list(row.ids) for row in rows_of(groups)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"problems": 0},
        {"steps": 0},
        {"lr": -1.0},
        {"temperature": math.nan},
        {"divergence": "kl"},
        {"jsd_beta": 0.0},
        {"jsd_beta": 1.0},
        {"on_policy_share": 1.5},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(CONFIG, **wrong).validate()


def test_truncated_and_unscored_samples_are_trained(tokenizer: Tokenizer) -> None:
    class Broken(Lengths):
        def score(self, problem: Problem, completion: str) -> Verdict:
            return Verdict({}, 0.0, "error", "broken")

    learner = learner_of(network(tokenizer))
    engine = Engine(learner.policy, tokenizer)
    loop = on_policy_distill(learner, network(tokenizer, seed=1), engine, tokenizer, Broken(), CONFIG, 0)
    metrics = next(loop).metrics
    assert metrics["distill/verifier_errors"] == 8 and metrics["distill/trained_tokens"] > 0
    assert "distill/accuracy" not in metrics
