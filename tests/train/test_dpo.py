"""Preference training: rows by hand, log-probabilities beside plain softmax, updates that no cut changes, exact resumption."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from dunwu.data.chat import encode_conversation
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.lora import add_lora, disabled
from dunwu.model.lora_config import LoraConfig
from dunwu.model.transformer import Transformer
from dunwu.train.checkpoint import load_checkpoint, save_checkpoint
from dunwu.train.dpo import (
    accumulate,
    check_rows,
    dpo_steps,
    figures,
    implicit_rewards,
    measure,
    rows_of_step,
    train_dpo,
    with_reference,
)
from dunwu.train.dpo_config import DpoConfig, PreferenceLoss
from dunwu.train.dpo_rows import Row, label_row, pair_row, with_others
from dunwu.train.optim import MasterAdamW
from dunwu.train.reply_logprobs import Asked, reply_logprobs
from dunwu.types import ChatExample, DunwuError, Message, Preference

LOSSES: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "kto", "orpo", "simpo")
SMALL = ModelConfig(vocab_size=96, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48)


def language_model(config: ModelConfig = SMALL, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # larger weights spread the probabilities
        for name, p in model.named_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name) + seed)) * 0.1)
    return model.eval()


def random_rows(count: int, seed: int = 0, singles: bool = False) -> list[Row]:
    """Good replies hold the token 7, bad ones the token 8; the rest is noise of any length."""
    dice = Random(seed)

    def text(*marks: int) -> tuple[int, ...]:
        return (*(dice.randrange(20, 90) for _ in range(dice.randrange(1, 8))), *marks)

    rows = [Row(text(3), text(7), text(8, 9)) for _ in range(count)]
    if singles:
        rows = [(row, replace(row, good=None), replace(row, bad=None))[n % 3] for n, row in enumerate(rows)]
    return rows


def ready(model: Transformer, rows: list[Row], config: DpoConfig) -> list[Row]:
    """Rows with all that the loss needs."""
    return with_reference(model, with_others(rows, 0) if config.loss == "kto" else rows, config)


def gradients(model: Transformer) -> Tensor:
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return flat


# ---- rows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["hello there, my friend. user assistant what is it"] * 20, 290)


def test_only_the_last_reply_is_judged(tokenizer: Tokenizer) -> None:
    """Earlier replies belong to the prompt; thinking and the token that ends the turn belong to the reply."""
    asked = (Message("user", "hello"), Message("assistant", "there"), Message("user", "my friend"))
    good, bad = Message("assistant", "hello there", "it is"), Message("assistant", "what")
    row = pair_row(tokenizer, Preference(asked, good, bad))
    for side, reply in ((row.good, good), (row.bad, bad)):
        assert side is not None
        encoded = encode_conversation(tokenizer, [*asked, reply])
        assert encoded.ids[: len(row.prompt + side)] == row.prompt + side
        assert len(row.prompt + side) == len(encoded.ids) - 1  # the newline behind the end is nobody's
        assert side[-1] == tokenizer.backend.token_to_id("<|im_end|>")
        assert sum(encoded.loss_mask) > len(side)  # SFT learns the earlier turn as well
    assert row.length == len(row.prompt) + max(map(len, row.sides))
    labelled = label_row(tokenizer, ChatExample((*asked, bad), {"label": False}))
    assert labelled == Row(row.prompt, None, row.bad)
    with pytest.raises(DunwuError, match="no label"):
        label_row(tokenizer, ChatExample((*asked, bad)))
    with pytest.raises(DunwuError, match="same tokens"):
        pair_row(tokenizer, Preference(asked, bad, bad))


@pytest.mark.parametrize("prompts", [2, 3, 20])
def test_others_answer_another_prompt(prompts: int) -> None:
    """Five rows to each prompt, whose replies begin with the prompt's own number."""
    sides = [((n, 7), (n, 8)) if k else ((n, 7), None) for n in range(prompts) for k in range(5)]
    rows = [Row((90, good[0]), good, bad) for good, bad in sides]
    made = with_others(rows, 5)
    assert [replace(row, others=()) for row in made] == rows
    for row in made:
        assert len(row.others) == len(row.sides)
        assert all(other[0] != row.prompt[-1] for other in row.others)
    assert with_others(rows, 5) == made != with_others(rows, 6)


