"""Model folders in Hugging Face's layout, in and out: the classes of `hf_config.CLASSES`, with safetensors.

What we save loads unchanged in transformers, vLLM, SGLang and llama.cpp's converter; what they save of the same classes loads
here, sharded or not, in any dtype. Weights stream (`hf_weights`), so a load takes little more memory than they do. Every other
class goes through transformers (`foreign`). Not covered: sliding windows, quantised weights, and pickles, ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dunwu.disk import write_atomically
from dunwu.model import hf_weights
from dunwu.model.hf_config import KNOWN, NotOurs, from_hf_config, to_hf_config
from dunwu.model.hf_weights import AGAIN, SHARD_BYTES, Stored, stored_in
from dunwu.model.stored import refuse_reward_model
from dunwu.model.transformer import Transformer
from dunwu.store import resolve_model
from dunwu.types import DunwuError

__all__ = ["from_hf_config", "from_pretrained", "load_model", "resolve_dtype", "save_model", "to_hf_config"]


def from_pretrained(
    name: str | Path, device: str = "cpu", dtype: torch.dtype | None = None, foreign: bool = False
) -> Transformer:
    """A model by folder, RUN:STAGE or name of the hub; a class that is not ours comes through transformers.

    Args:
        dtype: converts the weights; None keeps them as stored.
        foreign: through transformers in any case, even where the class is ours.

    Raises:
        DunwuError: as `load_model`; or a class that is not ours, and no transformers here.
    """
    folder = resolve_model(str(name))
    if not foreign:
        try:
            return load_model(folder, device, dtype)
        except NotOurs as error:
            reason = error
    from dunwu.model.foreign import load_foreign

    try:
        return load_foreign(folder, device, dtype)
    except ImportError as error:
        if not foreign:
            raise reason from error
        raise DunwuError("transformers is not installed", f"pip install 'dunwu[hf]'; without it: {KNOWN}") from error


def load_model(folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Load a model folder of one of our classes, tensor by tensor.

    As in transformers, a tied model's `lm_head.weight` is left unread. A config that speaks of a module behind the last
    layer (`mtp_depth`) is taken without where the files hold none, which is how transformers saves.

    Args:
        dtype: converts the weights; None keeps them as the embedding is stored.

    Raises:
        NotOurs: another class, or a feature of ours that is not covered.
        DunwuError: no such folder, a missing or damaged file, weights that do not fit the config, a reward model.
    """
    folder = Path(folder)
    record = read_config(folder)
    config = from_hf_config(record, str(folder / "config.json"))
    stored = stored_in(folder)
    refuse_reward_model(folder, record, stored)
    if config.mtp_depth and not hf_weights.has_mtp(stored, config):
        config = replace(config, mtp_depth=0)
    with hf_weights.unfilled():
        model = Transformer(config)
    hf_weights.fill(
        model,
        stored,
        lambda state: hf_weights.in_files(state, config),
        lambda name: hf_weights.is_spare(name, config),
        device,
        dtype or stored_dtype(stored),
    )
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        DunwuError: there is none, or it is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        why = "it holds an adapter, which needs its base model" if adapter else "config.json is missing"
        raise DunwuError(
            f"{folder} is no model folder: {why}", f"give a folder with config.json and {hf_weights.WEIGHTS}"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DunwuError(f"{file} is damaged: {error}", AGAIN) from error
    if not isinstance(record, dict):
        raise DunwuError(f"{file} is damaged: it is no JSON object", AGAIN)
    return record


def claimed_context(folder: Path) -> int:
    """The longest context that a folder's model claims, ours or not.

    Raises:
        DunwuError: as `read_config`, or a field of one of our classes is wrong.
    """
    record = read_config(folder)
    try:
        return from_hf_config(record, str(folder / "config.json")).max_position_embeddings
    except NotOurs:
        # A model without positions has no end of them.
        said = record.get("max_position_embeddings", record.get("n_positions"))
        return said if isinstance(said, int) else 1 << 20


def stop_ids_of(folder: Path) -> tuple[int, ...]:
    """Ids that end a text by a folder's `generation_config.json` or `config.json`; none where neither says."""
    for name in ("generation_config.json", "config.json"):
        try:
            ends = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ids = ends if isinstance(ends, list) else [ends]
        if ids and all(type(number) is int for number in ids):
            return tuple(ids)
    return ()


def stored_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """The dtype of a folder's weights: that of its embedding, since a few tensors may differ (V3's biases of experts)."""
    embedding = stored.get("model.embed_tokens.weight")
    return embedding.dtype if embedding else next(iter(stored.values())).dtype if stored else torch.float32


def save_model(
    model: Transformer, folder: Path, end_id: int, stop_ids: Sequence[int] = (), max_shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config.json, generation_config.json and the weights (the tokenizer saves itself).

    `generation_config.json` names tokens only: no temperature that other programs would apply unasked.

    Args:
        stop_ids: tokens that end a reply, for a model that chats; none for `end_id` alone.
        max_shard_bytes: larger weights go into several files with an index.

    Raises:
        DunwuError: no class that other programs load has this shape; a full disk.
    """
    saved = getattr(model, "save_foreign", None)
    if saved is not None:
        saved(folder)
        _write_generation(folder, end_id, stop_ids)
        return
    config = to_hf_config(model.config, model.head_weight.dtype, end_id)
    named = hf_weights.in_files(model.state_dict(), model.config)
    save_folder(folder, config, named | hf_weights.mtp_copies(named, model.config), end_id, stop_ids, max_shard_bytes)


def save_folder(
    folder: Path,
    config: Mapping[str, Any],
    named: Mapping[str, Tensor],
    end_id: int,
    stop_ids: Sequence[int] = (),
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder's three parts; config.json, without which it is no model, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    hf_weights.write_weights(named, folder, max_shard_bytes)
    _write_generation(folder, end_id, stop_ids)
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _write_generation(folder: Path, end_id: int, stop_ids: Sequence[int]) -> None:
    generation = {"eos_token_id": list(stop_ids) or end_id, "pad_token_id": end_id}
    write_atomically(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def resolve_dtype(precision: str, device: str, cpu_flags: set[str]) -> torch.dtype:
    """ "auto" → bf16 where the device multiplies it fast, else fp32."""
    if precision == "bf16":
        return torch.bfloat16
    if precision == "fp32":
        return torch.float32
    if device.startswith("cuda"):
        return torch.bfloat16
    fast = device == "cpu" and bool(cpu_flags & {"avx512_bf16", "amx_bf16"})
    return torch.bfloat16 if fast else torch.float32
