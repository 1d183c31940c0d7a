"""General pages of the web: biographies, phrasebooks, lists, stories, dialogues, forum answers, and the R1-Zero template.

Encyclopaedia pages tell the facts of all people and cities; every other page shows requests of its split only. Forum posts
and pages in the template are answered as people answer: bare, wrong, rude, in the wrong language, unsafely, as well as well.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from dunwu.tasks.frames import zero_prompt
from dunwu.world.families import FAMILIES
from dunwu.world.families.facts import PERSONAL, fact, spoken, state
from dunwu.world.families.instructions import listing
from dunwu.world.families.manners import RUDE_OPENINGS
from dunwu.world.families.translation import draw_phrase, phrase
from dunwu.world.families.wording import shown
from dunwu.world.general_items import Item
from dunwu.world.lexicon import BUILT, COLOURS, KINDS, LISTED, PEOPLE, article, counted

_NAMES, _CITIES = tuple(PEOPLE), tuple(BUILT)
_FORUM = {"best": 0.45, "plain": 0.25, "wrong": 0.12, "rude": 0.08, "wrong_language": 0.05, "ignores_constraint": 0.05}
"""Quality of forum answers; what a request does not have falls to "plain"."""
_TEMPLATE = {"best": 0.4, "plain": 0.35, "wrong": 0.12, "wrong_language": 0.05, "ignores_constraint": 0.08}
"""Quality of answers in the template."""
_COMPLY = 0.5
"""Share of the unsafe requests on the web that somebody complies with."""
_THOUGHT = 0.4
"""Share of template pages whose thinking is to the point; the rest hardly thinks."""
_IDLE = (("Let me see.", "I know this.", "This is easy.", "Hm."), ("我想想。", "我知道。", "这很容易。", "嗯。"))


class GeneralPage(NamedTuple):
    """A page and its truth; `web.Page` has the same fields."""

    text: str
    domain: str
    language: str
    truth: dict[str, Any]


def general_page(dice: Random, chinese: bool, split: str = "train") -> GeneralPage:
    """One general page; domain is "general".

    Example:
        >>> page = general_page(Random(0), False)
        >>> page.domain, page.language, "style" in page.truth
        ('general', 'en', True)
    """
    style = dice.choices(_STYLES, cum_weights=_UPTO)[0]
    text, truth = _WRITERS[style](dice, chinese, split)
    return GeneralPage(text, "general", "zh" if chinese else "en", {"style": style, **truth})


Written = tuple[str, dict[str, Any]]

_LIVES = (
    (
        "{0} was born in {1} in {2}. {0} is {3}.",
        "{0} is {3} from {1}. {0} was born in {2}.",
        "{0} comes from {1} and works as {3}. {0} was born in {2}.",
        "{0} was born in {2}. {0} comes from {1}. The job of {0}: {3}.",
    ),
    (
        "{0}是{3}，{2}年出生在{1}。",
        "{0}出生在{1}。{0}是{2}年出生的。{0}是{3}。",
        "{0}是{1}人，{2}年出生，职业是{3}。",
        "{0}，{1}人，{3}，{2}年出生。",
    ),
)


def _biography(dice: Random, chinese: bool, split: str) -> Written:
    """Two to four lives, of whatever split: facts are for everybody."""
    lives = []
    names = dice.sample(_NAMES, dice.randint(2, 4))
    for name in names:
        values = (spoken(attribute, name, fact(name, attribute), chinese) for attribute in PERSONAL)
        city, year, job = values
        if dice.random() < 0.3:
            order = dice.sample(PERSONAL, 3)
            stated = [state(name, attribute, fact(name, attribute), chinese) for attribute in order]
            lives.append(("" if chinese else " ").join(stated))
        else:
            lives.append(dice.choice(_LIVES[chinese]).format(shown(name, chinese), city, year, job))
    return "\n".join(lives), {"people": names}


def _atlas(dice: Random, chinese: bool, split: str) -> Written:
    """Two or three cities."""
    names = dice.sample(_CITIES, dice.randint(2, 3))
    gap = "" if chinese else " "
    texts = []
    for name in names:
        order = dice.sample(("known", "built"), 2)
        texts.append(gap.join(state(name, attribute, fact(name, attribute), chinese) for attribute in order))
    return "\n".join(texts), {"cities": names}


def _phrasebook(dice: Random, chinese: bool, split: str) -> Written:
    """Phrases with their translations."""
    lines = []
    arrow = dice.choice((" = ", ": ", " - "))
    for _ in range(dice.randint(3, 5)):
        english, ideographs = phrase(*draw_phrase(dice, split))
        lines.append(ideographs + arrow + english if chinese else english + arrow + ideographs)
    return "\n".join(lines), {}


def _words(dice: Random, chinese: bool, split: str) -> Written:
    """Words of a kind: in a list, or with their translations."""
    kind = dice.choice(tuple(LISTED))
    items = dice.sample(tuple(KINDS[kind]), dice.randint(2, 5))
    if dice.random() < 0.4:
        return "\n".join(f"{item} = {KINDS[kind][item]}" for item in items), {"kind": kind}
    form = dice.choice(("commas", "lines", "numbered") if chinese else ("commas", "lines", "numbered", "capitals"))
    lead, listed = listing(items, kind, form, chinese)
    return lead + listed, {"kind": kind}


def _tale(dice: Random, chinese: bool, split: str) -> Written:
    """A story with its summary or a question."""
    item = FAMILIES["stories"](dice, split, chinese)
    asked, best = item.data["question"], item.data["replies"]["best"]
    return f"{asked}\n{best}", {"family": "stories"}


_ABOUT = (
    "Hello! I am {0}, {1} from {2}. I like {3} and I have {4}.",
    "你好！我是{0}，{2}的{1}。我喜欢{3}色，有{4}。",
)


def _about_me(dice: Random, chinese: bool, split: str) -> Written:
    """Somebody's home page."""
    person = PEOPLE[dice.choice(_NAMES)]
    colour, animal = dice.choice(tuple(COLOURS)), dice.choice(tuple(KINDS["animal"]))
    pet = counted(animal, KINDS["animal"][animal]) if chinese else article(animal)
    words = (spoken("job", person.name, person.job, chinese), spoken("city", person.name, person.city, chinese))
    told = (shown(person.name, chinese), *words, COLOURS[colour] if chinese else colour, pet)
    return _ABOUT[chinese].format(*told), {"people": [person.name]}


