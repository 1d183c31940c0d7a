"""Words and sentences of a text, by language: what the quality filters and the near-duplicate search count.

English, and every language written with spaces, is split as datatrove splits English (`words_en.py`), so that counts, and
thresholds, are FineWeb's. In Chinese, and wherever words are written together, each character is a word: there is no
dictionary, so nothing depends on one's version, and new words cost nothing. What stands between such characters, Latin
words, numbers, marks, is split as in English.
"""

from __future__ import annotations

import re
from itertools import chain, pairwise

from dunwu.data.web import words_en

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, as the inside of a regular expression's `[…]`."""
UNSPACED = HAN + "\u3005\u3040-\u30ff\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
"""And kana, Thai, Lao, Tibetan, Burmese, Khmer."""
SPACELESS = frozenset({"zh", "ja", "th", "lo", "bo", "my", "km", "mixed"})
"""Languages, and the label of Chinese mixed with English, whose characters are words."""
_PIECES = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_END = re.compile(r"[。！？｡．!?]+[\"'”’」』）)】》〉]*|(?<=[A-Za-z])\.(?=\s|\Z)|\n+")


def spaceless(language: str) -> bool:
    """Whether the characters of a language are words.

    Example:
        >>> spaceless("zh-Hant"), spaceless("en")
        (True, False)
    """
    return language.split("-")[0] in SPACELESS


def words(text: str, language: str) -> list[str]:
    """The words of a text, punctuation marks among them.

    Example:
        >>> words("I don't know (yet).", "en")
        ['I', 'do', "n't", 'know', '(', 'yet', ')', '.']
        >>> words("他用Python 3.8写了e-mail。", "zh-Hans")
        ['他', '用', 'Python', '3.8', '写', '了', 'e', '-', 'mail', '。']
    """
    if not spaceless(language):
        return words_en.words(text)
    return list(chain.from_iterable(map(words_en.chunk_words, _PIECES.findall(text))))


def sentences(text: str, language: str) -> list[str]:
    """A text's sentences: together they are the text.

    English as datatrove's; an empty text is one empty sentence there. Elsewhere a sentence ends with 。！？, with closing
    quotes and brackets, with a line, or with a full stop after a Latin letter; an ellipsis ends none; blank ones are none.

    Example:
        >>> sentences("“你来了吗？”她问。我说……还没有！", "zh-Hans")
        ['“你来了吗？”', '她问。', '我说……还没有！']
    """
    if not spaceless(language):
        return words_en.sentences(text)
    parts: list[str] = []
    cuts = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    for start, end in pairwise(cuts):
        if text[start:end].strip() or not parts:
            parts.append(text[start:end])
        else:
            parts[-1] += text[start:end]
    return parts


def count_sentences(text: str, language: str) -> int:
    """`len(sentences(text, language))`, faster."""
    return len(sentences(text, language)) if spaceless(language) else words_en.count_sentences(text)
