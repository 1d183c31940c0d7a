"""The closed lexicon of the world's general pages: people, cities, things, in English and Chinese, and their facts.

Everything the general families say is made of these tables and a few fixed phrases, so that a model of a million
parameters can learn all of it. The facts are the same in every world: no knob and no seed changes where Ada was born.
Not covered: any real person or place; a name's two spellings belong to one person but do not sound alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random

from dunwu.types import derive_seed

_NAMES = (
    "Ada Ben Cora Dan Eva Finn Gina Hugo Ida Jack Kate Leo Mia Ned Olga Paul Rosa Sam Tina Udo "
    "Vera Wim Yara Zoe Amy Bob Clara Dean Ella Fred Grace Hans Iris Joe Kim Luke Mary Nick Otto Peter "
    "Ruth Simon Theo Uma Vince Wendy Xena Yuri Zack Alma Boris Carl Emil Flora Greg Helen Ivan Jane Karl Lena"
)
_SURNAMES, _GIVEN = "林王李张刘陈杨赵周吴", "明文安平乐云"

CITIES = {
    "Moro": "海城",
    "Lanta": "山城",
    "Velo": "花城",
    "Sarn": "石城",
    "Tilo": "星城",
    "Brix": "月城",
    "Kelm": "风城",
    "Ozen": "雪城",
    "Nuri": "春城",
    "Pell": "南城",
    "Rusk": "北城",
    "Dova": "东城",
}
JOBS = {
    "teacher": "老师",
    "doctor": "医生",
    "cook": "厨师",
    "painter": "画家",
    "singer": "歌手",
    "farmer": "农民",
    "driver": "司机",
    "writer": "作家",
    "nurse": "护士",
    "sailor": "水手",
    "judge": "法官",
    "baker": "面包师",
}
ANIMALS = {
    "cat": "猫",
    "dog": "狗",
    "bird": "鸟",
    "fish": "鱼",
    "horse": "马",
    "sheep": "羊",
    "cow": "牛",
    "pig": "猪",
}
FRUITS = {
    "apple": "苹果",
    "pear": "梨",
    "peach": "桃子",
    "orange": "橘子",
    "lemon": "柠檬",
    "grape": "葡萄",
    "banana": "香蕉",
    "mango": "芒果",
}
COLOURS = {
    "red": "红",
    "blue": "蓝",
    "green": "绿",
    "white": "白",
    "black": "黑",
    "yellow": "黄",
    "purple": "紫",
    "grey": "灰",
}
DRINKS = {"tea": "茶", "coffee": "咖啡", "juice": "果汁", "wine": "酒", "soup": "汤"}
THINGS = {
    "book": "书",
    "car": "汽车",
    "bike": "单车",
    "house": "房子",
    "phone": "手机",
    "door": "门",
    "key": "钥匙",
    "ball": "球",
}
PLACES = {"park": "公园", "school": "学校", "shop": "商店", "river": "河边", "station": "车站", "market": "市场"}
SIZES = {"big": "大", "small": "小", "new": "新", "old": "旧", "good": "好"}
MEASURES = {"book": "本", "car": "辆", "bike": "辆", "phone": "部", "key": "把"} | {
    animal: "头" if animal in ("cow", "pig") else "匹" if animal == "horse" else "条" if animal == "fish" else "只"
    for animal in ANIMALS
}
"""Chinese measure words; everything else takes 个."""

KINDS: dict[str, dict[str, str]] = {
    "fruit": FRUITS,
    "animal": ANIMALS,
    "colour": COLOURS,
    "drink": DRINKS,
    "job": JOBS,
    "city": CITIES,
    "thing": THINGS,
    "place": PLACES,
}
"""Kind → English word → Chinese word."""
LISTED = {
    "fruit": ("fruits", "水果"),
    "animal": ("animals", "动物"),
    "colour": ("colours", "颜色"),
    "drink": ("drinks", "饮料"),
    "job": ("jobs", "职业"),
    "city": ("cities", "城市"),
}
"""Kinds that are asked for in lists: their English plural and Chinese name."""


@dataclass(frozen=True)
class Person:
    """One of the world's people. `name`, `job`, `city` are the English words.

    Example:
        >>> PEOPLE["Ada"].chinese
        '林明'
    """

    name: str
    chinese: str
    city: str
    """Where they were born, a key of `CITIES`."""
    year: int
    """Year of birth, 1950 to 1989."""
    job: str
    """A key of `JOBS`."""


@dataclass(frozen=True)
class City:
    """One of the world's cities: what it is known for (a fruit or a drink) and the year it was built, 1800 to 1899."""

    name: str
    chinese: str
    known: str
    year: int


