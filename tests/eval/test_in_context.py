"""Loss by position against a hand computation, and few-shot accuracy of samplers whose knowledge is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.eval.in_context import TASKS, Sums, Symbols, few_shot_accuracy, loss_by_position, position_bins
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.types import Completion, SamplingParams, UsageError

SHAPE = ModelConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48)


def fresh(vocab_size: int = 50) -> Transformer:
    model = Transformer(replace(SHAPE, vocab_size=vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4)  # losses that differ
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["red=1\nblue=2\n9*12=108\n"], 300)


@pytest.mark.parametrize("context", [4, 13, 64, 100])
@pytest.mark.parametrize("bins", [None, 1, 3, 50])
def test_bins_cover_the_window_once(context: int, bins: int | None) -> None:
    found = position_bins(context, bins)
    assert [place for first, last in found for place in range(first, last + 1)] == list(range(1, context + 1))


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_loss_by_position_by_hand(rows: int) -> None:
    model, context = fresh(), 40
    ids = np.random.default_rng(1).integers(0, 50, (10, context + 1))
    found = loss_by_position(model.train(), (ids[start : start + rows] for start in range(0, 10, rows)))
    assert model.training
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids[:, :-1]))
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), torch.from_numpy(ids[:, 1:]), reduction="none"
        )
    assert [(b.first, b.last) for b in found.bins] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 40)]
    for b in found.bins:
        part = losses[:, b.first - 1 : b.last].mean(1).double()
        assert b.mean == pytest.approx(float(part.mean()), rel=1e-5)
        assert b.error == pytest.approx(float(part.std()) / math.sqrt(10), rel=1e-4)
    late, early = losses[:, 37:40].mean(1), losses[:, 2:5].mean(1)  # 39.06 ± 1 and 3.9 ± 1
    assert found.score.value == pytest.approx(float((late - early).mean()), abs=1e-5)
    assert found.score.low < found.score.value < found.score.high
    assert (found.windows, found.context) == (10, context)
    assert found.as_json()["bins"][1][:2] == [2, 3]


def test_a_model_that_copies_has_a_score_below_zero() -> None:
    """Logits for the next token given by a lookup of what followed it before: late in a periodic window all is known."""

    class Copier(Transformer):
        def hidden(self, ids: torch.Tensor, *_: object) -> torch.Tensor:
            states = torch.zeros(*ids.shape, 50)
            for row in range(ids.shape[0]):
                followed: dict[int, int] = {}
                for place in range(ids.shape[1]):
                    if place:
                        followed[int(ids[row, place - 1])] = int(ids[row, place])
                    if int(ids[row, place]) in followed:
                        states[row, place, followed[int(ids[row, place])]] = 20.0
            return states

    model = Copier(replace(SHAPE, hidden_size=50, num_heads=1))
    with torch.no_grad():
        model.head_weight.copy_(torch.eye(50))
    dice = np.random.default_rng(0)
    ids = np.stack([np.resize(dice.permutation(50)[:20], 65) for _ in range(5)])
    found = loss_by_position(model, [ids])
    assert found.score.value == pytest.approx(-math.log(50), abs=0.01)
    assert found.bins[0].mean == pytest.approx(math.log(50), abs=0.01) and found.bins[-1].mean < 0.01


def test_windows_that_have_no_curve() -> None:
    with pytest.raises(UsageError, match="0 windows"):
        loss_by_position(fresh(), [])
    with pytest.raises(UsageError, match="windows of 3 tokens"):
        loss_by_position(fresh(), [np.zeros((2, 4), np.int64)])
    one = loss_by_position(fresh(), [np.zeros((1, 9), np.int64)])
    assert one.as_json()["bins"][0][3] is None and one.as_json()["score"]["low"] is None


def test_symbols_are_told_by_the_prompt_alone() -> None:
    task, asked = Symbols(), 0
    for n in range(300):
        problem = task.draw(Random(n), 8)
        code = dict(problem.examples)
        assert len(problem.examples) == 8 and len(code) == 4 == len(set(code.values()))
        assert code[problem.question] == problem.answer
        for shots in range(5):
            shown = problem.prompt(shots).split("\n")[:-1]
            assert len(set(shown)) == shots  # up to four, every one is new
        asked += problem.question in problem.prompt(1).split("\n")[0]
    assert 45 < asked < 105  # one shown of four
    assert [round(task.best(k), 3) for k in (0, 1, 2, 4, 8)] == [0.1, 0.333, 0.562, 1.0, 1.0]


def test_sums_are_true_and_spelled_as_on_the_pages() -> None:
    for n in range(50):
        problem = Sums().draw(Random(n), 3)
        for question, answer in (*problem.examples, (problem.question, problem.answer)):
            a, sign, b = next((question[:-1].partition(s) for s in "+-*/" if s in question), ("", "", ""))
            true = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
            assert int(answer) == true
        assert problem.prompt(3).count("\n") == 3 and problem.prompt(0) == problem.question


class Reader:
    """Answers with what the prompt says of the question, else with "x"; sometimes it goes on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.prompts = tokenizer, list[str]()

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        assert params.temperature == 0.0 and [len(own) for own in seeds] == [1] * len(prompts)
        said = []
        for ids in prompts:
            assert ids[0] == self.tokenizer.end_id
            self.prompts.append(self.tokenizer.decode(ids[1:]))
            *shown, question = self.prompts[-1].split("\n")
            known = dict(line.split("=") for line in shown)
            text = known.get(question[:-1], "x") + ("\nred=" if len(self.prompts) % 2 else "")
            said.append([Completion(text, (1,), (0.0,), "length", 0)])
        return said


def test_accuracy_is_what_the_sampler_knows(tokenizer: Tokenizer) -> None:
    reader = Reader(tokenizer)
    found = few_shot_accuracy(reader, tokenizer, Symbols(), n=300)
    assert [point.shots for point in found] == [0, 1, 2, 4, 8]
    values = [point.accuracy.value for point in found]
    assert values[0] == 0.0 and values[3:] == [1.0, 1.0]
    assert values[1] == pytest.approx(0.25, abs=0.07) and values[2] == pytest.approx(0.5, abs=0.08)
    assert all(p.accuracy.low <= p.accuracy.value <= p.accuracy.high and p.accuracy.n == 300 for p in found)
    assert found[0].tokens < found[1].tokens < found[4].tokens
    zero, eight = reader.prompts[:300], reader.prompts[1200:]
    assert all(long.endswith("\n" + short) for short, long in zip(zero, eight))  # the same question each time
    again = few_shot_accuracy(Reader(tokenizer), tokenizer, Symbols(), n=300)
    assert again == found
    other = Reader(tokenizer)
    few_shot_accuracy(other, tokenizer, Symbols(), (0,), n=300, seed=1)
    assert other.prompts != zero


def test_a_real_engine_answers(tokenizer: Tokenizer) -> None:
    model = fresh(tokenizer.vocab_size)
    for task in TASKS.values():
        first, second = (few_shot_accuracy(Engine(model, tokenizer), tokenizer, task, (0, 2), n=8) for _ in range(2))
        assert first == second and 0 <= first[0].accuracy.value <= 1
        assert first[0].as_json().keys() == {"shots", "accuracy", "tokens", "best"}


@pytest.mark.parametrize(("shots", "n"), [((), 3), ((-1,), 3), ((1,), 0)])
def test_questions_that_measure_nothing(tokenizer: Tokenizer, shots: tuple[int, ...], n: int) -> None:
    with pytest.raises(UsageError, match="measure nothing"):
        few_shot_accuracy(Reader(tokenizer), tokenizer, Symbols(), shots, n)
