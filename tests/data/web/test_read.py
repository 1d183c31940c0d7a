"""Files to pages: every kind, against FastWARC on whole archives, and against what was written on broken ones."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dunwu.data.web.read import Limits, Page, read_pages
from dunwu.data.web.read_bytes import Damaged, Source
from dunwu.data.web.read_http import BadBody, Response, dechunk, parse_response, unpack
from dunwu.types import DunwuError

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "warc"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/warc")


def record(kind: str, block: bytes, **fields: str) -> bytes:
    """One WARC record; a field named None_ … is left out."""
    head = {"WARC-Type": kind, "Content-Length": str(len(block))} | {k.replace("_", "-"): v for k, v in fields.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body: bytes, status: int = 200, **headers: str) -> bytes:
    head = {"Content-Type": "text/html"} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items() if value)
    return f"HTTP/1.1 {status} OK\r\n{lines}\r\n".encode() + body


def response(number: int, body: bytes | None = None, **fields: str) -> bytes:
    block = http(body if body is not None else f"<html><p>Page number {number}. {'words ' * number}</p>".encode())
    target = {"WARC_Record_ID": f"<urn:{number}>", "WARC_Target_URI": f"http://a.org/{number}"}
    return record("response", block, **(target | {"Content_Type": "application/http; msgtype=response"} | fields))


def read(path: Path, limits: Limits | None = None, dump: str | None = None) -> tuple[list[Page], Counter[str]]:
    reasons: Counter[str] = Counter()
    pages = list(read_pages(path, dump, lambda reason, detail: reasons.update([reason]), limits))
    return pages, reasons


def urns(pages: list[Page]) -> list[int]:
    return [int(page.id[5:-1]) for page in pages]


WHOLE = {
    "commoncrawl-whirlwind.warc.gz": (1, {"not_a_response": 3}),
    "dolma-sample-0000.warc.gz": (22, {"not_a_response": 24, "not_html": 2}),
    "dolma-sample-0001.warc.gz": (15, {"not_a_response": 17, "not_html": 2}),
    "warcio-example-bad.warc.gz.bad": (1, {"not_a_response": 4, "http_status": 1}),
    "warcio-example-digest.warc": (0, {"not_a_response": 4, "bad_digest": 1}),
    "warcio-example-iana.org-chunked.warc": (1, {"not_a_response": 2}),
    "warcio-example-trunc.warc": (1, {"not_a_response": 3, "bad_digest": 2, "bad_encoding": 1, "bad_record": 1}),
    "warcio-example-wrong-chunks.warc.gz": (1, {"not_a_response": 1, "bad_digest": 1}),
    "warcio-example.arc.gz": (1, {"not_a_response": 1}),
}


@needs_data
@pytest.mark.parametrize("name", WHOLE)
def test_real_archives(name: str) -> None:
    """What each of the nine gives, and every reason."""
    pages, reasons = read(DATA / name)
    assert (len(pages), dict(reasons)) == WHOLE[name]
    assert all(isinstance(page.content, bytes) and b"<" in page.content and page.url for page in pages)


@needs_data
@pytest.mark.parametrize("name", [name for name in WHOLE if "dolma" in name or "whirlwind" in name or "iana" in name])
def test_whole_archives_read_as_fastwarc_reads_them(name: str) -> None:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    theirs = {}
    with open(DATA / name, "rb") as file:
        for item in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True, auto_decode="all"):
            theirs[item.record_id] = item.reader.read()
    pages, _ = read(DATA / name)
    assert pages
    for page in pages:
        found = theirs.get(page.id) or theirs[page.id.strip("<>")]
        assert found == page.content


@needs_data
def test_the_crawl_is_named_by_the_archive_its_path_or_the_user(tmp_path: Path) -> None:
    assert read(DATA / "commoncrawl-whirlwind.warc.gz")[0][0].dump == "CC-MAIN-2024-22"
    assert read(DATA / "commoncrawl-whirlwind.warc.gz", dump="mine")[0][0].dump == "mine"
    folder = tmp_path / "CC-MAIN-2013-20"
    folder.mkdir()
    (folder / "x.warc").write_bytes(response(1))
    (tmp_path / "x.warc").write_bytes(response(1))
    assert [read(place / "x.warc")[0][0].dump for place in (folder, tmp_path)] == ["CC-MAIN-2013-20", "unknown"]


@pytest.mark.parametrize("form", ["plain", "gz by record", "gz whole", "zst by record", "zst whole", "odd name"])
def test_one_archive_in_every_form(tmp_path: Path, form: str) -> None:
    records = [response(number) for number in range(300)]
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(form.split()[0])
    data = b"".join(records) if pack is None else pack(b"".join(records))
    if form.endswith("by record") and pack is not None:
        data = b"".join(pack(one) for one in records)
    path = tmp_path / ("a.warc.bad" if form == "odd name" else f"a.warc.{form.split()[0]}")
    path.write_bytes(data)
    pages, reasons = read(path)
    assert urns(pages) == list(range(300)) and not reasons
    assert pages[7].content == f"<html><p>Page number 7. {'words ' * 7}</p>".encode()


def test_zstd_with_a_dictionary(tmp_path: Path) -> None:
    """The dictionary comes first, in a skippable frame."""
    records = [response(number) for number in range(50)]
    shared = zstandard.ZstdCompressionDict(b"".join(records[:20]), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    data = shared.as_bytes()
    frame = b"\x5d\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data
    packer = zstandard.ZstdCompressor(dict_data=shared)
    (tmp_path / "a.warc.zst").write_bytes(frame + b"".join(packer.compress(one) for one in records))
    pages, _ = read(tmp_path / "a.warc.zst")
    assert urns(pages) == list(range(50))


RECORDS = [response(number) for number in range(8)]
MEMBERS = [gzip.compress(one, mtime=0) for one in RECORDS]
CONTENTS = {page: f"<html><p>Page number {page}. {'words ' * page}</p>".encode() for page in range(8)}


@settings(max_examples=120, deadline=None)
@given(place=st.integers(0, sum(map(len, MEMBERS)) - 1), cut=st.integers(0, 80), put=st.binary(max_size=40))
@example(place=3, cut=0, put=b"\x1f\x8b\x08\x00")
@example(place=len(MEMBERS[0]) - 4, cut=4, put=b"")
def test_damage_costs_the_pieces_it_touches(
    tmp_path_factory: pytest.TempPathFactory, place: int, cut: int, put: bytes
) -> None:
    """Bytes replaced anywhere: pages of the untouched members are all there, and nothing else is made up."""
    data = b"".join(MEMBERS)
    end = min(len(data), place + cut)
    path = tmp_path_factory.mktemp("damage") / "a.warc.gz"
    path.write_bytes(data[:place] + put + data[end:])
    pages, _ = read(path)
    ends = [sum(map(len, MEMBERS[: n + 1])) for n in range(8)]
    touched = {n for n in range(8) if ends[n] > place - 1 and ends[n] - len(MEMBERS[n]) < max(end, place + 1)}
    found = {number: page.content for number, page in zip(urns(pages), pages)}
    assert set(found) >= set(range(8)) - touched
    # A flipped header byte of a member (its time, its name) is no damage; a page is whole or absent.
    assert all(CONTENTS[number] == content for number, content in found.items())


@settings(max_examples=120, deadline=None)
@given(place=st.integers(4, len(b"".join(RECORDS)) - 1), cut=st.integers(0, 60), put=st.binary(max_size=60))
def test_plain_archives_go_on_after_damage(
    tmp_path_factory: pytest.TempPathFactory, place: int, cut: int, put: bytes
) -> None:
    data = b"".join(RECORDS)
    end = min(len(data), place + cut)
    path = tmp_path_factory.mktemp("damage") / "a.warc"
    path.write_bytes(data[:place] + put + data[end:])
    found = {page.id: page.content for page in read(path)[0]}
    ends = [sum(map(len, RECORDS[: n + 1])) for n in range(8)]
    touched = {n for n in range(8) if ends[n] > place - 1 and ends[n] - len(RECORDS[n]) < max(end, place + 1)}
    assert all(found.get(f"<urn:{n}>") == CONTENTS[n] for n in range(8) if n not in touched)


def test_a_torn_gzip_file(tmp_path: Path) -> None:
    """Cut in the last member, as an interrupted download is; and one member of all, where nothing follows."""
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(MEMBERS)[:-9])
    pages, reasons = read(path)
    assert urns(pages)[:7] == list(range(7)) and reasons["truncated_gzip"] == 1
    path.write_bytes(gzip.compress(b"".join(RECORDS) * 50)[:-400])
    pages, reasons = read(path)
    assert len(pages) > 100 and reasons["truncated_gzip"] == 1


def test_lengths_that_lie(tmp_path: Path) -> None:
    """Too long swallows no record, too short makes none up, absurd ones end nothing."""
    path = tmp_path / "a.warc"
    length = len(http(CONTENTS[1]))
    for wrong in (length + 300, 10**12, length - 5, -1, 10**30, "x"):
        bad = response(1).replace(f"Content-Length: {length}".encode(), f"Content-Length: {wrong}".encode(), 1)
        for data in (response(0) + bad + response(2) + response(3), gzip.compress(response(0) + bad + response(2))):
            path.write_bytes(data)
            pages, reasons = read(path, Limits(page_bytes=1 << 16))
            assert set(urns(pages)) - {1} >= {0, 2} or (data[:2] == b"\x1f\x8b" and wrong == 10**12)
            assert sum(reasons.values()) >= 1


def test_garbage_between_records_is_told_once(tmp_path: Path) -> None:
    garbage = b"no record\nat all\n" * 100
    (tmp_path / "a.warc").write_bytes(garbage + response(0) + garbage + response(1) + b"tail")
    pages, reasons = read(tmp_path / "a.warc")
    assert urns(pages) == [0, 1] and dict(reasons) == {"bad_record": 3}


def test_every_record_is_a_page_or_has_a_reason(tmp_path: Path) -> None:
    def made(block: bytes, **fields: str) -> bytes:
        return record("response", block, **({"Content_Type": "application/http"} | fields))

    records = {
        "not_a_response": [record("request", b"GET /"), record("metadata", b""), record("revisit", http(b""))],
        "http_status": [made(http(b"<p>", 404)), made(http(b"", 301))],
        "not_http": [made(b"not a response"), made(b"dns", Content_Type="text/dns")],
        "not_html": [made(http(b"%PDF", Content_Type="application/pdf")), made(http(b"raw", Content_Type=""))],
        "empty_body": [made(http(b"")), made(http(b" \n "))],
        "page_too_long": [
            made(http(b"<p>" + b"x" * 70_000)),
            made(http(gzip.compress(b"x" * 10**6), Content_Encoding="gzip")),
        ],
        "content_encoding": [made(http(b"<p>", Content_Encoding="sdch"))],
        "header_too_long": [made(http(b"<p>"), X="y" * 70_000)],
    }
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(one for several in records.values() for one in several) + response(5))
    pages, reasons = read(path, Limits(page_bytes=60_000))
    assert dict(reasons) == {reason: len(several) for reason, several in records.items()}
    assert urns(pages) == [5]


def test_digests_are_compared(tmp_path: Path) -> None:
    body = b"<p>digest"
    right = "sha1:" + base64.b32encode(hashlib.sha1(body).digest()).decode()
    path = tmp_path / "a.warc"
    path.write_bytes(
        response(0, body, WARC_Payload_Digest=right) + response(1, body, WARC_Payload_Digest=right[:-1] + "X")
    )
    assert [dict(read(path, Limits(check_digests=check))[1]) for check in (True, False)] == [{"bad_digest": 1}, {}]
    assert len(read(path)[0]) == 2


def test_wet_resources_and_identified_types(tmp_path: Path) -> None:
    text = "Text of a page 中文".encode()
    wet = record(
        "conversion", text, Content_Type="text/plain", WARC_Record_ID="<urn:1>", WARC_Date="2024-01-01T00:00:00Z"
    )
    saved = record("resource", b"<p>saved", Content_Type="text/html; charset=gbk", WARC_Record_ID="<urn:2>")
    odd = response(3, None, WARC_Identified_Payload_Type="application/json")
    (tmp_path / "a.warc.wet.gz").write_bytes(gzip.compress(wet + saved + odd))
    pages, reasons = read(tmp_path / "a.warc.wet.gz")
    assert [(page.kind, page.content, page.charset) for page in pages] == [
        ("text", "Text of a page 中文", None),
        ("html", b"<p>saved", "gbk"),
    ]
    assert pages[0].date == "2024-01-01T00:00:00Z" and reasons == {"not_html": 1}


def test_arc(tmp_path: Path) -> None:
    """Both versions of the line, and a damaged one between."""
    block = http(b"<p>old page")
    first = b"http://a.org/1 1.2.3.4 20010203040506 text/html %d\n" % len(block) + block + b"\n"
    second = b"http://a.org/2 1.2.3.4 20010203 text/html 200 - - 0 f.arc %d\n" % len(block) + block + b"\n"
    (tmp_path / "a.arc").write_bytes(first + b"http://a.org/x broken line\n<p>\n" + second)
    pages, reasons = read(tmp_path / "a.arc")
    assert [(page.id, page.url, page.date) for page in pages] == [
        ("a-0", "http://a.org/1", "2001-02-03T04:05:06Z"),
        ("a-1", "http://a.org/2", "2001-02-03T00:00:00Z"),
    ]
    assert reasons == {"bad_record": 1}


def test_html_files(tmp_path: Path) -> None:
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(b"<p>one"))
    (tmp_path / "b.HTM").write_bytes(b"<p>two")
    (tmp_path / "saved page").write_bytes(b"<!DOCTYPE html><p>three")
    pages = [read(path)[0][0] for path in sorted(tmp_path.iterdir())]
    assert [(page.id, page.content) for page in pages] == [
        ("a-0", b"<p>one"),
        ("b-0", b"<p>two"),
        ("saved page-0", b"<!DOCTYPE html><p>three"),
    ]
    assert read(tmp_path / "b.HTM", Limits(page_bytes=3)) == ([], Counter(page_too_long=1))


def test_rows(tmp_path: Path) -> None:
    rows = [
        {"text": "one\0 \ud800", "id": "i", "url": "u", "date": "d", "dump": "D", "file_path": "f", "score": 0.5},
        {"html": "<p>two"},
        {"text": ""},
        {"other": 1},
    ]
    lines = [json.dumps(row).encode() for row in rows]
    data = b"\n".join([*lines, b"", b"[1]", b"{broken", b'{"text": "\xff"}', b"[" * 100_000, b"9" * 99_999, lines[1]])
    for name, pack in (("a.jsonl", bytes), ("b.jsonl.gz", gzip.compress), ("c.json.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(data))
        pages, reasons = read(tmp_path / name)
        assert pages[0] == Page("i", "u", "d", "D", "f", "one ", "text", None, {"score": 0.5})
        assert [(page.kind, page.content, page.id) for page in pages[1:]] == [
            ("html", "<p>two", f"{name[0]}-1"),
            ("html", "<p>two", f"{name[0]}-10"),
        ]
        assert reasons == {"no_text": 2, "bad_json": 5}
    assert read(tmp_path / "a.jsonl", dump="mine")[0][0].dump == "mine"


def test_long_lines_are_passed_over(tmp_path: Path) -> None:
    good = b'{"text": "short"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, b'{"text": "' + b"x" * 200_000 + b'"}', good]))
    pages, reasons = read(tmp_path / "a.jsonl", Limits(line_bytes=100_000))
    assert [page.id for page in pages] == ["a-0", "a-2"] and reasons == {"line_too_long": 1}
    pages, reasons = read(tmp_path / "a.jsonl", Limits(page_bytes=100_000))
    assert len(pages) == 2 and reasons == {"page_too_long": 1}


def test_a_torn_jsonl_gz(tmp_path: Path) -> None:
    data = b"".join(
        json.dumps({"text": hashlib.sha1(bytes([n % 256, n >> 8])).hexdigest()}).encode() + b"\n" for n in range(5000)
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data)[:-1000] + gzip.compress(b'{"text": "behind"}\n'))
    pages, reasons = read(tmp_path / "a.jsonl.gz")
    assert len(pages) > 3000 and pages[-1].content == "behind" and sum(reasons.values()) <= 5


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": f"row {n}" if n % 3 else None, "html": f"<p>{n}".encode(), "n": n} for n in range(600)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    pages, reasons = read(path)
    assert [page.metadata["n"] for page in pages] == list(range(600)) and not reasons
    assert (pages[0].kind, pages[0].content, pages[1].content) == ("html", b"<p>0", "row 1")
    assert read(path, Limits(row_group_bytes=10))[1] == {"row_group_too_large": 6}
    path.write_bytes(path.read_bytes()[:-20])
    assert read(path) == ([], Counter(bad_parquet=1))


def test_wrong_paths_fail_before_anything_is_read(tmp_path: Path) -> None:
    """At the call, not at the first page."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "list.json").write_bytes(b'[{"text": "a"}]')
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    for path, message in (
        (tmp_path / "no.warc", "no such file"),
        (tmp_path, "not a file"),
        (tmp_path / "a.pdf", "no known kind"),
    ):
        with pytest.raises(DunwuError, match=message):
            read_pages(path)
    with pytest.raises(DunwuError, match="JSON list"):
        list(read_pages(tmp_path / "list.json"))
    assert read(tmp_path / "empty.warc.gz") == ([], Counter(empty_file=1))


