"""The parts of a training step in `train.c`, as differentiable functions of torch tensors on the CPU.

Legend: N tokens, D width, H query heads, K key/value heads, hd width of a head, F inner width, V vocabulary.
All tensors of a call have one dtype, float32 or bfloat16; sums are made in fp32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.native.build import library
from dunwu.types import DunwuError

LANES = 16


def available(dtype: torch.dtype) -> bool:
    """Whether the kernels can be had here for this dtype."""
    return dtype in (torch.float32, torch.bfloat16) and library("train", dtype == torch.bfloat16) is not None


def supports(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, *widths: int) -> bool:
    """Whether a decoder of this shape and dtype can be trained natively on this machine.

    Args:
        widths: of the residual stream and of every feed-forward.
    """
    return heads % kv_heads == 0 and not any(size % LANES for size in (head_dim, *widths)) and available(dtype)


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `end`, each of which sees those before it, and all tokens of the prefix.

    The prefix is a segment that stands earlier, between it and this one only others of the same prefix: the prompt
    that several completions share. Empty (0, 0) by default.
    """

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0


class Layout:
    """How the N tokens of a call lie: their segments, and the position of each for RoPE.

    Args:
        segments: in order, without gaps, from token 0 to the last.
        heads, kv_heads, head_dim: of the model.
        cos, sin: (positions, hd/2) float32 tables of RoPE.

    Positions count on from the prefix's end.

    Raises:
        ValueError: the segments leave a gap, or a prefix is no segment of the same tree.
    """

    def __init__(
        self, segments: Sequence[Segment], heads: int, kv_heads: int, head_dim: int, cos: Tensor, sin: Tensor
    ) -> None:
        ends: list[int] = []
        at, root = 0, (0, 0)
        for n, s in enumerate(segments):
            prefix = (s.prefix_start, s.prefix_end)
            if s.start != at or s.end <= at:
                raise ValueError(f"segment {n} goes from {s.start} to {s.end} after {at}")
            if prefix[0] >= prefix[1]:
                root = (s.start, s.end)
                ends.append(n)
            elif prefix != root:
                raise ValueError(f"segment {n} has the prefix {prefix}, its tree begins with {root}")
            ends[-1] = n + 1
            at = s.end
        rows = torch.tensor([(s.start, s.end, s.prefix_start, s.prefix_end) for s in segments], dtype=torch.int32)
        starts, stops, prefix_starts, prefix_ends = rows.long().T
        moved = starts - (prefix_ends - prefix_starts)
        positions = torch.arange(at) - moved.repeat_interleave(stops - starts)
        if len(cos) <= int(positions.max()):
            raise ValueError(f"RoPE tables of {len(cos)} positions, the longest text has {int(positions.max()) + 1}")
        self.tokens = at
        self._keep = [
            rows,
            torch.tensor(ends, dtype=torch.int32),
            positions.int(),
            cos.float().contiguous(),
            sin.float().contiguous(),
        ]
        self.native = _Layout(
            heads, kv_heads, head_dim, len(ends), *(tensor.data_ptr() for tensor in self._keep), self.tokens
        )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim


def norm(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Residual sum h = x + branch (x itself without one) and y = h / rms(h) · weight; both (N, D)."""
    if branch is None:
        y, _ = _Norm.apply(x, None, weight, eps)  # type: ignore[no-untyped-call]
        return x, y
    y, h = _Norm.apply(x, branch, weight, eps)  # type: ignore[no-untyped-call]
    return h, y


def swiglu(gate_up: Tensor) -> Tensor:
    """(N, 2F), gate first → silu(gate) · up, (N, F).

    Raises:
        ValueError: F is no multiple of 16.
    """
    if gate_up.shape[-1] % (2 * LANES):
        raise ValueError(f"an inner width of {gate_up.shape[-1] // 2} is no multiple of {LANES}")
    y: Tensor = _SwiGlu.apply(gate_up)  # type: ignore[no-untyped-call]
    return y


def attention(qkv: Tensor, layout: Layout) -> Tensor:
    """RoPE and causal grouped-query attention of (N, (H + 2K)·hd), queries first → (N, H·hd)."""
    out: Tensor = _Attention.apply(qkv, layout)  # type: ignore[no-untyped-call]
    return out


def chosen_logprobs(
    hidden: Tensor, head: Tensor, chosen: Tensor, temperature: float, rows: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of `chosen` under softmax(hidden @ head^T / temperature), and that distribution's entropy.

    Logits exist for `rows` tokens at a time, forward and backward: memory does not grow with N × V.

    Args:
        hidden: (N, D). head: (V, D). chosen: (N,) int64.
    Returns:
        (N,) float32 each, in nats; the entropy without gradient.

    Raises:
        ValueError: `chosen` are no int64 ids of the vocabulary.
    """
    if chosen.dtype != torch.int64 or (len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(head)):
        raise ValueError(f"chosen ids of {chosen.dtype} for a vocabulary of {len(head)}")
    logprobs, entropies = _ChosenLogprobs.apply(hidden, head, chosen, temperature, rows)  # type: ignore[no-untyped-call]
    return logprobs, entropies


class _Layout(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("heads", "kv_heads", "head_dim", "trees")),
        *((name, ctypes.c_void_p) for name in ("segments", "tree_ends", "positions", "cosines", "sines")),
        ("tokens", ctypes.c_int64),
    ]


