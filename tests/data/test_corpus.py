"""A user's files in two parts, and token folders read in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dunwu.data.corpus import PIECE, read_part, token_bytes
from dunwu.data.shards import ShardWriter, TokenFolder
from dunwu.data.tokenizer import train_from_texts
from dunwu.types import DunwuError


@pytest.mark.parametrize("text", ["a" * 200_000, "中" * 70_001, "word " * 40_000, "line 1\r\nline é\r\n\r\n" * 9_000])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_parts_are_the_file(tmp_path: Path, text: str, share: float) -> None:
    """Byte for byte, in pieces, whatever the line ends and wherever the cut falls."""
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    parts = [list(read_part(path, part, share)) for part in ("train", "held-out")]
    assert "".join(piece for part in parts for piece, _ in part) == text
    for part in parts:
        assert [last for _, last in part] == [False] * (len(part) - 1) + [True]
        assert all(len(piece.encode()) <= 2 * PIECE for piece, _ in part)
    held_out = sum(len(piece.encode()) for piece, _ in parts[1])
    assert -1 < len(text.encode()) * share - held_out < 3  # the cut moves to the end of a character


def test_pieces_end_with_a_line_or_before_a_space(tmp_path: Path) -> None:
    """So that nothing a tokenizer keeps together is cut."""
    path = tmp_path / "book.txt"
    path.write_text("some words here\n" * 30_000, encoding="utf-8")
    pieces = [text for text, _ in read_part(path, "train")]
    assert len(pieces) > 5 and all(piece.endswith("\n") for piece in pieces[:-1])
    path.write_text("some words here " * 30_000, encoding="utf-8")
    pieces = [text for text, _ in read_part(path, "train")]
    assert len(pieces) > 5 and all(piece.startswith(" ") for piece in pieces[1:])


def test_jsonl_parts_are_its_first_and_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(f'{{"text": "page {n}"}}\n' for n in range(25)), encoding="utf-8")
    assert list(read_part(path, "train")) == [(f"page {n}", True) for n in range(22)]
    assert list(read_part(path, "held-out")) == [(f"page {n}", True) for n in range(22, 25)]
    path.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert [list(read_part(path, part, 0.01)) for part in ("train", "held-out")] == [[("a", True)], [("b", True)]]


def test_a_file_that_shrinks_meanwhile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("line\n" * 40_000, encoding="utf-8")
    reading = read_part(path, "train")
    next(reading)
    path.write_text("line\n", encoding="utf-8")
    with pytest.raises(DunwuError, match="shorter"):
        list(reading)


def test_token_bytes_sum_to_the_text() -> None:
    text = "Wait, 等等 — naïve 😀 <think>\n\n\t<|im_end|>"
    tokenizer = train_from_texts([text * 3, "Wait, " * 9], 330)
    sizes = token_bytes(tokenizer)
    assert sizes.shape == (tokenizer.vocab_size,)
    for spelled_out in (False, True):
        ids = tokenizer.encode(text, allow_special=not spelled_out)
        special = 0 if spelled_out else len("<|im_end|>")
        assert sizes[ids].sum() == len(text.encode()) - special
    assert sizes[tokenizer.end_id] == 0
    assert sorted(sizes)[11] == 1 and sizes.max() > 1  # the 11 specials stand for nothing, a byte for itself


@pytest.mark.parametrize("shard_tokens", [7, 10, 1000])
def test_a_folder_reads_in_order_across_shards(tmp_path: Path, shard_tokens: int) -> None:
    documents = [list(range(1, 14)), [], [20, 21], list(range(30, 60))]
    expected = np.array([token for document in documents for token in (*document, 0)])
    writer = ShardWriter(tmp_path, 100, end_id=0, shard_tokens=shard_tokens)
    writer.add(documents[:2])
    writer.add_part([20], last=False)
    writer.add_part([21], last=True)
    writer.add(documents[3:])
    assert writer.tokens == len(expected)
    index = writer.close(note="中文")
    assert index["documents"] == 4 and index["note"] == "中文"
    assert sum(index["shards"]) == len(expected) and set(index["shards"][:-1]) <= {shard_tokens}
    folder = TokenFolder(tmp_path)
    for start in range(len(expected)):
        for count in (0, 1, 6, 11, 100):
            assert np.array_equal(folder.read(start, count), expected[start : start + count])
    folder.close()


def test_the_writer_holds_no_corpus(tmp_path: Path) -> None:
    """What has been added is on disk (or in the file's small buffer), not in a list."""
    writer = ShardWriter(tmp_path, 1000, end_id=0)
    for _ in range(10):
        writer.add([[1] * 99] * 1000)
    assert (tmp_path / "00000.bin").stat().st_size >= 2 * writer.tokens - 65_536 * 4
    assert writer.tokens == 1_000_000
    writer.close()
