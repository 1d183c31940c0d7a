"""Packed shards: every token once an epoch, order a function of the step, nothing mapped into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dunwu.data.documents import read_documents
from dunwu.data.shards import PackedShards, ShardWriter
from dunwu.types import DunwuError


def write(folder: Path, tokens: int, shard_tokens: int = 1000, vocab: int = 60_000) -> None:
    writer = ShardWriter(folder, vocab, end_id=0, shard_tokens=shard_tokens)
    writer.add([range(start, min(start + 99, tokens)) for start in range(1, tokens, 99)])
    writer.close()


def test_windows_are_consecutive_and_each_comes_once(tmp_path: Path) -> None:
    write(tmp_path, 5000)
    shards = PackedShards(tmp_path, length=16, seed=1)
    flat = np.concatenate([np.fromfile(tmp_path / f"{n:05d}.bin", "<u2") for n in range(len(shards.lengths))])
    text = flat.astype("<u2").tobytes()
    windows = [shards.batch(step, 1)[0] for step in range(shards.total)]
    assert all(window.astype("<u2").tobytes() in text for window in windows)
    starts = {int(window[0]) * 65536 + int(window[1]) for window in windows}
    assert len(starts) == shards.total  # one epoch repeats nothing
    assert shards.total * 16 > 0.9 * len(flat)


def test_batches_are_a_function_of_the_step(tmp_path: Path) -> None:
    write(tmp_path, 3000)
    a, b = PackedShards(tmp_path, 8, seed=3), PackedShards(tmp_path, 8, seed=3)
    later = [a.batch(step, 4) for step in range(200)][150]
    assert np.array_equal(b.batch(150, 4), later)  # without having read what came before
    assert not np.array_equal(PackedShards(tmp_path, 8, seed=4).batch(150, 4), later)
    rows = np.concatenate([a.batch(0, 4), a.batch(1, 4)])
    assert np.array_equal(rows, a.batch(0, 8))  # batch size does not change the order


def test_epochs_differ(tmp_path: Path) -> None:
    write(tmp_path, 2000)
    shards = PackedShards(tmp_path, 16, seed=0)
    first = {shards.batch(step, 1).tobytes() for step in range(shards.total)}
    second = {shards.batch(shards.total + step, 1).tobytes() for step in range(shards.total)}
    assert len(first & second) < shards.total // 4  # the phase moved the borders


def test_wide_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 200_000, end_id=199_999)
    writer.add([[150_000, 1] * 40])
    writer.close()
    shards = PackedShards(tmp_path, 8, seed=0)
    assert set(np.unique(shards.batch(0, 4))) <= {150_000, 1, 199_999} and shards.tokens == 81


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(DunwuError, match="no token shards"):
        PackedShards(tmp_path, 8, seed=0)
    write(tmp_path, 20)
    with pytest.raises(DunwuError, match="too few"):
        PackedShards(tmp_path, 64, seed=0)


def test_documents_stream_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {n} 中文\n" for n in range(20_000)), encoding="utf-8")
    documents = list(read_documents(path))
    assert "".join(documents) == path.read_text(encoding="utf-8")
    assert len(documents) > 2 and all(document.endswith("\n") for document in documents)
