"""The sources of the recipe `pretrain` when they are a mixture: digests, tokenizer, token shards for each, their shares."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dunwu.data.corpus import token_bytes
from dunwu.data.mixture import MixedShards, Source
from dunwu.data.shards import ShardWriter, TokenFolder
from dunwu.data.sources import TextSource, read_source, record_files, token_cut
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.log import Progress
from dunwu.recipes.configs import PretrainRunConfig
from dunwu.recipes.stages import data_digest, file_digest
from dunwu.types import DunwuError, UsageError

CHUNK = 1 << 16
"""Tokens copied at once."""


def is_mixture(config: PretrainRunConfig, sources: Sequence[TextSource]) -> bool:
    """Whether shares, caps or folders are asked for; otherwise the files follow each other in one shard folder."""
    asked = config.temperature != 1.0 or config.epochs != 0.0
    return asked or any(source.weight is not None or source.kind != "text" for source in sources)


def digest(source: TextSource) -> Any:
    """The content of a source, for a stage's key."""
    if source.kind == "tokens":
        return data_digest(str(source.shards))
    if source.path.is_dir():
        return {str(file.relative_to(source.path)): file_digest(str(file)) for file in record_files(source.path)}
    return file_digest(str(source.path))


def given_tokenizer(config: PretrainRunConfig, sources: Sequence[TextSource]) -> str:
    """The tokenizer to use: the user's, else that of the token shards; "" if one is to be trained.

    Raises:
        UsageError: shards are known to be made with another one.
    """
    made_with = {source: source.tokenizer for source in sources if source.kind == "tokens"}
    given = config.tokenizer or next((name for name in made_with.values() if name), "")
    for source, name in made_with.items():
        if name and tokenizer_digest(name) != tokenizer_digest(given):
            raise UsageError(
                f"the tokens in {source.path} were made with {name}, not {given}", "use one tokenizer for all"
            )
    return given


def tokenizer_digest(name: str) -> str:
    """sha256 of what a tokenizer does: of its tokenizer.json, which a known name like gpt2 has not."""
    made = load_tokenizer(name)  # a folder that is none is told before its digest is asked for
    file = Path(name) / "tokenizer.json"
    return file_digest(str(file)) if file.is_file() else hashlib.sha256(made.backend.to_str().encode()).hexdigest()


def tokenizer_texts(config: PretrainRunConfig, sources: Sequence[TextSource]) -> Iterator[str]:
    """The training parts' text, a piece of each source in turn, up to `tokenizer_bytes`."""
    left = config.tokenizer_bytes
    streams = [read_source(source, "train", config.held_out) for source in sources if source.kind != "tokens"]
    while streams and left > 0:
        for stream in list(streams):
            text, _ = next(stream, (None, False))
            if text is None:
                streams.remove(stream)
                continue
            yield text
            left -= len(text.encode())


def write_shards(
    work: Path, config: PretrainRunConfig, sources: Sequence[TextSource], encoder: Tokenizer
) -> dict[str, object]:
    """`train/NAME` and `held-out/NAME` of every source; of shards that are there already only the end is copied.

    Returns:
        the stage's headline.
    """
    for part in ("train", "held-out"):
        shutil.rmtree(work / part, ignore_errors=True)
    trained: dict[str, int] = {}
    documents = held_out = 0
    with Progress(len(sources), "sources to tokens", "sources") as progress:
        for done, source in enumerate(sources):
            if source.kind == "tokens":
                tokens, ended, kept = _copy_end(work / "held-out" / source.name, config, source, encoder)
            else:
                writer = ShardWriter(work / "train" / source.name, encoder.vocab_size, encoder.end_id)
                for text, last in read_source(source, "train", config.held_out):
                    writer.add_part(encoder.encode(text, allow_special=False), last)
                    progress.update(done, tokens=sum(trained.values()) + writer.tokens)
                writer.close()
                parts = read_source(source, "held-out", config.held_out)
                kept = write_held_out(work / "held-out" / source.name, parts, source.path, encoder)
                tokens, ended = writer.tokens, writer.documents
            trained[source.name] = tokens
            documents, held_out = documents + ended, held_out + kept
            progress.update(done + 1, tokens=sum(trained.values()))
    figures: dict[str, object] = {"tokens": sum(trained.values()), "documents": documents, "held_out_bytes": held_out}
    return figures | {f"tokens/{name}": tokens for name, tokens in trained.items()}


def write_held_out(folder: Path, parts: Iterable[tuple[str, bool]], path: Path, encoder: Tokenizer) -> int:
    """Tokenize the end of a source; returns its bytes."""
    writer, sizes, total = ShardWriter(folder, encoder.vocab_size, encoder.end_id), token_bytes(encoder), 0
    for text, last in parts:
        ids = encoder.encode(text, allow_special=False)
        if int(sizes[ids].sum()) != len(encoder.decode(ids).encode()):
            raise DunwuError(
                f"the tokens of {path} do not stand for its bytes, so bits per byte are unknown",
                "use a byte-level tokenizer, or leave --tokenizer away",
            )
        writer.add_part(ids, last)
        total += len(text.encode())
    writer.close()
    return total


def _copy_end(folder: Path, config: PretrainRunConfig, source: TextSource, encoder: Tokenizer) -> tuple[int, int, int]:
    """Copy what a shard folder holds out; returns tokens and documents to train on, and the bytes held out."""
    cut, sizes = token_cut(source.shards, config.held_out, encoder.end_id), token_bytes(encoder)
    writer = ShardWriter(folder, encoder.vocab_size, encoder.end_id)
    with closing(TokenFolder(source.shards)) as tokens:
        held_out = 0
        for start in range(cut, tokens.tokens, CHUNK):
            ids = tokens.read(start, min(CHUNK, tokens.tokens - start))
            if int(ids.max()) >= encoder.vocab_size:
                raise DunwuError(
                    f"{source.shards} holds token {int(ids.max())}, the tokenizer has {encoder.vocab_size}",
                    "give the tokenizer that made the shards: --tokenizer FOLDER",
                )
            writer.add_part(ids.tolist(), last=False)
            writer.documents += int((ids == encoder.end_id).sum())
            held_out += int(sizes[ids].sum())
    ended = writer.close()["documents"]
    documents = json.loads((source.shards / "index.json").read_text(encoding="utf-8")).get("documents", 0)
    return cut, max(0, int(documents) - ended), held_out


def mixed_shards(
    tokens: Path, config: PretrainRunConfig, sources: Sequence[TextSource], end_id: int, seed: int
) -> MixedShards:
    """The windows of the run: what `write_shards` made, and the training part of shards that were there."""
    parts = [_source(tokens, config, source, end_id) for source in sources]
    return MixedShards(parts, config.pretrain.context, seed, config.temperature)


def mixture_key(config: PretrainRunConfig, sources: Sequence[TextSource]) -> dict[str, object]:
    """What decides the mixture besides the content of the sources, for the key of the base."""
    weights = {source.name: source.weight for source in sources}
    return {"weights": weights, "temperature": config.temperature, "epochs": config.epochs}


def _source(tokens: Path, config: PretrainRunConfig, source: TextSource, end_id: int) -> Source:
    if source.kind == "tokens":
        limit = token_cut(source.shards, config.held_out, end_id)
        return Source(source.shards, source.name, source.weight, config.epochs, limit)
    return Source(tokens / "train" / source.name, source.name, source.weight, config.epochs)
