"""The tensors of a model folder for those who write it in another form: checked, then read a block of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dunwu.model.config import ModelConfig
from dunwu.model.hf_weights import MISFIT, Stored, is_spare
from dunwu.types import DunwuError

BLOCK = 4 << 20
"""Numbers that are in memory at once, or one block if that is more."""


def check_fit(stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise DunwuError unless every tensor of a language model is there in its shape, and nothing would be left out.

    Args:
        stored: from `hf_weights.stored_in`.
        shapes: what the model has by `config`, without modules behind the last layer.
    """
    for folder in {entry.file.parent for entry in stored.values()}:
        refuse_reward_model(folder, read_json(folder / "config.json"), stored)
    missing = [name for name in shapes if name not in stored]
    unknown = [name for name in stored if name not in shapes and not is_spare(name, replace(config, mtp_depth=0))]
    for name in missing[:1] or unknown[:1]:
        said = "is missing" if missing else f"is no part of a {config.model_type}"
        file = next(iter(stored.values())).file if missing else stored[name].file
        raise DunwuError(f"{file}: tensor '{name}' {said}, by config.json", MISFIT)
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise DunwuError(
                f"{stored[name].file}: tensor '{name}' is {stored[name].shape}, config.json says {shape}", MISFIT
            )


def is_reward_model(record: Mapping[str, Any], names: Container[str]) -> bool:
    """Whether a folder has a head for rewards: by its config.json, or by the names of its tensors.

    Example:
        >>> is_reward_model({"architectures": ["Qwen2ForCausalLM"]}, ["score.weight"])
        True
    """
    classes = record.get("architectures") or [""]
    return "score.weight" in names or str(classes[0]).endswith("ForSequenceClassification")


def refuse_reward_model(folder: Path, record: Mapping[str, Any], names: Container[str]) -> None:
    """Raise DunwuError where a language model is wanted, and a folder holds a reward model."""
    if is_reward_model(record, names):
        raise DunwuError(
            f"{folder} is a reward model, no language model", "peek, chat, export and grpo want a language model"
        )


def blocks(stored: Stored, rows: int = 1) -> Iterator[Tensor]:
    """A tensor in pieces along its first axis, as it is stored; each some multiple of `rows` rows, or the rest."""
    count = stored.shape[0] if stored.shape else 1
    row = stored.size // count if count else 0
    step = max(BLOCK * stored.dtype.itemsize // max(row * rows, 1), 1) * rows
    with stored.file.open("rb") as source:
        source.seek(stored.start)
        for begin in range(0, count, step):
            taken = min(step, count - begin)
            data = bytearray(source.read(taken * row))
            if len(data) < taken * row:
                raise DunwuError(f"{stored.file} became shorter while it was read", "copy the model folder again")
            piece = torch.frombuffer(data, dtype=stored.dtype) if data else torch.empty(0, dtype=stored.dtype)
            yield piece.reshape(taken, *stored.shape[1:]) if stored.shape else piece.reshape(())


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        DunwuError: it is missing, or not that.
    """
    if not file.is_file():
        raise DunwuError(f"{file} is missing", "copy the whole model folder, its tokenizer's files among them")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DunwuError(f"{file} is damaged: {error}", "copy it again") from error
    if not isinstance(record, dict):
        raise DunwuError(f"{file} holds no JSON object", "copy it again")
    return record
