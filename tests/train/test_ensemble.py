"""Reward models as one: by hand, in place of a scorer, and as folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.train.ensemble import Ensemble, combined, member_folders, member_name
from dunwu.train.preference import DISAGREEMENT, HELPFUL, SAFETY, PreferenceTask
from dunwu.train.reward_model import Meaning, RewardModel, Scorer, calibrated, save_reward_model
from dunwu.types import Message, Problem, UsageError, Verdict

ASKED = Message("user", "hello there")
TALKS = [[ASKED, Message("assistant", text)] for text in ("hello", "my friend", "there there")]


class Fixed:
    """A scorer that says what it was told to."""

    def __init__(self, scores: Sequence[float], meaning: Meaning) -> None:
        self.scores, self.meaning, self.calls = list(scores), meaning, 0

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        self.calls += 1
        return self.scores[: len(conversations)]

    def normalised(self, scores: Sequence[float]) -> list[float]:
        return [self.meaning.normal(score) for score in scores]


def members() -> list[Fixed]:
    """Normalised: (1, -1, 0), (3, -1, 1), (2, -1, 5)."""
    return [
        Fixed([3.0, 1.0, 2.0], Meaning("pairwise", "summary", 2.0, 1.0)),
        Fixed([6.0, -2.0, 2.0], Meaning("pairwise", "summary", 0.0, 2.0)),
        Fixed([7.0, -2.0, 16.0], Meaning("pairwise", "summary", 1.0, 3.0)),
    ]


def test_combinations_by_hand() -> None:
    # variances 2/3, 0 and 14/3; the scale is the mean standard deviation, 2
    expected = {
        "mean": [2.0, -1.0, 2.0],
        "worst": [1.0, -1.0, 0.0],
        "uncertainty": [2 - 0.5 * 2 / 3, -1.0, 2 - 0.5 * 14 / 3],
    }
    for combine, values in expected.items():
        ensemble = Ensemble(members(), combine, penalty=0.5)  # type: ignore[arg-type]
        scores = ensemble.score(TALKS)
        assert scores == pytest.approx([2 * value for value in values])
        assert ensemble.normalised(scores) == pytest.approx(values)
        assert ensemble.disagreement(TALKS) == pytest.approx([math.sqrt(2 / 3), 0.0, math.sqrt(14 / 3)])
        assert ensemble.meaning == Meaning("pairwise", "summary", 0.0, 2.0)
    assert Ensemble(members(), "uncertainty", penalty=0.0).score(TALKS) == Ensemble(members()).score(TALKS)
    assert combined([5.0], "uncertainty", 9.0) == 5.0


def test_a_single_member_orders_and_normalises_as_it_does_alone() -> None:
    for combine in ("mean", "worst", "uncertainty"):
        alone = members()[1]
        ensemble = Ensemble([alone], combine)  # type: ignore[arg-type]
        assert ensemble.normalised(ensemble.score(TALKS)) == pytest.approx(alone.normalised(alone.score(TALKS)))
        assert ensemble.disagreement(TALKS) == [0.0, 0.0, 0.0]


def test_pointwise_scores_stay_log_odds() -> None:
    both = [Fixed([math.log(3), 0.0, -1.0], Meaning("pointwise", "whole", 0.5, 2.0)),
            Fixed([-math.log(3), 0.0, 3.0], Meaning("pointwise", "whole", 1.5, 4.0))]  # fmt: skip
    assert Ensemble(both).score(TALKS) == pytest.approx([0.0, 0.0, 1.0])
    assert Ensemble(both, "worst").score(TALKS) == pytest.approx([-math.log(3), 0.0, -1.0])
    assert Ensemble(both).meaning == Meaning("pointwise", "whole", 1.0, 3.0)


def test_wrong_ensembles_are_refused() -> None:
    strange = Fixed([1.0], Meaning("pointwise", "summary"))
    for scorers, combine, penalty in (([], "mean", 1.0), ([*members(), strange], "mean", 1.0), (members(), "best", 1.0),
                                      (members(), "mean", -1.0)):  # fmt: skip
        with pytest.raises(UsageError):
            Ensemble(scorers, combine, penalty)  # type: ignore[arg-type]


class Truth:
    """A task whose verdict knows the truth."""

    name = "general"

    def score(self, problem: Problem, completion: str) -> Verdict:
        return Verdict({"helpful": 0.9}, 0.9)


def test_a_preference_task_takes_it_and_records_the_disagreement() -> None:
    likes = Ensemble(members(), "worst")
    safe = Ensemble(
        [Fixed([math.log(3), 0.0], Meaning("pointwise")), Fixed([math.log(3), 2.0], Meaning("pointwise"))], "worst"
    )
    task = PreferenceTask(Truth(), likes, safe)  # type: ignore[arg-type]
    problem = Problem("general", "g", {}, "hello there")
    first, second = task.score_all([problem] * 2, ["hello", "my friend"])
    assert first.rewards[HELPFUL] == pytest.approx(1.0) and first.rewards[SAFETY] == pytest.approx(0.75)
    assert first.rewards[DISAGREEMENT] == pytest.approx(math.sqrt(2 / 3))
    assert first.reward == pytest.approx(1.75) and first.rewards["truth/helpful"] == 0.9  # neither counts
    assert second.rewards[HELPFUL] == pytest.approx(-1.0) and second.rewards[DISAGREEMENT] == 0.0
    assert all(scorer.calls == 1 for scorer in likes.scorers)  # type: ignore[attr-defined]


# ---- folders


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["hello there, my friend. user assistant"] * 20, 280)


def save(folder: Path, seed: int, tokenizer: Tokenizer) -> Scorer:
    model = RewardModel(ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    meaning = Meaning("pairwise", "summary", float(seed), 1.0 + seed)
    save_reward_model(model, folder, tokenizer, meaning)
    return Scorer(model.eval(), tokenizer, meaning)


def test_members_are_found_beside_the_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    scorers = [save(tmp_path / member_name(n), n, tokenizer) for n in range(3)]
    save(tmp_path / "model-7", 7, tokenizer)  # not the next one
    expected = Ensemble(scorers).score(TALKS)
    for folder in (tmp_path, tmp_path / "model", str(tmp_path / "model")):
        loaded = Ensemble.load(folder)
        assert loaded.score(TALKS) == pytest.approx(expected, abs=1e-5) and len(loaded.scorers) == 3
    assert len(set(expected)) == 3
    # elsewhere a name that ends in -1 says nothing
    save(tmp_path / "mine", 1, tokenizer), save(tmp_path / "mine-1", 2, tokenizer)
    assert member_folders(tmp_path / "mine") == [tmp_path / "mine"]
    assert Ensemble.load(tmp_path / "mine", combine="worst").scorers[0].meaning.mean == 1.0


def test_the_best_replies_can_be_the_zero() -> None:
    meaning: Any = calibrated(Meaning(), [1.0, 3.0, 5.0], best=[5.0, 3.0])
    assert meaning == replace(Meaning(), mean=4.0, std=pytest.approx(math.sqrt(8 / 3)))
    assert meaning.normal(4.0) == 0.0
