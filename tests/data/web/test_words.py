"""Words and sentences: spaCy's, by way of datatrove, for English; by hand for Chinese; bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data.web import words_en, words_tables
from dunwu.data.web.words import count_sentences, sentences, words
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

DATA = Path(__file__).parents[3].parent / "shared" / "data"
WHOLE = "DUNWU_PARITY" in os.environ
"""Whether to compare all of `../shared/data`: a minute or two."""


@cache
def datatroves() -> Any:
    """The word splitter FineWeb is counted with."""
    pytest.importorskip("spacy", reason="datatrove's English words are spaCy's")
    return pytest.importorskip("datatrove.utils.word_tokenizers").load_word_tokenizer("en")


def assert_equal(text: str) -> None:
    """Our words and sentences are datatrove's, and the fast count of sentences is right."""
    splitter = datatroves()
    assert words(text, "en") == splitter.word_tokenize(text), text
    ends = [end for _, end in splitter.span_tokenize(text)]
    theirs = [text[a:b] for a, b in zip([0, *ends[:-1]], [*ends[:-1], len(text)])]
    assert sentences(text, "en") == theirs, text
    assert count_sentences(text, "en") == len(theirs), text


def real_texts() -> Iterator[str]:
    """English of every kind, and Chinese, which must be split alike by these rules; a part of each, or the whole."""
    plays = (DATA / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    yield from (plays[start : start + 20_000] for start in range(0, len(plays), 20_000 if WHOLE else 160_000))
    for name in ("alpaca_en_demo", "dpo_en_demo", "alpaca_zh_demo"):
        rows = json.loads((DATA / "chat" / f"{name}.json").read_text(encoding="utf-8"))
        yield json.dumps(rows, ensure_ascii=False, indent=1)[: None if WHOLE else 100_000].replace("\\n", "\n")
    for name in ("gsm8k/test", "math500/test"):
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[: None if WHOLE else 100]
        yield "\n".join("\n".join(map(str, json.loads(line).values())) for line in lines)
    articles = json.loads((DATA / "pages" / "ground-truth.json").read_text(encoding="utf-8"))
    yield from [page["articleBody"] for page in articles.values()][:: 1 if WHOLE else 3]


@pytest.mark.skipif(not (DATA / "pages").is_dir(), reason="no ../shared/data")
def test_real_texts_are_split_as_datatrove_splits_them() -> None:
    for text in real_texts():
        assert_equal(text)


def test_world_pages_are_split_as_datatrove_splits_them() -> None:
    for page in islice(pages(Knobs(), 5), 200):
        assert_equal(page.text)


MARKS = list(".,:;!?'’\"()[]{}<>_#*&-–—~+=/%$€@^|\\°…。！？，、·؟")
_PARTS = """... .. -- --- —— …… US$ C$ :// http a B x ß Ж 中 3 0 12 km kg é ª ² Ⅷ 😀 © № ʔ ǅ www. com the He it's a.m. 10.0.0.1 8.8.8.8
x@y.com é.fr _x A. B.C z.B. 5% 1,000.50 3.Next"""
SPACES = [*[" "] * 12, "  ", "\n", "\n\n", "\t", "\u00a0", "\u3000", "\x1c", "\u2028"]
ATOMS = [*MARKS, *_PARTS.split(), *SPACES, *random.Random(0).sample(sorted(words_tables.EXCEPTIONS), 120)]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(ATOMS), max_size=30))
def test_heaps_of_marks_and_abbreviations_too(atoms: list[str]) -> None:
    assert_equal("".join(atoms))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_characters_too(text: str) -> None:
    assert_equal(text)


ADDRESSES = """http://a.b ftp://u:p@h.org:8080/x?y#z //x.com a@b a@b.cd @b.cd 10.1.2.3 11.1.2.3/a 223.255.1.1 224.1.1.1 192.168.0.1
x_y.com -x.com é-ü.fr a..b.com a.B a.b:1 a.b:12 x/y.com a.com/é@b,c mailto:me@home.net a@b@c.de/f@g ab://@c.de a@b/c@d.ef"""
LENGTHS = ["a" * 64 + ".com", "a" * 65 + ".com", "b." * 70 + "com", "x." + "a" * 64, "x." + "a" * 63]


@pytest.mark.parametrize("chunk", [*ADDRESSES.split(), *LENGTHS])
def test_addresses(chunk: str) -> None:
    assert_equal(chunk)
    assert_equal(f"({chunk}),")


