"""The process in which a user's `score` runs: one call after another, killed from outside when it does not come back.

A thread could not be stopped, and `signal.alarm` works in the main thread only. So `Scorer` keeps a child process that has
loaded the task file; a call that passes its time limit costs that process, and the next call gets a new one. Time counts
from the moment the child, loaded and idle, is handed the call.

Not covered: isolation. The file is code its user asked to run, with all the user's rights.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dunwu.tasks.user_file import UserFile, complaint

LOAD_SECONDS = 120.0
"""How long the child may take to load the file."""
PIPE_BYTES = 32_000
"""Calls handed over at once: a full pipe to a call that hangs could not be waited for with a limit."""
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from dunwu.tasks.score_worker import serve; serve(sys.argv[1])"
)


class Scorer:
    """Calls `score(problem, completion)` of a task file in another process, from any thread.

    Args:
        path: the task file.
        seconds: time limit of a call.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __call__(self, calls: Sequence[tuple[Mapping[str, Any], str]]) -> list[dict[str, Any]]:
        """For each (problem, completion), in order: {"value": number or {name: number}}, {"timeout": …} or {"error": …}."""
        lines = [json.dumps({"problem": dict(problem), "completion": said}) + "\n" for problem, said in calls]
        replies: list[dict[str, Any]] = []
        with self._lock:
            while len(replies) < len(lines):
                replies += self._several(lines[len(replies) :])
        return replies

    def _several(self, lines: Sequence[str]) -> list[dict[str, Any]]:
        """Answers to the first few calls, at least one. They are handed over together, no more than a pipe holds."""
        size, few = 0, 0
        while few < len(lines) and (few == 0 or size + len(lines[few]) <= PIPE_BYTES):
            size, few = size + len(lines[few]), few + 1
        if self._child is None:
            child = _Child(self.path, self.seconds)
            ready = child.answer(LOAD_SECONDS)
            if ready is None or "error" in ready:
                child.kill()
                return [ready or {"error": f"{self.path} did not load within {LOAD_SECONDS:g} s"}] * len(lines)
            self._child = child
        if not self._child.ask("".join(lines[:few])):
            self._drop()
            return [{"error": f"the process of {self.path} has gone"}]
        replies = []
        for _ in range(few):
            reply = self._child.answer(self.seconds)  # the call before has been answered: this one's time begins
            replies.append(reply or {"timeout": f"score took more than {self.seconds:g} s"})
            if reply is None or not reply.get("alive"):
                self._drop()
                break
        return replies

    def _drop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """End the child; the next call starts another."""
        with self._lock:
            self._drop()


class _Child:
    """The child process and a thread that reads what it answers, so that waiting can have a limit anywhere."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps([str(path), seconds]), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin = self.process.stdin
        self.replies: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self.process.stdout, self.replies), daemon=True).start()
        weakref.finalize(self, _end, self.process)

    def ask(self, calls: str) -> bool:
        """Hand it calls, a line each; False if it is no longer there."""
        try:
            self.stdin.write(calls)
            self.stdin.flush()
        except OSError:
            return False
        return True

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Its next answer; None if none came in time."""
        try:
            return self.replies.get(timeout=seconds)
        except queue.Empty:
            return None

    def kill(self) -> None:
        _end(self.process)


def _read(stream: IO[str], replies: queue.SimpleQueue[dict[str, Any]]) -> None:
    with stream:  # closed here, where it is read: whoever ends the process must not close it under this thread
        for line in stream:
            if line.endswith("\n"):  # else it was torn when the process was killed
                replies.put(json.loads(line))
    replies.put({"error": "score ended its process"})


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.wait()


# ---- in the child ---------------------------------------------------------------------------


def serve(settings: str) -> None:
    """Load the file named in `settings` (JSON: [path, seconds]) and answer calls from stdin until it ends."""
    path, seconds = json.loads(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the file prints goes to stderr, not among the answers

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        file = UserFile(Path(path))
    except Exception as error:  # noqa: BLE001 - whatever the file does is told to the parent
        say({"error": complaint(Path(path), error)})
        return
    say({"ready": True})
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for line in sys.stdin:
            call = json.loads(line)
            # If the parent is gone nobody will kill a hanging call: this does, even inside one long C call.
            faulthandler.dump_traceback_later(2 * seconds + 10, exit=True, file=nowhere)
            say(_answer(file, call["problem"], call["completion"]))
            faulthandler.cancel_dump_traceback_later()


def _answer(file: UserFile, problem: dict[str, Any], completion: str) -> dict[str, Any]:
    try:
        return {"value": read_score(file.functions["score"](problem, completion)), "alive": True}
    except Exception as error:  # noqa: BLE001 - a score that raises is an error verdict, never a zero
        return {"error": complaint(file.path, error, file.line_of("score")), "alive": True}


def read_score(value: Any) -> float | dict[str, float]:
    """What `score` returned, as a number or numbers by name.

    Raises:
        ValueError: it is neither, or not finite.
    """
    if isinstance(value, Mapping):
        if not value or not all(isinstance(name, str) for name in value):
            raise ValueError("score returned a dict that is not {name: number}")
        return {name: _number(item) for name, item in value.items()}
    return _number(value)


def _number(value: Any) -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise ValueError(f"score returned {type(value).__name__}, not a number or {{name: number}}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"score returned {number}")
    return number
