"""The same ids as `Tokenizer.encode`, about ten times as fast; and ids back to bytes, whatever they are.

`tokenizers` encodes 1 to 2 MB/s on one core, tiktoken about 20 from the same vocabulary. tiktoken is taken only where
equal ids follow from what the two do, and for each text only where its characters raise no question:

- the tokenizer is byte-level BPE whose merges make each token once and in the order of the ids (tiktoken merges by id);
- the two libraries count each character of the text among the same classes (letter, number, space): they carry Unicode
  tables of their own versions, so each new character is asked of both, once;
- NFC is left to `tokenizers` for any text with a character that NFC might change or combine;
- no run of blank space is longer than `LONGEST_SPACE`: tiktoken's pattern engine gives up at a million.

Everything else, and every text where tiktoken is not installed, is encoded by `tokenizers`. Both are linear in the
length of a run without spaces, within a factor of log n.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from dunwu.data.merges import byte_letters
from dunwu.data.tokenizer import GPT2_SPLIT, Tokenizer
from dunwu.machine import library_version
from dunwu.types import UsageError

Added = Literal["all", "tags", "none"]
"""Which added tokens a text may name: all; those that are ordinary text (<think>); none, so that all is spelled out."""
Encoder = Callable[[str], list[int]]
LONGEST_SPACE = 100_000
"""Characters of blank space in a row that tiktoken is given."""
_CLASSES = (r"\p{L}", r"\p{N}", r"\s")
_LONG_SPACE = re.compile(rf"(?<!\s)\s{{{LONGEST_SPACE}}}")


def fast_encoder(tokenizer: Tokenizer, added: Added = "all") -> Encoder:
    """A function from a text to its ids, equal to `tokenizer.encode(text)` ("all"), or with `allow_special=False` ("none").

    Example:
        >>> from dunwu.data.tokenizer import train_from_texts
        >>> tokenizer = train_from_texts(["low lower lowest"], 280)
        >>> fast_encoder(tokenizer)("lower<|im_end|>") == tokenizer.encode("lower<|im_end|>")
        True
    """
    spec = json.loads(tokenizer.backend.to_str())
    if added == "all" and (_engine_of(spec) is None or not _plainly_added(spec)):
        return lambda text: list(tokenizer.backend.encode(text, add_special_tokens=False).ids)
    plain, vocab = _plain_encoder(spec), tokenizer.backend.get_vocab()
    named = {text: vocab[text] for text in added_tokens(tokenizer, added)}
    if not named:
        return plain
    names = re.compile("(" + "|".join(map(re.escape, sorted(named, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        if names.search(text) is None:
            return plain(text)
        ids: list[int] = []
        for number, part in enumerate(names.split(text)):
            if part:
                ids += [named[part]] if number % 2 else plain(part)
        return ids

    return encode


def _plain_encoder(spec: dict[str, Any]) -> Encoder:
    """Text to ids with no added token known."""
    bare = Backend.from_str(json.dumps(spec | {"added_tokens": []}))

    def by_backend(text: str) -> list[int]:
        return list(bare.encode(text, add_special_tokens=False).ids)

    engine = _engine_of(spec)
    if engine is None:
        return by_backend
    characters = _Characters(nfc=spec["normalizer"] is not None)

    def encode(text: str) -> list[int]:
        ready = characters.prepared(text, bare)
        if ready is None or (len(text) >= LONGEST_SPACE and _LONG_SPACE.search(text)):
            return by_backend(text)
        ids: list[int] = engine.encode_ordinary(ready)
        return ids

    return encode


def is_fast(tokenizer: Tokenizer) -> bool:
    """Whether `fast_encoder` takes tiktoken for this tokenizer, here."""
    return _engine_of(json.loads(tokenizer.backend.to_str())) is not None


def added_tokens(tokenizer: Tokenizer, added: Added = "all") -> list[str]:
    """The added tokens a text may name, by id."""
    tokens = sorted(tokenizer.backend.get_added_tokens_decoder().items())
    return [token.content for _, token in tokens if added == "all" or (added == "tags" and not token.special)]


def find_special(tokenizer: Tokenizer, text: str) -> str | None:
    """The first special token a text names, or None; tags are ordinary text."""
    tags = set(added_tokens(tokenizer, "tags"))
    places = [(text.find(token), token) for token in added_tokens(tokenizer) if token not in tags and token in text]
    return min(places)[1] if places else None


def refuse_special(tokenizer: Tokenizer, text: str, cure: str) -> None:
    """As tiktoken does: text from outside must not make control tokens unless that is said.

    Raises:
        UsageError: it names one.
    """
    found = find_special(tokenizer, text)
    if found is not None:
        raise UsageError(f"the text holds the special token {found}", cure)


@functools.lru_cache(maxsize=4)
def token_pieces(tokenizer: Tokenizer) -> Mapping[int, bytes]:
    """The bytes each id stands for; an added token stands for its text."""
    reverse = {letter: byte for byte, letter in enumerate(byte_letters())}
    pieces: dict[int, bytes] = {}
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=False).items():
        known = all(letter in reverse for letter in token)
        pieces[index] = bytes(reverse[letter] for letter in token) if known else token.encode()
    for index, added in tokenizer.backend.get_added_tokens_decoder().items():
        pieces[index] = added.content.encode()
    return pieces


def decode_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    """The bytes of ids: exactly those that were encoded, be they characters or parts of some.

    A tokenizer that is not byte-level has no bytes to give; its text is returned as UTF-8.
    """
    if not isinstance(tokenizer.backend.decoder, decoders.ByteLevel):
        return tokenizer.decode(ids).encode()
    pieces = token_pieces(tokenizer)
    return b"".join(pieces[index] for index in ids)


# ---- when tiktoken's ids are the same


def _engine_of(spec: dict[str, Any]) -> Any:
    """tiktoken with this vocabulary and split; None where it is not installed or its ids could differ."""
    split = _split_of(spec)
    if split is None or library_version("tiktoken") is None:
        return None
    ranks = ranks_of(spec)
    if ranks is None:
        return None
    import tiktoken

    return tiktoken.Encoding("dunwu", pat_str=split, mergeable_ranks=ranks, special_tokens={})


def ranks_of(spec: dict[str, Any]) -> dict[bytes, int] | None:
    """tiktoken's table (bytes to rank = id) of a `tokenizer.json`; None if merging by it could differ."""
    model, reverse = spec["model"], {letter: byte for byte, letter in enumerate(byte_letters())}
    if model["type"] != "BPE" or model.get("dropout") or model.get("unk_token") or model.get("ignore_merges"):
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("byte_fallback"):
        return None
    vocab, added = model["vocab"], {token["content"] for token in spec["added_tokens"]}
    made = [a + b for a, b in (m.split(" ") if isinstance(m, str) else m for m in model["merges"])]
    ids = [vocab.get(token, -1) for token in made]
    base = [token for token in vocab if len(token) == 1 and token in reverse]
    rest = set(vocab) - set(made) - set(base) - added
    in_order = all(a < b for a, b in itertools.pairwise(ids)) and (not ids or max(vocab[t] for t in base) < ids[0])
    if len(base) != 256 or rest or not in_order:
        return None
    return {bytes(reverse[letter] for letter in token): vocab[token] for token in (*base, *made)}


