"""Logits of every class equal transformers': at once, over the cache, padded, packed, as trees; in plain torch and over the kernels."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.model.mla import FEW
from dunwu.model.transformer import Transformer
from dunwu.native.train import Segment
from tests.model.families import FAMILIES, PLAIN_ONLY, absorbing, expected, farthest, ids, pair, way

pytest.importorskip("transformers", minversion="5", reason="the [hf] extra is not installed")

NEAR = 1e-4
"""fp32: largest difference of a logit, where logits reach 6 to 8, or of a gradient over its tensor's largest entry.
Measured: 3e-5 and 7e-6."""
T = 70
"""Longer than a chunk of queries on the CPU, and than the context that the tiny models' RoPE is scaled from."""

LATENT = [name for name, config in FAMILIES.items() if config.mla]
WAYS = {"expanded": 0, "absorbed": 1000}
"""Latent attention's two, by the number of new tokens up to which it absorbs."""

every_class = pytest.mark.parametrize("name", FAMILIES)
both_ways = pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])


def ours(name: str, native: bool) -> Transformer:
    """The model, which takes the kernels where it is asked to and can."""
    model = pair(name)[1]
    assert model.native == (native and name not in PLAIN_ONLY)
    return model


def head(model: Transformer, states: Tensor) -> Tensor:
    return F.linear(states, model.head_weight)


def alone(name: str, row: Tensor) -> Tensor:
    """What transformers says to one row without company: (T, V)."""
    logits: Tensor = pair(name)[0](row[None]).logits[0]
    return logits


@every_class
@both_ways
@torch.no_grad()
def test_prefill(name: str, native: bool) -> None:
    with way(native):
        logits = ours(name, native)(ids(3, T))
    assert farthest(logits, expected(name, 3, T)) <= NEAR
    assert expected(name, 3, T).abs().max() > 2


STEPS = {"one by one": [1] * 24, "in chunks": [30, 8, 9, 1, 5, 17], "prompt, then one by one": [62] + [1] * 8}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("name", "few"), [(name, FEW) for name in FAMILIES] + [*product(LATENT, WAYS.values())])
@torch.no_grad()
def test_cached_decoding(name: str, steps: list[int], few: int) -> None:
    model = pair(name)[1]
    cache, logits = model.new_cache(torch.zeros(2, dtype=torch.long), T), []
    with absorbing(few):
        for part in ids(2, T)[:, : sum(steps)].split(steps, dim=1):
            logits.append(model(part, cache=cache))
    assert cache.length == sum(steps)
    assert farthest(torch.cat(logits, 1), expected(name, 2, T)[:, : sum(steps)]) <= NEAR


@every_class
@torch.no_grad()
def test_left_padded_rows(name: str) -> None:
    """Each row over the cache gives what it gives alone, whatever stands in its padding and in other rows."""
    model, lengths, longest = pair(name)[1], [40, 23, 1], 40
    rows = [ids(50, seed=n)[: length + 10] for n, length in enumerate(lengths)]
    pad = torch.tensor([longest - length for length in lengths])
    cache = model.new_cache(pad, longest + 10)
    assert cache.positions(longest)[:, -1].tolist() == [
        39,
        22,
        0,
    ]  # no text's begin is far out, whatever stands beside it
    prompt = torch.stack([torch.cat((ids(longest - n, seed=9), row[:n])) for n, row in zip(lengths, rows)])
    logits = [model(prompt, cache=cache)]
    for at, size in ((0, 1), (1, 3), (4, 6)):
        logits.append(model(torch.stack([row[n + at : n + at + size] for n, row in zip(lengths, rows)]), cache=cache))
    for line, row, padded in zip(torch.cat(logits, 1), rows, pad):
        assert farthest(line[int(padded) :], alone(name, row)) <= NEAR


@every_class
@both_ways
@torch.no_grad()
def test_right_padded_rows(name: str, native: bool) -> None:
    batch, lengths = ids(3, T, seed=3), [T, 31, 2]
    for row, length in zip(batch, lengths):
        row[length:] = 0
    with way(native):
        logits = ours(name, native)(batch)
    for line, row, length in zip(logits, batch, lengths):
        assert farthest(line[:length], alone(name, row[:length])) <= NEAR


