"""`config.json` and ModelConfig, each from the other, for the five classes that are ours.

Read: what transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write, and the hub's own files. Written:
`rope_theta` and `rope_scaling`, which all of transformers, vLLM, SGLang and llama.cpp's converter understand. A field that
could change the computation is never passed over: it is used, or it must say what our computation does, or it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from dunwu.model.config import LinearRope, Llama3Rope, MlaShape, ModelConfig, ModelType, MoeShape, RopeScaling, Yarn
from dunwu.model.hf_fields import KNOWN, Fields, NotOurs
from dunwu.types import DunwuError, UsageError

CLASSES: dict[ModelType, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
"""Class by `model_type`; people call them `KNOWN`."""

__all__ = ["CLASSES", "KNOWN", "NotOurs", "from_hf_config", "to_hf_config"]

# ---- reading --------------------------------------------------------------------------------


def from_hf_config(record: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The shape that a `config.json` describes.

    Args:
        where: the file's name, for messages.

    Raises:
        NotOurs: another architecture, or a feature of one that is not covered.
        DunwuError: a missing, unknown or impossible field, quantised weights.

    Example:
        >>> record = to_hf_config(ModelConfig(qkv_bias=False), torch.float32, end_id=0)
        >>> from_hf_config(record).model_type
        'llama'
    """
    kind = record.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise NotOurs(f"{where}: model_type is {kind!r}")
    if record.get("quantization_config"):
        raise DunwuError(
            f"{where}: quantization_config: quantised weights are not read", "give the model's bf16 or fp32 weights"
        )
    of = Fields(record, where)
    _check_common(of)
    config = _READERS[kind](of, _common(of))
    of.check_rest(f"a {kind}")
    try:
        config.validate()
    except UsageError as error:
        raise DunwuError(f"{where}: {error.what}", error.cure) from error
    return config


def _check_common(of: Fields) -> None:
    of.only("hidden_act", "silu")
    of.only("attention_dropout", 0.0)
    of.only("attention_bias", False)
    of.only("mlp_bias", False)
    of.only("use_mrope", False)
    of.only("partial_rotary_factor", 1.0)
    layers = of.whole("num_hidden_layers")
    strange = [kind for kind in of.items("layer_types") if kind != "full_attention"]
    if strange:
        raise NotOurs(f"{of.where}: layer_types has {strange[0]!r}")
    if of.flag("use_sliding_window", False) and of.whole("max_window_layers", 0, least=0) < layers:
        window = of.whole("sliding_window", 4096)
        if window < of.whole("max_position_embeddings"):
            raise NotOurs(f"{of.where}: use_sliding_window with a window of {window}")


def _common(of: Fields) -> ModelConfig:
    """What all classes have; a dense model without biases."""
    heads, width = of.whole("num_attention_heads"), of.whole("hidden_size")
    head = of.whole("head_dim", 0, least=0)
    context = of.whole("max_position_embeddings")
    theta, scaling = _rope(of, context)
    return ModelConfig(
        vocab_size=of.whole("vocab_size"),
        hidden_size=width,
        num_layers=of.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=of.whole("num_key_value_heads", heads),
        intermediate_size=of.whole("intermediate_size"),
        max_position_embeddings=context,
        rope_theta=theta,
        rms_norm_eps=of.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=of.flag("tie_word_embeddings", False),
        initializer_range=of.number("initializer_range", 0.02),
        head_size=0 if head * heads == width else head,
        qkv_bias=False,
        rope_scaling=scaling,
    )


def _qwen2(of: Fields, common: ModelConfig) -> ModelConfig:
    return replace(common, qkv_bias=True)


def _llama(of: Fields, common: ModelConfig) -> ModelConfig:
    return common


def _qwen3(of: Fields, common: ModelConfig) -> ModelConfig:
    # The class's own default; a Qwen3's heads need not add up to its width.
    head = common.head_dim if "head_dim" in of.record else 128
    return replace(common, qk_norm=True, head_size=0 if head * common.num_heads == common.hidden_size else head)


