"""A user's own files, each split into a part to train on and its end, held out; both stream.

A plain text file is one document, held out from a byte on; a JSONL file is one document a line
(field `text`), held out from a line on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dunwu.data.documents import read_documents
from dunwu.data.tokenizer import Tokenizer
from dunwu.types import DunwuError

Part = Literal["train", "held-out"]
PIECE = 1 << 16
"""Bytes of a text file decoded at once, cut after a line where there is one."""


def read_part(path: Path, part: Part, held_out: float = 0.1) -> Iterator[tuple[str, bool]]:
    """One part of a file as (text, does a document end here).

    Args:
        path: `.jsonl` or `.json`: a document a line; anything else: text.
        held_out: share of the bytes (text) or documents (JSONL) at the end of the file that are held out.

    Raises:
        DunwuError: missing or empty file, bytes that are not UTF-8, a bad line (named), nothing left for one part.
    """
    if path.suffix in (".jsonl", ".json"):
        return _lines(path, part, held_out)
    return _bytes(path, part, held_out)


def _lines(path: Path, part: Part, held_out: float) -> Iterator[tuple[str, bool]]:
    documents = sum(1 for _ in read_documents(path))
    cut = min(documents - 1, math.floor(documents * (1 - held_out)))
    if cut < 1:
        raise DunwuError(f"{path} holds {documents} documents, too few to hold any out", "give at least two lines")
    for number, text in enumerate(read_documents(path)):
        if (number < cut) == (part == "train"):
            yield text, True


def _bytes(path: Path, part: Part, held_out: float) -> Iterator[tuple[str, bool]]:
    if not path.is_file():
        raise DunwuError(f"no file {path}", "check the path")
    size = path.stat().st_size
    with path.open("rb") as file:
        cut = math.floor(size * (1 - held_out))
        file.seek(cut)
        cut += _inside_character(file.read(3))
        if not 0 < cut < size:
            raise DunwuError(f"{path} holds {size} bytes, too few to hold any out", "give more text")
        position, end = (0, cut) if part == "train" else (cut, size)
        file.seek(position)
        rest = b""
        while position < end:
            read = file.read(min(PIECE, end - position))
            if not read:
                raise DunwuError(f"{path} has become shorter while it was read", "leave it alone during a run")
            position += len(read)
            whole = rest + read
            keep = len(whole) if position == end else _good_cut(whole)
            rest = whole[keep:]
            yield _decode(whole[:keep], path, position - len(whole)), position == end


def _inside_character(following: bytes) -> int:
    """How many of these bytes still belong to the character before them."""
    return next((n for n, byte in enumerate(following) if byte & 0xC0 != 0x80), 0)


def _good_cut(whole: bytes) -> int:
    """Where to end a piece: after the last line, else before the last space, else between characters."""
    cut = whole.rfind(b"\n") + 1 or whole.rfind(b" ")
    if cut > 0:
        return cut
    start = len(whole) - 1
    while start > max(1, len(whole) - 4) and whole[start] & 0xC0 == 0x80:
        start -= 1
    return start


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DunwuError(
            f"{path} is not UTF-8 at byte {offset + error.start}", "convert it, e.g. iconv -f GB18030 -t UTF-8"
        ) from error


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """(V,) UTF-8 bytes each id stands for; 0 for special tokens, which stand for no text.

    Holds for byte-level tokenizers, whose tokens are spelled with one letter per byte.
    """
    backend = tokenizer.backend
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        lengths[index] = len(token)
    for index, added in backend.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return lengths
