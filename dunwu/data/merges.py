"""The merges of byte-level BPE from counted words, with 64-bit counts.

All distinct words lie in flat arrays; each merge touches only the places of its pair, all at once. Where 32 bits suffice
the merges are those of the `tokenizers` library, with the same order among equals.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.types import DunwuError

_SHIFT = 32
"""A pair is one number, left << 32 | right, so pairs sort as tuples do."""
_MOST = 1 << 62
"""Weighted symbols that fit int64 with room for every sum."""


@functools.cache
def byte_letters() -> tuple[str, ...]:
    """The letter byte-level BPE writes for each byte: itself where it can be seen, else one from U+0100 on (GPT-2)."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return tuple(chr(byte if byte in seen else 256 + unseen.index(byte)) for byte in range(256))


def train_merges(
    words: Mapping[bytes, int] | Mapping[str, int],
    merges: int,
    min_count: int = 2,
    tick: Callable[[int], object] | None = None,
) -> list[tuple[bytes, bytes]]:
    """The first `merges` merges of byte-level BPE on counted words; fewer if no pair is left that often.

    At each step the most frequent pair of neighbours is merged everywhere; among equals the one whose tokens are oldest.
    A token's string decides how it was made, so two merges never give the same token.

    Args:
        words: each distinct word and how often it was seen, at most 2^62 bytes counted with repetition.
        tick: called with the number of merges done.

    Raises:
        DunwuError: more text than 64-bit counts hold.

    Example:
        >>> train_merges({b"abab": 3, b"ab": 1 << 40}, 2)
        [(b'a', b'b'), (b'ab', b'ab')]
    """
    order = sorted(range(256), key=lambda byte: byte_letters()[byte])
    tokens = [bytes([byte]) for byte in order]
    text = _Symbols(words, np.argsort(np.array(order)).astype(np.int32), min_count)
    pairs: dict[int, _Pair] = {}
    heap: list[tuple[int, int]] = []

    def remember(found: Iterable[tuple[int, _Pair]]) -> None:
        for key, pair in found:
            pairs[key] = pair
            heapq.heappush(heap, (-pair.count, key))

    remember(text.all_pairs())
    made: list[tuple[bytes, bytes]] = []
    while heap and len(made) < merges:
        count, key = heapq.heappop(heap)
        pair = pairs[key]
        if pair.count != -count:
            if pair.count >= min_count:
                heapq.heappush(heap, (-pair.count, key))
            else:
                del pairs[key]
            continue
        del pairs[key]
        left, right = key >> _SHIFT, key & ((1 << _SHIFT) - 1)
        lost, born = text.merge(left, right, len(tokens), pair.places)
        for other, weight in lost:
            if other in pairs:
                pairs[other].count -= weight
        remember(born)
        made.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
        if tick is not None:
            tick(len(made))
    return made


@dataclass
class _Pair:
    """How often two tokens are neighbours, and where they were when the younger of them was made."""

    __slots__ = ("count", "places")
    count: int
    places: NDArray[np.int32]


