"""A user's own files as a stream of documents: plain text, or JSONL with a `text` field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dunwu.types import DunwuError

CHUNK = 1 << 16
"""Characters of a plain text file per document: files of any size stream."""


def read_documents(path: Path) -> Iterator[str]:
    """Documents of one file. `.jsonl`/`.json`: one per line, field `text`; anything else: text in chunks at line ends.

    Raises:
        DunwuError: missing file, bytes that are not UTF-8, a line without `text` (named).
    """
    if not path.is_file():
        raise DunwuError(f"no file {path}", "check the path")
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix in (".jsonl", ".json"):
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _text_field(path, number, line)
            else:
                while chunk := file.read(CHUNK):
                    yield chunk + file.readline()
    except UnicodeDecodeError as error:
        raise DunwuError(
            f"{path} is not UTF-8 at byte {error.start}", "convert it, e.g. iconv -f GB18030 -t UTF-8"
        ) from error


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DunwuError(f"{path}:{number} is not JSON: {error.msg}", "one JSON object a line") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DunwuError(f"{path}:{number} has no string field 'text'", 'each line looks like {"text": "…"}')
    return text
