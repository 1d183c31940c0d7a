"""The stages of R1-Zero, each one call with its inputs named; the story itself is r1_zero.py.

A stage builds into a work folder that survives a kill. Long stages checkpoint there, after
logging the step, and continue from the checkpoint; short ones start over.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from dunwu.data.shards import PackedShards, ShardWriter
from dunwu.data.tokenizer import Tokenizer, load_tokenizer, train_from_texts
from dunwu.data.web.records import read_records
from dunwu.log import Progress, Run
from dunwu.model.hf import save_model
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.configs import R1ZeroConfig
from dunwu.recipes.pretraining import HeldOut, base_stage
from dunwu.recipes.reinforce import held_out_point, open_learner, reinforce, save_learner
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks.countdown import Countdown
from dunwu.tasks.files import FileCountdown, load_problems
from dunwu.tasks.splits import SPLITS
from dunwu.tasks.templates import load_template
from dunwu.train.config import PretrainConfig
from dunwu.train.learner import Learner
from dunwu.train.pretrain import held_out_loss
from dunwu.types import DunwuError, SamplingParams, Task
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

BUILD = "build"
"""Sub-folder of a stage's artifact that `dunwu data build` made."""
VALID_TOKENS = 60_000
"""Held-out tokens per kind of page."""


def make_task(config: R1ZeroConfig) -> Task:
    """The problems of a run: generated, or from the user's file."""
    options = config.task
    if config.prompt_template:
        options = replace(options, prompt_template=load_template(config.prompt_template))
    if config.data:
        return FileCountdown(load_problems(config.data), options, source=config.data)
    return Countdown(options)


def check_inputs(config: R1ZeroConfig) -> None:
    """Read the user's files before anything long begins, so that their faults are told now."""
    task = make_task(config)
    for split in SPLITS if config.data else ():
        task.problem(split, 0, 0)


