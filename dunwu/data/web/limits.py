"""Thresholds of the quality filters: FineWeb's for English, a counterpart of each for Chinese, and what is left for others.

Published numbers where there are any: Gopher (arXiv 2112.11446, table A1 and section A.1.1), C4 (JMLR 21/140, section 2.2),
FineWeb (arXiv 2406.17557, section 3.6), FineWeb-2 (github.com/huggingface/fineweb-2, configs/cmn_Hani.yml: Chinese, counted in
jieba's words). Ours count Chinese in characters, 1.6 to one of jieba's words (measured on 90,000 characters of instruction
data), so its numbers per word are divided by 1.6, and lengths in words multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from dunwu.data.web.words import SPACELESS
from dunwu.data.web.words_tables import SENTENCE_ENDS

TERMINAL = SENTENCE_ENDS | frozenset(
    "\u061d\u061e\u0837\u0839\u083d\u083e\u17d4\u17d5\u17d6\u17d9\u17da\u1b7d\u1b7e\u2e53\u2e54\U00010f55\U00010f56\U00010f57"
    "\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88\U00010f89\U00011944\U00011946\U00011ef7\U00011ef8\U00011f43\U00011f44"
    "\U00016e98"
)
"""Marks that end a sentence in some script: Unicode's Sentence_Terminal, as datatrove has it."""
SYMBOLS = (
    TERMINAL
    | frozenset("\"#$%&'()*+,-/:;<=>@[\\]^_`{|}~«´»–—’“”„…∶━►、〈〉《》「」【】％（），１：；～")
    | frozenset(chr(code) for codes in (range(9), range(11, 13), range(13, 32), range(127, 160)) for code in codes)
)
"""Characters that alone make no word to Gopher's filter: datatrove's, its full-width 1 included."""

Shares = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RepetitionLimits:
    """Gopher's limits on repetition, table A1. None, or no pair, switches a check off."""

    dup_para_frac: float | None = 0.30
    """Largest share of paragraphs seen before in the text."""
    dup_para_char_frac: float | None = 0.20
    """Largest share of the characters in such paragraphs."""
    dup_line_frac: float | None = 0.30
    """Largest share of lines seen before in the text."""
    dup_line_char_frac: float | None = 0.20
    """Largest share of the characters in such lines."""
    top_n_grams: Shares = ((2, 0.20), (3, 0.18), (4, 0.16))
    """(n, largest share of the characters in the commonest n-gram of words), spaces included."""
    dup_n_grams: Shares = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    """(n, largest share of the characters in n-grams seen before), spaces not included."""
    gap: int = 1
    """Characters between two words of a top n-gram: a space in English, nothing in Chinese."""


@dataclass(frozen=True)
class GopherLimits:
    """Gopher's quality rules, section A.1.1. None switches a check off."""

    min_words: int | None = 50
    """Fewest words that are not mere symbols."""
    max_words: int | None = 100_000
    """Most such words."""
    min_mean_word: float | None = 3
    """Least mean length of such a word."""
    max_mean_word: float | None = 10
    """Greatest mean length."""
    max_hash_ratio: float | None = 0.1
    """Most `#` to a word."""
    max_ellipsis_ratio: float | None = 0.1
    """Most ellipses to a word."""
    ellipses: tuple[str, ...] = ("...", "…")
    """What counts as an ellipsis."""
    max_bullet_lines: float | None = 0.9
    """Largest share of lines that begin with a bullet."""
    bullets: tuple[str, ...] = ("•", "-")
    """What counts as a bullet."""
    max_ellipsis_lines: float | None = 0.3
    """Largest share of lines that end with `line_ellipses`."""
    line_ellipses: tuple[str, ...] = ("...", "…")
    """What counts as an ellipsis at a line's end."""
    min_alpha_words: float | None = 0.8
    """Least share of words with a letter in them, marks counted as words."""
    min_stop_words: int | None = 2
    """Fewest different stop words."""
    stop_words: frozenset[str] = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
    """The language's commonest small words; only as written here, without capitals."""
    min_han_share: float | None = None
    """Least share of Chinese characters among those that are not white space; instead of the least mean length."""


