"""Token shards on disk, and packed training windows read from them.

A shard folder holds `NNNNN.bin` (little-endian uint16, or uint32 for vocabularies above 65,536)
and `index.json`. Documents follow each other with the end token between; windows cross document
borders without a mask, as in V3's pretraining. Windows are read with pread, never mapped, so
memory does not grow with the corpus.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.types import DunwuError, derive_seed

SHARD_TOKENS = 1 << 22


class ShardWriter:
    """Appends documents to a shard folder; call `close` for the index.

    Args:
        folder: where the shards go; created.
        vocab_size: decides the width of an id.
        end_id: written after every document.
    """

    def __init__(self, folder: Path, vocab_size: int, end_id: int, shard_tokens: int = SHARD_TOKENS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.end_id, self.shard_tokens = folder, end_id, shard_tokens
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.lengths: list[int] = []
        self.documents = 0
        self._buffer: list[int] = []

    @property
    def tokens(self) -> int:
        """Tokens written so far, end tokens included."""
        return sum(self.lengths) + len(self._buffer)

    def add(self, documents: Iterable[Sequence[int]]) -> None:
        """Append tokenized documents."""
        for ids in documents:
            self._buffer.extend(ids)
            self._buffer.append(self.end_id)
            self.documents += 1
        while len(self._buffer) >= self.shard_tokens:
            self._write(self.shard_tokens)

    def close(self, **extra: Any) -> dict[str, Any]:
        """Write what is left and the index; returns the index."""
        if self._buffer:
            self._write(len(self._buffer))
        index = {"dtype": self.dtype.str, "shards": self.lengths, "documents": self.documents, **extra}
        (self.folder / "index.json").write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")
        return index

    def _write(self, count: int) -> None:
        path = self.folder / f"{len(self.lengths):05d}.bin"
        np.asarray(self._buffer[:count], dtype=self.dtype).tofile(path)
        self.lengths.append(count)
        del self._buffer[:count]


class PackedShards:
    """Windows of `length + 1` tokens in a seeded order that is a pure function of the step.

    Every epoch shifts the window borders by a seeded phase, shuffles the shards, and shuffles
    the windows of each shard. A reader therefore resumes by its step alone.
    """

    def __init__(self, folder: Path, length: int, seed: int) -> None:
        index_file = folder / "index.json"
        if not index_file.is_file():
            raise DunwuError(f"no token shards at {folder}", "tokenize documents into it first")
        index = json.loads(index_file.read_text(encoding="utf-8"))
        self.folder, self.length, self.seed = folder, length, seed
        self.dtype = np.dtype(index["dtype"])
        self.lengths: list[int] = index["shards"]
        # One window of slack per shard leaves room for the epoch's phase.
        self.windows = [max(0, (n - 1) // length - 1) for n in self.lengths]
        self.total = sum(self.windows)
        if self.total == 0:
            raise DunwuError(
                f"{folder} holds {sum(self.lengths)} tokens, too few for windows of {length}",
                "give more text or a shorter context",
            )
        self._files = [os.open(folder / f"{n:05d}.bin", os.O_RDONLY) for n in range(len(self.lengths))]
        self._epoch: tuple[int, NDArray[np.int64], int] | None = None
        self._shard: tuple[int, int, NDArray[np.int64]] | None = None

    @property
    def tokens(self) -> int:
        """Tokens on disk."""
        return sum(self.lengths)

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """(rows, length + 1) ids: windows step·rows … of the endless shuffled sequence."""
        return np.stack([self._window(step * rows + row) for row in range(rows)])

    def _window(self, position: int) -> NDArray[np.int64]:
        epoch, place = divmod(position, self.total)
        if self._epoch is None or self._epoch[0] != epoch:
            dice = np.random.default_rng(derive_seed("windows", self.seed, epoch))
            self._epoch = (epoch, dice.permutation(len(self.lengths)), int(dice.integers(self.length)))
        _, order, phase = self._epoch
        for shard in order:
            if place < self.windows[shard]:
                break
            place -= self.windows[shard]
        if self._shard is None or self._shard[:2] != (epoch, int(shard)):
            dice = np.random.default_rng(derive_seed("windows", self.seed, epoch, int(shard)))
            self._shard = (epoch, int(shard), dice.permutation(self.windows[shard]))
        start = int(self._shard[2][place]) * self.length + phase
        width = self.dtype.itemsize
        raw = os.pread(self._files[shard], (self.length + 1) * width, start * width)
        return np.frombuffer(raw, dtype=self.dtype).astype(np.int64)

    def close(self) -> None:
        """Close the shard files."""
        for file in self._files:
            os.close(file)
        self._files = []
