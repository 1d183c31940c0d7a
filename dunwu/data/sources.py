"""What a user may pretrain on: a text or JSONL file, records in zstd or Parquet, or a folder that `dunwu data build` made.

A source is written `[NAME=]PATH[:WEIGHT]`. What exists as it stands is a path, whatever signs are in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import zstandard

from dunwu.data.corpus import Part, read_part
from dunwu.data.shards import TokenFolder
from dunwu.types import DunwuError, UsageError

Kind = Literal["text", "records", "tokens"]
HELD_OUT_TOKENS = 2_000_000
"""Tokens that a folder of shards holds out at most: they are copied, and all of them are predicted in the end."""
_RECORDS = (".jsonl.zst", ".parquet", ".jsonl")
_SPEC = re.compile(r"(?:(?P<name>[^=/\\]+)=)?(?P<path>.+?)(?::(?P<weight>[0-9.eE+-]+))?")


@dataclass(frozen=True)
class TextSource:
    """One source as the user named it."""

    name: str
    """Short, unique; for folders and metric keys."""
    path: Path
    """A file or a folder."""
    kind: Kind
    """What is in it."""
    weight: float | None = None
    """Its amount in the mixture, if one was given."""

    @property
    def shards(self) -> Path:
        """The folder with the token index, of a source of kind "tokens"."""
        return self.path / "shards" if (self.path / "shards" / "index.json").is_file() else self.path

    @property
    def tokenizer(self) -> str:
        """The tokenizer of token shards, as `load_tokenizer` takes it: it lies beside them, or their index names it; or ""."""
        for place in (self.path / "tokenizer", self.shards, self.path):
            if (place / "tokenizer.json").is_file():
                return str(place)
        index = self.shards / "index.json"
        named = str(json.loads(index.read_text(encoding="utf-8")).get("tokenizer", "")) if index.is_file() else ""
        return named if named == "gpt2" or (Path(named) / "tokenizer.json").is_file() else ""


def parse_sources(items: Sequence[str], tokenizer_known: bool = False) -> list[TextSource]:
    """Sources from the command line, named apart.

    A folder's shards are taken where their tokenizer is known: it lies beside them, their index names it, or the user gave
    one. Otherwise its records are.

    Raises:
        UsageError: a weight that is none, weights for some only, two sources of one name, a folder in which nothing can be read.

    Example:
        >>> [(s.name, s.weight) for s in parse_sources(["books=a/b.txt:0.5", "c.jsonl:2"])]
        [('books', 0.5), ('c', 2.0)]
    """
    found: list[TextSource] = []
    for item in items:
        name, path, weight = _split(item)
        chosen, number = name or _stem(path), 1
        taken = {source.name for source in found}
        if name in taken:
            raise UsageError(f"two sources are called {name!r}", "name them apart: NAME=PATH")
        while chosen in taken:
            number += 1
            chosen = f"{_stem(path)}-{number}"
        found.append(TextSource(chosen, path, _kind(path, tokenizer_known), weight))
    bare = [source.name for source in found if source.weight is None]
    if 0 < len(bare) < len(found):
        raise UsageError(f"source {bare[0]!r} has no weight, others have", "give a weight to all sources or to none")
    return found


def _split(item: str) -> tuple[str, Path, float | None]:
    if Path(item).exists():
        return "", Path(item), None
    match = _SPEC.fullmatch(item)
    if match is None:
        raise UsageError(f"{item!r} names no source", "write [NAME=]PATH[:WEIGHT]")
    name, path, weight = match["name"] or "", match["path"], match["weight"]
    if weight is None:
        return name, Path(path), None
    try:
        return name, Path(path), float(weight)
    except ValueError:
        raise UsageError(f"{weight!r} in {item!r} is no weight", "write a number, e.g. 0.7") from None


def _stem(path: Path) -> str:
    """`a/web/shards` → web, `news.jsonl.zst` → news, `book.txt` → book."""
    if path.name == "shards":
        return path.resolve().parent.name
    return path.name.removesuffix(".zst").rpartition(".")[0] or path.name


def _kind(path: Path, tokenizer_known: bool) -> Kind:
    if not path.is_dir():
        return "records" if path.name.endswith((".jsonl.zst", ".parquet")) else "text"
    shards = TextSource("", path, "tokens")
    indexed, records = (shards.shards / "index.json").is_file(), record_files(path)
    if indexed and (tokenizer_known or shards.tokenizer):
        return "tokens"
    if records:
        return "records"
    if indexed:
        raise UsageError(f"which tokenizer made the tokens in {path} is not known", "give it: --tokenizer FOLDER")
    raise UsageError(
        f"{path} holds neither token shards nor records", f"give a folder with {', '.join(_RECORDS)} files"
    )


def record_files(path: Path) -> list[Path]:
    """The files of a folder (or the file itself) that hold records, by name."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(_RECORDS))


