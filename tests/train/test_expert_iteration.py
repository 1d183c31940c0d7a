"""Expert iteration: what is trained is right and as it was sampled, counts add up, and rounds raise the accuracy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from dunwu.data.chat import Encoded, prompt_ids
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.rollout.selection import SelectionRules
from dunwu.train.config import SftConfig
from dunwu.train.expert_config import ExpertConfig
from dunwu.train.expert_iteration import Harvest, draw, example, harvest, hinted, questions
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft
from dunwu.types import Completion, Message, Problem, SamplingParams, UsageError, Verdict

CONFIG = ExpertConfig(problems=24, samples=8, max_tokens=4)
SFT = SftConfig(epochs=4, context=32, batch_tokens=128, lr=1e-2, warmup=0, weight_decay=0.0)


class Even:
    """Right is an even digit, whatever is asked; a question in two is a conversation."""

    name = "even"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        messages = (Message("user", f"{index}?"),) if index % 2 else ()
        return Problem(self.name, f"{split}-{index}", {"index": index}, f"{index}:", messages=messages)

    def score(self, problem: Problem, completion: str) -> Verdict:
        if completion == "9":
            return Verdict({}, 5.0, "error", "broken")
        right = float(completion in {"0", "2", "4", "6", "8"})
        return Verdict({"accuracy": right}, right, answer=completion)

    def gold(self, problem: Problem) -> str:
        return "4"

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


class Typist:
    """A sampler that types a digit or runs on, by its seed; what it was asked is kept."""

    def __init__(self, tokenizer: Tokenizer, digits: str = "0123456789") -> None:
        self.tokenizer, self.digits = tokenizer, digits
        self.asked: list[tuple[int, ...]] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        self.asked += [tuple(prompt) for prompt in prompts]
        return [[self.one(seed) for seed in row] for row in seeds]

    def one(self, seed: int) -> Completion:
        text = Random(seed).choice(self.digits)
        ids = tuple(self.tokenizer.encode(text))
        if seed % 7 == 0:
            return Completion(text, ids, (0.0,) * len(ids), "length", seed)
        return Completion(text, (*ids, self.tokenizer.end_id), (0.0,) * (len(ids) + 1), "stop", seed)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["0 1 2 3 4 5 6 7 8 9 : ? user assistant (The answer is 4.)"], 300)


def learned(tokenizer: Tokenizer, one: Encoded) -> str:
    """The trained text, its stop token left away."""
    first = one.loss_mask.index(1)
    assert set(one.loss_mask[first:]) == {1}
    return tokenizer.decode(one.ids[first:-1])


def reap(tokenizer: Tokenizer, config: ExpertConfig = CONFIG, digits: str = "0123456789", round: int = 1) -> Harvest:
    task = Even()
    asked = questions(task, config, 0, round)
    return harvest(Typist(tokenizer, digits), tokenizer, task, asked, config, 0, round)


# ---- what is kept


def test_only_right_and_finished_samples_are_trained_and_every_sample_is_counted(tokenizer: Tokenizer) -> None:
    found = reap(tokenizer)
    rollouts = [rollout for group in found.groups for rollout in group.rollouts]
    assert len(rollouts) == 24 * 8 == found.counts["samples"]
    assert {learned(tokenizer, one) for one in found.examples} == set("02468")
    dropped = {name: n for name, n in found.counts.items() if name.startswith("dropped/")}
    assert found.counts["samples"] == found.counts["kept"] + sum(dropped.values())
    assert {"dropped/wrong", "dropped/cut off", "dropped/verifier error", "dropped/duplicate"} <= dropped.keys()
    assert found.counts["right"] == sum(r.verdict.rewards.get("accuracy") == 1.0 for r in rollouts)
    assert len(found.examples) == found.counts["kept"]


def test_examples_are_the_ids_that_were_sampled_behind_the_prompt(tokenizer: Tokenizer) -> None:
    found = reap(tokenizer)
    sampled = {
        (*group.prompt_ids, *rollout.completion.token_ids) for group in found.groups for rollout in group.rollouts
    }
    assert {one.ids for one in found.examples} <= sampled
    task = Even()
    for index in range(2):  # a prompt in a template, and a conversation
        problem = task.problem("train", 0, index)
        one = example(tokenizer, problem, Completion("4", (40, 41), (), "stop", 0))
        prompt = prompt_ids(tokenizer, problem)
        assert one == Encoded((*prompt, 40, 41), (0,) * len(prompt) + (1, 1))


def test_a_problem_is_the_same_in_whatever_part_it_comes_and_rounds_draw_anew(tokenizer: Tokenizer) -> None:
    whole, asked = reap(tokenizer), questions(Even(), CONFIG, 0, 1)
    parts = [harvest(Typist(tokenizer), tokenizer, Even(), asked[n : n + 5], CONFIG, 0, 1) for n in range(0, 24, 5)]
    assert [one for part in parts for one in part.examples] == list(whole.examples)
    assert sum((part.counts for part in parts), start=parts[0].counts - parts[0].counts) == whole.counts
    again = reap(tokenizer, round=2)
    assert [g.problem for g in again.groups] == [g.problem for g in whole.groups] and again.groups != whole.groups


def test_rounds_ask_the_same_problems_or_new_ones() -> None:
    task, fresh = Even(), replace(CONFIG, same_problems=False)
    ids = [{problem.id for problem in questions(task, fresh, 0, n)} for n in (1, 2)]
    assert len(ids[0]) == len(ids[1]) == 24 and not ids[0] & ids[1]
    assert questions(task, CONFIG, 0, 1) == questions(task, CONFIG, 0, 5)


def test_the_best_by_reward_is_kept_right_or_not(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, keep="best", samples=2)
    found = reap(tokenizer, config)
    texts = [learned(tokenizer, one) for one in found.examples]
    assert {"1", "3"} & set(texts) and "9" not in texts  # a failed verifier's reward is none
    dropped = sum(n for name, n in found.counts.items() if name.startswith("dropped/"))
    assert found.counts["samples"] == 48 == len(texts) + dropped
    strict = reap(tokenizer, replace(config, least_reward=1.0))
    assert {learned(tokenizer, one) for one in strict.examples} == set("02468")
    assert strict.counts["dropped/below least_reward"] == len(texts) - len(strict.examples)


# ---- rationalization


def test_a_hint_is_told_to_the_sampler_and_not_to_the_student(tokenizer: Tokenizer) -> None:
    config, task = replace(CONFIG, rationalize="hint", samples=1), Even()
    typist, asked = Typist(tokenizer), questions(task, CONFIG, 0, 1)
    found = harvest(typist, tokenizer, task, asked, config, 0, 1)
    plain = {tuple(prompt_ids(tokenizer, problem)) for problem in asked}
    told = [tokenizer.decode(prompt) for prompt in typist.asked if prompt not in plain]
    assert 0 < len(told) < 24 and all("(The answer is 4.)" in text for text in told)
    again = {name: n for name, n in found.counts.items() if name.startswith("rationalise/dropped/")}
    assert found.counts["rationalise/samples"] == len(told) == found.counts["rationalised"] + sum(again.values())
    assert found.counts["rationalised"] > 0 and sum(again.values()) > 0
    assert all(one.ids[: one.loss_mask.index(1)] in plain for one in found.examples)
    assert {learned(tokenizer, one) for one in found.examples} <= set("02468")
    assert found.counts["barren"] == 24 - len({one.ids[: one.loss_mask.index(1)] for one in found.examples})


def test_the_tasks_own_solution_stands_in_where_nothing_was_right(tokenizer: Tokenizer) -> None:
    found = reap(tokenizer, replace(CONFIG, rationalize="gold"), digits="13579")
    assert [learned(tokenizer, one) for one in found.examples] == ["4"] * 24
    assert found.counts["rationalised"] == 24 and found.counts["kept"] == found.counts["barren"] == 0
    conversation = next(one for one in found.examples if tokenizer.decode(one.ids).startswith("<|im_start|>"))
    assert conversation.ids[-1] == tokenizer.backend.token_to_id("<|im_end|>")
    assert any(one.ids[-1] == tokenizer.end_id for one in found.examples)


def test_a_solution_that_is_not_right_is_not_trained(tokenizer: Tokenizer) -> None:
    class Wrong(Even):
        def gold(self, problem: Problem) -> str:
            return "5"

    config, task = replace(CONFIG, rationalize="gold"), Wrong()
    asked = questions(task, config, 0, 1)
    assert not harvest(Typist(tokenizer, "13"), tokenizer, task, asked, config, 0, 1).examples


def test_a_conversation_is_hinted_in_its_last_turn() -> None:
    told = hinted(Even(), Even().problem("train", 0, 1))
    assert told.messages == (Message("user", "(The answer is 4.) 1?"),)


# ---- the loop


def accuracy(model: Transformer, tokenizer: Tokenizer) -> float:
    problems = [Even().problem("valid", 0, index) for index in range(64)]
    groups = draw(Engine(model, tokenizer), tokenizer, Even(), problems, replace(CONFIG, samples=2), 1, 0)
    right = [r.verdict.rewards.get("accuracy", 0.0) for group in groups for r in group.rollouts]
    return sum(right) / len(right)


@pytest.mark.parametrize("from_start", [True, False])
def test_rounds_raise_the_accuracy(tokenizer: Tokenizer, from_start: bool) -> None:
    shape = ModelConfig(tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=32)
    base = Transformer(shape)
    base.init_weights(torch.Generator().manual_seed(0))
    # A base that types digits, right or wrong, as pretraining would leave it.
    texts = [Completion("", (*tokenizer.encode(str(n % 10)), tokenizer.end_id), (), "stop", 0) for n in range(40)]
    taught = [example(tokenizer, Even().problem("train", 0, n), text) for n, text in enumerate(texts)]
    for _ in sft(base, MasterAdamW(base), taught, replace(SFT, epochs=25), 0):
        pass
    model, curve = base, [accuracy(base, tokenizer)]
    for n in (1, 2):
        task = Even()
        found = harvest(Engine(model, tokenizer), tokenizer, task, questions(task, CONFIG, 0, n), CONFIG, 0, n)
        assert {learned(tokenizer, one) for one in found.examples} <= set("02468")
        model = copy.deepcopy(base) if from_start else model
        for _ in sft(model, MasterAdamW(model), found.examples, SFT, n):
            pass
        curve.append(accuracy(model, tokenizer))
    assert curve[0] < 0.6 and curve[-1] > 0.85, curve


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"temperature": -1.0},
        {"temperature": 0.0},
        {"keep": "all"},
        {"rationalize": "yes"},
        {"keep": "best", "rationalize": "gold"},
        {"rules": SelectionRules(correct=False)},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(CONFIG, **wrong).validate()
