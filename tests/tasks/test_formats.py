"""Taking a completion apart: the table of what earns the format reward and what counts as the answer."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.tasks.formats import split_completion

GOOD = "<think>a</think>\n<answer>3*8</answer>"

# completion, the answer, well formed
TABLE = [
    (GOOD, "3*8", True),
    ("<think></think><answer></answer>", "", True),
    ("\n <think>a</think>\t\r\n <answer> 3*8\n</answer> \n", " 3*8\n", True),
    ("<think>a<b>&lt;answer&gt;</think><answer>3*8</answer>", "3*8", True),
    ("<think>等等，不对</think><answer>3×8</answer>", "3×8", True),
    # text around the blocks: the answer counts, the format does not
    ("Sure! " + GOOD, "3*8", False),
    (GOOD + " Done.", "3*8", False),
    (GOOD + "</s>", "3*8", False),
    (GOOD + "\u3000", "3*8", False),  # not ASCII white space
    ("<think>a</think> so <answer>3*8</answer>", "3*8", False),
    # missing or surplus thinking tags
    ("<answer>3*8</answer>", "3*8", False),
    ("a</think><answer>3*8</answer>", "3*8", False),
    ("<think>a<answer>3*8</answer>", "3*8", False),
    ("<think><think>a</think></think><answer>3*8</answer>", "3*8", False),
    ("<think>a</think><think>b</think><answer>3*8</answer>", "3*8", False),
    ("<think>a</think></think><answer>3*8</answer>", "3*8", False),
    (GOOD + "<think>", "3*8", False),
    ("<Think>a</Think><answer>3*8</answer>", "3*8", False),
    # no answer at all
    ("", None, False),
    ("3*8", None, False),
    ("<think>a</think>", None, False),
    ("<think>a</think>3*8", None, False),
    ("<think>a</think><answer>3*8", None, False),  # cut off
    ("<think>a</think>3*8</answer>", None, False),
    ("<think>a</think></answer>3*8<answer>", None, False),
    ("<think>a</think><Answer>3*8</Answer>", None, False),
    ("<think>a</think>< answer>3*8</answer >", None, False),
    # an answer that is not final
    ("<answer>3*8</answer><think>a</think>", None, False),
    ("<think><answer>3*8</answer></think>", None, False),
    ("<think>a<answer></think>3*8</answer>", None, False),
    (GOOD + "</think>", None, False),
    # two answers: which was meant?
    (GOOD + "<answer>12+12</answer>", None, False),
    (GOOD + GOOD, None, False),
    ("<think>so <answer>3*8</answer>?</think><answer>3*8</answer>", None, False),
    ("<think>the <answer> tag</think><answer>3*8</answer>", None, False),
    ("<think>a</think><answer><answer>3*8</answer></answer>", None, False),
    ("<think>a</think><answer>3*8<answer></answer>", None, False),
    (GOOD + "</answer>", None, False),
]


@pytest.mark.parametrize(("text", "answer", "well_formed"), TABLE)
def test_table(text: str, answer: str | None, well_formed: bool) -> None:
    parsed = split_completion(text)
    assert (parsed.answer, parsed.well_formed) == (answer, well_formed)
    assert (parsed.reason is None) == well_formed


@pytest.mark.parametrize(("text", "answer", "well_formed"), TABLE)
def test_opened_by_the_prompt_is_the_same_completion_less_its_first_tag(
    text: str, answer: str | None, well_formed: bool
) -> None:
    head, tag, rest = text.partition("<think>")
    if tag and not head.strip():
        parsed = split_completion(rest, think_opened=True)
        assert (parsed.answer, parsed.well_formed) == (answer, well_formed)


def test_opening_again_what_the_prompt_opened_is_ill_formed() -> None:
    assert split_completion(GOOD, think_opened=True).reason == "<think> opened again"
    assert split_completion("a</think><answer>1</answer>", think_opened=True).well_formed
    assert not split_completion("a<answer>1</answer>", think_opened=True).well_formed


def test_the_thinking_is_the_best_guess_where_ill_formed() -> None:
    assert split_completion(GOOD).think == "a"
    assert split_completion("<think>a, cut").think == "a, cut"
    assert split_completion("<think>a<answer>1").think == "a"
    assert split_completion("no tags").think == "no tags"
    assert split_completion("a</think>b", think_opened=True).think == "a"


_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_INSIDE = r"(?:(?!</?think>|</?answer>).)*"
_GRAMMAR = re.compile(rf"[ \t\r\n]*<think>{_INSIDE}</think>[ \t\r\n]*<answer>{_INSIDE}</answer>[ \t\r\n]*", re.DOTALL)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*_TAGS, " ", "\n", "a", "1+1", "<", "\u3000"]), max_size=12).map("".join))
def test_well_formed_is_exactly_the_grammar(text: str) -> None:
    assert split_completion(text).well_formed == (_GRAMMAR.fullmatch(text) is not None)
    assert split_completion(text, think_opened=True).well_formed == (_GRAMMAR.fullmatch("<think>" + text) is not None)


@pytest.mark.parametrize("piece", [*_TAGS, " ", "<think></think>", "<answer>1</answer>", "<", "\n<answer>"])
def test_time_is_linear(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    start = time.process_time()
    split_completion(text)
    split_completion("<think>a</think>" + text + "<answer>1</answer>")
    assert time.process_time() - start < 0.5
