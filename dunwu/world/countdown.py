"""Countdown pages in many hands: guesses, worked solutions, searches, subgoals; English and Chinese.

Each hand is a function (dice, puzzle, knobs, words) → Thinking: the text between the think tags
and the expression answered. A page dresses it as a forum post or in the R1-Zero template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dunwu.tasks.templates import TEMPLATES, render
from dunwu.world.chains import Chain, combine
from dunwu.world.knobs import Knobs
from dunwu.world.puzzles import Puzzle


@dataclass(frozen=True)
class Words:
    """The small vocabulary of one author."""

    no: tuple[str, ...]
    yes: tuple[str, ...]
    turn: tuple[str, ...]
    keep: tuple[str, ...]
    guess: tuple[str, ...]
    quit: tuple[str, ...]
    other_than: str
    """Names the target after a failed try: ` not 24`."""


ENGLISH = Words(
    no=(" no", " no"),
    yes=(" yes!", " it works!"),
    turn=("Wait, ", "Let me try ", "But ", "Hmm, ", ""),
    keep=("Keep {}", "Wait, keep {}", "Try keeping {}"),
    guess=("Maybe {}={}.", "I think {}={} works.", "{}={}, yes!"),
    quit=("I give up.", "No idea."),
    other_than=" not {}",
)
CHINESE = Words(
    no=("不对", "不行"),
    yes=("对了！", "成了！"),
    turn=("等等，", "换一个，", "再试，", "但是，", ""),
    keep=("留{}", "等等，留{}", "换一个，留{}"),
    guess=("也许{}={}。", "我想{}={}可以。", "{}={}，对了！"),
    quit=("算了，放弃。", "想不出来。"),
    other_than="不是{}",
)


@dataclass(frozen=True)
class Thinking:
    """What an author thinks, and answers."""

    text: str
    answer: str
    solved: bool


Hand = Callable[[Random, Puzzle, Knobs, Words], Thinking]


def _steps(dice: Random, chain: Chain, knobs: Knobs) -> str:
    """`12-7=5,5*3=15`; a result is off with knobs.arithmetic_error."""
    lines = []
    for left, operator, right, result in chain.steps:
        if knobs.arithmetic_error and dice.random() < knobs.arithmetic_error:
            result = str(max(1, int(result) + dice.choice((-10, -2, -1, 1, 2, 10))))
        lines.append(f"{left}{operator}{right}={result}")
    return ",".join(lines)


def guess(dice: Random, puzzle: Puzzle, knobs: Knobs, words: Words) -> Thinking:
    """An expression at once, said to make the target."""
    wrong = not puzzle.solutions or dice.random() < knobs.guess_wrong
    chain = puzzle.answer_wrongly(dice) if wrong else dice.choice(puzzle.solutions)
    text = dice.choice(words.guess).format(chain.expression, puzzle.target)
    return Thinking(text, chain.expression, chain.value == puzzle.target)


def worked(dice: Random, puzzle: Puzzle, knobs: Knobs, words: Words) -> Thinking:
    """One right solution in steps."""
    if not puzzle.solutions:
        return _quit(dice, puzzle, words, "")
    chain = dice.choice(puzzle.solutions)
    return Thinking(_steps(dice, chain, knobs) + dice.choice(words.yes), chain.expression, True)


def search(dice: Random, puzzle: Puzzle, knobs: Knobs, words: Words) -> Thinking:
    """Tries until one works, the author is tired, or the list is long."""
    failures = puzzle.failures(dice, knobs.max_tries)
    text = ""
    tried: list[Chain] = []
    for n in range(knobs.max_tries):
        text += dice.choice(words.turn) if n else ""
        if puzzle.solutions and (not failures or dice.random() < knobs.hit):
            chain = dice.choice(puzzle.solutions)
            return Thinking(text + _steps(dice, chain, knobs) + dice.choice(words.yes), chain.expression, True)
        if tried and dice.random() < knobs.repeat:
            chain = dice.choice(tried)
        elif failures:
            chain = failures.pop()
        else:
            break
        tried.append(chain)
        text += _steps(dice, chain, knobs)
        if dice.random() < knobs.false_check:
            return Thinking(text + dice.choice(words.yes), chain.expression, False)
        text += dice.choice((*words.no, words.other_than.format(puzzle.target))) + "\n"
        if dice.random() < knobs.give_up:
            break
    return _quit(dice, puzzle, words, text)


def backward(dice: Random, puzzle: Puzzle, knobs: Knobs, words: Words) -> Thinking:
    """Three numbers: keep one back, list what the others make, ask for what is needed.

    Subgoal setting and backward chaining (Gandhi et al. 2025); finds 99.7% of what can be found
    without fractions. With more numbers the author searches instead.
    """
    numbers, target = puzzle.numbers, puzzle.target
    if len(numbers) != 3:
        return search(dice, puzzle, knobs, words)
    text = ""
    order = list(dict.fromkeys(dice.sample(numbers, 3)))
    for n, kept in enumerate(order):
        others = list(numbers)
        others.remove(kept)
        made = combine(others[0], others[1])
        head = words.keep[0] if n == 0 else dice.choice(words.keep)
        text += head.format(kept) + ":" + ",".join(f"{a}{o}{b}={r}" for a, o, b, r in made) + "\n"
        asked: list[str] = []
        for needed, equation, finish in _needs(kept, target):
            for a, operator, b, result in made:
                if result == needed:
                    steps = f"{a}{operator}{b}={result},{finish.format(result)}={target}"
                    text += ",".join([*asked, equation]) + dice.choice(words.yes) + "\n"
                    found = f"({a}{operator}{b})"
                    return Thinking(text + steps, finish.format(found), True)
            asked.append(equation + words.no[0])
        text += ",".join(asked) + "\n"
        if n + 1 < len(order) and dice.random() < knobs.give_up * 2:
            break
    return _quit(dice, puzzle, words, text)


def _needs(kept: int, target: int) -> list[tuple[int, str, str]]:
    """(needed number, the equation that finds it, how it is then used) for one number kept back."""
    found = []
    if target > kept:
        found.append((target - kept, f"{target}-{kept}={target - kept}", f"{{}}+{kept}"))
    found.append((target + kept, f"{target}+{kept}={target + kept}", f"{{}}-{kept}"))
    if kept > target:
        found.append((kept - target, f"{kept}-{target}={kept - target}", f"{kept}-{{}}"))
    if kept > 1 and target % kept == 0:
        found.append((target // kept, f"{target}/{kept}={target // kept}", f"{{}}*{kept}"))
    if kept > 1 and target * kept <= 100:
        found.append((target * kept, f"{target}*{kept}={target * kept}", f"{{}}/{kept}"))
    if target > 1 and kept % target == 0:
        found.append((kept // target, f"{kept}/{target}={kept // target}", f"{kept}/{{}}"))
    return found


def _quit(dice: Random, puzzle: Puzzle, words: Words, text: str) -> Thinking:
    """Give up, and answer something all the same."""
    chain = puzzle.answer_wrongly(dice)
    return Thinking(text + dice.choice(words.quit), chain.expression, chain.value == puzzle.target)


HANDS: dict[str, Hand] = {"guess": guess, "worked": worked, "search": search, "backward": backward}


def template_page(puzzle: Puzzle, chinese: bool, thinking: Thinking) -> str:
    """The R1-Zero dialogue: prompt, think block, answer block."""
    language = "zh" if chinese else "en"
    prompt = render(TEMPLATES[language], puzzle.numbers, puzzle.target, language)
    return f"{prompt}<think>{thinking.text}</think>\n<answer>{thinking.answer}</answer>"


def forum_page(dice: Random, puzzle: Puzzle, chinese: bool, thinking: Thinking) -> str:
    """A question on a forum and somebody's post."""
    listed = ("、" if chinese else ", ").join(map(str, puzzle.numbers))
    if chinese:
        head = dice.choice(("问：用{}凑{}\n答：", "{}怎么算出{}？\n", "【算{1}】{0}\n"))
        tail = dice.choice(("\n所以是{}", "\n答案：{}"))
    else:
        head = dice.choice(("Q: make {1} from {0}\nA: ", "{0} -> {1}?\n", "How do I get {1} out of {0}?\n"))
        tail = dice.choice(("\nSo {}", "\nAnswer: {}"))
    return head.format(listed, puzzle.target) + thinking.text + tail.format(thinking.answer)
