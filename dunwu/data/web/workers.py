"""Extraction in processes that may hang, eat memory or crash: the page is counted, the process replaced, the rest goes on.

The processes are plain ones, spoken to through their pipes, because datatrove's own workers are daemonic, and those may have
no children by `multiprocessing`. `worker_process.py` is such a process, `worker_link.py` the parent's end of it. Needs a POSIX
system; elsewhere pages are extracted in this process, by `workers=0`.

Not covered: isolation. The processes have all the user's rights, and trust their parent.
"""

from __future__ import annotations

import selectors
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic

from dunwu.data.web.extract import Backend
from dunwu.data.web.worker_link import BATCH_BYTES, BATCH_PAGES, Extracted, Job, Key, Worker
from dunwu.data.web.worker_process import EXTRACT, apply, resolve
from dunwu.types import DunwuError, UsageError

__all__ = ["Extracted", "ExtractionPool"]

WINDOW_BYTES = 64 << 20
"""Bytes of pages taken from the input and not yet given back."""
WINDOW_BATCHES = 4
"""Batches, for each process, taken from the input and not yet given back."""


class ExtractionPool:
    """Processes that turn pages into text, in the order the pages come.

    Args:
        backend: "quality" or "fast"; see `extract.extract`.
        workers: processes; 0 extracts here, without limits: for pages that can be trusted.
        seconds: wall-clock limit of a page, from when a process begins with it.
        megabytes: memory (address space) a process may take for its pages.
        recycle: pages after which a process is replaced, since extractors leak.
        function: "module:name" of what is applied to (raw, charset, **options) and gives text.
        options: its further arguments; `backend` is one of them.

    Example:
        >>> with ExtractionPool("fast", workers=0) as pool:
        ...     [page.text for page in pool.map([(1, b"<p>Some words on a page.</p>", None)])]
        ['Some words on a page.']
    """

    def __init__(
        self,
        backend: Backend = "quality",
        workers: int = 1,
        seconds: float = 10.0,
        megabytes: int = 1536,
        recycle: int = 2000,
        function: str = EXTRACT,
        options: dict[str, Any] | None = None,
    ) -> None:
        if workers < 0 or seconds <= 0 or megabytes < 1 or recycle < 1:
            raise UsageError(
                f"extraction with {workers} workers, {seconds} s, {megabytes} MB, {recycle} pages each",
                "give numbers above 0; 0 workers extract in this process",
            )
        self.workers, self.recycle = workers, recycle
        arguments = {"backend": backend} if function == EXTRACT else {}
        self.setup = {"function": function, "options": {**arguments, **(options or {})}} | {
            "seconds": seconds,
            "megabytes": megabytes,
            "path": [str(Path(__file__).parents[3]), *sys.path],
        }
        self.live: set[Worker] = set()
        self._end = weakref.finalize(self, _kill_all, self.live)

    def __enter__(self) -> ExtractionPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        _kill_all(self.live)

    def map(self, pages: Iterable[tuple[Key, bytes | str, str | None]]) -> Iterator[Extracted[Key]]:
        """What became of each (key, page, charset of its HTTP header), in order; pages are taken as they are needed.

        One call at a time: begin the next when this one is used up or closed.

        Raises:
            DunwuError: no process can be started.
        """
        if self.workers == 0:
            return self._here(pages)
        return _Mapping(self, pages).run()

    def _here(self, pages: Iterable[tuple[Key, bytes | str, str | None]]) -> Iterator[Extracted[Key]]:
        function = resolve(str(self.setup["function"]))
        for key, raw, charset in pages:
            text, reason, detail = apply(function, *_as_bytes(raw, charset), self.setup["options"])
            yield Extracted(key, text, reason, detail)


