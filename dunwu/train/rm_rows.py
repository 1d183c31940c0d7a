"""Rows of a reward model's training: preferences, labels and rankings as ids, what is held out, lengths in balance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from dunwu.data.chat import encode_conversation
from dunwu.data.tokenizer import Tokenizer
from dunwu.train.reward_model import seen
from dunwu.train.rm_config import View
from dunwu.types import ChatExample, DunwuError, Message, Preference, Ranking, derive_seed


@dataclass(frozen=True)
class Row:
    """One training row: a pair has both sides, a labelled reply the one of its label."""

    good: tuple[int, ...] | None
    """Ids of the conversation with the chosen reply, or with one labelled good."""
    bad: tuple[int, ...] | None
    """Ids of the conversation with the rejected reply, or with one labelled bad."""
    margin: float = 0.0
    """By how much the good score shall lie above the bad one: m of Llama 2's loss."""

    @property
    def sides(self) -> list[tuple[int, ...]]:
        """The conversations to score, the good one first."""
        return [side for side in (self.good, self.bad) if side is not None]

    @property
    def lengths(self) -> tuple[float, float] | None:
        """Tokens of the better and of the worse side; None of a single reply."""
        return None if self.good is None or self.bad is None else (len(self.good), len(self.bad))


@dataclass(frozen=True)
class RankedRow:
    """A prompt with all its ranked replies: one training row, so that its pairs are never in two updates."""

    sides: list[tuple[int, ...]]
    """Ids of the conversation with each reply, best first."""
    ranks: tuple[int, ...]
    """Rank of each side, 0 the best; equal ranks are ties."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) places of every two sides that are not tied; see `ordered`."""
        return ordered(self.ranks)

    @property
    def lengths(self) -> tuple[float, float] | None:
        """Mean tokens of the better and of the worse side over the pairs."""
        sizes = [len(side) for side in self.sides]
        return fmean(sizes[better] for better, _ in self.pairs), fmean(sizes[worse] for _, worse in self.pairs)


AnyRow = Row | RankedRow
Rows = TypeVar("Rows", bound=AnyRow)


def ordered(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(better, worse) places of every two ranks that differ.

    Example:
        >>> ordered((0, 1, 1))
        [(0, 1), (0, 2)]
    """
    places = range(len(ranks))
    return [(better, worse) for better in places for worse in places if ranks[better] < ranks[worse]]


# ---- from what people wrote -----------------------------------------------------------------


def pair_row(tokenizer: Tokenizer, pair: Preference, view: View, margin: float = 0.0) -> Row:
    """A preference as ids.

    Args:
        margin: weight of the pair's own `meta["margin"]`; 0: none is asked for.

    Raises:
        DunwuError: a margin is asked for, and there is none.
    """
    good, bad = (
        tuple(encode_conversation(tokenizer, seen([*pair.messages, reply], view)).ids)
        for reply in (pair.chosen, pair.rejected)
    )
    return Row(good, bad, margin * margin_of(pair) if margin else 0.0)


def margin_of(pair: Preference) -> float:
    """`meta["margin"]`: how much better the chosen reply is, 0 or more (Llama 2 took 0 to 3, as the labelers put it).

    Raises:
        DunwuError: there is none, or it is no such number.

    Example:
        >>> yes, no = Message("assistant", "yes"), Message("assistant", "no")
        >>> margin_of(Preference((), yes, no, {"margin": 1}))
        1.0
    """
    value = pair.meta.get("margin")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        what = "no margin" if value is None else f"the margin is {value!r}"
        raise DunwuError(what, 'write "meta": {"margin": 1}, or train without --margin')
    return float(value)


def ranking_row(tokenizer: Tokenizer, ranking: Ranking, view: View) -> RankedRow:
    """A ranking as ids."""
    talks = (seen([*ranking.messages, reply], view) for reply in ranking.replies)
    return RankedRow([tuple(encode_conversation(tokenizer, talk).ids) for talk in talks], ranking.ranks)


def label_row(tokenizer: Tokenizer, example: ChatExample, view: View) -> Row:
    """A labelled conversation as ids; see `label_of`."""
    ids = tuple(encode_conversation(tokenizer, seen(example.messages, view)).ids)
    return Row(ids, None) if label_of(example) else Row(None, ids)


def label_of(example: ChatExample) -> bool:
    """The label of a pointwise row: `meta["safe"]`, else `meta["label"]`; true and 1 are good, false and 0 bad.

    Raises:
        DunwuError: there is none, or another value.

    Example:
        >>> label_of(ChatExample((), {"safe": True})), label_of(ChatExample((), {"label": 0}))
        (True, False)
    """
    label = example.meta.get("safe", example.meta.get("label"))
    if not isinstance(label, int | float) or label not in (0, 1):  # True and 1 are equal
        raise DunwuError(
            "no label" if label is None else f"the label is {label!r}", 'write "meta": {"safe": true} or false'
        )
    return bool(label)


# ---- which of them --------------------------------------------------------------------------


def held_out_rows(conversations: Sequence[Sequence[Message]], share: float, seed: int) -> list[bool]:
    """Which rows are held out: whole conversations, the `share` of them whose hash is lowest, one at least.

    Args:
        conversations: what was asked, row by row, without the replies; equal ones go to the same side.

    Raises:
        DunwuError: fewer than two different conversations, so one side would be empty.

    Example:
        >>> hi, bye = [Message("user", "hi")], [Message("user", "bye")]
        >>> flags = held_out_rows([hi, bye, hi], 0.5, seed=0)
        >>> flags[0] == flags[2] != flags[1]
        True
    """
    keys = [json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False) for messages in conversations]
    order = sorted(set(keys), key=lambda key: (derive_seed("rm held out", seed, key), key))
    if len(order) < 2:
        raise DunwuError(
            f"{len(order)} different conversations cannot be split into training and held-out ones", "give more data"
        )
    chosen = set(order[: min(len(order) - 1, math.ceil(share * len(order)))])
    return [key in chosen for key in keys]


def balance_lengths(rows: Sequence[Rows], tolerance: float) -> list[Rows]:
    """The pairs and rankings without those that make length a clue; order kept, nothing drawn by chance.

    While the mean lengths of better and worse sides differ by more than `tolerance` of the mean length, a row that differs
    in that direction goes, those that differ most first, so that few are lost. Rows with one side are kept.

    Example:
        >>> pairs = [Row((1, 1, 1, 1), (1,)), Row((1, 1), (1, 1)), Row((1,), (1, 1))]
        >>> [len(balance_lengths(pairs, tolerance)) for tolerance in (0.5, 0.3, 0.0)]
        [3, 2, 1]
    """
    lengths = {n: found for n, row in enumerate(rows) if (found := row.lengths)}
    excess = {n: good - bad for n, (good, bad) in lengths.items()}
    total = sum(good + bad for good, bad in lengths.values())
    surplus = sum(excess.values())
    dropped: set[int] = set()
    for n in sorted(excess, key=lambda n: (-abs(excess[n]), n)):
        # Mean difference ≤ tolerance · mean length; both means are over the same pairs, so the counts cancel.
        if abs(surplus) <= tolerance * total / 2:
            break
        if abs(surplus - excess[n]) < abs(surplus):
            dropped.add(n)
            surplus -= excess[n]
            total -= sum(lengths[n])
    return [row for n, row in enumerate(rows) if n not in dropped]
