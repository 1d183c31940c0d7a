"""Trials side by side: a few processes of one thread each, a trial at a time. Which of them takes a trial changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType

from dunwu.control.config import Trial
from dunwu.control.trial import Outcome
from dunwu.control.worker import outcome_of
from dunwu.types import DunwuError


class Workers:
    """Up to `count` processes (0: as many as there are cores), started when first needed.

    Example:
        with Workers(2) as workers:
            waiting = [workers.submit(trial) for trial in trials]
            outcomes = [future.result() for future in waiting]
    """

    def __init__(self, count: int = 0) -> None:
        self._threads = ThreadPoolExecutor(count or os.cpu_count() or 1)
        self._mine = threading.local()
        self._children: list[subprocess.Popen[str]] = []
        self._closed = False

    def submit(self, trial: Trial) -> Future[Outcome]:
        """The trial's outcome, once a worker has come to it."""
        return self._threads.submit(self._ask, trial)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once; what is under way is lost."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.kill()
        self._threads.shutdown(wait=True)
        for child in self._children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, trial: Trial) -> Outcome:
        child = self._child()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(asdict(trial)) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            self._mine.child = None
            raise DunwuError(
                f"the worker on {trial.system} ended with code {child.wait()}", "run it again: what is done is kept"
            )
        return outcome_of(json.loads(line))

    def _child(self) -> subprocess.Popen[str]:
        """This thread's process."""
        child: subprocess.Popen[str] | None = getattr(self._mine, "child", None)
        if self._closed:
            raise DunwuError("the workers were stopped", "run it again: what is done is kept")
        if child is None:
            child = subprocess.Popen(
                [sys.executable, "-m", "dunwu.control.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            self._mine.child = child
            self._children.append(child)
        return child
