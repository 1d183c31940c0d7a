"""A completion taken apart: `<think>…</think>` and `<answer>…</answer>`, and whether it is nothing but these.

Two questions with different strictness:

Is it well formed (the format reward)? The whole completion must be `<think>`, anything, `</think>`, white space, `<answer>`,
anything, `</answer>`; each of the four tags exactly once; nothing but white space before, between and after.
Where the prompt has already opened `<think>`, the completion must not open it again. Empty blocks are allowed.

What is the answer (the accuracy reward)? What stands in the only `<answer>…</answer>` block, wherever it is, but
not before a `</think>`. Text around it costs the format reward only. Two blocks, or a second tag anywhere, even
inside the thinking, leave open which answer was meant: no answer.

Tags are exactly these strings, lower case. White space is ASCII. Time is linear in the text.
"""

from __future__ import annotations

from typing import NamedTuple

from dunwu.tasks.expression import SPACE

THINK, THINK_END = "<think>", "</think>"
ANSWER, ANSWER_END = "<answer>", "</answer>"


class Parsed(NamedTuple):
    """The parts of a completion.

    `think`: the thinking, for an ill-formed completion the best guess (what precedes `</think>`, else `<answer>`, else all).
    `answer`: the text in the only answer block, as written; None if there is none to speak of.
    `well_formed`: earns the format reward. `reason`: why there is no answer, else why it is ill formed, else None.
    """

    think: str
    answer: str | None
    well_formed: bool
    reason: str | None


def split_completion(text: str, think_opened: bool = False) -> Parsed:
    """Take a completion apart; `think_opened` if the prompt ended with `<think>`. Never raises.

    Example:
        >>> split_completion("<think>3*8</think> <answer>3*8</answer>")
        Parsed(think='3*8', answer='3*8', well_formed=True, reason=None)
    """
    think_end = text.rfind(THINK_END)
    opened = text.find(ANSWER)
    closed = text.find(ANSWER_END)
    answer, reason = None, _answer_fault(text, think_end, opened, closed)
    if reason is None:
        answer = text[opened + len(ANSWER) : closed]
        reason = _format_fault(text, think_opened, think_end, opened, closed)
    end = think_end if think_end >= 0 else opened if opened >= 0 else len(text)
    think = text[:end].strip(SPACE)
    return Parsed(think.removeprefix(THINK), answer, reason is None, reason)


def _answer_fault(text: str, think_end: int, opened: int, closed: int) -> str | None:
    if opened < 0 or closed < 0:
        return "no <answer>…</answer> block"
    if text.find(ANSWER, opened + 1) >= 0 or text.find(ANSWER_END, closed + 1) >= 0:
        return "more than one answer block"
    if closed < opened:
        return "no <answer>…</answer> block"
    if opened < think_end:
        return "the answer stands before </think>"
    return None


def _format_fault(text: str, think_opened: bool, think_end: int, opened: int, closed: int) -> str | None:
    """Why a completion that has one answer is not well formed."""
    if think_end < 0:
        return "no </think>"
    if text.find(THINK_END) != think_end:
        return "more than one </think>"
    opens = text.count(THINK)
    if think_opened and opens:
        return "<think> opened again"
    if not think_opened:
        if not opens:
            return "no <think>"
        if opens > 1:
            return "more than one <think>"
        if not text.lstrip(SPACE).startswith(THINK):
            return "text before <think>"
    if text[think_end + len(THINK_END) : opened].strip(SPACE):
        return "text between </think> and <answer>"
    if text[closed + len(ANSWER_END) :].strip(SPACE):
        return "text after </answer>"
    return None
