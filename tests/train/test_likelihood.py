"""A language model as a reward model: its score by hand, through the losses, through a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dunwu.data.chat import encode_conversation, encode_prompt
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import model_preset
from dunwu.model.transformer import Transformer
from dunwu.train.dpo_rows import pair_row
from dunwu.train.likelihood import LikelihoodModel, split_reply, turn_of
from dunwu.train.optim import MasterAdamW
from dunwu.train.reward_model import (
    MEANING,
    Meaning,
    Scorer,
    family_scores,
    load_reward_model,
    save_reward_model,
    score_ids,
)
from dunwu.train.rm import train_rm
from dunwu.train.rm_config import RmConfig
from dunwu.train.rm_rows import ranking_row
from dunwu.types import DunwuError, Message, Preference, Ranking, UsageError

ASKED = (Message("user", "say one"), Message("assistant", "one"), Message("user", "say two"))
REPLIES = tuple(Message("assistant", text) for text in ("two", "three and more", "no"))


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    return train_from_texts(["user assistant say one two three and more no"] * 8, 300)


def judge(encoder: Tokenizer, seed: int = 0) -> LikelihoodModel:
    model = Transformer(replace(model_preset("tiny", encoder.vocab_size), initializer_range=0.3))
    model.init_weights(torch.Generator().manual_seed(seed))
    return LikelihoodModel(model, turn_of(encoder), beta=2.0)


def talks(encoder: Tokenizer) -> list[tuple[int, ...]]:
    return [encode_conversation(encoder, [*ASKED, reply]).ids for reply in REPLIES]


@pytest.mark.parametrize("native", [True, False])
def test_the_score_is_beta_times_the_mean_log_probability_of_the_reply(encoder: Tokenizer, native: bool) -> None:
    model = judge(encoder)
    model.backbone.native_allowed = native
    texts, wanted = talks(encoder), []
    for text, reply in zip(texts, REPLIES, strict=True):
        row = pair_row(encoder, Preference(ASKED, reply, Message("assistant", "else"), {}))  # as SimPO is trained
        prompt, learned = row.prompt, row.good or ()
        logprobs = model.backbone(torch.tensor([text])).float().log_softmax(-1)[0]
        said = [logprobs[at - 1, token] for at, token in enumerate(learned, len(prompt))]
        wanted.append(2.0 * sum(p.item() for p in said) / len(said))
    with torch.no_grad():
        assert family_scores(model, [texts]).tolist() == pytest.approx(wanted, abs=2e-5)
        apart = family_scores(model, [[texts[1], encode_conversation(encoder, [ASKED[0], REPLIES[2]]).ids], texts[:1]])
    assert score_ids(model, texts) == pytest.approx(wanted, abs=2e-5)
    assert [float(apart[0]), float(apart[2])] == pytest.approx([wanted[1], wanted[0]], abs=2e-5)


def test_the_last_opening_begins_the_reply(encoder: Tokenizer) -> None:
    text = talks(encoder)[0]
    prompt, reply = split_reply(text, *turn_of(encoder))
    assert prompt == tuple(encode_prompt(encoder, ASKED))
    assert prompt + reply + tuple(encoder.encode("\n")) == text  # what stands behind the turn is no part of it
    assert split_reply(prompt + reply[:-1], *turn_of(encoder)) == (prompt, reply[:-1])  # cut off before its end
    for broken in (prompt, (1, 2, 3), ()):
        with pytest.raises(DunwuError, match="no reply to judge"):
            split_reply(broken, *turn_of(encoder))


def test_rankings_teach_it_an_order_it_did_not_have(encoder: Tokenizer) -> None:
    model = judge(encoder)
    before = score_ids(model, talks(encoder))
    worst_first = sorted(range(3), key=lambda n: before[n])
    row = ranking_row(encoder, Ranking(ASKED, tuple(REPLIES[n] for n in worst_first), (0, 1, 2)), "summary")
    settings = RmConfig(kind="ranking", head="likelihood", epochs=30, rows=2, lr=3e-3, warmup=1)
    steps = list(train_rm(model, MasterAdamW(model), [row, row], settings, seed=0))
    after = score_ids(model, row.sides)
    assert after == sorted(after, reverse=True)
    assert steps[-1].metrics["rm/loss"] < 0.1 < steps[0].metrics["rm/loss"]


def test_its_folder_is_a_language_model_that_says_how_it_judges(encoder: Tokenizer, tmp_path: Path) -> None:
    model = judge(encoder)
    meaning = Meaning("pairwise", "summary", mean=-1.5, std=0.5, head="likelihood", beta=2.0)
    save_reward_model(model, tmp_path, encoder, meaning)
    again, said = load_reward_model(tmp_path)
    assert isinstance(again, LikelihoodModel) and said == meaning
    texts = talks(encoder)
    assert score_ids(again, texts) == score_ids(model, texts)
    assert Scorer.load(tmp_path).score([[*ASKED, reply] for reply in REPLIES]) == score_ids(model, texts)
    other = (tmp_path / MEANING).read_text().replace('"likelihood"', '"horoscope"')
    (tmp_path / MEANING).write_text(other)
    with pytest.raises(DunwuError, match="horoscope"):
        load_reward_model(tmp_path)


def test_labels_of_single_replies_are_refused() -> None:
    RmConfig(kind="ranking", head="likelihood").validate()
    for change in ({"kind": "pointwise", "head": "likelihood"}, {"beta": 0.0}):
        with pytest.raises(UsageError):
            RmConfig(**change).validate()  # type: ignore[arg-type]
