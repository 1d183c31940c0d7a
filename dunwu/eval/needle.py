"""Needle in a haystack: one fact somewhere in a long text, asked for at its end, by length and by depth.

The text is made of lines about other things, with other facts of the same form among them (so copying any code is no
answer), and ends with the fact's key. Right is the code, every token of it the likeliest after the right ones
before it, which is when greedy decoding would write it. Keys are of the split "test" (`world.needles`), which no training
note has. The control is the same text without the fact.

Legend: B rows, T tokens, N questions. Not covered: questions in other words, several needles to be put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import torch

from dunwu.data.tokenizer import Tokenizer
from dunwu.eval.passk import Interval, pass_at_1
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError, derive_seed
from dunwu.world.needles import Fact, facts, hay

Hay = Callable[[Random, bool], str]
"""(dice, in Chinese?) → one line of the haystack."""
OTHERS = 3
"""Facts in the text besides the one that is asked for."""
TOKENS_AT_ONCE = 8192
"""B · T of a forward pass."""


@dataclass(frozen=True)
class Question:
    """A text of tokens whose last `answer` ones are the code."""

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class NeedlePoint:
    """What one model found at one length."""

    length: int
    """Tokens of the text, question and code included."""
    accuracy: Interval
    """Share of codes found, Wilson's interval."""
    depths: tuple[Interval, ...]
    """The same by where the fact stands, from the text's beginning to its end."""
    languages: dict[str, Interval]
    """The same by language."""
    removed: Interval
    """The control: the share "found" of codes that are not in the text."""

    def as_json(self) -> dict[str, Any]:
        """All fields, intervals as `Interval.as_json`."""
        return {
            "length": self.length,
            "accuracy": self.accuracy.as_json(),
            "depths": [depth.as_json() for depth in self.depths],
            "languages": {name: found.as_json() for name, found in self.languages.items()},
            "removed": self.removed.as_json(),
        }


def world_hay(dice: Random, chinese: bool) -> str:
    """A line of the generated web, of its test split."""
    return hay(dice, chinese, "test")


def question(
    tokenizer: Tokenizer,
    dice: Random,
    length: int,
    depth: float,
    chinese: bool,
    hay: Hay = world_hay,
    removed: bool = False,
) -> Question:
    """A text of exactly `length` tokens, the end token first.

    Args:
        depth: where the fact stands, 0 at the beginning and 1 at the end, as a share of the tokens between.
        removed: the fact is not there; everything else is as it would be, with more hay in its place.

    Raises:
        DunwuError: the facts alone are longer than that.
    """
    asked, *others = facts(dice, 1 + OTHERS, chinese, "test")
    stem, answer = _asked(tokenizer, asked)
    fact = [] if removed else _line(tokenizer, asked.text)
    lines = [_line(tokenizer, other.text) for other in others]
    left = length - 1 - len(stem) - len(answer) - len(fact) - sum(map(len, lines))
    if left < 0:
        raise DunwuError(f"a needle's text of {length} tokens has no room for its facts", "ask at greater lengths")
    straw: list[list[int]] = []
    while left > 0:
        # The first line in the text is the last one drawn; its beginning is cut to the exact length.
        straw.append(_line(tokenizer, hay(dice, chinese))[-left:])
        left -= len(straw[-1])
    for line in lines:
        straw.insert(dice.randrange(len(straw) + 1), line)
    before = depth * sum(map(len, straw))
    text = straw[::-1]
    place = next((n for n in range(len(text) + 1) if sum(map(len, text[:n])) >= before), len(text))
    text.insert(place, fact)
    ids = [tokenizer.end_id, *(token for line in text for token in line), *stem, *answer]
    return Question(tuple(ids), len(answer))


def _line(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text + "\n", allow_special=False)


def _asked(tokenizer: Tokenizer, fact: Fact) -> tuple[list[int], list[int]]:
    """Tokens of the question and of the code, cut from the tokens of both, as training text has them."""
    whole = tokenizer.encode(fact.key + fact.code, allow_special=False)
    alone = tokenizer.encode(fact.key, allow_special=False)
    shared = next((n for n, (a, b) in enumerate(zip(whole, alone)) if a != b), len(alone))
    return whole[:shared], whole[shared:]


@torch.inference_mode()
def found(model: Transformer, questions: Sequence[Question]) -> list[bool]:
    """Whether each code is what greedy decoding would write; texts of one length."""
    was_training = model.training
    model.eval()
    device, right = model.head_weight.device, list[bool]()
    remaining = iter(questions)
    rows = max(1, TOKENS_AT_ONCE // len(questions[0].ids))
    while batch := list(islice(remaining, rows)):
        ids_BT = torch.tensor([item.ids for item in batch], device=device)
        hidden_BTD = model.hidden(ids_BT[:, :-1])
        for item, states_TD, ids in zip(batch, hidden_BTD, ids_BT):
            guesses = (states_TD[-item.answer :] @ model.head_weight.T).argmax(-1)
            right.append(bool((guesses == ids[-item.answer :]).all()))
    model.train(was_training)
    return right


def needles(
    model: Transformer,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    depths: int = 10,
    each: int = 10,
    seed: int = 0,
    hay: Hay = world_hay,
) -> Iterator[NeedlePoint]:
    """One point for each length: `each` questions at every one of `depths` depths, English and Chinese by turns.

    The same questions for every model with this tokenizer.
    """
    places = [(depth, turn) for turn in range(each) for depth in range(depths)]
    for length in lengths:
        hits = _hits(model, tokenizer, length, places, depths, seed, hay, removed=False)
        missing = _hits(model, tokenizer, length, places, depths, seed, hay, removed=True)
        by_depth = [[hit for hit, (at, _) in zip(hits, places) if at == depth] for depth in range(depths)]
        by_language = {
            name: [hit for hit, place in zip(hits, places) if _in_chinese(place) == chinese]
            for name, chinese in (("en", False), ("zh", True))
        }
        yield NeedlePoint(
            length,
            _share(hits),
            tuple(map(_share, by_depth)),
            {name: _share(part) for name, part in by_language.items() if part},
            _share(missing),
        )


def _in_chinese(place: tuple[int, int]) -> bool:
    """Languages alternate over turns and over depths, so that every depth has both."""
    return sum(place) % 2 == 1


def _hits(
    model: Transformer,
    tokenizer: Tokenizer,
    length: int,
    places: Sequence[tuple[int, int]],
    depths: int,
    seed: int,
    hay: Hay,
    removed: bool,
) -> list[bool]:
    questions = []
    for depth, turn in places:
        dice = Random(derive_seed("needle", seed, length, depth, turn))
        chinese, share = _in_chinese((depth, turn)), depth / max(1, depths - 1)
        questions.append(question(tokenizer, dice, length, share, chinese, hay, removed))
    return found(model, questions)


def _share(hits: Sequence[bool]) -> Interval:
    return pass_at_1([[hit] for hit in hits])
