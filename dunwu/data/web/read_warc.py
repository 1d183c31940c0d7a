"""Crawl archives to pages: WARC (ISO 28500), with Common Crawl's WET, and ARC, its ancestor.

Written for damaged files, which FastWARC and warcio end at or stumble over: whatever is wrong with a record, the next line
that begins one is found and reading goes on. Records longer than a page may be are passed over without being held.

Not covered: `revisit` records (what they repeat is in another file), and segmented ones (`continuation`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dunwu.data.web.charset import decode
from dunwu.data.web.read import Limits, OnSkip, Page, stem
from dunwu.data.web.read_bytes import LINE_COST, MOST_DAMAGES, Damaged, Source
from dunwu.data.web.read_http import (
    HTML_TYPES,
    BadBody,
    dechunk,
    looks_html,
    media_type,
    parse_headers,
    parse_response,
    unpack,
)

RECORD_COST = 16 * LINE_COST
"""A record without a page counts as that many bytes thrown away."""
_DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}(?!\d)")
_WARC_LINE = re.compile(rb"WARC/[01]\.\d{1,2}[ \t]*\r?\n")
_ARC_1 = re.compile(rb"([a-z][a-z0-9+.-]{1,20}:[^\r\n]{1,8192}?) (\S{1,64}) (\d{8,14}) (\S{1,256}) (\d{1,15})\r?\n")
_ARC_2 = re.compile(
    rb"([a-z][a-z0-9+.-]{1,20}:\S{1,8192}) (\S{1,64}) (\d{8,14}) (\S{1,256}) \d{3} \S+ \S+ \d+ \S+ (\d{1,15})\r?\n"
)
_AHEAD = 9216
"""Bytes looked at to see whether a record begins: ARC's line holds the address."""
_LONGEST_LINE = 32
_HASHES = {"sha1", "sha256", "sha512", "md5"}


_PART_OF = re.compile(r"(?im)^isPartOf:[ \t]*(\S.{0,99})$")
"""How a warcinfo record names its crawl (ISO 28500, annex)."""


def dump_in(text: str) -> str | None:
    """Common Crawl's name of a crawl in a path or a warcinfo record.

    Example:
        >>> dump_in("s3://commoncrawl/crawl-data/CC-MAIN-2024-22/segments/1715971057494.65/x.warc.gz")
        'CC-MAIN-2024-22'
    """
    found = _DUMP.search(text)
    return found[0] if found else None


def read_archive(path: Path, dump: str | None, tell: OnSkip, limits: Limits) -> Iterator[Page]:
    """The pages of a WARC, WET or ARC file; see `read.read_pages`."""
    with Source(path) as source:
        archive = _Archive(path, source, dump, tell, limits)
        while True:
            try:
                page = archive.next()
            except EOFError:
                return
            except Damaged as damage:
                if not source.go_on(damage, tell):
                    return
                continue
            if page is not None:
                yield page


