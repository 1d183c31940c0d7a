"""LoRA adapters in PEFT's format, in and out: `adapter_config.json` and `adapter_model.safetensors`.

What we save loads with `PeftModel.from_pretrained` and in vLLM; what they save of a model of ours loads here. A weight is called
`base_model.model.NAME.lora_A.weight`, where NAME is Hugging Face's name of the layer; routed experts stand there one by one
(`….mlp.experts.7.gate_proj.lora_A.weight`), as in files that were made before transformers stacked them. PEFT 0.21 stacks them
again for Qwen3-MoE. For DeepSeek-V3 it takes every `gate_proj`, `up_proj` and `down_proj` for an expert's, so there an adapter
on dense or shared feed-forwards loads in PEFT only without those: use the merged model.

Read besides plain LoRA: rsLoRA, ranks and α that differ by layer, layers left out. Everything else that PEFT can do to a model
(DoRA, trained biases, PiSSA's changed weights, …) is refused by name, since an adapter read by half is another model. Pickles
are never loaded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dunwu.disk import disk_errors, write_atomically
from dunwu.model.hf import load_model
from dunwu.model.hf_weights import read_header
from dunwu.model.lora import LoraExperts, adapt, adaptable, adapters, lora_parameters, merge
from dunwu.model.lora_config import MOST, LoraConfig
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
AGAIN = "copy the adapter again"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_SAVED = {"score", "classifier"}
"""Modules that PEFT keeps whole for a model with a scalar head; ours is called score."""
_TOLD = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "alpha_pattern", "revision", "runtime_config",
    "target_modules", "exclude_modules", "task_type", "use_rslora", "parent_library", "eva_config", "loftq_config",
}  # fmt: skip
"""Fields that are read, or that say nothing about what an adapter computes."""
_EMPTY: tuple[Any, ...] = (None, False, 0, "", "none", [], {})
"""Values by which any other field says that its feature is not used."""
_ADDITIVE_INIT = (True, False, "true", "false", "gaussian", "eva", "orthogonal")
"""Ways to draw the first A and B that leave the base's weights alone."""


# ---- out ------------------------------------------------------------------------------------


def save_lora(model: nn.Module, folder: Path, base: str = "") -> None:
    """Write the adapters of `model`, and what else of it was trained, such as a reward model's head.

    Args:
        base: what `base_model_name_or_path` says: where the model without adapters is.

    Raises:
        DunwuError: the model has no adapters; the disk is full.
    """
    found = _configs(model)
    if not found:
        raise DunwuError("there is no adapter to save", "train with --lora.rank 16")
    own = lora_parameters(model)
    whole = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in own}
    tensors: dict[str, Tensor] = {f"{_PREFIX}{_outer(name)}": tensor for name, tensor in whole.items()}
    for name, (A, B) in _pairs(model).items():
        tensors |= {f"{_PREFIX}{name}.lora_A.weight": A, f"{_PREFIX}{name}.lora_B.weight": B}
    record = _record(model, found, sorted({_outer(name).rpartition(".")[0] for name in whole}), base)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / WEIGHTS
        temporary = file.with_suffix(".tmp")
        copies = {name: t.detach().contiguous() for name, t in tensors.items()}
        save_file(copies, temporary, {"format": "pt"})
        temporary.replace(file)
        write_atomically(folder / CONFIG, json.dumps(record, indent=2) + "\n")


