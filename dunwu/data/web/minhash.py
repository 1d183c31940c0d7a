"""MinHash signatures (Broder 1997) as FineWeb has them: word 5-grams, 112 hashes in 14 buckets of 8, 64 bits.

In English, signatures equal those of datatrove 0.10's `MinhashDedupSignature` bit for bit; in Chinese a word is a
character. Two documents whose 5-grams have Jaccard similarity s share a bucket with probability 1 - (1 - s^8)^14: 0.92
at 0.8, 0.56 at 0.7, 0.05 at 0.5.

A document shorter than an n-gram has no signature and is nobody's near-duplicate: leave it to `exact.py`.

Not covered: normalising names of weekdays and months (off in FineWeb), 32-bit hashes.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dunwu.data.web.shingles import ngram_hashes, spans
from dunwu.data.web.words import words
from dunwu.native.text import MERSENNE, Hashes, minima
from dunwu.types import UsageError

_CONTROLS = "".join(chr(code) for code in range(0x20) if code not in (0x09, 0x0A))
_ASCII_MARKS = _CONTROLS + "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\x7f"
_OTHER_MARKS = "\x80-\x9f«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
"""What datatrove's `simplify_text` calls punctuation (utils/text.py): ‘ and 『 are not in it, １ is."""
_TO_SPACE = str.maketrans(_ASCII_MARKS, " " * len(_ASCII_MARKS))
_ASCII = re.compile(f"[{re.escape(_ASCII_MARKS)}]+")
_OTHER = re.compile(f"[{_OTHER_MARKS}]+")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]+")
_NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)?")


@dataclass(frozen=True)
class MinhashConfig:
    """What makes two documents near-duplicates. The defaults are FineWeb's (arXiv 2406.17557, section 3.4)."""

    ngram: int = 5
    """Words of a shingle; characters in Chinese and Japanese."""
    buckets: int = 14
    """Documents that agree in all hashes of any one bucket are near-duplicates."""
    hashes_per_bucket: int = 8
    """Hashes of a bucket."""
    seed: int = 1
    """Of the permutations; the same for all that is to be compared."""
    hash: Literal["xxhash", "sha1"] = "xxhash"
    """Of a shingle: XXH64, or the first 8 bytes of SHA-1."""
    numbers_alike: bool = True
    """Every number counts as 0: pages that differ in dates and prices only are alike."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if min(self.ngram, self.buckets, self.hashes_per_bucket) < 1 or self.buckets > 1000:
            shape = f"{self.ngram}-grams, {self.buckets} buckets of {self.hashes_per_bucket}"
            raise UsageError(f"minhash: {shape}", "1 or more of each, at most 1000 buckets; FineWeb: 5, 14, 8")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"minhash.seed is {self.seed}", "0 to 2^32 - 1")
        if self.hash not in ("xxhash", "sha1"):
            raise UsageError(f"minhash.hash is {self.hash!r}", "xxhash or sha1")


class Signer:
    """Signs documents with one setting.

    Example:
        >>> signer = Signer()
        >>> one, other = map(signer.signature, ("The quick brown fox jumps.", "the QUICK, brown fox… jumps!"))
        >>> one.shape, bool((one == other).all()), signer.signature("Too short.")
        ((14, 8), True, None)
    """

    def __init__(self, config: MinhashConfig | None = None) -> None:
        self.config = config = config or MinhashConfig()
        config.validate()
        self.factors, self.terms = permutations(config.seed, config.buckets * config.hashes_per_bucket)

    def signature(self, text: str, language: str = "en") -> Hashes | None:
        """The signature of a document, (buckets, hashes_per_bucket); None if it is shorter than an n-gram."""
        return self.of_words(words_of(text, language, self.config))

    def of_words(self, split: Sequence[str]) -> Hashes | None:
        """The signature of a document already simplified and split."""
        hashes = shingles(split, self.config)
        if not len(hashes):
            return None
        return minima(hashes, self.factors, self.terms).reshape(self.config.buckets, self.config.hashes_per_bucket)


def shingles(split: Sequence[str], config: MinhashConfig) -> Hashes:
    """The hash of every n-gram; (max(0, words - ngram + 1),)."""
    if config.hash == "xxhash":
        return ngram_hashes(split, config.ngram)
    data, starts, ends = spans(split, config.ngram)
    digests = b"".join(hashlib.sha1(data[a:b]).digest()[:8] for a, b in zip(starts.tolist(), ends.tolist()))
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def words_of(text: str, language: str, config: MinhashConfig) -> list[str]:
    """What shingles are made of: the words of the simplified text, which are its characters in Chinese."""
    return words(simplify(text, config.numbers_alike), language)


def simplify(text: str, numbers_alike: bool = True) -> str:
    """datatrove's `simplify_text`: lower case, numbers to 0, punctuation to spaces, single spaces, no diacritics.

    Its oddities are kept, or signatures would differ: punctuation and spaces that only the canonical decomposition at
    the end brings forth stay, as do characters no one thought of (see `_OTHER_MARKS`).

    Example:
        >>> simplify("Café № 12,50 — “Déjà-vu”!")
        'cafe № 0 deja vu'
    """
    text = text.lower()
    if text.isascii():
        if numbers_alike:
            text = _NUMBER.sub("0", text)
        return " ".join(text.translate(_TO_SPACE).split())
    if numbers_alike:
        text = _any_number().sub("0", text)
    text = _OTHER.sub(" ", text)
    if text.isascii():
        return " ".join(text.translate(_TO_SPACE).split())
    text = " ".join(_ASCII.sub(" ", text).split())
    text = _nonspacing().sub("", unicodedata.normalize("NFD", text))
    return _ASTRAL.sub(_without_nonspacing, text).strip()


@functools.cache
def _any_number() -> re.Pattern[str]:
    """Digits of every script, as the `regex` package knows them: its tables are newer than Python's own."""
    import regex

    return regex.compile(r"\p{Nd}+(?:[.,،٫⎖⎗⎘]\p{Nd}+)?")  # type: ignore[no-any-return]


@functools.cache
def _nonspacing() -> re.Pattern[str]:
    """Characters of category Mn in Python's tables, below U+10000: up to there `re` looks them up, above it searches."""
    codes = (code for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) == "Mn")
    return re.compile(f"[{''.join(map(chr, codes))}]+")


def _without_nonspacing(found: re.Match[str]) -> str:
    return "".join(c for c in found.group() if unicodedata.category(c) != "Mn")


def permutations(seed: int, count: int) -> tuple[Hashes, Hashes]:
    """Of x → (x · factor + term) mod 2^64 mod (2^61 - 1), factors and terms as datatrove draws them."""
    dice = np.random.RandomState(seed)
    factors = dice.randint(1, MERSENNE, dtype=np.uint64, size=count)
    return factors, dice.randint(0, MERSENNE, dtype=np.uint64, size=count)
