"""Text to ids and back: tokenizer train, encode, decode, report."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dunwu.commands.command import Command, Result, arg, print_table
from dunwu.types import UsageError

_TOKENIZER = arg(
    "--tokenizer",
    required=True,
    metavar="NAME_OR_DIR",
    help="a folder with tokenizer.json or GPT-2's two files, or gpt2",
)
_FILES = "text, .jsonl, both also .gz or .zst, or .parquet"


def _tokenizer_train(args: argparse.Namespace) -> Result:
    from dunwu.data.bpe import BpeConfig, train_tokenizer

    _exist(args.files)
    config = BpeConfig(args.vocab_size, args.split, tuple(args.special), args.sample_bytes, args.table_words)
    with contextlib.ExitStack() as lines:
        tokenizer, _ = train_tokenizer(args.files, config, args.out, _progress(lines))
    return {"tokenizer": str(args.out), "vocab_size": tokenizer.vocab_size}


def _progress(lines: contextlib.ExitStack) -> Callable[[str, float, float], None]:
    """A progress line for counting, then another for merging."""
    from dunwu.progress import Progress

    shown: dict[str, Progress] = {}

    def update(stage: str, done: float, total: float) -> None:
        if stage not in shown:
            lines.close()
            shown[stage] = lines.enter_context(Progress(total, stage, "bytes" if stage == "count" else "merges"))
        shown[stage].update(min(done, total))

    return update


def _show_tokenizer_train(result: Result) -> None:
    record = json.loads((Path(result["tokenizer"]) / "training.json").read_text(encoding="utf-8"))
    print(f"{result['tokenizer']}: {result['vocab_size']:,} tokens")
    print(
        f"counted {record['words']:,} distinct words in {record['bytes_sampled']:,} of {record['bytes_seen']:,} bytes"
    )
    if record["words_thinned"]:
        print(f"{record['words_thinned']:,} words seen less than {record['thinned_below']} times were thinned")
    if record["vocab_size"] < record["asked"]:
        print(f"{record['asked']:,} were asked for, but no more pairs occur twice: give more text")


TRAIN = Command(
    "train a tokenizer on your files",
    _tokenizer_train,
    _show_tokenizer_train,
    (
        arg("files", nargs="+", type=Path, metavar="FILES", help=_FILES),
        arg("--vocab-size", type=int, required=True, metavar="N", help="tokens in all, 256 bytes included"),
        arg("--out", type=Path, required=True, metavar="DIR", help="where its files go"),
        arg("--split", choices=("qwen2", "gpt2"), default="qwen2", help="words no merge crosses (qwen2)"),
        arg("--special", action="append", default=[], metavar="TOKEN", help="reserve a token; may be repeated"),
        arg(
            "--sample-bytes",
            type=int,
            default=1_000_000_000,
            metavar="N",
            help="most bytes counted, spread evenly over the files (1000000000)",
        ),
        arg(
            "--table-words",
            type=int,
            default=1 << 19,
            metavar="N",
            help="most distinct words kept in memory; beyond, rare ones are thinned (524288)",
        ),
    ),
)


def _tokenizer_encode(args: argparse.Namespace) -> Result:
    from dunwu.data.encoding import fast_encoder, refuse_special

    if args.allow_special and args.special_as_text:
        raise UsageError("--allow-special and --special-as-text exclude each other", "choose one")
    tokenizer, text = _load_tokenizer(args.tokenizer), _stdin_text()
    if not args.allow_special and not args.special_as_text:
        refuse_special(tokenizer, text, "--allow-special makes it one id, --special-as-text spells it out")
    return {"ids": fast_encoder(tokenizer, "all" if args.allow_special else "tags")(text)}


ENCODE = Command(
    'text on stdin to {"ids": […]}',
    _tokenizer_encode,
    lambda result: print(json.dumps(result)),
    (
        _TOKENIZER,
        arg("--allow-special", action="store_true", help="special tokens in the text become their ids"),
        arg("--special-as-text", action="store_true", help="special tokens in the text are spelled out like any text"),
    ),
)


def _tokenizer_decode(args: argparse.Namespace) -> Result:
    from dunwu.data.encoding import decode_bytes

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
    raw = decode_bytes(tokenizer, ids)
    try:
        return {"text": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"text": raw.decode("utf-8", "replace"), "base64": base64.b64encode(raw).decode("ascii")}


def _show_decoded(result: Result) -> None:
    """The bytes as they are: parts of characters too."""
    raw = base64.b64decode(result["base64"]) if "base64" in result else result["text"].encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(raw)


DECODE = Command('ids on stdin, as {"ids": […]}, to text', _tokenizer_decode, _show_decoded, (_TOKENIZER,))


def _tokenizer_report(args: argparse.Namespace) -> Result:
    from dunwu.data.token_report import token_report
    from dunwu.eval.report_tokens import write_token_page

    _exist(args.files)
    report = token_report(_load_tokenizer(args.tokenizer), args.tokenizer, args.files, args.sample_bytes)
    page = str(write_token_page(report, args.out)) if args.out is not None else None
    return {name: value for name, value in report.items() if name != "vocabulary"} | {"page": page}


def _show_report(result: Result) -> None:
    rows = [["language", "bytes", "tokens", "bytes/token", "tokens/word"]]
    for label, group in [*result["languages"].items(), ("all", result["all"])]:
        ratios = [group["bytes_per_token"], group["tokens_per_word"]]
        shown = ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rows.append([label, f"{group['bytes']:,}", f"{group['tokens']:,}", *shown])
    print_table(rows)
    print(f"{result['used']:,} of {result['vocab_size']:,} tokens used ({result['used_share']:.0%})")
    if result["page"]:
        print(result["page"])


REPORT = Command(
    "a tokenizer's compression, vocabulary and blind spots on one page",
    _tokenizer_report,
    _show_report,
    (
        arg("tokenizer", metavar="NAME_OR_DIR", help="as for encode"),
        arg("files", nargs="+", type=Path, metavar="FILES", help=_FILES),
        arg("--out", type=Path, metavar="PAGE", help="write the page here, e.g. tokens.html"),
        arg("--sample-bytes", type=int, default=20_000_000, metavar="N", help="most bytes encoded (20000000)"),
    ),
)


def _exist(files: list[Path]) -> None:
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UsageError(f"no such file: {missing[0]}", "give text or JSONL files")


def _load_tokenizer(name: str) -> Any:
    from dunwu.data.tokenizer import load_tokenizer
    from dunwu.store import resolve_folder

    return load_tokenizer(resolve_folder(name) if ":" in name and not Path(name).exists() else name)


def _stdin_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 (byte {error.start})", "convert the text first") from None
