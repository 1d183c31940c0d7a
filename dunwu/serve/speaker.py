"""Who speaks: a model folder here, or a chat server elsewhere. Conversations in, pieces of a reply out as they come.

Two frames. "chat": the conversation format of `data.chat`, thinking of earlier turns dropped. "zero": R1-Zero's template,
for a model that never saw a conversation; its reply is the text of its answer block.
Not covered: streaming from a server (its reply comes whole), tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from dunwu.data.chat import encode_conversation, encode_prompt, parse_reply, require_turns
from dunwu.data.tokenizer import TURN_END, TURN_START, Tokenizer, load_tokenizer
from dunwu.model.hf import from_pretrained, stop_ids_of
from dunwu.model.runtime import prepare_torch, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.rollout.endpoint import Endpoint
from dunwu.rollout.stream import stream
from dunwu.serve.pieces import Characters, Piece, Splitter
from dunwu.tasks.formats import split_completion
from dunwu.tasks.frames import reply_text, zero_prompt
from dunwu.types import DunwuError, FinishReason, Message, SamplingParams

Frame = Literal["chat", "zero"]


@dataclass
class Reply:
    """A reply in the making; true at every moment, so that a stopped reply is one too."""

    raw: str = ""
    """Everything the model wrote, tags included."""
    tokens: int = 0
    """Tokens drawn; 0 from a server."""
    thinking_tokens: int = 0
    """Those inside the thinking."""
    finish_reason: FinishReason = "length"
    left_out: int = 0
    """Messages at the beginning of the conversation that the context had no room for."""

    def message(self, frame: Frame) -> Message:
        """The reply as a message of the conversation."""
        if frame == "chat":
            return parse_reply(self.raw.strip())
        parsed = split_completion(self.raw)
        if parsed.answer is None:
            return parse_reply(self.raw.strip())
        return Message("assistant", parsed.answer.strip(), parsed.think)


class Speaker(Protocol):
    """Someone to talk to."""

    name: str
    frame: Frame

    def speak(self, messages: Sequence[Message], seed: int, params: SamplingParams, reply: Reply) -> Iterator[Piece]:
        """Yield the reply to a conversation that ends with the user's turn, and keep `reply` up to date.

        Raises:
            DunwuError: the question is too long, or the server fails.
        """
        ...


class LocalSpeaker:
    """A model in this process.

    Args:
        frame: how it is asked.
        name: what it is called in records.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, frame: Frame, name: str) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            what = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            raise DunwuError(what, "use the tokenizer the model was trained with")
        self.model, self.tokenizer, self.frame, self.name = model, tokenizer, frame, name

    def speak(self, messages: Sequence[Message], seed: int, params: SamplingParams, reply: Reply) -> Iterator[Piece]:
        """See `Speaker`. Turns the context has no room for are left out, oldest first; a system message stays."""
        kept, prompt, room = self._fit(messages, params.max_tokens)
        reply.left_out = len(messages) - len(kept)
        spell, splitter, stops = Characters(self.tokenizer), Splitter(), self.tokenizer.stop_ids
        for token in stream(self.model, prompt, seed, replace(params, max_tokens=room), stops):
            reply.tokens += 1
            if token in stops:
                reply.finish_reason = "stop"
                break
            before, text = splitter.kind, spell.feed(token)
            reply.raw += text
            pieces = splitter.feed(text)
            reply.thinking_tokens += before == splitter.kind == "thinking"
            yield from pieces
        rest = spell.flush()
        reply.raw += rest
        yield from [*splitter.feed(rest), *splitter.flush()]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation as the model sees it. What people typed never becomes a special token."""
        if self.frame == "chat":
            return encode_prompt(self.tokenizer, messages)
        return _encode_zero(self.tokenizer, messages)

    def _fit(self, messages: Sequence[Message], max_tokens: int) -> tuple[list[Message], list[int], int]:
        """(messages that fit with room for a reply, their ids, tokens left for the reply)."""
        context = self.model.config.max_position_embeddings
        reserve = min(max_tokens, context // 2)
        kept = list(messages)
        prompt = self.prompt_ids(kept)
        while len(prompt) + reserve > context and (shorter := without_oldest(kept)) is not None:
            kept = shorter
            prompt = self.prompt_ids(kept)
        if len(prompt) >= context:
            raise DunwuError(f"the question has {len(prompt)} tokens, the model's context {context}", "ask it shorter")
        return kept, prompt, min(max_tokens, context - len(prompt))


class RemoteSpeaker:
    """A chat server; its reply comes whole."""

    frame: Frame = "chat"

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.name = endpoint, endpoint.name

    def speak(self, messages: Sequence[Message], seed: int, params: SamplingParams, reply: Reply) -> Iterator[Piece]:
        """See `Speaker`."""
        answer = self.endpoint.complete([messages], [seed], params)[0]
        reply.raw, reply.finish_reason = reply_text(answer.message), answer.finish_reason
        splitter = Splitter()
        yield from [*splitter.feed(reply.raw), *splitter.flush()]


def open_speaker(folder: Path, name: str, frame: str = "auto", device: str = "auto") -> LocalSpeaker:
    """Load a model folder; with frame "auto", a model that ends its turns is talked to in turns, any other as R1-Zero is.

    Raises:
        DunwuError: no model folder, or a frame its tokenizer has no tokens for.
    """
    prepare_torch()
    tokenizer = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
    if frame == "chat":
        require_turns(tokenizer)
    model = from_pretrained(folder, resolve_device(device))
    turns = frame == "chat" or (frame == "auto" and speaks_in_turns(model, tokenizer))
    return LocalSpeaker(model, tokenizer, "chat" if turns else "zero", name)


@torch.inference_mode()
def speaks_in_turns(model: Transformer, tokenizer: Tokenizer) -> bool:
    """Whether the model has learned <|im_end|>, found out by asking: somewhere in a short reply it must be likely.

    What a folder declares does not tell: a base has the token in its vocabulary, and has never seen it. Bases and
    R1-Zeros trained here give it 2e-3 at most, a model fine-tuned on conversations 0.5 and more.
    """
    if tokenizer.backend.token_to_id(TURN_START) is None or tokenizer.backend.token_to_id(TURN_END) is None:
        return False
    end = require_turns(tokenizer)[1]
    for question, reply in _SHORT_TALKS:
        talk = encode_conversation(tokenizer, [Message("user", question), reply])
        logits_TV = model(torch.tensor([talk.ids], device=model.head_weight.device))[0]
        learned = torch.tensor([place - 1 for place, mask in enumerate(talk.loss_mask) if mask])
        if float(logits_TV[learned].float().softmax(-1)[:, end].max()) > _LIKELY:
            return True
    return False


_LIKELY = 0.02
_SHORT_TALKS = (
    ("1+1?", Message("assistant", "2.")),
    ("1+1?", Message("assistant", "It is <answer>2</answer>.", "1+1=2")),
    ("你好", Message("assistant", "你好。")),
)


def without_oldest(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation without its oldest question and what answered it; None if one question is all there is."""
    head = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    later = [place for place, message in enumerate(turns) if message.role == "user" and place]
    return [*head, *turns[later[0] :]] if later else None


def is_chinese(text: str) -> bool:
    """Whether the text holds a Chinese character."""
    return re.search(r"[\u3400-\u9fff]", text) is not None


def _encode_zero(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """R1-Zero's prompt. The template's tags are tokens; the same letters typed by a person are spelled out."""
    added = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    typed = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
    marked = [
        replace(m, content=typed.sub(lambda match: f"\0{match[0]}\0", m.content.replace("\0", ""))) for m in messages
    ]
    text = zero_prompt(marked, "zh" if is_chinese(messages[-1].content) else "en")
    parts = enumerate(text.split("\0"))
    return [token for n, part in parts for token in tokenizer.encode(part, allow_special=n % 2 == 0)]
