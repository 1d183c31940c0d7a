"""Completions as rows, rows as micro-batches: what one optimizer update sees.

Where the model is computed natively, completions of one prompt share it: the prompt's tokens stand once, the
completions behind it, each seeing the prompt and itself (a tree). No padding, and the prompt's part of the work is done
once instead of once a completion; value and gradient are those of separate rows. Elsewhere rows are padded.

Legend: B rows, T tokens, N trained tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dunwu.model.moe import Routing
from dunwu.model.transformer import Transformer
from dunwu.native.train import Segment
from dunwu.train.config import PolicyConfig
from dunwu.train.losses import state_entropies, state_logprobs, token_weights


@dataclass(frozen=True)
class Row:
    """One completion as the update sees it."""

    ids: tuple[int, ...]
    """Prompt and completion."""
    prompt_length: int
    sampler_logprobs: tuple[float, ...]
    advantage: float
    group: int
    """Number of the problem."""
    routing: NDArray[Any] | None = field(default=None, compare=False)
    """(tokens - 1, layers, K) experts of every token that is put in, to be used again; None to choose anew."""
    place: int = 0
    """Number among the problem's samples."""

    @property
    def completion_length(self) -> int:
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class MicroBatch:
    """Tokens of one forward pass, and where their trained tokens sit."""

    ids: Tensor
    """(B, T) padded rows, or (1, tokens) of trees."""
    segments: tuple[Segment, ...]
    """How the tokens of trees lie; empty for padded rows."""
    places_N: Tensor
    """Indices into the flattened ids of the position that predicts each completion token."""
    targets_N: Tensor
    advantages_N: Tensor
    sampler_N: Tensor
    weights_N: Tensor
    rows: tuple[int, ...]
    """Which rows of the update they are, in this order."""
    rows_N: Tensor
    """Place in `rows` of the row that each completion token belongs to."""
    routing: Tensor | None = None
    """(all tokens, layers, K) experts to be used: the sampler's, so that both compute with the same ones."""
    old_N: Tensor | None = None
    """Log-probabilities under the policy before the step's first update, where they are known."""
    returns_N: Tensor | None = None
    """What the critic is to learn."""
    values_N: Tensor | None = None
    """What it said before the step's first update."""

    def states(self, model: Transformer) -> Tensor:
        """(N, D) final states from which the completion tokens are predicted."""
        routing = None if self.routing is None else Routing(self.routing)
        if self.segments:
            return model.packed(self.ids[0], self.segments, routing=routing).index_select(0, self.places_N)
        return model.hidden(self.ids, routing=routing).flatten(0, 1).index_select(0, self.places_N)

    def logprobs(
        self, model: Transformer, temperature: float, states_ND: Tensor | None = None, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(logprobs (N,) with gradient, entropies (N,)) of the completion tokens.

        Args:
            states_ND: `states(model)`, if the caller has them.
            entropy_gradient: the entropies have a gradient too.
        """
        states_ND = self.states(model) if states_ND is None else states_ND
        logprobs_N, entropy_N = state_logprobs(states_ND, model.head_weight, self.targets_N, temperature)
        return logprobs_N, state_entropies(states_ND, model.head_weight, temperature) if entropy_gradient else entropy_N

    def by_row(self, values_N: Tensor) -> list[tuple[int, Tensor]]:
        """(row of the update, its part of `values_N`) for every row here."""
        lengths = torch.bincount(self.rows_N, minlength=len(self.rows)).tolist()
        return list(zip(self.rows, torch.split(values_N, lengths)))

    def filled(self, **tokens: Sequence[Tensor]) -> MicroBatch:
        """This batch with fields such as `advantages_N` taken from tensors by row of the update."""
        parts = {name: torch.cat([rows[b] for b in self.rows]).to(self.ids.device) for name, rows in tokens.items()}
        return replace(self, **parts)  # type: ignore[arg-type]


def micro_batches(
    rows: Sequence[Row], config: PolicyConfig, device: torch.device, trees: bool = False
) -> list[MicroBatch]:
    """Cut the rows of one optimizer update into batches of at most `config.micro_tokens` tokens.

    The loss weights are made from the whole update first, so the cut cannot change the gradient.

    Args:
        trees: completions share their prompt; only for models that are `native`.
    """
    longest = max(row.completion_length for row in rows)
    mask_BT = torch.zeros(len(rows), longest)
    for b, row in enumerate(rows):
        mask_BT[b, : row.completion_length] = 1.0
    weights_BT = token_weights(
        mask_BT, config.loss_norm, max_tokens=config.max_tokens, group_ids_B=[row.group for row in rows]
    )
    cut = _planted if trees else _padded
    return cut(rows, weights_BT, config.micro_tokens, device)


def _padded(rows: Sequence[Row], weights_BT: Tensor, limit: int, device: torch.device) -> list[MicroBatch]:
    """Rows of similar length side by side."""
    by_length = sorted(range(len(rows)), key=lambda b: -len(rows[b].ids))
    batches = []
    while by_length:
        take = max(1, limit // len(rows[by_length[0]].ids))
        chosen, by_length = by_length[:take], by_length[take:]
        # The last token predicts nothing that is trained, so inputs stop one short of it.
        width = max(1, len(rows[chosen[0]].ids) - 1)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        places: list[int] = []
        routing: list[NDArray[Any] | None] = []
        for line, b in enumerate(chosen):
            row = rows[b]
            ids[line, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
            first = line * width + row.prompt_length - 1
            places += range(first, first + row.completion_length)
            padding = [(0, width - len(row.ids) + 1), (0, 0), (0, 0)]  # the first experts: nobody looks there
            routing.append(None if row.routing is None else np.pad(row.routing, padding))
        batches.append(_micro_batch(ids, (), places, rows, chosen, weights_BT, device, routing))
    return batches


def _planted(rows: Sequence[Row], weights_BT: Tensor, limit: int, device: torch.device) -> list[MicroBatch]:
    """Trees one after the other: a prompt, then its completions less their last tokens."""
    families: dict[tuple[int, ...], list[int]] = {}
    for b, row in enumerate(rows):
        families.setdefault(row.ids[: row.prompt_length], []).append(b)
    batches: list[MicroBatch] = []
    ids: list[int] = []
    segments: list[Segment] = []
    places: list[int] = []
    chosen: list[int] = []
    routing: list[NDArray[Any] | None] = []

    def close() -> None:
        if chosen:
            tokens = torch.tensor([ids])
            batches.append(_micro_batch(tokens, tuple(segments), places, rows, chosen, weights_BT, device, routing))
        for part in (ids, segments, places, chosen, routing):
            part.clear()

    for prompt, family in families.items():
        root: tuple[int, int] | None = None
        for b in family:
            grown, experts = rows[b].ids[len(prompt) : -1], rows[b].routing
            if chosen and len(ids) + len(grown) + (0 if root else len(prompt)) > limit:
                close()
                root = None
            if root is None:
                root = (len(ids), len(ids) + len(prompt))
                segments.append(Segment(*root))
                ids += prompt
                routing.append(None if experts is None else experts[: len(prompt)])
            places.append(root[1] - 1)
            places += range(len(ids), len(ids) + len(grown))
            if grown:
                segments.append(Segment(len(ids), len(ids) + len(grown), *root))
                ids += grown
                routing.append(None if experts is None else experts[len(prompt) :])
            chosen.append(b)
    close()
    return batches


def _micro_batch(
    ids: Tensor,
    segments: tuple[Segment, ...],
    places: Sequence[int],
    rows: Sequence[Row],
    chosen: Sequence[int],
    weights_BT: Tensor,
    device: torch.device,
    routing: Sequence[NDArray[Any] | None],
) -> MicroBatch:
    parts = [rows[b] for b in chosen]
    known = [experts for experts in routing if experts is not None]
    return MicroBatch(
        ids.to(device),
        segments,
        torch.tensor(places, device=device),
        torch.tensor([token for row in parts for token in row.ids[row.prompt_length :]], device=device),
        torch.tensor([row.advantage for row in parts for _ in range(row.completion_length)], device=device),
        torch.tensor([logprob for row in parts for logprob in row.sampler_logprobs], device=device),
        torch.cat([weights_BT[b, : rows[b].completion_length] for b in chosen]).to(device),
        tuple(chosen),
        torch.tensor([n for n, row in enumerate(parts) for _ in range(row.completion_length)], device=device),
        torch.from_numpy(np.concatenate(known)).to(device) if len(known) == len(routing) and known else None,
    )
