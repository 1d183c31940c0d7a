"""The decoder against its oracles: transformers' Qwen2, torch's attention, and itself without a cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dunwu.model.attention import causal_attention
from dunwu.model.cache import KVCache
from dunwu.model.config import PRESETS, ModelConfig, model_preset
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.types import UsageError

SMALL = ModelConfig(vocab_size=97, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=96)


def make(config: ModelConfig = SMALL, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # zero biases and unit norms would hide a missing one
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tmp_path: Path, tied: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    model = make(replace(SMALL, tie_word_embeddings=tied))
    save_model(model, tmp_path, end_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    ids = torch.randint(0, 97, (3, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 1, 65), (3, 6, 130)])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_chunked_attention_equals_torch(shape: tuple[int, int, int], kv_heads: int) -> None:
    B, group, T = shape
    generator = torch.Generator().manual_seed(T)
    q = torch.randn(B, kv_heads * group, T, 16, generator=generator, requires_grad=True)
    k = torch.randn(B, kv_heads, T, 16, generator=generator, requires_grad=True)
    v = torch.randn(B, kv_heads, T, 16, generator=generator, requires_grad=True)
    weight = torch.randn(B, kv_heads * group, T, 16, generator=generator)
    ours = causal_attention(q, k, v)
    ours_grads = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    theirs_grads = torch.autograd.grad((theirs * weight).sum(), (q, k, v))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for mine, other in zip(ours_grads, theirs_grads, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_left_padded_cache_equals_one_row_alone() -> None:
    model = make().eval()
    rows = [list(range(5, 12)), list(range(30, 33)), [50]]
    longest = max(map(len, rows))
    pad = torch.tensor([longest - len(row) for row in rows])
    with torch.inference_mode():
        cache = KVCache(SMALL, pad, longest + 4, torch.float32)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        hidden = model.hidden(ids, cache=cache)
        for token in (7, 8, 9):
            for row, line in zip(rows, hidden, strict=True):
                alone = model.hidden(torch.tensor([row]))[0, -1]
                torch.testing.assert_close(line[-1], alone, atol=1e-5, rtol=1e-5)
            hidden = model.hidden(torch.full((3, 1), token), cache=cache)
            for row in rows:
                row.append(token)


def test_cache_rows_can_be_dropped_and_repeated() -> None:
    model = make().eval()
    prompt = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with torch.inference_mode():
        cache = KVCache(SMALL, torch.zeros(2, dtype=torch.long), 8, torch.float32)
        model.hidden(prompt, cache=cache)
        cache.select(torch.tensor([1, 1, 0]))
        out = model.hidden(torch.tensor([[9], [10], [11]]), cache=cache)[:, -1]
        for line, row in zip(out, ([5, 6, 7, 8, 9], [5, 6, 7, 8, 10], [1, 2, 3, 4, 11]), strict=True):
            torch.testing.assert_close(line, model.hidden(torch.tensor([row]))[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_what_their_names_say(name: str) -> None:
    config = model_preset(name, 1024)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters
    if name != "tiny":
        assert config.num_parameters == pytest.approx(float(name[:-1]) * 1e6, rel=0.2)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="heads"):
        Transformer(replace(SMALL, num_heads=3))
    with pytest.raises(UsageError, match="no model size"):
        model_preset("9T", 100)
