"""One general request with all that is true of it: the form in which families hand their problems on.

The truth is a JSON object (`Problem.data`), enough to judge a reply and to write replies of known quality without
anything else. Its fields:
`family`; `language` of the question; `reply_language`; `question`, the user's last turn; `risk`: "none", "benign" (looks
unsafe and is not) or "unsafe"; `checks`, what a right reply satisfies (`general_judge.py`); `constraints` (format, count,
start, end, words, sentences, language); `replies` by kind: at least best, plain and wrong_language, and `thought`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from dunwu.types import Message, derive_seed

TEST_PERCENT = 20
"""Share of the requests held out for test; families are small, so it is larger than Countdown's."""
VALID_PERCENT = 10


@dataclass(frozen=True)
class Item:
    """A request: its conversation so far, and its truth."""

    key: str
    """What makes it this request and no other; its hash is its split."""
    messages: tuple[Message, ...]
    data: Mapping[str, Any]


Family = Callable[[Random, str, bool], Item]
"""(dice, split, chinese) → a request of that split."""


@lru_cache(maxsize=100_000)
def split_of_key(key: str) -> str:
    """The only split in which a request with this key may appear: "test" 20%, "valid" 10%, "train" the rest.

    Example:
        >>> split_of_key("greeting Hello!")
        'test'
    """
    bucket = derive_seed("general split", key) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "valid" if bucket < TEST_PERCENT + VALID_PERCENT else "train"


def turns(*texts: str) -> tuple[Message, ...]:
    """A conversation of alternating turns that starts with the user's."""
    return tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))


def make(
    family: str,
    chinese: bool,
    key: str,
    messages: tuple[Message, ...],
    checks: list[dict[str, Any]],
    replies: dict[str, str],
    *,
    constraints: dict[str, Any] | None = None,
    reply_chinese: bool | None = None,
    risk: str = "none",
) -> Item:
    """An item; the reply's language is the question's unless said otherwise."""
    wanted = chinese if reply_chinese is None else reply_chinese
    data = {
        "family": family,
        "language": "zh" if chinese else "en",
        "reply_language": "zh" if wanted else "en",
        "question": messages[-1].content,
        "risk": risk,
        "checks": checks,
        "constraints": constraints or {},
        "replies": replies,
    }
    return Item(key, messages, data)
