"""The classes of the family, tiny and odd, each beside transformers' model of the same shape with the same random weights.

No weight is what a fresh model would have: biases and norms that stand at zero and one would hide a missing one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dunwu.model.config import LinearRope, Llama3Rope, MlaShape, ModelConfig, MoeShape, Yarn
from dunwu.model.mla import LatentAttention
from dunwu.model.transformer import Transformer
from dunwu.native import train

V = 99
QWEN2 = ModelConfig(
    vocab_size=V, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, rms_norm_eps=1e-5
)
LLAMA = replace(QWEN2, qkv_bias=False)
QWEN3 = replace(LLAMA, qk_norm=True, head_size=32)
QWEN3_MOE = replace(QWEN3, head_size=16, num_kv_heads=1, moe=MoeShape(8, 3, 32, gate="softmax"))
LATENT = MlaShape(kv_rank=32, nope_dim=32, rope_dim=16, value_dim=32, q_rank=24)
EXPERTS = MoeShape(8, 3, 32, shared=1, first_dense=1, groups=4, top_groups=2, scale=2.5)
V3_YARN = Yarn(4.0, 16, mscale=1.0, mscale_all_dim=1.0)
V3 = replace(LLAMA, tie_word_embeddings=False, mla=LATENT, moe=EXPERTS)

FAMILIES: dict[str, ModelConfig] = {
    "qwen2": QWEN2,
    "qwen2 untied": replace(QWEN2, tie_word_embeddings=False, rope_theta=1e6, num_kv_heads=1),
    "qwen2 yarn": replace(QWEN2, rope_scaling=Yarn(4.0, 16)),
    "qwen2 linear": replace(QWEN2, rope_scaling=LinearRope(4.0)),
    "llama": replace(LLAMA, rope_scaling=Llama3Rope(8.0, 32), tie_word_embeddings=False),
    "llama wide heads": replace(LLAMA, head_size=48, num_kv_heads=4),
    "qwen3": QWEN3,
    "qwen3 yarn": replace(QWEN3, rope_scaling=Yarn(2.0, 32, truncate=False), tie_word_embeddings=False),
    "qwen3_moe": replace(QWEN3_MOE, tie_word_embeddings=False),
    "qwen3_moe tied, one dense": replace(
        QWEN3_MOE, moe=MoeShape(8, 2, 48, first_dense=1, gate="softmax", normalize=False), rope_scaling=Yarn(4.0, 16)
    ),
    "v3": replace(V3, rope_scaling=V3_YARN, num_layers=3),
    "v3 full queries, one group": replace(
        V3, mla=replace(LATENT, q_rank=0), moe=replace(EXPERTS, groups=1, top_groups=1, first_dense=0, normalize=False)
    ),
    "v3 wide values": replace(V3, mla=replace(LATENT, value_dim=64, rope_interleave=False), tie_word_embeddings=True),
    "v3 narrow values": replace(
        V3,
        mla=replace(LATENT, value_dim=16, q_rank=0, rope_interleave=False),
        moe=replace(EXPERTS, shared=2, top_groups=3, first_dense=0),
        rope_scaling=Yarn(4.0, 16, beta_fast=8.0, mscale=0.7, mscale_all_dim=1.3, truncate=False),
    ),
    "v3 dense": replace(V3, moe=None, rope_scaling=Yarn(4.0, 16)),
    "v3 mtp": replace(V3, mtp_depth=1),
    "v3 odd widths": replace(
        V3, hidden_size=60, mla=MlaShape(22, 15, 6, 13, 10), moe=replace(EXPERTS, width=30), intermediate_size=50
    ),
}
"""Every class; attention, routing and RoPE in every variety between them."""
PLAIN_ONLY = ("v3 odd widths",)
"""Shapes that the kernels refuse."""


@cache
def pair(name: str) -> tuple[Any, Transformer]:
    """transformers' model and ours, weights equal, fp32; neither may be changed."""
    config = FAMILIES[name]
    theirs = reference(config)
    return theirs, like(theirs, config)


