"""The stages of a context extension, each one call with its inputs named; the story itself is extend.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
"""Sub-folders of the shards: notes for the short context, for the long one, long ones to measure on. Lessons have others."""
WHOLE = ("english-pairs", "pairs", "longer")
"""Kinds of notes that are as long as the context, and stand in windows of their own."""
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


@dataclass(frozen=True)
class _Part:
    """A sub-folder of the shards: so many tokens of one kind of notes."""

    tokens: int
    context: int
    kind: str = "mixed"
    split: str = "train"

    @property
    def lines(self) -> int:
        """Of its longest notes: as long as the context, held-out ones twice that, so that each has a whole window."""
        return (2 if self.kind == "long" else 1) * self.context // LINE_TOKENS


def _parts(config: ExtendRunConfig) -> dict[str, _Part]:
    short, long = config.pretrain, config.extend
    lessons = {kind: _Part(int(short.tokens * share), short.context, kind) for kind, share in config.lessons}
    return lessons | {
        SHORT: _Part(short.tokens - sum(part.tokens for part in lessons.values()), short.context),
        LONG: _Part(long.tokens, long.context, "longer"),
        HELD_OUT: _Part(3 * config.windows * long.context, long.context, "long", "valid"),
    }


def shards(run: Run, config: ExtendRunConfig, vocabulary: Artifact) -> Artifact:
    """Notes to token shards. Long notes are as long as the new context, so that facts are repeated over all of it."""
    parts = _parts(config)

    def build(work: Path) -> dict[str, object]:
        encoder, figures = load_tokenizer(vocabulary.path), dict[str, object]()
        for name, part in parts.items():
            shutil.rmtree(work / name, ignore_errors=True)
            texts = notes(derive_seed(name, run.seed), part.lines, config.chinese, part.split, part.kind)
            # Windows leave a remainder; a little more than asked keeps one epoch whole.
            cut = part.context if part.kind in WHOLE else 0
            wanted = int(part.tokens * 1.02) + 4 * part.context
            figures[f"tokens/{name}"] = _write(work / name, encoder, texts, wanted, cut)
        return figures

    settings = {"parts": parts, "chinese": config.chinese, "seed": run.seed}
    return run.stage("shards", build, settings, [vocabulary])


def _write(folder: Path, encoder: Tokenizer, texts: Iterator[str], wanted: int, cut: int = 0) -> int:
    """Args:
    cut: if not 0, only texts of at least so many tokens, cut to them.
    """
    writer = ShardWriter(folder, encoder.vocab_size, encoder.end_id)
    with Progress(wanted, f"notes to tokens, {folder.name}", "tokens") as progress:
        while writer.tokens < wanted:
            ids = encoder.encode_batch(list(islice(texts, 50)))
            writer.add([row[:cut] for row in ids if len(row) >= cut] if cut else ids)
            progress.update(min(wanted, writer.tokens))
    writer.close()
    return writer.tokens


class WholeTexts:
    """Windows that are whole texts, each behind the token that ends the one before it, in a seeded order.

    Facts told at a window's beginning and asked for at its end are then as far apart as the context allows.
    """

    def __init__(self, folder: Path, context: int, end_id: int, seed: int) -> None:
        with closing(TokenFolder(folder)) as text:
            ids = text.read(0, text.tokens)
        ends = np.flatnonzero(ids == end_id)
        self.windows = [ids[a : a + context + 1] for a, b in pairwise(ends) if b - a > context]
        self.seed = seed
        if not self.windows:
            raise DunwuError(f"{folder} holds no text of {context} tokens", "raise extend.tokens")

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """(rows, T + 1) ids, a function of the step alone."""
        return np.stack([self._window(step * rows + row) for row in range(rows)])

    def _window(self, position: int) -> NDArray[np.int64]:
        epoch, place = divmod(position, len(self.windows))
        order = np.random.default_rng(derive_seed("texts", self.seed, epoch)).permutation(len(self.windows))
        return self.windows[int(order[place])]


def _open(folder: Path, kind: str, context: int, end_id: int, seed: int) -> Windows:
    return WholeTexts(folder, context, end_id, seed) if kind in WHOLE else PackedShards(folder, context, seed)


class InTurn:
    """Windows of one source after the other: (updates, source) each, the last for all that remain."""

    def __init__(self, sources: Sequence[tuple[int, Windows]]) -> None:
        self.sources = sources

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """(rows, T + 1) ids, a function of the step alone."""
        for updates, source in self.sources[:-1]:
            if step < updates:
                return source.batch(step, rows)
            step -= updates
        return self.sources[-1][1].batch(step, rows)


def base(run: Run, config: ExtendRunConfig, vocabulary: Artifact, tokens: Artifact) -> Artifact:
    """The demonstration's base: trained at the short context, and its config says no more than that."""
    settings, seed = config.pretrain, run.seed
    device, dtype = placement(config.device, settings)
    changes: dict[str, Any] = {"initializer_range": config.initializer_range, "num_kv_heads": config.kv_heads}

    def fresh() -> Transformer:
        shape = model_preset(config.size, load_tokenizer(vocabulary.path).vocab_size)
        model = Transformer(replace(shape, max_position_embeddings=settings.context, **changes))
        model.init_weights(torch.Generator().manual_seed(derive_seed("init", seed)))
        return model.to(device=device, dtype=dtype)

    def windows() -> Windows:
        lessons = [(round(settings.steps * share), kind) for kind, share in config.lessons]
        end_id = load_tokenizer(vocabulary.path).end_id
        parts = [*lessons, (settings.steps, SHORT)]
        return InTurn([(n, _open(tokens.path / name, name, settings.context, end_id, seed)) for n, name in parts])

    key = {"model": config.size, **changes, "lessons": config.lessons, "dtype": str(dtype)}
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


def long_windows(tokens: Artifact, vocabulary: Artifact, config: ExtendRunConfig, seed: int) -> Callable[[], Windows]:
    """The demonstration's windows of the new length."""
    folder, context = tokens.path / LONG, config.extend.context
    return lambda: _open(folder, "longer", context, load_tokenizer(vocabulary.path).end_id, seed)


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
