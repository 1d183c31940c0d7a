"""RoPE's frequencies and factors equal transformers', and turning equals multiplying complex numbers."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dunwu.model.config import LinearRope, Llama3Rope, MlaShape, ModelConfig, RopeScaling, Yarn
from dunwu.model.rope import apart, frequencies, rope_tables, score_scale, turn
from dunwu.model.transformer import Transformer
from tests.model.families import V3, their_fields

SCALINGS: dict[str, RopeScaling | None] = {
    "none": None,
    "linear": LinearRope(4.0),
    "llama 3.1": Llama3Rope(8.0, 8192),
    "llama 3.2": Llama3Rope(32.0, 8192),
    "llama, other ramp": Llama3Rope(2.5, 100, low_freq_factor=0.5, high_freq_factor=6.0),
    "yarn of V3": Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0),
    "yarn of Qwen2.5": Yarn(4.0, 32768),
    "yarn, unequal mscales": Yarn(40.0, 4096, mscale=0.707, mscale_all_dim=1.2),
    "yarn, one mscale": Yarn(8.0, 256, mscale=0.5),
    "yarn, one mscale_all_dim": Yarn(8.0, 256, mscale_all_dim=0.5),
    "yarn, factor given": Yarn(8.0, 256, attention_factor=1.25, mscale=1.0, mscale_all_dim=0.5),
    "yarn, not rounded": Yarn(16.0, 1024, truncate=False),
    "yarn, other ramp": Yarn(4.0, 256, beta_fast=8.0, beta_slow=2.0),
    "yarn, short ramp not rounded": Yarn(4.0, 256, beta_fast=2.0, beta_slow=1.9, truncate=False),
    "yarn that stretches nothing": Yarn(1.0, 256),
    "yarn of 256 to 1,024": Yarn(4.0, 256),
}


def theirs(theta: float, d: int, scaling: RopeScaling | None) -> Any:
    """transformers' table maker of a Llama with heads of this width."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama", reason="the [hf] extra is not installed")
    from transformers import LlamaConfig

    config = ModelConfig(hidden_size=4 * d, num_heads=4, qkv_bias=False, rope_theta=theta, rope_scaling=scaling)
    return modeling.LlamaRotaryEmbedding(LlamaConfig(**their_fields(config) | {"max_position_embeddings": 1 << 17}))


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("theta", "d"), [(10_000.0, 64), (1e6, 128), (500_000.0, 32), (100.0, 6)])
def test_frequencies_equal_transformers(theta: float, d: int, scaling: RopeScaling | None) -> None:
    other = theirs(theta, d, scaling)
    mine, factor = frequencies(d, theta, scaling)
    torch.testing.assert_close(mine, other.inv_freq, rtol=1e-6, atol=0)
    assert factor == pytest.approx(other.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_tables_equal_transformers_far_out(scaling: RopeScaling | None) -> None:
    """In bf16 too, where the angle must be made in fp32. Fp32 itself holds an angle of 100,000 to a hundredth."""
    config = ModelConfig(hidden_size=256, num_heads=4, rope_theta=1e6, rope_scaling=scaling)
    positions = torch.tensor([[0, 1, 63, 4096], [7, 1000, 32768, 99_999]])
    other = theirs(1e6, 64, scaling)
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        tables = other(torch.zeros(1, dtype=dtype), positions)
        for mine, table in zip(rope_tables(positions, config, dtype), tables):
            assert mine.shape == (2, 1, 4, 64) and mine.dtype == dtype
            # A last bit of a frequency moves an angle in proportion to its position.
            room = near + 2e-7 * positions.float()
            assert ((mine[:, 0].float() - table.float()).abs() <= room[..., None]).all()


def test_turning_is_multiplying_complex_numbers() -> None:
    """Su et al., eq. 34: pair i of position p by e^(i·p·θ_i); halves together, or neighbours after `apart`."""
    config = ModelConfig(hidden_size=24, num_heads=4, rope_theta=50.0)
    x = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    cos, sin = rope_tables(torch.tensor([[0, 1, 2, 10, 11]]), config, torch.float32)
    halves, neighbours = turn(x, cos, sin), turn(apart(x), cos, sin)
    for t, position in enumerate((0, 1, 2, 10, 11)):
        for i in range(3):
            spin = cmath.exp(1j * position * 50.0 ** (-2 * i / 6))
            for head in range(2):
                row = x[0, head, t].tolist()
                for out, pair in ((halves, (row[i], row[i + 3])), (neighbours, (row[2 * i], row[2 * i + 1]))):
                    turned = complex(*pair) * spin
                    found = out[0, head, t]
                    assert complex(float(found[i]), float(found[i + 3])) == pytest.approx(turned, abs=1e-5)


def test_scores_depend_on_distance_alone() -> None:
    config = ModelConfig(hidden_size=64, num_heads=2)
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    scores = []
    for at in (0, 5, 300):
        turned = [turn(x, *rope_tables(torch.tensor([[p]]), config, torch.float32)) for x, p in ((q, at + 9), (k, at))]
        scores.append(float((turned[0] * turned[1]).sum()))
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_the_scale_of_scores_equals_transformers(scaling: RopeScaling | None) -> None:
    """Dense heads know no more than 1/√d; V3's are sharpened by YaRN as a whole (0.1 m ln s + 1, squared)."""
    transformers = pytest.importorskip("transformers", minversion="5", reason="the [hf] extra is not installed")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    config = replace(V3, rope_scaling=scaling)
    other = DeepseekV3Attention(transformers.DeepseekV3Config(**their_fields(config)), 0)
    assert score_scale(config) == pytest.approx(other.scaling, rel=1e-12)
    assert score_scale(replace(config, mla=None, head_size=48)) == 48**-0.5


def test_the_scale_of_v3_by_hand() -> None:
    config = replace(
        V3, mla=MlaShape(512, 128, 64, 128, 1536), rope_scaling=Yarn(40.0, 4096, mscale=1, mscale_all_dim=1)
    )
    assert score_scale(config) == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))


def test_tables_of_the_kernels_are_the_same() -> None:
    for config in (V3, replace(V3, mla=None, rope_scaling=Yarn(4.0, 16), moe=None)):
        model = Transformer(config)
        cos, sin = model.rope(40)
        wide = rope_tables(torch.arange(40)[None], config, torch.float32)
        for half, table in zip((cos, sin), wide):
            assert half.shape == (40, config.rope_dim // 2)
            assert torch.equal(torch.cat((half, half), -1), table[0, 0])
