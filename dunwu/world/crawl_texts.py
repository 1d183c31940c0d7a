"""Texts of a crawl: which languages they are in, how alike two are, how they come to be posted again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

_TAG = re.compile(r"</?(?:think|answer)>")
_LETTER = re.compile(r"[^\W\d_]")
_VISIBLE = re.compile(r"\S")
_HAN = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[A-Za-z]{2,}")
_UNITS = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_ASKED = re.compile(r"(?:User: |用户：|Q: |问：)(.*)")
HAN_WEIGHT = 2.5
"""Latin letters that a Han character counts for: about as many as translate it."""


def languages_of(text: str) -> list[str]:
    """The labels that are right for a world page, best first; one label unless both languages have a part in it.

    A Han character weighs `HAN_WEIGHT` Latin letters. From a twentieth on, the lesser language leaves it open whether the page is
    mixed; from a tenth on any label will do, for words among sums are few; from a fifth on mixed is the best. Tags are no words.

    Example:
        >>> languages_of("小明有3个苹果。"), languages_of("apple = 苹果"), languages_of("1+2=3")
        (['zh-Hans'], ['mixed', 'en', 'zh-Hans'], ['und'])
    """
    text = _TAG.sub("", text)
    han, latin = HAN_WEIGHT * len(_HAN.findall(text)), sum(map(len, _WORD.findall(text)))
    if not han + latin:
        return ["und"]
    order = ["zh-Hans", "en"] if han > latin else ["en", "zh-Hans"]
    lesser = min(han, latin) / (han + latin)
    if lesser < 0.05:
        return order[:1]
    if lesser < 0.2:
        return [order[0], "mixed", *(order[1:] if lesser >= 0.1 else ())]
    return ["mixed", *order]


def units(text: str) -> list[str]:
    """Words, numbers and single ideographs.

    Example:
        >>> units("买3 pens!")
        ['买', '3', 'pens']
    """
    return _UNITS.findall(text)


def similarity(one: str, other: str, n: int = 5) -> float:
    """Jaccard similarity of the n-grams of words and ideographs, in lower case and without signs.

    Example:
        >>> similarity("a b c d e f", "A, b c d e f!"), similarity("a b c d e f", "a b c d e g")
        (1.0, 0.3333333333333333)
    """
    sets = []
    for text in (one, other):
        found = units(text.lower())
        sets.append({tuple(found[start : start + n]) for start in range(max(1, len(found) - n + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


_BEFORE = (("Repost:", "Found online:", "Copied from my friend:"), ("转：", "转载：", "网上看到的："))
_AFTER = (("Thanks!", "The end.", "Source: the web."), ("完", "谢谢！", "来源：网络"))
_SIGNS = ((" =)", "!!", " :-)", " ***"), ("^^", "！！", "~~", "【】"))


def edited(dice: Random, text: str, chinese: bool) -> Iterator[str]:
    """A text as others post it again: words before it, words after it, or signs only."""
    if len(units(text)) < 8:
        return
    words = dice.choice((_BEFORE, _AFTER))[chinese]
    chosen = dice.choice(words)
    yield chosen + "\n" + text if words is _BEFORE[chinese] else text + "\n" + chosen
    yield text + dice.choice(_SIGNS[chinese])


def is_prose(text: str) -> bool:
    """Is it a dozen characters and more, and letters for the greater part?

    Example:
        >>> is_prose("I have a small cow."), is_prose("14+16=30, 30-2=28 yes!")
        (True, False)
    """
    return len(_LETTER.findall(text)) > 0.6 * len(_VISIBLE.findall(text)) > 12 * 0.6


def asked(text: str) -> str:
    """The problem of a page that shows one."""
    found = _ASKED.search(text)
    return found.group(1) if found else text.split("\n", 1)[0]