def test_a_neighbour_may_keep_marks_apart() -> None:
    """spaCy's last pass looks across spaces: here `: (` and `) :` are in the way of `):` or are not."""
    for text in (
        "(so): yes",
        "x): ( y",
        "so) :) :(",
        "a) : ):",
        "x): )x",
        ":' ')",
        "x=( (=x",
        "= (x=( :",
        "it's) :(it's",
    ):
        assert_equal(text)


def test_tables_are_spacys() -> None:
    """Every class of characters and every exception."""
    spacy = pytest.importorskip("spacy")
    from spacy.lang import char_classes as classes
    from spacy.pipeline.sentencizer import Sentencizer

    def members(inside: str) -> set[str]:
        return set(re.findall(f"[{inside}]", "".join(map(chr, (*range(0xD800), *range(0xE000, 0x30000))))))

    for ours, theirs in (
        ("ALPHA", "ALPHA"),
        ("LOWER", "ALPHA_LOWER"),
        ("UPPER", "ALPHA_UPPER"),
        ("ICONS", "CONCAT_ICONS"),
    ):
        assert members(getattr(words_tables, ours)) == members(getattr(classes, theirs)), ours
    assert set(words_tables.UNITS) == set(classes.LIST_UNITS)
    assert set(Sentencizer.default_punct_chars) == words_tables.SENTENCE_ENDS
    tokenizer = spacy.blank("en").tokenizer
    rules = {chunk: tuple(token.text for token in tokenizer(chunk)) for chunk in tokenizer.rules if not chunk.isspace()}
    assert rules == words_tables.EXCEPTIONS


def test_what_is_remembered_changes_nothing_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_en, "MEMORY", 50)
    memory, shapes = words_en._Memory(), words_en._Shapes()
    monkeypatch.setattr(words_en, "_WORDS", memory)
    monkeypatch.setattr(words_en, "_SHAPES", shapes)
    monkeypatch.setattr(words_en, "chunk_words", memory.__getitem__)
    dice = random.Random(1)
    for _ in range(60):
        text = " ".join("".join(dice.choices("ab.:)('", k=dice.choice((1, 2, 3, 80)))) for _ in range(40))
        fresh = [word for _, word, _ in words_en._tokens(text) if not word.isspace()]
        assert words(text, "en") == fresh
        assert count_sentences(text, "en") == len(sentences(text, "en"))
        assert max(len(memory), len(memory.older), len(shapes)) <= 50 and len(memory.touchy) <= 100
        assert all(len(chunk) <= words_en.LONGEST_REMEMBERED for chunk in memory)


PIECES = ["(", ".", "a", "a@", "a.", "-", "a-", "...", "://", "a:b@c.d", "_", "):", "😀", "'s", "1km", "中", "。", "“"]


@pytest.mark.parametrize("piece", PIECES)
def test_endless_lines_without_spaces(piece: str) -> None:
    """Nothing is lost, nothing remembered; time that grows with the square would be minutes here."""
    text = piece * 20_000
    for label in ("en", "zh"):
        assert "".join(words(text, label)) == text
    assert count_sentences(text, "en") >= 1
    assert max(map(len, words_en._WORDS)) <= words_en.LONGEST_REMEMBERED


def test_chinese_characters_are_words() -> None:
    text = "DeepSeek-R1在2025年1月发布，准确率79.8%；它“会思考”！"
    parts = "DeepSeek - R1 在 2025 年 1 月 发 布 ， 准 确 率 79.8 % ； 它 “ 会 思 考 ” ！"
    for label in ("zh", "zh-Hans", "zh-Hant", "mixed"):
        assert words(text, label) == parts.split()
    assert words("東京はhot", "ja") == ["東", "京", "は", "hot"]
    assert words("𠮷〇々", "zh") == ["𠮷", "〇", "々"]
    assert words("", "zh") == words(" \n\u3000", "zh") == []
    assert words("Straße, l'été", "fr") == words("Straße, l'été", "en")


def test_chinese_sentences() -> None:
    text = "他说：“走吧！”我问：「去哪儿？」\n……没有人回答\n\nIt was late. 天黑了。"
    parts = ["他说：“走吧！”", "我问：「去哪儿？」\n", "……没有人回答\n\n", "It was late.", " 天黑了。"]
    assert sentences(text, "zh") == parts
    assert sentences("", "zh") == [""] and count_sentences("。！？", "zh") == 1


@given(st.text("好，。！？”\n .a1", max_size=30))
def test_sentences_are_the_whole_text(text: str) -> None:
    for label in ("zh", "en"):
        assert "".join(sentences(text, label)) == text
        assert count_sentences(text, label) == len(sentences(text, label))
