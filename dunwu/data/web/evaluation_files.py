"""The texts of evaluation files, question and answer apart: what `decontaminate.py` looks for in training documents."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dunwu.types import DunwuError, UsageError

QUESTIONS = ("question", "problem", "prompt", "query", "instruction", "input", "text", "content", "passage")
"""Fields that hold what is asked."""
ANSWERS = (
    "answer",
    "solution",
    "canonical_solution",
    "reference",
    "code",
    "output",
    "response",
    "completion",
    "choices",
    "options",
)
"""Fields that hold what is to be found: R1 looks for reference solutions too."""
_FORMS = ".jsonl, .json, .txt or .parquet; all but the last may be .gz or .zst"


class EvaluationText(NamedTuple):
    """One field of one item."""

    item: int
    """Which item of the file, from 1."""
    text: str
    question: bool
    """Whether it is asked, not answered."""


def read_evaluation(path: Path, fields: Sequence[str] | None = None) -> Iterator[EvaluationText]:
    """All texts of an evaluation file. Plain text: items are paragraphs, between blank lines.

    Args:
        fields: these instead of `QUESTIONS` and `ANSWERS`; all count as questions.

    Raises:
        DunwuError: missing or damaged file (its line named), or an item without any of the fields.
        UsageError: a kind of file nobody here reads.
    """
    if not path.is_file():
        raise DunwuError(f"no evaluation file {path}", "check the path")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind not in (".jsonl", ".json", ".txt", ".parquet"):
        raise UsageError(f"{path} is no evaluation file", _FORMS)
    if kind == ".txt":
        paragraphs = (part for part in re.split(r"\n(?:[ \t\r]*\n)+", _content(path)) if part.strip())
        yield from (EvaluationText(item, text, True) for item, text in enumerate(paragraphs, 1))
        return
    rows = _parquet(path) if kind == ".parquet" else _lines(path) if kind == ".jsonl" else _objects(path)
    for item, row in enumerate(rows, 1):
        texts = list(_texts(row, fields))
        if not texts:
            has = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
            wanted = ", ".join(fields or QUESTIONS)
            raise DunwuError(f"{path} item {item} has no text in any of: {wanted}", f"it has: {has}; name its fields")
        yield from (EvaluationText(item, text, question) for text, question in texts)


def _texts(row: Any, fields: Sequence[str] | None) -> Iterator[tuple[str, bool]]:
    if isinstance(row, str):
        yield row, True
    if isinstance(row, dict):
        lowered = {str(name).lower(): value for name, value in row.items()}
        for name in fields or (*QUESTIONS, *ANSWERS):
            value = lowered.get(name.lower())
            values = value if isinstance(value, list) else [value]
            yield from ((text, bool(fields) or name in QUESTIONS) for text in values if isinstance(text, str))
        for message in lowered.get("messages") or [] if not fields else []:
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                yield message["content"], message.get("role") == "user"


def _content(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
        elif path.suffix.lower() == ".zst":
            import zstandard

            try:
                data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
            except zstandard.ZstdError as error:
                raise DunwuError(f"{path} is damaged: {error}", "get the file again") from error
        return data.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DunwuError(f"{path} is damaged: {error}", "get the file again") from error
    except UnicodeDecodeError as error:
        raise DunwuError(
            f"{path} is not UTF-8 at byte {error.start}", "convert it, e.g. iconv -f GB18030 -t UTF-8"
        ) from error


def _lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_content(path).split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DunwuError(f"{path}:{number} is not JSON: {error}", "one JSON object a line") from error


def _objects(path: Path) -> list[Any]:
    try:
        value = json.loads(_content(path))
    except ValueError as error:
        raise DunwuError(
            f"{path} is not JSON: {error}", "a list of objects; objects line by line are .jsonl"
        ) from error
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list) and inner]
        value = lists[0] if len(lists) == 1 and isinstance(lists[0][0], (dict, str)) else [value]
    return value if isinstance(value, list) else [value]


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DunwuError(f"{path} needs pyarrow", "pip install 'dunwu[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DunwuError(f"{path} is damaged: {error}", "get the file again") from error
