"""What a model's parts are called in GGUF, and how llama.cpp wants them laid out: one `Entry` for every tensor.

The plan follows from `ModelConfig` alone, so a file's head can be written before any weight is read. What differs from
Hugging Face's layout:

    llama         rows of queries and keys within a head: halves (i, i + d/2) → neighbours (2i, 2i + 1)
    experts       one tensor for all of a layer, (E, out, in)
    deepseek2     the keys' and values' expansion of the latent cut in two: attn_k_b (H, R, nope), transposed, so that it
                  acts on the query, and attn_v_b (H, value, R); RoPE's neighbours side by side, as in V3's files
    Llama 3's RoPE scaling is a tensor of divisors

Legend: V vocabulary, D width, F inner width, E experts, H query heads, R rank of MLA's latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dunwu.model.config import Llama3Rope, MlaShape, ModelConfig, MoeShape
from dunwu.model.rope import frequencies
from dunwu.types import DunwuError

ARCHITECTURES = {
    "qwen2": "qwen2",
    "llama": "llama",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "deepseek_v3": "deepseek2",
}
"""`model_type` of config.json → llama.cpp's architecture."""
_LITE_LAYERS = (26, 27)


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: where its numbers come from and what is done to them."""

    name: str
    """llama.cpp's name."""
    shape: tuple[int, ...]
    """As it is written, the contiguous axis last."""
    sources: tuple[str, ...]
    """Names in the model folder whose rows follow each other: one, or one for every expert; none with `values`."""
    source_shape: tuple[int, ...]
    """Shape of each of them."""
    block: int = 1
    """Rows that must be read together (a head's)."""
    change: Callable[[Tensor], Tensor] | None = None
    """What is done to blocks (n, block, columns)."""
    exact: bool = False
    """Stays float32: vectors, and the router, whose choice turns on last digits."""
    values: Tensor | None = None
    """A computed tensor."""


def plan(config: ModelConfig) -> list[Entry]:
    """Every tensor of the GGUF file, in its order.

    Raises:
        DunwuError: llama.cpp cannot run this shape.

    Example:
        >>> [entry.name for entry in plan(ModelConfig(num_layers=1, qkv_bias=False))][-3:]
        ['blk.0.ffn_gate.weight', 'blk.0.ffn_up.weight', 'blk.0.ffn_down.weight']
    """
    require_runnable(config)
    return parts(config)


def sources(entries: list[Entry]) -> dict[str, tuple[int, ...]]:
    """The tensors that entries are made of, as a model folder names them, and their shapes."""
    return {source: entry.source_shape for entry in entries for source in entry.sources}


def parts(config: ModelConfig) -> list[Entry]:
    """`plan`, whether llama.cpp runs the shape or not."""
    d, v = config.hidden_size, config.vocab_size
    entries = [_matrix("token_embd", "model.embed_tokens", v, d), _vector("output_norm", "model.norm", d)]
    if not config.tie_word_embeddings:
        entries.append(_matrix("output", "lm_head", v, d))
    if isinstance(config.rope_scaling, Llama3Rope):
        divisors = rope_divisors(config)
        entries.append(Entry("rope_freqs.weight", tuple(divisors.shape), (), (), exact=True, values=divisors))
    for number in range(config.num_layers):
        here, there = f"blk.{number}.", f"model.layers.{number}."
        entries.append(_vector(f"{here}attn_norm", f"{there}input_layernorm", d))
        entries += _latent(config, config.mla, here, there) if config.mla else _grouped(config, here, there)
        entries.append(_vector(f"{here}ffn_norm", f"{there}post_attention_layernorm", d))
        if config.moe and config.is_moe(number):
            entries += _experts(config, config.moe, here, f"{there}mlp.")
        else:
            entries += _feed_forward("", f"{here}ffn_", f"{there}mlp.", d, config.intermediate_size)
    return entries


def require_runnable(config: ModelConfig) -> None:
    """Raise DunwuError where llama.cpp has no word for a shape, or would misread it."""
    moe, layers = config.moe, config.num_layers
    if isinstance(config.rope_scaling, Llama3Rope) and config.model_type != "llama":
        raise DunwuError(f"llama.cpp knows Llama 3's RoPE scaling in llama models only, not {config.model_type}", _KEEP)
    if config.model_type == "qwen3_moe" and moe:
        if moe.first_dense or moe.shared:
            raise DunwuError("llama.cpp's qwen3moe has experts in every layer and none shared", _KEEP)
        if not moe.normalize or moe.scale != 1 or moe.gate != "softmax" or moe.groups > moe.top_groups:
            raise DunwuError("llama.cpp's qwen3moe routes by softmax, normalised, without scale or groups", _KEEP)
    if config.mla and config.mla.q_rank and (layers in _LITE_LAYERS or (layers, config.vocab_size) == (48, 128256)):
        raise DunwuError(
            f"llama.cpp takes {layers} layers of this class for a model without a rank of queries, and fails on yours",
            "train with another number of layers, or with q_rank 0",
        )
    if config.mla and moe and not moe.shared:
        raise DunwuError("llama.cpp's deepseek2 needs a shared expert in every layer with experts", _KEEP)


_KEEP = "use `--to hf`, whose folder vLLM and transformers load"