def _native(x: Tensor) -> ctypes.CDLL:
    found = library("train", x.dtype == torch.bfloat16)
    if found is None:
        raise DunwuError("native training is not available here", "ask `supports` first")
    return found


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _done(status: int) -> None:
    if status:
        raise DunwuError("not enough memory for attention", "use a smaller micro-batch or shorter texts")


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
        x = x.contiguous()
        branch = None if branch is None else branch.contiguous()
        tokens, width = x.shape
        h = x if branch is None else torch.empty_like(x)
        y, scale = torch.empty_like(x), x.new_empty(tokens, dtype=torch.float32)
        _native(x).dunwu_norm(
            _at(x), _at(branch), _at(weight), _at(h), _at(y), _at(scale),
            ctypes.c_int64(tokens), ctypes.c_int(width), ctypes.c_float(eps),
        )  # fmt: skip
        ctx.save_for_backward(h, weight, scale)
        ctx.summed = branch is not None
        return y, h if ctx.summed else None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, None]:
        h, weight, scale = ctx.saved_tensors
        grad_y, grad_h = (None if grad is None else grad.contiguous() for grad in grads)
        if grad_y is None:
            grad_y = torch.zeros_like(h)
        tokens, width = h.shape
        native = _native(h)
        grad_in = torch.empty_like(h)
        partial = h.new_zeros(native.dunwu_threads(), width, dtype=torch.float32)
        native.dunwu_norm_backward(
            _at(h), _at(weight), _at(scale), _at(grad_y), _at(grad_h), _at(grad_in), _at(partial),
            ctypes.c_int64(tokens), ctypes.c_int(width),
        )  # fmt: skip
        return grad_in, grad_in if ctx.summed else None, partial.sum(0).to(weight.dtype), None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
        y = gate_up.new_empty(tokens, inner)
        _native(y).dunwu_swiglu(_at(gate_up), _at(y), ctypes.c_int64(tokens), ctypes.c_int(inner))
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad_y, grad = grads[0].contiguous(), torch.empty_like(gate_up)
        tokens, inner = grad_y.shape
        _native(grad).dunwu_swiglu_backward(
            _at(gate_up), _at(grad_y), _at(grad), ctypes.c_int64(tokens), ctypes.c_int(inner)
        )
        return grad


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout) -> Tensor:
        qkv = qkv.contiguous()
        if len(qkv) != layout.tokens:
            raise ValueError(f"{len(qkv)} tokens, the layout has {layout.tokens}")
        native = _native(qkv)
        turned = torch.empty_like(qkv)
        native.dunwu_rope(ctypes.byref(layout.native), _at(qkv), _at(turned), ctypes.c_float(1.0))
        out = qkv.new_empty(layout.tokens, layout.heads * layout.head_dim)
        normalizers = qkv.new_empty(layout.tokens, layout.heads, dtype=torch.float32)
        _done(native.dunwu_attention(ctypes.byref(layout.native), _at(turned), _at(out), _at(normalizers)))
        ctx.save_for_backward(turned, out, normalizers)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        turned, out, normalizers = ctx.saved_tensors
        layout: Layout = ctx.layout
        native, grad_out, grad = _native(turned), grads[0].contiguous(), torch.empty_like(turned)
        dots = torch.empty_like(normalizers)
        grad_keys = normalizers.new_zeros(layout.tokens, 2 * layout.kv_heads * layout.head_dim)
        _done(
            native.dunwu_attention_backward(
                ctypes.byref(layout.native),
                _at(turned),
                _at(out),
                _at(grad_out),
                _at(normalizers),
                _at(grad),
                _at(dots),
                _at(grad_keys),
            )
        )
        native.dunwu_rope(ctypes.byref(layout.native), _at(grad), _at(grad), ctypes.c_float(-1.0))
        return grad, None


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, chosen: Tensor, temperature: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        hidden, chosen = hidden.contiguous(), chosen.contiguous()
        tokens, vocab = len(hidden), len(head)
        logprobs, entropies, normalizers = (hidden.new_empty(tokens, dtype=torch.float32) for _ in range(3))
        native = _native(hidden)
        for at in range(0, tokens, rows):
            logits = F.linear(hidden[at : at + rows], head)
            native.dunwu_logprobs(
                _at(logits), _at(chosen[at:]), ctypes.c_float(temperature),
                _at(logprobs[at:]), _at(entropies[at:]), _at(normalizers[at:]),
                ctypes.c_int64(len(logits)), ctypes.c_int(vocab),
            )  # fmt: skip
        ctx.save_for_backward(hidden, head, chosen, normalizers)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden, head, chosen, normalizers = ctx.saved_tensors
        native, grad, vocab = _native(hidden), grads[0].float().contiguous(), len(head)
        grad_hidden = torch.empty_like(hidden)
        grad_head = head.new_zeros(head.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for at in range(0, len(hidden), ctx.rows):
            rows = hidden[at : at + ctx.rows]
            logits = F.linear(rows, head)
            native.dunwu_logprobs_backward(
                _at(logits), _at(chosen[at:]), ctypes.c_float(ctx.temperature), _at(normalizers[at:]), _at(grad[at:]),
                ctypes.c_int64(len(rows)), ctypes.c_int(vocab),
            )  # fmt: skip
            torch.mm(logits, head, out=grad_hidden[at : at + ctx.rows])
            if grad_head is not None:
                grad_head += logits.T @ rows
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None
