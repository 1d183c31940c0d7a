"""A conversation with a speaker: its turns, its settings, and what is kept of a reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dunwu.data.chat import write_chat
from dunwu.serve.pieces import Piece
from dunwu.serve.speaker import Reply, Speaker
from dunwu.tasks.formats import split_completion
from dunwu.types import ChatExample, DunwuError, Message, SamplingParams, UsageError, derive_seed


@dataclass
class Conversation:
    """What was said, and how the next reply is drawn.

    `turns` alternate user and assistant; the reply to question n of a conversation has the seed of (seed, n), so equal
    questions in equal order get equal replies.
    """

    speaker: Speaker
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=512, temperature=0.7))
    seed: int = 0
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    _saved: set[Path] = field(default_factory=set)

    def ask(self, question: str, reply: Reply) -> Iterator[Piece]:
        """Yield the reply to a question; `reply` is up to date at every moment. Nothing is kept: see `keep`.

        Raises:
            DunwuError: the question is too long, or the server fails.
        """
        return self.speaker.speak(
            [*self._head(), *self.turns, Message("user", question)], self.next_seed, self.params, reply
        )

    def keep(self, question: str, reply: Reply) -> bool:
        """Make question and reply part of the conversation; False if the reply says nothing, and neither is kept."""
        message = reply.message(self.speaker.frame)
        if not message.content:
            return False
        self.turns += [Message("user", question), message]
        return True

    @property
    def next_seed(self) -> int:
        """The next reply's seed."""
        return derive_seed("chat", self.seed, len(self.turns) // 2)

    def begin_anew(self) -> None:
        """Forget every turn; settings stay."""
        self.turns = []

    def save(self, path: Path) -> None:
        """Write the conversation as one row of chat data, thinking included.

        Raises:
            UsageError: nothing was said, or the file is there and not from this conversation's `save`.
            DunwuError: the file cannot be written.
        """
        if not self.turns:
            raise UsageError("nothing was said yet", "ask something first")
        if path.exists() and path.resolve() not in self._saved:
            raise UsageError(f"{path} exists", "give a new name")
        try:
            write_chat(path, [ChatExample((*self._head(), *self.turns), {"model": self.speaker.name})])
        except OSError as error:
            raise DunwuError(f"cannot write {path}: {error.strerror}", "give another name") from error
        self._saved.add(path.resolve())

    def set_temperature(self, value: float) -> None:
        """Raise UsageError for what is no temperature."""
        if not 0 <= value <= 100:
            raise UsageError(f"temperature {value:g} is out of range", "0 is greedy, 0.7 usual")
        self.params = replace(self.params, temperature=value)

    def set_max_tokens(self, value: int) -> None:
        """Raise UsageError for what is no length."""
        if value < 1:
            raise UsageError(f"a reply of {value} tokens is none", "use 1 or more")
        self.params = replace(self.params, max_tokens=value)

    def _head(self) -> Sequence[Message]:
        return [Message("system", self.system)] if self.system else []


def turn_record(question: str, reply: Reply, speaker: Speaker, seed: int) -> dict[str, Any]:
    """One turn of `dunwu chat --json`."""
    message = reply.message(speaker.frame)
    answer = split_completion(message.content).answer if speaker.frame == "chat" else message.content
    return {
        "question": question,
        "content": message.content,
        "reasoning_content": message.reasoning_content,
        "answer": answer,
        "tokens": reply.tokens,
        "thinking_tokens": reply.thinking_tokens,
        "finish_reason": reply.finish_reason,
        "left_out": reply.left_out,
        "seed": seed,
    }
