"""One decode step: from the last tokens to the next logits, kernel by kernel, or as a CUDA graph.

At query length 1 a GPU waits for Python: some twenty kernels a layer, launched one by one. A graph launches all of them
at once, but always with the same shapes and addresses. So a `GraphStep` attends to a fixed number of columns, and what
changes with each token (the column to write, the positions) is a tensor that the step itself moves on.

Legend: B rows, S cache columns, V vocabulary.
"""

from __future__ import annotations

import sys
from typing import Protocol

import torch
from torch import Tensor

from dunwu.model.cache import KVCache
from dunwu.model.moe import Routing
from dunwu.model.transformer import Transformer

WINDOW = 256
"""Columns that a graph's attention reads at first; doubled, and recorded again, when they are full."""


class Step(Protocol):
    """What the decoder's loop asks for."""

    routing: Routing | None
    """What the routers of a model with experts chose in the last call."""

    def rebuild(self, remaining: int, rows: int) -> bool:
        """Whether a batch of so many rows, `remaining` of them unfinished, should be rebuilt without the others."""

    def __call__(self, last_B: Tensor) -> Tensor:
        """Append these tokens; (B, V) logits of the next ones, valid until the next call."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""


class EagerStep:
    """Every kernel launched as it comes: any device."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.routing: Routing | None = None

    def rebuild(self, remaining: int, rows: int) -> bool:
        return remaining <= 0.85 * rows

    def __call__(self, last_B: Tensor) -> Tensor:
        self.routing = Routing() if self.model.config.moe else None
        return (
            self.model.hidden(last_B[:, None], cache=self.cache, routing=self.routing)[:, -1] @ self.model.head_weight.T
        )

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)


class FixedCache(KVCache):
    """Takes a cache over so that all further steps look alike: they attend to the first `window` columns, of which the
    empty ones stand at -inf, and the column to write is a tensor."""

    def __init__(self, cache: KVCache, window: int) -> None:
        self.keys, self.values, self.pad_B, self.length = cache.keys, cache.values, cache.pad_B, cache.length
        self.first, self.value_width = cache.first, cache.value_width
        self.window = min(window, self.capacity)
        # A weight of zero does not silence a NaN that memory happens to hold.
        self.keys[:, :, :, self.length :] = 0
        if self.values is not None:
            self.values[:, :, :, self.length :] = 0
        self.column = torch.tensor([self.length], device=self.pad_B.device)
        empty = torch.arange(self.capacity, device=self.pad_B.device) >= self.length
        self.bias_BS = cache.bias_BS.masked_fill(empty, float("-inf"))

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def positions(self, T: int) -> Tensor:
        return self.column - self.pad_B[:, None]

    def append(self, layer: int, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if layer == self.first:
            self.bias_BS.index_fill_(1, self.column, 0.0)
        keys = self.keys[layer - self.first].index_copy_(2, self.column, k)[:, :, : self.window]
        if self.values is None or v is None:
            return keys, keys[..., : self.value_width], self.bias_BS[:, : self.window]
        values = self.values[layer - self.first].index_copy_(2, self.column, v)
        return keys, values[:, :, : self.window], self.bias_BS[:, : self.window]

    def advance(self, T: int) -> None:
        """Moves the column; `length` is kept by whoever replays the step, for a replay runs no Python."""
        self.column += T

    def select(self, rows: Tensor) -> None:
        self.keys = self.keys.index_select(1, rows)
        if self.values is not None:
            self.values = self.values.index_select(1, rows)
        self.pad_B, self.bias_BS = self.pad_B[rows], self.bias_BS[rows]


class GraphStep:
    """The step at fixed shapes: on CUDA recorded and replayed, elsewhere run as it is (which is how tests see it)."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        window = WINDOW
        while window <= cache.length:
            window *= 2
        self.model, self.cache = model, FixedCache(cache, window)
        self.routing: Routing | None = None
        self._ids_B1: Tensor | None = None
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def rebuild(self, remaining: int, rows: int) -> bool:
        """Seldom, for a rebuilt batch is recorded anew; a small one costs no less than a smaller one."""
        return remaining <= rows // 2 and rows > 32

    def __call__(self, last_B: Tensor) -> Tensor:
        if self.cache.length == self.cache.window:
            self.cache.window = min(2 * self.cache.window, self.cache.capacity)
            self._forget()
        if self._ids_B1 is None:  # libraries set themselves up in a first run, which a recording must not see
            self._ids_B1 = last_B[:, None].clone()
            logits = self._run(self._ids_B1)
        else:
            self._ids_B1.copy_(last_B[:, None])
            logits = self._replay(self._ids_B1) if _recordable(self._ids_B1) else self._run(self._ids_B1)
        self.cache.length += 1
        return logits

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self._forget()

    def _forget(self) -> None:
        self._ids_B1 = self._recording = None

    def _run(self, ids_B1: Tensor) -> Tensor:
        return self.model.hidden(ids_B1, cache=self.cache)[:, -1] @ self.model.head_weight.T

    def _replay(self, ids_B1: Tensor) -> Tensor:
        with torch.cuda.device(ids_B1.device):
            if self._recording is None:
                self._recording = self._record(ids_B1)
            if self._recording is None:
                return self._run(ids_B1)
            graph, logits = self._recording
            graph.replay()
        return logits

    def _record(self, ids_B1: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                logits = self._run(ids_B1)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # a recording that fails may leave its own stream behind
            torch.cuda.synchronize()
            _refuse(str(error).splitlines()[0])
            return None
        return graph, logits


_refused: list[str] = []


def _recordable(ids_B1: Tensor) -> bool:
    return ids_B1.device.type == "cuda" and not _refused


def _refuse(reason: str) -> None:
    _refused.append(reason)
    print(
        f"dunwu: CUDA graphs cannot be used here ({reason}): sampling launches its kernels one by one", file=sys.stderr
    )
