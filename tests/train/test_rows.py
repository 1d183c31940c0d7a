"""Rows as micro-batches: padded or as trees, the same tokens, weights and gradient."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from torch import Tensor

from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.train.config import GrpoConfig
from dunwu.train.rows import Row, micro_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(ModelConfig(vocab_size=60, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=32))
    made.init_weights(torch.Generator().manual_seed(0))
    if not made.native:
        pytest.skip("no C compiler: models share no prompts")
    return made


def made_rows() -> list[Row]:
    """Three prompts (two of them equal in different groups), completions of 1 to 19 tokens, in no order."""
    rng = Random(1)
    prompts = [[rng.randrange(60) for _ in range(length)] for length in (7, 12)]
    rows = []
    for group, prompt in enumerate([prompts[0], prompts[1], prompts[0]]):
        for length in (1, 2, 19, 6):
            ids = [*prompt, *(rng.randrange(60) for _ in range(length))]
            rows.append(
                Row(tuple(ids), len(prompt), tuple(-rng.random() for _ in range(length)), rng.gauss(0, 1), group)
            )
    rng.shuffle(rows)
    return rows


def weighted(model: Transformer, limit: int, trees: bool) -> tuple[dict[str, Tensor], list[tuple[float, ...]]]:
    """The gradient of Σ weight · advantage · logprob, and each trained token with its figures."""
    own = copy.deepcopy(model)
    tokens = []
    for micro in micro_batches(made_rows(), GrpoConfig(micro_tokens=limit, loss_norm="sequence"), CPU, trees):
        logprobs, _ = micro.logprobs(own, 0.8)
        (logprobs * micro.weights_N * micro.advantages_N).sum().backward()
        columns = (micro.targets_N, micro.advantages_N, micro.sampler_N, micro.weights_N, logprobs.detach())
        tokens += [tuple(round(float(x), 4) for x in token) for token in zip(*columns)]
        assert micro.ids.numel() <= max(limit, 30)
    return {name: p.grad for name, p in own.named_parameters() if p.grad is not None}, sorted(tokens)


@pytest.mark.parametrize("limit", [1, 40, 100, 10_000])
def test_trees_give_what_padded_rows_give(model: Transformer, limit: int) -> None:
    expected, tokens = weighted(model, 10_000, trees=False)
    gradient, in_trees = weighted(model, limit, trees=True)
    assert len(tokens) == 3 * (1 + 2 + 19 + 6)
    assert in_trees == tokens
    for name, grad in expected.items():
        torch.testing.assert_close(gradient[name], grad, atol=1e-6, rtol=1e-4)


def test_a_prompt_stands_once_for_all_its_completions(model: Transformer) -> None:
    (micro,) = micro_batches(made_rows(), GrpoConfig(micro_tokens=10_000), CPU, trees=True)
    assert micro.ids.numel() == 7 + 12 + 3 * (0 + 1 + 18 + 5)  # last tokens predict nothing
    assert sum(s.prefix_end > s.prefix_start for s in micro.segments) == 9  # one-token completions need no place
