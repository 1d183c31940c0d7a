"""A recorded step without a GPU: what is recorded, replayed, forgotten and refused, with the recording itself faked."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dunwu.model.cache import KVCache
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout import steps
from dunwu.rollout.steps import EagerStep, GraphStep

CONFIG = ModelConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, initializer_range=0.3)
PROMPTS = torch.arange(1, 41 * 3 + 1).remainder(50).view(41, 3)


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(CONFIG)
    made.init_weights(torch.Generator().manual_seed(0))
    return made.eval()


def filled(model: Transformer) -> KVCache:
    """A cache with the prompts in it; the first column of every third row is padding."""
    pad = (torch.arange(len(PROMPTS)) % 3 == 0).long()
    cache = KVCache(CONFIG, pad, 30, torch.float32)
    for name in ("keys", "values"):
        getattr(cache, name).fill_(float("nan"))  # what memory may hold
    model.hidden(PROMPTS, cache=cache)
    return cache


class Recording:
    """A CUDA graph as far as the step can tell: recording changes nothing, a replay is the step once more."""

    made = 0

    def __init__(self, step: GraphStep, ids_B1: Tensor) -> None:
        cache = step.cache
        held = [t.clone() for t in (cache.keys, cache.values, cache.bias_BS, cache.column)]
        self.logits = step._run(ids_B1).clone()
        for tensor, before in zip((cache.keys, cache.values, cache.bias_BS, cache.column), held):
            tensor.copy_(before)
        self.logits.fill_(float("nan"))  # a recording computes nothing
        self.replay = lambda: self.logits.copy_(step._run(ids_B1))
        Recording.made += 1


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_refused", [])
    monkeypatch.setattr(steps, "_recordable", lambda ids: not steps._refused)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


@torch.inference_mode()
def test_a_replayed_step_is_the_step(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(steps, "WINDOW", 6)
    monkeypatch.setattr(Recording, "made", 0)

    def record(self: GraphStep, ids_B1: Tensor) -> Any:
        made = Recording(self, ids_B1)
        return made, made.logits

    monkeypatch.setattr(GraphStep, "_record", record)
    eager, graph = EagerStep(model, filled(model)), GraphStep(model, filled(model))
    ids = torch.arange(len(PROMPTS))
    for position in range(24):
        expected, logits = eager(ids), graph(ids)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        ids = logits.argmax(-1)
        if position == 9:
            keep = torch.arange(0, len(ids), 4)
            eager.select(keep)
            graph.select(keep)
            ids = ids[keep]
    # Windows of 6, 12, 24 (the batch was rebuilt before that was recorded) and all 30 columns.
    assert Recording.made == 4


@torch.inference_mode()
def test_a_refused_recording_is_said_once_and_goes_on_without(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_cuda(monkeypatch)
    streams: list[object] = []

    def refuse(graph: object, stream: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    for name, fake in {
        "current_stream": lambda: "before",
        "set_stream": streams.append,
        "synchronize": lambda: None,
        "Stream": lambda: "own",
        "CUDAGraph": object,
        "graph": refuse,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    eager = EagerStep(model, filled(model))
    graphs = [GraphStep(model, filled(model)) for _ in range(2)]
    for token in (3, 4, 5, 6):
        ids = torch.full((len(PROMPTS),), token)
        expected = eager(ids)
        for graph in graphs:
            torch.testing.assert_close(graph(ids), expected, atol=1e-5, rtol=0)
    assert streams == ["before"]
    said = capsys.readouterr().err
    assert said.count("CUDA graphs cannot be used here (operation not permitted when stream is capturing)") == 1


def test_small_batches_are_not_rebuilt(model: Transformer) -> None:
    with torch.inference_mode():
        graph, eager = GraphStep(model, filled(model)), EagerStep(model, filled(model))
    assert graph.rebuild(20, 41) and not graph.rebuild(21, 41) and not graph.rebuild(1, 32)
    assert eager.rebuild(17, 20) and not eager.rebuild(18, 20)
