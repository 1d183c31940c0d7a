"""Talk that is answered from what was said before: dialogues of several turns, and stories with a question."""

from __future__ import annotations

from random import Random

from dunwu.world.families.facts import and_other
from dunwu.world.families.wording import other_value, shown, thought
from dunwu.world.general_items import Item, make, split_of_key, turns
from dunwu.world.lexicon import KINDS, LISTED, PEOPLE, PLACES, SIZES, THINGS, article, counted, word

# ---- dialogue

_TELL = {
    "name": ("My name is {}.", "我叫{}。"),
    "colour": ("I like {}.", "我喜欢{}色。"),
    "animal": ("I have {}.", "我有{}。"),
    "city": ("I live in {}.", "我住在{}。"),
}
_RECALL = {
    "name": (("What is my name?", "Who am I?"), ("我叫什么？", "我是谁？")),
    "colour": (("Which colour do I like?", "What colour did I tell you?"), ("我喜欢什么颜色？", "我说过什么颜色？")),
    "animal": (("Which animal do I have?", "What is my pet?"), ("我有什么动物？", "我的宠物是什么？")),
    "city": (("Where do I live?", "Which city do I live in?"), ("我住在哪里？", "我住在哪个城市？")),
}
_RECALLED = {
    "name": ("Your name is {}.", "你叫{}。"),
    "colour": ("You like {}.", "你喜欢{}色。"),
    "animal": ("You have {}.", "你有{}。"),
    "city": ("You live in {}.", "你住在{}。"),
}
_NODS = (("I see.", "Good to know.", "Nice."), ("我知道了。", "好的。", "很好。"))


def dialogue(dice: Random, split: str, chinese: bool) -> Item:
    """A second or third turn whose answer depends on the earlier ones."""
    style = dice.random()
    if style < 0.2:
        return and_other(dice, split, chinese)
    if style < 0.35:
        return _another(dice, split, chinese)
    return _recall(dice, split, chinese)


def _recall(dice: Random, split: str, chinese: bool) -> Item:
    """Something the user told, perhaps changed since."""
    while True:
        topics = dice.sample(tuple(_TELL), 2)
        values = {topic: dice.choice(tuple(KINDS["person" if topic == "name" else topic])) for topic in topics}
        changed = dice.random() < 0.25 and topics[0] != "name"
        final = dict(values)
        if changed:
            final[topics[0]] = other_value(dice, topics[0], values[topics[0]])
        key = f"dialogue {sorted(values.items())} {sorted(final.items())}"
        if split_of_key(key) == split:
            break
    tell = [_TELL[topic][chinese].format(_told(topic, values[topic], chinese)) for topic in topics]
    nods = _NODS[chinese]
    gap = "" if chinese else " "
    texts = (
        [gap.join(tell), dice.choice(nods)] if dice.random() < 0.5 else [tell[0], dice.choice(nods), tell[1], nods[0]]
    )
    asked = dice.choice(topics)
    if changed:
        now = _TELL[asked := topics[0]][chinese].format(_told(asked, final[asked], chinese))
        texts = [tell[0], dice.choice(nods), ("现在" + now) if chinese else "Now " + now, nods[0]]
    kind = "person" if asked == "name" else asked
    value = final[asked]
    other = other_value(dice, kind, value)
    said = {v: _RECALLED[asked][v == "zh"].format(_told(asked, value, v == "zh")) for v in ("en", "zh")}
    replies = {
        "best": said["zh" if chinese else "en"],
        "plain": word(kind, value, chinese),
        "wrong": _RECALLED[asked][chinese].format(_told(asked, other, chinese)),
        "bare_wrong": word(kind, other, chinese),
        "wrong_language": said["en" if chinese else "zh"],
        "thought": thought("dialogue", chinese),
    }
    messages = turns(*texts, dice.choice(_RECALL[asked][chinese]))
    return make("dialogue", chinese, key, messages, [{"kind": kind, "is": [value]}], replies)


def _told(topic: str, value: str, chinese: bool) -> str:
    """A told value inside its sentence."""
    if topic == "name":
        return shown(value, chinese)
    if topic == "animal":
        return counted(value, KINDS["animal"][value]) if chinese else article(value)
    return word(topic, value, chinese)


def _another(dice: Random, split: str, chinese: bool) -> Item:
    """One more of a kind, and not the same again."""
    while True:
        kind = dice.choice(tuple(LISTED))
        first, second = dice.sample(tuple(KINDS[kind]), 2)
        key = f"dialogue another {kind} {first}"
        if split_of_key(key) == split:
            break
    one, two = word(kind, first, chinese), word(kind, second, chinese)
    messages = turns(
        f"说出1种{LISTED[kind][1]}。" if chinese else f"Name 1 {kind}.",
        f"有{one}。" if chinese else f"One is {one}.",
        dice.choice(("再说一种。", "还有呢？") if chinese else ("Name another one.", "And one more?")),
    )
    replies = {
        "best": f"还有{two}。" if chinese else f"Another one is {two}.",
        "plain": two,
        "wrong": f"还有{one}。" if chinese else f"Another one is {one}.",
        "bare_wrong": one,
        "wrong_language": f"Another one is {second}." if chinese else f"还有{word(kind, second, True)}。",
        "thought": thought("dialogue", chinese),
    }
    checks = [{"kind": kind, "list": True, "not": [first]}]
    return make("dialogue", chinese, key, messages, checks, replies)