def _split_of(spec: dict[str, Any]) -> str | None:
    """The pattern its text is split by, with nothing else done to the text but NFC; None if it is another kind."""
    if spec["normalizer"] not in (None, {"type": "NFC"}):
        return None
    step = spec["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return GPT2_SPLIT if last.get("use_regex", True) else None
    if len(steps) != 2 or last.get("use_regex", True):
        return None
    first = steps[0]
    plain = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    pattern = first.get("pattern", {}).get("Regex")
    return pattern if plain and isinstance(pattern, str) else None


def _plainly_added(spec: dict[str, Any]) -> bool:
    """Added tokens are found in the text as it is, and nothing around them is eaten."""
    nfc = spec["normalizer"] is not None
    return not any(
        t["lstrip"] or t["rstrip"] or t["single_word"] or (nfc and t["normalized"]) for t in spec["added_tokens"]
    )


class _Characters:
    """What is known of each character: plain (nothing to do), asking for NFC, or disputed between the libraries."""

    def __init__(self, nfc: bool) -> None:
        self.nfc = nfc
        self._plain: set[str] = set()
        self._agreed: set[str] = set()

    def prepared(self, text: str, backend: Backend) -> str | None:
        """The text in the tokenizer's normal form; None if `tokenizers` must encode it."""
        if text.isascii():
            return text
        letters = set(text)
        if letters <= self._plain or (not self.nfc and letters <= self._agreed):
            return text
        self._learn(letters - self._agreed)
        if self.nfc and not letters <= self._plain:
            text = backend.normalizer.normalize_str(text)
            letters = set(text)
            self._learn(letters - self._agreed)
        return text if letters <= self._agreed else None

    def _learn(self, letters: Iterable[str]) -> None:
        for letter in letters:
            if _same_class(letter):
                self._agreed.add(letter)
                if not _may_change(letter):
                    self._plain.add(letter)


@functools.cache
def _same_class(letter: str) -> bool:
    """Whether both libraries put a character into the same classes; a lone surrogate belongs to none."""
    if "\ud800" <= letter <= "\udfff":
        return False
    for split, engine in _probes():
        pieces = [part for part, _ in split.pre_tokenize_str(letter)]
        if bool(pieces) != bool(engine.encode_ordinary(letter)):
            return False
    return True


@functools.cache
def _probes() -> tuple[tuple[pre_tokenizers.Split, Any], ...]:
    import tiktoken

    single = {bytes([byte]): byte for byte in range(256)}
    return tuple(
        (
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=single, special_tokens={}),
        )
        for pattern in _CLASSES
    )


def _may_change(letter: str) -> bool:
    """Whether NFC may change a character, or combine it with the one before; True where that is not known."""
    return (
        unicodedata.category(letter) == "Cn"
        or unicodedata.combining(letter) != 0
        or letter in _followers()
        or unicodedata.normalize("NFC", letter) != letter
        or normalizers.NFC().normalize_str(letter) != letter
    )


@functools.cache
def _followers() -> frozenset[str]:
    """Characters that a composed one ends with, and Hangul's medial and final letters. All composed ones are below U+20000."""
    ends = (unicodedata.decomposition(chr(code)).split() for code in range(0x80, 0x20000))
    last = {chr(int(parts[-1], 16)) for parts in ends if len(parts) == 2 and not parts[0].startswith("<")}
    return frozenset(last | {chr(code) for code in range(0x1160, 0x1200)})
