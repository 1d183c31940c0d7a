"""What preference training learns from, as ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from dunwu.data.chat import encode_conversation, encode_prompt
from dunwu.data.tokenizer import Tokenizer
from dunwu.train.reply_logprobs import Ids
from dunwu.train.rm_rows import label_of
from dunwu.types import ChatExample, DunwuError, Message, Preference, derive_seed


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
