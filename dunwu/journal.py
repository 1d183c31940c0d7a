"""Append-only records, one per (stage, step), in two forms: lines of JSON, and zstd frames of such lines.

A kill leaves at most a torn record at the end; it is cut when the file is next opened for writing, and left
out when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from dunwu.disk import finite, plain

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl.zst"
Step = tuple[str, int]
"""(stage, step)."""


class Journal:
    """An append-only file of records, one per (stage, step). A torn or damaged end is cut on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[Step] = set()
        self.fresh: set[Step] = set()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (unbuffered: each record reaches the OS at once)
        good = 0
        for step, record, _ in _scan(path):
            self.seen.add(step)
            good += len(record)
        if good < self._file.seek(0, 2):
            self._file.truncate(good)

    def append(self, step: Step, record: bytes, fresh: bool) -> None:
        if step in self.fresh and fresh:
            raise ValueError(f"{self.path}: step {step[1]} of {step[0]} was already logged")
        if fresh:
            self.fresh.add(step)
        if step not in self.seen:
            self.seen.add(step)
            while record:
                record = record[self._file.write(record) :]

    def close(self) -> None:
        self._file.close()


class Journals:
    """The two journals of one folder: metrics and rollouts."""

    def __init__(self, directory: Path) -> None:
        self._by_name = {name: Journal(directory / name) for name in (METRICS, ROLLOUTS)}

    def append(self, name: str, step: Step, record: bytes) -> None:
        self._by_name[name].append(step, record, fresh=True)

    def replay(self, directory: Path) -> None:
        """Take over what the journals of another folder hold and these do not."""
        for name, journal in self._by_name.items():
            for step, record, _ in _scan(directory / name):
                journal.append(step, record, fresh=False)

    def forget_fresh(self) -> None:
        for journal in self._by_name.values():
            journal.fresh.clear()

    def close(self, keep_empty: bool = True) -> None:
        for journal in self._by_name.values():
            journal.close()
            if not keep_empty and not journal.seen:
                journal.path.unlink(missing_ok=True)


def read_metrics(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run folder's (or an artifact's) metrics, in the order logged; a torn end is left out."""
    for _, _, text in _scan(directory / METRICS):
        yield json.loads(text)


def read_rollouts(directory: Path) -> Iterator[dict[str, Any]]:
    """The groups of a run folder (or an artifact), one dict each, a step in memory at a time."""
    for _, _, text in _scan(directory / ROLLOUTS):
        for line in text.splitlines():
            yield json.loads(line)


def _scan(path: Path) -> Iterator[tuple[Step, bytes, bytes]]:
    """(stage and step, record as stored, its text) up to the first torn or damaged record; nothing if no file."""
    records = _frames(path) if path.suffix == ".zst" else _lines(path)
    for record, text in records:
        try:
            first = json.loads(text.split(b"\n", 1)[0])
            step = (str(first["stage"]), int(first["step"]))
        except (ValueError, KeyError, TypeError):
            return
        yield step, record, text


def _lines(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield line, line


def _frames(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        pending = b""
        while True:
            frame = zstandard.ZstdDecompressor().decompressobj()
            stored, text = bytearray(), bytearray()
            while not frame.eof:
                chunk = pending or file.read(1 << 16)
                pending = b""
                if not chunk:
                    return
                try:
                    text += frame.decompress(chunk)
                except zstandard.ZstdError:
                    return
                stored += chunk
            pending = frame.unused_data
            yield bytes(stored[: len(stored) - len(pending)]), bytes(text)


def line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON; NaN and infinities become null."""
    text = json.dumps(finite(plain(record)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def zstd_frame(text: bytes) -> bytes:
    """One checksummed zstd frame; frames in a row are one valid .zst file."""
    return zstandard.ZstdCompressor(6, write_checksum=True).compress(text)
