"""The study of reward models at toy size: the same rows each time, figures by hand, and a whole run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import run_recipe, save_folder, tiny_model, undocumented

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.recipes import rm_study
from dunwu.recipes.rlhf_config import DemonstrationConfig
from dunwu.recipes.rm_cases import measured
from dunwu.recipes.rm_study_config import RM_STUDY_PRESETS, CrowdConfig, RmStudyConfig
from dunwu.train.config import SftConfig
from dunwu.train.ensemble import Ensemble
from dunwu.train.reward_model import Meaning
from dunwu.train.rm_config import RmConfig
from dunwu.types import ChatExample, Message, Preference, Ranking, UsageError
from dunwu.world.general import pairs

TINY = RmStudyConfig(
    replies=240, batch=8, test=60, members=2, held_out_every=20, save_every=20, device="cpu",
    rm=RmConfig(length_balance=False, held_out=0.1, warmup=2), demonstrations=DemonstrationConfig(rows=60),
    sft=SftConfig(epochs=1, context=256, batch_tokens=2048, warmup=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    said = [message.content for messages, a, b in pairs(0, 40) for message in (*messages, a, b)]
    return train_from_texts(["user assistant", *said], 400)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, encoder: Tokenizer) -> Path:
    return save_folder(tmp_path_factory.mktemp("base"), tiny_model(encoder), encoder)


def test_every_arm_reads_as_many_replies(start: Path) -> None:
    crowd = rm_study.labelers(TINY, seed=0)
    for name, settings in TINY.settings().items():
        rows = [source.row for source in rm_study.labelled(crowd, settings, TINY)[0]]
        sizes = [2 if isinstance(r, Preference) else len(r.replies) if isinstance(r, Ranking) else 1 for r in rows]
        assert 0.95 * TINY.replies < sum(sizes) <= TINY.replies, name  # some requests have fewer kinds of reply
        assert settings.rows * max(sizes) == TINY.batch and settings.sees in ("summary", "whole")
        assert isinstance(rows[0], ChatExample) == (name == "labels")
        settings.validate()


class Oracle:
    """Scores what the crowd believes of a reply."""

    meaning = Meaning("pairwise", "summary")

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        return [self.values[talk[-1].content] for talk in conversations]

    def normalised(self, scores: Sequence[float]) -> list[float]:
        return list(scores)


def test_the_truth_reaches_bayes(encoder: Tokenizer) -> None:
    crowd = rm_study.labelers(TINY, seed=0)
    test = list(crowd.pairs(400, "test"))
    chances = [crowd.chance(pair.meta["truth"], [pair.chosen.content, pair.rejected.content]) for pair in test]
    # One conversation's utilities: a text that answers two requests is worth different things.
    texts = [
        (pair, {pair.chosen.content: pair.meta["truth"][0], pair.rejected.content: pair.meta["truth"][1]})
        for pair in test
    ]
    found = [measured(Ensemble([Oracle(v)]), encoder, [pair], [p]) for (pair, v), p in zip(texts, chances)]
    expected = sum(figures["expected_accuracy"] for figures in found) / 400
    assert expected == pytest.approx(rm_study.bayes_accuracy(chances))
    assert all((figures["agreement"]["agreement"] or {"value": 1.0})["value"] == 1.0 for figures in found)
    both = measured(Ensemble([Oracle(texts[0][1])] * 2), encoder, test[:1], chances[:1])
    assert both["of_bayes"]["value"] == pytest.approx(1.0) and both["of_bayes"]["low"] < 0.5
    assert set(both["disagreement"].values()) <= {0.0, None}


def test_a_whole_study(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_recipe("rm-study", tmp_path, replace(TINY, base=str(start)))
    evidence = json.loads((run.dir / "evidence.json").read_text())
    found = evidence["reward_models"]
    assert found == json.loads((run.dir / rm_study.FILE).read_text())
    assert [row["arm"] for row in found["rows"]] == [
        "pairs", "margin", "rankings", "plackett-luce", "labels", "ensemble, mean", "ensemble, worst",
        "ensemble, uncertainty", "likelihood",
    ]  # fmt: skip
    assert 0.7 < found["ceiling"]["bayes_accuracy"] < 0.95 and found["labels"]["replies"] == 60
    assert all(0 < row["expected_accuracy"] < 1 and row["settings"]["kind"] for row in found["rows"])
    assert found["rows"][-2]["disagreement"]["right"] > 0
    assert len(evidence["verdicts"]) == 19 and all(set(v) == {"claim", "holds", "figure"} for v in evidence["verdicts"])
    said = capsys.readouterr().out
    assert "Bayes" in said and "ensemble, worst" in said
    assert undocumented(run.dir / "metrics.jsonl") == set()
    less = run_recipe("rm-study", tmp_path, replace(TINY, base=str(start), arms=("rankings",)), "less")
    assert json.loads((less.dir / "stages" / "rm-rankings.json").read_text())["status"] == "reused"
    assert "labels" not in json.loads((less.dir / rm_study.FILE).read_text())


def test_settings_that_cannot_work() -> None:
    good = TINY
    good.validate()
    for change in ({"arms": ()}, {"test": 0}, {"rm": RmConfig(centre="best")}, {"rm": RmConfig(context=4096)}, {"ranked": 2}, {"members": 1}, {"replies": 100}, {"arms": ("pears",)},
                   {"crowd": CrowdConfig(labelers=0)}, {"crowd": CrowdConfig(temperature=-1.0)}):  # fmt: skip
        with pytest.raises(UsageError):
            replace(good, **change).validate()  # type: ignore[arg-type]
    for preset in RM_STUDY_PRESETS.values():
        preset.validate()
