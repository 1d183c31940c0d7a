"""Files and pages made to do harm: bounded time, bounded memory, a counted reason, and what follows survives.

Memory is the peak of a process that does nothing else, beside that of one that reads a harmless file.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")

GOOD = b'{"text": "a good line"}\n'
READ = """
import json, sys
from collections import Counter
from pathlib import Path
from dunwu.data.web.read import Limits, read_pages

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

import dunwu.data.web.read_rows, dunwu.data.web.read_warc
before, reasons = peak(), Counter()
pages = [page.id for page in read_pages(Path(sys.argv[1]), None, lambda reason, detail: reasons.update([reason]))]
print(json.dumps({"pages": pages, "reasons": reasons, "megabytes": peak() - before}))
"""


def response(name: str, body: bytes, headers: str = "", length: int | None = None) -> bytes:
    block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{headers}\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: {name}\r\nContent-Length: {length or len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def read(path: Path, seconds: float = 30.0) -> tuple[list[str], dict[str, int], float]:
    """(ids of pages, reasons, megabytes above the start), by a process of its own within `seconds`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, env=environment, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout)
    return found["pages"], found["reasons"], found["megabytes"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_without_end(tmp_path: Path, packed: bool) -> None:
    """256 MB, sparse on disk or well packed; memory stays below the longest line that is read."""
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    if packed:
        chunk, packer = b"x" * (1 << 20), zlib.compressobj(1, wbits=31)
        with open(path, "wb") as file:
            file.write(packer.compress(GOOD + b'{"text": "'))
            for _ in range(256):
                file.write(packer.compress(chunk))
            file.write(packer.compress(b'"}\n' + GOOD) + packer.flush())
    else:
        with open(path, "wb") as file:
            file.write(GOOD + b'{"text": "')
            file.seek(1 << 28, 1)
            file.write(b'"}\n' + GOOD)
    pages, reasons, megabytes = read(path)
    assert pages == ["a-0", "a-2"] and reasons == {"line_too_long": 1}
    assert megabytes < 128


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Lines, records; ten times as many, the same peak."""
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"{times}.warc.gz"
        with open(path, "wb") as file:
            for number in range(40 * times):
                file.write(gzip.compress(response("x", os.urandom(1000) * 200 + b"%d" % number), 1))
        peaks.append(read(path)[2])
    assert peaks[1] < peaks[0] + 8


def test_bombs_as_members_frames_and_encodings(tmp_path: Path) -> None:
    """64 MB of nothing in a few kB: as the content of a page, as a record, as a member, as a frame."""
    zeros = b"\0" * (64 << 20)
    inner = gzip.compress(zeros, 9)
    pages = [
        gzip.compress(response("first", b"<p>first")),
        gzip.compress(response("encoding", inner, "Content-Encoding: gzip\r\n")),
        gzip.compress(response("deflate", zlib.compress(zeros), "Content-Encoding: deflate\r\n")),
        gzip.compress(response("zstd", zstandard.compress(zeros), "Content-Encoding: zstd\r\n")),
        gzip.compress(response("twice", gzip.compress(inner), "Content-Encoding: gzip, gzip\r\n")),
        gzip.compress(response("record", zeros)),
        gzip.compress(response("chunks", b"ffffffff\r\n" * 1000, "Transfer-Encoding: chunked\r\n")),
        inner,
        gzip.compress(response("last", b"<p>last")),
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(pages))
    found, reasons, megabytes = read(path)
    assert found[0] == "first" and found[-1] == "last" and len(found) <= 3
    assert reasons["page_too_long"] == 5 and reasons["bad_record"] == 1
    assert megabytes < 96
    path = tmp_path / "a.warc.zst"
    path.write_bytes(b"".join(zstandard.compress(one) for one in (response("a", zeros), zeros, response("b", b"<p>b"))))
    found, reasons, megabytes = read(path)
    assert found == ["b"] and reasons == {"page_too_long": 1, "bad_record": 1} and megabytes < 96


def test_a_member_that_would_never_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but zeros, empty lines, or short lines of garbage: behind them the archive goes on."""
    from dunwu.data.web import read_bytes
    from dunwu.data.web.read import read_pages

    monkeypatch.setattr(read_bytes, "BOMB_BYTES", 4 << 20)
    for filling in (b"\0" * 4096, b"\n" * 4096, b"ab\n" * 2000):
        path = tmp_path / "a.warc.gz"
        path.write_bytes(gzip.compress(filling * 4000, 9) + gzip.compress(response("x", b"<p>behind")))
        reasons: dict[str, str] = {}
        pages = list(read_pages(path, None, reasons.__setitem__))
        assert [page.id for page in pages] == ["x"] and "gzip_bomb" in reasons


def test_lengths_that_lie_do_not_make_it_slow(tmp_path: Path) -> None:
    """2000 records, each said to be longer than the file: none is read more than a bounded number of times."""
    (tmp_path / "a.warc").write_bytes(b"".join(response(f"{n}", b"<p>page", length=10**9) for n in range(2000)))
    _, reasons, megabytes = read(tmp_path / "a.warc")
    assert sum(reasons.values()) >= 1000 and megabytes < 64


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"])
def test_a_file_of_nothing_but_beginnings(tmp_path: Path, magic: bytes) -> None:
    """Every one of them promises a piece; after so many the rest is given up, and told."""
    (tmp_path / "a.warc").write_bytes(magic * 500_000)
    pages, reasons, megabytes = read(tmp_path / "a.warc")
    assert pages == [] and reasons["too_damaged"] == 1 and megabytes < 64


def test_nested_json_and_numbers_without_end(tmp_path: Path) -> None:
    lines = [b"[" * 1_000_000, b'{"a":' * 500_000, b'{"text": "x", "n": ' + b"9" * 1_000_000 + b"}", GOOD.strip()]
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" + b"\n".join(lines))
    pages, reasons, _ = read(tmp_path / "a.jsonl")
    assert pages == ["a-4"] and reasons == {"no_text": 1, "bad_json": 3}


PAGES = {
    "deep": b"<div>" * 100_000,
    "wide": b"<table></table>" * 300_000,
    "attributes": b"<p " + b" ".join(b"a%d=1" % n for n in range(200_000)) + b">",
    "unclosed": b"<p><a href='" * 20_000,
    "comments": b"<!--" * 100_000,
    "entities": b"&amp" * 500_000,
    "nul": b"\0" * 1_000_000,
    "noise": bytes(range(256)) * 4000,
    "long text": b"<p>" + b"word " * 400_000,
    "no spaces": b"<p>" + b"x" * 2_000_000,
    "marks": ("<p>" + "a\u0301\u0316" * 100_000).encode(),
    "lines": b"<pre>" + b"\n" * 1_000_000,
}
ARTICLE = (
    b"<html><body><article><p>" + b"A good page with a sentence of its own. " * 10 + b"</p></article></body></html>"
)


@pytest.mark.parametrize("backend", ["quality", "fast"])
def test_pages_made_to_do_harm(backend: str) -> None:
    """Each gives text or a reason within its limit, and the page behind it is extracted."""
    from dunwu.data.web.workers import ExtractionPool

    if backend == "quality":
        pytest.importorskip("trafilatura")
    pages = [item for name, bomb in PAGES.items() for item in ((name, bomb, None), ("good", ARTICLE, None))]
    with ExtractionPool(backend, 1, seconds=2.0, megabytes=512) as pool:  # type: ignore[arg-type]
        found = list(pool.map(pages))
    assert all(page.text and page.text.startswith("A good page") for page in found if page.key == "good")
    reasons = {page.key: page.reason for page in found if page.key != "good"}
    assert reasons["deep"] == "dom_too_deep" and reasons["wide"] == "too_many_tags"
    assert reasons["attributes"] == "too_many_attributes"
    allowed = {None, "extraction_timeout", "extraction_memory", "too_many_attributes", "too_many_tags"}
    assert set(reasons.values()) <= allowed | {"dom_too_deep"}
