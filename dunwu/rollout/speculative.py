"""Two tokens per pass of the model, where its own MTP module guesses the second right (V3, 2.2 and 5.4.3).

The module behind the last block drafts the token after the newest one; the model then reads both at once. What it draws
behind the first says whether the draft was right. If it was, what it draws behind the second is one token more; if not,
the draft's column is taken back from the cache.

Acceptance is exact by coupling, not by a test of likelihoods (Leviathan et al. 2023): a token is a function of its logits
and of the number that belongs to (seed, position), for draft and model alike. So every token is the one that the model's
own logits give, at any temperature and truncation, and a wrong draft costs time alone. The price: where a distribution is
flat, two close ones agree less often than the likelihood test would accept (0.75 against 0.95 of the guesses at
temperature 1 on a text with 30 % noise); greedy, or where the next token is all but certain, there is none.

"The model's own logits" are those of a pass over two tokens, which adds up in another order than a pass over one: in fp32
they differ by some 1e-6, and a draw only where its number falls that close to a border between tokens. In bf16 the
difference is a unit in the last place, and exact ties, which greedy decoding gives to the lower id, are common: there a
completion may turn off at such a place, as it may between one row and a batch, and goes on as good as the other. What no
guess was read for (the first token; all without a module) is the same bit for bit.

Not covered: several rows, whose caches would grow unevenly (a batch fills the machine without guesses); deeper drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dunwu.model.transformer import Transformer
from dunwu.rollout.sampling import sample_tokens, uniforms
from dunwu.types import SamplingParams

Draw = Callable[[Tensor, int], Tensor]
"""(1, D) state and position in the completion → (1,) token."""


@dataclass
class Drafts:
    """What the guesses of one completion came to; true at every moment."""

    forwards: int = 0
    """Passes of the model, the one over the prompt included."""
    drafted: int = 0
    """Guesses that the model read."""
    accepted: int = 0
    """Those that were right; each saves a pass."""

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were right; 0.0 if there were none.

        Example:
            >>> Drafts(forwards=6, drafted=5, accepted=4).acceptance
            0.8
        """
        return self.accepted / self.drafted if self.drafted else 0.0


TRIES, LEAST = 32, 0.5
"""After so many guesses, fewer right than this share end the guessing: each costs a block and the head."""


def can_draft(model: Transformer) -> bool:
    """Whether the model brings a module to guess with."""
    return model.config.mtp_depth > 0 and hasattr(getattr(model, "model", None), "mtp")


@torch.inference_mode()
def speculative(
    model: Transformer,
    prompt_ids: Sequence[int],
    seed: int,
    params: SamplingParams,
    stop_ids: Sequence[int],
    drafts: Drafts | None = None,
) -> Iterator[int]:
    """Yield the completion's tokens, those of `stream` without guesses (see above for rounding).

    Whoever stops iterating stops the model: the second token of a pass is drawn when it is asked for.

    Args:
        model: in evaluation mode, and `can_draft`; `stream` sees to both.
        prompt_ids: at least one.
        drafts: counts, if given.
    """
    tokens = _drawn(model, prompt_ids, seed, params, frozenset(stop_ids), Drafts() if drafts is None else drafts)
    for token in islice(tokens, params.max_tokens):
        yield token
        if token in stop_ids:
            return


def _drawn(
    model: Transformer,
    prompt_ids: Sequence[int],
    seed: int,
    params: SamplingParams,
    stop_ids: frozenset[int],
    drafts: Drafts,
) -> Iterator[int]:
    """Tokens without end; `params.max_tokens` and `stop_ids` only say where a guess would be of no use."""
    device, seeds = model.head_weight.device, torch.tensor([seed])

    def draw(state_1D: Tensor, position: int) -> Tensor:
        logits = state_1D @ model.head_weight.T
        return sample_tokens(logits, params, uniforms(seeds, position).float().to(device))[0]

    cache = model.new_cache(torch.zeros(1, dtype=torch.long, device=device), len(prompt_ids) + params.max_tokens)
    guess = _Guess(model, len(prompt_ids) + params.max_tokens, draw)
    ids = torch.tensor([list(prompt_ids)], device=device)
    states = model.hidden(ids, cache=cache)
    drafts.forwards += 1
    last = draw(states[:, -1], 0)
    yield int(last)
    known, position = torch.cat((ids[:, 1:], last[None]), 1), 1  # known: the token behind each of the states
    while True:
        # After a stop nothing is drawn, and after the last position neither.
        worth = drafts.drafted < TRIES or drafts.acceptance >= LEAST
        draft = guess(states, known, position) if worth and position + 1 < params.max_tokens else None
        if draft is not None and int(draft) in stop_ids:
            draft = None
        states = model.hidden((last if draft is None else torch.cat((last, draft)))[None], cache=cache)
        last = draw(states[:, 0], position)
        right = draft is not None and int(draft) == int(last)
        drafts.forwards += 1
        drafts.drafted += draft is not None
        drafts.accepted += right
        yield int(last)
        known, position = last[None], position + 1
        if right:
            last = draw(states[:, 1], position)
            yield int(last)
            known, position = torch.cat((known, last[None]), 1), position + 1
        elif draft is not None:
            cache.advance(-1)
            states = states[:, :1]


class _Guess:
    """The MTP module at work, behind a cache of its own.

    It is shown states and the tokens that were drawn behind them, never its own guesses, so nothing is ever taken back.
    """

    def __init__(self, model: Transformer, capacity: int, draw: Draw) -> None:
        self.model, self.draw = model, draw
        self.cache = model.new_mtp_cache(torch.zeros(1, dtype=torch.long, device=model.head_weight.device), capacity)

    def __call__(self, states_1TD: Tensor, next_ids_1T: Tensor, position: int) -> Tensor:
        """(1,) guess at the token of this position, given all states not yet shown and the tokens behind them."""
        return self.draw(self.model.mtp_hidden(states_1TD, next_ids_1T, self.cache)[:, -1], position)
