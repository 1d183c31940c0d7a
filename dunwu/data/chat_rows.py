"""One JSON row of somebody's chat file → a conversation: our own form, ShareGPT's, Alpaca's, TRL's preferences.

    ours      {"messages": [{"role", "content", "reasoning_content"?}…], "meta": {…}}
    ShareGPT  {"conversations": [{"from", "value"}…], "system"?}
    Alpaca    {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer]…]}
    pairs     {"messages" or "prompt", "chosen", "rejected"}; each side a text, a message or a list of messages, and
              without a prompt the two sides are whole conversations that differ in their last message
    rankings  {"messages" or "prompt", "replies": [best … worst]}; each reply a text or a message, a list of them a tie

A reply that begins with <think>…</think> has its thinking taken out of the content. Not covered: tool calls, images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from dunwu.types import ChatExample, Message, Preference, Ranking, Role

THINK, END_THINK = "<think>", "</think>"
ROLES: tuple[Role, ...] = get_args(Role)
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}


class UnusableRow(ValueError):
    """Why a row cannot be used, in words for the user; readers turn it into a `BadRow`."""


def parse_reply(text: str) -> Message:
    """What a model wrote as an assistant's message; the inverse of how a last turn is rendered.

    Thinking that was begun and never ended (a truncated reply) leaves the content empty.

    Example:
        >>> parse_reply("<think>3*8=24</think>\\nIt is 24.")
        Message(role='assistant', content='It is 24.', reasoning_content='3*8=24')
        >>> parse_reply("Hello!")
        Message(role='assistant', content='Hello!', reasoning_content=None)
    """
    if not text.startswith(THINK):
        return Message("assistant", text)
    thinking, _, content = text.removeprefix(THINK).partition(END_THINK)
    return Message("assistant", content.removeprefix("\n"), thinking)


def chat_of(row: object) -> ChatExample:
    """The conversation of one row.

    Raises:
        UnusableRow: with the reason.
    """
    record = _object(row)
    messages = _turns(record)
    if messages[-1].role != "assistant":
        if all(message.role != "assistant" for message in messages):
            raise UnusableRow("no assistant turn to learn from")
        raise UnusableRow(f"the last turn is the {messages[-1].role}'s, not the assistant's")
    return ChatExample(messages, _meta(record))


def preference_of(row: object) -> Preference:
    """The pair of replies of one row.

    Raises:
        UnusableRow: with the reason.
    """
    record = _object(row)
    for side in ("chosen", "rejected"):
        if side not in record:
            raise UnusableRow(f"no field {side!r}")
    prompt = _prompt(record)
    chosen, rejected = (_side(record[side], side) for side in ("chosen", "rejected"))
    if not prompt:
        prompt, rest = chosen[:-1], rejected[:-1]
        if not prompt:
            raise UnusableRow("no prompt: neither 'messages' nor 'prompt', and the sides are single replies")
        if prompt != rest:
            raise UnusableRow("no prompt: chosen and rejected differ before their last message")
    replies = [_reply_after(prompt, messages, side) for side, messages in (("chosen", chosen), ("rejected", rejected))]
    if replies[0] == replies[1]:
        raise UnusableRow("chosen and rejected are the same")
    return Preference(_question(prompt), replies[0], replies[1], _meta(record))


def ranking_of(row: object) -> Ranking:
    """The ranked replies of one row.

    Raises:
        UnusableRow: with the reason.

    Example:
        >>> ranking_of({"prompt": "hi", "replies": ["Hello!", ["Hi.", "Hey."], "What?"]}).ranks
        (0, 1, 1, 2)
    """
    record = _object(row)
    if "replies" not in record:
        raise UnusableRow("no field 'replies'")
    prompt, given = _prompt(record), record["replies"]
    if not prompt:
        raise UnusableRow("no prompt: neither 'messages' nor 'prompt'")
    if not isinstance(given, list):
        raise UnusableRow(f"'replies' is {_kind(given)}, not a list, best first")
    replies: list[Message] = []
    ranks: list[int] = []
    for rank, place in enumerate(given):
        for value in place if isinstance(place, list) else [place]:
            name = f"reply {len(replies) + 1}"
            if isinstance(value, list):
                raise UnusableRow(f"{name} is a list within a tie")
            replies.append(_reply_after(prompt, _side(value, name), name))
            ranks.append(rank)
    if len(set(ranks)) < 2:
        raise UnusableRow(f"{len(replies)} replies of one rank: nothing is better or worse")
    for number, reply in enumerate(replies):
        if reply in replies[:number]:
            raise UnusableRow(f"replies {replies.index(reply) + 1} and {number + 1} are the same")
    dense = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return Ranking(_question(prompt), tuple(replies), tuple(dense[rank] for rank in ranks), _meta(record))


def row_of(example: ChatExample | Preference | Ranking) -> dict[str, Any]:
    """The row our own form writes; read again it is the same example.

    Example:
        >>> row_of(ChatExample((Message("user", "hi"), Message("assistant", "Hello!"))))["messages"][0]
        {'role': 'user', 'content': 'hi'}
    """
    row: dict[str, Any] = {"messages": [_message_row(message) for message in example.messages]}
    if isinstance(example, Preference):
        row |= {"chosen": _message_row(example.chosen), "rejected": _message_row(example.rejected)}
    if isinstance(example, Ranking):
        places: list[list[dict[str, str]]] = [[] for _ in set(example.ranks)]
        for rank, reply in zip(example.ranks, example.replies, strict=True):
            places[rank].append(_message_row(reply))
        row["replies"] = [place if len(place) > 1 else place[0] for place in places]
    return row | {"meta": dict(example.meta)}


# ---- conversations


def _turns(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """The conversation under whichever of the three names it has."""
    if "messages" in record:
        return _checked(_messages(record["messages"], "messages"))
    if "conversations" in record:
        return _checked((*_system(record), *_sharegpt(record["conversations"])))
    if "instruction" in record:
        return _checked((*_system(record), *_alpaca(record)))
    fields = ", ".join(sorted(map(repr, record))[:8]) or "nothing"
    raise UnusableRow(f"no 'messages', 'conversations' or 'instruction'; it holds {fields}")


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    asked = False
    for number, message in enumerate(messages, 1):
        asked = asked or message.role in ("user", "tool")
        if message.role == "assistant" and not asked:
            raise UnusableRow(f"turn {number}: the assistant speaks before anybody asked")
        if message.role == "assistant" and not message.content.strip():
            raise UnusableRow(f"turn {number}: the assistant's content is empty")
    return messages


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise UnusableRow(f"{name!r} is {_kind(value)}, not a list of messages")
    if not value:
        raise UnusableRow(f"{name!r} is empty")
    return tuple(_message(item, f"turn {number}") for number, item in enumerate(value, 1))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise UnusableRow(f"{where} is {_kind(value)}, not an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise UnusableRow(f"{where}: unknown role {role!r}; roles are {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise UnusableRow(f"{where}: tool calls are not covered")
    content = _text(value.get("content"), f"{where}: content")
    reasoning = value.get("reasoning_content")
    if reasoning is not None:
        if role != "assistant":
            raise UnusableRow(f"{where}: reasoning_content in the {role}'s turn")
        return Message("assistant", content, _text(reasoning, f"{where}: reasoning_content"))
    return _assistant(content, where) if role == "assistant" else Message(role, content)


def _assistant(content: str, where: str) -> Message:
    """A reply whose thinking may stand in its content; the blank lines around a thinking block are not kept."""
    if not content.lstrip().startswith(THINK):
        return Message("assistant", content)
    if END_THINK not in content:
        raise UnusableRow(f"{where}: {THINK} is never closed")
    reply = parse_reply(content.lstrip())
    return Message("assistant", reply.content.strip("\n"), (reply.reasoning_content or "").strip("\n"))


def _sharegpt(value: object) -> list[Message]:
    if not isinstance(value, list):
        raise UnusableRow(f"'conversations' is {_kind(value)}, not a list of turns")
    if not value:
        raise UnusableRow("'conversations' is empty")
    turns = []
    for number, item in enumerate(value, 1):
        where = f"turn {number}"
        if not isinstance(item, dict):
            raise UnusableRow(f"{where} is {_kind(item)}, not an object with from and value")
        speaker = item.get("from")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise UnusableRow(f"{where}: unknown role {speaker!r}")
        text = _text(item.get("value"), f"{where}: value")
        turns.append(_assistant(text, where) if role == "assistant" else Message(role, text))
    return turns


def _alpaca(record: Mapping[str, Any]) -> list[Message]:
    turns: list[Message] = []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise UnusableRow(f"'history' is {_kind(history)}, not a list of pairs")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UnusableRow(f"history {number} is no pair of question and answer")
        question, answer = (_text(part, f"history {number}") for part in pair)
        turns += [Message("user", question), _assistant(answer, f"history {number}")]
    given = record.get("input")
    parts = [_text(record["instruction"], "instruction"), _text("" if given is None else given, "input")]
    question = "\n\n".join(part for part in parts if part)
    if not question:
        raise UnusableRow("instruction and input are empty")
    return [*turns, Message("user", question), _assistant(_text(record.get("output"), "output"), "output")]


def _system(record: Mapping[str, Any]) -> list[Message]:
    text = record.get("system")
    return [] if text is None or text == "" else [Message("system", _text(text, "system"))]


# ---- pairs and rankings


def _question(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt that ends with something asked."""
    if prompt[-1].role not in ("user", "tool"):
        raise UnusableRow(f"the prompt ends with the {prompt[-1].role}'s turn, so nothing is asked")
    return _checked(prompt)