def _qwen3_moe(of: Fields, common: ModelConfig) -> ModelConfig:
    of.only("decoder_sparse_step", 1)
    dense = of.items("mlp_only_layers")
    if set(dense) != set(range(len(dense))):
        raise NotOurs(f"{of.where}: mlp_only_layers is {dense}, not the layers from 0 on")
    of.seen |= {"num_experts", "num_local_experts"}
    moe = MoeShape(
        experts=of.whole("num_local_experts" if "num_local_experts" in of.record else "num_experts"),
        per_token=of.whole("num_experts_per_tok"),
        width=of.whole("moe_intermediate_size"),
        first_dense=len(dense),
        gate="softmax",
        normalize=of.flag("norm_topk_prob", False),
    )
    return replace(common, qk_norm=True, moe=moe)


def _deepseek_v3(of: Fields, common: ModelConfig) -> ModelConfig:
    of.only("scoring_func", "sigmoid")
    of.only("topk_method", "noaux_tc")
    of.only("moe_layer_freq", 1)
    mla = MlaShape(
        kv_rank=of.whole("kv_lora_rank"),
        nope_dim=of.whole("qk_nope_head_dim"),
        rope_dim=of.whole("qk_rope_head_dim"),
        value_dim=of.whole("v_head_dim"),
        q_rank=of.whole("q_lora_rank", 0, least=0),
        rope_interleave=of.flag("rope_interleave", True),
    )
    # A field that is not there has the class's default, which is V3's own.
    moe = MoeShape(
        experts=of.whole("n_routed_experts"),
        per_token=of.whole("num_experts_per_tok"),
        width=of.whole("moe_intermediate_size"),
        shared=of.whole("n_shared_experts", 1, least=0),
        first_dense=of.whole("first_k_dense_replace", 3, least=0),
        groups=of.whole("n_group", 8),
        top_groups=of.whole("topk_group", 4),
        gate="sigmoid",
        normalize=of.flag("norm_topk_prob", True),
        scale=of.number("routed_scaling_factor", 2.5),
    )
    of.seen.add("num_mtp_layers")
    depth = of.whole("num_nextn_predict_layers", of.record.get("num_mtp_layers") or 0, least=0)
    if depth > 1:
        raise NotOurs(f"{of.where}: num_nextn_predict_layers is {depth}")
    dense = moe.first_dense >= common.num_layers + depth
    # Heads of latent attention have their own widths, and all have keys and values of their own.
    return replace(
        common,
        num_kv_heads=common.num_heads,
        head_size=0,
        mla=mla,
        moe=None if dense else moe,
        mtp_depth=depth,
    )


_READERS: dict[str, Callable[[Fields, ModelConfig], ModelConfig]] = {
    "qwen2": _qwen2,
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v3": _deepseek_v3,
}