class _Symbols:
    """All distinct words as one linked list of tokens in flat arrays.

    A place is the index of a token's first byte; `token` there is its id, -1 inside a token. `after` and `before` lead to
    the neighbours in the word, -1 at its ends.
    """

    def __init__(self, words: Mapping[bytes, int] | Mapping[str, int], ids: NDArray[np.int32], min_count: int) -> None:
        self.min_count = min_count
        spelled = [word if isinstance(word, bytes) else word.encode("utf-8", "surrogatepass") for word in words]
        lengths = np.fromiter(map(len, spelled), np.int64, len(words))
        if int(lengths.sum()) >= 1 << 31:
            raise DunwuError("the distinct words are longer than 2 GB", "keep fewer words: --table-words")
        if sum(len(word) * count for word, count in zip(spelled, words.values())) > _MOST:
            raise DunwuError("more than 2^62 bytes of counted words", "divide the counts")
        self.token = ids[np.frombuffer(b"".join(spelled), np.uint8)]
        self.word = np.repeat(np.arange(len(words), dtype=np.int32), lengths)
        self.weights = np.fromiter(words.values(), np.int64, len(words))
        places = np.arange(len(self.token), dtype=np.int32)
        ends = np.cumsum(lengths[lengths > 0])
        self.after, self.before = places + np.int32(1), places - np.int32(1)
        self.after[ends - 1] = -1
        self.before[np.concatenate([[0], ends[:-1]])[: len(ends)]] = -1

    def all_pairs(self) -> Iterable[tuple[int, _Pair]]:
        """Every pair of neighbouring bytes."""
        places = np.flatnonzero(self.after >= 0).astype(np.int32)
        short = self.token[places].astype(np.uint16) << 8 | self.token[places + 1].astype(np.uint16)
        order = np.argsort(short, kind="stable").astype(np.int32)  # radix sort: two bytes a key
        short, places = short[order], places[order]
        for key, pair in self._grouped(short, places):
            yield (key >> 8) << _SHIFT | (key & 255), pair

    def merge(
        self, left: int, right: int, made: int, places: NDArray[np.int32]
    ) -> tuple[list[tuple[int, int]], Iterable[tuple[int, _Pair]]]:
        """Write the token `made` wherever `left` `right` stand; the weights other pairs lose, and the new pairs."""
        token, after, before = self.token, self.after, self.before
        first = places[token[places] == left]
        second = after[first]
        there = (second >= 0) & (token[second] == right)
        first, second = first[there], second[there]
        if left == right:
            first, second = _without_overlap(first, second)
        behind, ahead = before[first], after[second]
        # Two merges side by side share an edge: it is the right edge of the first one only.
        beside = np.zeros(len(first), bool)
        beside[1:] = behind[1:] == second[:-1]
        open_left, open_right = (behind >= 0) & ~beside, ahead >= 0
        weights = self.weights[self.word[first]]
        lost_keys = np.concatenate(
            [
                token[behind[open_left]].astype(np.int64) << _SHIFT | left,
                right << _SHIFT | token[ahead[open_right]].astype(np.int64),
            ]
        )
        lost = _sums(lost_keys, np.concatenate([weights[open_left], weights[open_right]]))
        token[first], token[second] = made, -1
        after[first] = ahead
        before[ahead[open_right]] = first[open_right]
        edges = np.concatenate([behind[open_left], first[open_right]])
        keys = token[edges].astype(np.int64) << _SHIFT | token[after[edges]]
        order = np.argsort(keys, kind="stable")
        return lost, self._grouped(keys[order], edges[order])

    def _grouped(self, keys: NDArray[Any], places: NDArray[np.int32]) -> Iterable[tuple[int, _Pair]]:
        """Sorted keys as pairs with their places and summed weights."""
        if not len(keys):
            return
        starts = _starts(keys)
        counts = np.add.reduceat(self.weights[self.word[places]], starts)
        ends = np.append(starts[1:], len(keys))
        often = counts >= self.min_count  # counts only fall, so others never get a turn
        columns = (keys[starts], starts, ends, counts)
        for key, start, end, count in zip(*(column[often].tolist() for column in columns)):
            yield key, _Pair(count, places[start:end].copy())


def _starts(keys: NDArray[Any]) -> NDArray[np.int64]:
    """Where each run of equal keys begins."""
    return np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])


def _sums(keys: NDArray[np.int64], weights: NDArray[np.int64]) -> list[tuple[int, int]]:
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = _starts(keys)
    return list(zip(keys[starts].tolist(), np.add.reduceat(weights[order], starts).tolist()))


def _without_overlap(
    first: NDArray[np.int32], second: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """In a run of the same token, aaaa, every second pair counts from the left."""
    number = np.arange(len(first))
    begins = np.ones(len(first), bool)
    begins[1:] = first[1:] != second[:-1]
    offset = number - np.maximum.accumulate(np.where(begins, number, 0))
    kept = offset % 2 == 0
    return first[kept], second[kept]
