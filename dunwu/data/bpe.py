"""Byte-level BPE trained on a table of counted words, with 64-bit counts and memory that does not grow with the text.

Why not a library's trainer: rustbpe 0.1.0 counts words and pairs in 32 bits (`i32` in src/lib.rs) and takes texts only;
tokenizers counts words in 64 bits but pairs in 32 (`HashMap<Pair, i32>` in bpe/trainer.rs), and both wrap around in
silence. The steps: an even sample of the files (`samples`), split by the pattern and counted (`WordTable`), then merged
(`merges`).
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import models

from dunwu import machine
from dunwu.data.merges import byte_letters, train_merges
from dunwu.data.samples import even_sample, text_size
from dunwu.data.tokenizer import GPT2_SPLIT, QWEN2_SPLIT, SPECIALS, TAGS, Split, Tokenizer, blank, with_added
from dunwu.disk import disk_errors, write_atomically
from dunwu.types import DunwuError, UsageError

PATTERNS: Mapping[Split, str] = {"qwen2": QWEN2_SPLIT, "gpt2": GPT2_SPLIT}


@dataclass(frozen=True)
class BpeConfig:
    """How a tokenizer is trained; all of it is written to `training.json`."""

    vocab_size: int
    """Ids in all: 256 bytes, merges, specials and tags."""
    split: Split = "qwen2"
    """Words no merge crosses: Qwen2's pattern (single digits, NFC) or GPT-2's (runs of digits, text as it is)."""
    special: tuple[str, ...] = ()
    """Tokens reserved beside the usual ones."""
    sample_bytes: int = 1_000_000_000
    """Most bytes of text that are read for counting, spread evenly over the files."""
    table_words: int = 1 << 19
    """Most distinct words kept while counting; beyond, rare ones are thinned (see `WordTable`). About 1.5 kB of memory
    each at the peak. With ten times the vocabulary the thinning costs less than 0.3% of the compression."""
    min_count: int = 2
    """Pairs seen less often are never merged."""


class WordTable:
    """Counts of distinct words in bounded memory.

    While there are at most `limit` words the counts are exact. When there are more, words rarer than a threshold t are
    thinned: one seen c times stays with probability c/t and then counts for t (threshold sampling; Duffield, Lund,
    Thorup, 2007), so that every word's count, and every pair's, is right on average. t doubles until a quarter of the
    room is free. The dice are a hash of the word and the number of the thinning: the same files give the same table.
    Dropping the rarest instead would lose nearly all of Chinese, where a word is a whole phrase and mostly seen once.
    """

    def __init__(self, limit: int) -> None:
        self.counts: Counter[str] = Counter()
        self.limit = limit
        self.threshold = 1
        self.thinnings = self.thinned = 0

    def add(self, words: Iterable[str]) -> None:
        """Count these words."""
        self.counts.update(words)
        if len(self.counts) <= self.limit:
            return
        self._thin()
        while len(self.counts) > self.limit * 3 // 4:
            self.threshold *= 2
            self._thin()

    def _thin(self) -> None:
        import xxhash

        self.thinnings += 1
        threshold, dice, kept = self.threshold, xxhash.xxh3_64_intdigest, Counter[str]()
        for word, count in self.counts.items():
            if count >= threshold:
                kept[word] = count
            elif dice(word.encode("utf-8", "surrogatepass"), self.thinnings) * threshold < count << 64:
                kept[word] = threshold
        self.thinned += len(self.counts) - len(kept)
        self.counts = kept


def split_words(text: str, split: Split) -> list[str]:
    """The words of a text, as the tokenizer will see them.

    Example:
        >>> split_words("I'm 42", "qwen2"), split_words("I'm 42", "gpt2")
        (['I', "'m", ' ', '4', '2'], ['I', "'m", ' 42'])
    """
    import regex

    found: list[str] = regex.findall(PATTERNS[split], unicodedata.normalize("NFC", text) if split == "qwen2" else text)
    return found


def train_bpe(counts: Mapping[str, int], config: BpeConfig, tick: Callable[[int], object] | None = None) -> Tokenizer:
    """A tokenizer of counted words; smaller than `vocab_size` where the words have too few pairs."""
    specials = (*SPECIALS, *config.special)
    room = config.vocab_size - 256 - len(specials) - len(TAGS)
    if room < 0:
        raise UsageError(
            f"vocab size {config.vocab_size} is too small", f"use at least {256 + len(specials) + len(TAGS)}"
        )
    letters = byte_letters()
    merges = [
        ("".join(letters[byte] for byte in left), "".join(letters[byte] for byte in right))
        for left, right in train_merges(counts, room, config.min_count, tick)
    ]
    vocabulary = {token: index for index, token in enumerate((*sorted(letters), *(a + b for a, b in merges)))}
    return with_added(blank(models.BPE(vocabulary, merges), config.split), specials, TAGS)


def train_tokenizer(
    files: Sequence[Path],
    config: BpeConfig,
    out: Path,
    progress: Callable[[str, float, float], object] | None = None,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Train on files, save Hugging Face's files and `training.json` to `out`; also returns what that says.

    Args:
        files: see `dunwu.data.samples`.
        progress: called with the stage ("count" in bytes, "merge" in merges), how much is done, and of how much.

    Raises:
        UsageError: a vocabulary too small for bytes, specials and tags; a special that is no word.
        DunwuError: a file that cannot be read, or no text.
    """
    _check(config)
    said = progress or (lambda stage, done, total: None)
    sizes = [text_size(file) for file in files]
    share = min(1.0, config.sample_bytes / max(1, sum(sizes)))
    table, record = _count(files, config, share, lambda done: said("count", done, sum(sizes)))
    room = max(0, config.vocab_size - 256 - len(SPECIALS) - len(config.special) - len(TAGS))
    tokenizer = train_bpe(table.counts, config, lambda done: said("merge", done, room))
    record |= {
        "vocab_size": tokenizer.vocab_size,
        "asked": config.vocab_size,
        "split": config.split,
        "special": list(config.special),
        "min_count": config.min_count,
        "files": [{"file": str(file), "bytes": size} for file, size in zip(files, sizes)],
        "versions": {name: machine.versions().get(name) for name in ("python", "dunwu", "numpy", "tokenizers")},
    }
    with disk_errors(out):
        tokenizer.save(out)
        write_atomically(out / "training.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")
    return tokenizer, record


