"""An HTTP response as a crawl stored it: status, headers, and its body with chunks and content encoding undone.

Crawlers disagree with their own headers: bodies are called chunked or gzipped and are not. What can be read is kept; what was
wrong with it is told. No body grows beyond its limit, however little it was made of.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import zstandard

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml", "application/xhtml", "application/vnd.wap.xhtml+xml"})
MOST_ENCODINGS = 4
"""Content encodings applied to one another that are undone."""
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]{0,1024})?\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:+-]{1,40})", re.IGNORECASE)
_LOOKS_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|meta|div|p|h1|table)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Response:
    """A response taken apart."""

    status: int
    headers: dict[str, str]
    """By lower-case name; the first of several."""
    body: bytes
    """As it was sent: chunks and content encoding still on."""


class BadBody(Exception):
    """A body that cannot be had. `reason`: "page_too_long", "content_encoding"."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def parse_headers(lines: bytes) -> dict[str, str]:
    """Header lines by lower-case name, continuation lines joined, lines without a colon passed over.

    Example:
        >>> parse_headers(b"Content-Type: text/html;\\r\\n charset=gbk\\r\\n\\r\\n")
        {'content-type': 'text/html; charset=gbk'}
    """
    headers: dict[str, str] = {}
    name = ""
    for line in lines.decode("utf-8", "replace").split("\n"):
        if line[:1] in (" ", "\t") and name:
            headers[name] += " " + line.strip()
            continue
        before, colon, after = line.partition(":")
        name = before.strip().lower() if colon else ""
        if name in headers:
            name = ""
        elif name:
            headers[name] = after.strip()
    return headers


def parse_response(block: bytes) -> Response | None:
    """The response in a record's block; None if it does not begin like one."""
    status = _STATUS.match(block)
    if status is None:
        return None
    first = block.find(b"\n") + 1
    ends = [(block.find(gap, max(0, first - 2)), len(gap)) for gap in (b"\r\n\r\n", b"\n\n")]
    end, gap = min(((place, size) for place, size in ends if place >= 0), default=(-1, 0))
    if first == 0 or end < 0:
        return Response(int(status[1]), parse_headers(block[first:] if first else b""), b"")
    return Response(int(status[1]), parse_headers(block[first:end]), block[end + gap :])


def media_type(content_type: str) -> tuple[str, str | None]:
    """(type, charset) of a Content-Type header.

    Example:
        >>> media_type('Text/HTML; charset="GB2312"')
        ('text/html', 'GB2312')
    """
    charset = _CHARSET.search(content_type)
    return content_type.partition(";")[0].strip().lower(), charset[1] if charset else None


def looks_html(body: bytes) -> bool:
    """Whether the first kilobytes hold a tag pages begin with; for bodies that do not say what they are."""
    return _LOOKS_HTML.search(body, 0, 2048) is not None


def unpack(response: Response, limit: int) -> tuple[bytes, str | None]:
    """(body, what was wrong with it): chunks and content encoding undone, at most `limit` bytes.

    What was wrong: None; "bad_chunks" (not chunked at all, or broken off: what there is stays); "bad_encoding" (not encoded at
    all, or broken off).

    Raises:
        BadBody: the body is longer than `limit`, or encoded in a way not known here.
    """
    body, wrong = response.body, None
    if "chunked" in response.headers.get("transfer-encoding", "").lower():
        body, whole = dechunk(body)
        wrong = None if whole else "bad_chunks"
    names = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",") if name.strip()]
    if len(names) > MOST_ENCODINGS:
        raise BadBody("content_encoding", ", ".join(names)[:80])
    for name in reversed(names):
        if name in ("identity", "none", "utf-8", "8bit"):
            continue
        decoded = _decode(name, body, limit)
        if decoded is None:
            wrong = wrong or "bad_encoding"
            continue
        body, whole = decoded
        wrong = wrong or (None if whole else "bad_encoding")
    if len(body) > limit:
        raise BadBody("page_too_long", f"more than {limit} bytes")
    return body, wrong


def dechunk(body: bytes) -> tuple[bytes, bool]:
    """(bytes without chunk sizes, whether they were chunked to the end). Bytes not chunked at all stay as they are.

    Example:
        >>> dechunk(b"4\\r\\nWiki\\r\\n3\\r\\nped\\r\\n0\\r\\n\\r\\n"), dechunk(b"<html>"), dechunk(b"4\\r\\nWiki\\r\\n9\\r\\npe")
        ((b'Wikiped', True), (b'<html>', False), (b'Wikipe', False))
    """
    parts: list[bytes] = []
    at = 0
    while True:
        head = _CHUNK_SIZE.match(body, at)
        if head is None:
            # Broken off between chunks; or, if there was none, never chunked.
            return (b"".join(parts) if parts else body), False
        size, at = int(head[1], 16), head.end()
        if size == 0:
            return b"".join(parts), True
        parts.append(body[at : at + size])
        if at + size > len(body):
            return b"".join(parts), False
        at += size
        at += 2 if body.startswith(b"\r\n", at) else 1 if body.startswith(b"\n", at) else 0


def _decode(name: str, body: bytes, limit: int) -> tuple[bytes, bool] | None:
    """(bytes, whether to the end); None if `body` is not encoded like that.

    Raises:
        BadBody: too long, or the encoding is not known here.
    """
    if name in ("gzip", "x-gzip"):
        out = _inflate(body, 31, limit)
    elif name == "deflate":
        out = _inflate(body, 15, limit) or _inflate(body, -15, limit)  # many servers leave zlib's wrapping out
    elif name == "br":
        out = _brotli(body, limit)
    elif name in ("zstd", "zst"):
        out = _zstd(body, limit)
    else:
        raise BadBody("content_encoding", name[:40])
    if out is not None and len(out[0]) > limit:
        raise BadBody("page_too_long", f"more than {limit} bytes out of {len(body)}")
    return out


def _inflate(body: bytes, wbits: int, limit: int) -> tuple[bytes, bool] | None:
    stream = zlib.decompressobj(wbits=wbits)
    parts: list[bytes] = []
    size = 0
    # In steps, so that what came out before a fault is kept.
    step = 16 << 10
    for at in range(0, len(body), step):
        data = body[at : at + step]
        try:
            while data and size <= limit:
                parts.append(stream.decompress(data, limit + 1 - size))
                size += len(parts[-1])
                data = stream.unconsumed_tail
        except zlib.error:
            return (b"".join(parts), False) if size else None
        if stream.eof or size > limit:
            return b"".join(parts), stream.eof
    return (b"".join(parts), False) if size else None


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool] | None:
    try:
        with zstandard.ZstdDecompressor(max_window_size=16 << 20).stream_reader(body) as reader:
            out: bytes = reader.read(limit + 1)
    except zstandard.ZstdError:
        return None
    return (out, True) if out else None


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool] | None:
    """By the package `brotli`, where it is installed."""
    try:
        import brotli
    except ImportError:
        raise BadBody("content_encoding", "br (pip install brotli)") from None
    stream = brotli.Decompressor()
    parts: list[bytes] = []
    size, data = 0, body
    try:
        while size <= limit and not stream.is_finished():
            part = stream.process(data, output_buffer_limit=min(1 << 20, limit + 1 - size))
            if not part and not data:
                break
            parts.append(part)
            size, data = size + len(part), b""
    except (
        brotli.error,
        TypeError,
    ):  # TypeError: brotli before 1.2 has no limit on its output, and is not used without
        return (b"".join(parts), False) if size else None
    return (b"".join(parts), stream.is_finished()) if size else None
