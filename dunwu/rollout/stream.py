"""One completion, token by token as it is drawn: what a person who waits wants to see.

The same prefill, cache, arithmetic and random numbers as `Engine` in plain torch, so a seed gives the tokens it gives there.
A model with an MTP module guesses ahead (`speculative.py`), which changes the pace and not the tokens.
Not covered: several rows at once, which is the engine's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dunwu.model.transformer import Transformer
from dunwu.rollout.sampling import sample_tokens, uniforms
from dunwu.rollout.speculative import Drafts, can_draft, speculative
from dunwu.types import DunwuError, SamplingParams


@torch.inference_mode()
def stream(
    model: Transformer,
    prompt_ids: Sequence[int],
    seed: int,
    params: SamplingParams,
    stop_ids: Sequence[int],
    draft: bool = True,
    drafts: Drafts | None = None,
) -> Iterator[int]:
    """Yield the completion's tokens; the last one is a stop token unless `params.max_tokens` came first.

    Whoever stops iterating stops the model: no token is drawn ahead.

    Args:
        draft: let the model guess ahead, if it can.
        drafts: counts passes and guesses, if given.

    Raises:
        DunwuError: a prompt without a token.
    """
    if not len(prompt_ids):
        raise DunwuError("a prompt has no tokens", "give the model at least one to continue")
    way = speculative if draft and can_draft(model) else _one_by_one
    was_training = model.training
    model.eval()
    try:
        yield from way(model, prompt_ids, seed, params, stop_ids, drafts)
    finally:
        model.train(was_training)


def _one_by_one(
    model: Transformer,
    prompt_ids: Sequence[int],
    seed: int,
    params: SamplingParams,
    stop_ids: Sequence[int],
    drafts: Drafts | None,
) -> Iterator[int]:
    """A pass of the model for every token."""
    device = model.head_weight.device
    capacity = len(prompt_ids) + params.max_tokens
    cache = model.new_cache(torch.zeros(1, dtype=torch.long, device=device), capacity)
    ids = torch.tensor([list(prompt_ids)], device=device)
    seeds = torch.tensor([seed])
    for position in range(params.max_tokens):
        logits = model.hidden(ids, cache=cache)[:, -1] @ model.head_weight.T
        if drafts is not None:
            drafts.forwards += 1
        drawn, _ = sample_tokens(logits, params, uniforms(seeds, position).float().to(device))
        token = int(drawn)
        yield token
        if token in stop_ids:
            return
        ids = drawn[:, None]
