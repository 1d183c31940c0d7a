"""Whole completions by `decode.c`: its structures mirrored, weights packed for it.

Legend: V vocabulary, D width, H query heads, K key/value heads, hd width of a head, F inner width, S cache columns.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dunwu.native.build import library
from dunwu.types import DunwuError, SamplingParams

LANES = 16
"""Outputs side by side in a packed panel; every width must be a multiple of it."""
BLOCK = 64
"""Rows a thread decodes at once: enough to use each weight often while it is in the cache, few enough that their
activations stay there too."""
CACHE_BYTES = 2 << 30
"""Most memory of all key/value caches together; with very long completions fewer rows are decoded at once."""


@dataclass(frozen=True)
class LayerWeights:
    """One block's parameters, as the model stores them."""

    attention_norm: Tensor
    """(D,)"""
    qkv: Tensor
    """((H + 2K)·hd, D): queries, keys, values, one below the other."""
    bias: Tensor
    """((H + 2K)·hd,)"""
    out: Tensor
    """(D, H·hd)"""
    feed_forward_norm: Tensor
    """(D,)"""
    gate_up: Tensor
    """(2F, D)"""
    down: Tensor
    """(D, F)"""


@dataclass(frozen=True)
class DecoderWeights:
    """A Qwen2-shaped decoder. All matrices have one dtype, float32 or bfloat16."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    """Inside RMSNorm."""
    embedding: Tensor
    """(V, D)"""
    head: Tensor
    """(V, D)"""
    norm: Tensor
    """(D,)"""
    layers: Sequence[LayerWeights]


@dataclass(frozen=True)
class Drawn:
    """What `generate` returns; rows in the order of the samples."""

    tokens: Tensor
    """(N, max_tokens) int32; valid up to the row's length, the stop token included."""
    logprobs: Tensor
    """(N, max_tokens) float32, nats, of the distribution drawn from."""
    lengths: Tensor
    """(N,) int32."""


def supports(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, width: int, inner: int) -> bool:
    """Whether this shape and dtype can be decoded natively on this machine."""
    if dtype not in (torch.float32, torch.bfloat16) or heads % kv_heads or heads * head_dim != width:
        return False
    if any(size % LANES for size in (head_dim, width, inner)):
        return False
    return library("decode", dtype == torch.bfloat16) is not None