class PagesConfig(Protocol):
    """What the stages up to the base read of a recipe's config."""

    @property
    def model(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tokenizer_pages(self) -> int: ...
    @property
    def world(self) -> Knobs: ...
    @property
    def pretrain(self) -> PretrainConfig: ...
    @property
    def base_seed(self) -> int: ...
    @property
    def device(self) -> str: ...


def base_seed(run_seed: int, config: PagesConfig) -> int:
    """Seed of world and base."""
    return run_seed if config.base_seed < 0 else config.base_seed


def texts(config: PagesConfig, seed: int, cleaned: Artifact | None = None) -> Iterator[str]:
    """The training pages' text: the world's as they are, endless; or what the pipeline left of their crawl."""
    if cleaned is None:
        return (page.text for page in pages(config.world, seed))
    return (record["text"] for record in read_records(cleaned.path / BUILD))


def tokenizer(run: Run, config: PagesConfig, seed: int, cleaned: Artifact | None = None) -> Artifact:
    """Train the tokenizer on a stated number of pages."""

    def build(work: Path) -> dict[str, object]:
        trained = train_from_texts(islice(texts(config, seed, cleaned), config.tokenizer_pages), config.vocab_size)
        trained.save(work)
        return {"vocab_size": trained.vocab_size}

    settings = {"world": config.world, "pages": config.tokenizer_pages, "vocab_size": config.vocab_size, "seed": seed}
    return run.stage("tokenizer", build, settings, [cleaned] if cleaned else [])


def shards(run: Run, config: PagesConfig, seed: int, vocabulary: Artifact, cleaned: Artifact | None = None) -> Artifact:
    """Pages to token shards: `train`, and `valid/DOMAIN` from problems no training page shows."""
    wanted = config.pretrain.tokens

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(vocabulary.path)
        for name in ("train", "valid"):
            shutil.rmtree(work / name, ignore_errors=True)
        writer = ShardWriter(work / "train", encoder.vocab_size, encoder.end_id)
        stream = texts(config, seed, cleaned)
        # Windows leave a remainder at each shard's end; a little more than asked keeps one epoch whole.
        with Progress(wanted, "pages to tokens", "tokens") as progress:
            while writer.tokens < wanted * 1.02 + 4 * config.pretrain.context:
                batch = list(islice(stream, 2000))
                if not batch:  # a crawl ends; training then begins anew with its first pages
                    break
                writer.add(encoder.encode_batch(batch))
                progress.update(min(wanted, writer.tokens))
        index = writer.close()
        domains = _write_validation(work / "valid", config, seed, encoder)
        return {"tokens": sum(index["shards"]), "pages": index["documents"], "domains": ", ".join(domains)}

    settings = {"world": config.world, "tokens": wanted, "context": config.pretrain.context, "seed": seed}
    return run.stage("shards", build, settings, [vocabulary, *([cleaned] if cleaned else [])])


def _write_validation(folder: Path, config: PagesConfig, seed: int, encoder: Tokenizer) -> list[str]:
    goal = min(VALID_TOKENS, config.pretrain.tokens // 50)
    writers: dict[str, ShardWriter] = {}
    for page in islice(pages(config.world, seed, split="valid"), 40 * goal // 50):
        name = f"{page.domain}-{page.language}"
        if name not in writers:
            writers[name] = ShardWriter(folder / name, encoder.vocab_size, encoder.end_id)
        if writers[name].tokens < goal:
            writers[name].add([encoder.encode(page.text)])
        if len(writers) >= 8 and all(writer.tokens >= goal for writer in writers.values()):
            break
    for writer in writers.values():
        writer.close()
    return sorted(writers)


def base(run: Run, config: PagesConfig, seed: int, vocabulary: Artifact, tokens: Artifact) -> Artifact:
    """Pretrain a base on the shards."""

    held_out = held_out_losses(tokens.path / "valid", config.pretrain.context, seed)
    return base_stage(
        run, config.model, config.pretrain, seed, config.device, vocabulary, tokens, held_out, arch=config.arch
    )


def held_out_losses(folder: Path, context: int, seed: int) -> HeldOut:
    """Losses on each kind of held-out page, and their mean."""

    def held_out(model: Transformer, last: bool) -> dict[str, float]:
        losses = _valid_losses(model, folder, context, seed)
        mean = sum(losses.values()) / max(1, len(losses))
        return {"pretrain/valid_loss": mean} | {f"pretrain/valid_loss/{name}": loss for name, loss in losses.items()}

    return held_out


def _valid_losses(model: Transformer, folder: Path, context: int, seed: int) -> dict[str, float]:
    """Loss on each kind of held-out page."""
    losses = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        with contextlib.suppress(DunwuError):  # too short for a window: no loss for that kind of page
            shards = PackedShards(path, context, seed)
            losses[path.name] = held_out_loss(model, shards, 16, 2)
            shards.close()
    return losses


def r1_zero(run: Run, config: R1ZeroConfig, base_folder: Path, parent: Artifact | None) -> Artifact:
    """GRPO from the base with rule rewards only; five checkpoints are kept for the evidence."""
    device = resolve_device(config.device)
    seed = run.seed

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, base_folder, config.grpo, device)
        figures = _reinforce(run, config, seed, work, learner, encoder, state)
        save_learner(learner, encoder, work)
        return figures

    settings: dict[str, Any] = {"grpo": config.grpo, "task": config.task, "seed": seed}
    settings |= {"curve": [config.evidence.curve_every, config.evidence.curve_problems]}
    settings |= {"data": file_digest(config.data), "prompt_template": file_digest(config.prompt_template)}
    if parent is None:
        settings["base"] = model_digest(base_folder)
    return run.stage("r1-zero", build, settings, [parent] if parent else [], version=COMPUTED)


def _reinforce(
    run: Run,
    config: R1ZeroConfig,
    seed: int,
    work: Path,
    learner: Learner,
    encoder: Tokenizer,
    state: Mapping[str, Any],
) -> dict[str, object]:
    task, settings = make_task(config), config.grpo
    engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
    kept = checkpoint_steps(settings.steps)

    def on_step(n: int) -> dict[str, float]:
        figures = {}
        if n % config.evidence.curve_every == 0 or n == settings.steps:
            figures["held_out_accuracy"] = _curve_point(run, config, task, engine, encoder, n)
        if n in kept:
            save_model(learner.policy, work / "kept" / str(n), encoder.end_id)
        return figures

    save_every = config.save_every
    last = reinforce(run, "r1-zero", learner, engine, encoder, task, settings, seed, work, state, save_every, on_step)
    return {"held_out_accuracy": last["held_out_accuracy"], "steps": settings.steps}


def checkpoint_steps(steps: int) -> list[int]:
    """Five steps from the base (0) to the end whose weights are kept.

    Example:
        >>> checkpoint_steps(80)
        [0, 20, 40, 60, 80]
    """
    return sorted({round(steps * quarter / 4) for quarter in range(5)})


def _curve_point(run: Run, config: R1ZeroConfig, task: Task, engine: Engine, encoder: Tokenizer, step: int) -> float:
    """One point of the held-out curve, on validation problems; the test problems wait for the end."""
    params = SamplingParams(max_tokens=config.grpo.max_tokens)
    point = held_out_point(run, engine, encoder, task, config.evidence.curve_problems, params, step)
    return point["eval/pass@1"]


def file_digest(path: str) -> str:
    """sha256 of a user's file, so that a stage re-runs when it changes; "" for no file."""
    if not path:
        return ""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DunwuError(f"cannot read {path}: {error.strerror}", "check the path") from error
    return digest.hexdigest()


def data_digest(path: str) -> str | dict[str, str]:
    """`file_digest` of a user's file, or of every file that lies in a folder, by name."""
    if path and Path(path).is_dir():
        return {file.name: file_digest(str(file)) for file in sorted(Path(path).iterdir()) if file.is_file()}
    return file_digest(path)


def model_digest(folder: Path, weights: bool = True) -> dict[str, str]:
    """sha256 of every file of a model folder that decides what the model says; weights may be in several files.

    Args:
        weights: False leaves them out, for what depends on tokenizer and context alone.
    """
    suffixes = (".json", ".safetensors") if weights else (".json",)
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    return {path.name: file_digest(str(path)) for path in files}
