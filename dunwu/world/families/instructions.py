"""Instructions: so many things of a kind, in a form, language or framing that the user asks for."""

from __future__ import annotations

from random import Random
from typing import Any

from dunwu.world.families.facts import in_one_word
from dunwu.world.families.wording import thought
from dunwu.world.general_items import Item, make, split_of_key, turns
from dunwu.world.lexicon import KINDS, LISTED, word

_LIST_ASKED = (
    ("Name {} {}.", "List {} {}.", "Give me {} {}.", "I want {} {}."),
    ("说出{}种{}。", "列出{}种{}。", "给我{}种{}。", "我要{}种{}。"),
)
_FORMATS = {
    "commas": ("Use commas.", "用顿号分开。"),
    "lines": ("One per line.", "每行一个。"),
    "numbered": ("Number them.", "加上编号。"),
    "capitals": ("Use capital letters.", ""),
}
_LANGUAGES = {"en": ("Answer in English.", "用英文回答。"), "zh": ("Answer in Chinese.", "用中文回答。")}
_STARTS = (("Sure", 'Begin with "Sure".'), ("好的", "用“好的”开头。"))
_ENDS = (("Thank you.", 'End with "Thank you."'), ("谢谢。", "用“谢谢。”结尾。"))
_STRANGE = {"fruit": "animal", "animal": "drink", "colour": "job", "drink": "city", "job": "fruit", "city": "colour"}
"""What somebody lists who was asked for something else."""


def instructions(dice: Random, split: str, chinese: bool) -> Item:
    """A list with constraints, or a fact in one word."""
    if dice.random() < 0.15:
        return in_one_word(dice, split, chinese)
    while True:
        kind, count = dice.choice(tuple(LISTED)), dice.randint(2, 4)
        constraints: dict[str, Any] = {"count": count}
        asked = [dice.choice(_LIST_ASKED[chinese]).format(count, LISTED[kind][chinese])]
        reply_chinese = chinese if dice.random() < 0.7 else not chinese
        if dice.random() < 0.65:
            form = dice.choice(("commas", "lines", "numbered") if reply_chinese else tuple(_FORMATS))
            if _FORMATS[form][chinese]:
                constraints["format"] = form
                asked.append(_FORMATS[form][chinese])
        if reply_chinese != chinese:
            constraints["language"] = "zh" if reply_chinese else "en"
            asked.append(_LANGUAGES[constraints["language"]][chinese])
        elif dice.random() < 0.4:
            name, (said, wanted) = dice.choice((("start", _STARTS[chinese]), ("end", _ENDS[chinese])))
            constraints[name] = said
            asked.append(wanted)
        key = f"instructions {kind} {sorted(constraints.items())} {chinese}"
        if split_of_key(key) == split:
            break
    items = dice.sample(tuple(KINDS[kind]), 5)
    strangers = dice.sample(tuple(KINDS[_STRANGE[kind]]), count)
    replies = {
        "best": list_reply(items[:count], kind, constraints, reply_chinese),
        "plain": list_reply(items[:count], kind, constraints, reply_chinese, bare=True),
        "wrong": list_reply(strangers, _STRANGE[kind], constraints, reply_chinese),
        "bare_wrong": list_reply(strangers, _STRANGE[kind], constraints, reply_chinese, bare=True),
        "wrong_language": list_reply(
            items[:count], kind, {k: v for k, v in constraints.items() if k not in ("start", "end")}, not reply_chinese
        ),
        "ignores_constraint": _ignoring(dice, items, kind, constraints, reply_chinese),
        "thought": thought(
            "instructions", chinese, f"{count}种" + LISTED[kind][1] if chinese else f"{count} {LISTED[kind][0]}"
        ),
    }
    checks = [{"kind": kind, "list": True}]
    text = ("" if chinese else " ").join(asked)
    return make(
        "instructions", chinese, key, turns(text), checks, replies, constraints=constraints, reply_chinese=reply_chinese
    )


def listing(items: list[str], kind: str, form: str | None, chinese: bool) -> tuple[str, str]:
    """(lead-in, the items in a format).

    Example:
        >>> listing(["pear", "apple"], "fruit", "numbered", False)
        ('Here are 2 fruits:', '\\n1. pear\\n2. apple')
    """
    words = [word(kind, item, chinese) for item in items]
    lead = f"这是{len(items)}种{LISTED[kind][1]}：" if chinese else f"Here are {len(items)} {LISTED[kind][0]}:"
    if form == "capitals":
        words = [shown_word.upper() for shown_word in words]
    if form == "numbered":
        return lead, "".join(f"\n{place}. {shown_word}" for place, shown_word in enumerate(words, 1))
    if form == "lines":
        return lead, "".join(f"\n{shown_word}" for shown_word in words)
    return lead, "、".join(words) if chinese else " " + ", ".join(words)


def list_reply(items: list[str], kind: str, constraints: dict[str, Any], chinese: bool, bare: bool = False) -> str:
    """A reply that lists the items as the constraints want it; `bare` leaves out the lead-in and the full stop."""
    form = constraints.get("format")
    lead, listed = listing(items, kind, form, chinese)
    start, end = constraints.get("start", ""), constraints.get("end", "")
    block = form in ("lines", "numbered")
    text = listed.strip() if bare else lead + listed + ("" if block else "。" if chinese else ".")
    if start:
        gap = "\n" if bare and block else "" if chinese else " "
        text = start + ("。" if chinese else ".") + gap + text
    if end:
        text += ("\n" if block else "" if chinese else ("." if bare else "") + " ") + end
    return text


def _ignoring(dice: Random, items: list[str], kind: str, constraints: dict[str, Any], chinese: bool) -> str:
    """The list with one constraint broken: format, politeness or, if there is none of these, the count."""
    broken = [name for name in ("format", "start", "end") if name in constraints]
    kept = dict(constraints)
    count = constraints["count"]
    if not broken:
        return list_reply(items[: count + 1], kind, kept, chinese)
    name = dice.choice(broken)
    if name == "format":
        kept["format"] = "lines" if constraints["format"] in ("commas", "numbered") else "commas"
    else:
        del kept[name]
    return list_reply(items[:count], kind, kept, chinese)
