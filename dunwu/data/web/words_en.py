"""Words and sentences of English, and of other languages written with spaces.

The words are those of datatrove's `split_into_words`, which counts words for FineWeb: spaCy's rules for English, after
which `"Don't!"` is five of them. A chunk between two spaces is split by taking marks off both its ends, as long as what is
left is not a word known by heart, and then at hyphens and the like inside. What a chunk becomes does not depend on its
neighbours, so it is remembered; one rare exception, `_joined`, is spaCy's last pass over the whole text.

Time is linear in the length of a chunk, whatever it holds. Not equal to spaCy: texts with lone surrogates, which it refuses.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain

from dunwu.data.web.words_tables import (
    ALPHA,
    CURRENCY,
    EXCEPTIONS,
    ICONS,
    LOWER,
    PUNCT,
    QUOTES,
    SENTENCE_ENDS,
    UNITS,
    UPPER,
)

MEMORY = 100_000
"""Chunks remembered before the older half is forgotten; twice that many at most, about 50 MB."""
LONGEST_REMEMBERED = 64
"""Characters of a chunk worth remembering."""


def _either(options: Iterable[str]) -> str:
    return "|".join(re.escape(option) for option in options)


_MARKS = re.escape(PUNCT + QUOTES) + ICONS
_DOTTED = rf"[0-9{LOWER}%²\-+|(?:)!{re.escape(PUNCT + QUOTES)}]"
_PREFIX = re.compile(rf"\.\.+|US\$|[CA]\$|\+(?![0-9])|[§%=—–{_MARKS}{re.escape(CURRENCY)}]")
_SUFFIX = re.compile(
    rf"(?:……|\.\.+|['’][sS]|[—–{_MARKS}]|(?<=[0-9])(?:\+|US\$|[CA]\$|[{re.escape(CURRENCY)}]|{_either(UNITS)})"
    rf"|(?<={_DOTTED})\.|(?<=[{UPPER}][{UPPER}])\.|(?<=°[FfCcKk])\.)\Z"
)
_INFIX = re.compile(
    rf"\.\.+|[…{ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{LOWER}{re.escape(QUOTES)}])\.(?=[{UPPER}{re.escape(QUOTES)}])"
    rf"|(?<=[{ALPHA}]),(?=[{ALPHA}])|(?<=[{ALPHA}0-9])(?:---?|-|–|——?|~|[:<>=/])(?=[{ALPHA}])"
)
_WINDOW = 12
"""Characters at the end of a chunk in which every suffix, with what has to stand before it, has room; dots excepted."""
_LONGEST_EXCEPTION = max(map(len, EXCEPTIONS))

_IP = (
    r"(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})(?!172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})"
    r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
)
_ALNUM = r"A-Za-z0-9\u00a1-\uffff"
_HOST = re.compile(
    rf"(?:{_IP}|(?:(?:[{_ALNUM}][{_ALNUM}_-]{{0,62}})?[{_ALNUM}]\.)+[{LOWER}]{{2,63}})(?::\d{{2,5}})?(?:[/?#]|\Z)"
)
_SCHEME = re.compile(r"[\w+\-.]{2,}://")


def is_url(chunk: str) -> bool:
    """Whether a chunk is a web or mail address: one word, whatever signs it holds.

    Example:
        >>> is_url("https://user@example.com/a-b?c=d"), is_url("example.com"), is_url("and/or")
        (True, True, False)
    """
    if "." not in chunk:
        return False
    scheme = _SCHEME.match(chunk)
    if _HOST.match(chunk) or (scheme and _HOST.match(chunk, scheme.end())):
        return True
    at = chunk.find("@", 1)
    while at != -1:
        if _HOST.match(chunk, at + 1):
            return True
        at = chunk.find("@", at + 1)
    return False


def _suffix(chunk: str, low: int, high: int) -> int:
    """Characters of the suffix to take off `chunk[low:high]`."""
    start = max(low, high - _WINDOW)
    tail = chunk[start:high]
    if tail.endswith("..") and not tail.strip("."):
        while start > low and chunk[start - 1] == ".":
            start -= 1
        return high - start
    found = _SUFFIX.search(tail)
    return len(tail) - found.start() if found else 0


def split(chunk: str, exceptions: dict[str, tuple[str, ...]] = EXCEPTIONS) -> list[str]:
    """The words of one chunk without spaces.

    Example:
        >>> split('("Don’t!'), split("U.S.A.-made,"), split("12km"), split("so...what")
        (['(', '"', 'Do', 'n’t', '!'], ['U.S.A.-made', ','], ['12', 'km'], ['so', '...', 'what'])
    """

    if chunk.isalpha():  # most of them, so twice as fast
        return list(exceptions.get(chunk, (chunk,)))
    word, last = chunk[:-1], chunk[-1:]
    usual = last in ",;:!?)" or (last == "." and "a" <= word[-1:] <= "z")
    if usual and word.isalpha() and chunk not in exceptions:
        return [*exceptions.get(word, (word,)), last]

    def known(low: int, high: int) -> bool:
        return 0 < high - low <= _LONGEST_EXCEPTION and chunk[low:high] in exceptions

    before: list[str] = []
    after: list[str] = []
    low, high = 0, len(chunk)
    while low < high and not known(low, high):
        found = _PREFIX.match(chunk, low, high)
        rest = found.end() if found else low
        if found and known(rest, high):
            before.append(found.group())
            low = rest
            break
        suffix = _suffix(chunk, rest, high)
        if suffix and known(low, high - suffix):
            after.append(chunk[high - suffix : high])
            high -= suffix
            break
        if not found and not suffix:
            break
        if found:
            before.append(found.group())
        if suffix:
            after.append(chunk[high - suffix : high])
        low, high = rest, high - suffix
    middle = chunk[low:high]
    return [*before, *(exceptions.get(middle) or _inside(middle)), *reversed(after)]


def _inside(middle: str) -> list[str]:
    """What has no marks at its ends: an address is whole, everything else is cut at hyphens, slashes, dots, …"""
    if not middle:
        return []
    if is_url(middle):
        return [middle]
    parts, start = [], 0
    for infix in _INFIX.finditer(middle):
        if infix.start() == 0:
            continue
        if infix.start() != start:
            parts.append(middle[start : infix.start()])
        parts.append(infix.group())
        start = infix.end()
    return [*parts, middle[start:]] if start < len(middle) else parts


def _patterns() -> dict[str, list[tuple[str, ...]]]:
    """What words known by heart look like if they are split after all, by their first part."""
    table: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for word in EXCEPTIONS:
        parts = tuple(split(word, {}))
        if len(parts) > 1:
            table[parts[0]].append(parts)
    return dict(table)


_PATTERNS = _patterns()
_OPENING = {part for patterns in _PATTERNS.values() for parts in patterns for part in parts[:-1]}
_CLOSING = {part for patterns in _PATTERNS.values() for parts in patterns for part in parts[1:]}

Token = tuple[int, str, int]
"""A word as (its place in the text, itself, the number of its chunk)."""


def _joined(tokens: list[Token]) -> list[Token]:
    """Put together again what marks took apart: `(so):` ends in the word `):`.

    The longest first, then the leftmost. A pattern found across a space is not joined, but whatever it touches is not
    joined either: the one way in which a chunk's neighbours matter.
    """
    texts = [text for _, text, _ in tokens]
    found = [
        (-len(parts), place)
        for place, text in enumerate(texts)
        for parts in _PATTERNS.get(text, ())
        if tuple(texts[place : place + len(parts)]) == parts
    ]
    taken: set[int] = set()
    joined: dict[int, int] = {}
    for length, first in sorted(found):
        last = first - length - 1
        if first not in taken and last not in taken and tokens[first][2] == tokens[last][2]:
            joined[first] = last
        taken.update(range(first, last + 1))
    if not joined:
        return tokens
    result: list[Token] = []
    place = 0
    while place < len(tokens):
        start, text, chunk = tokens[place]
        if place in joined:
            for part in EXCEPTIONS["".join(texts[place : joined[place] + 1])]:
                result.append((start, part, chunk))
                start += len(part)
            place = joined[place]
        else:
            result.append((start, text, chunk))
        place += 1
    return result


class _Memory(dict[str, tuple[str, ...]]):
    """The words of each chunk met lately.

    `touchy` are those in which something was joined: their neighbours may matter. `long` says that a chunk too long to
    remember, which may be touchy, went through since it was last set to False.
    """

    def __init__(self) -> None:
        self.older: dict[str, tuple[str, ...]] = {}
        self.touchy: set[str] = set()
        self.long = False

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        if len(chunk) > LONGEST_REMEMBERED:
            self.long = True
            return tuple(text for _, text, _ in _joined([(0, word, 0) for word in split(chunk)]))
        if len(self) >= MEMORY:
            self.older = dict(self)
            self.touchy.intersection_update(self.older)
            self.clear()
        words = self.older.get(chunk)
        if words is None:
            plain = split(chunk)
            words = tuple(plain)
            if len(plain) > 1:
                words = tuple(text for _, text, _ in _joined([(0, word, 0) for word in plain]))
                if list(words) != plain:
                    self.touchy.add(chunk)
        self[chunk] = words
        return words


_WORDS = _Memory()
chunk_words: Callable[[str], tuple[str, ...]] = _WORDS.__getitem__
"""The words of one chunk without spaces, wherever it stands."""


def _entangled(chunks: list[str], touchy: Callable[[str], bool]) -> bool:
    """Whether the neighbours of a touchy chunk may keep something in it from being joined."""
    for place in [place for place, chunk in enumerate(chunks) if touchy(chunk)]:
        for left, right in zip(chunks[max(0, place - 1) : place + 1], chunks[max(1, place) : place + 2]):
            if split(left)[-1] in _OPENING and split(right)[0] in _CLOSING:
                return True
    return False


def words(text: str) -> list[str]:
    """All words of a text, punctuation marks among them, without white space."""
    chunks = text.split()
    _WORDS.long = False
    result = list(chain.from_iterable(map(chunk_words, chunks)))
    if _WORDS.long or not _WORDS.touchy.isdisjoint(chunks):
        touchy = _WORDS.touchy
        if _entangled(chunks, lambda chunk: chunk in touchy or len(chunk) > LONGEST_REMEMBERED):
            return [word for _, word, _ in _tokens(text) if not word.isspace()]
    return result


_RUNS = re.compile(r"\s+|\S+")


def _tokens(text: str) -> list[Token]:
    """All words and their places; white space other than one space between two words is a word here, as it is for spaCy."""
    tokens: list[Token] = []
    for number, run in enumerate(_RUNS.finditer(text)):
        start, chunk = run.start(), run.group()
        if chunk.isspace():
            if start and chunk[0] == " ":
                start, chunk = start + 1, chunk[1:]
            if chunk:
                tokens.append((start, chunk, number))
            continue
        for word in split(chunk):
            tokens.append((start, word, number))
            start += len(word)
    return _joined(tokens)


def sentences(text: str) -> list[str]:
    """The text cut after each run of sentence-ending marks; what is between two sentences begins the second.

    Example:
        >>> sentences("Is it? Yes, Mr. Smith... it is!) Well. ")
        ['Is it?', ' Yes, Mr. Smith... it is!)', ' Well. ']
    """
    cuts = [0]
    ended, end = False, 0
    for start, word, _ in _tokens(text):
        if word in SENTENCE_ENDS:
            ended = True
        elif ended and not _only_marks(word):
            cuts.append(end)
            ended = False
        end = start + len(word)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)])]


def _only_marks(word: str) -> bool:
    return all(unicodedata.category(letter)[0] == "P" for letter in word)


class _Shapes(dict[str, str]):
    """Of each chunk met lately, its words in short.

    `.` is a mark that ends a sentence, `w` a word; other marks are left out. A last `?` says that the chunk may be touchy.
    """

    def __missing__(self, chunk: str) -> str:
        if chunk.isspace():
            shape = "" if chunk == " " else "w"
        else:
            words = chunk_words(chunk)
            signs = ("." if word in SENTENCE_ENDS else "" if _only_marks(word) else "w" for word in words)
            shape = re.sub(r"(.)\1+", r"\1", "".join(signs))
            shape += "?" * (chunk in _WORDS.touchy or len(chunk) > LONGEST_REMEMBERED)
        if len(chunk) <= LONGEST_REMEMBERED:
            if len(self) >= MEMORY:
                self.clear()
            self[chunk] = shape
        return shape


_SHAPES = _Shapes()
_GAP = re.compile(r"[^\S ]|  ")


def count_sentences(text: str) -> int:
    """How many `sentences` there are: at least one."""
    chunks = text.split()
    shape = "".join(map(_SHAPES.__getitem__, _RUNS.findall(text) if _GAP.search(text) else chunks))
    if "?" in shape:
        if _entangled(chunks, lambda chunk: _SHAPES[chunk].endswith("?")):
            return len(sentences(text))
        shape = shape.replace("?", "")
    return shape.count(".w") + 1
