"""Keys of documents on disk, sorted, in datatrove's layout: folders of dumps, of their buckets, in these a file per rank.

    FOLDER/00003.json                                rank 3 is whole: its settings, dumps, counts and checksums
    FOLDER/DUMP/bucket_000/00003.minhash.sig         its keys in bucket 0: W uint64 and the document's number, uint32

Everything is little-endian, and a record has no padding, as `struct` packs "<8QI". Files are whole or absent; a rank
without its JSON is unfinished and is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dunwu.data.web.sorted_rows import Rows, merge, sort_rows
from dunwu.disk import canonical_json, disk_errors, fsync, write_atomically
from dunwu.types import DunwuError

MEMORY = 256 << 20
"""Bytes of keys a rank holds before it writes a sorted part aside, and that a merge holds."""
AGAIN = "remove it and run that task again"


@dataclass(frozen=True)
class Layout:
    """What the files of a folder hold."""

    suffix: str
    """Ends the name of a file of keys."""
    buckets: int
    """Files of a rank in a dump."""
    width: int
    """uint64 of a key."""
    settings: Mapping[str, Any]
    """What made the keys; folders never mix two settings."""

    @property
    def record(self) -> np.dtype[Any]:
        """A key and its document's number, packed."""
        return np.dtype([("key", "<u8", (self.width,)), ("number", "<u4")])


