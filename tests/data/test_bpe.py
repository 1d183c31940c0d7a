"""The trainer: equal to tokenizers' and to brute force, 64-bit counts, bounded memory, an even and stated sample."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data.bpe import BpeConfig, WordTable, split_words, train_bpe, train_tokenizer
from dunwu.data.merges import byte_letters, train_merges
from dunwu.data.samples import even_sample, pieces, read_texts, text_size
from dunwu.data.tokenizer import TAGS, load_tokenizer, train_from_texts
from dunwu.types import DunwuError, UsageError
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages


def brute_force(words: dict[bytes, int], merges: int, min_count: int = 2) -> list[tuple[bytes, bytes]]:
    """Count all pairs anew before every merge."""
    letters = byte_letters()
    age = {bytes([byte]): place for place, byte in enumerate(sorted(range(256), key=lambda b: letters[b]))}
    split = [([bytes([byte]) for byte in word], count) for word, count in words.items()]
    made: list[tuple[bytes, bytes]] = []
    while len(made) < merges:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for tokens, count in split:
            for pair in pairwise(tokens):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], age[pair[0]], age[pair[1]]))
        if counts[best] < min_count:
            break
        made.append(best)
        age[best[0] + best[1]] = len(age)
        for tokens, _ in split:
            place = 0
            while place + 1 < len(tokens):
                if (tokens[place], tokens[place + 1]) == best:
                    tokens[place : place + 2] = [best[0] + best[1]]
                place += 1
    return made


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("ab\u00e9中", max_size=12).map(str.encode), st.integers(1, 5), max_size=12))
def test_merges_are_those_of_brute_force(words: dict[bytes, int]) -> None:
    assert train_merges(words, 40, 1) == brute_force(words, 40, 1)
    assert train_merges(words, 7) == brute_force(words, 7)


@pytest.mark.parametrize("run", [1, 2, 3, 4, 5, 7, 8, 100])
def test_runs_of_one_letter_merge_from_the_left(run: int) -> None:
    words = {b"a" * run: 3, b"xa" + b"a" * run: 2}
    assert train_merges(words, 20) == brute_force(words, 20)


def test_the_whole_tokenizer_is_that_of_the_library() -> None:
    texts = [page.text for page in islice(pages(Knobs(), 0), 300)] + ["你好，世界！ naïve café\r\n"] * 3
    for tag in TAGS:
        texts = [text.replace(tag, " ") for text in texts]
    words = Counter(word for text in texts for word in split_words(text, "qwen2"))
    assert (
        train_bpe(words, BpeConfig(700, min_count=1)).backend.to_str() == train_from_texts(texts, 700).backend.to_str()
    )


def test_counts_above_32_bits_are_exact() -> None:
    big = 1 << 33
    # 32 bits would see 5 and 1 + 2^31 wrapped to a negative number, and put the second pair first.
    words = {b"xy": big + 5, b"pq": big + 6, b"rs": 7, b"tu": (1 << 31) + 1}
    assert train_merges(words, 9) == [(b"p", b"q"), (b"x", b"y"), (b"t", b"u"), (b"r", b"s")]
    small = {b"abcabc": 9, b"bcd": 10, b"cda": 8, b"aab": 3}
    huge = {word: count * (1 << 50) for word, count in small.items()}
    assert train_merges(huge, 20) == train_merges(small, 20)
    with pytest.raises(DunwuError, match="2\\^62"):
        train_merges({b"ab": 1 << 62}, 1)


def test_nothing_to_merge() -> None:
    assert train_merges({}, 5) == train_merges({b"": 9, b"a": 9}, 5) == train_merges({b"ab": 1}, 5) == []


def test_a_thinned_table_is_bounded_and_right_on_average() -> None:
    words = [f"w{n % 4000}" if n % 3 else "often" for n in range(60_000)]
    exact = Counter(words)
    table = WordTable(1000)
    for start in range(0, len(words), 500):
        table.add(words[start : start + 500])
        assert len(table.counts) <= 1000
    again = WordTable(1000)
    for start in range(0, len(words), 500):
        again.add(words[start : start + 500])
    assert table.counts == again.counts and table.thinned > 0
    assert table.counts["often"] == exact["often"]
    assert sum(table.counts.values()) == pytest.approx(len(words), rel=0.1)
    whole = WordTable(5000)
    whole.add(words)
    assert whole.counts == exact and whole.thinned == 0


def test_a_sample_is_even_and_the_same_every_time(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n:05d}" * (1 + n % 7)}) + "\n" for n in range(2000)))
    taken = [[int(text[:5]) for text, inside in even_sample([file], 0.25) if inside] for _ in range(2)]
    assert taken[0] == taken[1]
    sizes = [5 * (1 + n % 7) for n in range(2000)]
    for part in range(4):
        inside = [n for n in taken[0] if part * 500 <= n < part * 500 + 500]
        assert sum(sizes[n] for n in inside) == pytest.approx(
            0.25 * sum(sizes[part * 500 : part * 500 + 500]), rel=0.05
        )
    assert sum(inside for _, inside in even_sample([file], 1.0)) == 2000


def test_files_of_every_form_hold_the_same_texts(tmp_path: Path) -> None:
    texts = ["one\ntwo", "三 个字", "naïve"]
    rows = "".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows[:20]) + gzip.compress(rows[20:]))
    packer = zstandard.ZstdCompressor()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(rows[:20]) + packer.compress(rows[20:]))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        assert list(read_texts(tmp_path / name)) == texts
        assert text_size(tmp_path / name) == len(rows)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("行\n".encode() * 50_000))
    assert "".join(read_texts(tmp_path / "b.txt.gz")) == "行\n" * 50_000
    parquet = pytest.importorskip("pyarrow.parquet", reason="the [data] extra is not installed")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": texts, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert list(read_texts(tmp_path / "a.parquet")) == texts and text_size(tmp_path / "a.parquet") > 0
    parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "none.parquet")
    with pytest.raises(DunwuError, match="no column 'text'"):
        list(read_texts(tmp_path / "none.parquet"))


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    cases = {
        "torn.jsonl.gz": (whole[:-9], "is damaged"),
        "no.txt.gz": (b"text", "is damaged"),
        "no.txt.zst": (b"text", "is damaged"),
        "bad.jsonl.gz": (gzip.compress(b'{"text": "a"}\n{"t": 1}\n'), "gz:2"),
        "num.jsonl.gz": (gzip.compress(b'{"text": 1}\n'), "gz:1"),
        "latin.txt.gz": (gzip.compress("naïve".encode("latin-1")), "not UTF-8"),
        "bad.jsonl": (b'{"text": "fine"}\n{"texts": "no"}\n', "jsonl:2"),
        "latin.txt": ("naïve".encode("latin-1"), "not UTF-8"),
        "empty.txt": (b"", "no text"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DunwuError, match=said):
            train_tokenizer([tmp_path / name], BpeConfig(300), tmp_path / "out")
    with pytest.raises(DunwuError, match="no file"):
        train_tokenizer([tmp_path / "nowhere.txt"], BpeConfig(300), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None)
@given(st.text("ab \n", max_size=60), st.integers(1, 9))
def test_pieces_make_the_text_again(text: str, length: int) -> None:
    cut = list(pieces(text, length))
    assert "".join(cut) == text and all(0 < len(piece) <= length for piece in cut)


@pytest.mark.parametrize("split", ["qwen2", "gpt2"])
def test_files_become_a_folder_that_says_how(split: str, tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("".join(page.text + "\n" for page in islice(pages(Knobs(), 0), 400)), encoding="utf-8")
    config = BpeConfig(600, split, ("<|tool|>",), sample_bytes=file.stat().st_size // 3)  # type: ignore[arg-type]
    stages: dict[str, list[float]] = {}
    tokenizer, record = train_tokenizer(
        [file, file], config, tmp_path / "out", lambda stage, done, of: stages.setdefault(stage, []).append(done / of)
    )
    assert record == json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))
    assert record["bytes_seen"] == 2 * file.stat().st_size and record["split"] == split
    assert 0 < record["bytes_sampled"] <= config.sample_bytes
    assert [item["file"] for item in record["files"]] == [str(file)] * 2
    assert stages["count"][-1] == stages["merge"][-1] == 1 and sorted(stages["count"]) == stages["count"]
    loaded = load_tokenizer(tmp_path / "out")
    assert loaded.backend.to_str() == tokenizer.backend.to_str() and loaded.vocab_size == 600 == record["vocab_size"]
    assert len(loaded.encode("<|tool|>")) == len(loaded.encode("<think>")) == 1
    digits = [loaded.token(index) for index in loaded.encode("1974")]
    assert digits == list("1974") if split == "qwen2" else len(digits) <= 4
    assert loaded.decode(loaded.encode("e\u0301")) == ("é" if split == "qwen2" else "e\u0301")


def test_same_ids_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    for split in ("qwen2", "gpt2"):
        words = Counter(word for page in islice(pages(Knobs(), 0), 100) for word in split_words(page.text, split))  # type: ignore[arg-type]
        tokenizer = train_bpe(words, BpeConfig(600, split))  # type: ignore[arg-type]
        tokenizer.save(tmp_path / split)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / split)
        for text in (*(page.text for page in islice(pages(Knobs(), 1), 30)), "<think>1974</think>", "e\u0301 你好\r\n"):
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
            assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert theirs.eos_token_id == tokenizer.end_id


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    for config, said in (
        (BpeConfig(100), "too small"),
        (BpeConfig(300, special=("<think>",)), "taken"),
        (BpeConfig(300, special=("<|a|>", "<|a|>")), "taken"),
        (BpeConfig(300, special=(" ",)), "empty"),
        (BpeConfig(300, sample_bytes=0), "--sample-bytes"),
    ):
        with pytest.raises(UsageError, match=said):
            train_tokenizer([tmp_path / "x.txt"], config, tmp_path / "out")
    with pytest.raises(UsageError, match="too small"):
        train_bpe({"a": 1}, BpeConfig(100))