# ---- stories

_STORY_ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "summary": (
        ("Summarise this story in one sentence: {}", "Tell this story in one sentence: {}"),
        ("用一句话总结：{}", "用一句话说这个故事：{}"),
    ),
    "who": (("{} Who found the {}?", "{} Tell me who found the {}."), ("{}谁发现了{}？", "{}告诉我谁发现了{}。")),
    "where": (("{} Where did {} go?", "{} Tell me where {} went."), ("{}{}去了哪里？", "{}告诉我{}去了哪里。")),
    "to": (("{} Who got the {}?", "{} Who has the {} now?"), ("{}谁得到了{}？", "{}现在谁有{}？")),
}


def stories(dice: Random, split: str, chinese: bool) -> Item:
    """A story and a question about it, or a summary of it."""
    names = tuple(PEOPLE)
    while True:
        who, other, third = dice.sample(names, 3)
        place, thing, size = dice.choice(tuple(PLACES)), dice.choice(tuple(THINGS)), dice.choice(tuple(SIZES))
        key = f"stories {who} {place} {thing} {other}"
        if split_of_key(key) == split:
            break
    about = dice.choice(("summary", "summary", "who", "where", "to"))
    told = story(who, place, thing, size, other, chinese)
    subject = {"summary": "", "where": shown(who, chinese)}.get(about, word("thing", thing, chinese))
    asked = dice.choice(_STORY_ASKED[about][chinese]).format(told, subject)
    elsewhere, otherwise = other_value(dice, "place", place), other_value(dice, "thing", thing)
    right = (who, place, thing, size, other)
    wrong = (
        third if about == "who" else who,
        elsewhere,
        otherwise if about == "summary" else thing,
        size,
        other if about == "who" else third,
    )
    replies = {
        "best": _story_answer(about, *right, chinese),
        "plain": _bare_story_answer(about, *right, chinese),
        "wrong": _story_answer(about, *wrong, chinese),
        "bare_wrong": _bare_story_answer(about, *wrong, chinese),
        "wrong_language": _story_answer(about, *right, not chinese),
        "thought": thought("stories", chinese),
    }
    checks = {
        "summary": [{"kind": "person", "is": [who, other]}, {"kind": "thing", "is": [thing]}],
        "who": [{"kind": "person", "is": [who]}],
        "to": [{"kind": "person", "is": [other]}],
        "where": [{"kind": "place", "is": [place]}, {"kind": "person", "within": [who]}],
    }[about]
    constraints = {"sentences": 1} if about == "summary" else {}
    if about == "summary":
        replies["ignores_constraint"] = told
    return make("stories", chinese, key, turns(asked), checks, replies, constraints=constraints)


def story(who: str, place: str, thing: str, size: str, other: str, chinese: bool) -> str:
    """Three short sentences.

    Example:
        >>> story("Ada", "park", "key", "small", "Ben", False)
        'Ada went to the park. Ada found a small key. Ada gave the key to Ben.'
    """
    if chinese:
        a, b, found = shown(who, True), shown(other, True), counted(thing, THINGS[thing], SIZES[size])
        return f"{a}去了{PLACES[place]}。{a}发现了{found}。{a}把{THINGS[thing]}给了{b}。"
    return f"{who} went to the {place}. {who} found {article(size + ' ' + thing)}. {who} gave the {thing} to {other}."


def summary(who: str, thing: str, size: str, other: str, chinese: bool) -> str:
    """The story in one sentence."""
    if chinese:
        return f"{shown(who, True)}发现了{counted(thing, THINGS[thing], SIZES[size])}，给了{shown(other, True)}。"
    return f"{who} found {article(size + ' ' + thing)} and gave it to {other}."


def _story_answer(about: str, who: str, place: str, thing: str, size: str, other: str, chinese: bool) -> str:
    """The full sentence that answers a question about a story."""
    a, b, c = shown(who, chinese), shown(other, chinese), word("thing", thing, chinese)
    if about == "summary":
        return summary(who, thing, size, other, chinese)
    if about == "who":
        return f"{a}发现了{c}。" if chinese else f"{a} found the {c}."
    if about == "to":
        return f"{b}得到了{c}。" if chinese else f"{b} got the {c}."
    return f"{a}去了{PLACES[place]}。" if chinese else f"{a} went to the {place}."


def _bare_story_answer(about: str, who: str, place: str, thing: str, size: str, other: str, chinese: bool) -> str:
    """The same without a sentence around it."""
    if about == "summary":
        return summary(who, thing, size, other, chinese)[:-1]
    return word("place", place, chinese) if about == "where" else shown(who if about == "who" else other, chinese)
