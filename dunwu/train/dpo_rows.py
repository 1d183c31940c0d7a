"""What preference training learns from, as ids: rows, what goes through the model together, and log π of replies.

Legend: S replies, N tokens of replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from dunwu.data.chat import encode_conversation, encode_prompt
from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import Transformer
from dunwu.native.train import Segment
from dunwu.train.losses import state_logprobs
from dunwu.train.rm_rows import label_of
from dunwu.types import ChatExample, DunwuError, Message, Preference, derive_seed

Ids = tuple[int, ...]
Asked = tuple[Ids, Sequence[Ids]]
"""A prompt and the replies to it."""


@dataclass(frozen=True)
class Row:
    """What was judged of one prompt: a pair has both sides, a labelled reply the one of its label."""

    prompt: Ids
    """Ids up to where the reply begins."""
    good: Ids | None
    """Ids of the chosen or desirable reply, with the token that ends its turn."""
    bad: Ids | None
    """Ids of the rejected or undesirable reply."""
    others: tuple[Ids, ...] = ()
    """KTO only: replies to another prompt, one for each side."""
    reference: tuple[float, ...] = ()
    """log π_ref of the sides, then of the others, in nats; empty for losses that need none."""

    @property
    def sides(self) -> list[Ids]:
        """The replies there are, the good one first."""
        return [side for side in (self.good, self.bad) if side is not None]

    @property
    def length(self) -> int:
        """Tokens of the longest conversation."""
        return len(self.prompt) + max(map(len, self.sides))


def pair_row(tokenizer: Tokenizer, pair: Preference) -> Row:
    """A preference as ids; the replies with their thinking.

    Raises:
        DunwuError: both replies are the same tokens.
    """
    prompt = tuple(encode_prompt(tokenizer, pair.messages))
    good, bad = (_reply(tokenizer, pair.messages, reply, len(prompt)) for reply in (pair.chosen, pair.rejected))
    if good == bad:
        raise DunwuError("chosen and rejected are the same tokens")
    return Row(prompt, good, bad)


def label_row(tokenizer: Tokenizer, example: ChatExample) -> Row:
    """A labelled conversation as ids: its last message is the reply; see `dunwu.train.rm_rows.label_of`.

    Raises:
        DunwuError: it has no label.
    """
    asked, reply = example.messages[:-1], example.messages[-1]
    prompt = tuple(encode_prompt(tokenizer, asked))
    ids = _reply(tokenizer, asked, reply, len(prompt))
    return Row(prompt, ids, None) if label_of(example) else Row(prompt, None, ids)


def _reply(tokenizer: Tokenizer, asked: Sequence[Message], reply: Message, prompt: int) -> Ids:
    """The learned tokens behind the prompt; those of earlier turns belong to what was asked."""
    encoded = encode_conversation(tokenizer, [*asked, reply])
    pairs = zip(encoded.ids[prompt:], encoded.loss_mask[prompt:], strict=True)
    return tuple(token for token, learned in pairs if learned)


def with_others(rows: Sequence[Row], seed: int) -> list[Row]:
    """Each row with replies to another prompt: those of the next row that asks something else, in an order drawn once.

    Where all rows ask the same they are the next row's; a row alone gets none, and z₀ is 0 then.

    Example:
        >>> pair, label = Row((1,), (2,), (3,)), Row((4,), (5,), None)
        >>> [row.others for row in with_others([pair, label], seed=0)]
        [((5,), (5,)), ((2,),)]
    """
    order = list(range(len(rows)))
    Random(derive_seed("kto others", seed)).shuffle(order)
    onward = [*order[1:], *order[:1]]
    if len({row.prompt for row in rows}) > 1:
        for _ in range(2):  # backwards round the circle, twice, so that the end knows what the beginning found
            for place in reversed(range(len(order))):
                following = order[(place + 1) % len(order)]
                same = rows[following].prompt == rows[order[place]].prompt
                onward[place] = onward[(place + 1) % len(order)] if same else following
    made = list(rows)
    for n, other in zip(order, onward, strict=True):
        replies = rows[other].sides if other != n else []
        made[n] = replace(
            rows[n], others=tuple(replies[k % len(replies)] for k in range(len(rows[n].sides) if replies else 0))
        )
    return made


# ---- replies to log-probabilities ------------------------------------------------------------


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