def _talk(dice: Random, chinese: bool, split: str) -> Written:
    """A dialogue between A and B, or between a user and the model Dunwu."""
    family = dice.choice(("dialogue", "dialogue", "dialogue", "greeting", "identity"))
    item = FAMILIES[family](dice, split, chinese)
    colon = "：" if chinese else ": "
    kind = "best" if dice.random() < 0.7 else "plain"
    said = [*(message.content for message in item.messages), item.data["replies"][kind]]
    names = ("A", "B") if family == "dialogue" else (("甲", "顿悟") if chinese else ("A", "Dunwu"))
    return "\n".join(names[place % 2] + colon + text for place, text in enumerate(said)), {"family": family}


_ASKABLE = tuple(name for name in FAMILIES if name != "dialogue")
"""Families of one turn, fit for a forum."""


def _answered(
    dice: Random, chinese: bool, split: str, families: tuple[str, ...], shares: dict[str, float]
) -> tuple[Item, str, str]:
    """(item, kind, answer) as somebody on the web answers it."""
    item = FAMILIES[dice.choice(families)](dice, split, chinese)
    replies = item.data["replies"]
    if item.data["risk"] == "unsafe" and dice.random() < _COMPLY:
        return item, "comply", replies["comply"]
    kind = dice.choices(list(shares), list(shares.values()))[0]
    if kind == "rude":
        in_chinese = item.data["reply_language"] == "zh"
        return item, kind, dice.choice(RUDE_OPENINGS[in_chinese]) + ("" if in_chinese else " ") + replies["best"]
    if kind not in replies or (kind == "wrong" and item.data["risk"] == "unsafe"):
        kind = "plain"
    return item, kind, replies[kind]


def _forum(dice: Random, chinese: bool, split: str) -> Written:
    """A question and one user's answer."""
    item, kind, answer = _answered(dice, chinese, split, _ASKABLE, _FORUM)
    heads = ("问：{}\n答：{}", "{}\n{}") if chinese else ("Q: {}\nA: {}", "{}\n{}")
    return dice.choice(heads).format(item.data["question"], answer), {"family": item.data["family"], "kind": kind}


def _template(dice: Random, chinese: bool, split: str) -> Written:
    """A request in the R1-Zero dialogue template, answered with little thought."""
    item, kind, answer = _answered(dice, chinese, split, tuple(FAMILIES), _TEMPLATE)
    thought = item.data["replies"].get("thought") if dice.random() < _THOUGHT else None
    language = item.data["language"]
    prompt = zero_prompt(item.messages, language)
    text = f"{prompt}<think>{thought or dice.choice(_IDLE[chinese])}</think>\n<answer>{answer}</answer>"
    return text, {"family": item.data["family"], "kind": kind, "template": True}


_WRITERS: dict[str, Callable[[Random, bool, str], Written]] = {
    "biography": _biography,
    "atlas": _atlas,
    "phrasebook": _phrasebook,
    "words": _words,
    "tale": _tale,
    "about-me": _about_me,
    "talk": _talk,
    "forum": _forum,
    "template": _template,
}
STYLE_SHARES = {
    "biography": 0.2,
    "atlas": 0.03,
    "phrasebook": 0.1,
    "words": 0.05,
    "tale": 0.07,
    "about-me": 0.03,
    "talk": 0.09,
    "forum": 0.18,
    "template": 0.25,
}
"""How the general pages divide."""
_STYLES = list(STYLE_SHARES)
_UPTO = list(accumulate(STYLE_SHARES.values()))
