"""A tokenizer folder as GGUF's vocabulary: tokens, kinds, merges, the name of the split, the chat template.

llama.cpp cuts text into words by a regex that it knows by name (`tokenizer.ggml.pre`); its own converter knows a
tokenizer by a hash of its ids, which no newly trained one has. Here the regex itself is compared. Not covered:
normalisation, which llama.cpp's byte-level BPE has none of: where ours writes NFC, text that is typed decomposed gets
other ids there (so does Qwen's).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dunwu.model.stored import read_json
from dunwu.types import DunwuError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of token. CONTROL is hidden in text; USER_DEFINED is read as one token wherever it stands, and shown."""
_TURN_END = "<|im_end|>"
_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SPLITS: dict[tuple[str, ...], str] = {
    (_CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL, "bytes"): "qwen2",
    (_CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL, "bytes"): "llama-bpe",
    (*_DEEPSEEK, "bytes"): "deepseek-v3",
    ("GPT-2 words",): "gpt-2",
    ("single digits", "GPT-2 words"): "smollm",
}
"""Steps of a pre-tokenizer → llama.cpp's name for them."""
_MERGES_IGNORED = {"llama-bpe"}
"""Splits whose words are looked up whole before they are merged."""


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` holds."""

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    eos: int
    pad: int | None
    bos: int | None
    add_bos: bool
    template: str | None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a model folder, padded to the model's `size`.

    Raises:
        DunwuError: a file is missing or damaged, or llama.cpp cannot split or merge as this tokenizer does.
    """
    file = folder / "tokenizer.json"
    record, config = read_json(file), read_json(folder / "tokenizer_config.json")
    model = record.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise DunwuError(f"{file} is no byte-level BPE ({model.get('type')})", _CURE)
    pre = _split_name(record.get("pre_tokenizer"), file)
    normalizer = (record.get("normalizer") or {}).get("type", "NFC")
    if normalizer != "NFC":
        raise DunwuError(f"{file}: llama.cpp does not normalise text by {normalizer}", _CURE)
    if bool(model.get("ignore_merges")) != (pre in _MERGES_IGNORED):
        raise DunwuError(f"{file}: llama.cpp's split {pre} and this file's ignore_merges disagree", _CURE)
    tokens, kinds = _tokens(record, size, file)
    ids = {token: number for number, token in enumerate(tokens)}
    bos = ids.get(_content(config.get("bos_token")) or "")
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        kinds=kinds,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        eos=end_of_reply(folder, ids, config),
        pad=ids.get(_content(config.get("pad_token")) or ""),
        bos=bos,
        add_bos=bos is not None and _begins_with(file, bos),
        template=chat_template(folder, config),
    )


def end_of_reply(folder: Path, ids: Mapping[str, int], config: Mapping[str, Any]) -> int:
    """The token llama.cpp stops at: <|im_end|> where generation_config.json says that a reply ends with it (else the
    model would run on into the next turn), or the tokenizer's own end token, or the first that is named."""
    stops = stop_tokens(folder)
    own = ids.get(_content(config.get("eos_token")) or "")
    for wanted in (ids.get(_TURN_END), own):
        if wanted is not None and (wanted in stops or (not stops and wanted == own)):
            return wanted
    if not stops:
        raise DunwuError(f"{folder} names no end token", "name eos_token in tokenizer_config.json")
    return stops[0]


def stop_tokens(folder: Path) -> list[int]:
    """Ids that end a reply, as generation_config.json names them, else config.json."""
    for name in ("generation_config.json", "config.json"):
        named = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if named is not None:
            return [named] if isinstance(named, int) else [number for number in named if isinstance(number, int)]
    return []


def chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The Jinja template, from its own file or from tokenizer_config.json (the one named "default" of several)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


_CURE = "use `--to hf`, or a tokenizer with Qwen2's split, such as `dunwu tokenizer train` makes"


def _tokens(record: Mapping[str, Any], size: int, file: Path) -> tuple[list[str], list[int]]:
    names = {number: token for token, number in record["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for entry in record.get("added_tokens") or []:
        names[entry["id"]] = entry["content"]
        kinds[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    if names and max(names) >= size:
        raise DunwuError(
            f"{file} has ids up to {max(names)}, the model only {size} rows", "copy both from the same model"
        )
    tokens = [names.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [kinds.get(number, UNUSED) for number in range(size)]


def _split_name(record: Mapping[str, Any] | None, file: Path) -> str:
    steps = tuple(_steps(record, file))
    if steps not in SPLITS:
        raise DunwuError(f"{file}: llama.cpp has no name for the split {' then '.join(steps) or 'none'!r}", _CURE)
    return SPLITS[steps]


def _steps(record: Mapping[str, Any] | None, file: Path) -> list[str]:
    """The pre-tokenizer flattened: regexes as they are (line ends escaped), other steps by what they do."""
    if record is None:
        return []
    kind = record.get("type")
    if kind == "Sequence":
        return [step for part in record["pretokenizers"] for step in _steps(part, file)]
    if kind == "Split" and record.get("behavior") == "Isolated" and not record.get("invert"):
        regex = record["pattern"].get("Regex")
        if regex is not None:
            return [regex.replace("\r", r"\r").replace("\n", r"\n")]
    if kind == "Digits" and record.get("individual_digits"):
        return ["single digits"]
    if kind == "ByteLevel" and not record.get("add_prefix_space"):
        return ["GPT-2 words" if record.get("use_regex", True) else "bytes"]
    return [json.dumps(record, ensure_ascii=False)]


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a text, or an object that holds it."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _begins_with(file: Path, bos: int) -> bool:
    """Whether the tokenizer itself puts `bos` before a text."""
    return list(Tokenizer.from_file(str(file)).encode("a", add_special_tokens=True).ids[:1]) == [bos]
