"""The stages of a context extension, each one call with its inputs named; the story itself is extend.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dunwu import machine
from dunwu.data.mixture import MixedShards
from dunwu.data.shards import PackedShards, ShardWriter, TokenFolder
from dunwu.data.tokenizer import Tokenizer, load_tokenizer, train_from_texts
from dunwu.disk import plain
from dunwu.eval.extension import losses_by_place
from dunwu.eval.needle import Hay, needles, world_hay
from dunwu.log import Progress, Run
from dunwu.model.config import ModelConfig, Yarn, model_preset
from dunwu.model.hf import load_model, resolve_dtype, save_model
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.extend_config import ExtendRunConfig
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.store import Artifact
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.config import PretrainConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.pretrain import Windows, pretrain
from dunwu.types import DunwuError, derive_seed
from dunwu.world.needles import notes

LINE_TOKENS = 12
"""Tokens of a note's line, about: so many tokens of context are one more line of the longest notes."""
SHORT, LONG, HELD_OUT = "train", "train-long", "held-out"
"""Sub-folders of the shards: notes for the short context, for the long one, and long ones that are measured on."""
TOKENIZER_NOTES = 4_000
"""Notes the tokenizer is trained on."""
Start = Callable[[], Transformer]
"""Makes the model that a training begins with, in its dtype and on its device."""


def tokenizer(run: Run, config: ExtendRunConfig) -> Artifact:
    """Train the demonstration's tokenizer."""
    lines = config.pretrain.context // LINE_TOKENS

    def build(work: Path) -> dict[str, object]:
        made = train_from_texts(islice(notes(run.seed, lines, config.chinese), TOKENIZER_NOTES), config.vocab_size)
        made.save(work)
        return {"vocab_size": made.vocab_size}

    settings = {"vocab_size": config.vocab_size, "lines": lines, "chinese": config.chinese, "seed": run.seed}
    return run.stage("tokenizer", build, settings)


def shards(run: Run, config: ExtendRunConfig, vocabulary: Artifact) -> Artifact:
    """Notes to token shards. Long notes are as long as the new context, so that facts are repeated over all of it."""
    short, long = config.pretrain, config.extend

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(vocabulary.path)
        for name in (SHORT, LONG, HELD_OUT):
            shutil.rmtree(work / name, ignore_errors=True)
        figures = {}
        for name, part, split in ((SHORT, short, "train"), (LONG, long, "train"), (HELD_OUT, long, "valid")):
            # The held-out part has a window for every note; the others a little more than one epoch.
            held_out = name == HELD_OUT
            wanted = 2 * config.windows * part.context if held_out else int(part.tokens * 1.02) + 4 * part.context
            texts = notes(
                derive_seed(name, run.seed),
                _lines(part, held_out),
                config.chinese,
                split,
                "long" if held_out else "mixed",
            )
            figures[f"tokens/{name}"] = _write(work / name, encoder, texts, wanted)
        return dict(figures)

    settings = {"short": [short.tokens, short.context], "long": [long.tokens, long.context]}
    settings |= {"windows": [config.windows]}
    return run.stage("shards", build, {**settings, "chinese": config.chinese, "seed": run.seed}, [vocabulary])


def _lines(part: PretrainConfig, held_out: bool) -> int:
    return (2 if held_out else 1) * part.context // LINE_TOKENS


def _write(folder: Path, encoder: Tokenizer, texts: Iterator[str], wanted: int) -> int:
    writer = ShardWriter(folder, encoder.vocab_size, encoder.end_id)
    with Progress(wanted, f"notes to tokens, {folder.name}", "tokens") as progress:
        while writer.tokens < wanted:
            writer.add(encoder.encode_batch(list(islice(texts, 50))))
            progress.update(min(wanted, writer.tokens))
    writer.close()
    return writer.tokens