@given(st.lists(st.binary(max_size=50), max_size=6), st.booleans())
def test_chunks_come_apart(parts: list[bytes], trailer: bool) -> None:
    body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\n"
    assert dechunk(body + b"X: y\r\n" * trailer + b"\r\n") == (b"".join(parts), True)


def test_bodies_are_unpacked_or_kept_as_they_are() -> None:
    plain = b"<html>" + b"words " * 500
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(plain),
        "x-gzip": gzip.compress(plain),
        "deflate": zlib.compress(plain),
        "Deflate": raw.compress(plain) + raw.flush(),
        "zstd": zstandard.compress(plain),
        "gzip, gzip": gzip.compress(gzip.compress(plain)),
        "identity": plain,
    }
    for name, body in packed.items():
        assert unpack(Response(200, {"content-encoding": name}, body), 10**6) == (plain, None)
    assert unpack(Response(200, {"content-encoding": "gzip"}, plain), 10**6) == (plain, "bad_encoding")
    torn, wrong = unpack(Response(200, {"content-encoding": "gzip"}, gzip.compress(plain)[:-8]), 10**6)
    assert plain.startswith(torn) and wrong == "bad_encoding"
    both = Response(
        200,
        {"content-encoding": "gzip", "transfer-encoding": "chunked"},
        b"%x\r\n" % len(packed["gzip"]) + packed["gzip"],
    )
    assert unpack(both, 10**6) == (plain, "bad_chunks")
    with pytest.raises(BadBody, match="content_encoding"):
        unpack(Response(200, {"content-encoding": "compress"}, plain), 10**6)


def test_brotli() -> None:
    brotli = pytest.importorskip("brotli")
    plain = b"<html>" + b"words " * 500
    packed = Response(200, {"content-encoding": "br"}, brotli.compress(plain))
    assert unpack(packed, 10**6) == (plain, None)
    bomb = Response(200, {"content-encoding": "br"}, brotli.compress(b"\0" * 10**7))
    with pytest.raises(BadBody, match="page_too_long"):
        unpack(bomb, 10**6)


@given(st.binary(max_size=300))
@example(b"HTTP/1.1 200\n\n")
@example(b"HTTP/1.0 200 OK")
def test_responses_of_any_bytes(block: bytes) -> None:
    """Whatever it is: a response or None, never an exception."""
    for data in (block, b"HTTP/1.1 200 OK\r\n" + block):
        parsed = parse_response(data)
        assert parsed is None or parsed.status in range(1000)


@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18"]))
def test_a_source_of_any_bytes_ends(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(magic + data)
    with Source(path) as source:
        for _ in range(100):
            try:
                if not source.read(100):
                    return
            except Damaged:
                if not source.resync():
                    return
    raise AssertionError("no end")
