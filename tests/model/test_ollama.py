"""What ollama is given: a Modelfile by its grammar, and a Go template that says what our own renders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dunwu.data.chat import render_conversation, render_prompt
from dunwu.data.tokenizer import GO_TEMPLATE, TURN_END, load_tokenizer
from dunwu.model.config import ModelConfig
from dunwu.model.hf import save_model
from dunwu.model.ollama import modelfile, write_ollama
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError, Message
from tests.model.llama_server import small_tokenizer

USER, SYSTEM = Message("user", "What is 2+2?\nSay it."), Message("system", "Be kind.")
THOUGHT, PLAIN = Message("assistant", "It is 4.", "2+2=4"), Message("assistant", "你好!")


# ---- a Modelfile's grammar


def instructions(text: str) -> list[tuple[str, str]]:
    """(command, value) of a Modelfile: a word, then the rest of the line, or what stands in "…" or in three of them."""
    found: list[tuple[str, str]] = []
    while text := text.lstrip("\n"):
        command, _, rest = text.partition(" ")
        assert command in ("FROM", "TEMPLATE", "PARAMETER", "SYSTEM", "LICENSE"), command
        if command == "PARAMETER":
            name, _, rest = rest.partition(" ")
            command += f" {name}"
        quote = '"""' if rest.startswith('"""') else '"' if rest.startswith('"') else ""
        value, closed, text = rest.removeprefix(quote).partition(quote or "\n")
        assert closed and (not quote or text.startswith("\n"))
        found.append((command, value))
    return found


def test_modelfile() -> None:
    said = instructions(modelfile(2048, ["<|im_start|>", "<|im_end|>"], go_template=GO_TEMPLATE))
    assert said == [
        ("FROM", "./model.gguf"),
        ("TEMPLATE", GO_TEMPLATE),
        ("PARAMETER num_ctx", "2048"),
        ("PARAMETER temperature", "0.6"),
        ("PARAMETER top_p", "0.95"),
        ("PARAMETER stop", "<|im_start|>"),
        ("PARAMETER stop", "<|im_end|>"),
    ]


def test_a_template_that_would_end_its_quotes_is_refused() -> None:
    with pytest.raises(DunwuError, match="Go template"):
        modelfile(1, [], go_template='a """ b')


@pytest.mark.parametrize("chats", [True, False])
def test_written_folder(chats: bool, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
    tokenizer = small_tokenizer()
    config = ModelConfig(tokenizer.vocab_size, 32, 1, 2, 1, 64, max_position_embeddings=512)
    model = Transformer(replace(config))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "m", tokenizer.end_id, tokenizer.stop_ids if chats else ())
    tokenizer.save(tmp_path / "m")
    written = write_ollama(tmp_path / "m", tmp_path / "out", "q8_0", GO_TEMPLATE)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.gguf", "Modelfile"}
    assert written.bytes == (tmp_path / "out" / "model.gguf").stat().st_size
    said = instructions((tmp_path / "out" / "Modelfile").read_text("utf-8"))
    assert ("PARAMETER num_ctx", "512") in said
    stops = {value for name, value in said if name == "PARAMETER stop"}
    assert stops == {"<|im_start|>", "<|endoftext|>"} | ({TURN_END} if chats else set())
    assert {load_tokenizer(tmp_path / "m").backend.token_to_id(stop) for stop in stops} >= {tokenizer.end_id}


# ---- as much of Go's template language as the template uses


def go_render(template: str, data: dict[str, Any]) -> str:
    """The text of a Go template: range over messages with an index, if … end, :=, and, or, not, eq, ne, len, slice."""
    pieces = re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)
    for at in range(1, len(pieces), 2):  # `{{-` and `-}}` eat the space beside them
        if pieces[at].startswith("- "):
            pieces[at - 1], pieces[at] = pieces[at - 1].rstrip(), pieces[at][1:]
        if pieces[at].endswith(" -"):
            pieces[at + 1], pieces[at] = pieces[at + 1].lstrip(), pieces[at][:-1]
    nodes = iter([(n % 2 == 1, piece.strip() if n % 2 else piece) for n, piece in enumerate(pieces)])
    tree = _block(nodes)
    assert next(nodes, None) is None
    return _run(tree, data, {"$": data})


