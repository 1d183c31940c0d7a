"""Which training documents show an evaluation problem: R1's rule, any 10-gram of a question or reference solution.

R1 (arXiv 2501.12948, "Decontamination") leaves open what a gram is. Here: lower-cased runs of letters and digits after
Unicode's NFKC; apostrophes and the commas of thousands are dropped, other punctuation separates; a Chinese character or
kana is a gram of its own, so mixed text is one sequence of words and characters.

A question shorter than n grams is matched whole, if it has at least `minimum` grams (DeepSeekMath, arXiv 2402.03300,
section 2.1, does so from 3 on; 3 Chinese characters are but a word, so the default is 5). Answers shorter than n are
never looked for: "3/4" is everywhere.

An n-gram counts as found when two XXH64 with different seeds agree, 128 bits: chance collisions need not be expected.
Not covered: paraphrases and translations, as R1 says of its own filter.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dunwu.data.web.evaluation_files import read_evaluation
from dunwu.data.web.key_files import whole_file
from dunwu.data.web.shingles import spans, units, word_spans
from dunwu.native.text import Hashes, hash_spans
from dunwu.types import DunwuError, UsageError

_FORMAT = "dunwu n-gram index 1"
_FIRST, _SECOND = 0, 1
"""Seeds of the two hashes."""
_BITS = 4
"""log2 of the table's cells per n-gram: it fits a cache, and 1 in 16 strange n-grams gets as far as the sorted list."""
_WIDEST = 28
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d\d\d(?!\d))")
_APOSTROPHES = re.compile("['’‘ʼ`´]+")
_COMMON_MARKS = re.compile("[“”„«»–—…·•\xa0]+")
"""Most texts in English are ASCII without these."""
_ASCII = bytes(ord(chr(c).lower()) if chr(c).isalnum() and c < 128 else 32 for c in range(256))


def grams(text: str) -> list[str]:
    """What an n-gram is made of.

    Example:
        >>> grams("Don’t pay $1,250 — 买ＡＢ 3个！")
        ['dont', 'pay', '1250', '买', 'ab', '3', '个']
    """
    if "," in text:
        text = _THOUSANDS.sub("", text)
    if text.isascii():
        return text.encode("ascii").translate(_ASCII, b"'`").decode("ascii").split()
    # Apostrophes first: NFKC makes a space of the acute accent that stands for one.
    text = _COMMON_MARKS.sub(" ", _APOSTROPHES.sub("", text))
    if text.isascii():
        return text.encode("ascii").translate(_ASCII).decode("ascii").split()
    return units(unicodedata.normalize("NFKC", text).lower())


