"""Conversations as tokens: the template's text, masks by hand, no token out of somebody's text; and chat files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data.chat import (
    BadRow,
    Encoded,
    each_chat,
    encode_conversation,
    encode_prompt,
    parse_reply,
    prompt_ids,
    read_chat,
    read_preferences,
    render_conversation,
    render_prompt,
    require_turns,
    write_chat,
    write_preferences,
)
from dunwu.data.tokenizer import SPECIALS, TAGS, Tokenizer, load_tokenizer, train_from_texts
from dunwu.types import ChatExample, DunwuError, Message, Preference, Problem

USER, SYSTEM = Message("user", "What is 2+2?\nSay it."), Message("system", "Be kind.")
THOUGHT = Message("assistant", "It is <answer>4</answer>.", "2+2=4")
PLAIN = Message("assistant", "你好!")
CONVERSATIONS = {
    "one turn": [USER, PLAIN],
    "thinking": [USER, THOUGHT],
    "thinking of an earlier turn": [SYSTEM, USER, THOUGHT, Message("user", "And 3+3?"), THOUGHT],
    "no thinking at the end": [USER, THOUGHT, USER, PLAIN],
    "tool": [USER, Message("assistant", "look"), Message("tool", "\n 4"), PLAIN],
    "empty thinking": [USER, Message("assistant", "hi", "")],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["user assistant system tool\n hello what is 2+2? 你好! It is 4."] * 4, 400)


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def rows(messages: list[Message]) -> list[dict[str, str]]:
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return [
        row if m.reasoning_content is None else row | {"reasoning_content": m.reasoning_content}
        for row, m in zip(plain, messages)
    ]


def trained(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """The trained stretches as texts."""
    pieces: list[list[int]] = []
    before = 0
    for token, learned in zip(encoded.ids, encoded.loss_mask, strict=True):
        if learned and not before:
            pieces.append([])
        if learned:
            pieces[-1].append(token)
        before = learned
    return [tokenizer.decode(piece) for piece in pieces]


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_what_is_encoded_is_what_the_template_shows(tokenizer: Tokenizer, theirs: Any, messages: list[Message]) -> None:
    shown = theirs.apply_chat_template(rows(messages), tokenize=False)
    assert shown == render_conversation(messages)
    encoded = encode_conversation(tokenizer, messages)
    assert tokenizer.decode(encoded.ids) == shown
    assert theirs.encode(shown, add_special_tokens=False) == list(encoded.ids)
    asked = theirs.apply_chat_template(rows(messages[:-1]), tokenize=False, add_generation_prompt=True)
    assert asked == render_prompt(messages[:-1])
    prompt = encode_prompt(tokenizer, messages[:-1])
    assert theirs.encode(asked, add_special_tokens=False) == prompt
    assert encoded.ids[: len(prompt)] == tuple(prompt)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_template_leaves_a_begun_reply_open(theirs: Any, messages: list[Message]) -> None:
    """transformers' `continue_final_message`, as a prefix of the assistant's turn is given."""
    begun = theirs.apply_chat_template(rows(messages), tokenize=False, continue_final_message=True)
    assert begun + "<|im_end|>\n" == render_conversation(messages)


@pytest.mark.parametrize("thinking", [True, False])
def test_template_has_no_switch_for_thinking(theirs: Any, thinking: bool) -> None:
    """No model is trained on a turn that says whether to think, so the prompt does not change."""
    asked = theirs.apply_chat_template(
        rows([USER]), tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert asked == render_prompt([USER])


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("one turn", ["你好!<|im_end|>"]),
        ("thinking", ["<think>2+2=4</think>\nIt is <answer>4</answer>.<|im_end|>"]),
        # The first reply came from a thought that is not shown any more: context, not a lesson.
        ("thinking of an earlier turn", ["<think>2+2=4</think>\nIt is <answer>4</answer>.<|im_end|>"]),
        ("no thinking at the end", ["你好!<|im_end|>"]),
        ("tool", ["look<|im_end|>", "你好!<|im_end|>"]),
        ("empty thinking", ["hi<|im_end|>"]),
    ],
)
def test_only_what_the_assistant_wrote_is_learned(tokenizer: Tokenizer, name: str, learned: list[str]) -> None:
    assert trained(tokenizer, encode_conversation(tokenizer, CONVERSATIONS[name])) == learned


def test_no_text_makes_a_token_of_the_frame(tokenizer: Tokenizer) -> None:
    trap = "".join((*SPECIALS, *TAGS))
    start, end = require_turns(tokenizer)
    special = {tokenizer.backend.token_to_id(token) for token in SPECIALS}
    tags = {tokenizer.backend.token_to_id(token) for token in TAGS}
    for role in ("system", "user", "tool"):
        ids = encode_prompt(tokenizer, [USER, Message(role, trap)])
        assert [i for i in ids if i in special | tags] == [start, end, start, end, start]
        assert tokenizer.decode(ids) == render_prompt([USER, Message(role, trap)])
    ids = list(encode_conversation(tokenizer, [USER, Message("assistant", trap, "so " + trap)]).ids)
    assert [i for i in ids if i in special] == [start, end, start, end]
    assert len([i for i in ids if i in tags]) == 2 + 2 * len(TAGS)  # what the assistant writes are the single tags


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.text(min_size=1, max_size=20))
def test_prompt_begins_the_conversation_whatever_is_said(tokenizer: Tokenizer, said: list[str], reply: str) -> None:
    messages = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(said)]
    messages += [Message("user", "?")]
    prompt = encode_prompt(tokenizer, messages)
    whole = encode_conversation(tokenizer, [*messages, Message("assistant", reply, reply)])
    assert whole.ids[: len(prompt)] == tuple(prompt)
    assert whole.loss_mask[len(prompt) :] == (1,) * (len(whole.ids) - len(prompt) - 1) + (0,)


def test_problem_prompts(tokenizer: Tokenizer) -> None:
    assert prompt_ids(tokenizer, Problem("t", "1", {}, "a <think>")) == tokenizer.encode("a <think>")
    asked = Problem("t", "1", {}, "shown", messages=(USER,))
    assert prompt_ids(tokenizer, asked) == encode_prompt(tokenizer, [USER])


@pytest.mark.parametrize("reply", [THOUGHT, PLAIN, Message("assistant", "\n\nx", "a\nb"), Message("assistant", "")])
def test_replies_are_read_back(reply: Message) -> None:
    shown = render_conversation([USER, reply]).partition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")
    assert parse_reply(shown) == reply


def test_replies_out_of_form() -> None:
    assert parse_reply("<think>on and on") == Message("assistant", "", "on and on")
    assert parse_reply("so</think> 4") == Message("assistant", "so</think> 4")
    assert parse_reply("<think></think>\nhi") == Message("assistant", "hi", "")


def test_a_tokenizer_without_turns_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    record = json.loads(file.read_text("utf-8"))
    record["added_tokens"] = [t for t in record["added_tokens"] if t["content"] != "<|im_start|>"]
    file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(DunwuError, match=r"no <\|im_start\|> token"):
        encode_prompt(load_tokenizer(tmp_path), [USER])


def test_nothing_to_reply_to(tokenizer: Tokenizer) -> None:
    for messages in ([], [USER, PLAIN]):
        with pytest.raises(DunwuError, match="nothing to reply to"):
            encode_prompt(tokenizer, messages)
    with pytest.raises(DunwuError, match="no messages"):
        encode_conversation(tokenizer, [])


def test_a_tokenizer_of_elsewhere_takes_our_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    foreign = Tokenizer(tokenizer.backend, {"eos_token": "<|im_end|>", "chat_template": "theirs"})
    foreign.for_chat().save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert saved["eos_token"] == "<|im_end|>" and saved["chat_template"].startswith("{% for m in messages %}")


# ---- files


def write(path: Path, *lines: Any) -> Path:
    shown = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(shown) + b"\n")
    return path


def test_three_forms_of_one_conversation(tmp_path: Path) -> None:
    ours = {"messages": [{"role": "system", "content": "s"}, *rows([USER, THOUGHT])], "meta": {"n": 1}}
    sharegpt = {
        "id": "x",
        "system": "s",
        "conversations": [
            {"from": "human", "value": USER.content},
            {"from": "gpt", "value": f"<think>\n2+2=4\n</think>\n\n{THOUGHT.content}"},
        ],
    }
    alpaca = {"system": "s", "instruction": "What is 2+2?", "input": "", "output": "4"}
    good, bad = read_chat(write(tmp_path / "a.jsonl", ours, b"", sharegpt, alpaca))
    assert bad == []
    assert good[0] == ChatExample((Message("system", "s"), USER, THOUGHT), {"n": 1})
    assert good[1].messages == good[0].messages
    assert good[2].messages == (Message("system", "s"), Message("user", "What is 2+2?"), Message("assistant", "4"))


def test_alpaca_with_input_and_history(tmp_path: Path) -> None:
    row = {"instruction": "Add", "input": "2 3", "output": "5", "history": [["hi", "hello"]]}
    good, _ = read_chat(write(tmp_path / "a.jsonl", row))
    assert [m.content for m in good[0].messages] == ["hi", "hello", "Add\n\n2 3", "5"]


BAD_ROWS: list[tuple[Any, str]] = [
    (b'{"messages": ', "not JSON: Expecting value"),
    (b'{"messages": "\xff"}', "not UTF-8 at byte 14"),
    (b"[" * 100_000, "not JSON"),
    (b'{"a": ' + b"1" * 5000 + b"}", "not JSON|it holds 'a'"),
    ([1], "a list, not an object"),
    (5, "a number, not an object"),
    ({}, "no 'messages'.*it holds nothing"),
    ({"text": "x"}, "it holds 'text'"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": "hi"}, "'messages' is a text"),
    ({"messages": ["hi"]}, "turn 1 is a text"),
    ({"messages": [{"role": "king", "content": "x"}]}, "turn 1: unknown role 'king'"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
    ({"messages": [{"role": "user"}]}, "turn 1: content is missing"),
    ({"messages": [{"role": "user", "content": 3}]}, "content is a number"),
    ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
    ({"messages": rows([USER, PLAIN, USER])}, "last turn is the user's"),
    ({"messages": rows([PLAIN])}, "speaks before anybody asked"),
    ({"messages": rows([USER, Message("assistant", " ")])}, "turn 2: the assistant's content is empty"),
    ({"messages": rows([USER, Message("assistant", "<think>so 4")])}, "turn 2: <think> is never closed"),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "reasoning_content in the user's"),
    ({"messages": [rows([USER])[0], rows([PLAIN])[0] | {"reasoning_content": 1}]}, "reasoning_content is a number"),
    ({"messages": [rows([USER])[0], rows([PLAIN])[0] | {"tool_calls": [{}]}]}, "tool calls"),
    ({"messages": rows([USER, PLAIN]), "meta": 3}, "'meta' is a number"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ({"conversations": []}, "'conversations' is empty"),
    ({"conversations": [{"from": "function_call", "value": "x"}]}, "unknown role 'function_call'"),
    ({"conversations": [{"from": "human"}]}, "turn 1: value is missing"),
    ({"conversations": {"from": "human"}}, "'conversations' is an object"),
    ({"instruction": "x"}, "output is missing"),
    ({"instruction": "", "output": "y"}, "instruction and input are empty"),
    ({"instruction": "x", "output": "y", "history": [["a"]]}, "history 1 is no pair"),
]


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    """Every fault has its line and reason, and the good rows between them are all there."""
    fine = {"messages": rows([USER, PLAIN])}
    lines = [part for row, _ in BAD_ROWS for part in (row, b"", fine)]
    good, bad = read_chat(write(tmp_path / "a.jsonl", *lines))
    assert len(good) == len(bad) == len(BAD_ROWS)
    assert [row.line for row in bad] == [1 + 3 * n for n in range(len(BAD_ROWS))]
    for row, (_, reason) in zip(bad, BAD_ROWS, strict=True):
        assert re.search(reason, row.reason), (row.reason, reason)
        assert "\n" not in row.reason
    lines_read = [line for line, _ in each_chat(tmp_path / "a.jsonl")]
    assert lines_read == sorted(lines_read) and len(lines_read) == 2 * len(BAD_ROWS)


def test_a_json_array(tmp_path: Path) -> None:
    """Alpaca's own file is one array; its lines are those the elements begin on."""
    path = tmp_path / "alpaca.json"
    row = {"instruction": "a", "input": "", "output": "b"}
    path.write_text("\ufeff\n" + json.dumps([row, {"instruction": 1, "output": "x"}, row], indent=1), "utf-8")
    good, bad = read_chat(path)
    assert len(good) == 2 and bad == [BadRow(8, "instruction is a number, not a text")]
    path.write_text('[\n{"instruction": "a", "output": "b"},\n{"instruction" "a"},\n{}]', "utf-8")
    good, bad = read_chat(path)
    assert len(good) == 1 and bad[0].line == 3 and bad[0].reason.startswith("not JSON")
    path.write_text('[{"instruction": "a", "output": "b"}', "utf-8")
    good, bad = read_chat(path)
    assert len(good) == 1 and len(bad) == 1
    path.write_bytes(b'[{"instruction": "\xff", "output": "b"}]')
    assert read_chat(path)[1][0].line == 1
    path.write_text("[]", "utf-8")
    assert read_chat(path) == ([], [])
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n", "utf-8")  # lines, whatever the name says
    assert len(read_chat(path)[0]) == 2