def _block(nodes: Iterator[tuple[bool, str]]) -> list[Any]:
    found: list[Any] = []
    for is_action, text in nodes:
        if is_action and text == "end":
            return found
        opens = is_action and text.split()[0] in ("if", "range")
        found.append((text, _block(nodes)) if opens else (text if is_action else ("", text)))
    return found


def _run(tree: list[Any], dot: Any, names: dict[str, Any]) -> str:
    out = ""
    for node in tree:
        if isinstance(node, str):
            name, assigns, expression = node.partition(":=")
            value = _value(_tokens(expression if assigns else node), dot, names)
            if assigns:
                names[name.strip()] = value
            else:
                out += str(value or "")
        elif not node[0]:
            out += node[1]
        elif node[0].startswith("if "):
            out += _run(node[1], dot, names) if _value(_tokens(node[0][3:]), dot, names) else ""
        else:
            variables, _, expression = node[0].removeprefix("range ").partition(":=")
            index = variables.split(",")[0].strip()
            for number, item in enumerate(_value(_tokens(expression), dot, names)):
                out += _run(node[1], item, names | {index: number})
    return out


def _tokens(text: str) -> list[str]:
    return re.findall(r'"[^"]*"|[()]|[^\s()]+', text)


def _value(tokens: list[str], dot: Any, names: dict[str, Any]) -> Any:
    terms: list[Any] = []
    while tokens:
        token = tokens.pop(0)
        if token == ")":
            break
        terms.append(_value(tokens, dot, names) if token == "(" else _term(token, dot, names))
    if len(terms) == 1:
        return terms[0]
    functions: dict[str, Any] = {
        "and": lambda *xs: next((x for x in xs if not x), xs[-1]),
        "or": lambda *xs: next((x for x in xs if x), xs[-1]),
        "not": lambda x: not x,
        "eq": lambda x, y: x == y,
        "ne": lambda x, y: x != y,
        "len": len,
        "slice": lambda x, begin: x[begin:],
    }
    return functions[terms[0]](*terms[1:])


def _term(token: str, dot: Any, names: dict[str, Any]) -> Any:
    if token.startswith('"'):
        return token[1:-1]
    if token.isdigit():
        return int(token)
    if token.startswith("."):
        return dot[token[1:]]
    head, _, field = token.partition(".")
    return (names[head][field] if field else names[head]) if token.startswith("$") else token


def shown(messages: list[Message]) -> str:
    rows = [{"Role": m.role, "Content": m.content, "Thinking": m.reasoning_content or ""} for m in messages]
    return go_render(GO_TEMPLATE, {"Messages": rows})


@pytest.mark.parametrize(
    "messages", [[USER], [SYSTEM, USER], [USER, THOUGHT, USER], [SYSTEM, USER, PLAIN, USER, THOUGHT, USER]]
)
def test_go_template_asks_as_we_do(messages: list[Message]) -> None:
    assert shown(messages) == render_prompt(messages)


@pytest.mark.parametrize("messages", [[USER, PLAIN], [SYSTEM, USER, THOUGHT, USER, THOUGHT]])
def test_go_template_leaves_a_begun_reply_open(messages: list[Message]) -> None:
    """ollama continues a reply that it is given; ours closes it."""
    assert shown(messages) + "<|im_end|>\n" == render_conversation(messages)


def test_go_template_tells_ollama_the_tags() -> None:
    """ollama takes the first and the last text around `.Thinking` for the tags of thinking."""
    inside = re.search(r"\{\{ if [^}]*\.Thinking \}\}(.*?)\{\{ \.Thinking \}\}(.*?)\{\{ end", GO_TEMPLATE, re.DOTALL)
    assert inside is not None and (inside[1].strip(), inside[2].strip()) == ("<think>", "</think>")
