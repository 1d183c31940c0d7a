"""The rollout engine: completions drawn on the trainer's own weights.

Two ways to the same thing: `native_decoder` (a C library, on CPUs) and `torch_decoder` (anywhere). Every sample's
randomness comes from its own seed. The engine holds no copy of the weights, so there is nothing that can go stale:
`weight_version` is read from the trainer when a call begins and stamped on all its completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import Transformer
from dunwu.rollout.native_decoder import NativeDecoder
from dunwu.rollout.torch_decoder import TorchDecoder
from dunwu.types import Completion, DunwuError, FinishReason, SamplingParams

ROWS = {True: 4096, False: 512}
"""Samples of one pass, natively and in torch. The native path refills its rows, so a long pass has only one tail."""


class Engine:
    """A `Sampler` on local weights.

    Args:
        model: the trainer's own model; its current parameters are used at each call.
        tokenizer: decodes completions; its stop tokens end a row.
        version: returns the number of updates the weights have seen.
        max_rows: samples of one pass; more are drawn in several passes, which does not change any of them.
        stop_ids: further tokens that end a row.
        native: decode natively; default: where the model's device, dtype and shape, and the machine, allow it.

    Raises:
        DunwuError: the tokenizer has ids that the model has not, or `native` cannot be had.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        version: Callable[[], int] = lambda: 0,
        max_rows: int | None = None,
        stop_ids: Sequence[int] = (),
        native: bool | None = None,
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DunwuError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
                "use the tokenizer the model was trained with",
            )
        self.model, self.tokenizer, self.version = model, tokenizer, version
        self.stop_ids = sorted({*tokenizer.stop_ids, *stop_ids})
        self._decoder: NativeDecoder | TorchDecoder
        able = native is not False and NativeDecoder.supports(model)
        if native and not able:
            raise DunwuError("this model cannot be decoded natively here", "leave `native` out")
        self._decoder = (NativeDecoder if able else TorchDecoder)(model, self.stop_ids)
        self.native = able
        self.max_rows = max_rows or ROWS[able]

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        """Draw `len(seeds[i])` completions of `prompts[i]`; see `Sampler`.

        Raises:
            DunwuError: a prompt without a token, or no token to be drawn.
        """
        if params.max_tokens < 1:
            raise DunwuError(f"max_tokens is {params.max_tokens}", "let a completion have at least one token")
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
        drawn = self._decoder.draw(
            [prompts[p] for p in used], [place[p] for p, _ in flat], [seed for _, seed in flat], params
        )
        routing = [experts.numpy() for experts in drawn.routing] if drawn.routing else [None] * len(flat)
        rows = zip(drawn.tokens, drawn.logprobs, drawn.lengths.tolist(), flat, routing, strict=True)
        return [
            self._completion(ids_T[:length].tolist(), logprobs_T[:length].tolist(), seed, version, experts)
            for ids_T, logprobs_T, length, (_, seed), experts in rows
        ]

    def _completion(
        self, ids: list[int], logprobs: list[float], seed: int, version: int, routing: NDArray[Any] | None
    ) -> Completion:
        stopped = len(ids) > 0 and ids[-1] in self.stop_ids
        reason: FinishReason = "stop" if stopped else "length"
        text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        return Completion(text, tuple(ids), tuple(logprobs), reason, seed, version, routing)
