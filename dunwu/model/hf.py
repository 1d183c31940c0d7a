"""Model folders in Hugging Face's layout, in and out: `Qwen2ForCausalLM` with safetensors.

What we save loads unchanged in transformers, vLLM and llama.cpp's converter; what they save of the
same class loads here, sharded or not. Weights are stored as they are (bf16 or fp32), in one file. Not covered:
RoPE scaling, sliding windows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError


def to_hf_config(config: ModelConfig, dtype: torch.dtype, end_id: int) -> dict[str, Any]:
    """The `config.json` of a Qwen2ForCausalLM."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def from_hf_config(record: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """A ModelConfig from a Qwen2 `config.json`.

    Raises:
        DunwuError: another architecture, a missing field, or a feature that is not covered.
    """
    if record.get("model_type") != "qwen2":
        raise DunwuError(f"{where}: model_type is {record.get('model_type')!r}", "only qwen2 folders load at present")
    theta = record.get("rope_theta")
    scaling = record.get("rope_scaling") or record.get("rope_parameters") or {}
    theta = theta if theta is not None else scaling.get("rope_theta", 10_000.0)
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise DunwuError(f"{where}: RoPE scaling is not covered", "use a model without rope_scaling")
    try:
        heads, width = record["num_attention_heads"], record["hidden_size"]
        if record.get("head_dim", width // heads) != width // heads:
            raise DunwuError(f"{where}: head_dim {record['head_dim']} is not hidden_size / heads", "not a Qwen2 shape")
        return ModelConfig(
            vocab_size=record["vocab_size"],
            hidden_size=width,
            num_layers=record["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=record.get("num_key_value_heads", heads),
            intermediate_size=record["intermediate_size"],
            max_position_embeddings=record.get("max_position_embeddings", 32768),
            rope_theta=float(theta),
            rms_norm_eps=record.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=record.get("tie_word_embeddings", False),
            initializer_range=record.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise DunwuError(f"{where} has no field {error}", "is this a Qwen2 model folder?") from error


def save_model(model: Transformer, folder: Path, end_id: int, stop_ids: Sequence[int] = ()) -> None:
    """Write config.json, generation_config.json and model.safetensors (the tokenizer saves itself).

    Args:
        stop_ids: tokens that end a reply, for a model that chats; none for `end_id` alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = to_hf_config(model.config, model.head_weight.dtype, end_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ends = list(stop_ids) or end_id
    generation = {"eos_token_id": ends, "pad_token_id": end_id, "do_sample": True, "temperature": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_file(
        {k: t.contiguous() for k, t in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"}
    )


def load_model(folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Load a model folder.

    Args:
        dtype: converts the weights; None keeps them as stored.

    Raises:
        DunwuError: no such folder, a missing or damaged file, weights that do not fit the config.
    """
    folder = Path(folder)
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    sharded = folder / "model.safetensors.index.json"
    for file in (config_file, sharded if sharded.is_file() else weights_file):
        if not file.is_file():
            raise DunwuError(f"{folder} is no model folder: {file.name} is missing", "give a folder with both files")
    try:
        record = json.loads(config_file.read_text(encoding="utf-8"))
        tensors = _load_shards(sharded) if sharded.is_file() else load_file(weights_file)
    except (ValueError, KeyError, SafetensorError) as error:
        raise DunwuError(f"{folder} is damaged: {error}", "copy or build it again") from error
    config = from_hf_config(record, str(config_file))
    with torch.device("meta"):
        model = Transformer(config)
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    stored = next(iter(tensors.values())).dtype
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise DunwuError(f"{weights_file} does not fit its config.json: {detail}", "copy the folder again") from error
    return model.to(device=device, dtype=dtype or stored)


def _load_shards(index: Path) -> dict[str, torch.Tensor]:
    """The tensors of all files that the index of a sharded folder names."""
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        file = index.with_name(Path(name).name)
        if not file.is_file():
            raise DunwuError(f"{file} is missing, which {index.name} names", "copy the folder again")
        tensors |= load_file(file)
    return tensors


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
