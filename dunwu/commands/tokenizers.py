"""Text to ids and back: tokenizer train, encode, decode."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dunwu.commands.command import Command, Result, arg
from dunwu.types import UsageError

_TOKENIZER = arg("--tokenizer", required=True, metavar="NAME_OR_DIR", help="a folder with tokenizer.json")


def _tokenizer_train(args: argparse.Namespace) -> Result:
    from dunwu.data.tokenizer import train_tokenizer

    missing = [file for file in args.files if not file.exists()]
    if missing:
        raise UsageError(f"no such file: {missing[0]}", "give text or JSONL files")
    tokenizer = train_tokenizer(args.files, args.vocab_size, args.out)
    return {"tokenizer": str(args.out), "vocab_size": tokenizer.vocab_size}


def _show_tokenizer_train(result: Result) -> None:
    print(f"{result['tokenizer']}: {result['vocab_size']} tokens")


TRAIN = Command(
    "train a tokenizer on text or JSONL files",
    _tokenizer_train,
    _show_tokenizer_train,
    (
        arg("files", nargs="+", type=Path, metavar="FILES", help="text or JSONL"),
        arg("--vocab-size", type=int, required=True, metavar="N", help="tokens in all, 256 bytes included"),
        arg("--out", type=Path, required=True, metavar="DIR", help="where its files go"),
    ),
)


def _tokenizer_encode(args: argparse.Namespace) -> Result:
    return {"ids": _load_tokenizer(args.tokenizer).encode(_stdin_text())}


ENCODE = Command(
    'text on stdin to {"ids": […]}', _tokenizer_encode, lambda result: print(json.dumps(result)), (_TOKENIZER,)
)


def _tokenizer_decode(args: argparse.Namespace) -> Result:
    tokenizer = _load_tokenizer(args.tokenizer)
    text = _stdin_text()
    try:
        read = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.split()
        ids = [int(token_id) for token_id in (read["ids"] if isinstance(read, dict) else read)]
    except (ValueError, KeyError, TypeError):
        raise UsageError("stdin holds no token ids", 'give {"ids": [1, 2]} or ids between spaces') from None
    wrong = [token_id for token_id in ids if not 0 <= token_id < tokenizer.vocab_size]
    if wrong:
        raise UsageError(
            f"token id {wrong[0]} is outside this tokenizer", f"ids go from 0 to {tokenizer.vocab_size - 1}"
        )
    return {"text": tokenizer.decode(ids)}


DECODE = Command(
    'ids on stdin, as {"ids": […]}, to text',
    _tokenizer_decode,
    lambda result: print(result["text"], end=""),
    (_TOKENIZER,),
)


def _load_tokenizer(name: str) -> Any:
    from dunwu.data.tokenizer import load_tokenizer
    from dunwu.store import resolve_folder

    return load_tokenizer(resolve_folder(name) if ":" in name and not Path(name).exists() else name)


def _stdin_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 (byte {error.start})", "convert the text first") from None
