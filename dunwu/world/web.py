"""The web itself: an endless, seeded stream of pages with their ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from dunwu.types import derive_seed
from dunwu.world.arithmetic import facts_page, word_problem
from dunwu.world.countdown import CHINESE, ENGLISH, HANDS, forum_page, template_page
from dunwu.world.general_pages import general_page
from dunwu.world.knobs import Knobs
from dunwu.world.puzzles import draw_puzzle
from dunwu.world.reasoning import reasoning_page


@dataclass(frozen=True)
class Page:
    """One generated page and everything that is true of it.

    `domain` is one of "arithmetic", "word-problem", "countdown", "countdown-template", "knights", "knights-template",
    "worked-problem", "worked-problem-template", "general".

    Example:
        >>> page = next(pages(Knobs(), seed=0))
        >>> page == next(pages(Knobs(), seed=0))
        True
    """

    text: str
    domain: str
    language: str
    truth: dict[str, Any] = field(default_factory=dict)


def pages(knobs: Knobs, seed: int, start: int = 0, split: str = "train") -> Iterator[Page]:
    """Pages `start`, `start + 1`, …; page i depends on (knobs, split, seed, i) alone.

    Countdown problems, puzzles and the task's word problems come from their task's bucket of that split only, so that no
    page ever shows a held-out problem.
    """
    knobs.validate()
    base = derive_seed("world", split, seed)
    for index in count(start):
        yield _page(Random(base + index * 0x9E3779B97F4A7C15), knobs, split)


def _page(dice: Random, knobs: Knobs, split: str) -> Page:
    chinese = dice.random() < knobs.chinese
    language = "zh" if chinese else "en"
    if knobs.general > 0 and dice.random() < knobs.general:
        return Page(*general_page(dice, chinese, split))
    if knobs.knights + knobs.worked_problems > 0:
        place = dice.random()
        if place < knobs.knights + knobs.worked_problems:
            topic = "knights" if place < knobs.knights else "worked-problem"
            return Page(*reasoning_page(dice, knobs, topic, chinese, split))
    if dice.random() >= knobs.countdown:
        if dice.random() < knobs.word_problems:
            return Page(word_problem(dice, chinese), "word-problem", language)
        return Page(facts_page(dice, knobs.high, chinese), "arithmetic", language)
    in_template = dice.random() < knobs.template
    hand, in_chinese = knobs.author(dice, chinese, in_template)
    puzzle = draw_puzzle(dice, knobs, split)
    thinking = HANDS[hand](dice, puzzle, knobs, CHINESE if in_chinese else ENGLISH)
    truth = {"numbers": list(puzzle.numbers), "target": puzzle.target, "hand": hand}
    truth |= {"solved": thinking.solved, "answer": thinking.answer}
    truth["thinking_language"] = "zh" if in_chinese else "en"
    if in_template:
        return Page(template_page(puzzle, chinese, thinking), "countdown-template", language, truth)
    return Page(forum_page(dice, puzzle, chinese, thinking), "countdown", language, truth)
