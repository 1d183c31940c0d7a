"""The four quality filters of FineWeb's recipe: text → the first reason to drop it, or None.

Gopher's repetition, Gopher's quality, C4's lines, FineWeb's own, in this order (`judge`). With the English `limits` each
gives datatrove's answer and its name for the reason: GopherRepetitionFilter(), GopherQualityFilter(),
C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(). The order of checks is part of that.

Where datatrove would fail, ours does this instead: a text without words, its limit of words switched off, is "empty", not a
division by zero; a text of symbols alone has no mean word length (datatrove's is nan), so no limit of it. A limit of 0 is a
limit: None switches off, not 0. Texts with lone surrogates, at which spaCy fails, are judged like any other.

Not covered: C4's list of bad words, which is downloaded, and C4's paragraph filter; FineWeb uses neither.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, compress, islice
from operator import itemgetter, sub

from dunwu.data.web import limits as presets
from dunwu.data.web.limits import SYMBOLS, C4Limits, FineWebLimits, GopherLimits, Limits, RepetitionLimits
from dunwu.data.web.words import HAN, UNSPACED, count_sentences, spaceless
from dunwu.data.web.words import words as split_words

_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


def judge(
    text: str, language: str, limits: Limits | None = None, dropped_lines: Counter[str] | None = None
) -> tuple[str, str | None]:
    """All four filters: (the text, which C4 may have shortened, the first reason to drop it or None).

    Example:
        >>> judge("Buy it now! " * 50, "en")[1]
        'top_2_gram'
    """
    limits = limits or presets.limits(language)
    words = split_words(text, language)
    reason = repetition(text, words, limits.repetition) or gopher(text, words, limits.gopher)
    if reason:
        return text, reason
    cleaned, reason = c4(text, language, limits.c4, dropped_lines)
    if not reason:
        reason = fineweb(cleaned, words if cleaned == text else split_words(cleaned, language), limits.fineweb)
    return cleaned, reason


def repetition(text: str, words: Sequence[str], limits: RepetitionLimits) -> str | None:
    """Gopher's repetition filter: repeated paragraphs and lines, a too common n-gram, n-grams seen before.

    Example:
        >>> repetition("spam " * 40, ["spam"] * 40, RepetitionLimits())
        'top_2_gram'
    """
    if not text:
        return "empty"
    size = len(text)
    for name, parts, most, most_chars in (
        ("para", _PARAGRAPHS.split(text.strip()), limits.dup_para_frac, limits.dup_para_char_frac),
        ("line", _LINES.split(text), limits.dup_line_frac, limits.dup_line_char_frac),
    ):
        number, chars = _repeated(parts)
        if most is not None and number / len(parts) > most:
            return f"dup_{name}_frac"
        if most_chars is not None and chars / size > most_chars:
            return f"dup_{name}_char_frac"
    return _common_n_gram(size, words, limits) or _repeated_n_grams(size, words, limits.dup_n_grams)


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts came before, and their characters."""
    distinct = set(parts)
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def _common_n_gram(size: int, words: Sequence[str], limits: RepetitionLimits) -> str | None:
    """Whether the commonest n-gram, the first of equals, fills too much."""
    if not words:
        return None
    longest = max(map(len, words))
    counted, times = 0, 0  # no n-gram is more frequent than the commonest shorter one
    for n, most in limits.top_n_grams:
        if len(words) < n or (0 < counted <= n and times * (n * (longest + limits.gap) - limits.gap) / size <= most):
            continue
        grams = Counter(zip(*(islice(words, skip, None) for skip in range(n))))
        gram, times = max(grams.items(), key=itemgetter(1))
        counted = n
        if (sum(map(len, gram)) + limits.gap * (n - 1)) * times / size > most:
            return f"top_{n}_gram"
    return None


def _repeated_n_grams(size: int, words: Sequence[str], shares: tuple[tuple[int, float], ...]) -> str | None:
    """Whether n-grams seen before fill too much; a repeated one is stepped over as a whole.

    As in datatrove two are equal if they are so without their spaces ("a bc", "ab c"). Most words begin nothing that is
    repeated: only `places` that begin with the same letters as another are looked at, and for a greater n only they.
    """
    starts = [0, *accumulate(map(len, words))]
    string = "".join(words)
    places: Sequence[int] = ()
    before = len(words) + 1
    for n, most in shares:
        if n < before:
            places = range(len(words))
        before = n
        lengths = list(map(sub, starts[n:], starts))
        places = places[: bisect_left(places, len(lengths))]
        places = _twice(string, starts, places, min((lengths[place] for place in places), default=0))
        seen: set[str] = set()
        free, repeated = 0, 0
        for place in places:
            if place >= free:
                gram = string[starts[place] : starts[place + n]]
                if gram in seen:
                    repeated += len(gram)
                    free = place + n
                else:
                    seen.add(gram)
        if repeated / size > most:
            return f"duplicated_{n}_n_grams"
    return None


