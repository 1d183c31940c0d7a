"""The rollout engine: a KV-cache sampler on the trainer's own weights.

Each distinct prompt is prefilled once, its cache row repeated for its samples; finished rows
leave the batch; every sample's randomness comes from its own seed. The engine holds no copy of
the weights, so there is nothing that can go stale: `weight_version` is read from the trainer
when a call begins and stamped on all its completions.

Legend: P prompts, B live rows, S cache columns. Not covered: continuous batching with refill,
paged caches (prompts of one call should have similar lengths).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import KVCache, Transformer
from dunwu.rollout.sampling import sample_tokens, uniforms
from dunwu.types import Completion, DunwuError, FinishReason, SamplingParams

COMPACT_AT = 0.85
"""Rebuild the batch when this share of its rows, or less, is still unfinished."""


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


class Engine:
    """A `Sampler` on local weights.

    Args:
        model: the trainer's own model; its current parameters are used at each call.
        tokenizer: decodes completions; its stop tokens end a row.
        version: returns the number of updates the weights have seen.
        max_rows: rows decoded at once; more samples are drawn in several passes, which does not
            change any of them.

    Raises:
        DunwuError: the tokenizer has ids that the model has not.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        version: Callable[[], int] = lambda: 0,
        max_rows: int = 512,
        stop_ids: Sequence[int] = (),
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DunwuError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
                "use the tokenizer the model was trained with",
            )
        self.model, self.tokenizer, self.version, self.max_rows = model, tokenizer, version, max_rows
        self.stop_ids = torch.tensor(sorted({*tokenizer.stop_ids, *stop_ids}))

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        """Draw `len(seeds[i])` completions of `prompts[i]`; see `Sampler`.

        Raises:
            DunwuError: a prompt without a token.
        """
        if not all(len(prompt) for prompt in prompts):
            raise DunwuError("a prompt has no tokens", "give the model at least one to continue")
        was_training = self.model.training
        self.model.eval()
        flat = [(p, seed) for p, group in enumerate(seeds) for seed in group]
        drawn: list[Completion] = []
        version = self.version()
        try:
            for start in range(0, len(flat), self.max_rows):
                drawn += self._pass(prompts, flat[start : start + self.max_rows], params, version)
        finally:
            self.model.train(was_training)
        completions = iter(drawn)
        return [[next(completions) for _ in group] for group in seeds]

    def _pass(
        self, prompts: Sequence[Sequence[int]], flat: list[tuple[int, int]], params: SamplingParams, version: int
    ) -> list[Completion]:
        used = sorted({p for p, _ in flat})
        place = {p: row for row, p in enumerate(used)}
        cache, logits_PV = self._prefill([prompts[p] for p in used], params.max_tokens)
        parents = torch.tensor([place[p] for p, _ in flat], device=logits_PV.device)
        cache.select(parents)
        rows = _Rows(
            origin_B=torch.arange(len(flat), device=parents.device),
            seeds_B=torch.tensor([seed for _, seed in flat]),
            last_B=torch.zeros(len(flat), dtype=torch.long, device=parents.device),
            alive_B=torch.ones(len(flat), dtype=torch.bool, device=parents.device),
        )
        tokens, logprobs = self._decode(cache, logits_PV[parents], rows, params)
        return [self._completion(tokens[:, b], logprobs[:, b], seed, version) for b, (_, seed) in enumerate(flat)]

    def _prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[KVCache, Tensor]:
        """Run each prompt once, left-padded; returns the cache and the logits after the last token."""
        device = self.model.head_weight.device
        longest = max(len(prompt) for prompt in prompts)
        pad = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        cache = KVCache(self.model.config, pad, longest + room, self.model.head_weight.dtype)
        hidden = self.model.hidden(ids, cache=cache)
        return cache, hidden[:, -1] @ self.model.head_weight.T

    def _decode(self, cache: KVCache, logits_BV: Tensor, rows: _Rows, params: SamplingParams) -> tuple[Tensor, Tensor]:
        """Token by token until every row has stopped; returns (T, rows) tokens, -1 after the end, and logprobs."""
        total = len(rows.origin_B)
        stop_ids = self.stop_ids.to(logits_BV.device)
        tokens = torch.full((params.max_tokens, total), -1, device=logits_BV.device)
        logprobs = torch.zeros(params.max_tokens, total, device=logits_BV.device)
        for position in range(params.max_tokens):
            u_B = uniforms(rows.seeds_B, position).float().to(logits_BV.device)
            drawn_B, logprobs_B = sample_tokens(logits_BV, params, u_B)
            live = rows.alive_B
            tokens[position, rows.origin_B[live]] = drawn_B[live]
            logprobs[position, rows.origin_B[live]] = logprobs_B[live]
            rows.last_B = drawn_B
            rows.alive_B = live & ~torch.isin(drawn_B, stop_ids)
            remaining = int(rows.alive_B.sum())
            if remaining == 0:
                return tokens[: position + 1], logprobs[: position + 1]
            if remaining <= COMPACT_AT * len(live):
                keep = rows.alive_B.nonzero().squeeze(1)
                rows.select(keep)
                cache.select(keep)
            if position + 1 < params.max_tokens:
                hidden = self.model.hidden(rows.last_B[:, None], cache=cache)
                logits_BV = hidden[:, -1] @ self.model.head_weight.T
        return tokens, logprobs

    def _completion(self, tokens_T: Tensor, logprobs_T: Tensor, seed: int, version: int) -> Completion:
        length = int((tokens_T >= 0).sum())
        ids = tokens_T[:length].tolist()
        stopped = length > 0 and ids[-1] in self.stop_ids.tolist()
        reason: FinishReason = "stop" if stopped else "length"
        text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        return Completion(text, tuple(ids), tuple(logprobs_T[:length].tolist()), reason, seed, version)
