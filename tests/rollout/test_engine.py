"""The engine against the plain model: same logprobs, same samples whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.rollout.sampling import sample_tokens, uniforms
from dunwu.types import SamplingParams


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=2, initializer_range=0.3
    )
    made = Transformer(config)
    made.init_weights(torch.Generator().manual_seed(0))
    return made


PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


def test_sampler_logprobs_are_the_models_own(model: Transformer, tokenizer: Tokenizer) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.7)
    drawn = Engine(model, tokenizer).sample(PROMPTS, [[1, 2, 3], [4], [5, 6]], params)
    for prompt, completions in zip(PROMPTS, drawn, strict=True):
        for completion in completions:
            ids = torch.tensor([prompt + list(completion.token_ids)])
            with torch.no_grad():
                logprobs = (model(ids)[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            expected = logprobs.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(completion.sampler_logprobs), expected, atol=1e-5, rtol=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours(model: Transformer, tokenizer: Tokenizer) -> None:
    params = SamplingParams(max_tokens=40)
    seeds = [[100 + 10 * p + g for g in range(8)] for p in range(3)]
    together = Engine(model, tokenizer).sample(PROMPTS, seeds, params)
    in_parts = Engine(model, tokenizer, max_rows=5).sample(PROMPTS, seeds, params)
    for p, prompt in enumerate(PROMPTS):
        for g, seed in enumerate(seeds[p]):
            alone = Engine(model, tokenizer).sample([prompt], [[seed]], params)[0][0]
            assert alone.token_ids == together[p][g].token_ids == in_parts[p][g].token_ids


def test_a_group_differs_from_its_first_token_on(model: Transformer, tokenizer: Tokenizer) -> None:
    drawn = Engine(model, tokenizer).sample([PROMPTS[0]], [list(range(64))], SamplingParams(max_tokens=2))[0]
    assert len({completion.token_ids[0] for completion in drawn}) > 5


def test_stop_and_length(model: Transformer, tokenizer: Tokenizer) -> None:
    likely = Engine(model, tokenizer).sample([PROMPTS[0]], [[0]], SamplingParams(max_tokens=1, temperature=0))[0][0]
    stopping = Engine(model, tokenizer, lambda: 7, stop_ids=likely.token_ids)
    stopped = stopping.sample([PROMPTS[0]], [[0]], SamplingParams(max_tokens=9, temperature=0))[0][0]
    assert (stopped.finish_reason, stopped.text, stopped.weight_version) == ("stop", "", 7)
    assert stopped.token_ids == likely.token_ids
    cut = Engine(model, tokenizer).sample([PROMPTS[0]], [[0]], SamplingParams(max_tokens=3, temperature=0))[0][0]
    assert cut.finish_reason == "length" and len(cut.token_ids) == 3
    assert cut.text == tokenizer.decode(cut.token_ids)


def test_uniforms_are_uniform_and_repeatable() -> None:
    seeds = torch.arange(20_000)
    u = uniforms(seeds, 3)
    assert torch.equal(u, uniforms(seeds, 3)) and not torch.equal(u, uniforms(seeds, 4))
    assert float(u.min()) > 0 and float(u.max()) < 1
    # Kolmogorov-Smirnov: 1.95/sqrt(n) has probability 0.001.
    gap = (u.sort().values - torch.linspace(0, 1, len(u), dtype=torch.float64)).abs().max()
    assert gap < 1.95 / math.sqrt(len(u))


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    n = 40_000
    tokens, logprobs = sample_tokens(logits.repeat(n, 1), SamplingParams(temperature=2.0), uniforms(torch.arange(n), 0))
    expected = (logits / 2).softmax(-1)
    frequency = torch.bincount(tokens, minlength=4) / n
    torch.testing.assert_close(frequency, expected, atol=4 * 0.5 / math.sqrt(n), rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=2), [1, 2]),
        (SamplingParams(top_p=0.6), [2]),
        (SamplingParams(top_p=0.7), [1, 2]),
        (SamplingParams(top_p=0.9999), [0, 1, 2, 3]),
        (SamplingParams(temperature=0), [2]),
    ],
)
def test_truncation_keeps_what_it_says(params: SamplingParams, kept: list[int]) -> None:
    # softmax: 0.087, 0.236, 0.644, 0.032
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat(4000, 1)
    tokens, logprobs = sample_tokens(logits, params, uniforms(torch.arange(4000), 0))
    assert sorted(set(tokens.tolist())) == kept
    mass = sum(math.exp(logprobs[(tokens == t).nonzero()[0, 0]]) for t in kept)
    assert mass == pytest.approx(1, abs=1e-5)
