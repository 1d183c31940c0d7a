"""What a shape says of itself: its class, how many weights it has and a token passes, and which shapes cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.types import UsageError
from tests.model.families import FAMILIES, LATENT, LLAMA, QWEN2, QWEN3_MOE, V3, ids, pair


@pytest.mark.parametrize("name", FAMILIES)
def test_the_class_is_the_one_meant(name: str) -> None:
    kind = FAMILIES[name].model_type
    assert kind == {"v3": "deepseek_v3"}.get(name.split()[0], name.split()[0])
    pytest.importorskip("transformers", minversion="5", reason="the [hf] extra is not installed")
    assert pair(name)[0].config.model_type == kind


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_counted(name: str) -> None:
    """Every tensor; and those that get a gradient from one token, routed experts one by one."""
    pytest.importorskip("transformers", minversion="5", reason="the [hf] extra is not installed")
    theirs, ours = pair(name)
    config = FAMILIES[name]
    assert config.num_parameters == sum(p.numel() for p in theirs.parameters())
    parts = {n: p for n, p in ours.named_parameters() if not n.startswith("model.mtp.")}
    assert config.num_parameters == sum(p.numel() for p in parts.values())
    loss = ours(ids(1, 1)).square().sum()
    active = 0
    for (part, p), grad in zip(parts.items(), torch.autograd.grad(loss, list(parts.values()))):
        reached = int((grad.abs().amax((1, 2)) > 0).sum()) / len(grad) if ".experts." in part else 1
        active += round(p.numel() * reached)
    assert config.active_parameters == active


def test_counts_of_v3_as_published() -> None:
    """V3, 4.2: 671 billion, 37 of them for a token."""
    published = replace(
        V3, vocab_size=129_280, hidden_size=7168, num_layers=61, num_heads=128, intermediate_size=18_432,
        mla=replace(LATENT, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_rank=1536),
        moe=replace(V3.moe, experts=256, per_token=8, width=2048, first_dense=3, groups=8, top_groups=4) if V3.moe else None,
    )  # fmt: skip
    assert published.num_parameters == 671_026_404_352
    assert published.active_parameters / 1e9 == pytest.approx(37, abs=0.6)


IMPOSSIBLE: list[tuple[ModelConfig, dict[str, Any], str]] = [
    (QWEN2, {"num_heads": 3}, "does not split into 3 heads"),
    (QWEN2, {"head_size": 15}, "even width"),
    (V3, {"mla": replace(LATENT, rope_dim=5)}, "even width"),
    (QWEN2, {"num_kv_heads": 3}, "not a multiple of num_kv_heads 3"),
    (V3, {"mtp_depth": 2}, "mtp_depth is 2"),
    (LLAMA, {"moe": QWEN3_MOE.moe}, "no class that other programs load"),
    (QWEN2, {"moe": V3.moe}, "no class that other programs load"),
]
WRONG_EXPERTS: list[tuple[dict[str, int], str]] = [
    ({"per_token": 0}, "0 experts per token of 8"),
    ({"per_token": 5}, "5 experts per token of 8"),
    ({"per_token": 9, "groups": 1, "top_groups": 1}, "9 experts per token of 8"),
    ({"experts": 10}, "10 experts in 4 groups"),
    ({"top_groups": 5}, "5 of them chosen"),
]


@pytest.mark.parametrize(("config", "change", "message"), IMPOSSIBLE, ids=[row[2] for row in IMPOSSIBLE])
def test_impossible_shapes_are_named(config: ModelConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Transformer(replace(config, **change))


@pytest.mark.parametrize(("change", "message"), WRONG_EXPERTS, ids=[row[1] for row in WRONG_EXPERTS])
def test_impossible_experts_are_named(change: dict[str, Any], message: str) -> None:
    assert V3.moe
    with pytest.raises(UsageError, match=message):
        replace(V3, moe=replace(V3.moe, **change)).validate()


@pytest.mark.parametrize("name", FAMILIES)
def test_possible_shapes_pass(name: str) -> None:
    FAMILIES[name].validate()
