"""What a tokenizer makes of texts: compression and fertility per language, use of the vocabulary, what the model sees of a word.

Bytes per token is compression: higher is fewer tokens for the same text. Fertility is tokens per word (Rust et al.,
2021), where a word is what stands between blank spaces, or one Han or kana character: 1 is a token for each, lower is
better. Both belong to the tokenizer *and* the texts, so the files are named and sampled evenly.

Not covered: words of Thai, Lao, Khmer and Burmese, which have no spaces either.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dunwu.data.encoding import decode_bytes, fast_encoder, is_fast, token_pieces
from dunwu.data.samples import even_sample, text_size
from dunwu.data.tokenizer import Tokenizer
from dunwu.types import DunwuError

SMALL = 0.001
"""Share of the bytes below which a language is counted under "other": mostly short texts that were misread."""
LONGEST = 30
"""Longest tokens that are listed, and most frequent ones."""
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("strawberry", "r"),
    (" strawberry", "r"),
    ("Strawberry", "r"),
    ("Mississippi", "s"),
    ("有志者事竟成，事在人为。", "事"),
    ("龘靐齉", "靐"),
)
"""Text and the letter to be counted in it. The last are rare characters, mostly split into bytes."""
_ONE_LETTER_WORD = re.compile("[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u3000": "□"})


@dataclass
class Group:
    """The texts of one language."""

    pieces: int = 0
    """See `dunwu.data.samples.pieces`."""
    bytes: int = 0
    characters: int = 0
    words: int = 0
    """See `words_in`."""
    tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """Counts and ratios; a ratio without a denominator is None."""
        return asdict(self) | {
            "bytes_per_token": self.bytes / self.tokens if self.tokens else None,
            "characters_per_token": self.characters / self.tokens if self.tokens else None,
            "tokens_per_word": self.tokens / self.words if self.words else None,
        }


@dataclass
class Findings:
    """What `measure` counted."""

    groups: dict[str, Group] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)


def measure(
    tokenizer: Tokenizer,
    files: Sequence[Path],
    sample_bytes: int = 20_000_000,
    language_of: Callable[[str], str] | None = None,
) -> Findings:
    """Encode an even sample of the files, counted by language.

    Args:
        language_of: a text's label; `dunwu.data.web.langid` if not given.

    Raises:
        DunwuError: a file that cannot be read, or no text in any.
    """
    label_of = language_of or _label
    encode, found = fast_encoder(tokenizer, "tags"), Findings()
    share = min(1.0, sample_bytes / max(1, sum(map(text_size, files))))
    for text, inside in even_sample(files, share):
        if not inside or not text.strip():
            continue
        ids, label = encode(text), label_of(text)
        group = found.groups.setdefault(label, Group())
        group.pieces += 1
        group.bytes += len(text.encode("utf-8", "surrogatepass"))
        group.characters += len(text)
        group.words += words_in(text)
        group.tokens += len(ids)
        found.uses.update(ids)
    if not found.groups:
        raise DunwuError("the files hold no text", "give files with text")
    return found


def words_in(text: str) -> int:
    """Words of a text: Han and kana characters, and what has a letter or digit between blank spaces.

    Example:
        >>> words_in("Two words ..."), words_in("两个字。Or 4!")
        (2, 5)
    """
    rest, count = _ONE_LETTER_WORD.subn(" ", text)
    return count + sum(word[0].isalnum() or any(map(str.isalnum, word)) for word in rest.split())


def sum_of(groups: Iterable[Group]) -> Group:
    """All of them as one."""
    counts = [(g.pieces, g.bytes, g.characters, g.words, g.tokens) for g in groups]
    return Group(*map(sum, zip(*counts)))


def token_report(
    tokenizer: Tokenizer, name: str, files: Sequence[Path], sample_bytes: int = 20_000_000, vocabulary: bool = True
) -> dict[str, Any]:
    """The report as JSON types; `vocabulary` adds every token with its kind and number of uses."""
    found = measure(tokenizer, files, sample_bytes)
    pieces = token_pieces(tokenizer)
    added = tokenizer.backend.get_added_tokens_decoder()
    whole = sum_of(found.groups.values())
    small = [label for label, group in found.groups.items() if group.bytes < SMALL * whole.bytes]
    groups = {label: group for label, group in found.groups.items() if label not in small}
    order = sorted(groups, key=lambda label: (-groups[label].bytes, label))
    if small:
        groups["other"] = sum_of(found.groups[label] for label in small)
        order.append("other")
    rows = [
        [index, shown(pieces[index]), "added" if index in added else kind_of(pieces[index]), found.uses[index]]
        for index in sorted(pieces)
    ]
    learned = [index for index in pieces if index not in added]
    longest = sorted(learned, key=lambda index: (-len(pieces[index]), index))[:LONGEST]
    result: dict[str, Any] = {
        "tokenizer": name,
        "vocab_size": tokenizer.vocab_size,
        "fast": is_fast(tokenizer),
        "files": [str(file) for file in files],
        "sample_bytes": sample_bytes,
        "languages": {label: groups[label].as_json() for label in order},
        "all": whole.as_json(),
        "used": len(found.uses),
        "used_share": len(found.uses) / max(1, tokenizer.vocab_size),
        "kinds": dict(Counter(str(row[2]) for row in rows).most_common()),
        "longest": [_row(index, pieces, found) for index in longest],
        "most_used": [_row(index, pieces, found) for index, _ in found.uses.most_common(LONGEST)],
        "letters": [letter_example(tokenizer, text, letter) for text, letter in EXAMPLES],
    }
    return result | ({"vocabulary": rows} if vocabulary else {})


def letter_example(tokenizer: Tokenizer, text: str, letter: str) -> dict[str, Any]:
    """What the model sees of a text, and of the same text spelled letter by letter."""
    return {
        "text": text,
        "letter": letter,
        "count": text.lower().count(letter),
        "pieces": _seen(tokenizer, text, letter),
        "spelled": _seen(tokenizer, " ".join(text.strip()), letter),
    }


def shown(piece: bytes) -> str:
    r"""A token for people: blank space visible, bytes that are no character as \xNN.

    Example:
        >>> shown(b" the"), shown("中".encode()[:2])
        ('␣the', '\\xe4\\xb8')
    """
    return piece.decode("utf-8", "backslashreplace").translate(_VISIBLE)


def kind_of(piece: bytes) -> str:
    """What a token is made of: part of a character, blank space, digits, a script's letters, signs, or several.

    Example:
        >>> [kind_of(text.encode()) for text in (" the", "中文", "42", " \\n", "!=")]
        ['Latin', 'Han', 'digits', 'space', 'signs']
    """
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "part of a character"
    letters = {_script(letter) for letter in text if letter.isalpha()}
    if len(letters) == 1:
        return letters.pop()
    if letters:
        return "several scripts"
    if not text.strip():
        return "space"
    return "digits" if any(map(str.isdigit, text)) else "signs"


def _script(letter: str) -> str:
    """The script by the character's name, as Unicode has none in Python."""
    name = unicodedata.name(letter, "")
    if "IDEOGRAPH" in name:
        return "Han"
    first = name.split()[0].split("-")[0] if " LETTER " in name or "SYLLABLE" in name else "MODIFIER"
    return {"MODIFIER": "other letters", "FULLWIDTH": "Latin"}.get(first, first.capitalize())


def _seen(tokenizer: Tokenizer, text: str, letter: str) -> list[dict[str, Any]]:
    found = []
    for index in tokenizer.encode(text, allow_special=False):
        piece = decode_bytes(tokenizer, [index])
        count = piece.decode("utf-8", "ignore").lower().count(letter)
        found.append({"id": index, "text": shown(piece), "letters": count})
    return found


def _row(index: int, pieces: Mapping[int, bytes], found: Findings) -> dict[str, Any]:
    return {"id": index, "text": shown(pieces[index]), "bytes": len(pieces[index]), "uses": found.uses[index]}


def _label(text: str) -> str:
    from dunwu.data.web.langid import identify

    return identify(text).label
