"""Replies kept on disk, so that nobody is asked the same thing twice, however often a run is killed.

`CachedChat` is for a judge, who may be asked in any order: one line of JSON per reply, appended whole before the next
batch is asked for. A line that cannot be read (a torn end after a power cut, a damaged byte) is ignored and counted: its
question is asked again. `in_chunks` is for a list that is asked from its beginning to its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dunwu.disk import canonical_json, disk_errors, write_atomically
from dunwu.types import ChatModel, Message, SamplingParams

BATCH = 64
"""Conversations asked for between two writes."""


class CachedChat:
    """A `ChatModel` that remembers.

    Args:
        model: who is asked; its name is part of every key.
        path: the JSONL file; created with its folder.

    `hits` and `asked` count conversations, `corrupt` the lines that could not be read.
    """

    def __init__(self, model: ChatModel, path: Path) -> None:
        self.model, self.path, self.name = model, path, model.name
        self.hits = self.asked = self.corrupt = 0
        self._known: dict[str, Message] = {}
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = path.read_bytes() if path.exists() else b""
            for line in stored.splitlines():
                self._read(line)
            if stored and not stored.endswith(b"\n"):
                with path.open("ab") as file:
                    file.write(b"\n")

    def reply(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Message]:
        """One reply to each conversation, in order; only the unknown ones reach the model."""
        keys = [self._key(talk, seed, params) for talk, seed in zip(conversations, seeds, strict=True)]
        missing = {key: place for place, key in enumerate(keys) if key not in self._known}
        self.hits += len(keys) - len(missing)
        places = sorted(missing.values())
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            replies = self.model.reply([conversations[p] for p in part], [seeds[p] for p in part], params)
            self._write([keys[p] for p in part], replies)
        return [self._known[key] for key in keys]

    def _key(self, conversation: Sequence[Message], seed: int, params: SamplingParams) -> str:
        parts = {"judge": self.name, "messages": [asdict(m) for m in conversation], "seed": seed, "params": params}
        return hashlib.sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, content, thinking = row["key"], row["content"], row["reasoning_content"]
        except (ValueError, KeyError, TypeError):
            self.corrupt += 1
            return
        if isinstance(key, str) and isinstance(content, str) and isinstance(thinking, str | None):
            self._known[key] = Message("assistant", content, thinking)
        else:
            self.corrupt += 1

    def _write(self, keys: Sequence[str], replies: Sequence[Message]) -> None:
        rows = [
            {"key": key, "content": reply.content, "reasoning_content": reply.reasoning_content}
            for key, reply in zip(keys, replies, strict=True)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(text.encode())
        self.asked += len(rows)
        self._known |= dict(zip(keys, replies, strict=True))


def in_chunks(folder: Path, total: int, chunk: int, ask: Callable[[int, int], list[Any]]) -> Iterator[list[Any]]:
    """`ask(start, end)` of every chunk of 0 … total, in order; what `folder` holds already is not asked again.

    Args:
        folder: one file for each chunk that is answered; created. Both ends are in its name, so that a killed run may go on
            with another `chunk`.
        ask: answers as JSON values.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     first = list(in_chunks(Path(folder), 5, 2, lambda start, end: list(range(start, end))))
        ...     again = list(in_chunks(Path(folder), 5, 2, lambda start, end: []))
        >>> first, again == first
        ([[0, 1], [2, 3], [4]], True)
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, total, chunk):
        end = min(total, start + chunk)
        file = folder / f"{start}-{end}.json"
        if not file.exists():
            write_atomically(file, json.dumps(ask(start, end)))
        answers: list[Any] = json.loads(file.read_text("utf-8"))
        yield answers
