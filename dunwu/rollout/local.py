"""A local model as a `ChatModel`: conversations encoded, sampled by the engine, replies taken apart.

Not covered: streaming (`dunwu chat` has its own loop), tools.
"""

from __future__ import annotations

from collections.abc import Sequence

from dunwu.data.chat import encode_prompt, parse_reply
from dunwu.data.tokenizer import Tokenizer
from dunwu.types import Completion, Message, Sampler, SamplingParams

BATCH = 256
"""Conversations of one engine call."""


class LocalChat:
    """Replies of an engine's model.

    Args:
        engine: draws completions; a reply depends on its own seed and conversation only.
        tokenizer: the model's own.
        name: what the model is called in records and in a judge's cache.
    """

    def __init__(self, engine: Sampler, tokenizer: Tokenizer, name: str) -> None:
        self.engine, self.tokenizer, self.name = engine, tokenizer, name

    def reply(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Message]:
        """One reply to each conversation, in order."""
        return [parse_reply(completion.text) for completion in self.complete(conversations, seeds, params)]

    def complete(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Completion]:
        """The replies as they were sampled: text with its tags, ids, and whether it ended."""
        prompts = [encode_prompt(self.tokenizer, conversation) for conversation in conversations]
        # Prompts of one call are padded to the longest: neighbours in length go together.
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        drawn: dict[int, Completion] = {}
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            sampled = self.engine.sample([prompts[p] for p in part], [[seeds[p]] for p in part], params)
            drawn |= {place: group[0] for place, group in zip(part, sampled, strict=True)}
        return [drawn[place] for place in range(len(prompts))]
