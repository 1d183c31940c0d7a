"""Byte-level BPE with Qwen2's pre-tokenisation (single digits), in Hugging Face's files.

What is ours is the choice of split, specials and template, so that a folder loads unchanged in transformers and
llama.cpp (`pre = qwen2`). `train_from_texts` trains in memory with the `tokenizers` library, as the recipes do; files of
any size are for `bpe`, fast encoding is in `encoding`, GPT-2's own vocabulary in `gpt2`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from dunwu.types import DunwuError, UsageError

Split = Literal["qwen2", "gpt2"]
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `pre_tokenizers.ByteLevel` splits by; the merges of a byte-level BPE never cross such a word."""
END = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIALS = (END, TURN_START, TURN_END, *(f"<|reserved_{n}|>" for n in range(8)))
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Single tokens that are ordinary text: they survive `skip_special_tokens`."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and not add_generation_prompt and m.role == 'assistant' and m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What `data.chat` writes, as Jinja for other programs. The model writes <think> itself, nothing is opened for it. That
llama.cpp tells thinking from answer depends on the line that renders `reasoning_content`. `enable_thinking` has no effect:
no turn a model is trained on says that it shall not think, and an empty thought put before its reply is not believed."""
GO_TEMPLATE = """\
{{- range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ if and $last (eq .Role "assistant") .Thinking }}<think>{{ .Thinking }}</think>
{{ end }}{{ .Content }}{{ if or (not $last) (ne .Role "assistant") }}<|im_end|>
{{ end }}{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ end }}{{ end }}"""
"""The same for ollama where it does not read the Jinja of a GGUF; it leaves the assistant's last turn open."""

QWEN2_CONFIG: dict[str, Any] = {
    "tokenizer_class": "Qwen2Tokenizer",
    "eos_token": END,
    "pad_token": END,
    "bos_token": None,
    "unk_token": None,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
}
GPT2_CONFIG: dict[str, Any] = QWEN2_CONFIG | {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": END,
    "unk_token": END,
    "model_max_length": 1024,
}
"""Of GPT-2's split; END is also what transformers' class wants for the two it never needs."""


class Tokenizer:
    """Text to ids and back.

    `encode` reads the tags and specials in a text as their single ids; pass
    `allow_special=False` for text from outside, whose "<|im_end|>" is then spelled out in bytes.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None) -> None:
        self.backend, self._config = backend, config
        eos = (config or {}).get("eos_token") or END
        end_token = eos.get("content") if isinstance(eos, dict) else eos
        end = backend.token_to_id(end_token) if isinstance(end_token, str) else None
        if end is None:
            raise DunwuError(f"the tokenizer has no {end_token} token", "name its eos_token in tokenizer_config.json")
        self.end_id: int = end
        turn_end = backend.token_to_id(TURN_END)
        self.stop_ids: tuple[int, ...] = (end,) if turn_end is None else tuple(sorted({end, turn_end}))
        self._plain: Backend | None = None

    @property
    def vocab_size(self) -> int:
        """Ids in use, specials included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Ids of one text; no BOS, no EOS is added."""
        backend = self.backend if allow_special else self._without_specials()
        return list(backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts on all cores; order kept."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """One token as readable text; a lone byte of a character shows as U+FFFD."""
        return self.decode([token_id])

    def save(self, folder: Path, max_length: int = 1024) -> None:
        """Write tokenizer.json and tokenizer_config.json; a loaded tokenizer keeps its own config."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = self._config or QWEN2_CONFIG | {"model_max_length": max_length, "chat_template": CHAT_TEMPLATE}
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def for_chat(self) -> Tokenizer:
        """This tokenizer, whose saved files carry `CHAT_TEMPLATE` instead of the template it came with.

        A model trained on conversations as `data.chat` writes them must be asked in the same form elsewhere.
        """
        return Tokenizer(self.backend, self._config and self._config | {"chat_template": CHAT_TEMPLATE})

    def stopping_at(self, ids: Iterable[int]) -> Tokenizer:
        """This tokenizer with more ids that end a reply, such as those a model's folder names."""
        other = Tokenizer(self.backend, self._config)
        other.stop_ids = tuple(sorted({*self.stop_ids, *ids}))
        return other

    def _without_specials(self) -> Backend:
        """A copy that knows no added token, so that their text is spelled out in bytes."""
        if self._plain is None:
            spec = json.loads(self.backend.to_str())
            spec["added_tokens"] = []
            self._plain = Backend.from_str(json.dumps(spec))
        return self._plain


def train_from_texts(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; `vocab_size` counts the 256 bytes, the merges, specials and tags."""
    smallest = 256 + len(SPECIALS) + len(TAGS)
    if vocab_size < smallest:
        raise UsageError(f"vocab size {vocab_size} is too small", f"use at least {smallest}")
    backend = blank(models.BPE(), "qwen2")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_without_tags(texts), trainer)
    return with_added(backend, SPECIALS, TAGS)


def blank(model: models.BPE, split: Split) -> Backend:
    """A byte-level BPE without added tokens. GPT-2's split leaves the text as it is, Qwen2's normalises it to NFC."""
    backend = Backend(model)
    backend.decoder = decoders.ByteLevel()
    if split == "gpt2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return backend
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def with_added(backend: Backend, specials: Sequence[str], tags: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer with these tokens after the vocabulary, specials first."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    return Tokenizer(backend, None if isinstance(backend.normalizer, normalizers.NFC) else GPT2_CONFIG)


def _without_tags(texts: Iterable[str]) -> Iterable[str]:
    """Keep merges of the tags' letters out: they are single tokens already."""
    for text in texts:
        for tag in (*TAGS, *SPECIALS[:3]):
            text = text.replace(tag, " ")
        yield text


def load_tokenizer(name_or_dir: str | Path) -> Tokenizer:
    """Load `tokenizer.json` of a folder (a model folder is one); `tokenizer_config.json` names its end token, and it or
    `chat_template.jinja` the template, of which the latter comes first, as in transformers.

    A folder with GPT-2's two files, `vocab.bpe` and `encoder.json` or `merges.txt` and `vocab.json`, is a tokenizer too,
    and the name `gpt2` is GPT-2's own where its vocabulary is installed (see `gpt2`).
    """
    folder = Path(name_or_dir)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    if not file.is_file():
        from dunwu.data.gpt2 import gpt2_tokenizer, read_gpt2

        if str(name_or_dir) == "gpt2" and not folder.exists():
            return gpt2_tokenizer()
        found = read_gpt2(folder)
        if found is not None:
            return found
        raise DunwuError(f"no tokenizer at {name_or_dir}", "give a folder that holds tokenizer.json")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise DunwuError(
            f"{file} is not a tokenizer file: {error}", "train one with `dunwu tokenizer train`"
        ) from error
    return Tokenizer(backend, _read_config(file.parent))


def _read_config(folder: Path) -> dict[str, Any] | None:
    """`tokenizer_config.json`, with the template of `chat_template.jinja`; None where there is neither."""
    config: dict[str, Any] | None = None
    file, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    try:
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it is no JSON object")
        if template.is_file():
            file = template
            config = (config or QWEN2_CONFIG) | {"chat_template": template.read_text(encoding="utf-8")}
    except ValueError as error:
        raise DunwuError(f"{file} is damaged: {error}", "copy the model folder again") from error
    return config
