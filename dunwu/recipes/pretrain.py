"""Pretraining on a user's own texts: text → tokenizer → token shards → base, what its held-out end costs, and what the base
learns inside its context.

Plain text files follow each other in one shard folder. Weights, a temperature, a cap on epochs, or a folder as a source
make a mixture (`pretrain_sources`): a shard folder each, drawn from in stated shares.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from dunwu.data.corpus import read_part, token_bytes
from dunwu.data.mixture import MixedShards
from dunwu.data.shards import ShardWriter, TokenFolder
from dunwu.data.sources import TextSource, parse_sources
from dunwu.data.tokenizer import Tokenizer, load_tokenizer, train_from_texts
from dunwu.log import Progress, Run
from dunwu.model.config import model_preset
from dunwu.model.runtime import prepare_torch
from dunwu.model.transformer import Transformer
from dunwu.recipes.configs import PretrainRunConfig
from dunwu.recipes.in_context import check_tasks, curve_metrics, in_context, measure
from dunwu.recipes.pretrain_sources import (
    digest,
    given_tokenizer,
    is_mixture,
    mixed_shards,
    mixture_key,
    tokenizer_digest,
    tokenizer_texts,
    write_held_out,
    write_shards,
)
from dunwu.recipes.pretraining import MODEL, base_stage
from dunwu.store import Artifact
from dunwu.train.pretrain import held_out_text


def run(run: Run, config: PretrainRunConfig) -> None:
    """The recipe `pretrain`."""
    config.validate()
    model_preset(config.model, config.vocab_size, config.arch)  # a wrong name is told before the text is read
    prepare_torch(config.device)
    check_tasks(config.in_context)
    sources = parse_sources(config.data, bool(config.tokenizer))
    files = [[source.name, source.path.suffix, digest(source)] for source in sources]
    vocabulary = tokenizer(run, config, sources, files)
    tokens = shards(run, config, sources, files, vocabulary)
    base = pretrain(run, config, sources, vocabulary, tokens)
    in_context(run, config, base, tokens)
    figures = base.meta["metrics"]
    print(f"{base.path / MODEL}: {figures['bits_per_byte']:.4f} bits per byte on the held-out text")


def tokenizer(run: Run, config: PretrainRunConfig, sources: Sequence[TextSource], files: list[list[Any]]) -> Artifact:
    """Train a tokenizer on the training part, or take the user's, or the one beside token shards."""
    given, mixed = given_tokenizer(config, sources), is_mixture(config, sources)

    def build(work: Path) -> dict[str, object]:
        if given:
            made = load_tokenizer(given)
        else:
            texts = tokenizer_texts(config, sources) if mixed else _first_bytes(config, sources)
            made = train_from_texts(texts, config.vocab_size)
        made.save(work)
        return {"vocab_size": made.vocab_size}

    settings: dict[str, object]
    if given:
        settings = {"tokenizer": tokenizer_digest(given)}
    else:
        settings = {"vocab_size": config.vocab_size, "bytes": config.tokenizer_bytes}
        settings |= {"files": files, "held_out": config.held_out} | ({"mixed": True} if mixed else {})
    return run.stage("tokenizer", build, settings)


def shards(
    run: Run, config: PretrainRunConfig, sources: Sequence[TextSource], files: list[list[Any]], vocabulary: Artifact
) -> Artifact:
    """Texts to token shards: `train` holds all training parts (of a mixture: `train/NAME`), `held-out/NAME` each end."""
    mixed = is_mixture(config, sources)

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(vocabulary.path)
        if mixed:
            return write_shards(work, config, sources, encoder)
        return _one_folder(work, config, sources, encoder)

    settings: dict[str, object] = {"files": files, "held_out": config.held_out} | ({"mixed": True} if mixed else {})
    return run.stage("shards", build, settings, [vocabulary])


def _one_folder(
    work: Path, config: PretrainRunConfig, sources: Sequence[TextSource], encoder: Tokenizer
) -> dict[str, object]:
    """All training parts in one shard folder, in the order given."""
    for part in ("train", "held-out"):
        shutil.rmtree(work / part, ignore_errors=True)
    train = ShardWriter(work / "train", encoder.vocab_size, encoder.end_id)
    held_out = done = 0
    with Progress(sum(source.path.stat().st_size for source in sources), "text to tokens", "bytes") as progress:
        for source in sources:
            for text, last in read_part(source.path, "train", config.held_out):
                train.add_part(encoder.encode(text, allow_special=False), last)
                done += len(text.encode())
                progress.update(done, tokens=train.tokens)
            parts = read_part(source.path, "held-out", config.held_out)
            held_out += write_held_out(work / "held-out" / source.name, parts, source.path, encoder)
    index = train.close()
    return {"tokens": sum(index["shards"]), "documents": index["documents"], "held_out_bytes": held_out}


def _first_bytes(config: PretrainRunConfig, sources: Sequence[TextSource]) -> Iterator[str]:
    """The training parts' text, file after file, up to `tokenizer_bytes`."""
    left = config.tokenizer_bytes
    for source in sources:
        for text, _ in read_part(source.path, "train", config.held_out):
            if left <= 0:
                return
            yield text
            left -= len(text.encode())


def pretrain(
    run: Run, config: PretrainRunConfig, sources: Sequence[TextSource], vocabulary: Artifact, tokens: Artifact
) -> Artifact:
    """Train the base; its held-out text is measured on the way and, whole, at the end."""
    encoder = load_tokenizer(vocabulary.path)
    sizes = token_bytes(encoder)

    def held_out(model: Transformer, last: bool) -> dict[str, float]:
        found = {}
        for folder in sorted((tokens.path / "held-out").iterdir()):
            with closing(TokenFolder(folder)) as text:
                limit = None if last else config.curve_tokens
                found[folder.name] = held_out_text(model, text, sizes, encoder.end_id, config.pretrain.context, limit)
        whole = reduce(add, found.values())
        metrics = {"pretrain/bits_per_byte": whole.bits_per_byte, "pretrain/valid_loss": whole.loss}
        metrics |= {f"pretrain/valid_loss/{name}": part.loss for name, part in found.items()}
        if config.in_context.curve:
            metrics |= curve_metrics(measure(model, encoder, config, tokens.path / "held-out", run.seed))
        return metrics

    def open_mixture() -> MixedShards:
        return mixed_shards(tokens.path, config, sources, encoder.end_id, run.seed)

    also: dict[str, Any] = {"curve_tokens": config.curve_tokens}
    if config.in_context.curve:
        also["in_context"] = config.in_context
    mixed = is_mixture(config, sources)
    if mixed:
        also["mixture"] = mixture_key(config, sources)
    return base_stage(
        run,
        config.model,
        config.pretrain,
        run.seed,
        config.device,
        vocabulary,
        tokens,
        held_out,
        open_mixture=open_mixture if mixed else None,
        arch=config.arch,
        **also,
    )
