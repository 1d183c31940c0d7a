"""Texts of files in any of our forms, and an even sample of them: what a tokenizer is trained on and measured with.

Forms: plain text, JSONL with a `text` field, both also as .gz or .zst, and Parquet with a `text` column. Everything
streams; a long document comes in pieces.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dunwu.data.documents import CHUNK, read_documents
from dunwu.types import DunwuError

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
PACKED = (".gz", ".zst")
PIECE = 1 << 12
"""Most characters of a piece."""
_READ = 1 << 20


def read_texts(path: Path) -> Iterator[str]:
    """Documents of a file in order; a plain text file comes in chunks that end with a line.

    Raises:
        DunwuError: missing or damaged file, bytes that are not UTF-8, a record without `text` (named by its line).
    """
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in PACKED:
        return _packed(path)
    return read_documents(path)


def text_size(path: Path) -> int:
    """Bytes of the unpacked file (Parquet: of its text column); a packed file is unpacked once to know."""
    if not path.is_file():
        raise DunwuError(f"no file {path}", "check the path")
    if path.suffix == ".parquet":
        meta = _open_parquet(path).metadata
        groups = (meta.row_group(n) for n in range(meta.num_row_groups))
        columns = (group.column(c) for group in groups for c in range(group.num_columns))
        return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
    if path.suffix not in PACKED:
        return path.stat().st_size
    size = 0
    with _unpacked(path) as file:
        while piece := file.read(_READ):
            size += len(piece)
    return size


def even_sample(files: Sequence[Path], share: float) -> Iterator[tuple[str, bool]]:
    """All texts in `pieces`, each with whether it is in: spread evenly, the same ones every time, at most `share` of the bytes.

    A piece is taken when everything taken, itself included, is at most `share` of what has passed.
    """
    passed = taken = 0
    for file in files:
        for text in read_texts(file):
            for piece in pieces(text):
                size = len(piece.encode("utf-8", "surrogatepass"))
                passed += size
                inside = share >= 1 or taken + size <= share * passed
                taken += size if inside else 0
                yield piece, inside


def pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """A text cut into pieces of at most `length` characters: after a line, else before a space, where words end anyway.

    Example:
        >>> list(pieces("one two three", 9))
        ['one two', ' three']
    """
    start = 0
    while len(text) - start > length:
        cut = text.rfind("\n", start, start + length) + 1 or text.rfind(" ", start + 1, start + length)
        cut = cut if cut > start else start + length
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes inside a packed file; what is wrong with it is told in one line."""
    import zstandard

    try:
        with path.open("rb") as raw:
            if path.suffix == ".gz":
                yield gzip.open(raw)  # type: ignore[misc]  # noqa: SIM115
            else:
                yield zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    except FileNotFoundError as error:
        raise DunwuError(f"no file {path}", "check the path") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DunwuError(f"{path} is damaged: {error}", "fetch it again, or leave it out") from error


def _packed(path: Path) -> Iterator[str]:
    with _unpacked(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8")
        try:
            if Path(path.stem).suffix in JSON_ENDINGS:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _text_of(path, number, line)
            else:
                while chunk := lines.read(CHUNK):
                    yield chunk + lines.readline()
        except UnicodeDecodeError as error:
            raise DunwuError(f"{path} is not UTF-8 inside", "convert it, e.g. iconv -f GB18030 -t UTF-8") from error


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DunwuError(f"{path}:{number} is no record with a text", 'each line looks like {"text": "…"}') from error
    if not isinstance(text, str):
        raise DunwuError(f"{path}:{number} has no string field 'text'", 'each line looks like {"text": "…"}')
    return text


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise DunwuError(f"{path} needs pyarrow", "pip install 'dunwu[data]'") from error
    if not path.is_file():
        raise DunwuError(f"no file {path}", "check the path")
    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise DunwuError(f"{path} is not a Parquet file: {error}", "check the file") from error
    if "text" not in file.schema_arrow.names:
        raise DunwuError(f"{path} has no column 'text'", f"it has {', '.join(file.schema_arrow.names)}")
    return file


def _parquet(path: Path) -> Iterator[str]:
    for batch in _open_parquet(path).iter_batches(batch_size=256, columns=["text"]):
        for text in batch.column(0).to_pylist():
            if isinstance(text, str):
                yield text