def test_rows_that_all_ask_the_same_take_the_next_ones_replies() -> None:
    rows = [Row((1,), (n,), None) for n in range(9)]
    others = [row.others[0][0] for row in with_others(rows, 0)]
    assert sorted(others) == list(range(9)) and all(other != n for n, other in enumerate(others))
    assert with_others(rows[:1], 0) == rows[:1]


# ---- log-probabilities


@pytest.mark.parametrize("native", [True, False])
def test_logprobs_are_those_of_plain_softmax(native: bool) -> None:
    model = language_model()
    model.native_allowed = native
    asked: list[Asked] = [((3, 4, 5), [(6, 7), (8,), (6, 9, 10, 11)]), ((12,), [(13, 14, 15)])]
    with torch.no_grad():
        found = reply_logprobs(model, asked)
        expected = []
        for prompt, replies in asked:
            for reply in replies:
                logits = model(torch.tensor([prompt + reply]))[0].double()
                table = torch.log_softmax(logits, -1)
                expected.append(sum(float(table[len(prompt) + n - 1, token]) for n, token in enumerate(reply)))
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


# ---- an update


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("native", [True, False])
def test_no_cut_changes_loss_or_gradient(loss: PreferenceLoss, native: bool) -> None:
    """Micro-batches of one row or of all, rows in any order, trees or padded rows: the same update."""
    config = DpoConfig(loss=loss, beta=0.5)
    model = language_model()
    rows = ready(language_model(seed=1), random_rows(11, singles=loss == "kto"), config)
    whole = accumulate(model, rows, config, z0=0.2)
    expected = gradients(model)
    scale = float(expected.abs().max())
    assert scale > 1e-3
    model.native_allowed = native
    for tokens in (1, 40, 100):
        for order in (rows, rows[::-1], Random(tokens).sample(rows, len(rows))):
            cut = accumulate(model, order, replace(config, micro_tokens=tokens), z0=0.2)
            torch.testing.assert_close(gradients(model), expected, atol=1e-5 * scale, rtol=0)
            assert figures(cut, config) == pytest.approx(figures(whole, config), abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_the_finite_difference_of_the_loss(loss: PreferenceLoss) -> None:
    config = DpoConfig(loss=loss, beta=0.5, micro_tokens=60)
    model = language_model().double()
    rows = ready(language_model(seed=1), random_rows(5, singles=loss == "kto"), config)

    def value() -> float:
        found = figures(accumulate(model, rows, config, z0=0.1), config)["loss"]
        model.zero_grad()
        return found

    accumulate(model, rows, config, z0=0.1)
    dice = torch.Generator().manual_seed(0)
    ways = [torch.randn(p.shape, generator=dice, dtype=torch.float64) for p in model.parameters()]
    slope = sum(float((p.grad * way).sum()) for p, way in zip(model.parameters(), ways) if p.grad is not None)
    values = []
    for step in (1e-5, -2e-5):
        for p, way in zip(model.parameters(), ways):
            p.data.add_(step * way)
        values.append(value())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5) and abs(slope) > 1e-3


def test_the_reference_point_is_the_whole_updates() -> None:
    """z₀ comes from every row's other replies, whatever fits into a forward pass."""
    config = DpoConfig(loss="kto", rows=12)
    rows = [
        replace(row, reference=tuple(v - 1.5 for v in row.reference))
        for row in ready(language_model(), random_rows(12, singles=True), config)
    ]
    found = []
    for tokens in (1, 50, 10_000):
        model = language_model()
        optimizer = MasterAdamW(model)
        optimizer.version = 1  # this reference is not the start
        step = next(train_dpo(model, optimizer, rows, replace(config, micro_tokens=tokens), seed=0))
        found.append(step.metrics["dpo/z0"])
    assert found == pytest.approx([1.5] * 3, abs=1e-4)


