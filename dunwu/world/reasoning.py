"""Pages about word problems and knights and knaves, in the hands of `countdown.py`; English and Chinese.

The same authors (`Knobs.author`) write about everything: who guesses at Countdown guesses here. By hand, a word problem is
guessed, worked, or first worked wrongly (search); a puzzle is guessed, told with its solution, tried in any order until
something fits or the author is tired (search), or worked through case by case (backward).
"""

from __future__ import annotations

from random import Random
from typing import Any

from dunwu.tasks.formats import ANSWER, ANSWER_END, THINK, THINK_END
from dunwu.tasks.knights import (
    Statement,
    all_cases,
    answer_text,
    draw_puzzle_of,
    people_of,
    puzzle_question,
    solutions,
    try_cases,
)
from dunwu.tasks.templates import TEMPLATES
from dunwu.tasks.word_problems import Story, draw_story, work_text
from dunwu.world.chains import combine
from dunwu.world.countdown import CHINESE, ENGLISH, Thinking
from dunwu.world.knobs import Knobs
from dunwu.world.puzzles import PLAUSIBLE

THREE = 0.4
"""Share of the puzzles on pages that have three people."""

_GUESSES = {"en": ("Maybe {}.", "I think {}.", "{}, yes!"), "zh": ("也许{}。", "我想{}。", "{}，对了！")}
_WAITS = {"en": ("Wait, ", "Hmm, ", ""), "zh": ("等等，", "再试，", "")}
_HEADS = {"en": ("Q: {}\nA: ", "{}\n"), "zh": ("问：{}\n答：", "{}\n")}
_TAILS = {"en": ("\nSo {}", "\nAnswer: {}"), "zh": ("\n所以是{}", "\n答案：{}")}


def reasoning_page(
    dice: Random, knobs: Knobs, topic: str, chinese: bool, split: str
) -> tuple[str, str, str, dict[str, Any]]:
    """A page's text, domain, language and truth.

    Args:
        topic: "knights" or "worked-problem".
        split: the task's bucket the problem comes from.

    Example:
        >>> text, domain, language, truth = reasoning_page(Random(0), Knobs(), "knights", False, "train")
        >>> domain.startswith("knights"), truth["answer"] in text
        (True, True)
    """
    in_template = dice.random() < knobs.template
    hand, in_chinese = knobs.author(dice, chinese, in_template)
    language, thought = ("zh" if chinese else "en"), ("zh" if in_chinese else "en")
    truth: dict[str, Any] = {"hand": hand, "thinking_language": thought}
    if topic == "knights":
        statements = draw_puzzle_of(dice, split, THREE)
        asked, thinking = puzzle_question(statements, language), think_puzzle(dice, knobs, hand, statements, thought)
        found = answer_text(_assigned(thinking, statements), language)
        thinking = Thinking(thinking.text, found, thinking.solved)
        truth["statements"] = [list(statement) for statement in statements]
    else:
        story = draw_story(dice, split, language)
        asked, thinking = story.question, think_story(dice, knobs, hand, story, thought)
        truth |= {"kind": story.kind, "given": list(story.numbers), "gold": story.gold}
    truth |= {"solved": thinking.solved, "answer": thinking.answer}
    if in_template:
        prompt = TEMPLATES[language].replace("{question}", asked)
        text = f"{prompt}{THINK}{thinking.text}{THINK_END}\n{ANSWER}{thinking.answer}{ANSWER_END}"
        return text, f"{topic}-template", language, truth
    text = dice.choice(_HEADS[language]).format(asked) + thinking.text
    return text + dice.choice(_TAILS[language]).format(thinking.answer), topic, language, truth


def think_story(dice: Random, knobs: Knobs, hand: str, story: Story, language: str) -> Thinking:
    """What an author thinks of a word problem, in `language`."""
    if hand == "guess":
        wrong = dice.random() < knobs.guess_wrong
        number = max(1, story.gold + dice.choice((-10, -2, -1, 1, 2, 10))) if wrong else story.gold
        return Thinking(dice.choice(_GUESSES[language]).format(number), str(number), number == story.gold)
    text, slips = work_text(story.work, language), _slips(story)
    if hand == "search" and slips:
        words = CHINESE if language == "zh" else ENGLISH
        wait = dice.choice(_WAITS[language])
        text = dice.choice(slips) + dice.choice(words.no) + "\n" + _after(wait, text)
    return Thinking(text, str(story.gold), True)


def _slips(story: Story) -> list[str]:
    """The story's first two numbers put together in ways that are not its first step."""
    a, b = story.numbers[:2]
    right = story.work.split(",")[0].split("=")[1]
    ways = [f"{left}{sign}{other}={result}" for left, sign, other, result in combine(a, b) if result <= PLAUSIBLE]
    return [way for way in ways if way.split("=")[1] != right and "/" not in way]


def _after(wait: str, text: str) -> str:
    """`text` after a word that may begin its sentence."""
    return wait + text[0].lower() + text[1:] if wait else text


def think_puzzle(dice: Random, knobs: Knobs, hand: str, statements: tuple[Statement, ...], language: str) -> Thinking:
    """What an author thinks of a puzzle; the answer is the place of a case in `all_cases`."""
    cases = all_cases(people_of(statements))
    right = cases.index(solutions(statements)[0])
    if hand == "guess":
        wrong = dice.random() < knobs.guess_wrong
        place = _other(dice, len(cases), right) if wrong else right
        return Thinking(
            dice.choice(_GUESSES[language]).format(answer_text(cases[place], language)), str(place), not wrong
        )
    if hand == "worked":
        return Thinking(try_cases(statements, [cases[right]], language)[0][0], str(right), True)
    order = list(range(len(cases)))
    if hand == "search":
        dice.shuffle(order)
    text = ""
    for n, place in enumerate(order):
        line, fits = try_cases(statements, [cases[place]], language)[0]
        wait = dice.choice(_WAITS[language]) if n and hand == "search" else ""
        text += _after(wait, line)
        if fits:
            return Thinking(text, str(place), True)
        text += "\n"
        if hand == "search" and dice.random() < knobs.give_up:
            break
    words = CHINESE if language == "zh" else ENGLISH
    return Thinking(text + dice.choice(words.quit), str(_other(dice, len(cases), right)), False)


def _other(dice: Random, count: int, right: int) -> int:
    """A place that is not the right one."""
    place = dice.randrange(count - 1)
    return place + (place >= right)


def _assigned(thinking: Thinking, statements: tuple[Statement, ...]) -> dict[str, bool]:
    """The case a thinking answers."""
    return all_cases(people_of(statements))[int(thinking.answer)]
