"""Pages about arithmetic: lists of facts, worked sums, word problems; English and Chinese."""

from __future__ import annotations

from random import Random

from dunwu.world.chains import combine

_PEOPLE = (("Tom", "小明"), ("Anna", "小红"), ("Li", "小李"), ("Sam", "小刚"))
_THINGS = (("apples", "个苹果"), ("books", "本书"), ("stamps", "张邮票"), ("pens", "支笔"))


def equation(dice: Random, high: int) -> str:
    """One true equation in the range Countdown needs.

    Example:
        >>> from random import Random
        >>> left, result = equation(Random(0), 20).split("=")
        >>> eval(left.replace("/", "//")) == int(result)  # doctest: +SKIP
        True
    """
    a, b = dice.randint(1, high), dice.randint(1, high)
    kind = dice.random()
    if kind < 0.4:
        # What backward chaining asks: a target and a kept number.
        a = dice.randint(1, 99)
    elif kind < 0.5:
        a, b = dice.randint(1, 150), dice.randint(1, 99)
    made = [step for step in combine(a, b) if step[3] <= 400]
    left, operator, right, result = dice.choice(made)
    return f"{left}{operator}{right}={result}"


def facts_page(dice: Random, high: int, chinese: bool) -> str:
    """A list of equations, one theme or many."""
    title = dice.choice(("算术：\n", "口算\n", "")) if chinese else dice.choice(("Sums:\n", "Practice\n", ""))
    separator = dice.choice((",", "\n"))
    return title + separator.join(equation(dice, high) for _ in range(dice.randint(6, 14)))


def word_problem(dice: Random, chinese: bool) -> str:
    """A story with one or two steps and its worked answer."""
    (name_en, name_zh), (things_en, things_zh) = dice.choice(_PEOPLE), dice.choice(_THINGS)
    a, b, c = dice.randint(2, 20), dice.randint(1, 20), dice.randint(2, 9)
    kind = dice.randrange(3)
    if kind == 0:
        work = f"{a}+{b}={a + b}"
        english = f"{name_en} has {a} {things_en} and buys {b} more. How many now? {work}. Answer: {a + b}"
        chinese_text = f"{name_zh}有{a}{things_zh}，又买了{b}{things_zh[0]}。现在有多少？{work}。答案：{a + b}"
    elif kind == 1:
        work = f"{a}*{c}={a * c}"
        english = f"{name_en} has {c} boxes of {a} {things_en}. How many? {work}. Answer: {a * c}"
        chinese_text = f"{name_zh}有{c}盒，每盒{a}{things_zh}。一共多少？{work}。答案：{a * c}"
    else:
        a += b
        work = f"{a}-{b}={a - b},{a - b}+{c}={a - b + c}"
        english = f"{name_en} has {a} {things_en}, gives away {b}, finds {c}. {work}. Answer: {a - b + c}"
        chinese_text = f"{name_zh}有{a}{things_zh}，送出{b}，又得{c}。{work}。答案：{a - b + c}"
    return chinese_text if chinese else english
