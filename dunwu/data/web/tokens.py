"""Tokens of cleaned pages: counted, kept per task, and shuffled into shards at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.data.shards import ShardWriter
from dunwu.data.tokenizer import Tokenizer
from dunwu.disk import disk_errors, fsync
from dunwu.types import derive_seed


@lru_cache(maxsize=2)
def open_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name ("gpt2") or folder; once per process."""
    from dunwu.data.tokenizer import load_tokenizer

    return load_tokenizer(name)


def counter(name: str) -> Callable[[str], Sequence[int]]:
    """The encoder for counting: special text in a page is text."""
    from dunwu.data.encoding import fast_encoder

    return fast_encoder(open_tokenizer(name), "tags")


class TokenWriter:
    """One task's tokens, a page after another: `RANK.bin`, with the pages' lengths in `RANK.npy`. Whole or absent."""

    def __init__(self, folder: Path, rank: int, tokenizer: str) -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.folder, self.rank = folder, rank
            self.dtype = id_type(open_tokenizer(tokenizer).vocab_size)
            self._temporary = folder / f".{rank:05d}.{os.getpid()}.tmp"
            self._file = open(self._temporary, "wb")  # noqa: SIM115
        self.lengths: list[int] = []

    def add(self, ids: Sequence[int]) -> None:
        """Append a page."""
        with disk_errors(self.folder):
            self._file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.lengths.append(len(ids))

    def close(self) -> None:
        """Put both files in their place, the lengths last."""
        with disk_errors(self.folder):
            self._file.close()
            fsync(self._temporary)
            os.replace(self._temporary, self.folder / f"{self.rank:05d}.bin")
            lengths = self.folder / f".{self.rank:05d}.{os.getpid()}.npy"
            np.save(lengths, np.asarray(self.lengths, np.int64))
            os.replace(lengths, self.folder / f"{self.rank:05d}.npy")
            fsync(self.folder)


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds an id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def shuffle_into_shards(folder: Path, tasks: int, out: Path, tokenizer: str, seed: int) -> dict[str, Any]:
    """All tasks' pages in a seeded order: tasks shuffled, and the pages of each. Memory: the lengths of one task.

    Returns:
        the index, as `ShardWriter` writes it.
    """
    encoder = open_tokenizer(tokenizer)
    writer = ShardWriter(out, encoder.vocab_size, encoder.end_id)
    order = np.random.default_rng(derive_seed("shards", seed)).permutation(tasks)
    for rank in order:
        writer.add(_shuffled(folder, int(rank), writer.dtype, seed))
    return writer.close(tokenizer=tokenizer, seed=seed)


def _shuffled(folder: Path, rank: int, dtype: np.dtype[Any], seed: int) -> Iterator[list[int]]:
    lengths: NDArray[np.int64] = np.load(folder / f"{rank:05d}.npy", allow_pickle=False)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    handle = os.open(folder / f"{rank:05d}.bin", os.O_RDONLY)
    try:
        for page in np.random.default_rng(derive_seed("shards", seed, rank)).permutation(len(lengths)):
            width = dtype.itemsize
            raw = os.pread(handle, int(lengths[page]) * width, int(starts[page]) * width)
            yield np.frombuffer(raw, dtype).tolist()
    finally:
        os.close(handle)


def read_index(shards: Path) -> dict[str, Any]:
    """The index of a shard folder."""
    index: dict[str, Any] = json.loads((shards / "index.json").read_text(encoding="utf-8"))
    return index