def base(run: Run, config: ExtendRunConfig, vocabulary: Artifact, tokens: Artifact) -> Artifact:
    """The demonstration's base: trained at the short context, and its config says no more than that."""
    settings = config.pretrain
    device, dtype = placement(config.device, settings)
    size, spread, seed = config.size, config.initializer_range, run.seed

    def fresh() -> Transformer:
        shape = model_preset(size, load_tokenizer(vocabulary.path).vocab_size)
        model = Transformer(replace(shape, initializer_range=spread, max_position_embeddings=settings.context))
        model.init_weights(torch.Generator().manual_seed(derive_seed("init", seed)))
        return model.to(device=device, dtype=dtype)

    key: dict[str, object] = {"model": size, "initializer_range": spread, "dtype": str(dtype)}
    windows = _packed(tokens.path / SHORT, settings, seed)
    return train_stage(run, "base", settings, fresh, windows, vocabulary.path, key, [vocabulary, tokens])


def extended(
    run: Run,
    config: ExtendRunConfig,
    folder: Path,
    shape: ModelConfig,
    windows: Callable[[], Windows],
    key: Mapping[str, object],
    inputs: Sequence[Artifact],
) -> Artifact:
    """The model of `folder` with the shape `shape`, trained at the new length.

    Args:
        key: what the model and the texts are, as far as `inputs` do not say it.
    """
    device, dtype = placement(config.device, config.extend)

    def rescaled() -> Transformer:
        return in_shape(load_model(folder, device, dtype), shape)

    known = {**key, "rope_scaling": plain(shape.rope_scaling), "dtype": str(dtype)}
    return train_stage(run, "extended", config.extend, rescaled, windows, folder, known, inputs)


def in_shape(model: Transformer, shape: ModelConfig) -> Transformer:
    """The same weights under another shape, whose tensors are the same: another RoPE, another context."""
    with torch.device("meta"):
        other = Transformer(shape)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def lengthened(shape: ModelConfig, context: int, original: int) -> ModelConfig:
    """The shape with YaRN from `original` tokens to `context`.

    Raises:
        DunwuError: its RoPE is scaled otherwise already.

    Example:
        >>> lengthened(ModelConfig(max_position_embeddings=256), 1024, 256).rope_scaling.factor
        4.0
    """
    scaling = shape.rope_scaling
    if scaling is not None and not isinstance(scaling, Yarn):
        raise DunwuError(
            f"the model's RoPE is scaled by {type(scaling).__name__} already", "extend the model it was made from"
        )
    kept = scaling or Yarn(1.0, original)
    return replace(
        shape,
        rope_scaling=replace(kept, factor=context / original, original=original),
        max_position_embeddings=context,
    )


def original_context(shape: ModelConfig, given: int) -> int:
    """The context a model was trained at: as given, or what its YaRN says, or what it claims."""
    scaling = shape.rope_scaling
    return given or (scaling.original if isinstance(scaling, Yarn) else shape.max_position_embeddings)


def placement(device: str, settings: PretrainConfig) -> tuple[str, torch.dtype]:
    """Where and in what a model is trained."""
    where = resolve_device(device)
    return where, resolve_dtype(settings.precision, where, machine.cpu_flags())


def _packed(folder: Path, settings: PretrainConfig, seed: int) -> Callable[[], Windows]:
    return lambda: PackedShards(folder, settings.context, seed)


def long_windows(tokens: Artifact, config: ExtendRunConfig, seed: int) -> Callable[[], Windows]:
    """The demonstration's windows of the new length."""
    return _packed(tokens.path / LONG, config.extend, seed)


def train_stage(
    run: Run,
    stage: str,
    settings: PretrainConfig,
    start: Start,
    open_windows: Callable[[], Windows],
    vocabulary: Path,
    key: Mapping[str, object],
    inputs: Sequence[Artifact],
) -> Artifact:
    """Train what `start` makes on windows, with checkpoints on the way; the artifact holds a model folder.

    Args:
        vocabulary: folder with the tokenizer.
    """

    def build(work: Path) -> dict[str, object]:
        encoder, model, windows = load_tokenizer(vocabulary), start(), open_windows()
        if isinstance(windows, MixedShards):
            windows.require(settings.steps * settings.rows)
        loss = _train(run, stage, settings, work, model, windows)
        save_model(model, work / MODEL, encoder.end_id)
        encoder.save(work / MODEL, model.config.max_position_embeddings)
        tokens = settings.steps * settings.rows * settings.context
        return {"loss": loss, "parameters": model.config.num_parameters, "tokens": tokens}

    record = {name: value for name, value in plain(settings, all_fields=False).items() if name != "save_every"}
    return run.stage(stage, build, {**key, "pretrain": record, "seed": run.seed}, inputs, version=COMPUTED)


