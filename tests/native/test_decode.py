"""The native decoder against the torch one: the same tokens from the same seeds, however the work is cut."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.native import build, decode
from dunwu.rollout.native_decoder import NativeDecoder
from dunwu.rollout.torch_decoder import TorchDecoder
from dunwu.types import SamplingParams

pytestmark = pytest.mark.skipif(
    build.library("decode") is None, reason="no native kernels: no C compiler, or DUNWU_NATIVE=0"
)

SHAPES = {
    "one KV head": ModelConfig(vocab_size=307, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=160),
    "two KV heads": ModelConfig(vocab_size=256, hidden_size=96, num_layers=3, num_heads=6, num_kv_heads=2),
    "a head each": ModelConfig(vocab_size=100, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=2),
    "own output head": ModelConfig(
        vocab_size=130, hidden_size=32, num_layers=2, num_heads=1, tie_word_embeddings=False
    ),
}
PROMPTS = [list(range(1, 90)), [7], [5, 6, 7, 8], list(range(50, 17, -1))]
PARENTS = [0] * 9 + [1] * 3 + [2] * 30 + [3] * 20
SEEDS = [1_000_003 * n - 5 for n in range(len(PARENTS))]


def made(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms that matter, logits that are far from uniform
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=33),
        SamplingParams(max_tokens=20, temperature=0.7, top_p=0.8),
        SamplingParams(max_tokens=20, temperature=1.3, top_k=5),
        SamplingParams(max_tokens=20, top_k=12, top_p=0.6),
        SamplingParams(max_tokens=20, temperature=0),
        SamplingParams(max_tokens=1),
    ],
    ids=str,
)
@torch.inference_mode()
def test_the_same_tokens_and_logprobs_as_in_torch(shape: str, params: SamplingParams) -> None:
    model = made(SHAPES[shape])
    stops = list(range(0, model.config.vocab_size, 23))
    expected = TorchDecoder(model, stops).draw(PROMPTS, PARENTS, SEEDS, params)
    tokens, logprobs, lengths, _ = NativeDecoder(model, stops).draw(PROMPTS, PARENTS, SEEDS, params)
    # A random number next to a boundary of two tokens may fall on either side: at most one row in sixty.
    same = [
        int(length) == int(expected[2][n]) and torch.equal(tokens[n, :length].long(), expected[0][n, :length].long())
        for n, length in enumerate(lengths)
    ]
    assert sum(same) >= len(same) - 1
    gaps = torch.cat(
        [(logprobs[n, :length] - expected[1][n, :length]).abs() for n, length in enumerate(lengths) if same[n]]
    )
    # So may a token at the edge of top-p: then all that are kept share a little more or less.
    assert float((gaps < 1e-5).float().mean()) > (0.99 if params.top_p < 1 else 0.999999)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_row_depends_on_nothing_but_its_prompt_and_seed(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(SHAPES["two KV heads"], dtype)
    if not NativeDecoder.supports(model):
        pytest.skip("no bfloat16 products on this processor")
    decoder, params = NativeDecoder(model, [3, 4, 5]), SamplingParams(max_tokens=50)
    together = decoder.draw(PROMPTS, PARENTS, SEEDS, params)
    for threads, block in ((1, 64), (3, 7), (2, 1), (5, 64)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        monkeypatch.setattr(decode, "BLOCK", block)
        again = decoder.draw(PROMPTS, PARENTS, SEEDS, params)
        assert all(torch.equal(a, b) for a, b in zip(together[:3], again[:3]))
    alone = decoder.draw([PROMPTS[2]], [0], SEEDS[20:21], params)
    assert all(torch.equal(a[0], b[20]) for a, b in zip(alone[:3], together[:3]))


@torch.inference_mode()
def test_in_bf16_it_is_as_close_to_the_model_as_torch_is() -> None:
    model = made(SHAPES["one KV head"], torch.bfloat16)
    if not NativeDecoder.supports(model):
        pytest.skip("no bfloat16 products on this processor")
    params = SamplingParams(max_tokens=60)
    gaps = {}
    for decoder in (TorchDecoder(model, []), NativeDecoder(model, [])):
        tokens, logprobs, *_ = decoder.draw(PROMPTS[:1], [0] * 30, SEEDS[:30], params)
        ids = torch.cat([torch.tensor(PROMPTS[:1]).repeat(30, 1), tokens.long()], dim=1)
        whole = model(ids)[:, len(PROMPTS[0]) - 1 : -1].float().log_softmax(-1)
        gap = whole.gather(2, tokens.long()[..., None]).squeeze(2) - logprobs
        gaps[type(decoder)] = float(gap.abs().mean())
    assert gaps[NativeDecoder] < 1.5 * gaps[TorchDecoder]


@torch.inference_mode()
def test_frequencies_are_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(SHAPES["one KV head"])
    n = 20_000
    tokens, logprobs, *_ = NativeDecoder(model, []).draw([[1, 2, 3]], [0] * n, range(n), SamplingParams(max_tokens=1))
    expected = model(torch.tensor([[1, 2, 3]]))[0, -1].softmax(-1)
    frequency = torch.bincount(tokens[:, 0], minlength=len(expected)) / n
    torch.testing.assert_close(frequency, expected, atol=4 * 0.5 / math.sqrt(n), rtol=0)
    torch.testing.assert_close(logprobs[:, 0].exp(), expected[tokens[:, 0].long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_logits_that_are_no_numbers_show(dtype: torch.dtype) -> None:
    model = made(SHAPES["one KV head"], dtype)
    if not NativeDecoder.supports(model):
        pytest.skip("no bfloat16 products on this processor")
    model.model.norm.weight[3] = float("nan")
    logprobs = NativeDecoder(model, []).draw(PROMPTS[:1], [0], [1], SamplingParams(max_tokens=3))[1]
    assert logprobs.isnan().all()


def test_nothing_to_draw_and_ids_of_another_vocabulary_are_refused() -> None:
    decoder = NativeDecoder(made(SHAPES["one KV head"]), [])
    with pytest.raises(ValueError, match="max_tokens is 0"):
        decoder.draw(PROMPTS[:1], [0], [1], SamplingParams(max_tokens=0))
    for token in (-1, 307):
        with pytest.raises(ValueError, match="vocabulary of 307"):
            decoder.draw([[1, token]], [0], [1], SamplingParams(max_tokens=1))


def test_shapes_it_does_not_know_are_left_to_torch() -> None:
    assert not NativeDecoder.supports(
        Transformer(ModelConfig(vocab_size=64, hidden_size=24, num_heads=1, num_layers=1))
    )
    assert not NativeDecoder.supports(made(SHAPES["a head each"], torch.float64))
    assert NativeDecoder.supports(made(SHAPES["a head each"]))


def test_packing_puts_every_weight_in_its_place() -> None:
    matrix = torch.arange(20 * 6).view(20, 6).float()
    for dtype, pair in ((torch.float32, 1), (torch.bfloat16, 2)):
        packed = decode.pack(matrix.to(dtype))
        assert packed.shape == (2, 6 // pair, 16, pair)
        for output in range(32):
            for depth in range(6):
                value = packed[output // 16, depth // pair, output % 16, depth % pair]
                assert value == (matrix[output, depth] if output < 20 else 0)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CC": "no-such-compiler"}, "no C compiler found"),
        ({"CC": "false"}, "decode.c cannot be used"),
        ({"DUNWU_NATIVE": "0"}, ""),
    ],
)
def test_without_a_compiler_everything_works_and_it_is_said_once(
    environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    program = """
import torch
from dunwu.data.tokenizer import train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.types import SamplingParams
tokenizer = train_from_texts(["one two"], 280)
model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_heads=2, num_layers=1))
for _ in range(2):
    engine = Engine(model, tokenizer)
    assert not engine.native
    print(len(engine.sample([[1, 2]], [[1]], SamplingParams(max_tokens=3))[0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"DUNWU_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n1\n", done.stderr
    assert done.stderr.count("dunwu:") == (1 if said else 0) and said in done.stderr
