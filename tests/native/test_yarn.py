"""The kernels under YaRN, beyond the context the model was trained at: the same states, gradients and samples as plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dunwu.model.config import ModelConfig, Yarn
from dunwu.model.transformer import Transformer
from dunwu.native import build
from dunwu.rollout.native_decoder import NativeDecoder
from dunwu.rollout.torch_decoder import TorchDecoder
from dunwu.train.pretrain import next_token_loss
from dunwu.types import SamplingParams

pytestmark = pytest.mark.skipif(
    build.library("decode") is None or build.library("train") is None,
    reason="no native kernels: no C compiler, or DUNWU_NATIVE=0",
)

SHORT = ModelConfig(
    vocab_size=211,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    intermediate_size=160,
    max_position_embeddings=32,
    initializer_range=0.15,
)
LONG = replace(SHORT, rope_scaling=Yarn(4.0, 32), max_position_embeddings=128)
LENGTH = 120


def made(config: ModelConfig, native: bool) -> Transformer:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():  # biases that matter
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)), alpha=0.05)
    model.native_allowed = native
    assert model.native == native
    return model


def ids(rows: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, SHORT.vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))


def test_yarn_changes_the_states_and_its_factor_counts() -> None:
    """Else the tests below would show nothing."""
    batch = ids(2)
    blunt = replace(LONG, rope_scaling=Yarn(4.0, 32, attention_factor=1.0))
    with torch.inference_mode():
        plain, long, unsharpened = (made(config, True).hidden(batch) for config in (SHORT, LONG, blunt))
    assert (plain - long).abs().max() > 0.05
    assert (unsharpened - long).abs().max() > 0.05


def test_training_agrees_with_torch() -> None:
    batch = ids(3)
    ours, oracle = made(LONG, True), made(LONG, False)
    with torch.inference_mode():
        assert (ours.hidden(batch) - oracle.hidden(batch)).abs().max() < 1e-4
    for model in (ours, oracle):
        torch.autograd.backward(next_token_loss(model, batch))
    for (name, mine), theirs in zip(ours.named_parameters(), oracle.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        gap = (mine.grad - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-6)
        assert gap < 1e-3 or theirs.grad.norm() < 1e-5, name


def test_decoding_agrees_with_torch() -> None:
    prompts, parents = [ids(1, 40)[0].tolist(), ids(1, 7)[0].tolist()], [0, 0, 1, 1]
    params = SamplingParams(max_tokens=80)
    model = made(LONG, True).eval()
    with torch.inference_mode():
        expected = TorchDecoder(model, []).draw(prompts, parents, [11, 12, 13, 14], params)
        tokens, logprobs, lengths, _ = NativeDecoder(model, []).draw(prompts, parents, [11, 12, 13, 14], params)
    assert torch.equal(torch.as_tensor(tokens).long(), expected[0].long())
    assert list(lengths) == [80] * 4
    assert (logprobs - expected[1]).abs().max() < 1e-4
