"""What became of every page: counted by step and reason, with a few samples of each to look at.

One `Ledger` goes with the steps of a task. Nothing in it depends on how many workers there are: samples are those whose
id hashes lowest, so the union over tasks is the same whoever did them.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dunwu.data.web.records import RecordWriter
from dunwu.disk import write_atomically
from dunwu.types import DunwuError

SAMPLES = 4
"""Dropped pages kept for looking, per step and reason."""
SHOWN = 12
"""Kept pages shown before and after."""
EXCERPT = 1500
"""Characters of a sample."""
_HEARTBEAT = 0.5


class Ledger:
    """Counts of one task, and its heartbeat for the progress line.

    Pages seen = pages kept + pages dropped, always: `finish` says so or raises.
    """

    def __init__(self) -> None:
        self.seen = self.kept = 0
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.notes: Counter[tuple[str, str]] = Counter()
        self.histograms: dict[str, Counter[str]] = {}
        self.samples: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
        self.shown: list[tuple[int, dict[str, Any]]] = []
        self.done_bytes = 0
        self.list: RecordWriter | None = None
        self._beat: Path | None = None
        self._beat_at = 0.0
        self._parent = os.getppid()
        self._in_pool = False

    def begin(self, heartbeat: Path, listed: Path | None = None) -> None:
        """Forget everything; a task begins.

        Args:
            listed: where every dropped page's id, step and reason are written, if anywhere.
        """
        self.__init__()  # type: ignore[misc]
        self._beat = heartbeat
        self._in_pool = _in_pool()
        self.list = RecordWriter(listed) if listed else None
        heartbeat.parent.mkdir(parents=True, exist_ok=True)
        self._tell()

    def see(self, count: int = 1) -> None:
        """Pages came in."""
        self.seen += count
        self._tick()

    def drop(self, step: str, reason: str, identity: str, url: str, text: str) -> None:
        """A page goes, for this reason."""
        self.dropped[step, reason] += 1
        if self.list:
            self.list.write({"id": identity, "step": step, "reason": reason})
        heap = self.samples.setdefault((step, reason), [])
        _keep_lowest(heap, identity, SAMPLES, {"id": identity, "url": url, "text": text[:EXCERPT]})

    def keep(self, language: str, characters: int, histograms: Mapping[str, str] | None = None) -> None:
        """A page stays."""
        self.kept += 1
        self.count("language", language)
        self.count("characters", _bin(characters))
        for name, value in (histograms or {}).items():
            self.count(name, value)

    def note(self, step: str, name: str, count: int = 1) -> None:
        """Something worth a number that is no dropped page: replaced addresses, removed lines, damaged members."""
        if count:
            self.notes[step, name] += count

    def count(self, histogram: str, value: str) -> None:
        """One more of `value`."""
        self.histograms.setdefault(histogram, Counter())[value] += 1

    def show(self, identity: str, before: Mapping[str, str]) -> None:
        """Remember how a kept page looked on the way, if it is among the few."""
        clipped = {name: text[:EXCERPT] for name, text in before.items()}
        _keep_lowest(self.shown, identity, SHOWN, {"id": identity, **clipped})

    def would_show(self, identity: str) -> bool:
        """Is it worth carrying this page's raw text along?"""
        return len(self.shown) < SHOWN or _place(identity) < -self.shown[0][0]

    def as_json(self) -> dict[str, Any]:
        """Everything, in a stable order."""
        return {
            "seen": self.seen,
            "kept": self.kept,
            "dropped": _nested(self.dropped),
            "notes": _nested(self.notes),
            "histograms": {name: dict(sorted(counts.items())) for name, counts in sorted(self.histograms.items())},
            "samples": [
                {"step": step, "reason": reason, "place": -place, **sample}
                for (step, reason), heap in sorted(self.samples.items())
                for place, sample in sorted(heap, key=lambda item: -item[0])
            ],
            "shown": [{"place": -place, **page} for place, page in sorted(self.shown, key=lambda item: -item[0])],
        }

    def finish(self, path: Path, **also: Any) -> None:
        """Write the task's counts.

        Raises:
            DunwuError: pages in and pages out differ, which is a defect of ours.
        """
        lost = self.seen - self.kept - sum(self.dropped.values())
        if lost:
            raise DunwuError(f"{lost} pages of {path.stem} are not accounted for", "please report this")
        if self.list:
            self.list.close()
        write_atomically(path, json.dumps(self.as_json() | also, ensure_ascii=False) + "\n")

    def _tick(self) -> None:
        if self._beat is None or time.monotonic() - self._beat_at < _HEARTBEAT:
            return
        if self._in_pool and os.getppid() != self._parent:
            # The build was killed and somebody may have begun it anew: do not work beside it.
            os.write(2, b"dunwu: the build was killed; its worker ends\n")
            os._exit(1)
        self._tell()

    def _tell(self) -> None:
        if self._beat is not None:
            self._beat_at = time.monotonic()
            self._beat.write_text(f"{self.done_bytes} {self.seen} {os.getpid()}", encoding="ascii")


def _in_pool() -> bool:
    """Are we a child that an executor made?"""
    import multiprocess

    return multiprocess.parent_process() is not None


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several tasks together; the same whatever their order."""
    whole = Ledger()
    for part in parts:
        whole.seen += part["seen"]
        whole.kept += part["kept"]
        for name, table in (("dropped", whole.dropped), ("notes", whole.notes)):
            for step, counts in part[name].items():
                for reason, count in counts.items():
                    table[step, reason] += count
        for name, counts in part["histograms"].items():
            whole.histograms.setdefault(name, Counter()).update(counts)
        for sample in part["samples"]:
            heap = whole.samples.setdefault((sample["step"], sample["reason"]), [])
            rest = {name: value for name, value in sample.items() if name not in ("step", "reason", "place")}
            _push(heap, sample["place"], SAMPLES, rest)
        for page in part["shown"]:
            _push(whole.shown, page["place"], SHOWN, {name: text for name, text in page.items() if name != "place"})
    return whole.as_json()


def _place(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=6).digest(), "big")


def _keep_lowest(heap: list[tuple[int, dict[str, Any]]], identity: str, size: int, sample: dict[str, Any]) -> None:
    _push(heap, _place(identity), size, sample)


def _push(heap: list[tuple[int, dict[str, Any]]], place: int, size: int, sample: dict[str, Any]) -> None:
    # A max-heap by negation; of equal places (one id twice) the first stays.
    if any(-place == other for other, _ in heap):
        return
    if len(heap) < size:
        heapq.heappush(heap, (-place, sample))
    elif -place > heap[0][0]:
        heapq.heapreplace(heap, (-place, sample))


def _bin(characters: int) -> str:
    """Powers of two, written so that they sort.

    Example:
        >>> _bin(1000)
        '00000512'
    """
    return f"{2 ** int(math.log2(max(1, characters))):08d}"


def _nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (step, name), count in sorted(counts.items()):
        table.setdefault(step, {})[name] = count
    return table
