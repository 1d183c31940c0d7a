"""The process in which pages are extracted, one after another: `python -m dunwu.data.web.worker_process`, by `workers.py`.

Each message is two lengths, a JSON header and bytes: first what to apply and its limits, then pages, several at once. Answers
go back several at once too; a counter in a file, written before each page, says at which page a process died. A page's time
is an alarm of the kernel that ends the process, whatever code it is in. Memory is limited by its address space. If the parent
dies, the pipe ends, and so does this.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dunwu.data.web.extract import Backend, ExtractionError, extract

ANSWER_SECONDS, ANSWER_BYTES = 0.01, 256 << 10
"""Answers are held back that long, or until they are that many, to be written at once: waking the parent is what costs."""
EXTRACT = "dunwu.data.web.worker_process:extract_page"
SIZES, COUNT = struct.Struct("<II"), struct.Struct("<Q")


def extract_page(raw: bytes, charset: str | None, backend: Backend = "quality") -> str:
    """Decode and extract: what a process does with a page unless told otherwise."""
    return extract(raw, backend, charset=charset)


def message(header: Any, body: bytes) -> bytes:
    head = json.dumps(header).encode() if header else b""
    return SIZES.pack(len(head), len(body)) + head + body


def resolve(function: str) -> Callable[..., str]:
    module, _, name = function.partition(":")
    found: Callable[..., str] = getattr(importlib.import_module(module), name)
    return found


def apply(
    function: Callable[..., str], raw: bytes, charset: str | None, options: Any
) -> tuple[str | None, str | None, str]:
    """(text, reason, detail)."""
    try:
        return function(raw, charset, **options), None, ""
    except ExtractionError as error:
        return None, error.reason, error.detail
    except MemoryError:
        return None, "extraction_memory", "MemoryError"
    except Exception as error:  # noqa: BLE001 - extractors fail on odd pages in ways of their own; the page is counted
        return None, "extraction_error", f"{type(error).__name__}: {str(error)[:160]}"


def serve() -> None:
    """The process: answer pages until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    requests, replies = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)  # what an extractor prints must not get between the answers
    setup, _ = _receive(requests)
    sys.path[:] = setup["path"]
    function, options = resolve(setup["function"]), setup["options"]
    if setup["function"] == EXTRACT:
        # The first page must not pay for the imports.
        apply(function, b"<html><body><p>A first page, for the imports.</p></body></html>", None, options)
    _limit_memory(setup["megabytes"])
    _reply(replies, message({"ready": True}, b""))
    begun, answers, since = 0, bytearray(), 0.0
    while True:
        header, body = _receive(requests)
        view, at = memoryview(body), 0
        for number, (size, charset) in enumerate(header["pages"], 1):
            begun += 1
            os.pwrite(setup["begun"], COUNT.pack(begun), 0)
            _alarm(setup["seconds"])
            text, reason, detail = apply(function, bytes(view[at : at + size]), charset, options)
            _alarm(0)
            at += size
            # After a MemoryError the heap is in pieces: better a new process.
            last = reason == "extraction_memory"
            fault = None if reason is None else {"reason": reason, "detail": detail, "last": last}
            since = since if answers else time.monotonic()
            answers += message(fault, (text or "").encode("utf-8", "replace"))
            full = len(answers) > ANSWER_BYTES or time.monotonic() - since > ANSWER_SECONDS
            if full or last or number == len(header["pages"]):
                _reply(replies, answers)
                answers.clear()
            if last:
                return


def _receive(requests: IO[bytes]) -> tuple[Any, bytes]:
    sizes = requests.read(SIZES.size)
    if len(sizes) < SIZES.size:
        raise SystemExit(0)  # the parent has closed the pipe, or died
    head, body = SIZES.unpack(sizes)
    return json.loads(requests.read(head)), requests.read(body)


def _reply(replies: int, answers: bytes | bytearray) -> None:
    at = 0
    try:
        while at < len(answers):
            at += os.write(replies, bytes(answers[at : at + (1 << 20)]))
    except BrokenPipeError:
        raise SystemExit(0) from None


def _alarm(seconds: float) -> None:
    """End this process in so many seconds, whatever it does then; 0: no more."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(megabytes: int) -> None:
    """What this process may have beside what it has now."""
    import resource

    now = 0
    with contextlib.suppress(OSError):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError, ValueError):  # a lower limit of the user's own stays
        resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve()