PACKED = [[30, 5, 35], [1, 66, 3], [70]]
"""Lengths of the texts of each row."""


@every_class
@both_ways
@torch.no_grad()
def test_packed_rows(name: str, native: bool) -> None:
    batch = ids(3, T, seed=4)
    segments = torch.stack(
        [torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)) for lengths in PACKED]
    )
    with way(native):
        model = ours(name, native)
        logits = head(model, model.hidden(batch, segments_BT=segments))
    for line, row, lengths in zip(logits, batch, PACKED):
        for mine, text in zip(line.split(lengths), row.split(lengths)):
            assert farthest(mine, alone(name, text)) <= NEAR


TREES = [(20, [5, 1, 30]), (7, []), (3, [40, 2])]
"""Length of a prompt, and of each of its completions."""


def trees() -> tuple[Tensor, list[Segment], list[tuple[Tensor, Tensor, int]]]:
    """ids (N,) and segments; and every text of them as (its places in ids, its tokens, length of its prompt)."""
    segments, texts, at = [], [], 0
    tokens = ids(sum(prompt + sum(completions) for prompt, completions in TREES), seed=5)
    for prompt, completions in TREES:
        root = (at, at + prompt)
        segments.append(Segment(*root))
        at += prompt
        if not completions:
            texts.append((torch.arange(*root), tokens[slice(*root)], prompt))
        for length in completions:
            segments.append(Segment(at, at + length, *root))
            places = torch.cat((torch.arange(*root), torch.arange(at, at + length)))
            texts.append((places, tokens[places], prompt))
            at += length
    return tokens, segments, texts


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PLAIN_ONLY])
@torch.no_grad()
def test_trees(name: str) -> None:
    """Completions that share their prompt's tokens give what prompt and completion give as a row."""
    tokens, segments, texts = trees()
    with way(native=True):
        model = ours(name, native=True)
        logits = head(model, model.packed(tokens, segments))
    for places, text, _ in texts:
        assert farthest(logits[places], alone(name, text)) <= NEAR


# ---- gradients


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By name; a parameter without a part in the loss is an error."""
    named = {name: p for name, p in model.named_parameters() if not name.startswith("model.mtp.")}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()))))


def agree(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Of every parameter, to 1e-4 of the largest entry."""
    assert mine.keys() == other.keys()
    for name, grad in other.items():
        size = float(grad.abs().max())
        assert size > 0, name
        assert farthest(mine[name], grad) <= NEAR * size, (name, farthest(mine[name], grad) / size)


def next_token_loss(logits: Tensor, batch: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


@every_class
@both_ways
def test_gradients_of_a_step(name: str, native: bool) -> None:
    theirs, batch = pair(name)[0], ids(2, T, seed=6)
    expected_loss = next_token_loss(theirs(batch).logits, batch)
    with way(native):
        model = ours(name, native)
        loss = next_token_loss(model(batch), batch)
        grads = gradients(model, loss)
    assert farthest(loss.detach(), expected_loss.detach()) <= 1e-5
    agree(grads, gradients(theirs, expected_loss))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "v3", "v3 wide values", "v3 narrow values"])
def test_gradients_of_trees(name: str) -> None:
    """A prompt that stands once gathers the gradients of all its completions."""
    theirs, (tokens, segments, texts) = pair(name)[0], trees()

    def completion_loss(logits: Tensor, text: Tensor, prompt: int) -> Tensor:
        return F.cross_entropy(logits[prompt - 1 : -1], text[prompt:], reduction="sum")

    asked = [text for text in texts if len(text[0]) > text[2]]
    rows = [completion_loss(theirs(text[None]).logits[0], text, prompt) for _, text, prompt in asked]
    with way(native=True):
        model = ours(name, native=True)
        logits = head(model, model.packed(tokens, segments))
        loss = torch.stack([completion_loss(logits[places], text, prompt) for places, text, prompt in asked]).sum()
        grads = gradients(model, loss)
    agree(grads, gradients(theirs, torch.stack(rows).sum()))