class KeyWriter:
    """Collects the keys of one rank's documents; what an earlier try of the rank left is removed first.

    Nothing counts before `close`. Memory is bounded by `memory`, whatever the number of documents.

    Raises:
        DunwuError: no space, no permission; numbers that do not fit 32 bits.
    """

    def __init__(self, folder: Path, rank: int, layout: Layout, memory: int = MEMORY) -> None:
        self.folder, self.rank, self.layout, self._memory = folder, rank, layout, memory
        self._most = max(1, memory // (16 * layout.buckets * layout.width))
        self._held: dict[str, tuple[list[int], list[NDArray[np.uint64]]]] = {}
        self._count = 0
        self._aside: dict[str, list[list[_Part]]] = {}
        self._aside_folder = folder / f".aside-{rank:05d}"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._manifest.unlink(missing_ok=True)
            for old in folder.glob(f"*/bucket_*/{rank:05d}{layout.suffix}"):
                old.unlink()
            shutil.rmtree(self._aside_folder, ignore_errors=True)

    @property
    def _manifest(self) -> Path:
        return self.folder / f"{self.rank:05d}.json"

    def add_key(self, number: int, dump: str, key: NDArray[np.uint64]) -> None:
        """The key of document `number` of this rank: W uint64 for each bucket, or for the one `rows` puts it in."""
        if not 0 <= number < 1 << 32 or not 0 <= self.rank < 1 << 32:
            raise DunwuError(f"document {number} of rank {self.rank}", "numbers must fit 32 bits: use more tasks")
        numbers, keys = self._held.setdefault(dump, ([], []))
        numbers.append(number)
        keys.append(key)
        self._count += 1
        if self._count >= self._most:
            self._put_aside()

    def rows(self, keys: NDArray[np.uint64], numbers: NDArray[np.uint64], bucket: int) -> Rows:
        """The rows of `bucket` among documents with keys (documents, …); every document has one in each bucket."""
        return self._rows(keys.reshape(len(keys), self.layout.buckets, -1)[:, bucket], numbers)

    def _rows(self, keys: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> Rows:
        ranks = np.full(len(keys), self.rank, np.uint64)
        return np.concatenate([keys, ranks[:, None], numbers[:, None]], axis=1)

    def _sorted(self, dump: str) -> Iterator[Rows]:
        """What is held of a dump, bucket by bucket."""
        numbers, keys = self._held.get(dump, ([], []))
        if not keys:
            yield from (np.empty((0, self.layout.width + 2), np.uint64) for _ in range(self.layout.buckets))
            return
        stacked, names = np.array(keys, np.uint64).reshape(len(keys), -1), np.array(numbers, np.uint64)
        for bucket in range(self.layout.buckets):
            yield sort_rows(self.rows(stacked, names, bucket))

    def _put_aside(self) -> None:
        for dump in self._held:
            parts = self._aside.setdefault(dump, [[] for _ in range(self.layout.buckets)])
            for bucket, rows in enumerate(self._sorted(dump)):
                if not len(rows):
                    continue
                name = f"{safe_name(dump)}.{bucket:03d}.{len(parts[bucket])}"
                parts[bucket].append(_write(self._aside_folder / name, [rows], self.layout, durable=False))
        self._held.clear()
        self._count = 0

    def close(self) -> None:
        """Write the sorted files, then the rank's JSON."""
        dumps: dict[str, Any] = {}
        for dump in sorted(self._aside.keys() | self._held.keys()):
            name = safe_name(dump)
            written = []
            for bucket, rows in enumerate(self._sorted(dump)):
                path = self.folder / name / f"bucket_{bucket:03d}" / f"{self.rank:05d}{self.layout.suffix}"
                aside = self._aside[dump][bucket] if dump in self._aside else []
                block = block_size(self._memory, len(aside) + 1, self.layout)
                sources = [part.blocks(self.layout, self.rank, block) for part in aside]
                written.append(_write(path, merge([*sources, iter([rows] if len(rows) else [])]), self.layout))
            dumps[name] = {
                "dump": dump,
                "records": [part.records for part in written],
                "checksums": [part.checksum for part in written],
            }
        self._held.clear()
        shutil.rmtree(self._aside_folder, ignore_errors=True)
        with disk_errors(self._manifest):
            write_atomically(self._manifest, canonical_json({"layout": self.layout, "dumps": dumps}) + "\n")


@dataclass(frozen=True)
class _Part:
    """A sorted file with its number of records and checksum."""

    path: Path
    records: int
    checksum: str

    def blocks(self, layout: Layout, rank: int, block: int) -> Iterator[Rows]:
        """Its rows, `block` at a time; the file is open only while one is read.

        Raises:
            DunwuError: it is missing, or is not what was written; the file is named.
        """
        size, digest = layout.record.itemsize, hashlib.blake2b(digest_size=16)
        try:
            found = self.path.stat().st_size
        except FileNotFoundError:
            raise DunwuError(
                f"no file {self.path}", f"remove {rank:05d}.json above it and run that task again"
            ) from None
        if found != self.records * size:
            raise DunwuError(f"{self.path} has {found} bytes instead of {self.records * size}", AGAIN)
        for start in range(0, self.records, block):
            with self.path.open("rb") as file:
                file.seek(start * size)
                data = file.read(block * size)
            digest.update(data)
            if len(data) % size:
                break
            records = np.frombuffer(data, layout.record)
            rows = np.empty((len(records), layout.width + 2), np.uint64)
            rows[:, :-2], rows[:, -2], rows[:, -1] = records["key"], rank, records["number"]
            yield rows
        if digest.hexdigest() != self.checksum:
            raise DunwuError(f"{self.path} is damaged: its checksum is another", AGAIN)


def _write(path: Path, blocks: Iterable[Rows], layout: Layout, durable: bool = True) -> _Part:
    digest, count = hashlib.blake2b(digest_size=16), 0
    with whole_file(path, durable) as file:
        for rows in blocks:
            records = np.empty(len(rows), layout.record)
            records["key"], records["number"] = rows[:, :-2], rows[:, -1]
            data = records.tobytes()
            digest.update(data)
            file.write(data)
            count += len(rows)
    return _Part(path, count, digest.hexdigest())


@contextlib.contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write; it appears under its name when the block ends well, and not at all otherwise.

    Args:
        durable: it is on the disk then, not only in the system's memory.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            fsync(path.parent)


def block_size(memory: int, files: int, layout: Layout) -> int:
    """Records of each of `files` files that a merge within `memory` reads at a time."""
    return max(64, min(1 << 16, memory // (48 * (layout.width + 2) * max(1, files))))


def safe_name(dump: str) -> str:
    """A folder's name for a dump; what cannot stand in one gives way to a hash, so that two dumps never share a folder.

    Example:
        >>> safe_name("CC-MAIN-2024-10"), safe_name("../news"), safe_name("")
        ('CC-MAIN-2024-10', '_._news~878e3ef6', '_~e3b0c442')
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", dump):
        return dump
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", dump)[:80]
    digest = hashlib.sha256(dump.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"_{plain[1:]}~{digest}"


class KeyFiles:
    """The finished ranks of a folder.

    Args:
        ranks: how many there must be; None takes those that are there.

    Raises:
        DunwuError: no rank at all, one missing or unfinished, or ranks made with different settings.
    """

    def __init__(self, folder: Path, ranks: int | None = None) -> None:
        self.folder = folder
        found = {int(path.stem): path for path in folder.glob("[0-9]*.json")} if folder.is_dir() else {}
        if not found:
            raise DunwuError(f"no finished keys in {folder}", "check the path; the tasks that write keys come first")
        missing = sorted(set(range(ranks or 0)) - found.keys())
        if missing:
            raise DunwuError(f"{folder}: ranks {missing[:5]} of {ranks} are not finished", "run those tasks again")
        manifests = {rank: _manifest(path) for rank, path in sorted(found.items())}
        self._manifests = {rank: manifest["dumps"] for rank, manifest in manifests.items()}
        layouts = [manifest["layout"] for manifest in manifests.values()]
        for rank, layout in zip(manifests, layouts):
            if layout != layouts[0]:
                raise DunwuError(f"{found[rank]} was made with other settings than rank {min(found)}", AGAIN)
        self.layout = Layout(**layouts[0])
        for path in folder.glob(f"*/bucket_*/*{self.layout.suffix}"):
            stem = path.name.removesuffix(self.layout.suffix)
            if not stem.isdecimal() or path.parts[-3] not in self._manifests.get(int(stem), {}):
                raise DunwuError(f"{path} belongs to an unfinished task", "finish that task, or remove the file")

    def dumps(self) -> dict[str, str]:
        """Folder to name of every dump."""
        every = {folder: info["dump"] for dumps in self._manifests.values() for folder, info in dumps.items()}
        return dict(sorted(every.items()))

    def merged(self, dump: str, bucket: int, memory: int = MEMORY) -> Iterator[Rows]:
        """All rows of a bucket of a dump (its folder's name), sorted, in blocks."""
        parts = []
        for rank, dumps in self._manifests.items():
            if dump in dumps:
                name = f"{rank:05d}{self.layout.suffix}"
                path = self.folder / dump / f"bucket_{bucket:03d}" / name
                parts.append((rank, _Part(path, dumps[dump]["records"][bucket], dumps[dump]["checksums"][bucket])))
        block = block_size(memory, len(parts), self.layout)
        return merge([part.blocks(self.layout, rank, block) for rank, part in parts])


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Layout(**manifest["layout"])
        for dump in manifest["dumps"].values():
            buckets = manifest["layout"]["buckets"]
            if not len(dump["records"]) == len(dump["checksums"]) == buckets or not isinstance(dump["dump"], str):
                raise ValueError("not one count and checksum for each bucket")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DunwuError(f"{path} is damaged ({error})", AGAIN) from error
