"""Rows to pages: JSONL and Parquet, whose rows have "text", or else "html", and what is known of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dunwu.data.web.charset import clean
from dunwu.data.web.read import Limits, OnSkip, Page, stem
from dunwu.data.web.read_bytes import Damaged, Source
from dunwu.data.web.read_warc import dump_in
from dunwu.types import DunwuError

BATCH_ROWS = 256
"""Rows of a Parquet file decoded at once."""
_OWN = frozenset({"text", "html", "id", "url", "date", "dump", "file_path"})


def read_jsonl(path: Path, dump: str | None, tell: OnSkip, limits: Limits) -> Iterator[Page]:
    """The pages of a file with one JSON object a line; a line that is none is told and passed over.

    Raises:
        DunwuError: the file is one JSON list.
    """
    number = -1
    with Source(path) as source:
        while True:
            try:
                number += source.skip_blank()
                line = source.line(limits.line_bytes + 1)
                if len(line) > limits.line_bytes and not line.endswith(b"\n"):
                    number += 1
                    tell("line_too_long", f"{path}: line {number + 1} has more than {limits.line_bytes} bytes")
                    source.skip_line()
                    continue
            except Damaged as damage:
                if not source.go_on(damage, tell):
                    return
                continue
            if not line:
                return
            number += 1
            if number == 0 and line.lstrip()[:1] == b"[":
                raise DunwuError(f"{path} is a JSON list", f"write one object a line: jq -c '.[]' {path}")
            page = _page(_parsed(line), path, dump, number, f"{path}:{number + 1}", tell, limits)
            if page is not None:
                page.place = source.place
                yield page


def _parsed(line: bytes) -> Any:
    """The line's value; None if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # nested too deep, for the latter
        return None


def check_pyarrow(path: Path) -> None:
    """Raise DunwuError if Parquet cannot be read."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DunwuError(f"{path} needs pyarrow", "pip install 'dunwu[data]'") from None


def read_parquet(path: Path, dump: str | None, tell: OnSkip, limits: Limits) -> Iterator[Page]:
    """The pages of a Parquet file, a few hundred rows in memory at once."""
    import pyarrow
    import pyarrow.parquet

    number = -1
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=False) as file:
            for group in range(file.num_row_groups):
                size, rows = file.metadata.row_group(group).total_byte_size, file.metadata.row_group(group).num_rows
                if size > limits.row_group_bytes:
                    tell("row_group_too_large", f"{path}: row group {group} of {rows} rows has {size} bytes")
                    number += rows
                    continue
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        page = _page(row, path, dump, number, f"{path}: row {number}", tell, limits)
                        if page is not None:
                            yield page
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        tell("bad_parquet", f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _page(row: Any, path: Path, dump: str | None, number: int, at: str, tell: OnSkip, limits: Limits) -> Page | None:
    if not isinstance(row, Mapping):
        tell("bad_json", f"{at} is no JSON object")
        return None
    kind = "text" if isinstance(row.get("text"), str) else "html"
    content = row.get(kind)
    if not isinstance(content, str | bytes) or not content:
        tell("no_text", f'{at} has neither "text" nor "html"')
        return None
    # A character has up to 4 bytes: the exact length is looked at only where it can matter.
    if len(content) * 4 > limits.page_bytes and _size(content) > limits.page_bytes:
        tell("page_too_long", f"{at}: more than {limits.page_bytes} bytes")
        return None
    metadata = {clean(str(name)): _plain(value) for name, value in row.items() if name not in _OWN}
    return Page(
        id=_text(row, "id") or f"{stem(path)}-{number}",
        url=_text(row, "url"),
        date=_text(row, "date"),
        dump=dump or _text(row, "dump") or dump_in(str(path)) or "unknown",
        file_path=_text(row, "file_path") or str(path),
        content=clean(content) if isinstance(content, str) else content,
        kind="text" if kind == "text" else "html",
        metadata=metadata,
        named=bool(_text(row, "id")),
    )


def _plain(value: Any) -> Any:
    """A value JSON can hold: dates, decimals and bytes of Parquet as text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else clean(str(value))


def _size(content: str | bytes) -> int:
    return len(content.encode("utf-8", "surrogatepass")) if isinstance(content, str) else len(content)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return clean(value) if isinstance(value, str) else "" if value is None else str(value)
