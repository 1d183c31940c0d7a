"""Pretraining on a user's own files: text → tokenizer → token shards → base, and what its held-out end costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from dunwu.data.corpus import read_part, token_bytes
from dunwu.data.shards import ShardWriter, TokenFolder
from dunwu.data.tokenizer import Tokenizer, load_tokenizer, train_from_texts
from dunwu.log import Progress, Run
from dunwu.model.config import model_preset
from dunwu.model.runtime import prepare_torch
from dunwu.model.transformer import Transformer
from dunwu.recipes.configs import PretrainRunConfig
from dunwu.recipes.pretraining import MODEL, base_stage
from dunwu.recipes.stages import file_digest
from dunwu.store import Artifact
from dunwu.train.pretrain import held_out_text
from dunwu.types import DunwuError


def run(run: Run, config: PretrainRunConfig) -> None:
    """The recipe `pretrain`."""
    config.validate()
    model_preset(config.model, config.vocab_size)  # a wrong name is told before the text is read
    prepare_torch(config.device)
    files = [[name, file.suffix, file_digest(str(file))] for name, file in named(config.data).items()]
    vocabulary = tokenizer(run, config, files)
    tokens = shards(run, config, files, vocabulary)
    base = pretrain(run, config, vocabulary, tokens)
    figures = base.meta["metrics"]
    print(f"{base.path / MODEL}: {figures['bits_per_byte']:.4f} bits per byte on the held-out text")


def tokenizer(run: Run, config: PretrainRunConfig, files: list[list[str]]) -> Artifact:
    """Train a tokenizer on the training part, or take the user's."""

    def build(work: Path) -> dict[str, object]:
        if config.tokenizer:
            made = load_tokenizer(config.tokenizer)
        else:
            made = train_from_texts(_first_bytes(config), config.vocab_size)
        made.save(work)
        return {"vocab_size": made.vocab_size}

    settings: dict[str, object]
    if config.tokenizer:
        load_tokenizer(config.tokenizer)  # a folder that is none is told before its digest is asked for
        settings = {"tokenizer": file_digest(str(Path(config.tokenizer) / "tokenizer.json"))}
    else:
        settings = {"vocab_size": config.vocab_size, "bytes": config.tokenizer_bytes}
        settings |= {"files": files, "held_out": config.held_out}
    return run.stage("tokenizer", build, settings)


def shards(run: Run, config: PretrainRunConfig, files: list[list[str]], vocabulary: Artifact) -> Artifact:
    """Files to token shards: `train` holds all training parts, `held-out/NAME` the end of one file."""

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(vocabulary.path)
        for part in ("train", "held-out"):
            shutil.rmtree(work / part, ignore_errors=True)
        train = ShardWriter(work / "train", encoder.vocab_size, encoder.end_id)
        held_out = 0
        with Progress(sum(Path(file).stat().st_size for file in config.data), "text to tokens", "bytes") as progress:
            done = 0
            for name, file in named(config.data).items():
                for text, last in read_part(file, "train", config.held_out):
                    train.add_part(encoder.encode(text, allow_special=False), last)
                    done += len(text.encode())
                    progress.update(done, tokens=train.tokens)
                held_out += _write_held_out(work / "held-out" / name, file, config, encoder)
        index = train.close()
        return {"tokens": sum(index["shards"]), "documents": index["documents"], "held_out_bytes": held_out}

    return run.stage("shards", build, {"files": files, "held_out": config.held_out}, [vocabulary])


def _write_held_out(folder: Path, file: Path, config: PretrainRunConfig, encoder: Tokenizer) -> int:
    """Tokenize one file's end; returns its bytes."""
    writer, sizes, total = ShardWriter(folder, encoder.vocab_size, encoder.end_id), token_bytes(encoder), 0
    for text, last in read_part(file, "held-out", config.held_out):
        ids = encoder.encode(text, allow_special=False)
        if int(sizes[ids].sum()) != len(encoder.decode(ids).encode()):
            raise DunwuError(
                f"the tokens of {file} do not stand for its bytes, so bits per byte are unknown",
                "use a byte-level tokenizer, or leave --tokenizer away",
            )
        writer.add_part(ids, last)
        total += len(text.encode())
    writer.close()
    return total


def _first_bytes(config: PretrainRunConfig) -> Iterator[str]:
    """The training parts' text, file after file, up to `tokenizer_bytes`."""
    left = config.tokenizer_bytes
    for file in config.data:
        for text, _ in read_part(Path(file), "train", config.held_out):
            if left <= 0:
                return
            yield text
            left -= len(text.encode())


def pretrain(run: Run, config: PretrainRunConfig, vocabulary: Artifact, tokens: Artifact) -> Artifact:
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
        return metrics | {f"pretrain/valid_loss/{name}": part.loss for name, part in found.items()}

    also: dict[str, Any] = {"curve_tokens": config.curve_tokens}
    return base_stage(run, config.model, config.pretrain, run.seed, config.device, vocabulary, tokens, held_out, **also)


def named(files: tuple[str, ...]) -> dict[str, Path]:
    """Files by a short name for folders and metric keys.

    Example:
        >>> list(named(("a/book.txt", "b/book.txt", "news.jsonl")))
        ['book', 'book-2', 'news']
    """
    found: dict[str, Path] = {}
    for file in map(Path, files):
        name, number = file.stem, 1
        while name in found:
            number += 1
            name = f"{file.stem}-{number}"
        found[name] = file
    return found