class _Mapping(Generic[Key]):
    """One call of `map`: jobs in their order, those that wait, and processes at work."""

    def __init__(self, pool: ExtractionPool, pages: Iterable[tuple[Key, bytes | str, str | None]]) -> None:
        self.pool, self.pages = pool, iter(pages)
        self.window: deque[Job[Key]] = deque()
        self.waiting: deque[Job[Key]] = deque()
        self.exhausted = False

    def run(self) -> Iterator[Extracted[Key]]:
        try:
            while True:
                self._hand_out()
                self._collect(0.0)
                while self.window and self.window[0].answer is not None:
                    yield self._give()
                if not self.window and self.exhausted:
                    return
                if not (self._room() and len(self.waiting) < BATCH_PAGES and self._take()) and not self._idle():
                    self._collect(1.0)
        finally:
            for worker in [worker for worker in self.pool.live if worker.jobs]:
                worker.kill()  # left in the midst of a batch, by an error or because nobody wants the rest

    def _give(self) -> Extracted[Key]:
        job = self.window.popleft()
        assert job.answer is not None
        return job.answer

    def _room(self) -> bool:
        if self.exhausted or len(self.window) >= BATCH_PAGES * WINDOW_BATCHES * self.pool.workers:
            return False
        return sum(len(job.raw) for job in self.window) < WINDOW_BYTES

    def _take(self) -> bool:
        """Take a batch from the input; whether there was any."""
        taken = size = 0
        while taken < BATCH_PAGES and size < BATCH_BYTES:
            try:
                key, raw, charset = next(self.pages)
            except StopIteration:
                self.exhausted = True
                break
            job = Job(key, *_as_bytes(raw, charset))
            self.window.append(job)
            self.waiting.append(job)
            taken, size = taken + 1, size + len(job.raw)
        return taken > 0

    def _idle(self) -> bool:
        """Whether there is a page to be worked on and somebody to do it."""
        live = self.pool.live
        return bool(self.waiting) and (len(live) < self.pool.workers or any(worker.hungry for worker in live))

    def _hand_out(self) -> None:
        live = self.pool.live
        for worn in [worker for worker in live if not worker.jobs and worker.left == 0]:
            worn.kill()
        while self.waiting:
            worker = min((worker for worker in live if worker.hungry), key=lambda one: len(one.jobs), default=None)
            if (worker is None or worker.jobs) and len(live) < self.pool.workers:
                worker = Worker(self.pool.setup, self.pool.recycle, live)
            if worker is None:
                return
            batch: list[Job[Key]] = []
            size = 0
            while self.waiting and len(batch) < min(BATCH_PAGES, worker.left) and size < BATCH_BYTES:
                batch.append(self.waiting.popleft())
                size += len(batch[-1].raw)
            worker.send(batch)

    def _collect(self, seconds: float) -> None:
        """Read the answers there are, waiting up to `seconds` for the first; replace processes that ended."""
        busy = [worker for worker in self.pool.live if worker.jobs]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
                if worker.unsent:
                    selector.register(worker.requests, selectors.EVENT_WRITE, worker)
            ready = {key.data for key, _ in selector.select(seconds)}
        for worker in busy:
            alive = worker.move() if worker in ready else True
            if alive and worker.overdue():
                alive = False
            if not alive:
                self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """A process ended: the page it was at is to blame, the others wait again."""
        reason, detail = worker.autopsy()
        left, place = list(worker.jobs), worker.at_work()
        worker.kill()
        if not worker.ready:
            raise DunwuError(f"an extraction process does not start: {detail}", "see that it can import dunwu")
        if not worker.leaving and left:
            guilty = left[place]
            guilty.tries += 1
            if reason != "extraction_crash" or guilty.tries > 1:  # it may have been killed from outside: once more
                guilty.done(None, reason, detail)
                del left[place]
        self.waiting.extendleft(reversed(left))


def _kill_all(live: set[Worker]) -> None:
    for worker in list(live):
        worker.kill()


def _as_bytes(raw: bytes | str, charset: str | None) -> tuple[bytes, str | None]:
    """Text of a row is handed over as UTF-8."""
    return (raw, charset) if isinstance(raw, bytes) else (raw.encode("utf-8", "replace"), "utf-8")
