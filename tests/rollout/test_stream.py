"""Streaming gives, for a seed, the tokens the engine gives, one at a time and not one ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import MlaShape, ModelConfig, MoeShape
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.rollout.stream import stream
from dunwu.types import DunwuError, SamplingParams

PROMPTS = [[40], [41, 42, 43, 44, 45], [50, 51, 52]]
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "deepseek_v3": {
        "mla": MlaShape(16, 16, 16, 16),
        "moe": MoeShape(4, 2, 16, shared=1, first_dense=1),
        "mtp_depth": 1,
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)


@pytest.fixture(scope="module", params=SHAPES)
def model(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Transformer:
    """Spread out enough that stop tokens come up."""
    shape = SHAPES[request.param] | {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **shape))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=40),
        SamplingParams(max_tokens=40, temperature=0.7, top_p=0.9),
        SamplingParams(max_tokens=12, temperature=1.5, top_k=20),
        SamplingParams(max_tokens=12, temperature=0.0),
        SamplingParams(max_tokens=1),
    ],
)
def test_the_same_tokens_as_the_engine(model: Transformer, tokenizer: Tokenizer, params: SamplingParams) -> None:
    seeds = [[n + 10 * p for n in range(6)] for p in range(len(PROMPTS))]
    drawn = Engine(model, tokenizer).sample(PROMPTS, seeds, params)
    reasons = set()
    for prompt, row, completions in zip(PROMPTS, seeds, drawn, strict=True):
        for seed, completion in zip(row, completions, strict=True):
            assert tuple(stream(model, prompt, seed, params, tokenizer.stop_ids)) == completion.token_ids
            reasons.add(completion.finish_reason)
    if params.max_tokens == 40:
        assert reasons == {"stop", "length"}


def test_no_token_is_drawn_ahead_and_stopping_leaves_the_model_as_it_was(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted(model, monkeypatch)
    model.train()
    tokens = stream(model, [40, 41], 0, SamplingParams(max_tokens=30), (), draft=False)
    assert passes() == 0
    for n in range(1, 4):
        next(tokens)
        assert passes() == n and not torch.is_inference_mode_enabled()
    tokens.close()  # type: ignore[attr-defined]
    assert model.training and passes() == 3
    model.eval()


def test_an_empty_prompt_is_refused(model: Transformer) -> None:
    with pytest.raises(DunwuError, match="no tokens"):
        next(stream(model, [], 0, SamplingParams(), ()))


def counted(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda *a, **k: (calls.append(1), hidden(*a, **k))[1])
    return lambda: len(calls)
