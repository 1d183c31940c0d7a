"""A crawl as a WARC file (ISO 28500, version 1.1), and its truth beside it, line by line.

One warcinfo record, then a response record for each item, every record compressed by itself as the standard wants. Damage is done
here, and stays within its record. Not covered: request and metadata records, revisits, segments.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from dunwu import __version__
from dunwu.disk import disk_errors, fsync
from dunwu.types import DunwuError
from dunwu.world.crawl import Crawled

Compression = Literal["gzip", "zstd", "none"]
SUFFIX: dict[Compression, str] = {"gzip": ".warc.gz", "zstd": ".warc.zst", "none": ".warc"}
"""What names of such files end in."""


@dataclass
class Written:
    """What went into a file."""

    records: int = 0
    """Response records, damaged ones included."""
    html_bytes: int = 0
    """Their bodies."""
    file_bytes: int = 0
    """The WARC file."""
    fates: dict[str, int] = field(default_factory=dict)
    """Records by the truth's `fate`."""


def write_warc(
    items: Iterable[Crawled],
    path: Path,
    truth_path: Path,
    *,
    dump: str = "world",
    compression: Compression = "gzip",
    level: int = 4,
) -> Written:
    """Write items as records of `path`, and their truth as lines of `truth_path` (JSONL.zst), in the same order.

    Both files are whole or absent, and the WARC file comes last: where it is, its truth is.

    Args:
        dump: the crawl's name, said in the warcinfo record.
        compression: "gzip" and "zstd" pack every record by itself.
        level: of the compression; small pages gain nothing from more than the default.

    Raises:
        DunwuError: no space, no permission.
    """
    written, fates = Written(), Counter[str]()
    pack = _packer(compression, level)
    with _whole_or_absent(path) as file, _whole_or_absent(truth_path) as truth_file:
        truth: Any = zstandard.ZstdCompressor(level=3).stream_writer(truth_file, closefd=False)
        file.write(pack(_warcinfo(path.name, dump)))
        for item in items:
            record = _record(item)
            file.write(_spoiled(pack, record, item.damage) if item.damage else pack(record))
            truth.write(json.dumps(item.truth, ensure_ascii=False).encode() + b"\n")
            written.records += 1
            written.html_bytes += len(item.html)
            fates[item.truth["fate"]] += 1
        truth.close()
        written.file_bytes = file.tell()
    written.fates = dict(sorted(fates.items()))
    return written


def read_truth(path: Path) -> Iterator[dict[str, Any]]:
    """The truth of a file's records, in their order.

    Raises:
        DunwuError: no such file, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            # Not a stream reader: that takes a file cut short for a whole one.
            opener, rest = zstandard.ZstdDecompressor().decompressobj(), b""
            while chunk := file.read(1 << 18):
                *lines, rest = (rest + opener.decompress(chunk)).split(b"\n")
                yield from map(json.loads, lines)
            if rest or not opener.eof:
                raise ValueError("it ends too early")
    except FileNotFoundError as error:
        raise DunwuError(f"no file {path}", "write the world first") from error
    except (zstandard.ZstdError, ValueError) as error:
        raise DunwuError(f"{path} is damaged: {error}", "remove it and write the world again") from error


def _record(item: Crawled) -> bytes:
    """A response record, as it is before compression."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in item.headers)
    head = f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode("latin-1")
    digest = base64.b32encode(hashlib.sha1(item.html, usedforsecurity=False).digest()).decode()
    return b"%sContent-Length: %d\r\n\r\n%s%s\r\n\r\n" % (
        (
            f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: {item.id}\r\nWARC-Date: {item.date}\r\n"
            f"WARC-Target-URI: {item.url}\r\nContent-Type: application/http; msgtype=response\r\n"
            f"WARC-Payload-Digest: sha1:{digest}\r\n"
        ).encode(),
        len(head) + len(item.html),
        head,
        item.html,
    )


def _warcinfo(name: str, dump: str) -> bytes:
    """The record that says what file this is; the same at every writing."""
    block = f"software: dunwu/{__version__}\r\nformat: WARC File Format 1.1\r\nisPartOf: {dump}\r\n".encode()
    digits = hashlib.blake2b(f"{dump} {name}".encode(), digest_size=16).hexdigest()
    identity = f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
    head = (
        f"WARC/1.1\r\nWARC-Type: warcinfo\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\nWARC-Date: 2025-06-01T00:00:00Z\r\n"
        f"WARC-Filename: {name}\r\nContent-Type: application/warc-fields\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def _spoiled(pack: Callable[[bytes], bytes], record: bytes, damage: str) -> bytes:
    """The record with a hole in its compressed bytes ("member"), or without a length in its header ("header")."""
    if damage == "header":
        return pack(record.replace(b"\r\nContent-Length: ", b"\r\nContent-Lost: ", 1))
    packed = bytearray(pack(record))
    middle = len(packed) // 2
    packed[middle : middle + 24] = b"\xff" * 24
    return bytes(packed)


def _packer(compression: Compression, level: int) -> Callable[[bytes], bytes]:
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=level).compress
    if compression == "none":
        return bytes

    def gzipped(record: bytes) -> bytes:
        packer = zlib.compressobj(level, zlib.DEFLATED, 31, 9)
        return packer.compress(record) + packer.flush()

    return gzipped


@contextlib.contextmanager
def _whole_or_absent(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at the end of the block, on disk; nothing appears if the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", buffering=1 << 20) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
