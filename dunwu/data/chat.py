"""Conversations to text and to ids with a loss mask, and chat files: the only place where messages become tokens.

    <|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n[<think>…</think>\\n]…<|im_end|>\\n

Thinking is shown only in the conversation's last message: when the next reply is written, the thinking of the turns
before it is gone, in training as in use. What is trained is what the assistant wrote, thinking included, and its
<|im_end|>. An earlier assistant turn is trained too, unless its thinking was dropped: then it is context only, since
without that thinking it would teach to answer at once where the answer came from thought.

Texts are spelled out: a "<|im_end|>" typed by a user is bytes, never the token. Only <think>, </think>, <answer> and
</answer> in the assistant's texts are the single tokens the model writes. Not covered: tool calls, images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dunwu.data.chat_rows import END_THINK, THINK, UnusableRow, chat_of, parse_reply, preference_of, ranking_of, row_of
from dunwu.data.tokenizer import TAGS, TURN_END, TURN_START, Tokenizer
from dunwu.disk import write_atomically
from dunwu.types import ChatExample, DunwuError, Message, Preference, Problem, Ranking

__all__ = [
    "BadRow",
    "Encoded",
    "each_chat",
    "each_preference",
    "each_ranking",
    "encode_conversation",
    "encode_prompt",
    "parse_reply",
    "prompt_ids",
    "read_chat",
    "read_preferences",
    "read_rankings",
    "render_conversation",
    "render_prompt",
    "require_turns",
    "write_chat",
    "write_preferences",
    "write_rankings",
]

Row = TypeVar("Row", ChatExample, Preference, Ranking)
_TAG = re.compile("(" + "|".join(map(re.escape, TAGS)) + ")")


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids (T,), and which of them are learned: `loss_mask` (T,) of 0 and 1."""

    ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its line, counted from 1, and why."""

    line: int
    reason: str


# ---- conversations to ids


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> Encoded:
    """A whole conversation with its loss mask; it begins with `encode_prompt` of all but the last message.

    Raises:
        DunwuError: the tokenizer has no turn tokens, or there are no messages.
    """
    if not messages:
        raise DunwuError("a conversation has no messages", "give at least one")
    start, end = require_turns(tokenizer)
    ids: list[int] = []
    mask: list[int] = []
    for number, message in enumerate(messages):
        last = number == len(messages) - 1
        head, body = _turn(tokenizer, message, last)
        learned = int(message.role == "assistant" and (last or not message.reasoning_content))
        ids += [start, *head, *body, end, *tokenizer.encode("\n")]
        mask += [0] * (1 + len(head)) + [learned] * (len(body) + 1)
        mask += [0] * (len(ids) - len(mask))
    return Encoded(tuple(ids), tuple(mask))


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The conversation so far and the opening of the assistant's turn; no thinking of earlier turns.

    Raises:
        DunwuError: the tokenizer has no turn tokens, or the last turn is the assistant's already.
    """
    _require_question(messages)
    start, end = require_turns(tokenizer)
    ids: list[int] = []
    for message in messages:
        head, body = _turn(tokenizer, message, last=False)
        ids += [start, *head, *body, end, *tokenizer.encode("\n")]
    return [*ids, start, *tokenizer.encode("assistant\n")]


def render_conversation(messages: Sequence[Message]) -> str:
    """The text `encode_conversation` stands for, for people to read.

    Example:
        >>> render_conversation([Message("user", "hi"), Message("assistant", "Hello!", "A greeting.")])[-44:]
        '<think>A greeting.</think>\\nHello!<|im_end|>\\n'
    """
    last = len(messages) - 1
    return "".join(
        f"{TURN_START}{message.role}\n{_body(message, number == last)}{TURN_END}\n"
        for number, message in enumerate(messages)
    )


def render_prompt(messages: Sequence[Message]) -> str:
    """The text `encode_prompt` stands for, for people to read; a "<|im_end|>" typed by a user looks like the token here.

    Example:
        >>> render_prompt([Message("user", "hi")])
        '<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    _require_question(messages)
    turns = "".join(f"{TURN_START}{m.role}\n{_body(m, last=False)}{TURN_END}\n" for m in messages)
    return f"{turns}{TURN_START}assistant\n"


def prompt_ids(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """What the model sees of a problem: its conversation if it has one, else its prompt."""
    return encode_prompt(tokenizer, problem.messages) if problem.messages else tokenizer.encode(problem.prompt)


def require_turns(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of <|im_start|> and <|im_end|>.

    Raises:
        DunwuError: naming what is missing.
    """
    start, end = (tokenizer.backend.token_to_id(token) for token in (TURN_START, TURN_END))
    if start is None or end is None:
        missing = [token for token, there in ((TURN_START, start), (TURN_END, end)) if there is None]
        raise DunwuError(
            f"the model's tokenizer has no {' and no '.join(missing)} token, so it cannot tell turns apart",
            "use a model with a ChatML tokenizer, such as Qwen2.5 or one trained here",
        )
    return start, end


