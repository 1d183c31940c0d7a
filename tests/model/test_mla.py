"""Latent attention: three ways to compute the same, a cache of latents only, and one score worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dunwu.model.config import MlaShape, ModelConfig, Yarn
from dunwu.model.layers import Linear
from dunwu.model.mla import LatentAttention
from dunwu.model.rope import rope_tables
from dunwu.model.transformer import Transformer
from tests.model.families import V3, V3_YARN, absorbing, farthest, ids, randomize, way

SHAPES = {
    "v3": V3.mla,
    "one latent number": MlaShape(kv_rank=1, nope_dim=8, rope_dim=2, value_dim=4),
    "wide values, halves": MlaShape(kv_rank=24, nope_dim=8, rope_dim=4, value_dim=40, q_rank=6, rope_interleave=False),
    "no part without RoPE": MlaShape(kv_rank=24, nope_dim=0, rope_dim=16, value_dim=8),
}


def attention(shape: MlaShape | None, seed: int = 0) -> tuple[ModelConfig, LatentAttention]:
    config = replace(V3, mla=shape, rope_scaling=V3_YARN)
    part = LatentAttention(config)
    for p in part.parameters():
        nn.init.uniform_(p, -0.4, 0.4, generator=torch.Generator().manual_seed(seed + p.numel()))
    return config, part


def x(B: int, T: int) -> Tensor:
    return torch.randn(B, T, V3.hidden_size, generator=torch.Generator().manual_seed(T))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_absorbed_equals_expanded_equals_uncached(shape: MlaShape) -> None:
    config, part = attention(shape)
    T, states = 20, x(3, 20)
    cos, sin = rope_tables(torch.arange(T)[None], config, torch.float32)
    uncached = part(states, cos, sin, None, 0)
    model = Transformer(config)
    found = []
    for few in (0, 1000):
        cache, out = model.new_cache(torch.zeros(3, dtype=torch.long), T), []
        for start, end in ((0, 13), (13, 14), (14, 18), (18, 20)):
            with absorbing(few):
                out.append(part(states[:, start:end], cos[:, :, start:end], sin[:, :, start:end], cache, 0))
            cache.advance(end - start)
        found.append(torch.cat(out, 1))
    expanded, absorbed = found
    assert farthest(absorbed, expanded) <= 1e-5 * float(uncached.abs().max())
    assert farthest(absorbed, uncached) <= 1e-5 * float(uncached.abs().max())


@torch.no_grad()
def test_the_absorbed_way_is_taken_for_few_tokens_only() -> None:
    """One new token costs a product with the head's matrices, not with every cached latent."""
    config, part = attention(V3.mla)
    cos, sin = rope_tables(torch.arange(30)[None], config, torch.float32)
    cache = Transformer(config).new_cache(torch.zeros(1, dtype=torch.long), 30)
    calls = []
    part.kv_b_proj.register_forward_hook(lambda *_: calls.append(1))
    for start, end in ((0, 21), (21, 22), (22, 30)):
        part(x(1, 30)[:, start:end], cos[:, :, start:end], sin[:, :, start:end], cache, 0)
        cache.advance(end - start)
    assert len(calls) == 1


@torch.no_grad()
def test_only_latent_and_shared_key_stand_in_the_cache() -> None:
    """c + r numbers of a token and layer, none by head (V2, 2.1.4; 576 in V3, where plain attention would keep 32,768)."""
    model = Transformer(V3)
    cache = model.new_cache(torch.zeros(2, dtype=torch.long), 10)
    shape = V3.mla
    assert shape is not None
    assert cache.keys.shape == (V3.num_layers, 2, 1, 10, shape.kv_rank + shape.rope_dim)
    assert cache.values is None
    model(ids(2, 10), cache=cache)
    keys, latents, _ = cache.append(0, cache.keys[0, :, :, :0])
    assert (
        latents.shape[-1] == shape.kv_rank and latents.untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()
    )
    # What stands there does not depend on the number of heads.
    wide = Transformer(replace(V3, num_heads=8)).new_cache(torch.zeros(2, dtype=torch.long), 10)
    assert wide.keys.shape == cache.keys.shape