def _check(config: BpeConfig) -> None:
    reserved = (*SPECIALS, *TAGS)
    for token in config.special:
        if not token.strip() or token in reserved or config.special.count(token) > 1:
            raise UsageError(f"special token {token!r} is empty or taken", "give each its own word, e.g. <|tool|>")
    least = 256 + len(reserved) + len(config.special)
    if config.vocab_size < least:
        raise UsageError(f"vocab size {config.vocab_size} is too small", f"use at least {least}")
    if config.sample_bytes < 1 or config.table_words < 1:
        raise UsageError("--sample-bytes and --table-words must be positive", "leave them out for the defaults")


def _count(
    files: Sequence[Path], config: BpeConfig, share: float, tick: Callable[[int], object]
) -> tuple[WordTable, dict[str, Any]]:
    """The word table of an even sample, and what was sampled."""
    table = WordTable(config.table_words)
    kept_whole = (*TAGS, *SPECIALS, *config.special)
    passed = passed_bytes = taken = taken_bytes = 0
    for text, inside in even_sample(files, share):
        size = len(text.encode("utf-8", "surrogatepass"))
        passed, passed_bytes = passed + 1, passed_bytes + size
        if inside:
            taken, taken_bytes = taken + 1, taken_bytes + size
            for token in kept_whole:
                text = text.replace(token, " ")
            table.add(split_words(text, config.split))
        tick(passed_bytes)
    if not table.counts:
        raise DunwuError("the files hold no text", "give files with text")
    return table, {
        "sample_bytes": config.sample_bytes,
        "bytes_seen": passed_bytes,
        "bytes_sampled": taken_bytes,
        "pieces_seen": passed,
        "pieces_sampled": taken,
        "table_words": config.table_words,
        "words": len(table.counts),
        "words_thinned": table.thinned,
        "thinned_below": table.threshold if table.thinned else 0,
    }
