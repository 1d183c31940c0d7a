"""FineWeb's record: one cleaned page with where it came from. Files of records are whole or absent.

JSONL.zst and Parquet hold the same fields in the same order.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import zstandard

from dunwu.disk import disk_errors, fsync
from dunwu.types import DunwuError, UsageError

Format = Literal["jsonl", "parquet"]
FIELDS = ("text", "id", "dump", "url", "date", "file_path", "language", "language_score", "token_count")
"""FineWeb's order (datasheet of arXiv 2406.17557)."""
SUFFIX: dict[str, str] = {"jsonl": ".jsonl.zst", "parquet": ".parquet"}
NEEDS_DATA = "pip install 'dunwu[data]'"
_ROW_GROUP = 1000
_CHUNK = 1 << 16


class _Sink(Protocol):
    def write(self, record: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class RecordWriter:
    """Writes records to a file that appears when `close` is called, and not before.

    Use it as a context; an exception inside leaves nothing behind.

    Raises:
        DunwuError: no space, no permission, or pyarrow missing for Parquet.
    """

    def __init__(self, path: Path, format: Format = "jsonl") -> None:
        self.path, self.count = path, 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink: _Sink = _Lines(self._temporary) if format == "jsonl" else _Rows(self._temporary)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; fields beyond `FIELDS` are kept in JSONL only."""
        with disk_errors(self.path):
            self._sink.write(record)
        self.count += 1

    def close(self) -> None:
        """Put the file in its place."""
        try:
            with disk_errors(self.path):
                self._sink.close()
                fsync(self._temporary)
                os.replace(self._temporary, self.path)
                fsync(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # what is in the way has been told already
                self._sink.close()
            self._temporary.unlink(missing_ok=True)


class _Lines:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self._packed: Any = zstandard.ZstdCompressor(level=3).stream_writer(self._file)

    def write(self, record: Mapping[str, Any]) -> None:
        self._packed.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def close(self) -> None:
        self._packed.close()


class _Rows:
    def __init__(self, path: Path) -> None:
        pyarrow = _pyarrow()
        kinds = {"language_score": pyarrow.float64(), "token_count": pyarrow.int64()}
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in FIELDS])
        self._arrow, self._rows = pyarrow, list[dict[str, Any]]()
        from pyarrow import parquet

        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, record: Mapping[str, Any]) -> None:
        self._rows.append({name: record.get(name) for name in FIELDS})
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file, or of all record files of a folder in the order of their names; streams.

    Raises:
        DunwuError: no such file, no records in the folder, or a damaged file (named).
    """
    if path.is_dir():
        files = record_files(path)
        if not files:
            raise DunwuError(f"no records in {path}", "make some with `dunwu data build`")
        for file in files:
            yield from read_records(file)
        return
    if not path.is_file():
        raise DunwuError(f"no file {path}", "check the path")
    yield from _read_rows(path) if path.suffix == ".parquet" else _read_lines(path)


def record_files(folder: Path) -> list[Path]:
    """The record files of a folder, by name; a build's folder keeps them in `records`."""
    inner = folder / "records"
    folder = inner if inner.is_dir() else folder
    return sorted(file for file in folder.iterdir() if file.name.endswith(tuple(SUFFIX.values())))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    # zstandard's own reader takes a file that was cut short for a whole one.
    unpacker, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                while chunk:
                    if unpacker.eof:  # another frame: files that were put together
                        unpacker = zstandard.ZstdDecompressor().decompressobj()
                    *lines, rest = (rest + unpacker.decompress(chunk)).split(b"\n")
                    for line in lines:
                        yield json.loads(line)
                    chunk = unpacker.unused_data
        if not unpacker.eof or rest:
            raise ValueError("it ends in the middle")
    except (zstandard.ZstdError, ValueError) as error:
        raise DunwuError(f"{path} is damaged: {error}", "remove it and build again") from error


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    _pyarrow()
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(_ROW_GROUP):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise DunwuError(f"{path} is damaged: {error}", "remove it and build again") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UsageError("Parquet needs pyarrow", NEEDS_DATA) from None
    return pyarrow