def read_records(file: Path) -> Iterator[str]:
    """The field `text` of every record of a .jsonl, .jsonl.zst or .parquet file, in order, one at a time.

    Raises:
        DunwuError: a damaged file, a line or a table without `text`.
    """
    if file.suffix == ".parquet":
        yield from _parquet(file)
        return
    try:
        with file.open("rb") as raw:
            lines = _unpacked(file, raw) if file.suffix == ".zst" else raw
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(file, number, line.decode("utf-8"))
    except FileNotFoundError:
        raise DunwuError(f"no file {file}", "check the path") from None
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise DunwuError(f"{file} is damaged: {error}", "make it again") from error


def _unpacked(file: Path, raw: BinaryIO) -> Iterator[bytes]:
    """Lines of a zstd file of any number of frames; one that ends inside a frame is an error, not an end."""
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    begun = False
    while packed := raw.read(1 << 17):
        while packed:
            begun = True
            *lines, rest = (rest + frame.decompress(packed)).split(b"\n")
            yield from lines
            packed = frame.unused_data
            if frame.eof:
                frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                break
    if begun:
        raise DunwuError(f"{file} is damaged: it ends inside a zstd frame", "make it again")
    if rest:
        yield rest


def _text(file: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DunwuError(f"{file}:{number} is not JSON: {error.msg}", "one JSON object a line") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DunwuError(f"{file}:{number} has no string field 'text'", 'each line looks like {"text": "…"}')
    return text


def _parquet(file: Path) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DunwuError(f"{file} cannot be read without pyarrow", "pip install 'dunwu[data]'") from error
    try:
        with pq.ParquetFile(file) as table:
            if "text" not in table.schema_arrow.names:
                raise DunwuError(f"{file} has no column 'text'", "FineWeb's records have one")
            for batch in table.iter_batches(batch_size=1000, columns=["text"]):
                for number, text in enumerate(batch.column(0).to_pylist()):
                    if not isinstance(text, str):
                        raise DunwuError(f"{file}: a text near row {number} is no string", "leave such rows away")
                    yield text
    except (pa.ArrowException, OSError) as error:
        raise DunwuError(f"{file} is no readable Parquet file: {error}", "make it again") from error


def read_source(source: TextSource, part: Part, held_out: float) -> Iterator[tuple[str, bool]]:
    """One part of a source of texts or records, as (text, does a document end here); see `corpus.read_part`.

    Raises:
        DunwuError: nothing is left for one part.
    """
    if source.kind == "text":
        yield from read_part(source.path, part, held_out)
        return
    files = record_files(source.path)
    documents = sum(1 for file in files for _ in read_records(file))
    cut = min(documents - 1, math.floor(documents * (1 - held_out)))
    if cut < 1:
        raise DunwuError(f"{source.path} holds {documents} documents, too few to hold any out", "give at least two")
    numbered = enumerate(text for file in files for text in read_records(file))
    yield from ((text, True) for number, text in numbered if (number < cut) == (part == "train"))


def token_cut(folder: Path, held_out: float, end_id: int) -> int:
    """Tokens of a shard folder that are trained on: up to the document end nearest before the held-out share.

    Raises:
        DunwuError: no document ends there, so nothing could be held out cleanly.
    """
    tokens = TokenFolder(folder)
    try:
        wanted = max(math.floor(tokens.tokens * (1 - held_out)), tokens.tokens - HELD_OUT_TOKENS)
        position = wanted
        while position > 0:
            start = max(0, position - (1 << 16))
            ends = (tokens.read(start, position - start) == end_id).nonzero()[0]
            if len(ends):
                return start + int(ends[-1]) + 1
            position = start
    finally:
        tokens.close()
    raise DunwuError(f"no document ends before token {wanted} of {folder}", "check that its tokenizer is the one given")