def _people() -> dict[str, Person]:
    names = _NAMES.split()
    made = {}
    for place, name in enumerate(names):
        dice = Random(derive_seed("world person", name))
        chinese = _SURNAMES[place % len(_SURNAMES)] + _GIVEN[place // len(_SURNAMES)]
        made[name] = Person(name, chinese, dice.choice(list(CITIES)), dice.randint(1950, 1989), dice.choice(list(JOBS)))
    return made


def _cities() -> dict[str, City]:
    known = [*FRUITS, *DRINKS]
    made = {}
    for place, (name, chinese) in enumerate(CITIES.items()):
        made[name] = City(
            name, chinese, known[place % len(known)], Random(derive_seed("world city", name)).randint(1800, 1899)
        )
    return made


PEOPLE: dict[str, Person] = _people()
"""English name → person; 60 of them."""
BUILT: dict[str, City] = _cities()
"""English name → city; 12 of them."""
KINDS["person"] = {person.name: person.chinese for person in PEOPLE.values()}


def _holdout(names: Mapping[str, object], salt: str) -> dict[str, tuple[str, ...]]:
    """Names by split: a fifth each for valid and test, by the order of a hash."""
    ordered = sorted(names, key=lambda name: derive_seed(salt, name))
    fifth = max(1, len(ordered) // 5)
    return {
        "test": tuple(ordered[:fifth]),
        "valid": tuple(ordered[fifth : 2 * fifth]),
        "train": tuple(ordered[2 * fifth :]),
    }


PEOPLE_OF = _holdout(PEOPLE, "world people split")
"""Split → people who are asked about in it. Their biographies are on the web, whatever the split."""
CITIES_OF = _holdout(BUILT, "world cities split")
"""Split → cities that are asked about in it."""


def word(kind: str, english: str, chinese: bool) -> str:
    """A word of a kind in one of the two languages.

    Example:
        >>> word("fruit", "pear", True)
        '梨'
    """
    return KINDS[kind][english] if chinese else english


def article(english: str) -> str:
    """The word or phrase with "a" or "an" before it.

    Example:
        >>> article("orange")
        'an orange'
    """
    return ("an " if english[0] in "aeiou" else "a ") + english


def counted(english: str, chinese: str, describing: str = "") -> str:
    """A Chinese noun with 一, its measure word and an adjective.

    Example:
        >>> counted("cat", "猫", "小")
        '一只小猫'
    """
    return f"一{MEASURES.get(english, '个')}{describing}{chinese}"


@cache
def _pattern(kind: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """The expression that finds every word of a kind in both languages, and what each finding means in English."""
    meaning = {}
    for english, chinese in KINDS[kind].items():
        meaning[english.lower()] = english
        meaning[chinese] = english
    latin = "|".join(sorted((re.escape(english.lower()) for english in KINDS[kind]), key=len, reverse=True))
    ideographs = "|".join(sorted(KINDS[kind].values(), key=len, reverse=True))
    return re.compile(rf"(?<![a-z])({latin})(?:e?s)?(?![a-z])|({ideographs})"), meaning


def mentions(kind: str, text: str) -> list[str]:
    """The words of a kind in a text, in order and in English, in whichever language they stand there; linear time.

    Example:
        >>> mentions("fruit", "Apples, 梨 and a PEAR.")
        ['apple', 'pear', 'pear']
    """
    pattern, meaning = _pattern(kind)
    return [meaning[found.group(1) or found.group(2)] for found in pattern.finditer(text.lower())]
