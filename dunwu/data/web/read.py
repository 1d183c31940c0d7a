"""Files to pages: crawl archives, saved pages, rows of text or HTML, one page at a time and in the file's order.

    .warc .arc (.gz .zst)       HTML of the responses with status 200; resources that are HTML
    .wet, .warc.wet (.gz)       text of the conversion records
    .html .htm .xhtml (.gz)     one page
    .jsonl .ndjson .json (…)    one row a line, with "text" or else "html"
    .parquet                    the same, in columns

A name that says none of these is judged by the file's first bytes. Whatever gives no page is told under a reason, as is all
damage; the rest of a damaged file is read. Memory does not depend on the size of the file or of anything in it.

Reasons: records that are no pages: `not_a_response`, `http_status`, `not_http`, `not_html`, `empty_body`. Too much of it:
`page_too_long`, `line_too_long`, `header_too_long`, `row_group_too_large`, `gzip_bomb`, `zstd_bomb`. Damage:
`truncated_gzip`, `bad_gzip`, `truncated_zstd`, `bad_zstd`, `bad_record`, `truncated_record`, `content_encoding`, `bad_json`,
`no_text`, `bad_parquet`, `empty_file`, `too_damaged`. The reasons in `MENDED` come with a page that is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dunwu.data.web.read_bytes import Damaged, Source
from dunwu.data.web.read_http import looks_html
from dunwu.types import DunwuError

OnSkip = Callable[[str, str], None]
"""Called with (reason, detail)."""
MENDED = frozenset({"bad_chunks", "bad_encoding", "bad_digest"})
"""Damage that leaves a page: it is kept, with what could be read of it."""
_SUFFIXES = {
    ".warc": "warc",
    ".arc": "arc",
    ".wet": "warc",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".jsonl": "rows",
    ".ndjson": "rows",
    ".json": "rows",
    ".parquet": "parquet",
}
_PACKED = (".gz", ".zst", ".zstd")
_KINDS = ".warc, .arc, .wet, .html, .jsonl or .json (plain, .gz or .zst), or .parquet"


@dataclass(frozen=True)
class Limits:
    """How much of one thing is read, and which checks are made."""

    page_bytes: int = 8 << 20
    """Longest page, packed or unpacked; Common Crawl cuts pages at 1 MiB."""
    line_bytes: int = 32 << 20
    """Longest line of a JSONL file."""
    header_bytes: int = 64 << 10
    """Longest header of a record."""
    row_group_bytes: int = 4 << 30
    """Largest row group of a Parquet file, by what the file itself says."""
    check_digests: bool = True
    """Compare SHA-1 digests of WARC records and tell where they differ; the page is kept."""


@dataclass
class Page:
    """One page as it was found."""

    id: str
    """WARC-Record-ID, the row's "id", or the file's stem and a number from 0."""
    url: str
    """"" if unknown."""
    date: str
    """As the file writes it (WARC: ISO 8601, UTC); "" if unknown."""
    dump: str
    """Name of the crawl, e.g. "CC-MAIN-2024-22"; else "unknown"."""
    file_path: str
    """Where it was read, or where its row says it came from."""
    content: bytes | str
    """HTML as bytes (from a row: as text), or text."""
    kind: Literal["html", "text"]
    """What `content` is."""
    charset: str | None = None
    """As the HTTP header declares it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Other fields of its row."""
    named: bool = field(default=True, compare=False)
    """False: `id` is made of the file's stem, which another file may have too."""
    place: int = field(default=0, compare=False)
    """Bytes of the file read when it was found, about."""


def read_pages(
    path: Path | str, dump: str | None = None, on_skip: OnSkip | None = None, limits: Limits | None = None
) -> Iterator[Page]:
    """The pages of a file, in its order, read as they are asked for.

    Args:
        path: the file; looked at before this returns.
        dump: name of the crawl; None: as the file, its path or its rows say.
        on_skip: told of everything that gives no page, and of damage.
        limits: sizes; the defaults if None.

    Raises:
        DunwuError: no such file, not a file, not readable, unknown kind, or Parquet without pyarrow.
    """
    path, limits = Path(path), limits or Limits()
    tell: OnSkip = on_skip or (lambda reason, detail: None)
    kind = kind_of(path)
    if kind == "empty":
        tell("empty_file", str(path))
        return iter(())
    if kind in ("warc", "arc"):
        from dunwu.data.web.read_warc import read_archive

        return read_archive(path, dump, tell, limits)
    if kind == "html":
        return _read_html(path, dump, tell, limits)
    from dunwu.data.web.read_rows import check_pyarrow, read_jsonl, read_parquet

    if kind == "rows":
        return read_jsonl(path, dump, tell, limits)
    check_pyarrow(path)
    return read_parquet(path, dump, tell, limits)


def kind_of(path: Path) -> str:
    """ "warc", "arc", "html", "rows", "parquet" or "empty": by name, else by the first bytes.

    Raises:
        DunwuError: no such file, not a file, not readable, unknown kind.
    """
    if not path.exists():
        raise DunwuError(f"{path}: no such file", "correct the path")
    if not path.is_file():
        raise DunwuError(f"{path} is not a file", "give files, e.g. FOLDER/*.warc.gz")
    if not os.access(path, os.R_OK):
        raise DunwuError(f"{path} cannot be read", "change its permissions")
    if path.stat().st_size == 0:
        return "empty"
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    kind = _SUFFIXES.get(os.path.splitext(name)[1]) or _sniff(path)
    if kind is None:
        raise DunwuError(f"{path} is of no known kind", f"give {_KINDS}")
    return kind


def _sniff(path: Path) -> str | None:
    with Source(path) as source:
        try:
            head = source.read(4096).lstrip()
        except Damaged:
            return None
    if head.startswith(b"WARC/"):
        return "warc"
    if head.startswith(b"filedesc:"):
        return "arc"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"{"):
        return "rows"
    return "html" if looks_html(head) else None


def _read_html(path: Path, dump: str | None, tell: OnSkip, limits: Limits) -> Iterator[Page]:
    from dunwu.data.web.read_warc import dump_in

    with Source(path) as source:
        try:
            content = source.read(limits.page_bytes + 1)
        except Damaged as damage:
            tell(damage.reason, f"{path}: {damage.detail}")
            return
    if len(content) > limits.page_bytes:
        tell("page_too_long", f"{path}: more than {limits.page_bytes} bytes")
        return
    name = stem(path)
    yield Page(f"{name}-0", "", "", dump or dump_in(str(path)) or "unknown", str(path), content, "html", named=False)


def stem(path: Path) -> str:
    """The file's name without what says how it is written.

    Example:
        >>> stem(Path("crawl/part-3.jsonl.gz"))
        'part-3'
    """
    name = path.name
    for suffix in (*_PACKED, *_SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
    return name
