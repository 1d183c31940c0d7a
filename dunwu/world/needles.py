"""Notes with codes to be found again: what a small model learns retrieval from, and is asked in a long context.

A fact is a line such as `amber anchor=melon tiger.`; a note states facts, says other things, and repeats facts. Whoever
predicts a repeated one has to find it: the code is drawn anew for every note, so no weight can know it (multi-query
associative recall: Arora et al. 2023, "Zoology", section 3). What lets a model of a million parameters learn it in minutes
was found by trial (docs/log.md, 2026-11-21): a first lesson of bare pairs from few words in a context of 16 tokens, codes that
follow their key at once, words in them rather than digits; and, for distance, notes that tell everything at their beginning and
ask at their end.

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

_Words = tuple[tuple[str, ...], tuple[str, ...]]


def _words(english: str, ideographs: str) -> _Words:
    return tuple(english.split()), tuple(ideographs)


_FIRST = _words(
    "amber brave calm dark early flat golden happy iron little metal noble plain quick silent warm",
    "金银铜铁木石竹玉冰火云雾霜雷沙丝",
)
_SECOND = _words(
    "anchor basket candle dragon engine feather garden hammer island jacket kettle ladder mirror needle pillow window",
    "船灯伞琴剑钟镜箱桥塔井墙窗桌椅床",
)
_CODES = _words(
    "acorn badge cabin daisy eagle fiddle ginger helmet ivory jungle lizard melon olive parrot quartz tiger",
    "虎鹿鹤龟蛇鹰狼熊兔鼠猴象松柏梅兰",
)
CODE_WORDS = 2
"""Words of a code, of 16 each: a blind guess is right once in 256."""
PAIRS = 8
"""Pairs of the same few keys in the first two lessons."""
_LEAST_LINES = 8
"""Lines of the shortest long note."""
_RECENT = 4
"""Facts of a long note that may be repeated."""


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


def english_pairs(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """The first lesson: `pairs` in English, whatever `chinese` says, for few words are learned first."""
    return pairs(dice, lines, False, split)


def pairs(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """The second lesson: two or three keys, each with a code of one word, over and over.

    ` anchor=melon needle=acorn anchor=melon` or `·船=梅·灯=鹤·船=梅`; after `PAIRS` pairs, 16 tokens, come other keys, `lines` times in
    all. Half of the tokens can only be found, so finding is learned within some hundred updates, in windows of 16 tokens that end
    where the keys change; what comes later takes it over to other texts and distances, but hardly to other words.
    """
    gap, said = "·" if chinese else " ", []
    for _ in range(lines):
        ends = dice.sample(_SECOND[chinese], dice.randint(2, 3))
        codes = dict(zip(ends, dice.choices(_CODES[chinese], k=len(ends))))
        said += [f"{gap}{end}={codes[end]}" for end in [*ends, *dice.choices(ends, k=PAIRS - len(ends))]]
    return "".join(said)


def short_note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """The third lesson: one to three facts and nothing else, in ten lines at most; `lines` has no meaning."""
    told = dice.randint(1, 3)
    return _written(dice, facts(dice, told, chinese, split), 3 * told + 1, 0.0, chinese, split)


def note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """A note of up to `lines` lines, more often a short one; one in ten keeps its facts apart (`_apart`)."""
    lines, size = max(lines, _LEAST_LINES), dice.random()
    if size < 0.5:
        return short_note(dice, lines, chinese, split)
    if size < 0.9:
        middle = size < 0.75
        told = dice.randint(2, 6) if middle else dice.randint(4, max(5, lines // 4))
        length = dice.randint(2 * told, 4 * told) if middle else lines
        share = dice.choice((0.0, 0.3, 0.6) if middle else (0.3, 0.5, 0.7))
        return _written(dice, facts(dice, told, chinese, split), length, share, chinese, split)
    return _apart(dice, lines, chinese, split)


def _apart(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """Facts, then only other things, then the facts in another order: what is asked for was said once and long ago."""
    told = [fact.text for fact in facts(dice, dice.randint(3, max(4, lines // 5)), chinese, split)]
    between = [hay(dice, chinese, split) for _ in range(dice.randint(lines // 4, lines))]
    for fact in dice.sample(told, len(told) // 2):  # half of them stand among the other things
        told.remove(fact)
        between.insert(dice.randrange(len(between) + 1), fact)
    again = [line for line in [*told, *between] if "=" in line]
    return "\n".join([*told, *between, *dice.sample(again, len(again))])


def long_note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """A note of exactly `lines` lines that is everywhere alike, so that a loss by position has no trend of its own.

    Half the lines are about other things; of the rest a quarter tell a new fact, the others repeat one of the last
    `_RECENT`.
    """
    told: list[Fact] = []
    said = []
    for _ in range(lines):
        if dice.random() < 0.5:
            said.append(hay(dice, chinese, split))
            continue
        if not told or dice.random() < 0.25:
            told.append(_unlike(dice, told, chinese, split))
            said.append(told[-1].text)
        else:
            told = told[-_RECENT:]
            said.append(dice.choice(told).text)
    return "\n".join(said)


def far_note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """A note whose facts come again from afar; it goes on beyond `lines` lines, to be cut.

    Half of these notes tell all facts first, say other things for a while, and then ask for every fact. The others go in
    rounds: what is repeated is one of those that were silent longest.
    """
    untold = facts(dice, dice.randint(6, 16), chinese, split)
    if dice.random() < 0.5:
        told = [fact.text for fact in untold]
        between = [hay(dice, chinese, split) for _ in range(dice.randint(lines // 4, lines))]
        return "\n".join([*told, *between, *dice.sample(told, len(told)), *dice.choices(told, k=2 * lines)])
    silent: list[Fact] = []
    said, share = [], dice.choice((0.3, 0.5, 0.65))
    for _ in range(3 * lines):
        if dice.random() < share:
            said.append(hay(dice, chinese, split))
            continue
        new = untold and (not silent or dice.random() < 0.7)
        fact = untold.pop() if new else silent.pop(dice.randrange(max(1, len(silent) // 2)))
        silent.append(fact)
        said.append(fact.text)
    return "\n".join(said)


def longer_note(dice: Random, lines: int, chinese: bool, split: str) -> str:
    """What a context is extended on, to be cut: by turns of a coin facts from afar, or a text that is everywhere alike."""
    if dice.random() < 0.5:
        return far_note(dice, lines, chinese, split)
    return long_note(dice, 2 * lines, chinese, split)


def _unlike(dice: Random, told: list[Fact], chinese: bool, split: str) -> Fact:
    """A fact whose key is none of these."""
    taken = {fact.key for fact in told}
    while (drawn := facts(dice, 1, chinese, split)[0]).key in taken:
        pass
    return drawn


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


WRITERS: dict[str, Callable[[Random, int, bool, str], str]] = {
    "english-pairs": english_pairs,
    "pairs": pairs,
    "short": short_note,
    "mixed": note,
    "far": far_note,
    "longer": longer_note,
    "long": long_note,
}
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
