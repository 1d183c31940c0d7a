"""How much of a text is in one language: R1's language-consistency reward, words in the target language / words.

A run of Latin letters is one word of English, a CJK ideograph one word of Chinese, a run of any other letters one word of
neither. Neutral, so counted nowhere: digits, operators, punctuation, the tags of a reply, single Latin letters (variables,
speakers of puzzles, "I" and "a" as well) and whatever names the caller lists. Time is linear in the text.
Not covered: telling languages apart that share a script (French counts as English), spelling, grammar.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from dunwu.types import UsageError, derive_seed

LANGUAGES = ("en", "zh")

_TAGS = re.compile(r"</?(?:think|answer)>")
_WORD = re.compile(
    r"(?P<zh>[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
    r"|(?P<en>[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]+(?:['’][A-Za-z]+)*)"
    r"|(?P<other>[^\W\d_A-Za-z\u00c0-\u024f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)


def words(text: str, neutral: Collection[str] = ()) -> Counter[str]:
    """How many words of "en", "zh" and "other" a text has; `neutral` words (in lower case) are passed over.

    Example:
        >>> sorted(words("Wait, 12-7=5, 不对! A says so").items())
        [('en', 3), ('zh', 2)]
    """
    counts: Counter[str] = Counter()
    for match in _WORD.finditer(_TAGS.sub(" ", text)):
        word, language = match.group(), str(match.lastgroup)
        if language == "en" and (len(word) == 1 or (neutral and word.lower() in neutral)):
            continue
        counts[language] += 1
    return counts


def consistency(text: str, language: str, neutral: Collection[str] = ()) -> float:
    """The share of a text's words that are in `language`, 0 to 1; 1 for a text without words (see `wordless`).

    Raises:
        UsageError: `language` is neither "en" nor "zh".

    Example:
        >>> consistency("Keep 3: 不对", "en"), consistency("3*8=24", "zh")
        (0.3333333333333333, 1.0)
    """
    if language not in LANGUAGES:
        raise UsageError(f"unknown language {language!r}", f"one of {', '.join(LANGUAGES)}")
    counts = words(text, neutral)
    total = counts.total()
    return counts[language] / total if total else 1.0


def wordless(text: str, neutral: Collection[str] = ()) -> bool:
    """Whether a text has no word in any language, so that its consistency says nothing.

    Example:
        >>> wordless("12-7=5,5*3=15"), wordless("so 15")
        (True, False)
    """
    return not words(text, neutral)


def draw_language(name: str, chinese: float, split: str, seed: int, index: int) -> str:
    """The language of an exercise's problem: "zh" for a share `chinese` of the indices, by a hash of the place."""
    return "zh" if derive_seed(name, "language", split, seed, index) / 2**63 < chinese else "en"


def check_share(name: str, option: str, value: float) -> float:
    """`value` as a share.

    Raises:
        UsageError: it is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{name}: {option} = {value!r} is not a share", "use a number from 0 to 1")
    return float(value)
