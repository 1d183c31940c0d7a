"""Cold-start rewriting by rules: a correct chain of thought in the first person, with a summary (R1, B.3.2).

R1's cold start takes R1-Zero's correct samples and has them rewritten into a natural first-person style that begins by
understanding the request, in the question's language, without markdown, followed by a short summary. Here a few phrase
tables do it; equations are never touched and nothing is left out but blank lines. About 15 tokens are added.
`translate` puts an English chain into Chinese first: R1-Zero answers Chinese questions in English, and R1 has its thinking
translated into the question's language. Not covered: Chinese to English (R1-Zero does not mix that way round), words
that the world's pages do not use (they stay, and the language rule of the selection drops the chain), correcting a chain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from dunwu.tasks.formats import ANSWER, ANSWER_END
from dunwu.types import Message, Problem, derive_seed

_OPENINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "countdown": {
        "en": ("I need to make {target} from {numbers}.", "I want {target} out of {numbers}."),
        "zh": ("我要用{numbers}凑出{target}。", "我想用{numbers}得到{target}。"),
    },
    "word-problems": {
        "en": ("I need to count the {things}.", "I want to know how many {things}."),
        "zh": ("我要算有多少{things}。", "我想知道有多少{things}。"),
    },
    "knights": {
        "en": ("I need to find who is a knight.", "I want to know who is what."),
        "zh": ("我要找出谁是骑士。", "我想知道谁是什么。"),
    },
    "": {"en": ("I need to work this out.", "Let me think about it."), "zh": ("我要想想这个问题。", "让我想一想。")},
}
"""First sentence of the thinking, by task; "" for any other."""

_SUMMARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "countdown": {
        "en": ("I can make {target} with {answer}.", "{target} is {answer}."),
        "zh": ("可以这样得到{target}：{answer}。", "{target}就是{answer}。"),
    },
    "word-problems": {
        "en": ("The answer is {answer}.", "The number of {things} is {answer}."),
        "zh": ("答案是{answer}。", "{things}有{answer}。"),
    },
    "knights": {
        "en": ("So it is {answer}.", "The answer is {answer}."),
        "zh": ("所以是{answer}。", "答案是{answer}。"),
    },
    "": {"en": ("The answer is {answer}.",), "zh": ("答案是{answer}。",)},
}
"""The sentence after the thinking, by task."""

_PHRASES: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    "en": (
        (re.compile(r"^Keep (?=\d)", re.M), "Let me keep "),
        (re.compile(r"^Wait, keep (?=\d)", re.M), "Wait, let me keep "),
        (re.compile(r"^Try keeping (?=\d)", re.M), "Let me try keeping "),
        (re.compile(r"^Maybe (?=[\dA-Z(])", re.M), "I think maybe "),
        (re.compile(r"^If (?=[A-Z] )", re.M), "Say "),
    ),
    "zh": (
        (re.compile(r"^留(?=\d)", re.M), "我留"),
        (re.compile(r"^等等，留(?=\d)", re.M), "等等，我留"),
        (re.compile(r"^换一个，留(?=\d)", re.M), "我换一个，留"),
        (re.compile(r"^也许(?=[\dA-Z(])", re.M), "我想也许"),
        (re.compile(r"^若(?=[A-Z])", re.M), "设"),
    ),
}
"""How a line may begin, and how it begins in the first person."""


_INTO_CHINESE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.M), chinese)
    for pattern, chinese in (
        (r"^(?:Wait, |Hmm, )keep (?=\d)", "等等，留"),
        (r"^Try keeping (?=\d)", "换一个，留"),
        (r"^Keep (?=\d)", "留"),
        (r"^(?:Wait, |Hmm, )[Ii]f (?=[A-F] )", "等等，若"),
        (r"^If (?=[A-F] )", "若"),
        (r"^(?:Wait|Hmm), ", "等等，"),
        (r"^Let me try ", "换一个，"),
        (r"^But ", "但是，"),
        (r"^I think (.+) works\.", r"我想\1可以。"),
        (r"^I think ", "我想"),
        (r"^Maybe ", "也许"),
        (r"^I give up\.", "算了，放弃。"),
        (r"^No idea\.", "想不出来。"),
        (r"\b[Ff]irst (?=\d)", "先"),
        (r", then (?=\d)", "，再"),
        (r"\b[Ss]o (?=\d)", "所以"),
        (r"(?<=[A-F]) knight\b", "骑士"),
        (r"(?<=[A-F]) knave\b", "无赖"),
        (r"(?<=[A-F]) true\b", "真"),
        (r"(?<=[A-F]) false\b", "假"),
        (r"(?<=[士赖真假]), (?=[A-F])", "，"),
        (r"(?<=[士赖]): (?=[A-F])", "："),
        (r"(?<=[真假]) no\b", "，不对"),
        (r"(?<=[真假]) yes!", "，对了！"),
        (r", yes!", "，对了！"),
        (r" not (?=\d)", "不是"),
        (r" no\b", "不对"),
        (r" yes!", "对了！"),
        (r" it works!", "成了！"),
        (r"(?<=[\d士赖])\.(?=\s|$)", "。"),
    )
)
"""English phrases of the world's chains and the Chinese ones its Chinese authors use there, in the order they are replaced."""


