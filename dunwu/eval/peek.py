"""The next-token table: what a model expects after a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dunwu.data.tokenizer import load_tokenizer
from dunwu.model.hf import load_model
from dunwu.types import UsageError


@torch.inference_mode()
def next_tokens(model: str | Path, text: str, top: int) -> list[dict[str, Any]]:
    """The `top` most likely next tokens: id, token, probability (temperature 1)."""
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode(text)
    if not ids:
        raise UsageError("the text is empty", "give at least one token of context")
    network = load_model(model, dtype=torch.float32).eval()
    probabilities = network(torch.tensor([ids]))[0, -1].softmax(-1)
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        {"id": int(i), "token": tokenizer.token(int(i)), "probability": float(p)}
        for p, i in zip(best.values, best.indices, strict=True)
    ]


def peek(model: str | Path, text: str, top: int = 10, compare: str | Path | None = None) -> dict[str, Any]:
    """What `dunwu peek` prints; with `compare`, the same for a second model."""
    result: dict[str, Any] = {"model": str(model), "text": text, "next": next_tokens(model, text, top)}
    if compare is not None:
        result |= {"compare": str(compare), "compare_next": next_tokens(compare, text, top)}
    return result