def _twice(string: str, starts: Sequence[int], places: Sequence[int], length: int) -> Sequence[int]:
    """The places whose next `length` letters are those of another place."""
    heads = [string[start : start + length] for start in map(starts.__getitem__, places)]
    counts = Counter(heads)
    if len(counts) == len(heads):
        return ()
    return [place for place, head in zip(places, heads) if counts[head] > 1]


class _Kinds(dict[str, int]):
    """Of each word met lately: 1 if it is more than symbols, 2 if it has a letter, 3 if both, else 0."""

    def __missing__(self, word: str) -> int:
        kind = (not SYMBOLS.issuperset(word)) + 2 * any(map(str.isalpha, word))
        if len(self) >= 200_000:
            self.clear()
        if len(word) <= 64:
            self[word] = kind
        return kind


_KINDS = _Kinds()
_IS_SYMBOL = bytes([1, 0, 1, 0]) + bytes(252)
_HAN = re.compile(f"[{HAN}]")


def gopher(text: str, words: Sequence[str], limits: GopherLimits) -> str | None:
    """Gopher's quality rules: number and length of words, symbols, bullets, ellipses, letters, stop words.

    Example:
        >>> gopher("## !", ["#", "#", "!"], GopherLimits(min_words=None))
        'gopher_too_many_hashes'
    """
    kinds = bytes(map(_KINDS.__getitem__, words))
    number = kinds.count(1) + kinds.count(3)
    if limits.min_words is not None and number < limits.min_words:
        return "gopher_short_doc"
    if limits.max_words is not None and number > limits.max_words:
        return "gopher_long_doc"
    if not words:
        return "empty"
    if number:
        mean = (sum(map(len, words)) - sum(map(len, compress(words, kinds.translate(_IS_SYMBOL))))) / number
        if limits.min_mean_word is not None and mean < limits.min_mean_word:
            return "gopher_below_avg_threshold"
        if limits.max_mean_word is not None and mean > limits.max_mean_word:
            return "gopher_above_avg_threshold"
    if limits.min_han_share is not None:
        letters = sum(map(len, words))
        if len(_HAN.findall(text)) / letters < limits.min_han_share:
            return "gopher_below_han_share"
    reason = _symbols(text, len(words), limits) or _marked_lines(text, limits)
    if reason:
        return reason
    alpha = (kinds.count(2) + kinds.count(3)) / len(words)
    if limits.min_alpha_words is not None and alpha < limits.min_alpha_words:
        return "gopher_below_alpha_threshold"
    known = len(limits.stop_words.intersection(words))
    if limits.min_stop_words is not None and known < limits.min_stop_words:
        return "gopher_enough_stop_words"
    return None


def _symbols(text: str, number: int, limits: GopherLimits) -> str | None:
    if limits.max_hash_ratio is not None and text.count("#") / number > limits.max_hash_ratio:
        return "gopher_too_many_hashes"
    ellipses = sum(map(text.count, limits.ellipses))
    if limits.max_ellipsis_ratio is not None and ellipses / number > limits.max_ellipsis_ratio:
        return "gopher_too_many_ellipsis"
    return None


def _marked_lines(text: str, limits: GopherLimits) -> str | None:
    lines = text.splitlines()
    if limits.max_bullet_lines is not None and any(mark in text for mark in limits.bullets):
        share = sum(line.lstrip().startswith(limits.bullets) for line in lines) / len(lines)
        if share > limits.max_bullet_lines:
            return "gopher_too_many_bullets"
    if limits.max_ellipsis_lines is not None and any(mark in text for mark in limits.line_ellipses):
        share = sum(line.rstrip().endswith(limits.line_ellipses) for line in lines) / len(lines)
        if share > limits.max_ellipsis_lines:
            return "gopher_too_many_end_ellipsis"
    return None


