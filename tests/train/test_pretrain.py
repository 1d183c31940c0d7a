"""Pretraining: exact resume, learning, stopping on bad numbers, and bits per byte against a hand computation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dunwu.data.corpus import token_bytes
from dunwu.data.shards import PackedShards, ShardWriter, TokenFolder
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Block, Transformer
from dunwu.train.checkpoint import load_checkpoint, save_checkpoint
from dunwu.train.config import PretrainConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.pretrain import HeldOutText, cut_windows, held_out_loss, held_out_text, next_token_loss, pretrain
from dunwu.types import DunwuError, UsageError

SHAPE = ModelConfig(vocab_size=40, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48)
CONFIG = PretrainConfig(tokens=12 * 64, rows=4, context=16, warmup=2, lr=1e-2)


def fresh(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Transformer, MasterAdamW]:
    model = Transformer(SHAPE)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.to(dtype)
    return model, MasterAdamW(model)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, shards: PackedShards, dropout: float, dtype: torch.dtype
) -> None:
    config = replace(CONFIG, dropout=dropout)
    model, optimizer = fresh(dtype=dtype)
    losses = {step.n: step.metrics["pretrain/loss"] for step in pretrain(model, optimizer, shards, config)}
    first, killed = fresh(dtype=dtype)
    for step in pretrain(first, killed, shards, config):
        if step.n == 5:
            save_checkpoint(tmp_path, killed.state(), {"step": step.n, "version": killed.version})
        if step.n == 7:
            break
    torch.manual_seed(999)
    second, resumed = fresh(seed=3, dtype=dtype)  # other weights: the checkpoint must bring them all
    found = load_checkpoint(tmp_path)
    assert found is not None
    resumed.load(found[0], found[1]["version"])
    for step in pretrain(second, resumed, shards, config, start=found[1]["step"]):
        assert step.metrics["pretrain/loss"] == losses.pop(step.n)
    assert sorted(losses) == [1, 2, 3, 4, 5]
    assert resumed.version == optimizer.version == config.steps
    assert all(torch.equal(t, resumed.state()[name]) for name, t in optimizer.state().items())
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name])


GROWING = replace(CONFIG, context_steps=((4, 0.25), (8, 0.25), (16, 0.5)))
"""Contexts 4, 8 and 16 in updates 0-2, 3-5 and 6-11."""


@pytest.mark.parametrize("stop", [2, 3, 5, 6, 9])
def test_a_growing_context_resumes_to_the_same_bits(tmp_path: Path, shards: PackedShards, stop: int) -> None:
    """Stopped inside a step of the context and at its borders."""
    config = replace(GROWING, dropout=0.2)
    model, optimizer = fresh()
    seen = [
        (step.metrics["pretrain/context"], step.metrics["pretrain/loss"])
        for step in pretrain(model, optimizer, shards, config)
    ]
    assert [context for context, _ in seen] == [4.0] * 3 + [8.0] * 3 + [16.0] * 6
    first, killed = fresh()
    for step in pretrain(first, killed, shards, config):
        if step.n == stop:
            save_checkpoint(tmp_path, killed.state(), {"step": step.n, "version": killed.version})
            break
    second, resumed = fresh(seed=3)
    found = load_checkpoint(tmp_path)
    assert found is not None
    resumed.load(found[0], found[1]["version"])
    after = [
        (s.metrics["pretrain/context"], s.metrics["pretrain/loss"])
        for s in pretrain(second, resumed, shards, config, stop)
    ]
    assert after == seen[stop:]
    assert all(torch.equal(weights, second.state_dict()[name]) for name, weights in model.state_dict().items())


def test_a_shorter_context_sees_the_same_tokens(shards: PackedShards) -> None:
    """An update predicts each of its tokens once, whatever the context, from at most so many before it."""
    model, optimizer = fresh()
    whole = shards.batch(0, CONFIG.rows)
    cut = cut_windows(whole, 4)
    assert cut.shape == (CONFIG.rows * 4, 5)
    assert np.array_equal(cut[:, 1:].reshape(CONFIG.rows, -1), whole[:, 1:])
    assert np.array_equal(cut[:, :-1].reshape(CONFIG.rows, -1), whole[:, :-1])
    assert cut_windows(whole, CONFIG.context) is whole
    with torch.no_grad():
        by_hand = [float(next_token_loss(model, torch.from_numpy(row[None]))) for row in cut]
    step = next(pretrain(model, optimizer, shards, GROWING))
    assert step.metrics["pretrain/loss"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)
    assert step.metrics["pretrain/tokens"] == CONFIG.rows * CONFIG.context


def test_one_step_of_context_is_no_growth(shards: PackedShards) -> None:
    losses = []
    for config in (CONFIG, replace(CONFIG, context_steps=((16, 1.0),))):
        model, optimizer = fresh()
        losses.append([step.metrics["pretrain/loss"] for step in pretrain(model, optimizer, shards, config)])
    assert losses[0] == losses[1]


def test_the_learning_rate_runs_over_all_contexts(shards: PackedShards) -> None:
    rates = []
    for config in (CONFIG, GROWING):
        model, optimizer = fresh()
        rates.append([step.metrics["pretrain/lr"] for step in pretrain(model, optimizer, shards, config)])
    assert rates[0] == rates[1]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (((4, 0.5), (12, 0.3), (16, 0.2)), "whole factors"),
        (((8, 0.5), (8, 0.2), (16, 0.3)), "whole factors"),
        (((0, 0.5), (16, 0.5)), "whole factors"),
        (((4, 0.5), (8, 0.5)), "end with 8, the context is 16"),
        (((4, 0.5), (16, 0.4)), "sum to 0.9"),
        (((4, -0.5), (16, 1.5)), "above 0"),
    ],
)
def test_contexts_that_cannot_grow(steps: tuple[tuple[int, float], ...], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(CONFIG, context_steps=steps).validate()
    assert says in str(caught.value)


def test_the_loss_falls(shards: PackedShards) -> None:
    model, optimizer = fresh()
    config = replace(CONFIG, tokens=60 * 64)
    losses = [step.metrics["pretrain/loss"] for step in pretrain(model, optimizer, shards, config)]
    assert losses[0] == pytest.approx(math.log(SHAPE.vocab_size), rel=0.05)  # knows nothing at first
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_metrics_are_what_they_say(shards: PackedShards) -> None:
    model, optimizer = fresh()
    batch = torch.from_numpy(shards.batch(0, CONFIG.rows))
    with torch.no_grad():
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, SHAPE.vocab_size), batch[:, 1:].reshape(-1))
    step = next(pretrain(model, optimizer, shards, CONFIG))
    assert step.n == 1
    assert step.metrics["pretrain/loss"] == pytest.approx(float(loss), abs=1e-5)
    assert step.metrics["pretrain/lr"] == pytest.approx(CONFIG.lr / 2)  # the first of two warm-up updates
    assert step.metrics["pretrain/tokens"] == CONFIG.rows * CONFIG.context
    assert step.metrics["pretrain/tokens_per_second"] > 0


def test_a_bad_loss_stops_with_batch_and_checkpoint_named(tmp_path: Path, shards: PackedShards) -> None:
    model, optimizer = fresh()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    save_checkpoint(tmp_path, optimizer.state(), {"step": 0, "version": 0})
    with pytest.raises(DunwuError, match="loss is nan at step 3") as caught:
        next(pretrain(model, optimizer, shards, CONFIG, start=2, folder=tmp_path))
    assert "checkpoint.safetensors" in caught.value.cure and "offending_batch.json" in caught.value.what
    saved = json.loads((tmp_path / "offending_batch.json").read_text())
    assert saved == shards.batch(2, CONFIG.rows).tolist()
    assert optimizer.version == 0


@pytest.mark.parametrize("bad", [math.nan, 1e6])
def test_a_bad_gradient_stops_before_the_update(tmp_path: Path, shards: PackedShards, bad: float) -> None:
    model, optimizer = fresh()
    model.model.norm.weight.register_hook(lambda grad: torch.full_like(grad, bad))
    before = optimizer.master.clone()
    with pytest.raises(DunwuError, match=r"gradient norm is .* at step 1"):
        next(pretrain(model, optimizer, shards, CONFIG, folder=tmp_path))
    assert (tmp_path / "offending_batch.json").exists()
    assert torch.equal(optimizer.master, before) and optimizer.version == 0


def test_dropout_is_off_outside_training(shards: PackedShards) -> None:
    model, optimizer = fresh()
    ids = torch.from_numpy(shards.batch(0, 2))
    plain = float(next_token_loss(model.eval(), ids).detach())
    next(pretrain(model, optimizer, shards, replace(CONFIG, dropout=0.5, lr=0.0)))  # learns nothing, sets dropout
    assert model.training
    with torch.no_grad():
        noisy = {float(next_token_loss(model, ids)) for _ in range(3)}
    assert len(noisy) == 3
    assert held_out_loss(model, shards, 2, 1) == pytest.approx(plain, abs=1e-6)
    assert held_out_loss(model, shards, 2, 1) == held_out_loss(model, shards, 2, 1)
    assert model.training  # as it was found
    assert float(next_token_loss(model.eval(), ids).detach()) == plain


def test_dropout_scales_what_it_keeps() -> None:
    """A quarter of a branch is zero, the rest is larger by 1 / 0.75, so that its mean stays."""
    model, _ = fresh()
    block = model.model.layers[0]
    assert isinstance(block, Block)
    model.set_dropout(0.25)
    torch.manual_seed(0)
    branch = torch.ones(500, 3, 200)
    dropped = block.train()._drop(branch)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropped[:, 0], dropped[:, 2])  # one mask for a row's tokens,
    assert not torch.equal(dropped[0], dropped[1])  # another for another row
    assert torch.equal(block.eval()._drop(branch), branch)


def text_folder(tmp_path: Path, tokenizer: Tokenizer, documents: list[str]) -> TokenFolder:
    writer = ShardWriter(tmp_path / "text", tokenizer.vocab_size, tokenizer.end_id, shard_tokens=23)
    writer.add([tokenizer.encode(document, allow_special=False) for document in documents])
    writer.close()
    return TokenFolder(tmp_path / "text")


@pytest.mark.parametrize("context", [4, 8, 13, 400])
@pytest.mark.parametrize("rows", [1, 5])
def test_bits_per_byte_by_hand(tmp_path: Path, context: int, rows: int) -> None:
    """Every token alone through the model, from the context its window gives it."""
    documents = ["to be or not to be", "等等，不对 <|endoftext|> é", "", "that is the question\n" * 3]
    tokenizer = train_from_texts(documents, 290)
    model = Transformer(replace(SHAPE, vocab_size=tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    text = text_folder(tmp_path, tokenizer, documents)
    ids = text.read(0, text.tokens).tolist()
    nats, counted, done = 0.0, 0, 0
    ends = [len(ids)] if context >= len(ids) else [*range(context, len(ids), context // 4), len(ids)]
    with torch.no_grad():
        for end in ends:
            before = [tokenizer.end_id, *ids]  # before[i] stands before ids[i]
            for place in range(done, end):
                seen = before[max(0, end - context) : place + 1]
                assert len(seen) >= min(place + 1, context - context // 4)
                if ids[place] != tokenizer.end_id:
                    logits = model.eval()(torch.tensor([seen]))[0, -1]
                    nats -= float(torch.log_softmax(logits, -1)[ids[place]])
                    counted += 1
            done = end
    found = held_out_text(model.train(), text, token_bytes(tokenizer), tokenizer.end_id, context, rows=rows)
    size = len("".join(documents).encode())
    assert (found.tokens, found.bytes) == (counted, size)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found.loss == pytest.approx(nats / counted, rel=1e-5)
    assert model.training


def test_a_limit_counts_the_first_tokens(tmp_path: Path) -> None:
    tokenizer = train_from_texts(["abc " * 30], 290)
    model = Transformer(replace(SHAPE, vocab_size=tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    text = text_folder(tmp_path, tokenizer, ["abc " * 30])
    measure: Callable[..., HeldOutText] = held_out_text
    part = measure(model, text, token_bytes(tokenizer), tokenizer.end_id, 8, limit=19)
    whole = measure(model, text, token_bytes(tokenizer), tokenizer.end_id, 8, limit=10_000)
    assert part.tokens == 19
    assert whole == measure(model, text, token_bytes(tokenizer), tokenizer.end_id, 8)
    assert part.bytes < whole.bytes == 120


def test_a_model_that_knows_nothing_pays_for_its_vocabulary(tmp_path: Path) -> None:
    """Equal logits: log2(V) bits a token, whatever the text."""
    tokenizer = train_from_texts(["hello"], 290)
    model = Transformer(replace(SHAPE, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    text = text_folder(tmp_path, tokenizer, ["xyz" * 50])  # no merges: a token a byte
    found = held_out_text(model, text, token_bytes(tokenizer), tokenizer.end_id, 16)
    assert found.bits_per_byte == pytest.approx(math.log2(tokenizer.vocab_size), rel=1e-6)
