"""What leaves the house: export, to Hugging Face's layout, GGUF or ollama."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dunwu.commands.command import Command, Result, arg, print_table
from dunwu.disk import mend_folder, whole_folder
from dunwu.types import DunwuError, UsageError

MARKER = "dunwu-export.json"
"""Says of a folder that an export wrote it, and which files."""


def _export(args: argparse.Namespace) -> Result:
    if args.to == "hf" and args.type:
        raise UsageError("--type is for gguf and ollama", "give --dtype for hf")
    if args.to != "hf" and args.dtype:
        raise UsageError(f"--dtype is for hf, not for {args.to}", "give --type")
    out = Path(args.dir).expanduser()
    mend_folder(out)
    from dunwu.store import resolve_model

    folder, notes = resolve_model(args.model), {}
    _require_apart(out.resolve(), folder.resolve())
    _require_free(out)
    with whole_folder(out) as work:
        if args.to == "hf":
            from dunwu.model.hf_export import export_hf

            _check_tokenizer(folder)
            export_hf(folder, work, args.dtype)
        else:
            notes = _to_gguf(args.to, folder, work, args.type or "f16", out.resolve().name)
        files = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
        record = {"to": args.to, "model": args.model, "files": sorted(files)}
        (work / MARKER).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return {"folder": str(out), "to": args.to, "model": args.model, **notes, "files": files}


def _to_gguf(to: str, folder: Path, work: Path, kind: str, name: str) -> Result:
    from dunwu.data.tokenizer import CHAT_TEMPLATE, GO_TEMPLATE
    from dunwu.model.gguf import KINDS, write_gguf
    from dunwu.model.gguf_tokenizer import chat_template
    from dunwu.model.ollama import write_ollama
    from dunwu.model.stored import read_json

    sort = next(known for known in KINDS if known == kind)
    if to == "gguf":
        written = write_gguf(folder, work / "model.gguf", sort, name)
    else:
        ours = chat_template(folder, read_json(folder / "tokenizer_config.json")) == CHAT_TEMPLATE
        written = write_ollama(folder, work, sort, GO_TEMPLATE if ours else "", name)
    return {"type": kind, "tensors": written.tensors, "stayed_f16": written.wider}


def _check_tokenizer(folder: Path) -> None:
    """Raise DunwuError unless a model's tokenizer can be read, and every token has its row."""
    from dunwu.data.tokenizer import load_tokenizer
    from dunwu.model.hf_export import require_tokenizer
    from dunwu.model.stored import read_json

    require_tokenizer(folder)
    tokens, rows = load_tokenizer(folder).vocab_size, read_json(folder / "config.json").get("vocab_size")
    if isinstance(rows, int) and tokens > rows:
        raise DunwuError(
            f"{folder}: the tokenizer has {tokens} tokens, the model {rows}",
            "use the tokenizer the model was trained with",
        )


def _require_apart(out: Path, folder: Path) -> None:
    """Raise UsageError if the export would replace the model that it reads, or a folder around or within it."""
    if out == folder or out in folder.parents or folder in out.parents:
        raise UsageError(f"{out} overlaps the model's folder {folder}", "name a folder apart from it")


def _require_free(out: Path) -> None:
    """Raise UsageError if `out` holds anything that no export wrote."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file", "name a folder")
    there = sorted(entry.name for entry in out.iterdir())
    strange = [name for name in there if name not in _exported(out)]
    if strange:
        raise UsageError(f"{out} holds {strange[0]}, which no export wrote", "name a new folder, or empty this one")


def _exported(out: Path) -> set[str]:
    """Files that the marker of an earlier export names."""
    try:
        record = json.loads((out / MARKER).read_text(encoding="utf-8"))
        return {MARKER, *map(str, record["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _show_export(result: Result) -> None:
    print(f"{result['folder']}: {result['model']} for {result['to']}")
    print_table([[f"  {name}", f"{size:,}"] for name, size in result["files"].items()])
    if result.get("stayed_f16"):
        print(f"{result['stayed_f16']} tensors stayed F16: their rows are no multiple of 32")
    if result["to"] == "ollama":
        print(f"ollama create NAME -f {Path(result['folder']) / 'Modelfile'}")


EXPORT = Command(
    "a model for other programs: a Hugging Face folder, a GGUF file, ollama",
    _export,
    _show_export,
    (
        arg("model", metavar="MODEL", help="a model folder, or a run's stage such as runs/x:r1"),
        arg("dir", metavar="DIR", help="where it goes: a new folder, or that of an earlier export"),
        arg("--to", required=True, choices=("hf", "gguf", "ollama"), help="what it shall be"),
        arg("--type", choices=("f32", "f16", "bf16", "q8_0"), help="numbers of a GGUF file (f16)"),
        arg("--dtype", choices=("bf16", "fp16", "fp32"), help="numbers of a Hugging Face folder (as they are)"),
    ),
)
