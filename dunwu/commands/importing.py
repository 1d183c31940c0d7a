"""What comes into the house: import, which looks a model folder over, and writes one of ours."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dunwu.commands.command import Command, Result, arg, print_table
from dunwu.disk import mend_folder, whole_folder
from dunwu.types import DunwuError, UsageError

if TYPE_CHECKING:
    from dunwu.data.tokenizer import Tokenizer
    from dunwu.model.transformer import Transformer

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _import(args: argparse.Namespace) -> Result:
    out = Path(args.out).expanduser() if args.out else None
    if out is not None:
        mend_folder(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is there already", "name a new folder")
    folder = _folder(args.model)
    # Before the model is read: a place that cannot be written is known at once.
    with whole_folder(out) if out is not None else contextlib.nullcontext() as work:
        result = _read(args, folder, work)
    return result if out is None else {**result, "out": str(out)}


def _read(args: argparse.Namespace, folder: Path, out: Path | None) -> Result:
    """Read the model and check it, say what it is, and write it to `out`."""
    import torch

    from dunwu.data.tokenizer import load_tokenizer
    from dunwu.model.hf import from_pretrained, read_config, save_model, stop_ids_of
    from dunwu.model.lora_files import base_folder, is_adapter, load_adapted

    dtype = getattr(torch, DTYPES[args.dtype]) if args.dtype else None
    adapter = is_adapter(folder)
    base = base_folder(folder) if adapter else folder
    tokenizer = load_tokenizer(folder if (folder / "tokenizer.json").is_file() else base)
    model = load_adapted(folder, base, dtype=dtype) if adapter else from_pretrained(folder, dtype=dtype)
    _check(model, tokenizer, folder)
    stops = tuple(sorted({*tokenizer.stop_ids, *stop_ids_of(base)}))
    result: Result = {"model": args.model, "folder": str(folder), **_said(model, tokenizer, stops)}
    result["class"] = read_config(base).get("architectures", ["?"])[0]
    if adapter:
        result["base"] = str(base)
    if out is not None:
        tokenizer.save(out, model.config.max_position_embeddings)
        template = base / "chat_template.jinja"
        if template.is_file():
            shutil.copyfile(template, out / template.name)
        save_model(model, out, tokenizer.end_id, stops)
    return result


def _folder(text: str) -> Path:
    from dunwu.store import resolve_model

    folder = Path(text).expanduser()
    return folder if (folder / "adapter_config.json").is_file() else resolve_model(text)


def _check(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """What loads may still be no model: numbers that are none, a tokenizer of another."""
    import torch

    if tokenizer.vocab_size > model.config.vocab_size:
        raise DunwuError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
            "use the tokenizer the model was trained with",
        )
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise DunwuError(f"{folder}: tensor '{name}' holds NaN or infinity", "copy the model folder again")


def _said(model: Transformer, tokenizer: Tokenizer, stops: tuple[int, ...]) -> Result:
    from dunwu.data.tokenizer import TURN_END, TURN_START
    from dunwu.model.foreign import Foreign
    from dunwu.rollout.native_decoder import NativeDecoder

    shape, foreign = model.config, isinstance(model, Foreign)

    def has(*tokens: str) -> bool:
        return all(tokenizer.backend.token_to_id(token) is not None for token in tokens)

    return {
        "class": "",
        "through": "transformers" if foreign else "dunwu",
        "parameters": shape.num_parameters,
        "active_parameters": shape.active_parameters,
        "dtype": str(model.head_weight.dtype).removeprefix("torch."),
        "context": shape.max_position_embeddings,
        "tokenizer": {
            "size": tokenizer.vocab_size,
            "rows": shape.vocab_size,
            "end": [tokenizer.token(stop) for stop in stops],
            "think_tags": has("<think>", "</think>"),
            "chat": has(TURN_START, TURN_END),
        },
        "works": {
            "native_kernels": model.native,
            "native_sampling": NativeDecoder.supports(model),
            "packing": True,
            "mtp": shape.mtp_depth > 0,
            "gguf": not foreign,
        },
    }


def _show(result: Result) -> None:
    tokenizer, works = result["tokenizer"], result["works"]
    total, active = result["parameters"], result["active_parameters"]
    through = "" if result["through"] == "dunwu" else ", through transformers"
    weights = f"{total:,} parameters in {result['dtype']}" + (f", {active:,} active" if active != total else "")
    rows = [
        ["model", result["folder"]],
        ["class", result["class"] + through],
        ["weights", weights],
        ["context", f"{result['context']:,}"],
        ["tokenizer", f"{tokenizer['size']:,} tokens of {tokenizer['rows']:,}; ends at {' '.join(tokenizer['end'])}"],
        ["", "has <think> tags" if tokenizer["think_tags"] else "has no <think> tags: thinking is spelled out"],
        ["", "can chat" if tokenizer["chat"] else "has no <|im_start|>, <|im_end|>: no chat, SFT or reward models"],
        ["training", "C kernels" if works["native_kernels"] else "torch"],
        ["sampling", "C kernels" if works["native_sampling"] else "torch"],
        ["export", "hf, gguf, ollama" if works["gguf"] else "hf"],
    ]
    if "base" in result:
        rows.insert(1, ["base", result["base"]])
    if "out" in result:
        rows.append(["written", result["out"]])
    print_table(rows)


IMPORT = Command(
    "look a model over (folder, hub name or PEFT adapter), and write it as one of ours",
    _import,
    _show,
    (
        arg("model", metavar="MODEL", help="a model folder, RUN:STAGE, a name of the hub, or an adapter's folder"),
        arg("--out", metavar="DIR", help="write a model folder there; without it, MODEL is only checked"),
        arg("--dtype", choices=tuple(DTYPES), help="convert the weights (default: as they are stored)"),
    ),
)
