"""WARC files of the crawl: readable by FastWARC and warcio, digests right, whole or absent, damage confined, truth in step."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import zstandard

from dunwu.types import DunwuError
from dunwu.world.crawl import Crawled, CrawlKnobs, crawl
from dunwu.world.knobs import Knobs
from dunwu.world.warc import SUFFIX, Compression, Written, read_truth, write_warc

WHOLE = CrawlKnobs(damaged=0.0, transfer=0.1)


def some(count: int = 120, rubbish: CrawlKnobs = WHOLE) -> list[Crawled]:
    return list(islice(crawl(Knobs(chinese=0.3), 0, rubbish), count))


def written(folder: Path, items: list[Crawled], compression: Compression = "gzip") -> tuple[Path, Path, Written]:
    path, truth = folder / f"a{SUFFIX[compression]}", folder / "a.truth.jsonl.zst"
    return path, truth, write_warc(items, path, truth, dump="CC-MAIN-2025-22", compression=compression)


def plain(path: Path) -> bytes:
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read()
    return path.read_bytes()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_fastwarc_reads_what_was_written(tmp_path: Path, compression: Compression) -> None:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    items = some()
    path, _, found = written(tmp_path, items, compression)
    with io.BytesIO(plain(path)) as stream:
        info, *records = [
            (
                record.record_id,
                dict(record.headers),
                record.record_type,
                record.http_headers,
                record.reader.read(),
                digest,
            )
            for record in ArchiveIterator(stream, parse_http=True)
            for digest in [record.verify_payload_digest()]
        ]
    assert info[2] == WarcRecordType.warcinfo
    assert b"isPartOf: CC-MAIN-2025-22" in info[4]
    assert len(records) == len(items) == found.records
    for item, (identity, headers, kind, http, content, digest) in zip(items, records):
        assert kind == WarcRecordType.response
        assert f"<{identity.strip('<>')}>" == item.id or identity == item.id
        assert headers["WARC-Target-URI"] == item.url
        assert headers["WARC-Date"] == item.date
        assert dict(http) == dict(item.headers)
        assert content == item.html
        assert digest


def test_warcio_reads_it_too(tmp_path: Path) -> None:
    warcio = pytest.importorskip("warcio.archiveiterator")
    items = some(60, CrawlKnobs(damaged=0.0, transfer=0.0))
    path, _, _ = written(tmp_path, items)
    with open(path, "rb") as file:
        records = [
            (record.rec_headers, record.content_stream().read(), record.digest_checker.passed)
            for record in warcio.ArchiveIterator(file, check_digests=True)
            if record.rec_type == "response"
        ]
    assert [content for _, content, _ in records] == [item.html for item in items]
    assert [headers.get_header("WARC-Record-ID") for headers, _, _ in records] == [item.id for item in items]
    assert {passed for *_, passed in records} == {True}


def members(packed: bytes) -> Iterator[bytes]:
    while packed:
        opener = zlib.decompressobj(31)
        yield opener.decompress(packed)
        packed = opener.unused_data


def test_every_record_is_a_gzip_member_by_the_standard(tmp_path: Path) -> None:
    items = some(40)
    path, _, found = written(tmp_path, items)
    records = list(members(path.read_bytes()))
    assert len(records) == 41
    assert found.file_bytes == path.stat().st_size
    for item, record in zip(items, records[1:]):
        head, block = record.split(b"\r\n\r\n", 1)
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        assert record.startswith(b"WARC/1.1\r\n")
        assert block.endswith(b"\r\n\r\n")
        assert int(fields["Content-Length"]) == len(block) - 4
        payload = block[:-4].split(b"\r\n\r\n", 1)[1]
        digest = base64.b32encode(hashlib.sha1(payload, usedforsecurity=False).digest()).decode()
        assert fields["WARC-Payload-Digest"] == f"sha1:{digest}"
        assert payload == item.html


def test_same_items_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        path, truth, _ = written(tmp_path / name, some(50, CrawlKnobs(damaged=0.1)))
        files.append((path.read_bytes(), truth.read_bytes()))
    assert files[0] == files[1]


def test_truth_is_in_the_same_order(tmp_path: Path) -> None:
    items = some(100, CrawlKnobs(damaged=0.05))
    _, truth, found = written(tmp_path, items)
    assert list(read_truth(truth)) == [json.loads(json.dumps(item.truth)) for item in items]
    assert sum(found.fates.values()) == 100
    assert found.html_bytes == sum(len(item.html) for item in items)


def test_damage_stays_within_its_record(tmp_path: Path) -> None:
    items = some(200, CrawlKnobs(damaged=0.1))
    path, _, _ = written(tmp_path, items)
    clean, _, _ = written(tmp_path / "clean", [item for item in items if not item.damage])
    packed = path.read_bytes()
    for member in clean.read_bytes().split(b"\x1f\x8b\x08\x00\x00\x00\x00\x00")[2:]:
        assert member in packed
    spoiled = {item.damage for item in items}
    assert spoiled == {"", "member", "header"}
    with pytest.raises(zlib.error):
        list(members(packed))


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Crawled]:
        yield from some(5)
        raise RuntimeError("the crawl stops")

    with pytest.raises(RuntimeError):
        write_warc(broken(), tmp_path / "a.warc.gz", tmp_path / "a.truth.jsonl.zst")
    assert list(tmp_path.iterdir()) == []


def test_damaged_truth_is_named(tmp_path: Path) -> None:
    _, truth, _ = written(tmp_path, some(30))
    with pytest.raises(DunwuError, match="no file"):
        list(read_truth(tmp_path / "none"))
    packed = truth.read_bytes()
    for spoiled in (packed[:-1], packed[:-40], packed[: len(packed) // 2], b"no zstd"):
        truth.write_bytes(spoiled)
        with pytest.raises(DunwuError, match="damaged"):
            list(read_truth(truth))
