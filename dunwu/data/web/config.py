"""The settings of `dunwu data build`. Everything here changes which records come out; workers and executor do not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from dunwu.data.web.minhash import MinhashConfig
from dunwu.types import UsageError

Executor = Literal["local", "ray", "slurm"]
_LABEL = re.compile(r"[a-z]{2,3}|zh-Han[st]|mixed")


@dataclass(frozen=True)
class BuildConfig:
    """From crawl files to FineWeb's records. The defaults are FineWeb's recipe, in English and Chinese."""

    dump: str = ""
    """Name of the crawl, for all pages; empty: as files and rows say. Duplicates are looked for within a dump."""
    extraction: Literal["quality", "fast"] = "quality"
    """HTML to text by trafilatura (FineWeb's choice) or by resiliparse (DCLM's, some nine times faster)."""
    isolate: bool = True
    """Extract in processes of their own, limited in time and memory; switch off only for pages you made yourself."""
    page_seconds: float = 10.0
    """Wall-clock limit of one page's extraction."""
    page_megabytes: int = 1536
    """Memory limit of an extraction process."""
    url_filter: bool = True
    """Drop pages by their address: block lists, words, tricks."""
    blocked: tuple[str, ...] = ()
    """Files of further domains to drop, one a line."""
    languages: tuple[str, ...] = ("en", "zh-Hans", "zh-Hant", "mixed")
    """Languages that stay; empty: all."""
    language_score: float = 0.65
    """Least confidence in the language (FineWeb's threshold for English)."""
    quality: Literal["fineweb", "world", "none"] = "fineweb"
    """Limits of the quality filters: as published, for the short pages of the generated world, or none."""
    pii: bool = True
    """Replace e-mail addresses, public IP addresses, telephone, identity and bank card numbers."""
    filter: str = ""
    """FILE.py with your own `keep(text, record)`: True keeps, False or a reason (text) drops."""
    exact_duplicates: bool = True
    """Drop pages whose text another page of the dump has already."""
    near_duplicates: bool = True
    """Drop all but the first of pages that MinHash finds alike."""
    minhash: MinhashConfig = field(default_factory=MinhashConfig)
    """FineWeb: 14 buckets of 8 hashes over 5-grams."""
    decontaminate: tuple[str, ...] = ()
    """Files of evaluation problems; a page that shares `decontaminate_ngram` words with one is dropped."""
    decontaminate_ngram: int = 10
    """Words in a row (characters in Chinese) that count as contamination; R1's supplement 1.2 has 10."""
    tokenizer: str = "gpt2"
    """Counts the tokens of `token_count`: `gpt2` as FineWeb, a tokenizer folder, or empty for no count."""
    shards: bool = False
    """Write the tokens too, as shuffled shards ready for pretraining."""
    list_dropped: bool = False
    """Write the id, step and reason of every dropped page to `dropped/`; counts and samples are kept anyway."""
    seed: int = 0
    """Seed of the shards' order."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work."""
        if self.page_seconds <= 0 or self.page_megabytes < 128:
            raise UsageError(
                f"a page cannot be extracted in {self.page_seconds} s and {self.page_megabytes} MB",
                "give it time, and at least 128 MB",
            )
        for label in self.languages:
            if not _LABEL.fullmatch(label):
                raise UsageError(
                    f"{label!r} is no language label", "use en, zh-Hans, zh-Hant, zh, mixed, und, or an ISO 639-1 code"
                )
        if not 0 <= self.language_score <= 1:
            raise UsageError(f"language_score {self.language_score} is no confidence", "take one between 0 and 1")
        if self.shards and not self.tokenizer:
            raise UsageError("shards need a tokenizer", "name one, e.g. --tokenizer gpt2 or a folder")
        if self.decontaminate_ngram < 2:
            raise UsageError(f"decontaminate_ngram {self.decontaminate_ngram} would drop everything", "R1 has 10")
