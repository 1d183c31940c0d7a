"""Notes with codes to be found again: what a small model learns retrieval from, and is asked in a long context.

A fact is a line such as `amber anchor=melon tiger.`; a note states facts, says other things, and repeats facts. Whoever
predicts a repeated one has to find it: the code is drawn anew for every note, so no weight can know it (multi-query
associative recall: Arora et al. 2023, "Zoology", section 3). What lets a model of a million parameters learn it in minutes
was found by trial (docs/log.md, 2026-11-21): short notes of one to three facts beside long ones, codes that follow their key
at once, and words in them rather than digits.

The key of a fact belongs to one split by its hash: no training note has a key that is later asked for. Words are chosen so
that keys and codes are cut into the same tokens whatever their neighbours: Chinese ones stand behind a sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from random import Random

from dunwu.types import derive_seed
from dunwu.world.general_pages import general_page

_FIRST = (
    tuple("amber brave calm dark early flat golden happy iron little metal noble plain quick silent warm".split()),
    tuple("金银铜铁木石竹玉冰火云雾霜雷沙丝"),
)
_SECOND = (
    tuple(
        "anchor basket candle dragon engine feather garden hammer island jacket kettle ladder mirror needle pillow window".split()
    ),
    tuple("船灯伞琴剑钟镜箱桥塔井墙窗桌椅床"),
)
_CODES = (
    tuple(
        "acorn badge cabin daisy eagle fiddle ginger helmet ivory jungle lizard melon olive parrot quartz tiger".split()
    ),
    tuple("虎鹿鹤龟蛇鹰狼熊兔鼠猴象松柏梅兰"),
)
CODE_WORDS = 2
"""Words of a code, of 16 each: a blind guess is right once in 256."""
_LEAST_LINES = 8
"""Lines of the shortest long note."""


@dataclass(frozen=True)
class Fact:
    """A key and its code, which begins with the equals sign.

    Example:
        >>> Fact("amber anchor", "=melon tiger", False).text, Fact("铜·船", "=梅·虎", True).text
        ('amber anchor=melon tiger.', '铜·船=梅·虎。')
    """

    key: str
    code: str
    chinese: bool

    @property
    def text(self) -> str:
        """The line."""
        return self.key + self.code + ("。" if self.chinese else ".")


@cache
def keys(split: str, chinese: bool) -> dict[str, tuple[str, ...]]:
    """Second word → the keys of a split that end with it; eight, one and one tenth of all for train, valid and test."""
    gap = "·" if chinese else " "
    named = {second: [first + gap + second for first in _FIRST[chinese]] for second in _SECOND[chinese]}
    mine = {second: tuple(key for key in there if _split_of(key) == split) for second, there in named.items()}
    return {second: there for second, there in mine.items() if there}


def _split_of(key: str) -> str:
    return ("test", "valid", *["train"] * 8)[derive_seed("needle key", key) % 10]


def facts(dice: Random, count: int, chinese: bool, split: str) -> list[Fact]:
    """`count` facts of the split, as many as there are if there are fewer: no two keys end, no two codes begin alike."""
    there = keys(split, chinese)
    gap = "·" if chinese else " "
    ends = dice.sample(sorted(there), min(count, len(there)))
    begins = dice.sample(_CODES[chinese], len(ends))
    found = []
    for end, begin in zip(ends, begins):
        rest = dice.choices(_CODES[chinese], k=CODE_WORDS - 1)
        found.append(Fact(dice.choice(there[end]), "=" + gap.join([begin, *rest]), chinese))
    return found


def hay(dice: Random, chinese: bool, split: str) -> str:
    """One line of the general web, without a fact in it."""
    while True:
        page = general_page(dice, chinese, split)
        lines = [line for line in page[0].split("\n") if line and "=" not in line]
        if lines and "template" not in page[3]:
            return dice.choice(lines)


def short_note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """One to three facts and nothing else, in ten lines at most; `lines` has no meaning."""
    told = dice.randint(1, 3)
    return _written(dice, facts(dice, told, chinese, split), 3 * told + 1, 0.0, chinese, split)


def note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """A note of up to `lines` lines, more often a short one."""
    lines, size = max(lines, _LEAST_LINES), dice.random()
    if size < 0.5:
        return short_note(dice, lines, chinese, split)
    if size < 0.8:
        told = dice.randint(2, 6)
        share, length = dice.choice((0.0, 0.3, 0.6)), dice.randint(2 * told, 4 * told)
    else:
        told = dice.randint(4, max(5, lines // 4))
        share, length = dice.choice((0.3, 0.5, 0.7)), lines
    return _written(dice, facts(dice, told, chinese, split), length, share, chinese, split)


def long_note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """A note of exactly `lines` lines, half of them about other things."""
    return _written(dice, facts(dice, max(4, lines // 8), chinese, split), lines, 0.5, chinese, split)


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


WRITERS: dict[str, Callable[[Random, int, bool, str], str]] = {"short": short_note, "mixed": note, "long": long_note}
"""Kinds of notes; a writer takes dice, the lines of the longest, whether in Chinese, and the split."""


def notes(seed: int, lines: int, chinese: float = 0.3, split: str = "train", kind: str = "mixed") -> Iterator[str]:
    """Endless notes; note i depends on the arguments and i alone.

    Args:
        lines: of the longest.
        chinese: share of Chinese ones.
        kind: from `WRITERS`.
    """
    for index in count():
        dice = Random(derive_seed("note", kind, split, seed, index))
        yield WRITERS[kind](dice, lines, dice.random() < chinese, split)