@dataclass(frozen=True)
class C4Limits:
    """C4's rules for lines and texts as FineWeb uses them: section 2.2, lines without a full stop kept. None is off."""

    terminal_marks: tuple[str, ...] | None = None
    """A line must end with one of them; C4: `. ? ! " '`. FineWeb switched it off."""
    min_sentences: int | None = 5
    """Fewest sentences in what is left of a text."""
    min_words_per_line: int | None = 3
    """Fewest words, between spaces, in a line."""
    max_word_length: int | None = 1000
    """Longest word in a line."""
    citations: str | None = r"\[\d*\]|\[edit\]|\[citation needed\]"
    """Wikipedia's marks, taken out of lines: a regular expression."""
    placeholder: tuple[str, ...] = ("lorem ipsum",)
    """Filler that drops the whole text; in lower case, as the next ones."""
    script: tuple[str, ...] = ("javascript",)
    """Words that drop their line."""
    policy: tuple[str, ...] = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """Phrases of banners and footers that drop their line."""
    curly: str | None = "{"
    """A sign of program code that drops the whole text."""


@dataclass(frozen=True)
class FineWebLimits:
    """FineWeb's own rules, section 3.6. None switches a check off."""

    min_terminal_lines: float | None = 0.12
    """Least share of lines that end with a mark of `terminal`."""
    terminal: frozenset[str] = field(default=TERMINAL, repr=False)
    """What ends a sentence."""
    max_short_lines: float | None = 0.67
    """Largest share of lines with `short_line` characters at most."""
    short_line: int = 30
    """Characters of a short line."""
    max_dup_line_chars: float | None = 0.01
    """Largest share of the characters in lines seen before."""
    max_newlines: float | None = 0.3
    """Most line ends to a word."""


@dataclass(frozen=True)
class Limits:
    """All four filters' thresholds for one language."""

    repetition: RepetitionLimits = RepetitionLimits()
    gopher: GopherLimits = GopherLimits()
    c4: C4Limits = C4Limits()
    fineweb: FineWebLimits = FineWebLimits()


def chinese() -> Limits:
    """Chinese, both scripts; the reasons beside the numbers."""
    repetition = RepetitionLimits(
        dup_line_frac=0.287,  # FineWeb-2; it drops the other three, as its texts have no paragraphs: ours have, so Gopher's stay
        top_n_grams=((3, 0.256), (5, 0.201), (6, 0.171)),  # FineWeb-2's shares for 2, 3, 4 words: 1.6 characters each
        dup_n_grams=((8, 0.198), (10, 0.182), (11, 0.167), (13, 0.154), (14, 0.140), (16, 0.127)),  # for 5 to 10 words
        gap=0,
    )
    gopher = GopherLimits(
        min_words=80,  # 50 words
        max_words=160_000,
        min_mean_word=None,  # most words are one character
        max_mean_word=5,  # FineWeb-2: strings of Latin letters and digits
        min_han_share=0.3,  # our own: tables, code and foreign text, which mean length finds in English; maths has 0.36 and more
        max_hash_ratio=0.06,  # 0.1 to a word
        max_ellipsis_ratio=0.06,
        ellipses=("……", "...", "。。。"),  # the Chinese ellipsis is two characters; full stops are typed for it
        line_ellipses=("...", "…", "。。。"),
        bullets=("•", "-", "·", "●", "○", "◆", "◇", "■", "□", "▪", "★", "☆", "※"),  # what Chinese pages use
        min_alpha_words=0.735,  # FineWeb-2; marks are 12% of characters, as of English words, but digits stand alone
        stop_words=frozenset(
            "的了是在和有不也而由被为為与與于於这這他她"
        ),  # FineWeb-2's without dates and nouns; pronouns
    )
    c4 = C4Limits(
        min_sentences=3,  # a Chinese full stop closes what takes one to two English ones: 27 characters, 17 words, on average
        min_words_per_line=5,  # characters; 3 words
        max_word_length=1000,  # in characters that are not Chinese, without a space
        citations=r"[\[［]\d*[\]］]|[\[［](?:编辑|編輯|编辑源代码|編輯原始碼|来源请求|來源請求|注 ?\d+|註 ?\d+)[\]］]",
        placeholder=("lorem ipsum", "乱数假文", "亂數假文", "这里是示例文字", "此处添加文字", "請在此輸入文字"),
        policy=(
            *C4Limits().policy,
            *(
                "隐私政策",
                "隱私政策",
                "隱私權政策",
                "隐私声明",
                "隱私聲明",
                "服务条款",
                "服務條款",
                "使用条款",
                "使用條款",
            ),
            *(
                "用户协议",
                "用戶協議",
                "使用者協議",
                "使用cookie",
                "使用 cookie",
                "cookie政策",
                "cookie 政策",
                "接受cookie",
            ),
        ),
    )
    fineweb = FineWebLimits(
        min_terminal_lines=0.106,  # FineWeb-2
        terminal=TERMINAL | frozenset("”」』"),  # speech ends with its quotation mark, the full stop before it
        short_line=10,  # 30 Latin letters are 6 words
        max_dup_line_chars=0.1,  # FineWeb-2: 0.01 is crossed by one repeated heading
        max_newlines=0.11,  # FineWeb-2's 0.178 to a word of jieba's
    )
    return Limits(repetition, gopher, c4, fineweb)


