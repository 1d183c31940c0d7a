"""The engine against the plain model: same logprobs, same samples whatever the batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.native.build import library
from dunwu.rollout.engine import Engine
from dunwu.rollout.sampling import sample_tokens, uniforms
from dunwu.rollout.torch_decoder import TorchDecoder
from dunwu.train.config import GrpoConfig
from dunwu.train.rows import Row, micro_batches
from dunwu.types import Completion, DunwuError, SamplingParams


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


@pytest.fixture(params=["torch", "graph", "native"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """`Engine` with each decoder; a CUDA graph's steps are run as they are, their window doubled several times."""
    if request.param == "native" and library("decode") is None:
        pytest.skip("no native kernels: no C compiler, or DUNWU_NATIVE=0")
    if request.param == "graph":
        monkeypatch.setattr("dunwu.rollout.engine.TorchDecoder", partial(TorchDecoder, fixed=True))
        monkeypatch.setattr("dunwu.rollout.steps.WINDOW", 5)
    return partial(Engine, native=request.param == "native")


def test_sampler_logprobs_are_the_models_own(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.7)
    drawn = engine(model, tokenizer).sample(PROMPTS, [[1, 2, 3], [4], [5, 6]], params)
    for prompt, completions in zip(PROMPTS, drawn, strict=True):
        for completion in completions:
            ids = torch.tensor([prompt + list(completion.token_ids)])
            with torch.no_grad():
                logprobs = (model(ids)[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            expected = logprobs.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(completion.sampler_logprobs), expected, atol=1e-5, rtol=0)


def test_a_sample_does_not_depend_on_its_neighbours(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    params = SamplingParams(max_tokens=40)
    seeds = [[100 + 10 * p + g for g in range(8)] for p in range(3)]
    together = engine(model, tokenizer).sample(PROMPTS, seeds, params)
    in_parts = engine(model, tokenizer, max_rows=5).sample(PROMPTS, seeds, params)
    for p, prompt in enumerate(PROMPTS):
        for g, seed in enumerate(seeds[p]):
            alone = engine(model, tokenizer).sample([prompt], [[seed]], params)[0][0]
            assert alone.token_ids == together[p][g].token_ids == in_parts[p][g].token_ids


def test_a_group_differs_from_its_first_token_on(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    drawn = engine(model, tokenizer).sample([PROMPTS[0]], [list(range(64))], SamplingParams(max_tokens=2))[0]
    assert len({completion.token_ids[0] for completion in drawn}) > 5


def test_stop_and_length(engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer) -> None:
    likely = engine(model, tokenizer).sample([PROMPTS[0]], [[0]], SamplingParams(max_tokens=1, temperature=0))[0][0]
    stopping = engine(model, tokenizer, lambda: 7, stop_ids=likely.token_ids)
    stopped = stopping.sample([PROMPTS[0]], [[0]], SamplingParams(max_tokens=9, temperature=0))[0][0]
    assert (stopped.finish_reason, stopped.text, stopped.weight_version) == ("stop", "", 7)
    assert stopped.token_ids == likely.token_ids
    cut = engine(model, tokenizer).sample([PROMPTS[0]], [[0]], SamplingParams(max_tokens=3, temperature=0))[0][0]
    assert cut.finish_reason == "length" and len(cut.token_ids) == 3
    assert cut.text == tokenizer.decode(cut.token_ids)


@pytest.fixture
def calls(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of every pass through the model."""
    seen: list[tuple[int, int]] = []
    original = model.hidden

    def spy(ids_BT: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        seen.append((ids_BT.shape[0], ids_BT.shape[1]))
        return original(ids_BT, *args, **named)

    monkeypatch.setattr(model, "hidden", spy)
    return seen


def test_a_prompt_is_prefilled_once_for_all_its_samples(
    model: Transformer, tokenizer: Tokenizer, calls: list[tuple[int, int]]
) -> None:
    seeds = [list(range(10)), list(range(20)), list(range(6))]
    Engine(model, tokenizer, native=False).sample(PROMPTS, seeds, SamplingParams(max_tokens=2))
    assert calls[0] == (len(PROMPTS), max(map(len, PROMPTS)))
    assert [tokens for _, tokens in calls[1:]] == [1]
    calls.clear()
    Engine(model, tokenizer, max_rows=18, native=False).sample(PROMPTS, seeds, SamplingParams(max_tokens=2))
    prefills = [shape for shape in calls if shape[1] > 1]
    assert prefills == [(2, 4), (2, 3)]  # prompts 0 and 1, then 1 and 2: only those a pass needs


def test_finished_rows_leave_the_batch(model: Transformer, tokenizer: Tokenizer, calls: list[tuple[int, int]]) -> None:
    stops = range(0, tokenizer.vocab_size, 6)
    engine = Engine(model, tokenizer, stop_ids=stops, native=False)
    (drawn,) = engine.sample([PROMPTS[0]], [list(range(200))], SamplingParams(max_tokens=60))
    lengths = [len(completion.token_ids) for completion in drawn]
    assert len(set(lengths)) > 10
    longest = max(lengths)
    assert len(calls) == longest  # the last token of the longest row is never fed back
    for position, (rows, _) in enumerate(calls[1:], 1):
        alive = sum(length > position for length in lengths)
        assert alive <= rows <= math.ceil(alive / 0.85)
    ends = {*stops, *tokenizer.stop_ids}
    assert all((c.finish_reason == "stop") == (c.token_ids[-1] in ends) for c in drawn)


def test_the_weights_of_now_are_used(engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer) -> None:
    own = copy.deepcopy(model).train()
    version = 3
    made = engine(own, tokenizer, lambda: version)
    params = SamplingParams(max_tokens=8)
    before = made.sample(PROMPTS, [[1], [2], [3]], params)
    with torch.no_grad():
        for p in own.parameters():
            p.mul_(0.5)
    version = 4
    after = made.sample(PROMPTS, [[1], [2], [3]], params)
    fresh = engine(copy.deepcopy(own), tokenizer, lambda: 4).sample(PROMPTS, [[1], [2], [3]], params)
    assert after == fresh and after != before
    assert {c.weight_version for group in before for c in group} == {3}
    assert {c.weight_version for group in after for c in group} == {4}
    assert own.training


def test_samples_come_back_in_the_order_of_their_seeds(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    seeds = [[5, 1, 9], [], [7, 7]]
    drawn = engine(model, tokenizer, max_rows=2).sample(PROMPTS, seeds, SamplingParams(max_tokens=5))
    assert [[completion.seed for completion in group] for group in drawn] == seeds
    assert drawn[2][0].token_ids == drawn[2][1].token_ids


@pytest.mark.parametrize("trees", [False, True])
def test_in_fp32_sampler_and_trainer_agree(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer, trees: bool
) -> None:
    if trees and not model.native:
        pytest.skip("no native kernels: models share no prompts")
    drawn = engine(model, tokenizer).sample(PROMPTS, [list(range(8))] * 3, SamplingParams(max_tokens=40))
    for micro in micro_batches(rows_of(drawn), GrpoConfig(micro_tokens=300), torch.device("cpu"), trees):
        with torch.no_grad():
            torch.testing.assert_close(micro.logprobs(model, 1.0)[0], micro.sampler_N, atol=1e-5, rtol=0)


def rows_of(drawn: list[list[Completion]]) -> list[Row]:
    """Completions of PROMPTS as the update sees them."""
    return [
        Row((*prompt, *c.token_ids), len(prompt), c.sampler_logprobs, 1.0, n)
        for n, (prompt, group) in enumerate(zip(PROMPTS, drawn, strict=True))
        for c in group
    ]


def test_in_bf16_sampler_and_trainer_stay_close(
    engine: partial[Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    low = copy.deepcopy(model).to(torch.bfloat16)
    if engine.keywords["native"] and library("decode", bf16=True) is None:
        pytest.skip("no bfloat16 products on this processor")
    drawn = engine(low, tokenizer).sample(PROMPTS, [list(range(8))] * 3, SamplingParams(max_tokens=40))
    gaps = []
    with torch.no_grad():
        for micro in micro_batches(rows_of(drawn), GrpoConfig(micro_tokens=300), torch.device("cpu")):
            gaps.append((micro.logprobs(low, 1.0)[0] - micro.sampler_N).abs())
    gap = torch.cat(gaps)
    assert len(gap) > 500
    assert 0 < float(gap.mean()) < 0.05


def test_what_cannot_be_sampled_is_refused(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DunwuError, match="a prompt has no tokens"):
        engine(model, tokenizer).sample([[1, 2], []], [[1], [2]], SamplingParams(max_tokens=2))
    smaller = Transformer(ModelConfig(vocab_size=100, hidden_size=32, num_layers=1, num_heads=2))
    with pytest.raises(DunwuError, match="the model 100"):
        engine(smaller, tokenizer)


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


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=2), SamplingParams(top_p=0.7)])
def test_a_number_next_to_one_draws_a_token_that_was_kept(params: SamplingParams) -> None:
    """In fp32, 1 - 2^-30 is 1: above every cumulative sum."""
    logits = torch.tensor([1.0, 2.0, 0.0, -300.0]).repeat(3, 1)
    u = torch.tensor([1 - 2.0**-30, 1.0, 1 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, params, u)
    assert set(tokens.tolist()) <= {0, 1, 2}
    assert bool(torch.isfinite(logprobs).all())


def test_on_cuda_graphs_draw_what_kernels_draw(model: Transformer, tokenizer: Tokenizer) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = copy.deepcopy(model).cuda().eval()
    seeds, params = [*range(40)], SamplingParams(max_tokens=300)
    with torch.inference_mode():
        graphs, kernels = (
            TorchDecoder(there, tokenizer.stop_ids, fixed).draw(PROMPTS, [seed % 3 for seed in seeds], seeds, params)
            for fixed in (True, False)
        )
    # Sums over another number of columns end in other digits, and a number next to a boundary falls on either side.
    same = [n for n in seeds if torch.equal(graphs[0][n][: graphs[2][n]], kernels[0][n][: kernels[2][n]])]
    assert len(same) >= len(seeds) - 2
    for n in same:
        end = int(graphs[2][n])
        torch.testing.assert_close(graphs[1][n, :end], kernels[1][n, :end], atol=1e-5, rtol=0)


def test_a_completion_has_at_least_one_token(
    engine: Callable[..., Engine], model: Transformer, tokenizer: Tokenizer
) -> None:
    for count in (0, -3):
        with pytest.raises(DunwuError, match=f"max_tokens is {count}"):
            engine(model, tokenizer).sample(PROMPTS, [[1], [2], [3]], SamplingParams(max_tokens=count))
