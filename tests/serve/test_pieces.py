"""What is shown of a reply that arrives in bits: never half a character, never half a tag, nothing lost."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.serve.pieces import Characters, Piece, Splitter

TEXTS = ["你好，世界！", "naïve café – 24 €", "😀👍🏽 ok", "mixed 中文 and 日本語 \n\n tabs\t.", "e\u0301", ""]


@pytest.fixture(scope="module")
def spelled() -> Tokenizer:
    """No merges: one token a byte, so that every character is split."""
    return train_from_texts(["a"], 271)


@pytest.fixture(scope="module")
def merged() -> Tokenizer:
    """Merges that end inside characters: Chinese letters share their first bytes."""
    return train_from_texts(["你好世界中文日本語" * 20, "你们好世人中日" * 20, "😀👍" * 20], 300)


@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_whole_and_all_of_them(spelled: Tokenizer, merged: Tokenizer, text: str) -> None:
    for tokenizer in (spelled, merged):
        ids = tokenizer.encode(text)
        spell = Characters(tokenizer)
        bits = [spell.feed(token) for token in ids]
        assert all("\ufffd" not in bit for bit in bits)
        assert "".join(bits) + spell.flush() == tokenizer.decode(ids)


def test_a_character_is_shown_with_its_last_byte_and_not_before(spelled: Tokenizer) -> None:
    spell = Characters(spelled)
    assert [spell.feed(token) for token in spelled.encode("a好b")] == ["a", "", "", "好", "b"]


def test_bytes_that_are_no_text_do_not_hold_back_what_follows(spelled: Tokenizer) -> None:
    broken = spelled.encode("好")[:2]
    emoji = spelled.encode("😀")
    for ids in itertools.product([broken, broken[1:], emoji, spelled.encode("x")], repeat=4):
        flat = [token for part in ids for token in part]
        spell = Characters(spelled)
        shown = [spell.feed(token) for token in flat]
        assert "".join(shown) + spell.flush() == spelled.decode(flat)
        # A whole emoji is never cut in two, whatever garbage stood before it.
        assert "".join(shown).count("😀") + spell.flush().count("😀") == ids.count(emoji)


def pieces_of(text: str, cuts: list[int]) -> list[Piece]:
    """Fed in parts; neighbours of one kind joined."""
    splitter = Splitter()
    found = []
    for start, end in itertools.pairwise([0, *cuts, len(text)]):
        found += splitter.feed(text[start:end])
    found += splitter.flush()
    return [Piece(k, "".join(p.text for p in ps)) for k, ps in itertools.groupby(found, lambda piece: piece.kind)]


REPLIES = {
    "<think>3*8=24</think>\nIt is <answer>24</answer>.": [
        ("thinking", "3*8=24"),
        ("text", "It is "),
        ("answer", "24"),
        ("text", "."),
    ],
    " <think>\n想</think>\n<answer>二</answer>": [("thinking", "想"), ("answer", "二")],
    "1 < 2 and a</b, <thinks>": [("text", "1 < 2 and a</b, <thinks>")],
    "no </think> here, no </answer>": [("text", "no </think> here, no </answer>")],
    "<think>a <think> b <answer>c</answer></think>d": [("thinking", "a <think> b <answer>c</answer>"), ("text", "d")],
    "<answer>1</answer><answer>2": [("answer", "12")],
    "<think></think>hi": [("text", "hi")],
    "<think>cut </thi": [("thinking", "cut </thi")],
    "": [],
}


@pytest.mark.parametrize("text", REPLIES)
def test_tags_are_found_however_the_text_is_cut(text: str) -> None:
    expected = REPLIES[text]
    assert pieces_of(text, []) == expected
    assert pieces_of(text, list(range(1, len(text)))) == expected
    draw = Random(0)
    for _ in range(50):
        assert pieces_of(text, sorted(draw.sample(range(len(text)), min(3, len(text))))) == expected


def test_what_cannot_be_a_tag_is_shown_at_once() -> None:
    splitter = Splitter()
    assert splitter.feed("It is <") == [Piece("text", "It is ")]
    assert splitter.feed("3") == [Piece("text", "<3")]