def _others(limits: Limits, stop_words: frozenset[str] | None = None) -> Limits:
    """The same without what is bound to a language."""
    needed = limits.gopher.min_stop_words if stop_words else None
    words = replace(limits.gopher, stop_words=stop_words or frozenset(), min_stop_words=needed, min_han_share=None)
    return replace(limits, gopher=words)


ENGLISH = Limits()
CHINESE = chinese()
MIXED = _others(CHINESE, CHINESE.gopher.stop_words | ENGLISH.gopher.stop_words)
"""Chinese mixed with English: Chinese without its least share of Chinese characters, stop words of either."""
OTHER = _others(ENGLISH)
"""A language written with spaces: English without stop words."""
UNSPACED = _others(CHINESE)
"""A language written without: Chinese, without stop words and without Chinese characters."""


def limits(language: str) -> Limits:
    """The thresholds for a language label: "en", "zh-Hans", "zh-Hant", "mixed", or another ISO 639-1 code.

    Example:
        >>> limits("en").gopher.min_words, limits("zh-Hant").gopher.min_words, limits("fr").gopher.min_stop_words
        (50, 80, None)
    """
    base = language.split("-")[0]
    known = {"en": ENGLISH, "zh": CHINESE, "mixed": MIXED}
    return known.get(base, UNSPACED if base in SPACELESS else OTHER)


@lru_cache(maxsize=64)
def world(language: str) -> Limits:
    """For the generated web: its good pages have 10 to 130 words, half of them sums, so limits of length, letters, stop words
    and line ends are off, and a top n-gram says nothing; what looks for spam stays. On 10,364 world pages and 2,380 pages
    of rubbish it kept all of the first and none of the second.
    """
    base = limits(language)
    lines = replace(
        base.repetition, dup_para_frac=None, dup_para_char_frac=None, dup_line_frac=0.4, dup_line_char_frac=0.4
    )
    return Limits(
        repetition=replace(lines, top_n_grams=(), dup_n_grams=((5, 0.6), (10, 0.5))),
        gopher=replace(
            base.gopher,
            min_words=None,
            min_mean_word=None,
            max_mean_word=12,
            min_han_share=None,
            min_alpha_words=None,
            min_stop_words=None,
        ),
        c4=replace(base.c4, min_sentences=1, min_words_per_line=None),
        fineweb=FineWebLimits(None, base.fineweb.terminal, None, 0, None, None),
    )
