"""Arithmetic word problems: a story of one or two steps with + - *, English or Chinese, and one whole number as answer.

The problem is `{"question": text, "gold": integer}`, with "work" (its equations) and "things" (what is counted) where the
generator wrote it. The answer is that integer in ASCII digits and nothing else; no partial credit.
Which split a story belongs to is a hash of its kind and numbers: a held-out story is held out in both languages, under every
name and for everything counted. Its equations may still be trained on in a story of another kind: "give" and "more" both ask
for a - b. Two indices may draw the same story.
Not covered: units, decimals, stories from a file.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from dunwu.tasks.expression import SPACE
from dunwu.tasks.language import LANGUAGES, check_share, draw_language
from dunwu.tasks.rewrite import rewrite
from dunwu.tasks.splits import check_draw, split_by
from dunwu.types import DunwuError, Message, Problem, Verdict, derive_seed

PEOPLE = {"en": ("Tom", "Anna", "Sam", "Mary", "Bob", "Lucy"), "zh": ("小明", "小红", "小刚", "小丽", "小李", "小华")}
THINGS = {
    "en": ("apples", "books", "stamps", "pens", "eggs", "cards"),
    "zh": ("个苹果", "本书", "张邮票", "支笔", "个鸡蛋", "张卡片"),
}
"""What is counted; in Chinese with its measure word, one character, in front."""

MOST = 99
"""Largest number of a story, results included."""

_TEXTS: dict[str, tuple[str, str]] = {
    "buy": (
        "{n} has {a} {t} and buys {b} more. How many {t} now?",
        "{n}有{a}{t}，又买了{b}{m}。现在有多少{t}？",
    ),
    "give": (
        "{n} has {a} {t} and gives away {b}. How many {t} are left?",
        "{n}有{a}{t}，送出{b}{m}。还剩多少{t}？",
    ),
    "boxes": (
        "{n} has {b} boxes of {a} {t}. How many {t}?",
        "{n}有{b}盒，每盒{a}{t}。一共有多少{t}？",
    ),
    "more": (
        "{n} has {a} {t}, {k} has {b}. How many {t} more has {n}?",
        "{n}有{a}{t}，{k}有{b}{m}。{n}多多少{t}？",
    ),
    "give-buy": (
        "{n} has {a} {t}, gives away {b} and buys {c}. How many {t} now?",
        "{n}有{a}{t}，送出{b}{m}，又买了{c}{m}。现在有多少{t}？",
    ),
    "boxes-buy": (
        "{n} has {b} boxes of {a} {t} and buys {c} more. How many {t} now?",
        "{n}有{b}盒，每盒{a}{t}，又买了{c}{m}。现在有多少{t}？",
    ),
    "boxes-give": (
        "{n} has {b} boxes of {a} {t} and gives away {c}. How many {t} are left?",
        "{n}有{b}盒，每盒{a}{t}，送出{c}{m}。还剩多少{t}？",
    ),
    "together": (
        "{n} has {a} {t}, {k} has {b} more than {n}. How many {t} together?",
        "{n}有{a}{t}，{k}比{n}多{b}{m}。一共有多少{t}？",
    ),
}
KINDS = tuple(_TEXTS)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Story:
    """A word problem and what is true of it.

    Example:
        >>> story = draw_story(Random(0), "train", "en")
        >>> story.work.endswith(f"={story.gold}")
        True
    """

    kind: str
    """One of `KINDS`."""
    numbers: tuple[int, ...]
    """The numbers it gives."""
    question: str
    """The story and its question."""
    things: str
    """What is counted, with a measure word in Chinese."""
    work: str
    """The equations that lead to the answer, `5+3=8,8-2=6`."""
    gold: int
    """The answer."""


def draw_story(dice: Random, split: str, language: str) -> Story:
    """A story of `split`; every number in it and on the way is from 1 to `MOST`."""
    while True:
        kind = dice.choice(KINDS)
        a, b, c = dice.randint(2, 60), dice.randint(2, 9 if kind.startswith("boxes") else 39), dice.randint(2, 20)
        if kind.startswith("boxes"):
            a = 2 + a % 19
        steps, numbers = _work(kind, a, b, c)
        if all(1 <= result <= MOST for _, result in steps) and split_by("word-problems", kind, *numbers) == split:
            break
    place, other = dice.sample(range(len(PEOPLE["en"])), 2)
    things = dice.choice(THINGS[language])
    text = _TEXTS[kind][LANGUAGES.index(language)]
    people = PEOPLE[language]
    # In Chinese a question about "how many" asks without the measure word: 多少苹果.
    measure, noun = (things[0], things) if language == "zh" else ("", things)
    question = text.replace("多少{t}", "多少" + noun[1:]).format(
        n=people[place], k=people[other], a=a, b=b, c=c, t=noun, m=measure
    )
    work = ",".join(f"{left}={result}" for left, result in steps)
    return Story(kind, numbers, question, things, work, steps[-1][1])


def _work(kind: str, a: int, b: int, c: int) -> tuple[list[tuple[str, int]], tuple[int, ...]]:
    """(left side, result) of each step, and the numbers the story gives."""
    if kind == "buy":
        return [(f"{a}+{b}", a + b)], (a, b)
    if kind in ("give", "more"):
        return [(f"{a}-{b}", a - b)], (a, b)
    if kind == "boxes":
        return [(f"{b}*{a}", a * b)], (a, b)
    if kind == "give-buy":
        return [(f"{a}-{b}", a - b), (f"{a - b}+{c}", a - b + c)], (a, b, c)
    if kind == "together":
        return [(f"{a}+{b}", a + b), (f"{a}+{a + b}", a + a + b)], (a, b)
    sign, result = ("+", a * b + c) if kind == "boxes-buy" else ("-", a * b - c)
    return [(f"{b}*{a}", a * b), (f"{a * b}{sign}{c}", result)], (a, b, c)


def work_text(work: str, language: str) -> str:
    """A story's equations in a sentence.

    Example:
        >>> work_text("40-10=30", "en"), work_text("40-10=30,30+5=35", "zh")
        ('So 40-10=30.', '先40-10=30，再30+5=35。')
    """
    equations = work.split(",")
    if language == "zh":
        return f"所以{work}。" if len(equations) == 1 else f"先{'，再'.join(equations)}。"
    return f"So {work}." if len(equations) == 1 else f"First {', then '.join(equations)}."


class WordProblems:
    """The exercise: `dunwu.types.Exercise` for word problems.

    Args:
        chinese: share of the problems asked in Chinese.

    Example:
        >>> exercise = WordProblems()
        >>> problem = exercise.draw("test", seed=0, index=0)
        >>> exercise.judge(problem, str(problem.data["gold"])).rewards
        {'accuracy': 1.0}
    """

    name = "word-problems"
    reasoning = True

    def __init__(self, chinese: float = 0.4) -> None:
        self.chinese = check_share(self.name, "chinese", chinese)

    def draw(self, split: str, seed: int, index: int) -> Problem:
        """The problem at (split, seed, index).

        Raises:
            UsageError: unknown split, negative index.
        """
        check_draw(split, index)
        language = draw_language(self.name, self.chinese, split, seed, index)
        story = draw_story(Random(derive_seed(self.name, split, seed, index)), split, language)
        data = {"question": story.question, "gold": story.gold, "work": story.work, "things": story.things}
        meta = {"split": split, "seed": seed, "index": index, "language": language, "family": self.name}
        identity = f"{self.name}-{derive_seed(story.question):016x}"
        asked = (Message("user", story.question),)
        return Problem(self.name, identity, {**data, "language": language}, "", meta, asked)

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        """Accuracy 1 if the answer is the gold integer; "unparsable" if it is no integer."""
        gold = read_gold(problem.data)
        if gold is None:
            return Verdict({}, 0.0, "error", 'problem: "gold" is not an integer')
        if answer is None:
            return Verdict({"accuracy": 0.0}, 0.0, "unparsable", "no answer")
        text = answer.strip(SPACE)
        if not _INTEGER.fullmatch(text):
            return Verdict({"accuracy": 0.0}, 0.0, "unparsable", "answer: not a whole number")
        if int(text) != gold:
            return Verdict({"accuracy": 0.0}, 0.0, "ok", f"not {gold}", text)
        return Verdict({"accuracy": 1.0}, 1.0, "ok", None, text)

    def key(self, problem: Problem, answer: str | None) -> Hashable:
        """The integer; None if the answer is none."""
        text = (answer or "").strip(SPACE)
        return int(text) if _INTEGER.fullmatch(text) else None

    def solution(self, problem: Problem) -> Message:
        """The equations, if the problem has them, in the style of `rewrite`.

        Raises:
            DunwuError: the problem has no gold answer.
        """
        gold = read_gold(problem.data)
        if gold is None:
            raise DunwuError(f'problem {problem.id}: "gold" is not an integer', "give the answer as an integer")
        language = "zh" if problem.meta.get("language", problem.data.get("language")) == "zh" else "en"
        work = problem.data.get("work")
        thinking = work_text(work, language) if isinstance(work, str) and work else ""
        return rewrite(problem, thinking, str(gold), derive_seed(problem.id, "gold"))


def read_gold(data: Mapping[str, Any]) -> int | None:
    """The gold integer of a problem's data; None if there is none."""
    gold = data.get("gold")
    return gold if type(gold) is int and abs(gold) < 10**9 else None
