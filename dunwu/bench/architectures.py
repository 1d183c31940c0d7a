"""What a token costs under each architecture of one size, beside the dense one: training and sampling.

All pass as many weights a token (`model_preset`), so the differences are those of the parts: attention through latents, tokens
sorted by expert, prediction ahead. Training is by the C kernels where the machine has them; sampling of all but dense models
is plain torch, so dense is measured both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from dunwu.bench import BenchConfig
from dunwu.bench.pairs import compare, rate
from dunwu.bench.subject import make_prompts, make_tokenizer, working_dtype
from dunwu.data.tokenizer import Tokenizer
from dunwu.machine import library_version
from dunwu.model.config import ARCHITECTURES, model_preset
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.train.experts import balance_experts
from dunwu.train.optim import MasterAdamW
from dunwu.train.pretrain import pretraining_loss
from dunwu.types import SamplingParams, derive_seed

ROWS, CONTEXT, PROMPT, SAMPLES, LENGTH = 32, 256, 60, 512, 100


def bench_architectures(config: BenchConfig) -> dict[str, Any]:
    """Rows `{case, work, parameters, active parameters, tokens/s}`; the peer is dense, by the same path."""
    size = "tiny" if config.quick else (*config.sizes, "0.8M")[0]
    tokenizer = make_tokenizer()
    rows: list[dict[str, Any]] = []
    for work, make in (("pretraining", _pretraining), ("sampling", _sampling)):
        dense = make(_model("dense", size, tokenizer, config), tokenizer, config)
        for arch in ARCHITECTURES:
            model = _model(arch, size, tokenizer, config)
            own = make(model, tokenizer, config)
            figures = compare(own, None if arch == "dense" else dense, config.pairs)
            shape = model.config
            counts = {"parameters": shape.num_parameters, "active": shape.active_parameters}
            name = None if arch == "dense" else "dense, same path"
            rows.append({"case": arch, "work": work, "size": size, **counts, "peer_name": name} | figures)
    kernels = _sampling(_model("dense", size, tokenizer, config), tokenizer, config, native=None)
    rows.append(
        {"case": "dense", "work": "sampling, C kernels", "size": size, "peer_name": None}
        | compare(kernels, None, config.pairs)
    )
    versions = {"torch": library_version("torch")}
    return {
        "unit": "tokens/s",
        "rows": rows,
        "missing": {},
        "versions": versions,
        "dtype": str(working_dtype(config.device)),
    }


def _model(arch: str, size: str, tokenizer: Tokenizer, config: BenchConfig) -> Transformer:
    model = Transformer(model_preset(size, tokenizer.vocab_size, arch))
    model.init_weights(torch.Generator().manual_seed(derive_seed("bench", config.seed)))
    return model.to(device=config.device, dtype=working_dtype(config.device))


def _pretraining(model: Transformer, tokenizer: Tokenizer, config: BenchConfig) -> Callable[[], float]:
    """Whole updates, the balance of experts included."""
    rows, context = (2, 16) if config.quick else (ROWS, CONTEXT)
    optimizer = MasterAdamW(model)
    dice = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(0, tokenizer.vocab_size, (rows, context + 1), generator=dice).to(config.device)

    def update() -> float:
        found = pretraining_loss(model, ids, 0.3, 1e-4)
        torch.autograd.backward(found.total)
        optimizer.step(1e-5, 1.0)
        if found.routing:
            balance_experts(model, found.routing, 0.01)
        return float(rows * context)

    return lambda: rate(update, config.device)


def _sampling(
    model: Transformer, tokenizer: Tokenizer, config: BenchConfig, native: bool | None = False
) -> Callable[[], float]:
    """Completions of one length, 16 to a prompt, as in a GRPO step."""
    samples, length = (8, 4) if config.quick else (SAMPLES, LENGTH)
    endless = copy.copy(tokenizer)
    endless.stop_ids = ()
    engine = Engine(model, endless, native=native)
    prompts = make_prompts(tokenizer, max(1, samples // 16), PROMPT, config.seed)
    seeds = [
        [derive_seed("bench", config.seed, p, g) for g in range(samples // len(prompts))] for p in range(len(prompts))
    ]

    def draw() -> float:
        engine.sample(prompts, seeds, SamplingParams(max_tokens=length))
        return float(samples * length)

    return lambda: rate(draw, config.device)
