"""What leaves the house: export, to Hugging Face's layout, GGUF or ollama."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dunwu.commands.command import Command, Result, arg, print_table
from dunwu.types import UsageError

MARKER = "dunwu-export.json"
"""Says of a folder that an export wrote it, and which files."""


def _export(args: argparse.Namespace) -> Result:
    if args.to == "hf" and args.type:
        raise UsageError("--type is for gguf and ollama", "give --dtype for hf")
    if args.to != "hf" and args.dtype:
        raise UsageError(f"--dtype is for hf, not for {args.to}", "give --type")
    out = Path(args.dir).expanduser()
    _require_free(out)
    from dunwu.store import resolve_model

    folder, notes = resolve_model(args.model), {}
    with _whole(out) as work:
        if args.to == "hf":
            from dunwu.model.hf_export import export_hf

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


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to work in, which takes the place of `out` when the block ends well, and is gone when it does not."""
    from dunwu.disk import disk_errors, fsync

    out = out.resolve()
    work, old = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    with disk_errors(out):
        try:
            work.mkdir(parents=True)
            yield work
            for file in work.iterdir():
                fsync(file)
            if out.exists():
                os.replace(out, old)
            os.replace(work, out)
            fsync(out.parent)
        except BaseException:
            if old.exists() and not out.exists():
                os.replace(old, out)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)


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
