"""log π of replies, several to a prompt in one pass: what preference losses and likelihood rewards are made of.

Legend: S replies, N tokens of replies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dunwu.model.transformer import Transformer
from dunwu.native.train import Segment
from dunwu.train.losses import state_logprobs

Ids = tuple[int, ...]
Asked = tuple[Ids, Sequence[Ids]]
"""A prompt and the replies to it."""


def reply_logprobs(model: Transformer, asked: Sequence[Asked]) -> Tensor:
    """log π of every reply, (S,) in nats with gradient, in one forward pass.

    Where the model is computed by the kernels, replies to one prompt share it; elsewhere each is a padded row.
    """
    lay_out = _planted if model.native else _padded
    ids, segments, places = lay_out(asked)
    device = model.head_weight.device
    ids, places_N = ids.to(device), torch.tensor(places, device=device)
    states = model.packed(ids[0], segments)[None] if segments else model.hidden(ids)
    replies = [reply for _, group in asked for reply in group]
    targets_N = torch.tensor([token for reply in replies for token in reply], device=device)
    states_ND = states.flatten(0, 1).index_select(0, places_N)
    logprobs_N = state_logprobs(states_ND, model.head_weight, targets_N)[0]
    return torch.stack([part.sum() for part in torch.split(logprobs_N, [len(reply) for reply in replies])])


def _planted(asked: Sequence[Asked]) -> tuple[Tensor, list[Segment], list[int]]:
    """Trees one after the other: a prompt, then its replies less their last tokens."""
    ids: list[int] = []
    segments: list[Segment] = []
    places: list[int] = []
    for prompt, replies in asked:
        root = (len(ids), len(ids) + len(prompt))
        segments.append(Segment(*root))
        ids += prompt
        for reply in replies:
            places.append(root[1] - 1)
            places += range(len(ids), len(ids) + len(reply) - 1)
            if len(reply) > 1:
                segments.append(Segment(len(ids), len(ids) + len(reply) - 1, *root))
                ids += reply[:-1]
    return torch.tensor([ids]), segments, places


def _padded(asked: Sequence[Asked]) -> tuple[Tensor, list[Segment], list[int]]:
    """A row for every reply, padded behind its end, where a causal model cannot look."""
    texts = [(prompt, reply) for prompt, replies in asked for reply in replies]
    width = max(len(prompt) + len(reply) - 1 for prompt, reply in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    places: list[int] = []
    for line, (prompt, reply) in enumerate(texts):
        ids[line, : len(prompt) + len(reply) - 1] = torch.tensor(prompt + reply[:-1])
        first = line * width + len(prompt) - 1
        places += range(first, first + len(reply))
    return ids, [], places


def micro_batches(asked: Sequence[Asked], tokens: int, trees: bool) -> list[list[int]]:
    """Places of what goes through the model together: of similar length, `tokens` at most, a pair never apart."""

    def cost(n: int) -> int:
        prompt, replies = asked[n]
        lengths = [len(reply) for reply in replies]
        return len(prompt) + sum(lengths) if trees else len(lengths) * (len(prompt) + max(lengths))

    left = sorted((n for n in range(len(asked)) if asked[n][1]), key=lambda n: -cost(n))
    batches = []
    while left:
        take = max(1, tokens // cost(left[0]))
        batches.append(left[:take])
        left = left[take:]
    return batches


@torch.inference_mode()
def all_logprobs(model: Transformer, asked: Sequence[Asked], tokens: int) -> list[tuple[float, ...]]:
    """log π of the replies to each prompt, without gradient."""
    was_training = model.training
    model.eval()
    found: list[tuple[float, ...]] = [()] * len(asked)
    for places in micro_batches(asked, tokens, model.native):
        values = iter(reply_logprobs(model, [asked[n] for n in places]).tolist())
        for n in places:
            found[n] = tuple(next(values) for _ in asked[n][1])
    model.train(was_training)
    return found