def reference(config: ModelConfig, seed: int = 0) -> Any:
    """transformers' model of this shape with random weights; experts one after the other, its plainest way."""
    transformers = pytest.importorskip("transformers", minversion="5", reason="the [hf] extra is not installed")
    kind = {"qwen2": "Qwen2", "llama": "Llama", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
    stem = kind.get(config.model_type, "DeepseekV3")
    record = getattr(transformers, stem + "Config")(**their_fields(config))
    theirs = getattr(transformers, stem + "ForCausalLM")(record).float().eval()
    if config.moe:
        theirs.set_experts_implementation("eager")
    randomize(theirs, seed)
    return theirs


def like(theirs: Any, config: ModelConfig) -> Transformer:
    """Ours with their weights, name by name; MTP, which theirs has elsewhere, has random ones."""
    ours = Transformer(config).eval()
    randomize(ours, seed=1)
    state = dict(theirs.state_dict())
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("model.mtp.") for name in missing)
    return ours


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Weights that make logits of some size, routers that prefer, norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            p.normal_(0.0, 0.2, generator=generator)
        elif "norm" in name:
            p.uniform_(0.5, 1.5, generator=generator)
        else:
            p.normal_(0.0, 0.3, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.2, generator=generator)


def their_fields(config: ModelConfig) -> dict[str, Any]:
    """Arguments of transformers' config, written out here so that `hf_config.py` is no part of the oracle."""
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads if config.mla else config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": 64,
        "rope_parameters": their_rope(config),
        "attention_bias": config.qkv_bias,
    }
    moe, mla = config.moe, config.mla
    if moe:
        fields |= {"num_experts_per_tok": moe.per_token, "norm_topk_prob": moe.normalize}
        fields |= {"moe_intermediate_size": moe.width}
    if mla is None:
        fields |= {"head_dim": config.head_dim}
        return fields | ({"num_experts": moe.experts, "mlp_only_layers": [*range(moe.first_dense)]} if moe else {})
    fields |= {"kv_lora_rank": mla.kv_rank, "q_lora_rank": mla.q_rank or None, "rope_interleave": mla.rope_interleave}
    fields |= {"qk_rope_head_dim": mla.rope_dim, "qk_nope_head_dim": mla.nope_dim, "v_head_dim": mla.value_dim}
    if moe is None:
        return fields | {"first_k_dense_replace": config.num_layers}
    fields |= {"n_routed_experts": moe.experts, "n_group": moe.groups, "topk_group": moe.top_groups}
    fields |= {"n_shared_experts": moe.shared, "first_k_dense_replace": moe.first_dense}
    return fields | {"routed_scaling_factor": moe.scale}


def their_rope(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` of transformers 5."""
    scaling, theta = config.rope_scaling, {"rope_theta": config.rope_theta}
    if scaling is None:
        return {"rope_type": "default"} | theta
    if isinstance(scaling, LinearRope):
        return {"rope_type": "linear", "factor": scaling.factor} | theta
    theta |= {"factor": scaling.factor, "original_max_position_embeddings": scaling.original}
    if isinstance(scaling, Llama3Rope):
        ends = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        return {"rope_type": "llama3"} | theta | ends
    ramp = {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    factors = {name: getattr(scaling, name) for name in ("mscale", "mscale_all_dim", "attention_factor")}
    return {"rope_type": "yarn"} | theta | ramp | {name: value for name, value in factors.items() if value}


def ids(*shape: int, seed: int = 0) -> Tensor:
    """Random tokens."""
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


@cache
def expected(name: str, rows: int, length: int) -> Tensor:
    """What transformers says to `ids(rows, length)`: (rows, length, V)."""
    with torch.no_grad():
        logits: Tensor = pair(name)[0](ids(rows, length)).logits
    return logits


@contextmanager
def way(native: bool) -> Iterator[None]:
    """Through the C kernels, or through plain torch."""
    if native and not train.available(torch.float32):
        pytest.skip("no C compiler")
    before, Transformer.native_allowed = Transformer.native_allowed, native
    try:
        yield
    finally:
        Transformer.native_allowed = before


@contextmanager
def absorbing(few: int) -> Iterator[None]:
    """Latent attention absorbs for up to so many new tokens."""
    before, LatentAttention.few = LatentAttention.few, few
    try:
        yield
    finally:
        LatentAttention.few = before


def farthest(mine: Tensor, other: Tensor) -> float:
    """max |Δ|; infinite where something is no number."""
    assert mine.shape == other.shape, (mine.shape, other.shape)
    worst = float((mine.float() - other.float()).abs().max())
    return math.inf if math.isnan(worst) else worst