def test_figures_by_hand() -> None:
    """Two pairs and a label, under a policy whose log-probabilities are known to differ from the reference's."""
    config = DpoConfig(loss="kto", beta=0.5)
    model = language_model()
    rows = ready(model, [Row((1, 2), (3,), (4, 5)), Row((1, 9), (6, 3), (4,)), Row((7,), None, (8, 3))], config)
    shift = {0: (-1.0, +2.0), 1: (+0.5, -1.5), 2: (-3.0,)}  # log π − log π_ref of the sides
    rows = [
        replace(row, reference=tuple(v - s for v, s in zip(row.reference, shift[n])) + row.reference[len(row.sides) :])
        for n, row in enumerate(rows)
    ]
    found = figures(measure(model, rows, config), config)
    expected = [1 / (1 + math.exp(0.5 * s)) for s in (-1.0, 0.5, -2.0, 1.5, 3.0)]  # 1 − σ(β r) of the good, 1 − σ(−β r)
    assert found["loss"] == pytest.approx(sum(expected) / 5, abs=1e-4)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["margin"] == pytest.approx((-1.5 + 1.0 + 1.5) / 3, abs=1e-4)
    assert found["reward_chosen"] == pytest.approx(0.5 * (-1.0 + 0.5) / 2, abs=1e-4)
    assert found["reward_rejected"] == pytest.approx(0.5 * (2.0 - 1.5 - 3.0) / 3, abs=1e-4)
    logprobs = reply_logprobs(model, [(row.prompt, row.sides) for row in rows]).tolist()
    assert found["logprob_chosen"] == pytest.approx((logprobs[0] + logprobs[2]) / 2, abs=1e-4)
    assert found["ranking"] == pytest.approx(((logprobs[0] > logprobs[1]) + (logprobs[2] > logprobs[3])) / 2)


def test_rows_without_what_the_loss_needs_are_refused() -> None:
    rows = random_rows(3)
    with pytest.raises(ValueError, match="with_reference"):
        check_rows(rows, DpoConfig())
    with pytest.raises(ValueError, match="one side"):
        check_rows([replace(rows[0], bad=None)], DpoConfig(loss="simpo"))
    check_rows(rows, DpoConfig(loss="orpo"))
    model = language_model()
    with pytest.raises(DunwuError, match="no rows"):
        next(train_dpo(model, MasterAdamW(model), [], DpoConfig(), seed=0))


# ---- training


def test_a_reference_that_is_not_the_start_is_refused() -> None:
    model = language_model()
    rows = ready(language_model(seed=1), random_rows(4), DpoConfig())
    with pytest.raises(DunwuError, match="policy and reference disagree"):
        next(train_dpo(model, MasterAdamW(model), rows, DpoConfig(), seed=0))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_what_is_preferred(loss: PreferenceLoss) -> None:
    config = DpoConfig(loss=loss, rows=20, epochs=8, lr=3e-3, warmup=2)
    model = language_model()
    rows, held_out = (ready(model, random_rows(60, seed, loss == "kto"), config) for seed in (0, 1))
    steps = list(train_dpo(model, MasterAdamW(model, weight_decay=0.0), rows, config, seed=0))
    assert [step.n for step in steps] == list(range(1, dpo_steps(rows, config) + 1))
    first, last = steps[0].metrics, steps[-1].metrics
    assert last["dpo/loss"] < first["dpo/loss"] and last["dpo/margin"] > first["dpo/margin"]
    assert ("dpo/z0" in last) == (loss == "kto")
    assert first["dpo/trained_tokens"] == sum(len(s) for row in rows_of_step(rows, config, 0, 0) for s in row.sides)
    judged = figures(measure(model, held_out, config), config)
    assert judged["accuracy"] > 0.9
    if config.referenced:  # the reference is the model at the start, so all begins at 0
        assert first["dpo/margin"] == pytest.approx(0, abs=1e-4)
    if loss == "dpo":
        assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_training_finds_the_optimum_it_should() -> None:
    """Judgements in the proportions of a known Bradley-Terry reward: π of the replies becomes π_ref exp(r / β).

    Three replies of strengths 1, 2 and 4 (r = log of them) to one prompt, and 30 judgements of each pair, so divided.
    """
    beta, strengths, replies = 0.5, (1, 2, 4), ((10, 3), (11, 3), (12, 3))
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    rows = [
        Row((1, 2), replies[a], replies[b])
        for a, b in pairs
        for _ in range(30 * strengths[a] // (strengths[a] + strengths[b]))
    ]
    assert len(rows) == 90
    config = DpoConfig(beta=beta, rows=90, epochs=150, lr=3e-3, warmup=5, micro_tokens=10**6)
    model = language_model(replace(SMALL, num_layers=1))
    rows = ready(model, rows, config)
    asked = [((1, 2), replies)]
    reference = reply_logprobs(model, asked).detach()
    list(train_dpo(model, MasterAdamW(model, weight_decay=0.0), rows, config, seed=0))
    found = reply_logprobs(model, asked).detach() - reference
    expected = torch.tensor(strengths).log() / beta
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), atol=0.02, rtol=0)