def _train(run: Run, stage: str, settings: PretrainConfig, work: Path, model: Transformer, windows: Windows) -> float:
    """The updates from the last checkpoint on; returns the last update's loss."""
    optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
    state = restore(work, optimizer)[0]
    with Progress(settings.steps, stage, "updates", start=state["step"]) as progress:
        for step in pretrain(model, optimizer, windows, settings, state["step"], work):
            last = step.n == settings.steps
            if step.n % settings.log_every == 0 or last:
                run.log(stage, step.n, step.metrics)
            state |= {"step": step.n, "version": optimizer.version, "loss": step.metrics["pretrain/loss"]}
            if step.n % settings.save_every == 0 or last:
                save_checkpoint(work, optimizer.state(), state)
            progress.update(step.n, loss=state["loss"], tok_s=step.metrics["pretrain/tokens_per_second"])
    return float(state["loss"])


def measure(
    model: Transformer, encoder: Tokenizer, config: ExtendRunConfig, held_out: Path, seed: int, own_text: bool
) -> dict[str, Any]:
    """`{"places": …, "needles": […]}` of one model, see `eval.extension`.

    Args:
        held_out: shard folder, or folder of such, one a source.
        own_text: the needles lie in lines of the held-out text instead of the world's.
    """
    windows = held_out_windows(held_out, config.extend.context, config.windows, encoder.end_id, not own_text)
    found: dict[str, Any] = {"places": losses_by_place(model, windows), "needles": []}
    if config.needle.each:
        asked = config.needle
        straw = text_hay(encoder, windows) if own_text else world_hay
        points = needles(model, encoder, asked.lengths, asked.depths, asked.each, seed, straw)
        found["needles"] = [point.as_json() for point in points]
    return found


def held_out_windows(folder: Path, context: int, count: int, end_id: int, whole: bool) -> list[NDArray[np.int64]]:
    """About `count` windows of `context` + 1 tokens, as many from each source.

    Args:
        whole: a window is the beginning of a document that is at least as long; otherwise they are evenly spread.

    Raises:
        DunwuError: the held-out text is shorter than two windows.
    """
    sources = [folder] if (folder / "index.json").is_file() else sorted(folder.iterdir())
    found: list[NDArray[np.int64]] = []
    for source in sources:
        with closing(TokenFolder(source)) as text:
            each = -(-count // len(sources))
            if whole:
                ids = text.read(0, text.tokens)
                ends = np.flatnonzero(ids == end_id)
                starts = [int(a) for a, b in pairwise(ends) if b - a > context][:each]
                found += [ids[start : start + context + 1] for start in starts]
                continue
            there = (text.tokens - 1) // context
            for place in sorted({round(n) for n in np.linspace(0, there - 1, min(each, there))}) if there else []:
                found.append(text.read(place * context, context + 1))
    if len(found) < 2:
        raise DunwuError(
            f"the held-out text has {len(found)} windows of {context} tokens", "give more text, or raise --held_out"
        )
    return found


def text_hay(encoder: Tokenizer, windows: Sequence[NDArray[np.int64]]) -> Hay:
    """Lines of these windows as a haystack, whatever their language."""

    @cache
    def lines(number: int) -> list[str]:
        text = encoder.decode([int(token) for token in windows[number] if token != encoder.end_id])
        return [line for line in text.split("\n")[1:-1] if line.strip()] or [text.replace("\n", " ")]

    def straw(dice: Random, chinese: bool) -> str:
        return dice.choice(lines(dice.randrange(len(windows))))

    return straw