def translate(thinking: str, language: str) -> str:
    """A chain of the world's phrases in `language`; a chain that is in it already, or asked for in English, stays as it is.

    Example:
        >>> print(translate("Keep 3:12-7=5\\n24-3=21 no\\nWait, keep 7:12*3=36 it works!", "zh"))
        留3:12-7=5
        24-3=21不对
        等等，留7:12*3=36成了！
        >>> translate("If A knight, B knave: A false, B true no", "zh")
        '若A骑士，B无赖：A假，B真，不对'
    """
    if language == "zh":
        for pattern, chinese in _INTO_CHINESE:
            thinking = pattern.sub(chinese, thinking)
    return thinking


def rewrite(problem: Problem, thinking: str, answer: str, seed: int) -> Message:
    """A correct chain of thought and its answer as an assistant's message.

    Args:
        problem: what was asked; its meta or data say the language, its data what there is to understand.
        thinking: the chain, in the question's language.
        answer: what stood in the answer block.
        seed: picks the phrasings.

    Example:
        >>> problem = Problem("countdown", "c", {"numbers": [3, 7, 12], "target": 24}, "")
        >>> message = rewrite(problem, "Keep 3:12-7=5\\n24-3=21 no", "12+7+5", seed=0)
        >>> print(message.reasoning_content)
        I need to make 24 from 3, 7 and 12.
        Let me keep 3:12-7=5
        24-3=21 no
        >>> message.content
        '24 is <answer>12+7+5</answer>.'
    """
    language = problem.meta.get("language", problem.data.get("language"))
    language = language if language in _PHRASES else "en"
    dice = Random(derive_seed("rewrite", seed))
    facts = _facts(problem, language)
    opening = _pick(dice, _OPENINGS, problem.task, language, facts)
    body = "\n".join(line.strip() for line in thinking.splitlines() if line.strip())
    for pattern, natural in _PHRASES[language]:
        body = pattern.sub(natural, body)
    facts["answer"] = f"{ANSWER}{answer.strip()}{ANSWER_END}"
    summary = _pick(dice, _SUMMARIES, problem.task, language, facts)
    return Message("assistant", summary, f"{opening}\n{body}" if body else opening)


def _pick(
    dice: Random,
    table: Mapping[str, Mapping[str, tuple[str, ...]]],
    task: str,
    language: str,
    facts: Mapping[str, str],
) -> str:
    """A phrasing of the task whose facts are known, filled in; the general one if there is none."""
    phrasings = table.get(task, table[""])[language]
    names = re.compile(r"\{(\w+)\}")
    known = [text for text in phrasings if all(name in facts for name in names.findall(text))]
    # Filled in by hand: an answer may hold braces, which str.format would read again in a second step.
    return names.sub(lambda match: facts[match.group(1)], dice.choice(known or table[""][language]))


def _facts(problem: Problem, language: str) -> dict[str, str]:
    """What the phrasings may mention of a problem."""
    data: Mapping[str, Any] = problem.data
    facts = {}
    if "target" in data:
        facts["target"] = str(data["target"])
    numbers = data.get("numbers")
    if isinstance(numbers, list | tuple) and numbers:
        shown = [str(number) for number in numbers]
        if language == "zh":
            facts["numbers"] = "、".join(shown)
        else:
            facts["numbers"] = (", ".join(shown[:-1]) + " and " + shown[-1]) if len(shown) > 1 else shown[0]
    if isinstance(data.get("things"), str):
        # A Chinese thing carries its measure word in front.
        facts["things"] = data["things"][1:] if language == "zh" else data["things"]
    return facts
