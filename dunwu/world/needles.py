"""Notes with codes to be found again: what a small model learns retrieval from, and is asked in a long context.

A fact is a line such as `amber anchor=417.`; a note states facts, says other things, and repeats facts. Whoever predicts a
repeated one has to find it: the code is drawn anew for every note, so no weight can know it (multi-query associative
recall: Arora et al. 2023, "Zoology", section 3). Short notes with one to three facts stand beside long ones, because
a small model finds retrieval there first (docs/log.md, 2026-11-21).

The key of a fact belongs to one split by its hash: no training note has a key that is later asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from dunwu.types import derive_seed
from dunwu.world.general_pages import general_page

_FIRST = (
    [
        "amber",
        "brave",
        "calm",
        "dark",
        "early",
        "flat",
        "golden",
        "happy",
        "iron",
        "little",
        "metal",
        "noble",
        "plain",
        "quick",
        "silent",
        "warm",
    ],
    list("金银铜铁木石竹玉冰火云雾霜雷沙丝"),
)
_SECOND = (
    [
        "anchor",
        "basket",
        "candle",
        "dragon",
        "engine",
        "feather",
        "garden",
        "hammer",
        "island",
        "jacket",
        "kettle",
        "ladder",
        "mirror",
        "needle",
        "pillow",
        "window",
    ],
    list("船灯伞琴剑钟镜箱桥塔井墙窗桌椅床"),
)
DIGITS = 3
"""Digits of a code: a blind guess is right once in a thousand."""
_LEAST_LINES = 8
"""Lines of the shortest long note."""


@dataclass(frozen=True)
class Fact:
    """A key and its code.

    Example:
        >>> Fact("amber anchor", "417", False).text, Fact("铜·船", "052", True).asked
        ('amber anchor=417.', '铜·船=')
    """

    key: str
    value: str
    chinese: bool

    @property
    def asked(self) -> str:
        """The fact up to its code."""
        return f"{self.key}="

    @property
    def text(self) -> str:
        """The line."""
        return self.asked + self.value + ("。" if self.chinese else ".")


@cache
def keys(split: str, chinese: bool) -> tuple[str, ...]:
    """The keys of a split: eight, one and one tenth of all for train, valid and test."""
    named = (first + ("·" if chinese else " ") + second for first in _FIRST[chinese] for second in _SECOND[chinese])
    return tuple(key for key in named if _split_of(key) == split)


def _split_of(key: str) -> str:
    return ("test", "valid", *["train"] * 8)[derive_seed("needle key", key) % 10]


def facts(dice: Random, count: int, chinese: bool, split: str) -> list[Fact]:
    """`count` facts with different keys of the split (all its keys, if there are fewer)."""
    there = keys(split, chinese)
    return [
        Fact(key, "".join(dice.choices("0123456789", k=DIGITS)), chinese)
        for key in dice.sample(there, min(count, len(there)))
    ]


def hay(dice: Random, chinese: bool, split: str) -> str:
    """One line of the general web, without a fact in it."""
    while True:
        page = general_page(dice, chinese, split)
        lines = [line for line in page[0].split("\n") if line and "=" not in line]
        if lines and "template" not in page[3]:
            return dice.choice(lines)


def note(dice: Random, lines: int, chinese: bool, split: str = "train") -> str:
    """A note of at most `lines` lines, more often a short one; every fact in it may be repeated at any distance."""
    size = dice.random()
    lines = max(lines, _LEAST_LINES)
    if size < 0.7:
        count = dice.randint(1, 3)
        share, length = 0.0, 3 * count + 1
    elif size < 0.88:
        count = dice.randint(2, 6)
        share, length = dice.choice((0.0, 0.3, 0.6)), dice.randint(2 * count, 4 * count)
    else:
        count = dice.randint(4, max(5, lines // 4))
        share, length = dice.choice((0.3, 0.5, 0.7)), lines
    return _written(dice, facts(dice, count, chinese, split), length, share, chinese, split)


def long_note(dice: Random, lines: int, chinese: bool, split: str = "train") -> str:
    """A note of exactly `lines` lines, half of them about other things."""
    told = facts(dice, max(4, lines // 8), chinese, split)
    return _written(dice, told, lines, 0.5, chinese, split)


def _written(dice: Random, untold: list[Fact], lines: int, hay_share: float, chinese: bool, split: str) -> str:
    """Facts are told twice as fast as even spacing would, so that later lines have something to repeat."""
    told: list[Fact] = []
    said = []
    for done in range(lines):
        if dice.random() < hay_share:
            said.append(hay(dice, chinese, split))
            continue
        if untold and (not told or dice.random() < 2 * len(untold) / (lines - done)):
            told.append(untold.pop())
            said.append(told[-1].text)
        else:
            said.append(dice.choice(told).text)
    return "\n".join(said)


def notes(seed: int, lines: int, chinese: float = 0.3, split: str = "train", long: bool = False) -> Iterator[str]:
    """Endless notes; note i depends on the arguments and i alone.

    Args:
        lines: of the longest.
        chinese: share of Chinese ones.
        long: only notes of exactly `lines` lines.
    """
    write = long_note if long else note
    index = 0
    while True:
        dice = Random(derive_seed("note", split, seed, index))
        yield write(dice, lines, dice.random() < chinese, split)
        index += 1