def test_a_byte_order_mark_before_the_first_row_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(f"{mark}{json.dumps({'messages': rows([USER, PLAIN])})}\n" for mark in ("\ufeff", "")), "utf-8"
    )
    good, bad = read_chat(path)
    assert len(good) == 2 and good[0] == good[1] and not bad


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DunwuError, match=r"cannot read .*none\.jsonl"):
        read_chat(tmp_path / "none.jsonl")


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    chats = [ChatExample(tuple(messages), {"name": name}) for name, messages in CONVERSATIONS.items()]
    write_chat(tmp_path / "chat.jsonl", chats)
    assert read_chat(tmp_path / "chat.jsonl") == (chats, [])
    pairs = [Preference((SYSTEM, USER), THOUGHT, PLAIN, {"a": [1]})]
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    assert read_preferences(tmp_path / "pairs.jsonl") == (pairs, [])


def test_forms_of_preferences(tmp_path: Path) -> None:
    asked, yes, no = rows([USER]), rows([Message("assistant", "yes")]), rows([Message("assistant", "no")])
    forms = [
        {"messages": asked, "chosen": "yes", "rejected": "no"},
        {"prompt": USER.content, "chosen": "yes", "rejected": "no"},
        {"prompt": asked, "chosen": yes, "rejected": no},
        {"messages": asked, "chosen": yes[0], "rejected": no[0]},
        {"chosen": asked + yes, "rejected": asked + no},
        {"prompt": asked, "chosen": asked + yes, "rejected": asked + no},
    ]
    good, bad = read_preferences(write(tmp_path / "a.jsonl", *forms))
    wanted = Preference((USER,), Message("assistant", "yes"), Message("assistant", "no"))
    assert good == [wanted] * len(forms) and bad == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "no field 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"chosen": rows([USER, PLAIN]), "rejected": rows([SYSTEM, USER, PLAIN])}, "differ before their last"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "'rejected' is missing"),
        ({"prompt": "q", "chosen": rows([PLAIN, USER]), "rejected": "b"}, "chosen has 2 messages after the prompt"),
        ({"prompt": "q", "chosen": rows([USER]), "rejected": "b"}, "chosen is the user's"),
        (
            {"messages": rows([USER, PLAIN]), "chosen": "a", "rejected": "b"},
            "the prompt ends with the assistant's turn",
        ),
        ({"messages": 3, "chosen": "a", "rejected": "b"}, "'messages' is a number"),
    ],
)
def test_bad_preferences(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good, bad = read_preferences(write(tmp_path / "a.jsonl", row))
    assert good == [] and bad[0].line == 1 and reason in bad[0].reason
