"""A small shape of every class, with what its files can say, and models with random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from dunwu.model.config import LinearRope, Llama3Rope, MlaShape, ModelConfig, MoeShape, Yarn
from dunwu.model.transformer import Transformer

QWEN2 = ModelConfig(vocab_size=97, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=96)
PLAIN = replace(QWEN2, qkv_bias=False, max_position_embeddings=256)
MLA = MlaShape(kv_rank=32, nope_dim=16, rope_dim=8, value_dim=24, q_rank=40)
V3 = MoeShape(experts=8, per_token=2, width=24, shared=1, first_dense=1, groups=4, top_groups=2, scale=2.5)
YARN = Yarn(4.0, 64, mscale=1.0, mscale_all_dim=1.0)

SHAPES: dict[str, ModelConfig] = {
    "qwen2": QWEN2,
    "qwen2-untied": replace(QWEN2, tie_word_embeddings=False, rope_theta=1e6),
    "llama": replace(PLAIN, rope_scaling=Llama3Rope(4.0, 64), tie_word_embeddings=False),
    "llama-wide-heads": replace(PLAIN, head_size=32, rope_scaling=LinearRope(2.0)),
    "qwen3": replace(PLAIN, qk_norm=True, head_size=32, rope_scaling=Yarn(4.0, 64)),
    "qwen3_moe": replace(PLAIN, qk_norm=True, moe=MoeShape(8, 2, 24, first_dense=1, gate="softmax")),
    "deepseek_v3": replace(PLAIN, num_kv_heads=4, mla=MLA, moe=V3, rope_scaling=YARN, tie_word_embeddings=False),
    "deepseek_v3-dense": replace(PLAIN, num_kv_heads=4, mla=replace(MLA, q_rank=0, rope_interleave=False)),
}
"""By name; no two alike in what a file must say."""


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Weights that hide nothing: biases are not 0, norms not 1, experts not balanced."""
    model = Transformer(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=draw)
    return model.eval()
