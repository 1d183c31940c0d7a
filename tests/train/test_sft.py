"""Fine-tuning: one gradient however an update is laid out, one order for a seed, and a resume to the bit."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.data.chat import Encoded
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.train.config import SftConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import batch_of, micro_batches, sft, sft_loss, sft_steps, trainable
from dunwu.types import DunwuError, UsageError

SMALL = ModelConfig(
    vocab_size=40, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48,
    initializer_range=0.2,  # large, so that what a token attends to shows in the loss
)  # fmt: skip
CONFIG = SftConfig(epochs=2, context=64, batch_tokens=200, lr=1e-2, warmup=2)
CPU = torch.device("cpu")


def model() -> Transformer:
    made = Transformer(SMALL)
    made.init_weights(torch.Generator().manual_seed(0))
    return made


def examples(count: int = 30, seed: int = 0) -> list[Encoded]:
    """Conversations of 3 to 60 tokens; the trained stretches have gaps, as with several turns."""
    dice = Random(seed)
    made = []
    for _ in range(count):
        length = dice.randrange(3, 61)
        mask = [int(dice.random() < 0.6) for _ in range(length)]
        mask[0], mask[1 + dice.randrange(length - 1)] = 0, 1
        made.append(Encoded(tuple(dice.randrange(40) for _ in range(length)), tuple(mask)))
    return made


def by_hand(net: Transformer, batch: list[Encoded], norm: str) -> Tensor:
    """The loss, one example at a time, from plain logits."""
    trained = sum(sum(example.loss_mask) for example in batch)
    total = torch.zeros(())
    for example in batch:
        logits = net(torch.tensor([example.ids]))[0, :-1]
        nats = F.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")
        mask = torch.tensor(example.loss_mask[1:], dtype=torch.float32)
        share = trained if norm == "token" else mask.sum() * len(batch)
        total = total + (nats * mask).sum() / share
    return total


@pytest.mark.parametrize("norm", ["token", "sequence"])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("micro_tokens", [1, 130, 10_000])
def test_loss_and_gradient_do_not_depend_on_the_layout(norm: str, packing: bool, micro_tokens: int) -> None:
    batch = examples()
    net, oracle = model(), model()
    config = replace(CONFIG, packing=packing, micro_tokens=micro_tokens, loss_norm=norm)  # type: ignore[arg-type]
    micros = micro_batches(batch, config, CPU)
    assert sum(len(micro.targets_N) for micro in micros) == sum(sum(example.loss_mask) for example in batch)
    assert all(micro.ids_BT.numel() <= max(micro_tokens, 60) for micro in micros)
    loss = sum((micro.loss(net) for micro in micros), torch.zeros(()))
    torch.autograd.backward(loss)
    wanted = by_hand(oracle, batch, norm)
    torch.autograd.backward(wanted)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)
    for (name, mine), other in zip(net.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_packed_texts_that_saw_each_other_would_be_noticed() -> None:
    batch = examples()
    [micro] = micro_batches(batch, CONFIG, CPU)
    assert micro.segments_BT is not None and len(micro.ids_BT) < len(batch) / 1.5
    net = model()
    apart, mixed = (float(m.loss(net).detach()) for m in (micro, replace(micro, segments_BT=None)))
    assert abs(apart - mixed) > 1e-3  # a hundred times what is tolerated above


def test_order_of_rows_does_not_matter() -> None:
    batch = examples()
    losses = [
        sum(float(m.loss(model()).detach()) for m in micro_batches(part, CONFIG, CPU)) for part in (batch, batch[::-1])
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_only_masked_in_tokens_count() -> None:
    """Two tokens of knowledge by hand: the loss is the mean of their two cross-entropies."""
    example = Encoded((5, 6, 7, 8, 9), (0, 0, 1, 1, 0))
    net = model()
    logprobs = torch.log_softmax(net(torch.tensor([[5, 6, 7]]))[0], -1)
    wanted = -(logprobs[1, 7] + logprobs[2, 8]) / 2
    [micro] = micro_batches([example], CONFIG, CPU)
    assert micro.ids_BT.tolist() == [[5, 6, 7]] and micro.segments_BT is None  # what predicts nothing is not computed
    torch.testing.assert_close(micro.loss(net), wanted)
    assert sft_loss(net, [example, Encoded((1, 2), (0, 0))], CONFIG) == pytest.approx(wanted.item(), abs=1e-6)


def test_every_epoch_shows_every_example_once() -> None:
    kept = examples(37)
    steps = sft_steps(kept, CONFIG)
    per_epoch = steps // 2
    tokens = sum(len(example.ids) for example in kept)
    assert per_epoch == math.ceil(tokens / 200)
    batches = [batch_of(kept, CONFIG, 3, step) for step in range(steps)]
    assert all(batches)
    epochs = [[example for batch in part for example in batch] for part in (batches[:per_epoch], batches[per_epoch:])]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(kept)
    assert epochs[0] != epochs[1] != kept and batches[0] != batch_of(kept, CONFIG, 4, 0)


def test_an_update_is_never_empty() -> None:
    few = [Encoded((1,) * 60, (0, *(1,) * 59))] * 3
    config = replace(CONFIG, batch_tokens=1)
    assert sft_steps(few, config) == 6 and all(len(batch_of(few, config, 0, n)) == 1 for n in range(6))


def test_what_cannot_be_trained_is_counted() -> None:
    good = examples(6)
    spoiled = [*good, Encoded((1,) * 65, (1,) * 65), Encoded((1, 2, 3), (1, 0, 0))]
    assert trainable(spoiled, CONFIG) == list(range(6)) and sft_steps(spoiled, CONFIG) == sft_steps(good, CONFIG)
    nets = model(), model()
    runs = [list(sft(net, MasterAdamW(net), part, CONFIG, 0)) for net, part in zip(nets, (spoiled, good))]
    assert {step.metrics["sft/left_out"] for step in runs[0]} == {2.0}
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))
    for hopeless in ([], spoiled[6:]):
        with pytest.raises(DunwuError, match="no example has something to learn within a context of 64"):
            next(sft(model(), MasterAdamW(model()), hopeless, CONFIG, 0))
        with pytest.raises(DunwuError):
            sft_loss(model(), hopeless, CONFIG)


def test_it_learns_and_says_how() -> None:
    data = [Encoded((3, n, 4, n, 5), (0, 0, 0, 1, 1)) for n in range(6, 40)]
    net = model()
    config = replace(CONFIG, epochs=40, lr=3e-2)
    before = sft_loss(net, data, config)
    steps = list(sft(net, MasterAdamW(net, weight_decay=0.0), data, config, 0))
    assert len(steps) == sft_steps(data, config) == steps[-1].n
    assert sft_loss(net, data, config) < before / 4
    first, last = steps[0].metrics, steps[-1].metrics
    assert first["sft/lr"] == pytest.approx(1.5e-2) and last["sft/lr"] == pytest.approx(3e-3)  # a tenth at the end
    assert last["sft/epoch"] == 40 and first["sft/trained_tokens"] == 68 and first["sft/loss"] == pytest.approx(before)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(stop: int) -> None:
    """`stop` 4 is inside the second epoch; dropout is on."""
    data, config = examples(12), replace(CONFIG, dropout=0.1)
    whole, torn = model(), model()
    steps = list(sft(whole, MasterAdamW(whole), data, config, 7))
    assert len(steps) > stop + 1
    optimizer = MasterAdamW(torn)
    for step in sft(torn, optimizer, data, config, 7):
        if step.n == stop:
            break
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    fresh = model()
    optimizer = MasterAdamW(fresh)
    optimizer.load(state, stop)
    rest = list(sft(fresh, optimizer, data, config, 7, start=stop))
    assert [step.metrics["sft/loss"] for step in rest] == [step.metrics["sft/loss"] for step in steps[stop:]]
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters()))


def test_dropout_is_drawn_anew_for_every_update_and_seed() -> None:
    def losses(dropout: float, seed: int) -> list[float]:
        net, config = model(), replace(CONFIG, dropout=dropout, lr=1e-12, epochs=4, warmup=0)
        return [step.metrics["sft/loss"] for step in sft(net, MasterAdamW(net), examples(3)[:1], config, seed)]

    still = losses(0.0, 0)
    assert still == pytest.approx([still[0]] * 4, abs=1e-6)
    drawn = losses(0.5, 0) + losses(0.5, 1)
    assert min(abs(a - b) for n, a in enumerate(drawn) for b in [still[0], *drawn[:n]]) > 1e-5
    assert losses(0.5, 0) == drawn[:4]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_mode_as_it_was_and_drops_nothing_out(training: bool) -> None:
    net = model()
    plain = sft_loss(net, examples(3), CONFIG)
    net.set_dropout(0.5)
    net.train(training)
    assert sft_loss(net, examples(3), CONFIG) == plain and net.training is training


def test_bad_numbers_stop_it(tmp_path: Path) -> None:
    net = model()
    with torch.no_grad():
        net.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DunwuError, match="loss is nan at step 1"):
        next(sft(net, MasterAdamW(net), examples(3), CONFIG, 0, folder=tmp_path))
    assert (tmp_path / "offending_batch.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": -1e-3},
        {"lr": float("nan")},
        {"context": 0},
        {"batch_tokens": 0},
        {"dropout": 1.0},
        {"loss_norm": "prompt"},
    ],
)
def test_settings_that_cannot_work(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(CONFIG, **change).validate()  # type: ignore[arg-type]
