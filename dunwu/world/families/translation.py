"""Translation of phrases and sentences, in both directions."""

from __future__ import annotations

from random import Random

from dunwu.world.families.wording import other_value, thought
from dunwu.world.general_items import Item, make, split_of_key, turns
from dunwu.world.lexicon import COLOURS, KINDS, SIZES, article, counted

_PATTERNS: tuple[tuple[str, str], ...] = (
    ("{0}", "{0}"),
    ("I have {0}.", "我有{0}。"),
    ("I see {0}.", "我看见{0}。"),
    ("I want {0}.", "我要{0}。"),
    ("The {1} is {2}.", "{1}是{2}的。"),
)
_TRANSLATE = (
    ("Translate into Chinese: {}", "Say this in Chinese: {}"),
    ("翻译成英文：{}", "用英文说：{}"),
)
_NOUN_KINDS = ("fruit", "animal", "thing")


def translation(dice: Random, split: str, chinese: bool) -> Item:
    """A phrase or sentence into the other language."""
    kind, noun, adjective, pattern = draw_phrase(dice, split)
    pair = phrase(kind, noun, adjective, pattern)
    source, target = pair[chinese], pair[not chinese]
    missed = phrase(kind, other_value(dice, kind, noun), adjective, pattern)[not chinese]
    stop = "." if chinese else "。"
    lead = "In English: " if chinese else "中文："
    replies = {
        "best": lead + target.rstrip(stop) + stop,
        "plain": target.rstrip(stop),
        "wrong": lead + missed.rstrip(stop) + stop,
        "bare_wrong": missed.rstrip(stop),
        "wrong_language": ("中文：" if chinese else "In English: ") + source.rstrip("。.") + ("。" if chinese else "."),
        "thought": thought("translation", chinese),
    }
    asked = dice.choice(_TRANSLATE[chinese]).format(source)
    key = f"translation {noun} {adjective} {pattern}"
    return make("translation", chinese, key, turns(asked), [{"text": target}], replies, reply_chinese=not chinese)


def phrase(kind: str, noun: str, adjective: str, pattern: int) -> tuple[str, str]:
    """The same phrase or sentence in English and Chinese.

    Example:
        >>> phrase("fruit", "apple", "red", 1)
        ('I have a red apple.', '我有一个红苹果。')
    """
    shown_adjective = COLOURS.get(adjective) or SIZES[adjective]
    zh_noun = KINDS[kind][noun]
    english, chinese = _PATTERNS[pattern]
    described = counted(noun, zh_noun, shown_adjective)
    as_said = shown_adjective + ("色" if adjective in COLOURS else "")
    return (
        english.format(article(f"{adjective} {noun}"), noun, adjective),
        chinese.format(described, zh_noun, as_said),
    )


def draw_phrase(dice: Random, split: str) -> tuple[str, str, str, int]:
    """(kind, noun, adjective, pattern) of a split; both directions of a phrase belong to one split."""
    adjectives = (*COLOURS, *SIZES)
    while True:
        kind = dice.choice(_NOUN_KINDS)
        noun, adjective = dice.choice(tuple(KINDS[kind])), dice.choice(adjectives)
        pattern = dice.randrange(len(_PATTERNS))
        if split_of_key(f"translation {noun} {adjective} {pattern}") == split:
            return kind, noun, adjective, pattern
