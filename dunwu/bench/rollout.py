"""Sampling: tokens per second by batch, shared prompts and ragged lengths."""

from __future__ import annotations

import copy
import itertools
import statistics
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
from dunwu.model.gguf import Kind, write_gguf
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
            ours = _ours(subject, tokenizer, prompts, batch, length, endless=subject is model)
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
    model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], batch: int, length: int, endless: bool
) -> Callable[[], float]:
    """`endless`: no token ends a completion, so all have `length` tokens."""
    if endless:
        tokenizer = copy.copy(tokenizer)
        tokenizer.stop_ids = ()
    engine = Engine(model, tokenizer)
    calls = [0]

    def draw() -> float:
        calls[0] += 1
        each = batch // len(prompts)
        seeds = [[calls[0] * 1_000_003 + p * each + g for g in range(each)] for p in range(len(prompts))]
        drawn = engine.sample(prompts, seeds, SamplingParams(max_tokens=length))
        return float(sum(len(completion.token_ids) for group in drawn for completion in group))

    return lambda: rate(draw, model.head_weight.device.type)


def _growth(
    model: Transformer, tokenizer: Tokenizer, size: str, length: int, config: BenchConfig
) -> list[dict[str, Any]]:
    """The rate at four times the length, beside that at the length: 1 if cost grew linearly."""
    batch = 4 if config.quick else 128
    prompts = make_prompts(tokenizer, batch, PROMPT, config.seed)
    long = _ours(model, tokenizer, prompts, batch, 4 * length, endless=True)
    short = _ours(model, tokenizer, prompts, batch, length, endless=True)
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
    peer.generation_config.eos_token_id = None  # all completions have the same length, at no cost

    def generate(prompts: list[list[int]], batch: int, length: int) -> Callable[[], float]:
        ids = torch.tensor(prompts, device=model.head_weight.device).repeat_interleave(batch // len(prompts), 0)

        def draw() -> float:
            torch.manual_seed(0)
            with torch.inference_mode():
                out = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=length,
                    pad_token_id=0,
                )
            return float(batch * (out.shape[1] - ids.shape[1]))

        return lambda: rate(draw, model.head_weight.device.type)

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
    columns, all_threads = PROMPT + length + 8, torch.get_num_threads()
    save_model(model, folder / "as-stored", tokenizer.end_id, tokenizer.stop_ids)
    tokenizer.save(folder / "as-stored")
    kinds: dict[str, Kind] = {"float32": "f32", "bfloat16": "bf16"}
    files = {name: folder / f"model-{name}.gguf" for name in kinds}
    for name, file in files.items():
        write_gguf(folder / "as-stored", file, kinds[name])
    for batch in (1, 4) if config.quick else (1, 16, 64):
        prompts = make_prompts(tokenizer, batch, PROMPT, config.seed)

        def fitness(way: tuple[str, tuple[int, int]], prompts: list[list[int]] = prompts) -> float:
            with LlamaCpp(files[way[0]], len(prompts), columns, way[1]) as peer:
                peer.generate(prompts, length)
                return statistics.median(rate(lambda: peer.generate(prompts, length)) for _ in range(3))

        # Which dtype and how many threads are fastest for it depends on the batch: it gets the best of all.
        ways = itertools.product(files, {(1, 1), (1, all_threads), (all_threads, all_threads)})
        kind, threads = max(ways, key=fitness)
        with LlamaCpp(files[kind], batch, columns, threads) as peer:
            compared = compare(
                _ours(model, tokenizer, prompts, batch, length, endless=True),
                lambda peer=peer, prompts=prompts: rate(lambda: peer.generate(prompts, length)),  # type: ignore[misc]
                config.pairs,
            )
        row = {"case": "fixed length", "size": size, "batch": batch, "tokens": length}
        rows.append(row | {"peer_name": f"llama.cpp's server, {kind}, threads {threads}"} | compared)
    return rows
