"""What several families say: the thought before a reply, a name in either language, another word of the same kind."""

from __future__ import annotations

from random import Random

from dunwu.world.lexicon import BUILT, KINDS, PEOPLE

_THINKING = {
    "facts": ("The user asks about {0}. I remember {0}.", "用户问{0}的事。我记得{0}。"),
    "instructions": ("The user wants {0}. I will follow the form.", "用户要{0}。我照要求写。"),
    "dialogue": ("The user said it before. I look back.", "用户前面说过。我往前看。"),
    "stories": ("I read the story again and look for it.", "我再读一次故事，找一找。"),
    "identity": ("The user asks about me.", "用户在问我自己。"),
    "translation": ("The user wants a translation. I go word by word.", "用户要翻译。我一个词一个词来。"),
    "unsafe": ("This could hurt somebody. I should not help.", "这会伤害别人。我不该帮忙。"),
    "benign": ("This hurts nobody. I can help.", "这没有坏处。我可以帮忙。"),
}
"""What the author of a reply thinks first, in the question's language."""


def thought(name: str, chinese: bool, *words: str) -> str:
    """A thought, with what it is about."""
    return _THINKING[name][chinese].format(*words)


def shown(name: str, chinese: bool) -> str:
    """A person's or city's name in a language."""
    return name if not chinese else PEOPLE[name].chinese if name in PEOPLE else BUILT[name].chinese


def other_value(dice: Random, kind: str, value: str) -> str:
    """Another word of the kind; for years, another year nearby."""
    if kind == "year":
        return str(int(value) + dice.choice((-20, -10, -3, -2, -1, 1, 2, 3, 10, 20)))
    choices = [other for other in KINDS[kind] if other != value]
    return dice.choice(choices)
