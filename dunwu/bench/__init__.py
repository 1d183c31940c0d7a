"""Benchmarks: rates of this machine's limits, of our parts, and of peers where they are installed, in one run.

A comparison runs ours and the peer by turns, in changing order, and gives the median of the pairs' ratios: what else the
machine does meanwhile hits both. Nothing here is a test; the recorded figures are in docs/results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dunwu.types import UsageError

INSTALL = "pip install 'dunwu[bench]'"
"""What brings the peers."""


@dataclass(frozen=True)
class BenchConfig:
    """How a benchmark runs."""

    pairs: int = 5
    """Turns of ours and the peer's; the ratio shown is their median."""
    quick: bool = False
    """Tiny sizes: shows that everything works, measures nothing."""
    peers: bool = True
    """Measure the peers that are installed."""
    seed: int = 0
    """Seed of weights, prompts and sampling."""
    device: str = "cpu"
    """Where models are computed: cpu, cuda or mps."""
    sizes: tuple[str, ...] = ()
    """Presets to measure instead of the usual ones (train); the first of them (rollout, grpo)."""


BENCHMARKS: dict[str, str] = {
    "rollout": "tokens/s of sampling; peers: transformers generate, llama.cpp's server",
    "train": "tokens/s and share of the GEMM limit of pretraining, SFT and the GRPO update; peer: transformers' Trainer",
    "grpo": "a whole GRPO step of 512 samples, and how its cost grows; peer: TRL's GRPOTrainer",
    "architectures": "tokens/s of training and sampling, dense, MLA, experts, V3's: the same weights a token",
    "control": "steps/s of PPO on CartPole and Pendulum, and the return reached; peer: Stable-Baselines3",
    "data": "web pages to records: MinHash, filters, extraction, the whole pipeline; peer: datatrove",
    "verify": "lines/s of the verifiers",
    "tokenize": "MB/s of encoding, and lines/s of decoding",
    "tokenizer": "seconds and memory of training a tokenizer; MB/s of encoding; peers: tokenizers, tiktoken",
    "world": "pages/s and MB/s of the generated web",
}
"""Name → what it measures."""


def run_benchmark(name: str, config: BenchConfig) -> dict[str, Any]:
    """The result of one benchmark: `name`, `limits`, `machine`, `settings`, `rows`, and `missing` peers with the reason.

    Raises:
        UsageError: no such benchmark, or no pairs.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"no benchmark {name!r}", "choose from " + ", ".join(BENCHMARKS))
    if config.pairs < 1:
        raise UsageError(f"--pairs {config.pairs} compares nothing", "take at least one, e.g. 5")
    module = {"verify": "small", "tokenize": "small", "world": "small"}.get(name, name)
    run: Callable[[BenchConfig], dict[str, Any]] = getattr(import_module(f"dunwu.bench.{module}"), f"bench_{name}")
    from dunwu import machine
    from dunwu.bench.limits import limits
    from dunwu.model.runtime import prepare_torch

    prepare_torch()  # as every run does; the peers, in the same process, have it too

    return {
        "name": name,
        "machine": machine.describe(),
        "limits": limits(config.quick, config.device),
        "settings": {"pairs": config.pairs, "seed": config.seed, "device": config.device},
        **run(config),
    }
