"""A whole GRPO step: sampling, scoring, advantages, update."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dunwu.bench import INSTALL, BenchConfig
from dunwu.bench.pairs import QUIET, compare, rate, seconds_of_steps
from dunwu.bench.subject import make_model, make_prompts, make_tokenizer
from dunwu.data.tokenizer import Tokenizer
from dunwu.machine import library_version
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.train.config import GrpoConfig
from dunwu.train.grpo import grpo
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.types import Problem, Verdict

GROUP, PROMPTS, LENGTH, PROMPT = 16, 32, 128, 40
MEAN = 49
"""Tokens of a completion on average, roughly; the longest has `LENGTH`."""


class Parity:
    """Texts of one length: an even number of characters is right. Costs nothing, and every group has variance."""

    name = "parity"

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = prompts

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, f"{index}", {}, self.prompts[index % len(self.prompts)])

    def score(self, problem: Problem, completion: str) -> Verdict:
        right = float(len(completion) % 2 == 0)
        return Verdict({"accuracy": right}, right)

    def gold(self, problem: Problem) -> str:
        return ""

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        return answer


def bench_grpo(config: BenchConfig) -> dict[str, Any]:
    """Steps/s of ours and TRL's, and the exponents with which the step's time grows."""
    size, problems, group, length = (
        ("tiny", 2, 4, 12) if config.quick else ((*config.sizes, "0.8M")[0], PROMPTS, GROUP, LENGTH)
    )
    tokenizer = make_tokenizer()
    missing: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    prompts = [tokenizer.decode(ids) for ids in make_prompts(tokenizer, problems, PROMPT, config.seed)]

    lengths: dict[str, list[float]] = {"ours": [], "peer": []}

    def ours(size: str, problems: int, group: int, length: int) -> Callable[[], float]:
        model = make_model(size, tokenizer, config.seed, max(4, length * MEAN // LENGTH), config.device)
        return _ours(model, tokenizer, prompts, problems, group, length, lengths["ours"])

    with tempfile.TemporaryDirectory() as folder:
        peer = None
        if config.peers and config.device == "cpu":
            model = make_model(size, tokenizer, config.seed, max(4, length * MEAN // LENGTH), config.device)
            peer = _trl(
                model, tokenizer, prompts, problems, group, length, Path(folder), missing, lengths["peer"], config.seed
            )
        row: dict[str, Any] = {"case": f"{problems * group} samples, at most {length} tokens", "size": size}
        figures = compare(ours(size, problems, group, length), peer, config.pairs)
        row |= {f"mean_tokens_{who}": round(fmean(found), 1) for who, found in lengths.items() if found}
        rows.append(row | {"peer_name": "TRL GRPOTrainer" if peer else None} | figures)
    growth = {}
    if not config.quick:
        growth = {
            "group size": _growth({g: ours(size, problems, g, length) for g in (4, 8, 16, 32)}, config.pairs),
            "length": _growth({n: ours(size, problems, group, n) for n in (64, 128, 256)}, config.pairs),
            "model size": _growth(
                {_millions(s): ours(s, problems, group, length) for s in ("0.8M", "2M", "4M", "12M")}, 3
            ),
        }
    return {
        "unit": "steps/s",
        "rows": rows,
        "growth": growth,
        "missing": missing,
        "versions": {name: library_version(name) for name in ("torch", "trl", "transformers")},
    }


def _millions(size: str) -> float:
    return float(size.rstrip("M"))


def _growth(cases: Mapping[float, Callable[[], float]], times: int) -> dict[str, Any]:
    """Seconds per step at each value, and the exponent b of seconds = a · value^b, fitted to their logarithms."""
    seconds = {value: 1 / compare(measure, None, times)["ours"] for value, measure in cases.items()}
    xs, ys = ([math.log(number) for number in numbers] for numbers in (seconds.keys(), seconds.values()))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)
    return {"seconds": {str(value): round(s, 4) for value, s in seconds.items()}, "exponent": round(slope, 2)}


def _ours(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    problems: int,
    group: int,
    length: int,
    lengths: list[float],
) -> Callable[[], float]:
    learner = Learner(model, MasterAdamW(model))
    engine = Engine(model, tokenizer, lambda: learner.optimizer.version)
    settings = GrpoConfig(steps=1_000_000, problems=problems, group_size=group, max_tokens=length, lr=1e-9, warmup=0)
    steps = grpo(learner, engine, tokenizer, Parity(prompts), settings, seed=0)

    def step() -> float:
        lengths.append(next(steps).metrics["grpo/length"])
        return 1.0

    return lambda: rate(step, model.head_weight.device.type)


def _trl(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    problems: int,
    group: int,
    length: int,
    folder: Path,
    missing: dict[str, str],
    lengths: list[float],
    seed: int,
) -> Callable[[], float] | None:
    try:
        import transformers
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        missing["TRL"] = f"{error}; {INSTALL}"
        return None
    transformers.logging.set_verbosity_error()
    save_model(model, folder / "model", tokenizer.end_id, tokenizer.stop_ids)
    tokenizer.save(folder / "model")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=model.head_weight.dtype)
    reader = transformers.AutoTokenizer.from_pretrained(folder / "model")
    reader.eos_token = tokenizer.backend.id_to_token(tokenizer.end_id)
    reader.pad_token = reader.eos_token
    steps = 3

    def reward(completions: Sequence[str], **named: Any) -> list[float]:
        return [float(len(text) % 2 == 0) for text in completions]

    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=problems * group,
        num_generations=group,
        max_completion_length=length,
        max_steps=steps,
        learning_rate=1e-9,
        seed=seed,
        beta=0.0,
        bf16=False,  # the weights are bfloat16 already; autocast would only add casts
        gradient_checkpointing=False,
        **QUIET,
    )

    def train() -> float:
        data = Dataset.from_list([{"prompt": prompt} for prompt in prompts[:problems]] * steps)
        trainer = GRPOTrainer(network, reward_funcs=reward, args=settings, train_dataset=data, processing_class=reader)
        seconds = seconds_of_steps(trainer)
        lengths.append(trainer.state.log_history[-1]["completions/mean_length"])
        return (steps - 1) / seconds

    return train
