"""Facts about people and cities: asked outright, in one word, or again of somebody else.

They are held out by person and city: test asks about people that train never asks about, and whose biographies the web
has all the same.
"""

from __future__ import annotations

from random import Random
from typing import Any

from dunwu.world.families.wording import other_value, shown, thought
from dunwu.world.general_items import Item, make, turns
from dunwu.world.lexicon import BUILT, CITIES_OF, KINDS, PEOPLE, PEOPLE_OF, article, word

_ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "city": (
        ("Where was {} born?", "Which city does {} come from?", "Tell me where {} was born."),
        ("{}出生在哪里？", "{}是哪里人？", "请告诉我{}出生在哪里。"),
    ),
    "year": (
        ("When was {} born?", "In which year was {} born?", "Tell me when {} was born."),
        ("{}是哪年出生的？", "{}出生在哪一年？", "请告诉我{}哪年出生。"),
    ),
    "job": (
        ("What is the job of {}?", "What does {} work as?", "Tell me the job of {}."),
        ("{}是做什么的？", "{}的职业是什么？", "请告诉我{}的职业。"),
    ),
    "known": (
        ("What is {} known for?", "What comes from {}?", "Tell me what {} is known for."),
        ("{}有什么有名？", "{}出产什么？", "请告诉我{}有什么有名。"),
    ),
    "built": (
        ("When was {} built?", "In which year was {} built?", "Tell me when {} was built."),
        ("{}是哪年建的？", "{}建于哪一年？", "请告诉我{}哪年建的。"),
    ),
}
_STATED = {
    "city": ("{} was born in {}.", "{}出生在{}。"),
    "year": ("{} was born in {}.", "{}是{}年出生的。"),
    "job": ("{} is {}.", "{}是{}。"),
    "known": ("{} is known for {}.", "{}的{}很有名。"),
    "built": ("{} was built in {}.", "{}建于{}年。"),
}
_ONE_WORD = ("Answer in one word.", "只用一个词回答。")
PERSONAL = ("city", "year", "job")
"""What a person's facts are about."""


def facts(dice: Random, split: str, chinese: bool) -> Item:
    """A question about one attribute of a person or a city."""
    name, attribute = _subject(dice, split)
    asked = dice.choice(_ASKED[attribute][chinese]).format(shown(name, chinese))
    replies = _fact_replies(dice, name, attribute, chinese)
    checks = _fact_checks(name, attribute)
    return make("facts", chinese, f"facts {name}", turns(asked), checks, replies)


def in_one_word(dice: Random, split: str, chinese: bool) -> Item:
    """A fact asked for in one word; of the family of instructions."""
    item = facts(dice, split, chinese)
    replies = dict(item.data["replies"])
    stop = "。" if chinese else "."
    bare = replies["plain"]
    replies |= {"best": bare[0].upper() + bare[1:] + stop, "ignores_constraint": replies["best"]}
    wrong = _other_bare(dice, item.data["checks"][0], chinese)
    replies |= {"wrong": wrong[0].upper() + wrong[1:] + stop, "bare_wrong": wrong}
    text = item.messages[0].content + ("" if chinese else " ") + _ONE_WORD[chinese]
    return make("instructions", chinese, item.key, turns(text), item.data["checks"], replies, constraints={"words": 1})


def and_other(dice: Random, split: str, chinese: bool) -> Item:
    """The same question about somebody else: "And Ben?"; of the family of dialogues."""
    (first, second), attribute = dice.sample(PEOPLE_OF[split], 2), dice.choice(PERSONAL)
    messages = turns(
        dice.choice(_ASKED[attribute][chinese]).format(shown(first, chinese)),
        state(first, attribute, fact(first, attribute), chinese),
        f"那{shown(second, True)}呢？" if chinese else f"And {second}?",
    )
    checks = _fact_checks(second, attribute)
    replies = _fact_replies(dice, second, attribute, chinese)
    return make("dialogue", chinese, f"facts {second}", messages, checks, replies)


def kind_of(attribute: str, name: str) -> str:
    """The kind of word an attribute's value is."""
    if attribute == "known":
        return "fruit" if BUILT[name].known in KINDS["fruit"] else "drink"
    return "year" if attribute == "built" else attribute


def fact(name: str, attribute: str) -> str:
    """The value of a person's or city's attribute, in English."""
    if attribute in PERSONAL:
        return str(getattr(PEOPLE[name], attribute))
    return BUILT[name].known if attribute == "known" else str(BUILT[name].year)


def spoken(attribute: str, name: str, value: str, chinese: bool) -> str:
    """A value as a reply says it: 'a teacher', 'pears', '1960'."""
    if kind_of(attribute, name) == "year":
        return value
    if chinese:
        return word(kind_of(attribute, name), value, True)
    if attribute == "job":
        return article(value)
    if attribute == "known":
        return _plural(value) if value in KINDS["fruit"] else value
    return value


def state(name: str, attribute: str, value: str, chinese: bool) -> str:
    """One sentence that states a fact (or an untruth, if `value` is not the fact).

    Example:
        >>> state("Ada", "job", "cook", False)
        'Ada is a cook.'
    """
    return _STATED[attribute][chinese].format(shown(name, chinese), spoken(attribute, name, value, chinese))


def _subject(dice: Random, split: str) -> tuple[str, str]:
    if dice.random() < 0.85:
        return dice.choice(PEOPLE_OF[split]), dice.choice(PERSONAL)
    return dice.choice(CITIES_OF[split]), dice.choice(("known", "built"))


def _fact_replies(dice: Random, name: str, attribute: str, chinese: bool) -> dict[str, str]:
    value = fact(name, attribute)
    wrong = other_value(dice, kind_of(attribute, name), value)
    return {
        "best": state(name, attribute, value, chinese),
        "plain": _bare(attribute, name, value, chinese),
        "wrong": state(name, attribute, wrong, chinese),
        "bare_wrong": _bare(attribute, name, wrong, chinese),
        "wrong_language": state(name, attribute, value, not chinese),
        "thought": thought("facts", chinese, shown(name, chinese)),
    }


def _fact_checks(name: str, attribute: str) -> list[dict[str, Any]]:
    """The value and no other of its kind, said of this person or city and no other."""
    whose = "person" if name in PEOPLE else "city"
    return [{"kind": kind_of(attribute, name), "is": [fact(name, attribute)]}, {"kind": whose, "within": [name]}]


def _bare(attribute: str, name: str, value: str, chinese: bool) -> str:
    return spoken(attribute, name, value, chinese).removeprefix("a ").removeprefix("an ")


def _other_bare(dice: Random, check: dict[str, Any], chinese: bool) -> str:
    """The bare word of another value of a fact's kind."""
    other = other_value(dice, check["kind"], check["is"][0])
    return other if check["kind"] == "year" else word(check["kind"], other, chinese)


def _plural(english: str) -> str:
    return english + ("es" if english.endswith("ch") else "" if english == "sheep" else "s")
