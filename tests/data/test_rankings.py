"""Ranked replies in files: forms, ties, and what is no ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dunwu.data.chat import each_ranking, read_rankings, write_rankings
from dunwu.types import Message, Ranking

ASKED = [{"role": "user", "content": "hi"}]
ROW = {"messages": ASKED, "replies": ["Hello!", "Hi.", "What?"]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_forms_of_rankings(tmp_path: Path) -> None:
    rows = [
        ROW | {"meta": {"truth": [1, 0.5, 0]}},
        {"prompt": "hi", "replies": [{"role": "assistant", "content": "<think>A greeting.</think>\nHello!"}, "What?"]},
        {"messages": ASKED, "replies": [["Hello!", "你好"], {"role": "assistant", "content": "Hi."}, ["What?", "No."]]},
        {"messages": ASKED, "replies": [[], ["Hello!"], [], "What?"]},
    ]
    good, bad = read_rankings(write(tmp_path / "r.jsonl", *rows))
    assert not bad and [ranking.ranks for ranking in good] == [(0, 1, 2), (0, 1), (0, 0, 1, 2, 2), (0, 1)]
    assert good[0].meta == {"truth": [1, 0.5, 0]} and good[0].messages == (Message("user", "hi"),)
    assert good[1].replies[0] == Message("assistant", "Hello!", "A greeting.") and good[1].messages == good[0].messages
    assert [reply.content for reply in good[2].replies] == ["Hello!", "你好", "Hi.", "What?", "No."]


def test_written_rankings_are_read_back(tmp_path: Path) -> None:
    replies = tuple(Message("assistant", text, thought) for text, thought in (("a", "t"), ("b", None), ("c", None)))
    rankings = [
        Ranking((Message("user", "x\ny"),), replies, ranks, {"n": 1}) for ranks in ((0, 1, 2), (0, 0, 1), (0, 1, 1))
    ]
    write_rankings(tmp_path / "r.jsonl", rankings)
    assert read_rankings(tmp_path / "r.jsonl") == (rankings, [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "the row is a list"),
        ({"messages": ASKED}, "no field 'replies'"),
        ({"replies": ["a", "b"]}, "no prompt"),
        (ROW | {"replies": "Hello!"}, "'replies' is a text, not a list"),
        (ROW | {"replies": []}, "0 replies of one rank"),
        (ROW | {"replies": ["Hello!"]}, "1 replies of one rank"),
        (ROW | {"replies": [["Hello!", "Hi."]]}, "2 replies of one rank"),
        (ROW | {"replies": ["Hello!", "Hi.", "Hello!"]}, "replies 1 and 3 are the same"),
        (ROW | {"replies": ["Hello!", 3]}, "'reply 2' is a number"),
        (ROW | {"replies": ["Hello!", " "]}, "reply 2 is empty"),
        (ROW | {"replies": ["Hello!", [["a"]]]}, "reply 2 is a list within a tie"),
        (ROW | {"replies": ["Hello!", {"role": "user", "content": "a"}]}, "reply 2 is the user's"),
        (ROW | {"replies": ["Hello!", "<think>never closed"]}, "never closed"),
        (ROW | {"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "nothing is asked"),
        (ROW | {"meta": 3}, "'meta' is a number"),
    ],
)  # fmt: skip
def test_what_is_no_ranking_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    found = list(each_ranking(write(tmp_path / "r.jsonl", ROW, row)))
    assert [line for line, _ in found] == [1, 2] and isinstance(found[0][1], Ranking)
    assert reason in getattr(found[1][1], "reason", "read after all")
