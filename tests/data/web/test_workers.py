"""The pool: order, limits, replacement, laziness, and nothing left behind. The functions applied are files of the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dunwu.data.web.worker_link import BATCH_PAGES
from dunwu.data.web.workers import WINDOW_BATCHES, ExtractionPool
from dunwu.types import DunwuError, UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="extraction processes need POSIX")

FUNCTIONS = """
import os, signal, sys, time
from dunwu.data.web.extract import ExtractionError

def odd(raw, charset, **options):
    text = raw.decode(charset or "utf-8")
    if text == "hang": time.sleep(600)
    if text == "spin":
        sum(range(10**13))  # in C, deaf to Python's signal handlers
    if text == "eat": bytearray(1 << 40)
    if text == "eat slowly":
        held = []
        while True: held.append(bytearray(1 << 20))
    if text == "abort": os.abort()
    if text == "exit": os._exit(3)
    if text == "refuse": raise ExtractionError("dom_too_deep", "512")
    if text == "raise": raise AttributeError("odd page")
    if text == "print": print("noise on stdout", flush=True); os.write(1, b"more noise")
    if text == "pid": return str(os.getpid())
    if text.startswith("sleep"): time.sleep(float(text[5:]))
    if text.startswith("once "):
        try: os.close(os.open(text[5:], os.O_CREAT | os.O_EXCL))
        except FileExistsError: return "second try"
        os.kill(os.getpid(), signal.SIGKILL)
    return text.upper()
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


def pool(workers: int = 1, seconds: float = 5.0, megabytes: int = 200, recycle: int = 1000) -> ExtractionPool:
    return ExtractionPool("fast", workers, seconds, megabytes, recycle, function="odd_functions:odd")


def texts(words: list[str]) -> list[tuple[int, bytes, str | None]]:
    return [(number, word.encode(), None) for number, word in enumerate(words)]


