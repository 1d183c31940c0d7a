"""Training steps: tokens per second, and the share of what the machine's matrix products could do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from dunwu.bench import INSTALL, BenchConfig
from dunwu.bench.limits import gemm_gflops
from dunwu.bench.pairs import QUIET, compare, rate, seconds_of_steps
from dunwu.bench.subject import make_model, make_tokenizer
from dunwu.data.chat import Encoded
from dunwu.machine import library_version
from dunwu.model.config import ModelConfig
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.train.config import GrpoConfig, SftConfig
from dunwu.train.grpo import update
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.pretrain import next_token_loss
from dunwu.train.rows import Row
from dunwu.train.sft import micro_batches

CONTEXT = 256
SHORTEST, LONGEST = 40, 120
"""Tokens of an SFT example."""
PROMPT, COMPLETION, GROUP = 40, 60, 16
"""Tokens of a prompt and of a completion in the GRPO update, and completions of a prompt."""
SIZES = {"0.8M": 64, "4M": 32, "12M": 16, "50M": 8}
"""Preset → rows of `CONTEXT` tokens in an update."""


@dataclass(frozen=True)
class Work:
    """A kind of training step."""

    measure: Callable[[], float]
    """Takes a step; tokens/s."""
    context: float = CONTEXT
    """Mean length of a text."""
    computed: float = 1.0
    """Share of the tokens that goes through the model: a prompt counts with each completion, and is computed once."""


def training_flops(shape: ModelConfig, context: float) -> float:
    """Floating-point operations of forward and backward for one token (Kaplan et al. 2020, 2.1): six for each weight of
    a matrix product, the output matrix among them, and causal attention over half the context."""
    head = shape.vocab_size * shape.hidden_size
    inside = shape.num_parameters - head * (1 if shape.tie_word_embeddings else 2)
    return 6 * (inside + head) + 6 * shape.num_layers * shape.hidden_size * context


def bench_train(config: BenchConfig) -> dict[str, Any]:
    """Rows `{work, size, tokens/s, share of the GEMM limit}`, and against the Trainer at the smallest size and 12M."""
    sizes = {"tiny": 2} if config.quick else {size: SIZES.get(size, 8) for size in config.sizes or SIZES}
    tokenizer = make_tokenizer()
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for size, batch in sizes.items():
        model = make_model(size, tokenizer, config.seed, None, config.device)
        works = {
            "pretraining": Work(_pretraining(model, batch)),
            "SFT": Work(_sft(model, batch), (SHORTEST + LONGEST) / 2),
            "GRPO update": Work(
                _grpo_update(model, batch), PROMPT + COMPLETION, (PROMPT / GROUP + COMPLETION) / (PROMPT + COMPLETION)
            ),
        }
        for name, work in works.items():
            limit = gemm_gflops(model.head_weight.dtype, config.quick, config.device)
            figures = compare(work.measure, None, config.pairs)
            share = figures["ours"] * work.computed * training_flops(model.config, work.context) / (limit * 1e9)
            row = {"work": name, "size": size, "tokens": batch * CONTEXT, "peer_name": None}
            rows.append(row | figures | {"gemm_share": round(share, 3), "gemm_gflops": limit})
        if config.peers and config.device == "cpu" and size in ("tiny", "0.8M", "12M"):
            rows += _against_trainer(model, size, batch, config, missing)
    return {
        "unit": "tokens/s",
        "rows": rows,
        "missing": missing,
        "versions": {name: library_version(name) for name in ("torch", "transformers", "accelerate")},
        "dtype": str(model.head_weight.dtype),
    }


def _ids(model: Transformer, batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, model.config.vocab_size, (batch, CONTEXT + 1), generator=generator)
    return ids.to(model.head_weight.device)


def _pretraining(model: Transformer, batch: int) -> Callable[[], float]:
    optimizer, calls = MasterAdamW(model), [0]

    def step() -> float:
        calls[0] += 1
        model.train()
        torch.autograd.backward(next_token_loss(model, _ids(model, batch, calls[0])))
        optimizer.step(1e-4, 1.0)
        return float(batch * CONTEXT)

    return lambda: rate(step, model.head_weight.device.type)


def _sft(model: Transformer, batch: int) -> Callable[[], float]:
    """Packed examples; the first third of each has no loss."""
    optimizer, rng = MasterAdamW(model), Random(0)
    settings = SftConfig(context=CONTEXT, micro_tokens=batch * CONTEXT)

    def step() -> float:
        examples, tokens = [], 0
        while tokens < batch * CONTEXT - LONGEST:
            length = rng.randint(SHORTEST, LONGEST)
            ids = [rng.randrange(300, model.config.vocab_size) for _ in range(length)]
            examples.append(Encoded(tuple(ids), tuple(int(n > length // 3) for n in range(length))))
            tokens += length
        model.train()
        for micro in micro_batches(examples, settings, model.head_weight.device):
            torch.autograd.backward(micro.loss(model))
        optimizer.step(1e-4, 1.0)
        return float(tokens)

    return lambda: rate(step, model.head_weight.device.type)


def _grpo_update(model: Transformer, batch: int) -> Callable[[], float]:
    """Tokens of prompt and completion are counted, for each completion."""
    learner, rng = Learner(model, MasterAdamW(model)), Random(0)
    learner.optimizer.version = 1  # no on-policy check: the sampler's logprobs are made up
    settings = GrpoConfig(micro_tokens=batch * CONTEXT)

    def step() -> float:
        rows = []
        for group in range(max(1, batch * CONTEXT // (GROUP * (PROMPT + COMPLETION)))):
            prompt = [rng.randrange(300, model.config.vocab_size) for _ in range(PROMPT)]
            for _ in range(GROUP):
                ids = [*prompt, *(rng.randrange(300, model.config.vocab_size) for _ in range(COMPLETION))]
                rows.append(Row(tuple(ids), PROMPT, (-6.0,) * COMPLETION, rng.choice((-1.0, 1.0)), group))
        update(learner, rows, settings, 1e-5, 0, 0, None)
        return float(sum(len(row.ids) for row in rows))

    return lambda: rate(step, model.head_weight.device.type)


def _against_trainer(
    model: Transformer, size: str, batch: int, config: BenchConfig, missing: dict[str, str]
) -> list[dict[str, Any]]:
    try:
        import transformers
    except ImportError:
        missing["transformers Trainer"] = f"not installed; {INSTALL}"
        return []
    try:
        import accelerate  # noqa: F401
    except ImportError:
        missing["transformers Trainer"] = f"accelerate is not installed; {INSTALL}"
        return []
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model", 0)
        steps = 2 if config.quick else 6
        network = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype=model.head_weight.dtype
        )
        data = [
            {"input_ids": row, "labels": row} for n in range(steps) for row in _ids(model, batch, n)[:, :-1].tolist()
        ]
        settings = transformers.TrainingArguments(
            output_dir=f"{folder}/trainer",
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=1e-4,
            **QUIET,
        )

        def train() -> float:
            trainer = transformers.Trainer(network, settings, transformers.default_data_collator, data)
            return (steps - 1) * batch * CONTEXT / seconds_of_steps(trainer)

        figures = compare(_pretraining(model, batch), train, config.pairs)
    row = {"work": "pretraining", "size": size, "tokens": batch * CONTEXT, "peer_name": "transformers Trainer"}
    return [row | figures]
