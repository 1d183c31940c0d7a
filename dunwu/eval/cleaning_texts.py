"""What scores of a cleaning say about texts: their language, their letters, the personal data left in them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_UNITS = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|[^\w\s]")


class Languages:
    """Labels found against labels that are right. A page that was dropped for its language has the label "dropped"."""

    def __init__(self) -> None:
        self.confusion: dict[str, Counter[str]] = defaultdict(Counter)
        self.all, self.sure = Counter[bool](), Counter[bool]()

    def count(self, right: Sequence[str], found: str, as_it_should: bool) -> None:
        """One page: the labels that are right, best first, the one found, and whether that will do."""
        self.confusion[right[0]][found] += 1
        self.all[as_it_should] += 1
        if len(right) == 1:
            self.sure[as_it_should] += 1

    def result(self) -> dict[str, Any]:
        """Accuracy over all pages, and over those for which one label alone is right."""
        return {
            "accuracy": share(self.all[True], self.all.total()),
            "pages": self.all.total(),
            "accuracy_one_label": share(self.sure[True], self.sure.total()),
            "pages_one_label": self.sure.total(),
            "confusion": {label: dict(found.most_common()) for label, found in sorted(self.confusion.items())},
        }


@dataclass
class Texts:
    """Records whose text is not the truth's, letter by letter."""

    differ: int = 0
    lost_f1: float = 0.0

    def result(self, kept: int) -> dict[str, Any]:
        """Of `kept` records."""
        exact = kept - self.differ
        f1 = 1 - self.lost_f1 / kept if kept else None
        return {"records": kept, "exact": exact, "exact_share": share(exact, kept), "mean_f1": f1}


@dataclass
class Planted:
    """Planted strings by kind: gone or still there; and replacements of what nobody planted."""

    gone: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    false: int = 0

    def result(self) -> dict[str, Any]:
        """Precision: replacements that replace something planted. Recall: planted strings that are gone."""
        gone, left = self.gone.total(), self.left.total()
        kinds = {kind: {"gone": self.gone[kind], "left": self.left[kind]} for kind in sorted({*self.gone, *self.left})}
        precision, recall = share(gone, gone + self.false), share(gone, gone + left)
        return {"planted": gone + left, "precision": precision, "recall": recall, "false": self.false, "kinds": kinds}


def same(text: str, found: str, planted: Sequence[str]) -> bool:
    """Are they equal but for what stands in place of the planted strings?"""
    pattern = re.escape(text)
    for string in planted:
        pattern = pattern.replace(re.escape(string), r".{0,60}?", 1)
    return re.fullmatch(pattern, found, re.DOTALL) is not None


def shingle_f1(text: str, found: str, n: int = 4) -> float:
    """F1 of the n-grams of words, ideographs and signs, counted with their multiplicity (article-extraction-benchmark).

    Example:
        >>> shingle_f1("a b c d e", "a b c d e"), round(shingle_f1("a b c d e", "a b c d x"), 2)
        (1.0, 0.5)
    """
    one, other = _shingles(text, n), _shingles(found, n)
    if not one and not other:
        return 1.0
    return 2 * (one & other).total() / (one.total() + other.total())


def _shingles(text: str, n: int) -> Counter[tuple[str, ...]]:
    units = _UNITS.findall(text)
    return Counter(tuple(units[start : start + n]) for start in range(max(min(1, len(units)), len(units) - n + 1)))


def share(part: int, whole: int) -> float | None:
    """None where there is nothing to divide by."""
    return part / whole if whole else None


def replacements() -> tuple[str, ...]:
    """What `data.web.pii` puts in place of personal data."""
    from dunwu.data.web.pii import PiiConfig

    config = PiiConfig()
    numbers = (config.id_replacement, config.card_replacement, config.mobile_replacement, config.phone_replacement)
    return (*config.email_replacements, *config.ip_replacements, *numbers)