def children() -> list[str]:
    """Live or dead children of this process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(fields[0])
    return found


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_answers_come_in_order(workers: int) -> None:
    words = [f"page {number}" for number in range(300)]
    with pool(workers) as extraction:
        assert [(page.key, page.text) for page in extraction.map(texts(words))] == [
            (number, word.upper()) for number, word in enumerate(words)
        ]
        assert [page.text for page in extraction.map([("again", "ÄÖ".encode("latin-1"), "latin-1")])] == ["ÄÖ"]
        assert list(extraction.map([])) == []


def test_each_bad_page_has_its_reason_and_the_others_their_text() -> None:
    """Between good pages, in every place of a batch."""
    bad = {
        "hang": "extraction_timeout",
        "spin": "extraction_timeout",
        "eat": "extraction_memory",
        "eat slowly": "extraction_memory",
        "abort": "extraction_crash",
        "exit": "extraction_crash",
        "refuse": "dom_too_deep",
        "raise": "extraction_error",
    }
    words = ["good"] * 40
    for place, word in zip((0, 1, 5, 17, 18, 31, 32, 39), bad):
        words[place] = word
    with pool(seconds=2.0) as extraction:
        pages = list(extraction.map(texts(words)))
    assert [page.reason for page in pages] == [bad.get(word) for word in words]
    assert [page.text for page in pages] == [None if word in bad else "GOOD" for word in words]
    assert pages[words.index("raise")].detail == "AttributeError: odd page"


def test_in_this_process_errors_are_counted_too() -> None:
    with pool(0) as extraction:
        found = [(page.text, page.reason) for page in extraction.map(texts(["a", "refuse", "raise", "b"]))]
    assert found == [("A", None), (None, "dom_too_deep"), (None, "extraction_error"), ("B", None)]


def test_the_clock_is_the_pages_own() -> None:
    """Twelve pages within the limit each, far beyond it together, behind a consumer that takes its time."""
    with pool(seconds=1.0) as extraction:
        for page in extraction.map(texts(["sleep0.12"] * 12)):
            assert page.text == "SLEEP0.12"
            if page.key == 1:
                time.sleep(1.5)


def test_noise_on_stdout_is_no_answer() -> None:
    with pool() as extraction:
        assert [page.text for page in extraction.map(texts(["print", "a"]))] == ["PRINT", "A"]


def test_processes_are_recycled_and_reused() -> None:
    with pool(recycle=10) as extraction:
        found = [page.text for page in extraction.map(texts(["pid"] * 35))]
        assert [found.count(one) for one in dict.fromkeys(found)] == [10, 10, 10, 5]
        assert next(extraction.map(texts(["pid"]))).text == found[-1]


def test_a_process_killed_from_outside_costs_nothing(tmp_path: Path) -> None:
    """The page is tried once more, and only a second death is its own."""
    words = ["a", f"once {tmp_path / 'mark'}", "b"]
    with pool() as extraction:
        assert [page.text for page in extraction.map(texts(words))] == ["A", "second try", "B"]


def test_pages_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, bytes, str | None]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken, b"x" * 1000, None

    with pool(2) as extraction:
        answers = extraction.map(endless())
        for _ in range(1000):
            next(answers)
        assert taken <= 1000 + 2 * BATCH_PAGES * (WINDOW_BATCHES + 1)
        answers.close()  # type: ignore[attr-defined]


def test_big_pages_go_through_and_memory_stays_bounded() -> None:
    """8 MB each way, more than any pipe holds."""
    with pool(2) as extraction:
        pages = list(extraction.map((n, b"a" * (8 << 20), None) for n in range(6)))
    assert all(page.text is not None and len(page.text) == 8 << 20 for page in pages)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_nothing_is_left_behind() -> None:
    before = sorted(children())

    def failing() -> Iterator[tuple[int, bytes, str | None]]:
        yield from texts(["sleep0.05"] * 50)
        raise ValueError("the reader failed")

    with pytest.raises(ValueError, match="the reader failed"), pool(2) as extraction:
        list(extraction.map(failing()))
    with pool(2) as extraction:
        assert next(extraction.map(texts(["a"] * 100))).text == "A"
    extraction = pool(1)
    assert next(extraction.map(texts(["a"]))).text == "A"
    del extraction
    assert sorted(children()) == before


PARENT = """
import sys, time
from dunwu.data.web.workers import ExtractionPool
pool = ExtractionPool("fast", 2, 2.0, 200, function="odd_functions:odd")
for page in pool.map((n, b"pid" if n < 40 else b"sleep0.5", None) for n in range(100)):
    print(page.text, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()) for _ in range(40)}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    end = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


DAEMONIC = """
import multiprocessing, json
from dunwu.data.web.workers import ExtractionPool

def work(queue):
    with ExtractionPool("fast", 1) as pool:
        queue.put([page.text for page in pool.map([(1, b"<p>Words of a page.</p>", None)])])

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,), daemon=True)
    process.start()
    print(json.dumps(queue.get(timeout=60)))
"""


def test_below_a_daemonic_process(tmp_path: Path) -> None:
    """As datatrove's workers are: multiprocessing forbids them children."""
    (tmp_path / "daemonic.py").write_text(DAEMONIC)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "daemonic.py")], capture_output=True, env=environment, text=True
    )
    assert json.loads(done.stdout) == ["Words of a page."], done.stderr


def test_wrong_settings_and_functions_are_told() -> None:
    with pytest.raises(UsageError, match="numbers above 0"):
        ExtractionPool(seconds=0)
    with (
        ExtractionPool(function="no_such_module:f") as extraction,
        pytest.raises(DunwuError, match=r"does not start.*no_such"),
    ):
        list(extraction.map(texts(["a"])))


@pytest.mark.parametrize("backend", ["quality", "fast"])
def test_the_real_function(backend: str) -> None:
    if backend == "quality":
        pytest.importorskip("trafilatura")
    text = "这是一个网页的正文，它有足够多的字，可以算是一篇文章。" * 5
    pages = [
        (1, f"<html><body><article><p>{text}</p></article></body></html>".encode("gbk"), "iso-8859-1"),
        (2, "<div>" * 9999, None),
    ]
    with ExtractionPool(backend, 1) as extraction:  # type: ignore[arg-type]
        found = list(extraction.map(pages))
    assert found[0].text == text and found[1].reason == "dom_too_deep"