def _prompt(record: Mapping[str, Any]) -> tuple[Message, ...]:
    name = "messages" if "messages" in record else "prompt"
    value = record.get(name)
    if value is None:
        return ()
    return (Message("user", _text(value, name)),) if isinstance(value, str) else _messages(value, name)


def _side(value: object, name: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (_assistant(_text(value, name), name),)
    return (_message(value, name),) if isinstance(value, dict) else _messages(value, name)


def _reply_after(prompt: Sequence[Message], messages: Sequence[Message], side: str) -> Message:
    """The one assistant message of a side, whether the side repeats the prompt or not."""
    if len(messages) > len(prompt) and tuple(messages[: len(prompt)]) == tuple(prompt):
        messages = messages[len(prompt) :]
    if len(messages) != 1:
        raise UnusableRow(f"{side} has {len(messages)} messages after the prompt, not one")
    if messages[0].role != "assistant":
        raise UnusableRow(f"{side} is the {messages[0].role}'s, not the assistant's")
    if not messages[0].content.strip():
        raise UnusableRow(f"{side} is empty")
    return messages[0]


# ---- values


def _object(row: object) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise UnusableRow(f"the row is {_kind(row)}, not an object")
    return row


def _meta(record: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = record.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise UnusableRow(f"'meta' is {_kind(meta)}, not an object")
    return meta or {}


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UnusableRow(f"{where} is {_kind(value)}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableRow(f"{where} holds half of a surrogate pair, which is no character") from None
    return value


def _kind(value: object) -> str:
    names = {type(None): "missing", bool: "a boolean", dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), "a number")


def _message_row(message: Message) -> dict[str, str]:
    row = {"role": message.role, "content": message.content}
    return row if message.reasoning_content is None else row | {"reasoning_content": message.reasoning_content}
