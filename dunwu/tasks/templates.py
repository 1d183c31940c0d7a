"""How a Countdown problem is asked: the question in two languages, and the prompt around it.

The structure is R1-Zero's (arXiv 2501.12948, table 1): say how an answer looks, ask, let the model write everything
from `<think>` on. The words are ours and few: every token of a prompt is paid for in each rollout.
A prompt never ends in white space, so that the model's first token is one it has seen in that place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dunwu.tasks.expression import SPACE
from dunwu.tasks.formats import THINK
from dunwu.types import DunwuError, UsageError

Language = Literal["en", "zh"]

TEMPLATE_EN = (
    "The Assistant thinks first, then answers: <think> thoughts </think> <answer> answer </answer>.\n"
    "User: {question}\nAssistant:"
)
TEMPLATE_ZH = "助手先思考，再回答：<think> 思考 </think> <answer> 答案 </answer>。\n用户：{question}\n助手："
TEMPLATES: dict[str, str] = {"en": TEMPLATE_EN, "zh": TEMPLATE_ZH}


def question(numbers: Sequence[int], target: int, language: str = "en") -> str:
    """The bare question.

    Example:
        >>> question([3, 7, 12], 24)
        'Use 3, 7, 12 once each with + - * / to make 24.'
    """
    if language == "zh":
        return f"用{'、'.join(map(str, numbers))}各一次，加减乘除，得到{target}。"
    return f"Use {', '.join(map(str, numbers))} once each with + - * / to make {target}."


def render(template: str, numbers: Sequence[int], target: int, language: str = "en") -> str:
    """`template` with `{question}`, `{numbers}` ("3, 7, 12") and `{target}` filled in; other braces stay."""
    filled = template.replace("{question}", question(numbers, target, language))
    filled = filled.replace("{numbers}", ", ".join(map(str, numbers)))
    return filled.replace("{target}", str(target))


def check_template(template: str, where: str = "prompt template") -> str:
    """`template` without trailing white space.

    Raises:
        UsageError: it has neither `{question}` nor both `{numbers}` and `{target}`.
    """
    if "{question}" not in template and not ("{numbers}" in template and "{target}" in template):
        raise UsageError(
            f"{where} does not say where the problem goes", "put {question}, or {numbers} and {target}, in it"
        )
    return template.rstrip(SPACE)


def load_template(path: str | Path) -> str:
    """A prompt template from a UTF-8 text file (`--prompt-template FILE`).

    Raises:
        DunwuError: the file cannot be read or is not UTF-8. UsageError: as `check_template`.
    """
    try:
        template = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DunwuError(f"cannot read prompt template {path}: {error.strerror}", "give a readable text file") from None
    except UnicodeDecodeError:
        raise DunwuError(f"prompt template {path} is not UTF-8 text", "save it as UTF-8") from None
    return check_template(template, f"prompt template {path}")


def opens_think(template: str) -> bool:
    """Whether the prompt itself already opens the thinking."""
    return template.rstrip(SPACE).endswith(THINK)
