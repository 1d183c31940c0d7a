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
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.types import DunwuError, derive_seed

SHARD_TOKENS = 1 << 22


class ShardWriter:
    """Appends documents to a shard folder; call `close` for the index. Holds no more than the tokens of one call.

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
        self._file: BufferedWriter | None = None

    @property
    def tokens(self) -> int:
        """Tokens written so far, end tokens included."""
        return sum(self.lengths)

    def add(self, documents: Iterable[Sequence[int]]) -> None:
        """Append tokenized documents."""
        ids: list[int] = []
        for document in documents:
            ids.extend(document)
            ids.append(self.end_id)
            self.documents += 1
            if len(ids) > 1 << 16:
                self._write(ids)
                ids = []
        self._write(ids)

    def add_part(self, ids: Sequence[int], last: bool) -> None:
        """Append a part of one long document; `last` ends it."""
        self._write([*ids, self.end_id] if last else ids)
        self.documents += last

    def close(self, **extra: Any) -> dict[str, Any]:
        """Write the index; returns it."""
        if self._file is not None:
            self._file.close()
        index = {"dtype": self.dtype.str, "shards": self.lengths, "documents": self.documents, **extra}
        (self.folder / "index.json").write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")
        return index

    def _write(self, ids: Sequence[int]) -> None:
        tokens = np.asarray(ids, dtype=self.dtype)
        while len(tokens):
            if self._file is None or self.lengths[-1] == self.shard_tokens:
                if self._file is not None:
                    self._file.close()
                self._file = open(self.folder / f"{len(self.lengths):05d}.bin", "wb")  # noqa: SIM115
                self.lengths.append(0)
            fitting = tokens[: self.shard_tokens - self.lengths[-1]]
            self._file.write(fitting.tobytes())
            self.lengths[-1] += len(fitting)
            tokens = tokens[len(fitting) :]


class TokenFolder:
    """The tokens of a shard folder in order, read where asked.

    Args:
        limit: see only the first `limit` tokens; None for all.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        index_file = folder / "index.json"
        if not index_file.is_file():
            raise DunwuError(f"no token shards at {folder}", "tokenize documents into it first")
        index = json.loads(index_file.read_text(encoding="utf-8"))
        self.folder, self.dtype = folder, np.dtype(index["dtype"])
        self.lengths: list[int] = index["shards"] if limit is None else _first(index["shards"], limit)
        self._files = [os.open(folder / f"{n:05d}.bin", os.O_RDONLY) for n in range(len(self.lengths))]

    @property
    def tokens(self) -> int:
        """Tokens on disk."""
        return sum(self.lengths)

    def read_shard(self, shard: int, start: int, count: int) -> NDArray[np.int64]:
        """(count,) ids of one shard; fewer at its end."""
        width = self.dtype.itemsize
        raw = os.pread(self._files[shard], count * width, start * width)
        return np.frombuffer(raw, dtype=self.dtype).astype(np.int64)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """(count,) ids from position `start` of the whole folder; fewer at its end."""
        parts = []
        for shard, length in enumerate(self.lengths):
            if start < length and count > 0:
                parts.append(self.read_shard(shard, start, min(count, length - start)))
                count -= len(parts[-1])
                start = length
            start -= length
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def close(self) -> None:
        """Close the shard files."""
        for file in self._files:
            os.close(file)
        self._files = []


class PackedShards:
    """Windows of `length + 1` tokens in a seeded order that is a pure function of the step.

    Every epoch shifts the window borders by a seeded phase, shuffles the shards, and shuffles
    the windows of each shard. A reader therefore resumes by its step alone.

    Args:
        length: tokens of a window that are predicted.
        limit: as in `TokenFolder`.
    """

    def __init__(self, folder: Path, length: int, seed: int, limit: int | None = None) -> None:
        self.data = TokenFolder(folder, limit)
        self.folder, self.length, self.seed = folder, length, seed
        self.lengths = self.data.lengths
        # One window of slack per shard leaves room for the epoch's phase.
        self.windows = [max(0, (n - 1) // length - 1) for n in self.lengths]
        self.total = sum(self.windows)
        if self.total == 0:
            self.close()
            raise DunwuError(
                f"{folder} holds {sum(self.lengths)} tokens, too few for windows of {length}",
                "give more text or a shorter context",
            )
        self._epoch: tuple[int, NDArray[np.int64], int] | None = None
        self._shard: tuple[int, int, NDArray[np.int64]] | None = None

    @property
    def tokens(self) -> int:
        """Tokens on disk."""
        return sum(self.lengths)

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """(rows, length + 1) ids: windows step·rows … of the endless shuffled sequence."""
        return np.stack([self._window(step * rows + row) for row in range(rows)])

    def window(self, position: int) -> NDArray[np.int64]:
        """(length + 1,) ids: window number `position` of the endless shuffled sequence, `total` of them an epoch."""
        return self._window(position)

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
        return self.data.read_shard(int(shard), start, self.length + 1)

    def close(self) -> None:
        """Close the shard files."""
        self.data.close()


def _first(lengths: Sequence[int], limit: int) -> list[int]:
    """Lengths of the shards that hold the first `limit` tokens.

    Example:
        >>> _first([10, 10, 10], 14)
        [10, 4]
    """
    kept: list[int] = []
    for length in lengths:
        if limit <= 0:
            break
        kept.append(min(length, limit))
        limit -= length
    return kept
