"""A model folder as others expect one: complete, checked, nothing in it that changes what a model says by surprise.

Our folders have Hugging Face's layout already. What an export adds: every file is checked against config.json, weights may
change their type on the way, `generation_config.json` keeps the ids of its tokens and loses its sampling (vLLM applies
what stands there to every request), and nothing but data is taken along: no code, no pickles, no checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dunwu.disk import write_atomically
from dunwu.model.gguf_names import parts, sources
from dunwu.model.hf_config import NotOurs, from_hf_config
from dunwu.model.hf_weights import INDEX, Stored, stored_in
from dunwu.model.stored import blocks, check_fit, is_reward_model, read_json
from dunwu.types import DunwuError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TAGS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_NEEDED = ("tokenizer.json", "tokenizer_config.json")
_TAKEN = (
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "reward_model.json",
    "LICENSE",
)
_EXACT = "e_score_correction_bias"
"""Chooses experts by small differences; stays float32."""


def export_hf(folder: Path, out: Path, dtype: str | None = None) -> None:
    """Write the model in `folder` as a complete folder `out`.

    Args:
        dtype: one of `DTYPES` converts the weights; None keeps them as they are.

    Raises:
        DunwuError: a file is missing, damaged or does not fit config.json; a weight is too large for fp16.
    """
    record = read_json(folder / "config.json")
    require_tokenizer(folder)
    stored = _checked(folder, record)
    out.mkdir(parents=True, exist_ok=True)
    for name in (*_NEEDED, *_TAKEN):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    wanted = DTYPES[dtype] if dtype else None
    total = 0
    for file in sorted({entry.file for entry in stored.values()}):
        there = {name: entry for name, entry in stored.items() if entry.file == file}
        total += _copy_weights(file, there, out / file.name, wanted)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": total}
        _write_json(out / INDEX, index)
    if wanted is not None:
        named = "dtype" if "dtype" in record else "torch_dtype"
        record |= {named: str(wanted).removeprefix("torch.")}
    _write_json(out / "config.json", record)
    _write_json(out / "generation_config.json", _generation(folder, record))


def require_tokenizer(folder: Path) -> None:
    """Raise DunwuError unless the tokenizer's files are there and hold JSON."""
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise DunwuError(f"{folder} has no {name}", "copy the tokenizer the model was trained with into it")
        read_json(folder / name)


def _checked(folder: Path, record: dict[str, Any]) -> dict[str, Stored]:
    """The weights, each tensor as config.json has it; of a class that is not ours only that the files are whole."""
    stored = stored_in(folder)
    try:
        config = from_hf_config(record, str(folder / "config.json"))
    except NotOurs:
        return stored
    if not is_reward_model(record, ()):
        check_fit(stored, sources(parts(config)), config)
    return stored


def _generation(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    file = folder / "generation_config.json"
    stated = read_json(file) if file.is_file() else record
    return {name: value for name, value in stated.items() if name.endswith("_token_id") and value is not None}


def _copy_weights(file: Path, stored: Mapping[str, Stored], target: Path, wanted: torch.dtype | None) -> int:
    """Bytes of tensors written: the file as it is, or with its floats in another type, block by block."""
    if wanted is None:
        shutil.copyfile(file, target)
        return sum(entry.size for entry in stored.values())
    types = {name: entry.dtype if name.endswith(_EXACT) else wanted for name, entry in stored.items()}
    order = sorted(stored, key=lambda name: -types[name].itemsize)
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + math.prod(stored[name].shape) * types[name].itemsize
        head[name] = {"dtype": _TAGS[types[name]], "shape": stored[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in _converted(name, stored[name], types[name]):
                out.write(piece.reshape(-1).view(torch.uint8).numpy().tobytes())
        out.flush()
        os.fsync(out.fileno())
    return end


def _converted(name: str, stored: Stored, wanted: torch.dtype) -> Iterator[torch.Tensor]:
    for piece in blocks(stored):
        if wanted is torch.float16 and piece.numel() and piece.abs().max() > torch.finfo(wanted).max:
            raise DunwuError(f"{stored.file}: tensor '{name}' holds numbers too large for fp16", "use bf16 or fp32")
        yield piece.to(wanted)


def _write_json(file: Path, record: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(record, ensure_ascii=False, indent=2) + "\n")
