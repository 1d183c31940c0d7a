"""A reward model without a head: a reply is as good as the model finds it likely, token for token.

r(x, y) = β / |y| · Σ_t log π(y_t | x, y_<t), the reward of SimPO (arXiv 2405.14734, eq. 4), taught by the losses of any other
reward model. A scalar head has to find in one state at the end whether every word of the reply fits what was asked; a
language model's predictions say so word by word, and it has learned to make them before the first label.

Only differences of these rewards mean anything: all lie below 0, so labels of single replies cannot be learned.
Legend: S replies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dunwu.data.chat import require_turns
from dunwu.data.tokenizer import Tokenizer
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.train.reply_logprobs import Asked, Ids, reply_logprobs
from dunwu.types import DunwuError


class LikelihoodModel(nn.Module):
    """A language model as a judge.

    Args:
        backbone: the language model; it is trained itself.
        turn: ids that open an assistant's turn, and the id that ends one (`turn_of`): the reply is what stands behind the last
            opening, with the end of its turn and nothing behind that.
        beta: β, how much a nat per token is worth.
    """

    def __init__(self, backbone: Transformer, turn: tuple[Ids, int], beta: float) -> None:
        super().__init__()
        self.backbone, self.turn, self.beta = backbone, turn, beta

    @property
    def config(self) -> ModelConfig:
        """The language model's shape."""
        return self.backbone.config

    def forward(self, families: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """Scores (S,) in fp32 of all texts of all families; a family's texts are replies to one prompt.

        Raises:
            DunwuError: a text without a reply.
        """
        asked: list[Asked] = []
        for family in families:
            prompts, replies = zip(*(split_reply(text, *self.turn) for text in family), strict=True)
            if len(set(prompts)) == 1:  # the prompt goes through the model once
                asked.append((prompts[0], replies))
            else:
                asked += [(prompt, [reply]) for prompt, reply in zip(prompts, replies, strict=True)]
        lengths = [len(reply) for _, replies in asked for reply in replies]
        logprobs_S = reply_logprobs(self.backbone, asked)
        return self.beta * logprobs_S / torch.tensor(lengths, device=logprobs_S.device)


def turn_of(tokenizer: Tokenizer) -> tuple[Ids, int]:
    """The ids that open an assistant's turn, and the id that ends it.

    Raises:
        DunwuError: the tokenizer has no turn tokens.
    """
    start, end = require_turns(tokenizer)
    return (start, *tokenizer.encode("assistant\n")), end


def split_reply(text: Sequence[int], opening: Ids, end: int) -> tuple[Ids, Ids]:
    """(prompt, reply): the reply is what stands behind the last opening, up to and with the last `end`; all of it without one.

    Raises:
        DunwuError: there is no opening, or nothing behind it.

    Example:
        >>> split_reply([5, 1, 2, 9, 1, 2, 7, 8, 3, 4], (1, 2), 3)
        ((5, 1, 2, 9, 1, 2), (7, 8, 3))
    """
    ids, size = tuple(text), len(opening)
    places = range(len(ids) - size, -1, -1)
    begin = next((at + size for at in places if ids[at : at + size] == opening), len(ids))
    reply = ids[begin:]
    if end in reply:
        reply = reply[: len(reply) - reply[::-1].index(end)]
    if not reply:
        raise DunwuError("a conversation has no reply to judge", "let it end with an assistant's turn")
    return ids[:begin], reply
