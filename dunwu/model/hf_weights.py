"""Weights in safetensors files: their names there, and how they stream in and out.

Nothing is held twice. Reading maps a file and copies piece by piece into the parameter itself, converting on the way, and gives
the pages back; writing goes tensor by tensor. So loading needs little more memory than the weights, in whatever dtype they are
wanted. The header is read here and not by a library, because a damaged file must name the tensor and the cure.

Names in files are the hub's, see `in_files`. Never read: pickles (`pytorch_model.bin`, `.pt`, `.pth`), quantised weights.

Legend: E experts, F width of one, D model width, L layers.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dunwu.disk import disk_errors, fsync, write_atomically
from dunwu.model.config import ModelConfig
from dunwu.types import DunwuError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest file, as in transformers; one tensor is never cut."""
AGAIN = "copy the model folder again"
MISFIT = f"{AGAIN}, or restore its config.json"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PIECE = 1 << 22
"""Bytes of a file that are in memory at a time."""
_LONGEST_HEADER = 100_000_000
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.bin", "*.ckpt")


# ---- names ----------------------------------------------------------------------------------


def in_files(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a model under their names in files; views of the parameters, no copies.

    Experts, one tensor in memory, stand in files one by one; the module that predicts two tokens ahead is the layer
    behind the last, as in DeepSeek-V3's own files. All else has one name.

    Example:
        >>> names = in_files({"model.mtp.norm.weight": torch.ones(2)}, ModelConfig(num_layers=4))
        >>> list(names)
        ['model.layers.4.shared_head.norm.weight']
    """
    named: dict[str, Tensor] = {}
    for own, tensor in state.items():
        name = _outside(own, config.num_layers)
        if name.endswith("mlp.experts.gate_up_proj"):
            stem, width = name.removesuffix(".gate_up_proj"), tensor.shape[1] // 2
            for expert in range(len(tensor)):
                named[f"{stem}.{expert}.gate_proj.weight"] = tensor[expert, :width]
                named[f"{stem}.{expert}.up_proj.weight"] = tensor[expert, width:]
        elif name.endswith("mlp.experts.down_proj"):
            for expert in range(len(tensor)):
                named[f"{name.removesuffix('.down_proj')}.{expert}.down_proj.weight"] = tensor[expert]
        else:
            named[name] = tensor
    return named


def _outside(own: str, layers: int) -> str:
    """The name in files of what is called `own` in memory, experts aside."""
    head, mtp, rest = own.partition("model.mtp.")
    if head or not mtp:
        return own
    rest = rest.removeprefix("block.")
    return f"model.layers.{layers}.{'shared_head.norm.weight' if rest == 'norm.weight' else rest}"


def mtp_copies(named: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The embedding and output head again, where DeepSeek-V3's files repeat them for the module behind the last layer."""
    if not config.mtp_depth:
        return {}
    embedding = named["model.embed_tokens.weight"]
    stem = f"model.layers.{config.num_layers}"
    head = named.get("lm_head.weight", embedding)
    return {f"{stem}.embed_tokens.weight": embedding, f"{stem}.shared_head.head.weight": head}


def has_mtp(names: Iterable[str], config: ModelConfig) -> bool:
    """Whether files hold a module behind the last layer; transformers drops it and still says so in the config."""
    return any(name.startswith(f"model.layers.{config.num_layers}.") for name in names)


def is_spare(name: str, config: ModelConfig) -> bool:
    """Whether a tensor that the model has no place for says nothing new."""
    if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
        return True
    behind = re.match(r"model\.layers\.(\d+)\.", name)
    if not config.mla or behind is None or int(behind[1]) != config.num_layers:
        return False
    return not config.mtp_depth or name.endswith(("embed_tokens.weight", "shared_head.head.weight"))


# ---- what files hold ------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the file's begin."""
    size: int
    """Bytes."""


def stored_in(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's safetensors files, in one file or in those that an index names; only headers are read.

    Raises:
        DunwuError: no such file, a pickle instead, a damaged or truncated one, a tensor that the index puts elsewhere.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise _no_weights(folder)
    placed = _read_index(index)
    found: dict[str, Stored] = {}
    for name in sorted(set(placed.values())):
        file = folder / name
        if not file.is_file():
            raise DunwuError(f"{file} is missing, which {INDEX} names", AGAIN)
        found |= read_header(file)
    for tensor, name in placed.items():
        if tensor not in found or found[tensor].file.name != name:
            raise DunwuError(f"{folder / name} has no tensor '{tensor}', which {INDEX} puts there", AGAIN)
    return found


def require_safetensors(folder: Path) -> None:
    """Raise DunwuError, naming what is there instead, unless the folder has safetensors files."""
    if not any(folder.glob("*.safetensors")):
        raise _no_weights(folder)


def _no_weights(folder: Path) -> DunwuError:
    for pattern in _PICKLES:
        for file in sorted(folder.glob(pattern)):
            return DunwuError(
                f"{folder} has its weights in {file.name}, a pickle: it could run code, and is never loaded",
                "convert it where you trust it: load it with transformers and save_pretrained(…), or get safetensors",
            )
    return DunwuError(
        f"{folder} is no model folder: {WEIGHTS} is missing", f"give a folder with config.json and {WEIGHTS}"
    )


def _read_index(index: Path) -> dict[str, str]:
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
            raise ValueError("weight_map names no files")
    except (ValueError, KeyError, TypeError) as error:
        raise DunwuError(f"{index} is damaged: {error}", AGAIN) from error
    for tensor, name in placed.items():
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise DunwuError(f"{index} puts tensor '{tensor}' into {name!r}, no safetensors file beside it", AGAIN)
    return placed


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors that a safetensors file says it holds, each checked against the file's size.

    Raises:
        DunwuError: naming file, tensor and cure.
    """
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise DunwuError(f"{file} is damaged: it has {size:,} bytes and no safetensors header", AGAIN)
        try:
            header = json.loads(source.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, AttributeError, RecursionError) as error:
            raise DunwuError(f"{file} is damaged: its header is no JSON object", AGAIN) from error
    return {name: _stored(file, name, entry, 8 + length, size) for name, entry in entries.items()}


def _stored(file: Path, name: str, entry: Any, data: int, size: int) -> Stored:
    try:
        kind, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DunwuError(f"{file} is damaged: the header's entry of tensor '{name}' is incomplete", AGAIN)
    if data + end > size:
        raise DunwuError(
            f"{file} is truncated: tensor '{name}' ends at byte {data + end:,}, the file at {size:,}", AGAIN
        )
    if kind not in _DTYPES:
        raise DunwuError(
            f"{file}: tensor '{name}' is {kind}; quantised weights are not read",
            "give the model's bf16 or fp32 weights",
        )
    dtype = _DTYPES[kind]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise DunwuError(f"{file} is damaged: tensor '{name}' of shape {shape} has {end - begin:,} bytes", AGAIN)
    return Stored(file, dtype, shape, data + begin, end - begin)


# ---- in -------------------------------------------------------------------------------------


class _NoStart(TorchFunctionMode):
    """Initialisation does nothing: on the meta device it would import 70 MB of torch's symbolic mathematics first."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Modules made inside have shapes and no weights; `fill` gives them some.

    Example:
        >>> with unfilled():
        ...     layer = nn.Linear(10**6, 10**6)
        >>> layer.weight.is_meta
        True
    """
    with torch.device("meta"), _NoStart():
        yield


Naming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From a module's state to its tensors by their names in files."""


def fill(
    module: nn.Module,
    stored: Mapping[str, Stored],
    naming: Naming,
    spare: Callable[[str], bool],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give an `unfilled` module its parameters, in `dtype`, and its buffers in their own, from files.

    Args:
        stored: from `stored_in`.
        naming: which tensor of the files goes where.
        spare: whether a tensor without a place may be left.

    Raises:
        DunwuError: a missing, unexpected or wrong-shaped tensor; before any is read.
    """
    places = naming(module.state_dict())
    _check_fit(places, stored, spare)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(part, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    places = naming(module.state_dict())
    by_file: dict[Path, list[str]] = {}
    for name in places:
        by_file.setdefault(stored[name].file, []).append(name)
    for file, names in by_file.items():
        with file.open("rb") as source:
            for name in sorted(names, key=lambda name: stored[name].start):
                _copy(source, stored[name], places[name])


def _check_fit(places: Mapping[str, Tensor], stored: Mapping[str, Stored], spare: Callable[[str], bool]) -> None:
    anywhere = next(iter(stored.values())).file if stored else Path(WEIGHTS)
    for name, place in places.items():
        if name in stored and stored[name].shape != tuple(place.shape):
            raise DunwuError(
                f"{stored[name].file} does not fit its config.json: tensor '{name}' has shape {stored[name].shape}, "
                f"the config says {tuple(place.shape)}",
                MISFIT,
            )
    missing = [name for name in places if name not in stored]
    if missing:
        raise DunwuError(f"{anywhere} does not fit its config.json: {_listed(missing)} missing", MISFIT)
    extra = [name for name in stored if name not in places and not spare(name)]
    if extra:
        file = stored[extra[0]].file
        raise DunwuError(f"{file} does not fit its config.json: {_listed(extra)} not expected", MISFIT)


def _listed(names: list[str]) -> str:
    """Names for a message, the first of them.

    Example:
        >>> _listed(["a.weight", "b.weight", "c.weight"])
        "tensor 'a.weight' and 2 more are"
    """
    return f"tensor '{names[0]}' is" if len(names) == 1 else f"tensor '{names[0]}' and {len(names) - 1} more are"


@torch.no_grad()
def _copy(source: BinaryIO, stored: Stored, place: Tensor) -> None:
    """Copy a tensor of a file into its place, a mapped piece at a time: each is unmapped before the next, so its pages do
    not add up in this process."""
    flat, item = place.view(-1), stored.dtype.itemsize
    for begin in range(0, stored.size, _PIECE):
        size = min(_PIECE, stored.size - begin)
        first = stored.start + begin
        page = first - first % mmap.ALLOCATIONGRANULARITY
        # Copy on write, though nothing writes: torch wants a buffer it might write to.
        mapped = mmap.mmap(source.fileno(), first - page + size, access=mmap.ACCESS_COPY, offset=page)
        piece = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=first - page)
        if first % item:
            piece = piece.clone()
        flat[begin // item : (begin + size) // item].copy_(piece.view(stored.dtype))
        del piece
        mapped.close()


# ---- out ------------------------------------------------------------------------------------


def write_weights(named: Mapping[str, Tensor], folder: Path, most_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as `model.safetensors`, or as shards of at most `most_bytes` with an index; one is in memory at a time.

    Each file appears whole or not at all; those of an earlier model in the folder that are not of this one are removed.
    """
    shards = _shards(named, most_bytes)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = [WEIGHTS] if len(shards) == 1 else names
    with disk_errors(folder):
        for name, shard in zip(names, shards, strict=True):
            _write_file(folder / name, shard)
    if len(shards) > 1:
        placed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.numel() * tensor.element_size() for tensor in named.values())
        record = {"metadata": {"total_size": total}, "weight_map": placed}
        names.append(INDEX)
        write_atomically(folder / INDEX, json.dumps(record, indent=2) + "\n")
    for old in (folder / WEIGHTS, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if old.name not in names:
            old.unlink(missing_ok=True)


def _shards(named: Mapping[str, Tensor], most_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, as many to a shard as fit."""
    shards: list[dict[str, Tensor]] = [{}]
    room = most_bytes
    for name, tensor in named.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = most_bytes
        shards[-1][name] = tensor
        room -= size
    return shards


def _write_file(file: Path, named: Mapping[str, Tensor]) -> None:
    # Wide items first, so that every tensor begins at a multiple of its item's size.
    order = sorted(named, key=lambda name: -named[name].element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor, begin = named[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                for piece in _bytes_of(named[name]):
                    target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(file.parent)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, wherever it is, in pieces."""
    flat = tensor.detach().reshape(-1)
    step = _PIECE // tensor.element_size()
    for begin in range(0, flat.numel(), step):
        yield flat[begin : begin + step].cpu().view(torch.uint8).numpy().data