_SPACED_WORD = re.compile(r"\S+")
_UNSPACED_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_UNBROKEN = re.compile(rf"[^\s{UNSPACED}]+")


def c4(text: str, language: str, limits: C4Limits, dropped_lines: Counter[str] | None = None) -> tuple[str, str | None]:
    """C4's rules: (the lines worth keeping, None), or (the text as it was, a reason to drop it).

    `dropped_lines` counts the lines left out under "too_long_word", "no_terminal_punc", "too_few_words", "javascript" and
    "policy"; an empty line has too few words too, so paragraphs end with one line end. In a language without spaces a line's words are its letters, Latin words and numbers; marks are none.

    Example:
        >>> c4("We use cookies. Accept?\\nShort.\\nOne two three [3].", "en", C4Limits(min_sentences=None))
        ('One two three .', None)
    """
    dropped = Counter[str]() if dropped_lines is None else dropped_lines
    word, unbroken = (_UNSPACED_WORD, _UNBROKEN) if spaceless(language) else (_SPACED_WORD, _SPACED_WORD)
    citations = re.compile(limits.citations) if limits.citations is not None else None
    lowered = (citations.sub("", text) if citations else text).lower()
    notable = any(phrase in lowered for phrase in (*limits.placeholder, *limits.script, *limits.policy))
    notable |= limits.curly is not None and limits.curly in lowered
    sentences = 0
    kept: list[str] = []
    for line in map(str.strip, text.splitlines()):
        few = limits.min_words_per_line or 0
        words_enough = next(islice(word.finditer(line), few - 1, None), None) is not None if few else True
        if _has_long_word(line, limits.max_word_length, unbroken):
            dropped["too_long_word"] += 1
            continue
        if citations is not None and ("[" in line or "［" in line):
            line = citations.sub("", line)
        if limits.terminal_marks is not None and (not line.endswith(limits.terminal_marks) or line.endswith("...")):
            dropped["no_terminal_punc"] += 1
            continue
        if not words_enough:
            dropped["too_few_words"] += 1
            continue
        if notable:
            verdict, drops_text = _phrases(line, limits)
            if drops_text:
                return text, verdict
            if verdict:
                dropped[verdict] += 1
                continue
        if limits.min_sentences is not None and sentences < limits.min_sentences:
            sentences += count_sentences(line, language)
        kept.append(line)
    if limits.min_sentences is not None and sentences < limits.min_sentences:
        return text, "too_few_sentences"
    return "\n".join(kept).strip(), None


def _has_long_word(line: str, longest: int | None, unbroken: re.Pattern[str]) -> bool:
    if longest is None or len(line) <= longest:
        return False
    return any(found.end() - found.start() > longest for found in unbroken.finditer(line))


def _phrases(line: str, limits: C4Limits) -> tuple[str | None, bool]:
    """What a line's phrases say: (a reason or None, whether it is the whole text's)."""
    lowered = line.lower()
    if any(phrase in lowered for phrase in limits.placeholder):
        return "lorem_ipsum", True
    if any(phrase in lowered for phrase in limits.script):
        return "javascript", False
    if limits.curly is not None and limits.curly in line:
        return "curly_bracket", True
    if any(phrase in lowered for phrase in limits.policy):
        return "policy", False
    return None, False


def fineweb(text: str, words: Sequence[str], limits: FineWebLimits) -> str | None:
    """FineWeb's own rules: lines that end no sentence, short lines, repeated lines, lists.

    Example:
        >>> fineweb("one\\ntwo\\nthree.", ["one", "two", "three", "."], FineWebLimits())
        'short_line_ratio'
    """
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines or not words:
        return "empty"
    if limits.min_terminal_lines is not None:
        share = sum(line[-1] in limits.terminal for line in lines) / len(lines)
        if share < limits.min_terminal_lines:
            return "line_punct_ratio"
    if limits.max_short_lines is not None:
        share = sum(len(line) <= limits.short_line for line in lines) / len(lines)
        if share > limits.max_short_lines:
            return "short_line_ratio"
    line_ends = text.count("\n")
    if limits.max_dup_line_chars is not None:
        share = _repeated(lines)[1] / (len(text) - line_ends)
        if share > limits.max_dup_line_chars:
            return "char_dup_ratio"
    if limits.max_newlines is not None and line_ends / len(words) > limits.max_newlines:
        return "list_ratio"
    return None