class _Archive:
    """One archive, record by record."""

    def __init__(self, path: Path, source: Source, dump: str | None, tell: OnSkip, limits: Limits) -> None:
        self.path, self.source, self.limits, self._tell = path, source, limits, tell
        self.dump, self.found = dump, dump_in(str(path)) or "unknown"
        self.number = -1
        self.lost, self.went_back = False, 0

    def next(self) -> Page | None:
        """The page of the next record, or None if it has none, which has been told.

        Raises:
            EOFError: no more records. Damaged: the compressed stream is broken; call `resync`.
        """
        self.source.skip_blank()
        piece = self.source.piece_here()
        line = self.source.line(self.limits.header_bytes)
        if not line:
            raise EOFError
        start = _WARC_LINE.search(line)
        if start is not None and start.end() == len(line):
            if start.start() > 0:
                self._garbage(start.start())
            self.lost = False
            return self._warc(piece)
        arc = _ARC_2.fullmatch(line) or _ARC_1.fullmatch(line)
        if arc is not None:
            self.lost = False
            return self._arc(arc, piece)
        self._garbage(len(line))
        return None

    def tell(self, reason: str, detail: str) -> None:
        """Say that this record has no page, or which fault it has."""
        self._tell(reason, f"{self.path}: record {self.number}: {detail}")

    def _garbage(self, size: int) -> None:
        """Bytes that belong to no record: told once, until a record begins."""
        if not self.lost:
            self.lost = True
            self._tell("bad_record", f"{self.path}: no record begins after record {self.number}")
        self.source.throw_away(size + LINE_COST)

    def _warc(self, piece: int | None) -> Page | None:
        self.number += 1
        header = self._header()
        if header is None:
            return None
        fields = parse_headers(header)
        length = fields.get("content-length", "")
        if not re.fullmatch(r"\d{1,15}", length):
            self.tell("bad_record", f"Content-Length is {length[:40]!r}")
            self.lost = True
            return None
        block = self._block(int(length), piece)
        page = None if block is None else self._page(fields, block)
        if page is None:
            self.source.throw_away(RECORD_COST)
        return page

    def _header(self) -> bytes | None:
        """The lines up to the empty one."""
        parts: list[bytes] = []
        left = self.limits.header_bytes
        while left > 0:
            line = self.source.line(left)
            if line in (b"\r\n", b"\n"):
                return b"".join(parts)
            if not line:
                self.tell("truncated_record", "the file ends in its header")
                return None
            if _WARC_LINE.fullmatch(line):
                self.source.unread(line)
                self.tell("bad_record", "its header has no end")
                return None
            parts.append(line)
            left -= len(line)
        self.tell("header_too_long", f"more than {self.limits.header_bytes} bytes")
        self.lost = True
        return None

    def _block(self, length: int, piece: int | None) -> bytes | None:
        """The record's block, read past its end; None, told, if it is too long or not there as its length says.

        Args:
            piece: the gzip member or zstd frame it began, if it did: most archives give each record one of its own.
        """
        source, most = self.source, self.limits.page_bytes + self.limits.header_bytes
        block = source.read(min(length, most))
        if length > most and len(block) == most:
            skipped = source.skip(length - most, within_piece=piece is not None)
            if (most + skipped < length or not self._aligned()) and self._may_go_back() and source.back(skipped):
                self._put_back(block)
            self.tell("page_too_long", f"{length} bytes")
            return None
        if len(block) == length and self._aligned():
            # What comes out of a broken member may be anything; the damage is told next.
            return None if piece is not None and source.tainted(piece) else block
        if self._may_go_back() and self._put_back(block):
            self.tell("bad_record", f"it is shorter than its length, {length}")
            return None
        if len(block) < length:
            self.tell("truncated_record", f"{len(block)} bytes of {length}")
            return None
        with contextlib.suppress(Damaged):  # told when the next record is asked for
            source.skip_blank()
        if piece is not None and source.piece_here() is None:
            self.tell("bad_record", "more follows it in its own member")
            return None
        return block  # whole; what follows it is garbage, and told as such

    def _put_back(self, block: bytes) -> bool:
        """Go back to the record that `block` has swallowed, or half of it; whether there is one."""
        swallowed = _WARC_LINE.search(block + self.source.peek(_LONGEST_LINE))
        if swallowed is None or swallowed.start() >= len(block):
            return False
        self.source.unread(block[swallowed.start() :])
        return True

    def _may_go_back(self) -> bool:
        """Reading the same bytes again and again is how a small file could take for ever."""
        self.went_back += 1
        return self.went_back <= MOST_DAMAGES

    def _aligned(self) -> bool:
        """Whether a record follows, or the end of the file, or damage, which is told when it is come to."""
        ahead = self.source.peek(_AHEAD).lstrip()
        return not ahead or any(begin.match(ahead) for begin in (_WARC_LINE, _ARC_2, _ARC_1))

    def _page(self, fields: dict[str, str], block: bytes) -> Page | None:
        kind = fields.get("warc-type", "").lower()
        if kind == "warcinfo":
            told = block[: self.limits.header_bytes].decode("utf-8", "replace")
            part = _PART_OF.search(told)
            self.found = dump_in(told) or (part[1].strip() if part else "") or self.found
        if self.limits.check_digests:
            self._check_digests(fields, block)
        if kind not in ("response", "resource", "conversion"):
            self.tell("not_a_response", kind or "no WARC-Type")
            return None
        declared, charset = media_type(fields.get("content-type", ""))
        if kind == "response":
            if declared not in ("application/http", ""):
                self.tell("not_http", declared)
                return None
            return self._response(fields, block, fields.get("warc-identified-payload-type", ""))
        if kind == "conversion" and declared == "text/plain":
            return self._made(fields, decode(block, charset or "utf-8")[0], "text")
        if kind == "resource" and declared in HTML_TYPES:
            return self._made(fields, block, "html", charset)
        self.tell("not_html", f"{kind} {declared}")
        return None

    def _check_digests(self, fields: dict[str, str], block: bytes) -> None:
        """Tell which digests differ; a payload's may have been taken with chunks or without."""
        if _differs(fields.get("warc-block-digest"), block):
            self.tell("bad_digest", "of the block")
        digest = fields.get("warc-payload-digest")
        if digest and fields.get("warc-type") != "revisit":
            http = fields.get("content-type", "").startswith("application/http")
            body = block.partition(b"\r\n\r\n")[2] if http else block
            if _differs(digest, body) and _differs(digest, dechunk(body)[0]):
                self.tell("bad_digest", "of the payload")

    def _response(self, fields: dict[str, str], block: bytes, identified: str) -> Page | None:
        response = parse_response(block)
        if response is None:
            self.tell("not_http", "its block does not begin as a response")
            return None
        if response.status != 200:
            self.tell("http_status", str(response.status))
            return None
        declared, charset = media_type(response.headers.get("content-type", ""))
        kind = media_type(identified)[0] or declared
        if kind and kind not in HTML_TYPES:
            self.tell("not_html", kind)
            return None
        try:
            body, wrong = unpack(response, self.limits.page_bytes)
        except BadBody as bad:
            self.tell(bad.reason, bad.detail)
            return None
        if not body.strip():
            self.tell("empty_body", wrong or "")
            return None
        if not kind and not looks_html(body):
            self.tell("not_html", "no Content-Type")
            return None
        if wrong:
            self.tell(wrong, "what could be read is kept")
        return self._made(fields, body, "html", charset)

    def _made(
        self, fields: dict[str, str], content: bytes | str, kind: Literal["html", "text"], charset: str | None = None
    ) -> Page | None:
        if not content.strip():
            self.tell("empty_body", "")
            return None
        return Page(
            id=fields.get("warc-record-id") or f"{stem(self.path)}-{self.number}",
            url=fields.get("warc-target-uri", "").strip("<>"),
            date=fields.get("warc-date", ""),
            dump=self.dump or self.found,
            file_path=str(self.path),
            content=content,
            kind=kind,
            charset=charset,
            named=bool(fields.get("warc-record-id")),
            place=self.source.place,
        )

    def _arc(self, line: re.Match[bytes], piece: int | None) -> Page | None:
        self.number += 1
        url, _, date, declared, length = (part.decode("utf-8", "replace") for part in line.groups())
        block = self._block(int(length), piece)
        page = None
        if block is not None and url.startswith("filedesc:"):
            self.tell("not_a_response", "filedesc")
        elif block is not None:
            when = date.ljust(14, "0")
            day, time = "-".join((when[:4], when[4:6], when[6:8])), ":".join((when[8:10], when[10:12], when[12:14]))
            fields = {"warc-target-uri": url, "warc-date": f"{day}T{time}Z"}
            page = self._response(fields, block, "" if declared == "unk" else declared)
        if page is None:
            self.source.throw_away(RECORD_COST)
        return page


def _differs(digest: str | None, data: bytes) -> bool:
    """Whether a WARC digest is another one's: "sha1:" and base 32, hexadecimal or base 64. Unknown hashes are not judged."""
    name, _, value = (digest or "").partition(":")
    if name.lower() not in _HASHES or not value:
        return False
    found = hashlib.new(name.lower(), data, usedforsecurity=False).digest()
    value = value.strip().rstrip("=")
    written = (encode(found).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode))
    return (
        value.lower() not in (found.hex(), base64.b32encode(found).decode().lower().rstrip("="))
        and value not in written
    )
