"""llama.cpp's server as a peer: a GGUF file of ours, requests over HTTP, one thread each."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any


class LlamaCpp:
    """A server with `slots` sequences at once, for as long as the `with` block lasts.

    Args:
        file: what `dunwu.model.gguf.write_gguf` wrote.
        columns: tokens of a sequence at most, its prompt among them.
        threads: for a single token, and for more of them at once (prompts, several sequences).
    """

    def __init__(self, file: Path, slots: int, columns: int, threads: tuple[int, int]) -> None:
        import xllamacpp

        self.slots = slots
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel = slots
        params.n_ctx = slots * columns
        params.cont_batching = True
        params.warmup = False
        params.cache_prompt = False
        params.port = 0
        params.cpuparams.n_threads, params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        self._params = params
        self._start = xllamacpp.Server

    def __enter__(self) -> LlamaCpp:
        self._server = self._start(self._params)
        self._pool = ThreadPoolExecutor(self.slots)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        del self._server

    def generate(self, prompts: list[list[int]], length: int) -> float:
        """Tokens generated for all prompts at once."""
        return float(sum(self._pool.map(lambda prompt: self._complete(prompt, length), prompts)))

    def _complete(self, prompt: list[int], length: int) -> int:
        body: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": length,
            "ignore_eos": True,
            "temperature": 1.0,
            "seed": 0,
        }
        body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "cache_prompt": False}
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(json.load(answer)["tokens_predicted"])
