"""Guessing ahead with the MTP module gives the tokens that the model gives one by one, in fewer passes where it guesses well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.model.config import MlaShape, ModelConfig, MoeShape
from dunwu.model.transformer import Transformer
from dunwu.rollout import sampling
from dunwu.rollout import speculative as module
from dunwu.rollout.speculative import Drafts, can_draft, speculative
from dunwu.rollout.stream import stream
from dunwu.types import SamplingParams

V = 12
SMALL = ModelConfig(
    vocab_size=V, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32, initializer_range=0.3, mtp_depth=1
)
SHAPES = {
    "latent attention and experts": replace(
        SMALL,
        num_layers=2,
        qkv_bias=False,
        tie_word_embeddings=False,
        mla=MlaShape(kv_rank=16, nope_dim=16, rope_dim=8, value_dim=16, q_rank=24),
        moe=MoeShape(experts=8, per_token=2, width=16, shared=1, first_dense=1, groups=4, top_groups=2, scale=2.5),
    ),
    "grouped queries": SMALL,
}
WAYS = {
    "greedy": SamplingParams(max_tokens=24, temperature=0.0),
    "plain": SamplingParams(max_tokens=24),
    "nucleus": SamplingParams(max_tokens=24, temperature=0.8, top_p=0.9),
    "top-k": SamplingParams(max_tokens=24, temperature=1.3, top_k=4),
}
PROMPTS = ([3], [0, 1], [5, 1, 4, 1, 7, 9, 2, 6, 5, 3, 5])


def random_model(shape: ModelConfig) -> Transformer:
    model = Transformer(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def chain(rows: int, length: int, loyal: float, generator: torch.Generator) -> Tensor:
    """Rows that count up modulo 8; each step jumps anywhere with probability 1 - loyal."""
    ids = torch.randint(0, 8, (rows, length), generator=generator)
    jumps = torch.rand(rows, length, generator=generator) >= loyal
    for t in range(1, length):
        ids[:, t] = ids[:, t].where(jumps[:, t], (ids[:, t - 1] + 1) % 8)
    return ids


def taught(loyal: float, steps: int) -> Transformer:
    """A model of the chain: the main loss, and the module's beside it (V3, eq. 24-25)."""
    model = random_model(replace(SHAPES["latent attention and experts"], initializer_range=0.05))
    model.train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        ids = chain(16, 24, loyal, generator)
        states = model.hidden(ids[:, :-1])
        ahead = model.mtp_hidden(states[:, :-1], ids[:, 1:-1])
        loss = sum(
            F.cross_entropy((h @ model.head_weight.T).flatten(0, 1), targets.flatten())
            for h, targets in ((states, ids[:, 1:]), (ahead, ids[:, 2:]))
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def loyal_model() -> Transformer:
    return taught(loyal=1.0, steps=60)


@pytest.fixture(scope="module")
def fickle_model() -> Transformer:
    return taught(loyal=0.7, steps=60)


def plain(
    model: Transformer, prompt: list[int], seed: int, params: SamplingParams, stops: tuple[int, ...]
) -> list[int]:
    return list(stream(model, prompt, seed, params, stops, draft=False))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_tokens_as_one_by_one(shape: str, way: str) -> None:
    model, total = random_model(SHAPES[shape]), Drafts()
    for prompt in PROMPTS:
        for seed in range(5):
            drafts = Drafts()
            ahead = list(stream(model, prompt, seed, WAYS[way], (11,), drafts=drafts))
            assert ahead == plain(model, prompt, seed, WAYS[way], (11,))
            total.drafted += drafts.drafted
            total.accepted += drafts.accepted
    # A random module is right now and then: both branches were taken.
    assert 0 < total.accepted < total.drafted


@pytest.mark.parametrize("way", ["greedy", "plain", "nucleus"])
def test_a_module_that_is_mostly_right(fickle_model: Transformer, way: str) -> None:
    total = Drafts()
    for seed in range(6):
        drafts = Drafts()
        params = replace(WAYS[way], max_tokens=40)
        ahead = list(stream(fickle_model, [seed], seed, params, (), drafts=drafts))
        assert ahead == plain(fickle_model, [seed], seed, params, ())
        assert drafts.forwards + drafts.accepted == 40
        total.drafted += drafts.drafted
        total.accepted += drafts.accepted
    assert 0.3 < total.acceptance < 1 or (way == "greedy" and total.acceptance > 0.9)


@pytest.mark.parametrize("way", ["greedy", "plain"])
def test_half_the_passes_where_every_guess_is_right(loyal_model: Transformer, way: str) -> None:
    for most in (1, 2, 3, 4, 41):
        drafts, params = Drafts(), replace(WAYS[way], max_tokens=most)
        ahead = list(stream(loyal_model, [3, 4, 5], 0, params, (), drafts=drafts))
        assert ahead == [(6 + n) % 8 for n in range(most)] == plain(loyal_model, [3, 4, 5], 0, params, ())
        assert drafts.accepted == drafts.drafted == (most - 1) // 2
        assert drafts.forwards == most - drafts.accepted


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3, 20, 21])
def test_guesses_that_are_always_wrong_or_right(right: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = random_model(SHAPES["latent attention and experts"]), SamplingParams(max_tokens=most)
    for seed in range(3):
        truth, drafts = plain(model, [1, 2], seed, params, ()), Drafts()
        monkeypatch.setattr(module, "_Guess", oracle([t if right else (t + 1) % V for t in truth]))
        assert list(speculative(model, [1, 2], seed, params, (), drafts)) == truth
        assert drafts.drafted == ((most - 1) // 2 if right else max(0, most - 2))
        assert drafts.acceptance == float(right and most > 2)
        assert drafts.forwards == most - drafts.accepted


def test_a_stop_token_ends_it_wherever_it_falls(fickle_model: Transformer) -> None:
    """As drafted token, as the one behind an accepted draft, as the first, and as the last that there is room for."""
    ended = set()
    for stop in range(8):
        for most in (1, 2, 3, 24):
            params, drafts = SamplingParams(max_tokens=most), Drafts()
            ahead = list(stream(fickle_model, [2, 3], stop, params, (stop, 11), drafts=drafts))
            assert ahead == plain(fickle_model, [2, 3], stop, params, (stop, 11))
            assert stop not in ahead[:-1]
            ended.add((ahead[-1] == stop, drafts.accepted > 0))
    assert ended == {(True, True), (True, False), (False, True), (False, False)}


def test_the_module_sees_every_state_once_with_the_token_behind_it(
    fickle_model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And guesses what it would guess without a cache: what its cache holds is never stale."""
    model, shown, guessed = fickle_model, [], []
    ahead = model.mtp_hidden

    def watched(states: Tensor, next_ids: Tensor, *rest: object) -> Tensor:
        shown.extend(next_ids[0].tolist())
        out = ahead(states, next_ids, *rest)  # type: ignore[arg-type]
        guessed.append((len(shown), out[:, -1]))
        return out

    monkeypatch.setattr(model, "mtp_hidden", watched)
    prompt, drafts = [4, 5, 6], Drafts()
    tokens = list(stream(model, prompt, 1, SamplingParams(max_tokens=30), (), drafts=drafts))
    monkeypatch.undo()
    assert 0 < drafts.accepted < drafts.drafted
    text = prompt + tokens
    assert shown == text[1 : 1 + len(shown)] and len(shown) >= len(text) - 4
    monkeypatch.setattr(Transformer, "native_allowed", False)
    ids = torch.tensor([text])
    with torch.inference_mode():
        whole = model.mtp_hidden(model.hidden(ids[:, :-1]), ids[:, 1:])
    for seen, state in guessed:
        torch.testing.assert_close(state, whole[:, seen - 1], atol=1e-4, rtol=1e-4)


def test_no_pass_before_its_token_is_asked_for(loyal_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts, drawn, sample = Drafts(), [], sampling.sample_tokens

    def counted(*args: Any) -> tuple[Tensor, Tensor]:
        drawn.append(1)
        return sample(*args)

    monkeypatch.setattr(module, "sample_tokens", counted)
    loyal_model.train()
    tokens = stream(loyal_model, [0, 1], 0, SamplingParams(max_tokens=30), (), drafts=drafts)
    # Guesses are draws too: one before each second token.
    for token, forwards, draws in zip(range(2, 7), (1, 2, 2, 3, 3), (1, 3, 4, 6, 7)):
        assert next(tokens) == token
        assert (drafts.forwards, len(drawn)) == (forwards, draws) and not torch.is_inference_mode_enabled()
    tokens.close()  # type: ignore[attr-defined]
    assert loyal_model.training and drafts.forwards == 3
    loyal_model.eval()


def test_two_completions_at_once_do_not_meddle(fickle_model: Transformer) -> None:
    params = SamplingParams(max_tokens=20)
    both = zip(*(stream(fickle_model, [seed], seed, params, ()) for seed in (1, 2)))
    first, second = zip(*both)
    assert list(first) == plain(fickle_model, [1], 1, params, ())
    assert list(second) == plain(fickle_model, [2], 2, params, ())


def test_without_a_module_nothing_is_drafted() -> None:
    model, drafts = random_model(replace(SMALL, mtp_depth=0)), Drafts()
    assert not can_draft(model)
    tokens: Iterator[int] = stream(model, [1], 0, SamplingParams(max_tokens=8), (), drafts=drafts)
    assert len(list(islice(tokens, 5))) == 5
    assert (drafts.forwards, drafts.drafted, drafts.acceptance) == (5, 0, 0.0)


def oracle(guesses: list[int]) -> Callable[..., Callable[..., Tensor]]:
    """Stands in for the module: says what it is told to at every position."""
    return lambda *_: lambda _states, _ids, position: torch.tensor([guesses[position]])
