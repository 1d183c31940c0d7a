"""n-grams of words as spans of one byte string, so that hashing them makes no text of its own for each.

A unit is a word, or a single character of a script that writes no spaces between words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dunwu.native.text import Hashes, Places, hash_spans

_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
IDEOGRAPHS = _KANA + "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters and kana, as a regular expression's class."""
_UNITS = re.compile(f"[{IDEOGRAPHS}]|[^\\W_{IDEOGRAPHS}]+")


def units(text: str) -> list[str]:
    """Runs of letters and digits, and ideographs one by one; all else separates.

    Example:
        >>> units("买了iPhone 15，很好。")
        ['买', '了', 'iPhone', '15', '很', '好']
    """
    return _UNITS.findall(text)


def word_spans(words: Sequence[str]) -> tuple[bytes, Places, Places]:
    """The words joined by spaces, in UTF-8, and where each starts and ends there; (words,) int64."""
    data = " ".join(words).encode("utf-8", "surrogatepass")
    ends = np.append(np.flatnonzero(np.frombuffer(data, np.uint8) == 0x20), len(data))
    if len(ends) != len(words):  # no words, or one that has a space in it
        ends = np.cumsum([len(word.encode("utf-8", "surrogatepass")) + 1 for word in words], dtype=np.int64) - 1
    starts = np.zeros(len(words), np.int64)
    starts[1:] = ends[:-1] + 1
    return data, starts, ends


def spans(words: Sequence[str], n: int) -> tuple[bytes, Places, Places]:
    """The words joined by spaces, in UTF-8, and where each of their n-grams starts and ends there; (N,) int64.

    Example:
        >>> data, starts, ends = spans(["to", "be", "or", "not"], 3)
        >>> [data[a:b] for a, b in zip(starts, ends)]
        [b'to be or', b'be or not']
    """
    data, starts, ends = word_spans(words)
    return data, starts[: max(0, len(words) - n + 1)], ends[n - 1 :]


def ngram_hashes(words: Sequence[str], n: int, seed: int = 0) -> Hashes:
    """XXH64 of every n-gram, its words joined by spaces; (max(0, words - n + 1),)."""
    data, starts, ends = spans(words, n)
    return hash_spans(data, starts, ends, seed)
