"""Needles: exact lengths and depths, and models whose answers are known: one that looks the fact up, one that guesses."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.eval.needle import Question, needles, question
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError
from dunwu.world.needles import notes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(islice(notes(0, 20), 4000), 900)


class LooksUp(Transformer):
    """Says what stood behind the last `width` tokens when they were there before, as far back as `reach`; else token 0."""

    def __init__(self, vocab_size: int, width: int = 2, reach: int = 10**9) -> None:
        super().__init__(ModelConfig(vocab_size=vocab_size, hidden_size=vocab_size, num_heads=1, num_layers=1))
        self.width, self.reach = width, reach
        self.model.embed_tokens.weight.data = torch.eye(vocab_size)

    def hidden(self, ids_BT: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states = torch.zeros(*ids_BT.shape, self.config.vocab_size)
        for row, ids in zip(states, ids_BT.tolist()):
            for end in range(len(ids)):
                tail = ids[max(0, end + 1 - self.width) : end + 1]
                starts = range(end - self.width, max(-1, end - self.reach), -1)
                at = next((n for n in starts if ids[n : n + self.width] == tail), None)
                row[end, 0 if at is None else ids[at + self.width]] = 1.0
        return states


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_a_text_has_the_length_asked_for_and_its_fact(tokenizer: Tokenizer, chinese: bool, removed: bool) -> None:
    for length in (64, 129, 300):
        for depth in (0.0, 0.5, 1.0):
            made = question(tokenizer, Random(length), length, depth, chinese, removed=removed)
            assert len(made.ids) == length and made.ids[0] == tokenizer.end_id
            text, asked = tokenizer.decode(made.ids[1:]), tokenizer.decode(made.ids[-made.answer - 2 :])
            assert "=" in asked
            assert text.count(asked) == (1 if removed else 2)


def test_depth_is_where_the_fact_stands(tokenizer: Tokenizer) -> None:
    places = []
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        made = question(tokenizer, Random(7), 600, depth, False)
        ids, fact = list(made.ids), list(made.ids[-made.answer - 2 :])
        places.append(next(n for n in range(1, len(ids)) if ids[n : n + len(fact)] == fact) / 600)
    assert places == sorted(places)
    assert places[0] < 0.02 and abs(places[2] - 0.5) < 0.06 and places[4] > 0.9


def test_a_model_that_looks_up_finds_all_and_nothing_where_nothing_is(tokenizer: Tokenizer) -> None:
    points = list(needles(LooksUp(tokenizer.vocab_size), tokenizer, (100, 200), depths=3, each=4))
    assert [point.accuracy.value for point in points] == [1.0, 1.0]
    assert [point.removed.value for point in points] == [0.0, 0.0]
    assert all(depth.value == 1.0 and depth.n == 4 for point in points for depth in point.depths)
    assert {name: found.n for name, found in points[0].languages.items()} == {"en": 6, "zh": 6}


def test_a_model_that_sees_near_by_only_finds_the_late_ones(tokenizer: Tokenizer) -> None:
    (point,) = needles(LooksUp(tokenizer.vocab_size, reach=200), tokenizer, (400,), depths=4, each=4)
    assert [depth.value for depth in point.depths] == [0.0, 0.0, 1.0, 1.0]


def test_an_untrained_model_finds_nothing(tokenizer: Tokenizer) -> None:
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_heads=1, num_layers=1))
    model.init_weights(torch.Generator().manual_seed(0))
    (point,) = needles(model, tokenizer, (128,), depths=2, each=10)
    assert point.accuracy.value == 0.0


def test_the_same_questions_for_every_model(tokenizer: Tokenizer) -> None:
    one, other = (question(tokenizer, Random(1), 200, 0.3, True) for _ in range(2))
    assert isinstance(one, Question) and one == other


def test_too_short_a_text_is_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(DunwuError, match="no room"):
        question(tokenizer, Random(0), 20, 0.5, False)
