"""The stage `base` of every recipe: a fresh model, trained on token shards, with checkpoints on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dunwu import machine
from dunwu.data.mixture import MixedShards
from dunwu.data.shards import PackedShards
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import plain, write_atomically
from dunwu.log import Progress, Run
from dunwu.model.config import model_preset
from dunwu.model.hf import resolve_dtype, save_model
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.train.checkpoint import load_checkpoint, save_checkpoint
from dunwu.train.config import PretrainConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.pretrain import pretrain
from dunwu.types import SamplingParams, derive_seed

MODEL = "model"
"""Sub-folder of a stage's artifact that is a model folder."""

HeldOut = Callable[[Transformer, bool], dict[str, float]]
"""(the model now, is this the end?) → metrics; those named `pretrain/NAME` also become the stage's headline."""


def base_stage(
    run: Run,
    size: str,
    settings: PretrainConfig,
    seed: int,
    device: str,
    vocabulary: Artifact,
    tokens: Artifact,
    held_out: HeldOut,
    stage: str = "base",
    open_mixture: Callable[[], MixedShards] | None = None,
    arch: str = "dense",
    **also: Any,
) -> Artifact:
    """Train a model of preset `size` from scratch on `tokens/train`.

    Args:
        vocabulary: artifact that is a tokenizer folder.
        tokens: artifact whose sub-folder `train` holds token shards.
        held_out: called every `eval_every` updates and at the end.
        stage: its name in the run; a student's base has its own.
        arch: what the model is built of, from `ARCHITECTURES`.
        open_mixture: opens the windows to train on, instead of `tokens/train`; `also` then says what they are.
        also: further settings that decide what `held_out` measures, for the artifact's key.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(settings.precision, device, machine.cpu_flags())

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(vocabulary.path)
        model = Transformer(model_preset(size, encoder.vocab_size, arch))
        model.init_weights(torch.Generator().manual_seed(derive_seed("init", seed)))
        model.to(device=device, dtype=dtype)
        shards = open_mixture() if open_mixture else PackedShards(tokens.path / "train", settings.context, seed)
        if isinstance(shards, MixedShards):
            shards.require(settings.steps * settings.rows)
        figures = _train(run, stage, settings, work, model, shards, encoder, held_out)
        shards.close()
        save_model(model, work / MODEL, encoder.end_id)
        encoder.save(work / MODEL, model.config.max_position_embeddings)
        return figures

    record = {name: value for name, value in plain(settings, all_fields=False).items() if name != "save_every"}
    key = {"model": size, "pretrain": record, "seed": seed, "dtype": str(dtype), **also}
    if arch != "dense":
        key["arch"] = arch
    return run.stage(stage, build, key, [vocabulary, tokens], version=COMPUTED)


def _train(
    run: Run,
    stage: str,
    settings: PretrainConfig,
    work: Path,
    model: Transformer,
    shards: PackedShards | MixedShards,
    encoder: Tokenizer,
    held_out: HeldOut,
) -> dict[str, object]:
    optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
    state = restore(work, optimizer)[0]
    start, seconds = state["step"], state.get("seconds", 0.0)
    scores: dict[str, float] = {}
    with Progress(settings.steps, stage, "updates", start=start) as progress:
        for step in pretrain(model, optimizer, shards, settings, start, work):
            last = step.n == settings.steps
            seconds += settings.rows * settings.context / step.metrics["pretrain/tokens_per_second"]
            metrics = dict(step.metrics) if step.n % settings.log_every == 0 or last else {}
            if step.n % settings.eval_every == 0 or last:
                scores = held_out(model, last)
                metrics |= step.metrics | scores
                _write_samples(work, step.n, model, encoder)
            if metrics and isinstance(shards, MixedShards):
                read = shards.epochs(step.n * settings.rows)
                metrics |= {f"pretrain/epochs/{name}": passes for name, passes in read.items()}
            if metrics:
                run.log(stage, step.n, metrics)
            if step.n % settings.save_every == 0 or last:
                state = {"step": step.n, "version": optimizer.version, "seconds": seconds}
                save_checkpoint(work, optimizer.state(), state)
            progress.update(
                step.n, loss=step.metrics["pretrain/loss"], tok_s=step.metrics["pretrain/tokens_per_second"]
            )
    # Killed after the last checkpoint: nothing was left to train, but the headline is still wanted.
    scores = scores or held_out(model, True)
    tokens = settings.steps * settings.rows * settings.context
    headline: dict[str, object] = {k.removeprefix("pretrain/"): v for k, v in scores.items() if k.count("/") == 1}
    headline |= {"parameters": model.config.num_parameters, "tokens": tokens}
    if model.config.moe:
        headline["active_parameters"] = model.config.active_parameters
    return headline | {"tokens_per_second": tokens / seconds}


def restore(work: Path, optimizer: MasterAdamW) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Load the work folder's checkpoint into the optimizer and its model.

    Returns:
        its record ({"step": updates done, …}; step 0 without a checkpoint) and the tensors that are not the optimizer's.
    """
    found = load_checkpoint(work)
    if found is None:
        return {"step": 0}, {}
    tensors, state = found
    optimizer.load(tensors, state["version"])
    return state, {name: tensor for name, tensor in tensors.items() if name not in optimizer.state()}


def _write_samples(work: Path, step: int, model: Transformer, encoder: Tokenizer) -> None:
    """A few texts the model writes now, one after another, for looking at."""
    engine = Engine(model, encoder)
    seeds = [[derive_seed("sample text", step, n) for n in range(3)]]
    drawn = engine.sample([[encoder.end_id]], seeds, SamplingParams(max_tokens=96))
    lines = [f"--- update {step}, sample {n}\n{c.text}\n" for n, c in enumerate(drawn[0])]
    path = work / "samples.txt"
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if f"--- update {step}," not in kept:
        write_atomically(path, kept + "".join(lines))