def test_dropout_is_off_and_the_mode_is_left_alone() -> None:
    model = language_model()
    model.set_dropout(0.5)
    config = DpoConfig()
    model.train()
    rows = ready(model, random_rows(4), config)
    assert model.training
    assert rows == ready(model, random_rows(4), config)
    measure(model, rows, config)
    assert model.training
    step = next(train_dpo(model, MasterAdamW(model), rows, config, seed=0))
    assert step.metrics["dpo/margin"] == pytest.approx(0, abs=1e-4) and not model.training


def test_adapters_leave_the_reference_as_it_was() -> None:
    config = DpoConfig(rows=8, lr=1e-2, warmup=0)
    model = language_model()
    add_lora(model, LoraConfig(rank=2), torch.Generator().manual_seed(0))
    rows = ready(model, random_rows(16), config)
    list(train_dpo(model, MasterAdamW(model), rows, config, seed=0))
    assert figures(measure(model, rows, config), config)["margin"] > 0.01
    with disabled(model):
        again = ready(model, random_rows(16), config)
    for row, same in zip(rows, again, strict=True):
        assert row.reference == pytest.approx(same.reference, abs=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_training_resumes_to_the_same_bits(tmp_path: Path, loss: PreferenceLoss) -> None:
    config = DpoConfig(loss=loss, rows=6, epochs=2, lr=1e-3, warmup=1, micro_tokens=80)

    def start() -> tuple[Transformer, MasterAdamW, list[Row]]:
        model = language_model()
        rows = ready(model, random_rows(20, singles=loss == "kto"), config)  # before any checkpoint, as the recipe does
        return model, MasterAdamW(model), rows

    model, optimizer, rows = start()
    whole = []
    for step in train_dpo(model, optimizer, rows, config, seed=3):
        whole.append(step)
        if step.n == 5:  # in the second epoch
            save_checkpoint(tmp_path, optimizer.state(), {"step": step.n, "version": optimizer.version})
    other, resumed, rows = start()
    found = load_checkpoint(tmp_path)
    assert found is not None
    resumed.load(found[0], found[1]["version"])
    rest = list(train_dpo(other, resumed, rows, config, seed=3, start=5))
    assert len(whole) == dpo_steps(rows, config) == 8 and len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(optimizer.state().values(), resumed.state().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    timeless = [{k: v for k, v in step.metrics.items() if "second" not in k} for step in (*whole[5:], *rest)]
    assert timeless[:3] == timeless[3:]


def test_every_row_is_seen_once_an_epoch() -> None:
    rows, config = random_rows(23), DpoConfig(rows=5, epochs=2)
    seen = [rows_of_step(rows, config, 1, step) for step in range(dpo_steps(rows, config))]
    for epoch in (seen[:5], seen[5:]):
        assert sorted(map(str, (row for part in epoch for row in part))) == sorted(map(str, rows))
    assert seen[0] != seen[5]


def test_numbers_gone_bad_stop_the_run(tmp_path: Path) -> None:
    config = DpoConfig(loss="simpo")
    model = language_model()
    with torch.no_grad():
        next(model.parameters())[20:] = float("nan")
    with pytest.raises(DunwuError, match="loss is nan at step 1"):
        list(train_dpo(model, MasterAdamW(model), random_rows(4), config, seed=0, folder=tmp_path))
    assert (tmp_path / "offending_batch.json").exists()


def test_rewards_are_per_token_where_the_loss_is() -> None:
    logprobs, reference, lengths = torch.tensor([-6.0]), torch.tensor([-9.0]), torch.tensor([3])
    config = DpoConfig(beta=0.5, length_normalize=True)
    assert float(implicit_rewards(logprobs, reference, lengths, config)) == pytest.approx(0.5)
    p = math.exp(-2.0)
    orpo = implicit_rewards(logprobs, None, lengths, DpoConfig(loss="orpo"))
    assert float(orpo) == pytest.approx(math.log(p / (1 - p)), abs=1e-5)