@torch.no_grad()
def test_rows_of_a_latent_cache_can_be_dropped_and_repeated() -> None:
    model = Transformer(V3)
    randomize(model, seed=3)
    prompt, following = ids(3, 9), ids(3, 4, seed=1)
    pad = torch.tensor([0, 2, 5])
    cache = model.new_cache(pad, 14)
    model(prompt, cache=cache)
    cache.select(torch.tensor([2, 0, 2]))
    logits = model(following, cache=cache)
    cache.advance(-4)  # taken back: as if it had not been
    again = model(following[:, :2], cache=cache)
    for line, redone, row, text in zip(logits, again, (2, 0, 2), following):
        alone = model(torch.cat((prompt[row, int(pad[row]) :], text))[None])[0, -4:]
        assert farthest(line, alone) <= 1e-4
        assert farthest(redone, alone[:2]) <= 1e-4


def test_one_score_by_hand() -> None:
    """V3, eq. 1-11 with one head, numbers small enough to follow."""
    config = ModelConfig(
        hidden_size=2, num_heads=1, mla=MlaShape(kv_rank=1, nope_dim=1, rope_dim=2, value_dim=1), rope_theta=100.0,
        rope_scaling=Yarn(factor=math.e**10, original=64, mscale=1.0, mscale_all_dim=1.0, beta_fast=1.0, beta_slow=0.5),
    )  # fmt: skip
    part = LatentAttention(config)
    with torch.no_grad():
        part.q_proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))  # q = x₁ | x₂, x₁
        part.kv_a_proj_with_mqa.weight.copy_(
            torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]])
        )  # c = x₁ + x₂; k = 2x₁, x₂
        part.kv_a_layernorm.weight.fill_(3.0)  # one number over its own size is a sign: c = ±3
        part.kv_b_proj.weight.copy_(torch.tensor([[0.5], [2.0]]))  # key c / 2, value 2c
        part.o_proj.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    tokens = torch.tensor([[[1.0, 0.5], [-2.0, 1.0]]])
    # RoPE's only pair turns by 1 radian a position, ten times in the old context: YaRN keeps it, and its factor is 1.
    turned = [complex(2.0, 0.5), complex(-4.0, 1.0) * complex(math.cos(1), math.sin(1))]
    query = complex(1.0, -2.0) * complex(math.cos(1), math.sin(1))
    # Width 3, and YaRN's (0.1 · 10 + 1)² on the whole score.
    scores = [
        (-2.0 * latent / 2 + (query.conjugate() * key).real) / math.sqrt(3) * 4
        for latent, key in zip((3.0, -3.0), turned)
    ]
    first = 1 / (1 + math.exp(scores[1] - scores[0]))
    value = first * 6.0 - (1 - first) * 6.0
    cos, sin = rope_tables(torch.arange(2)[None], config, torch.float32)
    out = part(tokens, cos, sin, None, 0)
    assert out[0, 0].tolist() == pytest.approx([6.0, -6.0], abs=1e-4)
    assert out[0, 1].tolist() == pytest.approx([value, -value], abs=1e-4)


def test_every_way_asks_for_the_whole_matrix() -> None:
    """A LoRA of kv_b_proj is seen by the absorbed way too, which never calls the projection itself."""

    class Doubled(Linear):
        def full_weight(self) -> Tensor:
            return 2 * self.weight

        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = Transformer(V3)
    randomize(model, seed=3)
    for block in model.model.layers:
        other = Doubled(*reversed(block.self_attn.kv_b_proj.weight.shape), bias=False)
        other.weight = block.self_attn.kv_b_proj.weight
        block.self_attn.kv_b_proj = other
    found = []
    with torch.no_grad():
        for native in (False, True):
            with way(native):
                found.append(model(ids(2, 6)))
        for few in (0, 1000):
            with absorbing(few):
                found.append(model(ids(2, 6), cache=model.new_cache(torch.zeros(2, dtype=torch.long), 6)))
    for other in found[1:]:
        assert farthest(other, found[0]) <= 1e-4