def _require_question(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role == "assistant":
        raise DunwuError("there is nothing to reply to", "end the conversation with the user's turn")


def _turn(tokenizer: Tokenizer, message: Message, last: bool) -> tuple[list[int], list[int]]:
    """(ids of the role's line, ids of the body). The assistant's body is encoded by itself, as it is sampled; with
    other roles the two are one text, so that blank space at the start of a body joins the line as in Hugging Face."""
    if message.role != "assistant":
        return tokenizer.encode(f"{message.role}\n{message.content}", allow_special=False), []
    body: list[int] = []
    for piece in _TAG.split(_body(message, last)):
        tag = tokenizer.backend.token_to_id(piece) if piece in TAGS else None
        body += [tag] if tag is not None else tokenizer.encode(piece, allow_special=False)
    return tokenizer.encode("assistant\n"), body


def _body(message: Message, last: bool) -> str:
    thought = last and message.role == "assistant" and message.reasoning_content
    return f"{THINK}{message.reasoning_content}{END_THINK}\n{message.content}" if thought else message.content


# ---- files


def read_chat(path: Path) -> tuple[list[ChatExample], list[BadRow]]:
    """Conversations of a file that end with the assistant's turn, in order, and the rows that cannot be used.

    One JSON object a line, in our form, ShareGPT's or Alpaca's (`dunwu.data.chat_rows`); a `.json` file may be one
    array of them. Rows good and bad together are all rows; blank lines are none.

    Raises:
        DunwuError: the file cannot be read.
    """
    return _sorted_out(each_chat(path))


def read_preferences(path: Path) -> tuple[list[Preference], list[BadRow]]:
    """Pairs of replies of a file, like `read_chat`; rows have `chosen` and `rejected`.

    Raises:
        DunwuError: the file cannot be read.
    """
    return _sorted_out(each_preference(path))


def read_rankings(path: Path) -> tuple[list[Ranking], list[BadRow]]:
    """Ranked replies of a file, like `read_chat`; rows have `replies`, best first, and a list among them is a tie.

    Raises:
        DunwuError: the file cannot be read.
    """
    return _sorted_out(each_ranking(path))


def each_chat(path: Path) -> Iterator[tuple[int, ChatExample | BadRow]]:
    """(line, conversation or why not) of every row, streamed; see `read_chat`."""
    return _each(Path(path), chat_of)


def each_preference(path: Path) -> Iterator[tuple[int, Preference | BadRow]]:
    """(line, pair or why not) of every row, streamed; see `read_preferences`."""
    return _each(Path(path), preference_of)


def each_ranking(path: Path) -> Iterator[tuple[int, Ranking | BadRow]]:
    """(line, ranking or why not) of every row, streamed; see `read_rankings`."""
    return _each(Path(path), ranking_of)


def write_chat(path: Path, rows: Sequence[ChatExample]) -> None:
    """Write conversations, one a line, whole or not at all."""
    _write(Path(path), rows)


def write_preferences(path: Path, rows: Sequence[Preference]) -> None:
    """Write pairs, one a line, whole or not at all."""
    _write(Path(path), rows)


def write_rankings(path: Path, rows: Sequence[Ranking]) -> None:
    """Write rankings, one a line, whole or not at all."""
    _write(Path(path), rows)


def _write(path: Path, rows: Sequence[ChatExample | Preference | Ranking]) -> None:
    write_atomically(path, "".join(json.dumps(row_of(row), ensure_ascii=False) + "\n" for row in rows))


def _each(path: Path, convert: Callable[[object], Row]) -> Iterator[tuple[int, Row | BadRow]]:
    for line, text in _pieces(path):
        try:
            yield line, convert(_parsed(text))
        except UnusableRow as reason:
            yield line, BadRow(line, str(reason))


def _sorted_out(rows: Iterable[tuple[int, Row | BadRow]]) -> tuple[list[Row], list[BadRow]]:
    good: list[Row] = []
    bad: list[BadRow] = []
    for _, row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            good.append(row)
    return good, bad


def _parsed(text: str | bytes) -> object:
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UnusableRow(f"not UTF-8 at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise UnusableRow(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableRow(f"not JSON that can be read: {error}") from error


def _pieces(path: Path) -> Iterator[tuple[int, str | bytes]]:
    """(line number, the row's text) of every row."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".json" and file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                file.seek(0)
                yield from _elements(file.read())
                return
            file.seek(0)
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise DunwuError(f"cannot read {path}: {error.strerror}", "check the path") from error


def _elements(content: bytes) -> Iterator[tuple[int, str]]:
    """The elements of one JSON array with the lines they begin on; what cannot be parsed ends the array."""
    text = content.decode("utf-8-sig", errors="surrogateescape")
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    at, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        begin = space.match(text, at).end()  # type: ignore[union-attr]  # the empty text matches too
        line += text.count("\n", at, begin)
        if text.startswith("]", begin):
            return
        try:
            end = decoder.raw_decode(text, begin)[1]
        except (ValueError, RecursionError):
            yield line, text[begin:]
            return
        yield line, text[begin:end]
        line, at = line + text.count("\n", begin, end), end