def _record(model: nn.Module, found: Mapping[str, LoraConfig], whole: list[str], base: str) -> dict[str, Any]:
    """PEFT's `adapter_config.json`: the commonest rank and α, and patterns for layers with others."""
    (rank, alpha), _ = Counter((lora.rank, lora.alpha) for lora in found.values()).most_common(1)[0]
    one = next(iter(found.values()))
    stacked = any(isinstance(module, LoraExperts) for module in adapters(model).values())
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score" in whole else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(alpha),
        # PEFT refuses dropout on stacked experts, even where nothing is trained.
        "lora_dropout": 0.0 if stacked else one.dropout,
        "use_rslora": one.rslora,
        "target_modules": _targets(model, found),
        "rank_pattern": {name: lora.rank for name, lora in found.items() if lora.rank != rank},
        "alpha_pattern": {name: _whole(lora.alpha) for name, lora in found.items() if lora.alpha != alpha},
        "modules_to_save": whole or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _whole(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def _targets(model: nn.Module, found: Mapping[str, LoraConfig]) -> list[str]:
    """Last parts of names where all layers so called are adapted, whole names elsewhere."""
    total = Counter(name.rpartition(".")[2] for name in _linear_names(model))
    used = Counter(name.rpartition(".")[2] for name in found)
    leaves = {leaf for leaf, count in used.items() if count == total[leaf]}
    return sorted(leaves | {name for name in found if name.rpartition(".")[2] not in leaves})


def _linear_names(model: nn.Module) -> list[str]:
    """`adaptable`, with the adapters in, experts one by one."""
    names: list[str] = []
    for name in adaptable(model, taken=True):
        stem, _, part = name.rpartition(".")
        experts = getattr(model.get_submodule(stem), "down_proj", None)
        if isinstance(experts, Tensor):
            names += (f"{_outer(stem)}.{e}.{part}" for e in range(len(experts)))
        else:
            names.append(_outer(name))
    return names


def _configs(model: nn.Module) -> dict[str, LoraConfig]:
    """Every adapted layer by its name in files, experts one by one."""
    found: dict[str, LoraConfig] = {}
    for name, module in adapters(model).items():
        if isinstance(module, LoraExperts):
            layers = (f"{e}.{part}" for part in module.parts for e in range(len(module.down_proj)))
            found |= {f"{_outer(name)}.{layer}": module.lora for layer in layers}
        else:
            found[_outer(name)] = module.lora
    return found


def _pairs(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of every adapted layer by its name in files; views of the parameters."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in adapters(model).items():
        if isinstance(module, LoraExperts):
            for part in module.parts:
                A, B = module.pair(part)
                pairs |= {f"{_outer(name)}.{e}.{part}": (A[e], B[e]) for e in range(len(A))}
        else:
            pairs[_outer(name)] = module.lora_A, module.lora_B
    return pairs


def _outer(name: str) -> str:
    """Hugging Face's name: a reward model's decoder is not called backbone there."""
    return name.removeprefix("backbone.")


# ---- in -------------------------------------------------------------------------------------


def is_adapter(folder: str | Path) -> bool:
    """Whether this folder holds an adapter and no model."""
    folder = Path(folder)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def load_lora(model: nn.Module, folder: str | Path) -> None:
    """Put a PEFT adapter into `model`, in place; all but it is frozen, as after `add_lora`.

    Args:
        model: a `Transformer`, or a reward model, whose head is then read as well.

    Raises:
        DunwuError: no such adapter, a damaged one, a feature that is not covered, tensors that do not fit the model;
            the model is then as it was.
    """
    folder = Path(folder)
    record = _read_config(folder)
    tensors = _read_weights(folder)
    pairs, whole = _sorted_out(tensors, folder / WEIGHTS)
    places = _places(model, record, pairs, folder)
    heads = {_outer(name): p for name, p in model.named_parameters() if _outer(name) in whole}
    if {*(record.get("modules_to_save") or ())} & {"score"} and not whole:
        raise DunwuError(f"{folder / WEIGHTS}: tensor '{_PREFIX}score.weight' is missing", AGAIN)
    for name, tensor in whole.items():
        if name not in heads or heads[name].shape != tensor.shape:
            shape = tuple(tensor.shape)
            raise DunwuError(f"{folder / WEIGHTS}: the model has no {name} of shape {shape}", "give the adapter's base")
    adapt(model, places, torch.Generator(), sorted({name.rpartition(".")[0] for name in whole}))
    with torch.no_grad():
        for name, (A, B) in _pairs(model).items():
            A.copy_(pairs[name]["A"])
            B.copy_(pairs[name]["B"])
        for name, tensor in whole.items():
            heads[name].copy_(tensor)


def load_adapted(
    folder: str | Path, base: str | Path | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """The model that an adapter makes of its base: both loaded, and merged.

    Args:
        base: folder of the base; None: what the adapter's config names, a path as it stands or beside the adapter.

    Raises:
        DunwuError: as `load_lora` and `load_model`; the base is no folder here.
    """
    model = load_model(base_folder(folder) if base is None else base, device, dtype)
    load_lora(model, folder)
    merge(model)
    return model


def base_folder(folder: str | Path) -> Path:
    """The folder of an adapter's base.

    Raises:
        DunwuError: the adapter names none that is here.
    """
    folder = Path(folder)
    name = _read_config(folder).get("base_model_name_or_path") or ""
    for candidate in (Path(str(name)).expanduser(), folder / str(name)) if name else ():
        if (candidate / "config.json").is_file():
            return candidate
    said = f"its base {name!r} is no model folder here" if name else "it names no base"
    raise DunwuError(f"{folder}: {said}", f"write the base's path as base_model_name_or_path into {CONFIG}")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise DunwuError(f"{folder} is no adapter: {CONFIG} is missing", f"give a folder with {CONFIG} and {WEIGHTS}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DunwuError(f"{file} is damaged: {error}", AGAIN) from error
    if not isinstance(record, dict):
        raise DunwuError(f"{file} is damaged: it is no JSON object", AGAIN)
    if record.get("peft_type") != "LORA":
        raise DunwuError(f"{file}: peft_type is {record.get('peft_type')!r}", "only LORA is read")
    used = [name for name, value in record.items() if name not in _TOLD and value not in _EMPTY]
    drawn = record.get("init_lora_weights", True)
    drawn = drawn.lower() if isinstance(drawn, str) else drawn
    if drawn not in _ADDITIVE_INIT:  # PiSSA, OLoRA and their like subtract the first B·A from the base
        used.append("init_lora_weights")
    if odd := {*(record.get("modules_to_save") or ())} - _SAVED:
        raise DunwuError(f"{file}: modules_to_save names {min(odd)}", "only a reward model's score is covered")
    if used:
        what = f"{used[0]} is {record[used[0]]!r}"
        raise DunwuError(f"{file}: {what}: this feature is not covered", "merge the adapter with PEFT, give the model")
    return record


def _read_weights(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(path.name for path in folder.glob("adapter_model.*") if path.suffix != ".tmp")
        if pickles:
            what = f"{folder} has its weights in {pickles[0]}, a pickle: it could run code, and is never loaded"
            raise DunwuError(what, "convert it where you trust it: load it with PEFT and save_pretrained(…)")
        raise DunwuError(f"{folder} is no adapter: {WEIGHTS} is missing", f"give a folder with {CONFIG} and {WEIGHTS}")
    read_header(file)  # names the tensor where the file is cut
    try:
        return load_file(file)
    except (SafetensorError, ValueError, OSError) as error:
        raise DunwuError(f"{file} is damaged: {error}", AGAIN) from error


def _sorted_out(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """(module → side → tensor, name → tensor that is kept whole)."""
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if found := _KEY.fullmatch(name):
            pairs.setdefault(found["module"], {})[found["side"]] = tensor
        elif name == "score.weight":
            whole[name] = tensor
        else:
            raise DunwuError(f"{file}: tensor '{key}' is of no kind that is covered", "plain LoRA is read")
    if not pairs:
        raise DunwuError(f"{file} holds no adapter", AGAIN)
    for module, sides in pairs.items():
        if len(sides) == 1:
            other = "B" if "A" in sides else "A"
            raise DunwuError(f"{file}: tensor '{_PREFIX}{module}.lora_{other}.weight' is missing", AGAIN)
    return pairs, whole


def _places(
    model: nn.Module, record: Mapping[str, Any], pairs: Mapping[str, Mapping[str, Tensor]], folder: Path
) -> dict[str, LoraConfig]:
    """Where the adapters go, with rank and α of each; every tensor's shape is checked."""
    file, shapes = folder / WEIGHTS, _shapes(model)
    for module in pairs:
        if module not in shapes:
            raise DunwuError(f"{file}: the model has no linear layer {module}", "give the adapter's base")
    for module in _promised(record, shapes):
        if module not in pairs:
            raise DunwuError(f"{file}: tensor '{_PREFIX}{module}.lora_A.weight' is missing", AGAIN)
    try:
        plain = LoraConfig(int(record["r"]), float(record["lora_alpha"]), float(record.get("lora_dropout") or 0.0))
        plain = replace(plain, rslora=bool(record.get("use_rslora")))
        ranks, alphas = ({**(record.get(f"{name}_pattern") or {})} for name in ("rank", "alpha"))
        own = {
            module: replace(plain, rank=int(_by_pattern(ranks, module, plain.rank)),
                            alpha=float(_by_pattern(alphas, module, plain.alpha)))
            for module in pairs
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise DunwuError(f"{folder / CONFIG} is damaged: {error!r}", AGAIN) from error
    places: dict[str, LoraConfig] = {}
    for module, lora in own.items():
        place, out, inner = shapes[module]
        if not 1 <= lora.rank <= MOST:
            raise DunwuError(f"{folder / CONFIG}: r is {lora.rank}", f"ranks of 1 to {MOST} are covered")
        for side, shape in (("A", (lora.rank, inner)), ("B", (out, lora.rank))):
            if (found := tuple(pairs[module][side].shape)) != shape:
                key = f"{_PREFIX}{module}.lora_{side}.weight"
                raise DunwuError(f"{file}: tensor '{key}' has shape {found}, not {shape}", "give the adapter's base")
        if places.setdefault(place, lora) != lora:
            raise DunwuError(f"{folder / CONFIG}: experts of {place} differ in rank or alpha", "give them one")
    for module, (place, _, _) in shapes.items():
        if place in places and module not in pairs:
            raise DunwuError(f"{file}: tensor '{_PREFIX}{module}.lora_A.weight' is missing", "give all experts one")
    return places


def _shapes(model: nn.Module) -> dict[str, tuple[str, int, int]]:
    """Name in files → (name in `adaptable`, out, in), of every layer that can have an adapter."""
    shapes: dict[str, tuple[str, int, int]] = {}
    for name in adaptable(model):
        stem, _, part = name.rpartition(".")
        holder = model.get_submodule(stem)
        if isinstance(module := getattr(holder, part, None), nn.Linear):
            shapes[_outer(name)] = name, module.out_features, module.in_features
        else:
            down = holder.get_parameter("down_proj")
            experts, width, inner = down.shape
            sizes = (width, inner) if part == "down_proj" else (inner, width)
            shapes |= {f"{_outer(stem)}.{e}.{part}": (name, *sizes) for e in range(experts)}
    return shapes


def _promised(record: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """The layers that the config says are adapted, where it says so by names alone."""
    targets = record.get("target_modules")
    if not isinstance(targets, list) or any(record.get(f) for f in ("layers_to_transform", "exclude_modules")):
        return []
    return [m for m in modules if any(m == target or m.endswith(f".{target}") for target in targets)]


def _by_pattern(patterns: Mapping[str, Any], module: str, default: float) -> float:
    """PEFT's rule: the first pattern that fits the end of a name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default
