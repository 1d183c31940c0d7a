"""The parent's end of an extraction process: what is sent and not yet answered, and how a process came to its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

from dunwu.data.web.worker_process import COUNT, SIZES, message
from dunwu.types import DunwuError

Key = TypeVar("Key")
BATCH_PAGES, BATCH_BYTES = 32, 512 << 10
"""Pages handed to a process at once: this many, or bytes, whichever is first."""
START_SECONDS = 120.0
"""How long a process may take until it is ready."""
_MEMORY_WORDS = (b"memory allocation", b"MemoryError", b"bad_alloc", b"out of memory", b"Cannot allocate memory")


class Extracted(NamedTuple, Generic[Key]):
    """What became of a page: `text`, or None and a reason.

    Reasons: those of `extract.ExtractionError`, "extraction_timeout", "extraction_memory", "extraction_crash".
    """

    key: Key
    text: str | None
    reason: str | None = None
    detail: str = ""


class Job(Generic[Key]):
    __slots__ = ("answer", "charset", "key", "raw", "tries")

    def __init__(self, key: Key, raw: bytes, charset: str | None) -> None:
        self.key, self.raw, self.charset = key, raw, charset
        self.answer: Extracted[Key] | None = None
        self.tries = 0

    def done(self, text: str | None, reason: str | None = None, detail: str = "") -> None:
        self.answer, self.raw = Extracted(self.key, text, reason, detail), b""


class Worker:
    """The parent's end of one process."""

    def __init__(self, setup: dict[str, Any], recycle: int, live: set[Worker]) -> None:
        if sys.platform == "win32":
            raise DunwuError("extraction processes need a POSIX system", "use workers=0, or WSL")
        self.left, self.seconds, self._live = recycle, float(setup["seconds"]), live
        self.jobs: deque[Job[Any]] = deque()
        self.ready = self.leaving = False
        self.unsent = memoryview(b"")
        self._received = bytearray()
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._begun: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._answered = 0
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dunwu.data.web.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            pass_fds=[self._begun.fileno()],
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout
        for pipe in (self.requests, self.replies):
            os.set_blocking(pipe.fileno(), False)
            _widen(pipe.fileno())
        self.moved = time.monotonic()
        live.add(self)
        self._write(message(setup | {"begun": self._begun.fileno()}, b""))

    @property
    def hungry(self) -> bool:
        """Whether it should get more pages: before it has none, so that it need not wait."""
        return self.left > 0 and len(self.jobs) <= BATCH_PAGES // 4 and not self.unsent and not self.leaving

    def send(self, batch: list[Job[Any]]) -> None:
        """Hand pages over."""
        self.jobs.extend(batch)
        self.left -= len(batch)
        header = {"pages": [(len(job.raw), job.charset) for job in batch]}
        self._write(message(header, b"".join(job.raw for job in batch)))

    def _write(self, data: bytes) -> None:
        self.unsent = memoryview(bytes(self.unsent) + data)
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a broken pipe shows as the end of the replies
            while self.unsent:
                written = os.write(self.requests.fileno(), self.unsent)
                self.unsent = self.unsent[written:]
                self.moved = time.monotonic()

    def move(self) -> bool:
        """Write and read what can be; False once the process has ended or is about to."""
        self._flush()
        while True:
            try:
                data = os.read(self.replies.fileno(), 1 << 20)
            except BlockingIOError:
                return not self.leaving
            if not data:
                return False
            self._received += data
            self.moved = time.monotonic()
            self._take_replies()

    def _take_replies(self) -> None:
        at, received = 0, self._received
        while len(received) - at >= SIZES.size:
            head, body = SIZES.unpack_from(received, at)
            start, end = at + SIZES.size, at + SIZES.size + head + body
            if len(received) < end:
                break
            header = json.loads(received[start : start + head]) if head else {}
            if header.get("ready"):
                self.ready = True
            else:
                job = self.jobs.popleft()
                self._answered += 1
                text = None if "reason" in header else received[start + head : end].decode("utf-8", "replace")
                job.done(text, header.get("reason"), header.get("detail", ""))
                self.leaving = bool(header.get("last"))
            at = end
        del received[:at]

    def overdue(self) -> bool:
        """Whether the process has neither answered nor been ended by its own alarm: it is stopped, or has none."""
        limit = 2 * self.seconds + 10 if self.ready else START_SECONDS
        return not self.unsent and time.monotonic() - self.moved > limit

    def autopsy(self) -> tuple[str, str]:
        """(reason, detail) of its end."""
        try:
            code = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "extraction_timeout", f"no answer, no end: more than {2 * self.seconds + 10:g} s"
        self._said.seek(max(0, self._said.seek(0, 2) - 2000))
        said = self._said.read()
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        if code == -getattr(signal, "SIGALRM", 14):
            return "extraction_timeout", f"more than {self.seconds:g} s"
        if any(word in said for word in _MEMORY_WORDS):
            return "extraction_memory", last
        return "extraction_crash", f"exit code {code}" + (f": {last}" if last else "")

    def at_work(self) -> int:
        """Which of `jobs` it had begun last; answers to those before may have been lost with it."""
        data = os.pread(self._begun.fileno(), COUNT.size, 0)
        begun = COUNT.unpack(data)[0] if len(data) == COUNT.size else 0
        return min(max(0, begun - self._answered - 1), len(self.jobs) - 1)

    def kill(self) -> None:
        """End the process, now, and leave nothing of it."""
        self._live.discard(self)
        self.process.kill()
        self.process.wait()
        for file in (self.requests, self.replies, self._said, self._begun):
            with contextlib.suppress(OSError):
                file.close()


def _widen(pipe: int) -> None:
    """Room for a whole batch, where the system allows it: the parent need not come back to write the rest."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