def rope_divisors(config: ModelConfig) -> Tensor:
    """What llama.cpp divides each pair's frequency by, (d/2,) float32: Llama 3's scaling as numbers."""
    plain, _ = frequencies(config.rope_dim, config.rope_theta, None)
    scaled, _ = frequencies(config.rope_dim, config.rope_theta, config.rope_scaling)
    return plain / scaled


def _grouped(config: ModelConfig, here: str, there: str) -> Iterator[Entry]:
    d, size = config.hidden_size, config.head_dim
    q, kv = config.num_heads * size, config.num_kv_heads * size
    change = _neighbours if config.model_type == "llama" else None
    for letter, rows in (("q", q), ("k", kv), ("v", kv)):
        name, source = f"{here}attn_{letter}", f"{there}self_attn.{letter}_proj"
        turned = change if letter != "v" else None
        yield _matrix(name, source, rows, d, block=size if turned else 1, change=turned)
        if config.qkv_bias:
            yield Entry(f"{name}.bias", (rows,), (f"{source}.bias",), (rows,), exact=True)
        if config.qk_norm and letter != "v":
            yield _vector(f"{name}_norm", f"{there}self_attn.{letter}_norm", size)
    yield _matrix(f"{here}attn_output", f"{there}self_attn.o_proj", d, q)


def _latent(config: ModelConfig, mla: MlaShape, here: str, there: str) -> Iterator[Entry]:
    d, h, rank, attention = config.hidden_size, config.num_heads, mla.kv_rank, f"{there}self_attn."
    change = None if mla.rope_interleave else _last_neighbours(mla.rope_dim)
    block = 1 if change is None else mla.query_dim
    if mla.q_rank:
        yield _matrix(f"{here}attn_q_a", f"{attention}q_a_proj", mla.q_rank, d)
        yield _vector(f"{here}attn_q_a_norm", f"{attention}q_a_layernorm", mla.q_rank)
        yield _matrix(f"{here}attn_q_b", f"{attention}q_b_proj", h * mla.query_dim, mla.q_rank, block, change)
    else:
        yield _matrix(f"{here}attn_q", f"{attention}q_proj", h * mla.query_dim, d, block, change)
    latent = rank + mla.rope_dim
    source = f"{attention}kv_a_proj_with_mqa"
    yield _matrix(f"{here}attn_kv_a_mqa", source, latent, d, 1 if change is None else latent, change)
    yield _vector(f"{here}attn_kv_a_norm", f"{attention}kv_a_layernorm", rank)
    block, nope = mla.nope_dim + mla.value_dim, mla.nope_dim
    both = ((f"{attention}kv_b_proj.weight",), (h * block, rank), block)
    yield Entry(f"{here}attn_k_b.weight", (h, rank, nope), *both, lambda x: x[:, :nope].transpose(1, 2))
    yield Entry(f"{here}attn_v_b.weight", (h, mla.value_dim, rank), *both, lambda x: x[:, nope:])
    yield _matrix(f"{here}attn_output", f"{attention}o_proj", d, h * mla.value_dim)


def _feed_forward(suffix: str, here: str, there: str, d: int, f: int) -> Iterator[Entry]:
    for part, rows, columns in (("gate", f, d), ("up", f, d), ("down", d, f)):
        yield _matrix(f"{here}{part}{suffix}", f"{there}{part}_proj", rows, columns)


def _experts(config: ModelConfig, moe: MoeShape, here: str, there: str) -> Iterator[Entry]:
    d, e = config.hidden_size, moe.experts
    router = f"{there}gate.weight"
    yield Entry(f"{here}ffn_gate_inp.weight", (e, d), (router,), (e, d), exact=True)
    if moe.gate == "sigmoid":
        bias = f"{there}gate.e_score_correction_bias"
        yield Entry(f"{here}exp_probs_b.bias", (e,), (bias,), (e,), exact=True)
    for part, rows, columns in (("gate", moe.width, d), ("up", moe.width, d), ("down", d, moe.width)):
        sources = tuple(f"{there}experts.{n}.{part}_proj.weight" for n in range(e))
        yield Entry(f"{here}ffn_{part}_exps.weight", (e, rows, columns), sources, (rows, columns))
    if moe.shared:
        yield from _feed_forward("_shexp", f"{here}ffn_", f"{there}shared_experts.", d, moe.width * moe.shared)


def _matrix(
    name: str, source: str, rows: int, columns: int, block: int = 1, change: Callable[[Tensor], Tensor] | None = None
) -> Entry:
    return Entry(f"{name}.weight", (rows, columns), (f"{source}.weight",), (rows, columns), block, change)


def _vector(name: str, source: str, size: int) -> Entry:
    return Entry(f"{name}.weight", (size,), (f"{source}.weight",), (size,), exact=True)


def _neighbours(rows: Tensor) -> Tensor:
    """Halves (i, i + d/2) of the second axis to neighbours (2i, 2i + 1): the inverse of `rope.apart`.

    Example:
        >>> _neighbours(torch.arange(4).reshape(1, 4, 1)).flatten().tolist()
        [0, 2, 1, 3]
    """
    first, second = rows.chunk(2, dim=1)
    return torch.stack((first, second), dim=2).flatten(1, 2)


def _last_neighbours(width: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.cat((rows[:, :-width], _neighbours(rows[:, -width:])), dim=1)
