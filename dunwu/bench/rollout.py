"""Sampling: tokens per second by batch, shared prompts and ragged lengths."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dunwu.bench import INSTALL, BenchConfig
from dunwu.bench.llama_cpp import LlamaCpp
from dunwu.bench.pairs import compare, rate
from dunwu.bench.subject import make_model, make_prompts, make_tokenizer
from dunwu.data.tokenizer import Tokenizer
from dunwu.machine import library_version
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.types import SamplingParams

PROMPT = 40
"""Tokens of a prompt."""


def bench_rollout(config: BenchConfig) -> dict[str, Any]:
    """Rows `{case, batch, tokens, peer, ours, peer's rate, ratio…}`, tokens/s."""
    size, length = ("tiny", 8) if config.quick else ((*config.sizes, "0.8M")[0], 128)
    batches = (1, 4) if config.quick else (1, 16, 128, 512)
    tokenizer = make_tokenizer()
    model = make_model(size, tokenizer, config.seed, None, config.device)
    ragged = make_model(size, tokenizer, config.seed, max(4, length * 3 // 8), config.device)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        generate = _transformers(model, tokenizer, Path(folder) / "model", missing) if config.peers else None
        cases = [("fixed length", model, batch, 1) for batch in batches]
        cases += [("16 samples a prompt", model, batches[-1], 16), ("ragged", ragged, batches[-1], 1)]
        for case, subject, batch, shared in cases:
            prompts = make_prompts(tokenizer, max(1, batch // shared), PROMPT, config.seed)
            ours = _ours(subject, tokenizer, prompts, batch, length)
            # Its padding and finished rows would not be the same work on ragged lengths.
            peer = generate(prompts, batch, length) if generate is not None and subject is model else None
            rows.append(
                {
                    "case": case,
                    "size": size,
                    "batch": batch,
                    "tokens": length,
                    "peer_name": "transformers" if peer else None,
                }
                | compare(ours, peer, config.pairs)
            )
        if config.peers and config.device == "cpu":
            rows += _llama_rows(model, tokenizer, Path(folder), size, length, config, missing)
        rows += _growth(model, tokenizer, size, length, config)
    versions = {name: library_version(name) for name in ("torch", "transformers", "xllamacpp")}
    return {
        "unit": "tokens/s",
        "rows": rows,
        "missing": missing,
        "versions": versions,
        "dtype": str(model.head_weight.dtype),
    }


def _ours(
    model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], batch: int, length: int
) -> Callable[[], float]:
    engine = Engine(model, tokenizer)
    calls = [0]

    def draw() -> float:
        calls[0] += 1
        each = batch // len(prompts)
        seeds = [[calls[0] * 1_000_003 + p * each + g for g in range(each)] for p in range(len(prompts))]
        drawn = engine.sample(prompts, seeds, SamplingParams(max_tokens=length))
        return float(sum(len(completion.token_ids) for group in drawn for completion in group))

    return lambda: rate(draw)


def _growth(
    model: Transformer, tokenizer: Tokenizer, size: str, length: int, config: BenchConfig
) -> list[dict[str, Any]]:
    """The rate at four times the length, beside that at the length: 1 if cost grew linearly."""
    batch = 4 if config.quick else 128
    prompts = make_prompts(tokenizer, batch, PROMPT, config.seed)
    long = _ours(model, tokenizer, prompts, batch, 4 * length)
    short = _ours(model, tokenizer, prompts, batch, length)
    row = {"case": f"{4 * length} tokens beside {length}", "size": size, "batch": batch, "tokens": 4 * length}
    return [row | {"peer_name": f"ours at {length} tokens"} | compare(long, short, config.pairs)]


Generate = Callable[[list[list[int]], int, int], Callable[[], float]]


def _transformers(model: Transformer, tokenizer: Tokenizer, folder: Path, missing: dict[str, str]) -> Generate | None:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        missing["transformers"] = f"not installed; {INSTALL}"
        return None
    save_model(model, folder, tokenizer.end_id, tokenizer.stop_ids)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=model.head_weight.dtype).eval()
    peer = peer.to(model.head_weight.device)

    def generate(prompts: list[list[int]], batch: int, length: int) -> Callable[[], float]:
        ids = torch.tensor(prompts, device=model.head_weight.device).repeat_interleave(batch // len(prompts), 0)

        def draw() -> float:
            with torch.inference_mode():
                out = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    min_new_tokens=length,
                    max_new_tokens=length,
                    pad_token_id=0,
                )
            return float(batch * (out.shape[1] - ids.shape[1]))

        return lambda: rate(draw)

    return generate


def _llama_rows(
    model: Transformer,
    tokenizer: Tokenizer,
    folder: Path,
    size: str,
    length: int,
    config: BenchConfig,
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    if not (find_spec("xllamacpp") and find_spec("gguf")):
        missing["llama.cpp"] = f"xllamacpp or gguf is not installed; {INSTALL}"
        return []
    rows = []
    file, columns = folder / "model.gguf", PROMPT + length + 8
    for batch in (1, 4) if config.quick else (1, 16, 64):
        prompts = make_prompts(tokenizer, batch, PROMPT, config.seed)

        def fitness(threads: int, batch: int = batch, prompts: list[list[int]] = prompts) -> float:
            with LlamaCpp(model, tokenizer, file, batch, columns, threads) as peer:
                peer.generate(prompts, length)
                return rate(lambda: peer.generate(prompts, length))

        # With few sequences its threads wait for each other more than they compute: it gets the number it is fastest with.
        threads = max({1, torch.get_num_threads()}, key=fitness)
        with LlamaCpp(model, tokenizer, file, batch, columns, threads) as peer:
            compared = compare(
                _ours(model, tokenizer, prompts, batch, length),
                lambda peer=peer, prompts=prompts: rate(lambda: peer.generate(prompts, length)),  # type: ignore[misc]
                config.pairs,
            )
        row = {"case": "fixed length", "size": size, "batch": batch, "tokens": length}
        rows.append(row | {"peer_name": f"llama.cpp's server, threads: {threads}"} | compared)
    return rows
