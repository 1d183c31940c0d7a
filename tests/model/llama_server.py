"""The real llama.cpp, as a server in this process, and model folders for it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from tests.model.families import reference

TEXTS = [
    "The river runs to the sea and 12 boats sail. What is 3 + 4? It is seven, I add them. user assistant system",
    "你好，世界！今天天气很好。数学题：三加四等于几？我们一起想一想。",
]
PROMPTS = [
    *("The river", "What is 3 + 4?", "sea and boats sail to the river", "12 boats", "The the the the"),
    *("runs", "And 12 12", "sail. What", "world to", "is 3 + 4? The"),
    *(
        "你好",
        "今天天气",
        "数学题：三",
        "三加四等于几？",
        "世界！今天",
        "天气很好。",
        "好好好",
        "等于几？数学",
        "，世界",
        "三三三 四",
    ),
]
"""Ten in English, ten in Chinese."""


def small_tokenizer() -> Tokenizer:
    return train_from_texts(TEXTS * 4, 448)


def save_reference(config: Any, tokenizer: Tokenizer, folder: Path, seed: int = 0) -> Any:
    """transformers' model of this shape with random weights, in a folder with a tokenizer; the model."""
    theirs = reference(config, seed)
    theirs.generation_config.eos_token_id = list(tokenizer.stop_ids)
    theirs.config.max_position_embeddings = config.max_position_embeddings
    if config.qkv_bias:
        del theirs.config.attention_bias  # Qwen2 has no such field
    theirs.save_pretrained(folder)
    tokenizer.save(folder)
    return theirs


class Server:
    """llama.cpp's server on a GGUF file. It computes in float32 throughout: a half-precision cache and flash attention,
    both usual, would turn near ties."""

    def __init__(self, file: Path, context: int = 256) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel, params.n_ctx, params.port, params.warmup, params.verbosity = 1, context, 0, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server: Any = xllamacpp.Server(params)
        self.greedy([0], 1)  # one that is stopped before its queue runs would never end

    def close(self) -> None:
        """Stop it."""
        self._server = None

    def post(self, path: str, **body: Any) -> str:
        """The text of the answer."""
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def ask(self, path: str, **body: Any) -> Any:
        """The JSON of the answer."""
        return json.loads(self.post(path, **body))

    def greedy(self, prompt: Sequence[int], length: int) -> list[int]:
        """The likeliest continuation, end tokens left out."""
        options = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False, "return_tokens": True}
        reply = self.ask("/completion", prompt=list(prompt), n_predict=length, ignore_eos=True, **options)
        return list(reply["tokens"])

    def next_logprobs(self, prompt: Sequence[int], count: int) -> dict[int, float]:
        """Log-probabilities of the likeliest next tokens. What is drawn is an "a": half a character would be held back,
        and its probabilities with it."""
        drawn = [[self.encode("a")[0], 1e4]]
        reply = self.ask("/completion", prompt=list(prompt), n_predict=1, n_probs=count, logit_bias=drawn)
        return {top["id"]: top["logprob"] for top in reply["completion_probabilities"][0]["top_logprobs"]}

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self.ask("/tokenize", content=text, add_special=False, parse_special=special)["tokens"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.ask("/detokenize", tokens=list(ids))["content"])
