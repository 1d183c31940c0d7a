"""How good an extraction is, against the article's text as truth: the measure of scrapinghub's article-extraction-benchmark.

Texts become 4-grams of words (`\\w+`), counted as often as they come. A page has precision (share of what was extracted that
is in the article) and recall (share of the article that was extracted); their means over the pages give F1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

_WORD = re.compile(r"\w+")


class Score(NamedTuple):
    """Means over pages, and F1 of the two."""

    precision: float
    recall: float
    f1: float
    pages: int


def shingles(text: str, n: int = 4) -> Counter[tuple[str, ...]]:
    """n-grams of words with their counts; a shorter text is one gram of all its words."""
    words = _WORD.findall(text)
    return Counter(tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1)) if words)


def page_score(truth: str, extracted: str) -> tuple[float | None, float | None]:
    """(precision, recall) of one page: None where nothing was extracted, or there is nothing to extract.

    Example:
        >>> page_score("a b c d e", "a b c d x")
        (0.5, 0.5)
    """
    wanted, found = shingles(truth), shingles(extracted)
    right, extra, missed = (sum(part.values()) for part in (wanted & found, found - wanted, wanted - found))
    if extra == missed == 0:
        return 1.0, 1.0
    return right / (right + extra) if found else None, right / (right + missed) if wanted else None


def score(pairs: Iterable[tuple[str, str]]) -> Score:
    """The score of (truth, extracted) pairs."""
    pages = [page_score(truth, extracted) for truth, extracted in pairs]
    precision = _mean([value for value, _ in pages if value is not None])
    recall = _mean([value for _, value in pages if value is not None])
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Score(precision, recall, f1, len(pages))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
