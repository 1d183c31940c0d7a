"""Reward models: transformers as the oracle, scores by position, losses by hand, exact resumption."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from dunwu.data.chat import encode_conversation
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.train.optim import MasterAdamW
from dunwu.train.reward_model import (
    MEANING,
    Meaning,
    RewardModel,
    Scorer,
    load_reward_model,
    probability,
    save_reward_model,
    score_ids,
)
from dunwu.train.rm import rm_steps, rows_of_step, train_rm
from dunwu.train.rm_config import RmConfig
from dunwu.train.rm_losses import margin, margin_loss
from dunwu.train.rm_rows import Row, balance_lengths, held_out_rows, label_of, label_row, pair_row
from dunwu.types import ChatExample, DunwuError, Message, Preference, UsageError

SMALL = ModelConfig(vocab_size=320, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["hello there, my friend. 你好，朋友。 user assistant"] * 20, 290)


def language_model(config: ModelConfig = SMALL, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # zero biases and unit norms would hide a missing one; larger weights spread the scores
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
            p.add_(noise * 0.1)
    return model


def reward_model(seed: int = 0) -> RewardModel:
    return RewardModel.from_model(language_model(), seed)


def random_rows(count: int, seed: int = 0, pairs: bool = True) -> list[Row]:
    """Good replies hold the token 7, bad ones the token 8; the rest is noise of any length."""
    dice = Random(seed)

    def text(mark: int) -> tuple[int, ...]:
        noise = [dice.randrange(20, 60) for _ in range(dice.randrange(2, 9))]
        noise.insert(dice.randrange(len(noise)), mark)
        return tuple(noise)

    if pairs:
        return [Row(text(7), text(8)) for _ in range(count)]
    return [Row(text(7), None) if dice.random() < 0.5 else Row(None, text(8)) for _ in range(count)]


# ---- the model


def test_scores_equal_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    model = reward_model().eval()
    save_reward_model(model, tmp_path, tokenizer, Meaning())
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "Qwen2ForSequenceClassification" and theirs.config.num_labels == 1
    texts = [[5, 9, 11, 40, 41], [30, 31], [17] * 9]
    width = max(map(len, texts))
    padded = torch.tensor([text + [tokenizer.end_id] * (width - len(text)) for text in texts])
    with torch.no_grad():
        expected = theirs(padded, attention_mask=(padded != tokenizer.end_id).long()).logits[:, 0]
    torch.testing.assert_close(torch.tensor(score_ids(model, texts)), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01  # equal scores would be no test


def test_transformers_reward_model_loads_here(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    config = transformers.Qwen2Config(
        vocab_size=80, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
        intermediate_size=64, num_labels=1, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.Qwen2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    model, meaning = load_reward_model(tmp_path)
    assert meaning == Meaning()  # nothing is known of what its scores mean
    ids = torch.arange(1, 41).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(score_ids(model, ids.tolist())), theirs(ids).logits[:, 0], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("tied", [True, False])
def test_it_starts_from_the_language_model_and_leaves_it_alone(tied: bool) -> None:
    source = language_model(replace(SMALL, tie_word_embeddings=tied))
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model = RewardModel.from_model(source, seed=1)
    assert not any("lm_head" in name for name in model.tensors())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = source.hidden(ids)[0, -1] @ model.score.weight[0]
        torch.testing.assert_close(model(ids, torch.tensor([11]))[0], expected)
    assert 0 < float(model.score.weight.detach().std()) < 2 * SMALL.initializer_range
    list(train_rm(model, MasterAdamW(model), random_rows(4), RmConfig(rows=4, warmup=0), seed=0))
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    other = RewardModel.from_model(source, seed=2)
    assert not torch.equal(other.score.weight, RewardModel.from_model(source, seed=1).score.weight)


def test_the_last_token_is_found_by_position() -> None:
    """A conversation may end with the id that others take for padding, and what stands behind the end is not seen."""
    model = reward_model().eval()
    texts = [[5, 6, 0, 0], [5, 6, 0], [5, 6]]
    scores = score_ids(model, texts)
    assert len({round(score, 4) for score in scores}) == 3
    alone = [score_ids(model, [text])[0] for text in texts]
    assert scores == pytest.approx(alone, abs=1e-5)
    with torch.no_grad():
        behind = model(torch.tensor([[5, 6, 0, 99, 98], [5, 6, 0, 0, 0]]), torch.tensor([2, 2]))
    assert float(behind[0]) == pytest.approx(float(behind[1]), abs=1e-6) == pytest.approx(scores[1], abs=1e-5)


# ---- scoring


def conversations() -> list[list[Message]]:
    texts = ["hello", "my friend", "你好，朋友。", "there there there there there"]
    asked = Message("user", "hello there")
    return [[asked, Message("assistant", text, "my thought")] for text in texts]


def test_order_padding_batching_and_dropout_do_not_change_a_score(tokenizer: Tokenizer) -> None:
    model = reward_model()
    scorer = Scorer(model, tokenizer, Meaning(view="whole"))
    talks = conversations()
    scores = scorer.score(talks)
    assert scorer.score(talks[::-1]) == pytest.approx(scores[::-1], abs=1e-5)
    assert [scorer.score([talk])[0] for talk in talks] == pytest.approx(scores, abs=1e-5)
    assert Scorer(model, tokenizer, scorer.meaning, micro_tokens=1).score(talks) == pytest.approx(scores, abs=1e-5)
    model.backbone.set_dropout(0.5)
    model.train()
    assert scorer.score(talks) == scores  # exactly: dropout is off
    assert model.training  # and the caller's mode is as it was
    assert scorer.score([]) == []


def test_the_summary_view_does_not_see_the_thinking(tokenizer: Tokenizer) -> None:
    asked = Message("user", "hello")
    one, other = ([asked, Message("assistant", "my friend", thought)] for thought in ("hello hello", "there"))
    bare = [asked, Message("assistant", "my friend")]
    model = reward_model()
    summary, whole = (Scorer(model, tokenizer, Meaning(view=view)) for view in ("summary", "whole"))
    # One by one: beside others, a matrix product may end in another last digit.
    assert len({summary.score([chat])[0] for chat in (one, other, bare)}) == 1
    assert len({round(score, 5) for score in whole.score([one, other, bare])}) == 3
    pair = Preference((asked,), one[1], other[1])
    same = pair_row(tokenizer, pair, "summary")
    assert same.good == same.bad == encode_conversation(tokenizer, bare).ids
    assert pair_row(tokenizer, pair, "whole").good == encode_conversation(tokenizer, one).ids


def test_normalised_and_probability(tokenizer: Tokenizer) -> None:
    scorer = Scorer(reward_model(), tokenizer, Meaning(mean=2.0, std=0.5))
    assert scorer.normalised([2.0, 3.0, 1.75]) == [0.0, 2.0, -0.5]
    assert probability(math.log(3)) == pytest.approx(0.75)
    assert probability(-math.log(3)) == pytest.approx(0.25)
    assert (probability(1e6), probability(-1e6)) == (1.0, 0.0)


# ---- rows


def test_labels() -> None:
    reply = (Message("user", "a"), Message("assistant", "b"))
    assert [label_of(ChatExample(reply, {"safe": label})) for label in (True, False, 1, 0)] == [
        True,
        False,
        True,
        False,
    ]
    assert label_of(ChatExample(reply, {"safe": False, "label": 1})) is False
    for meta in ({}, {"safe": "yes"}, {"safe": None}, {"label": 2}, {"safe": [1]}):
        with pytest.raises(DunwuError, match="label"):
            label_of(ChatExample(reply, meta))


def test_a_labelled_reply_stands_on_the_side_of_its_label(tokenizer: Tokenizer) -> None:
    reply = (Message("user", "hello"), Message("assistant", "there"))
    ids = encode_conversation(tokenizer, reply).ids
    assert label_row(tokenizer, ChatExample(reply, {"safe": True}), "whole") == Row(ids, None)
    assert label_row(tokenizer, ChatExample(reply, {"safe": False}), "whole") == Row(None, ids)


def test_no_conversation_is_on_both_sides() -> None:
    asked = [[Message("user", f"question {n % 40}")] for n in range(200)]
    flags = held_out_rows(asked, 0.1, seed=3)
    sides = {text: {flag for flag, talk in zip(flags, asked) if talk[0].content == text} for text in
             {talk[0].content for talk in asked}}  # fmt: skip
    assert all(len(side) == 1 for side in sides.values())
    assert sum(flags) == 4 * 5  # 4 of 40 conversations with 5 rows each
    assert flags == held_out_rows(asked, 0.1, seed=3) != held_out_rows(asked, 0.1, seed=4)
    shuffled = list(range(200))
    Random(0).shuffle(shuffled)
    assert [flags[n] for n in shuffled] == held_out_rows([asked[n] for n in shuffled], 0.1, seed=3)
    assert sum(held_out_rows(asked, 0.999, seed=0)) < 200  # something is left to train on
    with pytest.raises(DunwuError, match="1 different"):
        held_out_rows([asked[0]] * 5, 0.1, seed=0)


@pytest.mark.parametrize("longer", [True, False])
def test_lengths_are_balanced_and_little_is_lost(longer: bool) -> None:
    dice = Random(5)
    rows = []
    for _ in range(400):
        long, short = dice.randrange(8, 20), dice.randrange(6, 18)
        rows.append(Row((1,) * long, (2,) * short) if longer else Row((1,) * short, (2,) * long))
    kept = balance_lengths(rows, 0.02)

    def means(part: list[Row]) -> tuple[float, float]:
        return sum(len(row.good or ()) for row in part) / len(part), sum(len(row.bad or ()) for row in part) / len(part)

    good, bad = means(kept)
    assert abs(good - bad) <= 0.02 * (good + bad) / 2 < abs(means(rows)[0] - means(rows)[1])
    assert len(kept) > 320 and kept == [row for row in rows if any(row is k for k in kept)]
    assert balance_lengths(kept, 0.02) == kept
    single = [Row((1,) * 50, None)]
    assert balance_lengths(single, 0.0) == single


# ---- training


def test_losses_by_hand() -> None:
    good, bad = torch.tensor([2.0, -1.0], requires_grad=True), torch.tensor([0.5, 1.0])
    loss = margin_loss(margin(good, bad))
    expected = [-math.log(1 / (1 + math.exp(-1.5))), -math.log(1 / (1 + math.exp(2.0)))]
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)
    torch.autograd.backward(loss.sum())
    assert good.grad is not None  # d/dr_good of -log σ(m) is σ(m) - 1
    assert good.grad.tolist() == pytest.approx([1 / (1 + math.exp(-1.5)) - 1, 1 / (1 + math.exp(2.0)) - 1], abs=1e-6)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    scores = torch.tensor([0.3, -2.0])
    for sides, label in (((scores, None), 1.0), ((None, scores), 0.0)):
        wanted = entropy(scores, torch.full((2,), label), reduction="none")
        torch.testing.assert_close(margin_loss(margin(*sides)), wanted)
    with pytest.raises(ValueError, match="neither"):
        margin(None, None)


@pytest.mark.parametrize("pairs", [True, False])
def test_the_gradient_does_not_depend_on_how_the_update_is_cut(pairs: bool) -> None:
    rows = random_rows(9, pairs=pairs)
    found = []
    for tokens, order in ((10_000, 1), (1, 1), (40, -1)):
        model = reward_model()
        optimizer = MasterAdamW(model)
        steps = list(train_rm(model, optimizer, rows[::order], RmConfig(rows=9, micro_tokens=tokens, warmup=0), seed=0))
        found.append((steps[0].metrics, optimizer.first.clone()))
    for metrics, first in found[1:]:
        assert metrics == pytest.approx(found[0][0], abs=1e-5)
        torch.testing.assert_close(first, found[0][1], atol=1e-6, rtol=1e-4)


def test_metrics_of_the_first_update_by_hand() -> None:
    rows = [*random_rows(3), *random_rows(3, pairs=False)]
    model = reward_model()
    margins = []
    for row in rows:
        good, bad = (0.0 if side is None else score_ids(model, [side])[0] for side in (row.good, row.bad))
        margins.append(good - bad)
    config = RmConfig(rows=6, lr=1e-3, warmup=0, schedule="constant")
    (step,) = train_rm(model, MasterAdamW(model), rows, config, seed=0)
    assert step.metrics["rm/margin"] == pytest.approx(sum(margins) / 6, abs=1e-5)
    assert step.metrics["rm/accuracy"] == sum(m > 0 for m in margins) / 6
    assert step.metrics["rm/loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 6, abs=1e-5)
    assert (step.metrics["rm/lr"], step.metrics["rm/epoch"]) == (1e-3, 1.0)


def test_every_row_is_seen_once_an_epoch() -> None:
    rows, config = random_rows(10), RmConfig(rows=4, epochs=2)
    assert rm_steps(rows, config) == 6
    batches = [rows_of_step(rows, config, seed=1, step=step) for step in range(6)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    for epoch in (batches[:3], batches[3:]):
        seen = [row for batch in epoch for row in batch]
        assert sorted(map(rows.index, seen)) == list(range(10))
    assert batches[:3] != batches[3:]
    assert batches[4] == rows_of_step(rows, config, seed=1, step=4) != rows_of_step(rows, config, seed=2, step=4)


@pytest.mark.parametrize("pairs", [True, False])
def test_it_learns_what_is_preferred(pairs: bool) -> None:
    model = reward_model()
    config = RmConfig(rows=16, lr=3e-3, warmup=5)
    for _ in train_rm(model, MasterAdamW(model), random_rows(640, pairs=pairs), config, seed=0):
        pass
    assert not model.training
    unseen = random_rows(100, seed=9)
    good, bad = (score_ids(model, [row.sides[side] for row in unseen]) for side in (0, 1))
    assert sum(g > b for g, b in zip(good, bad)) >= 95
    if not pairs:
        assert sum(g > 0 > b for g, b in zip(good, bad)) >= 90


def test_resumed_training_ends_with_the_same_bits() -> None:
    rows, config = random_rows(22), RmConfig(rows=4, epochs=2, lr=1e-3, warmup=3)
    whole = reward_model()
    optimizer = MasterAdamW(whole)
    saved, metrics = None, []
    for step in train_rm(whole, optimizer, rows, config, seed=0):
        metrics.append(step.metrics)
        if step.n == 5:
            saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert saved is not None and len(metrics) == 12
    again = reward_model(seed=7)  # another head: the checkpoint must overwrite it
    restored = MasterAdamW(again)
    restored.load(saved, 5)
    resumed = [step.metrics for step in train_rm(again, restored, rows, config, seed=0, start=5)]
    assert resumed == metrics[5:]
    ends = [model.state_dict() for model in (whole, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_bad_numbers_stop_the_training(tmp_path: Path) -> None:
    model = reward_model()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(DunwuError, match="loss is nan at step 1; batch saved as"):
        list(train_rm(model, MasterAdamW(model), random_rows(3), RmConfig(), seed=0, folder=tmp_path))
    assert len(json.loads((tmp_path / "offending_batch.json").read_text())) == 6
    with pytest.raises(DunwuError, match="no rows"):
        list(train_rm(model, MasterAdamW(model), [], RmConfig(), seed=0))


@pytest.mark.parametrize(
    "change", [{"rows": 0}, {"epochs": 0}, {"context": 0}, {"micro_tokens": 0}, {"held_out": 0.0}, {"held_out": 1.0},
               {"lr": 0.0}, {"length_tolerance": -0.1}],
)  # fmt: skip
def test_settings_that_cannot_work(change: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        replace(RmConfig(), **change).validate()  # type: ignore[arg-type]


# ---- folders


def test_a_saved_model_is_the_same_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, meaning = reward_model(), Meaning("pointwise", "whole", 0.25, 1.5)
    save_reward_model(model, tmp_path, tokenizer, meaning)
    scorer = Scorer.load(tmp_path)
    assert scorer.meaning == meaning
    assert scorer.score(conversations()) == Scorer(model, tokenizer, meaning).score(conversations())
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["architectures"] == ["Qwen2ForSequenceClassification"] and list(record["id2label"]) == ["0"]


def test_what_is_no_reward_model_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DunwuError, match=r"config.json is missing"):
        load_reward_model(tmp_path)
    save_model(language_model(), tmp_path / "lm", tokenizer.end_id)
    with pytest.raises(DunwuError, match=r"no head score\.weight"):
        load_reward_model(tmp_path / "lm")
    model = reward_model()
    save_reward_model(model, tmp_path / "rm", tokenizer, Meaning())
    for text in ("{", "[]", '{"kind": "pairwise"}', '{"kind": "odd", "view": "whole", "mean": 0, "std": 1}',
                 '{"kind": "pairwise", "view": "whole", "mean": 0, "std": 0}'):  # fmt: skip
        (tmp_path / "rm" / MEANING).write_text(text)
        with pytest.raises(DunwuError, match=MEANING):
            load_reward_model(tmp_path / "rm")
    (tmp_path / "rm" / MEANING).unlink()
    (tmp_path / "rm" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DunwuError, match="is damaged"):
        load_reward_model(tmp_path / "rm")
    model.score = torch.nn.Linear(32, 2, bias=False)
    save_reward_model(model, tmp_path / "two", tokenizer, Meaning())
    with pytest.raises(DunwuError, match=r"its head has shape \(2, 32\)"):
        load_reward_model(tmp_path / "two")