@dataclass(frozen=True)
class NgramIndex:
    """The n-grams of evaluation problems. `build` or `load` makes one.

    Legend: E entries, in order of (hash, check, source).
    """

    n: int
    """Grams in a row that count as contamination."""
    minimum: int
    """Fewest grams of a shorter question that is matched whole."""
    hashes: Hashes
    """(E,) first hash."""
    checks: Hashes
    """(E,) second hash."""
    sources: NDArray[np.uint32]
    """(E,) place in `names`."""
    names: tuple[str, ...]
    """`FILE#ITEM`, items from 1."""
    lengths: tuple[int, ...]
    """Numbers of grams that occur, up to n."""
    counts: dict[str, int]
    """Texts by what became of them: "indexed", "matched whole", "too short"."""
    _table: NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits = min(_WIDEST, max(8, len(self.hashes).bit_length() + _BITS))
        table = np.zeros(1 << bits, np.bool_)
        table[(self.hashes >> np.uint64(64 - bits)).astype(np.int64)] = True
        object.__setattr__(self, "_table", table)

    @classmethod
    def build(
        cls, files: Sequence[Path], n: int = 10, *, minimum: int = 5, fields: Sequence[str] | None = None
    ) -> NgramIndex:
        """The index of evaluation files (`evaluation_files.read_evaluation` says which kinds).

        Raises:
            DunwuError, UsageError: an unreadable file, none at all, or n and minimum that mean nothing.
        """
        if n < 2 or minimum < 1:
            raise UsageError(
                f"{n}-grams, shorter questions from {minimum} grams on", "R1 has n = 10; minimum 1 or more"
            )
        if not files:
            raise UsageError("no evaluation files", "name at least one")
        parts: list[tuple[Hashes, Hashes, int]] = []
        places: dict[str, int] = {}
        lengths: set[int] = set()
        counts = Counter({"indexed": 0, "matched whole": 0, "too short": 0})
        for path, name in zip(files, _names([Path(file) for file in files])):
            for item, text, question in read_evaluation(Path(path), fields):
                words = grams(text)
                size = min(n, len(words))
                if size < n and (size < minimum or not question):
                    counts["too short"] += 1
                    continue
                counts["indexed" if size == n else "matched whole"] += 1
                lengths.add(size)
                source = places.setdefault(f"{name}#{item}", len(places))
                data, starts, ends = spans(words, size)
                parts.append((hash_spans(data, starts, ends, _FIRST), hash_spans(data, starts, ends, _SECOND), source))
        arrays = _entries(parts)
        return cls(n, minimum, *arrays, tuple(places), tuple(sorted(lengths)), dict(counts))

    def find(self, text: str) -> str | None:
        """`FILE#ITEM` of the evaluation problem whose n-gram the text has, None if it has none.

        Of several, the one whose n-gram comes first in the text, longest n-grams before shorter ones; if several
        problems share it, the first in the order of the files.
        """
        words = grams(text)
        data, firsts, lasts = word_spans(words)
        shift = np.uint64(65 - len(self._table).bit_length())
        for size in reversed(self.lengths):
            if len(words) < size:
                continue
            starts, ends = firsts[: len(words) - size + 1], lasts[size - 1 :]
            hashes = hash_spans(data, starts, ends, _FIRST)
            maybe = np.flatnonzero(self._table[(hashes >> shift).view(np.int64)])
            if not len(maybe):
                continue
            lows = np.searchsorted(self.hashes, hashes[maybe])
            highs = np.searchsorted(self.hashes, hashes[maybe], side="right")
            for place, low, high in zip(maybe.tolist(), lows.tolist(), highs.tolist()):
                if low == high:
                    continue
                check = hash_spans(data, starts[place : place + 1], ends[place : place + 1], _SECOND)[0]
                same = np.flatnonzero(self.checks[low:high] == check)
                if len(same):
                    return self.names[int(self.sources[low + int(same[0])])]
        return None

    def save(self, path: Path) -> None:
        """To an .npz file without pickle, whole or absent; the same index makes the same bytes."""
        about = {"format": _FORMAT, "n": self.n, "minimum": self.minimum, "names": self.names, "lengths": self.lengths}
        text = json.dumps({**about, "counts": self.counts}, ensure_ascii=False)
        arrays = {
            "about": np.frombuffer(text.encode(), np.uint8),
            "hashes": self.hashes.astype("<u8"),
            "checks": self.checks.astype("<u8"),
            "sources": self.sources.astype("<u4"),
        }
        with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())

    @classmethod
    def load(cls, path: Path) -> NgramIndex:
        """What `save` wrote.

        Raises:
            DunwuError: the file is missing, damaged or another's.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("about", "hashes", "checks", "sources")}
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != _FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            hashes, checks, sources = arrays["hashes"], arrays["checks"], arrays["sources"]
            if not len(hashes) == len(checks) == len(sources) or (hashes[1:] < hashes[:-1]).any():
                raise ValueError("its columns do not belong together")
            if len(sources) and sources.max() >= len(about["names"]):
                raise ValueError("it names no source for some n-grams")
            names, lengths = tuple(about["names"]), tuple(about["lengths"])
            types = hashes.astype(np.uint64), checks.astype(np.uint64), sources.astype(np.uint32)
            return cls(about["n"], about["minimum"], *types, names, lengths, about["counts"])
        except FileNotFoundError:
            raise DunwuError(f"no n-gram index {path}", "NgramIndex.build makes it from evaluation files") from None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DunwuError(f"{path} is no n-gram index, or a damaged one: {error}", "build it again") from error


def _entries(parts: Sequence[tuple[Hashes, Hashes, int]]) -> tuple[Hashes, Hashes, NDArray[np.uint32]]:
    """Sorted entries; an n-gram that several problems have belongs to the first."""
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint32)
    hashes = np.concatenate([part[0] for part in parts])
    checks = np.concatenate([part[1] for part in parts])
    sources = np.repeat(np.array([part[2] for part in parts], np.uint32), [len(part[0]) for part in parts])
    order = np.lexsort((sources, checks, hashes))
    hashes, checks, sources = hashes[order], checks[order], sources[order]
    first = np.append(True, (hashes[1:] != hashes[:-1]) | (checks[1:] != checks[:-1]))
    return hashes[first], checks[first], sources[first]


def _names(files: Sequence[Path]) -> list[str]:
    """The file's name, with as many folders before it as tell it from the others."""
    names = []
    for file in files:
        depth = 1
        while depth < len(file.parts) and any(
            other != file and other.parts[-depth:] == file.parts[-depth:] for other in files
        ):
            depth += 1
        names.append("/".join(file.parts[-depth:]))
    return names
