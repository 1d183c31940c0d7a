"""Training a tokenizer on files of growing size, and encoding on one core: ours, tokenizers, tiktoken."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dunwu.bench import INSTALL, BenchConfig
from dunwu.bench.pairs import compare, rate
from dunwu.data.encoding import fast_encoder, is_fast
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.recipes.r1_presets import WIDE
from dunwu.types import DunwuError
from dunwu.world.web import pages

VOCAB = 32_768
WORDS, HAN = 400_000, 6_000
"""Distinct words and characters the made text draws from, by Zipf's law."""
PAGE = 3_000
"""Bytes of a made page, about."""


def bench_tokenizer(config: BenchConfig) -> dict[str, Any]:
    """MB/s of training (seconds and peak memory beside it) and of encoding pages one by one."""
    sizes = (0.2, 0.4) if config.quick else (10, 100)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = [_train(folder, size, 600 if config.quick else VOCAB, config.seed) for size in sizes]
        trained = load_tokenizer(folder / f"tokenizer-{sizes[-1]}")
        encoded, missing = _encode(trained, 0.2 if config.quick else 4, config)
    return {"unit": "MB/s", "rows": rows + encoded, "missing": missing, "versions": {}}


def _train(folder: Path, megabytes: float, vocab_size: int, seed: int) -> dict[str, Any]:
    """One training in a process of its own, for its peak memory; one run, not `pairs`, as it is long."""
    file, out = folder / f"{megabytes}.txt", folder / f"tokenizer-{megabytes}"
    with file.open("w", encoding="utf-8") as target:
        target.writelines(made_pages(megabytes * 1e6, seed))
    words = ["tokenizer", "train", str(file), "--vocab-size", str(vocab_size), "--out", str(out), "--json"]
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "dunwu", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if child.returncode:
        raise DunwuError(f"training ended with {child.returncode}", f"try dunwu {' '.join(words)}")
    size = file.stat().st_size / 1e6
    file.unlink()
    return {
        "case": f"train, {megabytes:g} MB, {vocab_size:,} tokens",
        "peer_name": None,
        "ours": round(size / seconds, 3),
        "seconds": round(seconds, 1),
        "peak_mb": round(usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)),
    }


def _encode(tokenizer: Tokenizer, megabytes: float, config: BenchConfig) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows for both languages against tokenizers, and against tiktoken alone where it is installed."""
    rows, fast = [], is_fast(tokenizer)
    missing = {} if fast or not config.peers else {"tiktoken": INSTALL}
    for name, part in (("English", 0), ("Chinese", 1)):
        texts = list(
            itertools.islice(made_pages(megabytes * 1e6, config.seed + 1, (part,)), int(megabytes * 1e6 / PAGE))
        )
        size = sum(len(text.encode()) for text in texts) / 1e6
        peers: dict[str, Callable[[str], list[int]] | None] = {"tokenizers": tokenizer.encode} if config.peers else {}
        if config.peers and fast:
            peers["tiktoken"] = _tiktoken(tokenizer)
        ours = _work(fast_encoder(tokenizer), texts, size)
        for peer, encode in (peers or {"": None}).items():
            figures = compare(ours, _work(encode, texts, size) if encode else None, config.pairs)
            rows.append({"case": f"encode {name}", "peer_name": peer or None} | figures)
    return rows, missing


def _work(encode: Callable[[str], object], texts: list[str], megabytes: float) -> Callable[[], float]:
    def once() -> float:
        for text in texts:
            encode(text)
        return megabytes

    return lambda: rate(once)


def _tiktoken(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """tiktoken by itself, with the same vocabulary: no normal form, no added tokens, no check."""
    import json

    import tiktoken

    from dunwu.data.bpe import PATTERNS
    from dunwu.data.encoding import ranks_of

    ranks = ranks_of(json.loads(tokenizer.backend.to_str()))
    encode: Callable[[str], list[int]] = tiktoken.Encoding(
        "peer", pat_str=PATTERNS["qwen2"], mergeable_ranks=ranks or {}, special_tokens={}
    ).encode_ordinary
    return encode


def made_pages(size: float, seed: int, parts: tuple[int, ...] = (0, 1, 2)) -> Iterator[str]:
    """Pages of made words (0), of made Chinese (1) and of the world (2) by turns, `size` bytes in all.

    Words and characters follow Zipf's law, so the number of distinct ones grows with the text as in real text; the
    world alone has too few.
    """
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ost", "ing")]
    words = ["".join(syllables[k] for k in row[: 1 + n % 4]) for n, row in enumerate(rng.integers(0, 160, (WORDS, 4)))]
    letters = [chr(0x4E00 + int(k)) for k in rng.permutation(HAN)]
    world = itertools.cycle(page.text for page in itertools.islice(pages(WIDE, seed), 2_000))
    done = 0
    for turn in itertools.cycle(parts):
        if done >= size:
            return
        if turn == 0:
            text = " ".join(words[k] for k in _zipf(rng, WORDS, PAGE // 7)) + ".\n"
        elif turn == 1:
            drawn = [letters[k] for k in _zipf(rng, HAN, PAGE // 3)]
            text = "，".join("".join(drawn[n : n + 8]) for n in range(0, len(drawn), 8)) + "。\n"
        else:
            text = next(world) + "\n"
        done += len(text.encode())
        yield text


def _zipf(rng: np.random.Generator, most: int, count: int) -> list[int]:
    """Ranks below `most` with chances about 1 / rank."""
    ranks: list[int] = np.minimum(np.exp(rng.random(count) * np.log(most)).astype(np.int64) - 1, most - 1).tolist()
    return ranks
