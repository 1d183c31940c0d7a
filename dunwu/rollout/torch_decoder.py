"""Decoding in plain torch: any device, any shape; the oracle and the fallback of the native path.

Each distinct prompt is prefilled once, its cache row repeated for its samples; finished rows leave the batch.

Legend: P prompts, B live rows, S cache columns, T drawn tokens. Not covered: refill, paged caches (prompts of one call
should have similar lengths).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dunwu.model.cache import KVCache
from dunwu.model.moe import Routing
from dunwu.model.transformer import Transformer
from dunwu.rollout.sampling import sample_tokens, uniforms
from dunwu.rollout.steps import EagerStep, GraphStep, Step
from dunwu.types import SamplingParams


class Draws(NamedTuple):
    """Completions of B rows, on the CPU."""

    tokens: Tensor
    """(B, T), valid up to the row's length."""
    logprobs: Tensor
    """(B, T)"""
    lengths: Tensor
    """(B,)"""
    routing: list[Tensor] | None = None
    """Of a model with experts, a row each: (prompt + completion - 1, layers, K), the experts each token was sent to."""


@dataclass
class _Rows:
    """State of the live rows: where each came from and what it has drawn."""

    origin_B: Tensor
    seeds_B: Tensor
    """Stays on the CPU: the counter's 64-bit arithmetic does not exist on every device."""
    last_B: Tensor
    alive_B: Tensor

    def select(self, rows: Tensor) -> None:
        self.origin_B, self.seeds_B = self.origin_B[rows], self.seeds_B[rows.cpu()]
        self.last_B, self.alive_B = self.last_B[rows], self.alive_B[rows]


class TorchDecoder:
    """Draws completions of one batch.

    Args:
        model: in evaluation mode.
        stop_ids: tokens that end a row.
        fixed: steps of fixed shapes, as CUDA graphs where there is CUDA; default: there, for models without experts,
            whose shapes follow the load.
    """

    def __init__(self, model: Transformer, stop_ids: Sequence[int], fixed: bool | None = None) -> None:
        self.model, self.stop_ids = model, torch.tensor(list(stop_ids))
        usual = model.head_weight.device.type == "cuda" and model.fixed_shapes
        self.fixed = usual if fixed is None else fixed

    def draw(
        self, prompts: Sequence[Sequence[int]], parents: Sequence[int], seeds: Sequence[int], params: SamplingParams
    ) -> Draws:
        """Row i continues `prompts[parents[i]]`."""
        cache, logits_PV, prompts_routing = self._prefill(prompts, params.max_tokens)
        parents_B = torch.tensor(list(parents), device=logits_PV.device)
        cache.select(parents_B)
        rows = _Rows(
            origin_B=torch.arange(len(seeds), device=parents_B.device),
            seeds_B=torch.tensor(list(seeds)),
            last_B=torch.zeros(len(seeds), dtype=torch.long, device=parents_B.device),
            alive_B=torch.ones(len(seeds), dtype=torch.bool, device=parents_B.device),
        )
        step = GraphStep(self.model, cache) if self.fixed else EagerStep(self.model, cache)
        tokens_TB, logprobs_TB, routing_T = self._decode(step, logits_PV[parents_B], rows, params)
        lengths_B = (tokens_TB >= 0).sum(0).cpu()
        routing = None
        if prompts_routing is not None:
            steps = torch.stack(routing_T) if routing_T else prompts_routing[0].new_zeros(0, len(seeds), 1, 1)
            joined = zip(parents, lengths_B.tolist(), range(len(seeds)))
            routing = [
                torch.cat((prompts_routing[p], steps[: n - 1, row])) if n > 1 else prompts_routing[p]
                for p, n, row in joined
            ]
        return Draws(tokens_TB.T.cpu(), logprobs_TB.T.cpu(), lengths_B, routing)

    def _prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[KVCache, Tensor, list[Tensor] | None]:
        """Run each prompt once, left-padded; returns the cache, the logits after the last token, and the prompts' routing."""
        device = self.model.head_weight.device
        longest = max(len(prompt) for prompt in prompts)
        pad = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        cache = self.model.new_cache(pad, longest + room)
        routing = Routing() if self.model.config.moe else None
        hidden = self.model.hidden(ids, cache=cache, routing=routing)
        chosen = None
        if routing:
            rows = _small(routing).view(len(prompts), longest, *routing.all_chosen().shape[1:])
            chosen = [row[longest - len(prompt) :] for row, prompt in zip(rows, prompts)]
        return cache, hidden[:, -1] @ self.model.head_weight.T, chosen

    def _decode(
        self, step: Step, logits_BV: Tensor, rows: _Rows, params: SamplingParams
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Token by token until every row has stopped; returns (T, rows) tokens, -1 after the end, logprobs, and by
        token the (rows, layers, K) experts it was sent to."""
        total = len(rows.origin_B)
        stop_ids = self.stop_ids.to(logits_BV.device)
        tokens = torch.full((params.max_tokens, total), -1, device=logits_BV.device)
        logprobs = torch.zeros(params.max_tokens, total, device=logits_BV.device)
        routing_T: list[Tensor] = []
        for position in range(params.max_tokens):
            u_B = uniforms(rows.seeds_B, position).float().to(logits_BV.device)
            drawn_B, logprobs_B = sample_tokens(logits_BV, params, u_B)
            live = rows.alive_B
            tokens[position, rows.origin_B] = drawn_B.where(live, -1)
            logprobs[position, rows.origin_B] = logprobs_B.where(live, 0.0)
            rows.last_B = drawn_B
            rows.alive_B = live & ~torch.isin(drawn_B, stop_ids)
            remaining = int(rows.alive_B.sum())
            if remaining == 0:
                return tokens[: position + 1], logprobs[: position + 1], routing_T
            if step.rebuild(remaining, len(live)):
                keep = rows.alive_B.nonzero().squeeze(1)
                rows.select(keep)
                step.select(keep)
            if position + 1 < params.max_tokens:
                logits_BV = step(rows.last_B)
                if step.routing:
                    chosen = _small(step.routing)
                    routing_T.append(
                        chosen.new_zeros(total, *chosen.shape[1:]).index_copy_(0, rows.origin_B.cpu(), chosen)
                    )
        return tokens, logprobs, routing_T


def _small(routing: Routing) -> Tensor:
    """(N, layers, K) experts, in a byte each where that is enough, on the CPU."""
    chosen = routing.all_chosen()
    return chosen.to("cpu", torch.uint8 if int(chosen.max()) < 256 else torch.int16)