def _rope(of: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """RoPE's base and scaling, from either form."""
    top = of.number("rope_theta", 10_000.0)
    of.seen |= {"rope_scaling", "rope_parameters"}
    for name in ("rope_scaling", "rope_parameters"):
        record = of.value(name, None)
        if record is None or record == {}:
            continue
        if not isinstance(record, dict):
            raise of.wrong(name, record, "an object")
        if name == "rope_parameters" and set(record) == {"full_attention"}:
            record = record["full_attention"]
        inner = Fields(record, f"{of.where}: {name}")
        theta = inner.number("rope_theta", top)
        inner.only("partial_rotary_factor", 1.0)
        return theta, _scaling(inner, context)
    return top, None


def _scaling(of: Fields, context: int) -> RopeScaling | None:
    of.seen |= {"type", "rope_type"}
    kind = of.value("rope_type", of.record.get("type") or "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise NotOurs(f"{of.where}: RoPE scaling is {kind!r}")
    scaling: RopeScaling | None = None
    if kind == "linear":
        scaling = LinearRope(of.number("factor"))
    elif kind == "llama3":
        scaling = Llama3Rope(
            factor=of.number("factor"),
            original=of.whole("original_max_position_embeddings", context),
            low_freq_factor=of.number("low_freq_factor"),
            high_freq_factor=of.number("high_freq_factor"),
        )
    elif kind == "yarn":
        scaling = Yarn(
            factor=of.number("factor"),
            original=of.whole("original_max_position_embeddings", context),
            beta_fast=of.number("beta_fast", 32.0),
            beta_slow=of.number("beta_slow", 1.0),
            mscale=of.number("mscale", 0.0, above=-1.0),
            mscale_all_dim=of.number("mscale_all_dim", 0.0, above=-1.0),
            attention_factor=of.number("attention_factor", 0.0, above=-1.0),
            truncate=of.flag("truncate", True),
        )
    of.check_rest(f"RoPE scaling '{kind}'")
    return scaling


# ---- writing --------------------------------------------------------------------------------


def to_hf_config(config: ModelConfig, dtype: torch.dtype, end_id: int) -> dict[str, Any]:
    """The `config.json` of the class that this shape has.

    Raises:
        DunwuError: no class that other programs load has this shape.
    """
    kind = config.model_type
    record: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads if config.mla else config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if config.rope_scaling:
        record["rope_scaling"] = _scaling_record(config.rope_scaling)
    if kind != "qwen2":
        record["attention_bias"] = False
    if kind == "llama":
        record["mlp_bias"] = False
    elif kind != "deepseek_v3":
        record["use_sliding_window"] = False
    if not config.mla and (kind != "qwen2" or config.head_size):
        record["head_dim"] = config.head_dim
    record |= _latent_record(config) if config.mla else _experts_record(config)
    _check_sayable(config, record)
    return record


def _experts_record(config: ModelConfig) -> dict[str, Any]:
    """Qwen3-MoE's fields."""
    moe = config.moe
    if moe is None:
        return {}
    return {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.per_token,
        "moe_intermediate_size": moe.width,
        "norm_topk_prob": moe.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(moe.first_dense)),
    }


def _latent_record(config: ModelConfig) -> dict[str, Any]:
    """DeepSeek-V3's fields. The class always has experts somewhere; a dense model puts them above its last layer."""
    mla, moe = config.mla, config.moe
    assert mla is not None
    if moe is None:
        dense = config.num_layers + config.mtp_depth
        moe = MoeShape(experts=2, per_token=1, width=config.intermediate_size, shared=1, first_dense=dense)
    return {
        "kv_lora_rank": mla.kv_rank,
        "q_lora_rank": mla.q_rank or None,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.value_dim,
        "rope_interleave": mla.rope_interleave,
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared,
        "num_experts_per_tok": moe.per_token,
        "moe_intermediate_size": moe.width,
        "first_k_dense_replace": moe.first_dense,
        "moe_layer_freq": 1,
        "n_group": moe.groups,
        "topk_group": moe.top_groups,
        "norm_topk_prob": moe.normalize,
        "routed_scaling_factor": moe.scale,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": config.mtp_depth,
    }


def _scaling_record(scaling: RopeScaling) -> dict[str, Any]:
    """`rope_scaling`; the kind under the new name and the old."""
    if isinstance(scaling, LinearRope):
        return {"rope_type": "linear", "type": "linear", "factor": scaling.factor}
    record: dict[str, Any] = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original}
    if isinstance(scaling, Llama3Rope):
        ends = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        return {"rope_type": "llama3", "type": "llama3"} | record | ends
    said = {name: getattr(scaling, name) for name in ("mscale", "mscale_all_dim", "attention_factor")}
    record |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    record |= {name: value for name, value in said.items() if value}
    return {"rope_type": "yarn", "type": "yarn"} | record | ({} if scaling.truncate else {"truncate": False})


def _check_sayable(config: ModelConfig, record: dict[str, Any]) -> None:
    """What a reader makes of the record is the shape it was made from."""
    wanted = replace(
        config, head_size=0 if config.head_dim * config.num_heads == config.hidden_size else config.head_dim
    )
    if config.mla:
        wanted = replace(wanted, head_size=0, qkv_bias=False, qk_norm=False, num_kv_heads=config.num_heads)
    read = from_hf_config(record)
    for field in fields(ModelConfig):
        ours, theirs = getattr(wanted, field.name), getattr(read, field.name)
        if ours != theirs:
            raise DunwuError(
                f"no {CLASSES[config.model_type]} has {field.name} = {ours}; others would read {theirs}",
                "change the shape to one that others can load",
            )