def generate(
    weights: DecoderWeights,
    cos: Tensor,
    sin: Tensor,
    prompts: Sequence[Sequence[int]],
    prompt_of: Sequence[int],
    seeds: Sequence[int],
    stop_ids: Sequence[int],
    params: SamplingParams,
    threads: int,
) -> Drawn:
    """Draw `len(seeds)` completions; number i continues `prompts[prompt_of[i]]`.

    Samples of one prompt should stand side by side: a prompt is fed again when another comes between.

    Args:
        weights: read during the call only; nothing is kept.
        cos, sin: (S, hd/2) float32 tables of RoPE, S at least the longest prompt and completion together.
        threads: workers; the result does not depend on their number.

    Raises:
        DunwuError: the shape is not supported, or there is not enough memory.
        ValueError: no token is to be drawn, or a prompt's id is none of the vocabulary.
    """
    if params.max_tokens < 1:
        raise ValueError(f"max_tokens is {params.max_tokens}")
    bf16 = weights.head.dtype == torch.bfloat16
    native = library("decode", bf16)
    if native is None:
        raise DunwuError("native decoding is not available here", "ask `supports` first")
    longest = max(map(len, prompts)) + params.max_tokens
    columns = -(-longest // LANES) * LANES
    cos, sin = (torch.nn.functional.pad(table[:longest], (0, 0, 0, columns - longest)) for table in (cos, sin))
    count, rows = len(seeds), params.max_tokens
    drawn = Drawn(
        torch.zeros(count, rows, dtype=torch.int32), torch.zeros(count, rows), torch.zeros(count, dtype=torch.int32)
    )
    keep: list[object] = []  # whatever a pointer leads to
    model = _model(weights, cos, sin, columns, keep)
    stops = torch.tensor(list(stop_ids), dtype=torch.int32)
    sampling = _Sampling(params.temperature, params.top_p, params.top_k, rows, len(stops), stops.data_ptr())
    ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int32)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(weights.embedding):
        raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}, a vocabulary of {len(weights.embedding)}")
    ends = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0)
    places, numbers = torch.tensor(list(prompt_of), dtype=torch.int32), torch.tensor(list(seeds))
    cancelled = torch.zeros(1, dtype=torch.int32)
    tensors = (ids, ends, places, numbers, drawn.tokens, drawn.logprobs, drawn.lengths, cancelled)
    keep += [stops, tensors]
    pointers = [tensor.data_ptr() for tensor in tensors]
    samples = _Samples(count, *pointers)
    part = 2 * len(weights.layers) * weights.kv_heads * weights.head_dim * columns * weights.head.element_size()
    workers = max(1, min(threads, count))
    block = max(1, min(BLOCK, -(-count // workers), CACHE_BYTES // (part * workers) - 1))
    status: list[int] = []

    def call(held: list[object]) -> None:
        """Holds what the pointers lead to until it returns, even if the caller has been interrupted twice."""
        status.append(
            native.dunwu_generate(
                ctypes.byref(model),
                ctypes.byref(sampling),
                ctypes.byref(samples),
                ctypes.c_int(workers),
                ctypes.c_int(block),
            )
        )

    worker = threading.Thread(target=call, args=(keep,), name="dunwu-generate")
    worker.start()
    try:  # a native call cannot be interrupted: this thread listens for Ctrl-C meanwhile
        worker.join()
    finally:
        cancelled.fill_(1)
        worker.join()
    if status != [0]:
        raise DunwuError(f"not enough memory to decode {workers * block} rows of {longest} tokens", "lower max_tokens")
    return drawn


def pack(matrix: Tensor) -> Tensor:
    """(outputs, depth) → panels of 16 outputs, (outputs/16, depth/pair, 16, pair); pair is 2 in bfloat16, else 1.

    Outputs are filled up with zeros to a multiple of 16.

    Example:
        >>> pack(torch.arange(32.0).view(16, 2)).shape
        torch.Size([1, 2, 16, 1])
    """
    pair = 2 if matrix.dtype == torch.bfloat16 else 1
    outputs, depth = matrix.shape
    if outputs % LANES:
        matrix = torch.nn.functional.pad(matrix, (0, 0, 0, -outputs % LANES))
    return matrix.view(-1, LANES, depth // pair, pair).transpose(1, 2).contiguous()


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("attention_norm", "bias", "feed_forward_norm", "qkv", "out", "gate_up", "down")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "width", "heads", "kv_heads", "head_dim", "inner", "vocab", "columns")
        ),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "embedding", "norm", "head", "layer")),
    ]


class _Sampling(ctypes.Structure):
    _fields_ = [
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("max_tokens", ctypes.c_int32),
        ("stop_count", ctypes.c_int32),
        ("stops", ctypes.c_void_p),
    ]


class _Samples(ctypes.Structure):
    _fields_ = [
        ("samples", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "prompt_ids",
                "prompt_ends",
                "prompt_of",
                "seeds",
                "tokens",
                "logprobs",
                "lengths",
                "cancelled",
            )
        ),
    ]


def _model(weights: DecoderWeights, cos: Tensor, sin: Tensor, columns: int, keep: list[object]) -> _Model:
    def at(tensor: Tensor) -> int:
        keep.append(tensor)
        return tensor.data_ptr()

    layers = (_Layer * len(weights.layers))()
    for to, layer in zip(layers, weights.layers):
        to.attention_norm = at(layer.attention_norm.float().contiguous())
        to.bias = at(layer.bias.float().contiguous())
        to.feed_forward_norm = at(layer.feed_forward_norm.float().contiguous())
        to.qkv, to.out = at(pack(layer.qkv)), at(pack(layer.out))
        to.gate_up, to.down = at(pack(layer.gate_up)), at(pack(layer.down))
    keep.append(layers)
    vocab, width = weights.embedding.shape
    inner = weights.layers[0].down.shape[1]
    return _Model(
        len(weights.layers),
        width,
        weights.heads,
        weights.kv_heads,
        weights.head_dim,
        inner,
        vocab,
        columns,
        weights.eps,
        at(cos.contiguous()),
        at(sin.contiguous()),
        at(weights.embedding.contiguous()),
        at(weights.norm.float().contiguous()),
        at(pack(weights.head)),
        ctypes.addressof(layers),
    )
