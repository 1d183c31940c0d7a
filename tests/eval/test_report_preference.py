"""The pages of what was learned from labels: every figure of a report, what is stated against what happens, and all kinds side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dunwu.eval.calibration import ScoredPair, ScoredRanking, pairwise_report, pointwise_report, ranking_report
from dunwu.eval.report import write_report
from dunwu.eval.report_curves import stage_figures
from dunwu.eval.report_preference import (
    preference_section,
    preference_sentence,
    reward_models_section,
    reward_models_sentence,
)
from dunwu.log import Run
from dunwu.store import Store

PAIRS = [ScoredPair(2.0, 0.0, 5, 9, None, (1.0, 0.0)), ScoredPair(0.0, 1.0, 9, 5, None, (0.0, 1.0))]


def test_every_kind_of_report_is_shown_with_its_calibration() -> None:
    pairs = preference_section(pairwise_report(PAIRS))
    assert "0.500" in pairs and "agreement with the truth" in pairs and "<svg" in pairs
    assert "Kendall" not in pairs and "more frequent label" not in pairs
    ranked = preference_section(ranking_report([ScoredRanking([0.2, 0.9, 0.1], [0, 1, 2], [5, 5, 5])]))
    assert "Kendall" in ranked and "agreement with the truth" not in ranked
    labels = preference_section(pointwise_report([2.0, -1.0, 1.0], [True, False, False], [5, 9, 7]))
    assert "accuracy where the label is bad" in labels and "more frequent label" in labels
    assert preference_sentence(pairwise_report(PAIRS)) == "agrees with 50.0% of the held-out labels"


def study() -> dict[str, Any]:
    row = pairwise_report(PAIRS) | {
        "replies": 12345,
        "updates": 7,
        "seconds": 1.5,
        "families": {"facts": 0.75},
        "training_requests": None,
    }
    rows = [
        row | {"arm": "pairs", "of_bayes": {"value": 0.8, "low": 0.7, "high": 0.9}},
        row | {"arm": "rankings", "of_bayes": {"value": 0.9, "low": 0.8, "high": 1.0}},
    ]
    return {"rows": rows, "ceiling": {"pairs": 2, "bayes_accuracy": 0.824, "agreement_of_labelers": 0.749}}


def test_a_study_shows_every_model_and_family() -> None:
    drawn = reward_models_section(study())
    assert all(word in drawn for word in ("rankings", "12,345", "0.824", "facts", "0.75"))
    assert reward_models_sentence(study()) == "up to 0.900 of the best possible accuracy (rankings)"


@pytest.mark.parametrize(("key", "found"), [("preferences", pairwise_report(PAIRS)), ("reward_models", study())])
def test_a_page_of_it_speaks_of_no_reinforcement(tmp_path: Path, key: str, found: dict[str, Any]) -> None:
    run = Run.open(tmp_path / "run", "rm", {}, 0, Store(tmp_path / "store"))
    for step, loss in enumerate((0.7, 0.5, 0.4), 1):
        run.log("rm", step, {"rm/loss": loss, "rm/held_out_loss": loss + 0.1, "rm/epoch": step / 3})
    (run.dir / "evidence.json").write_text(json.dumps({key: found}), "utf-8")
    run.finish("done")
    page = write_report(run.dir).read_text("utf-8")
    assert not any(word in page for word in ("No reinforcement", "No samples", "None in this run", "No held-out"))
    assert ("Training: rm" in page) == (key == "preferences")
    if key == "preferences":
        assert "rm/loss" in page and "held out" in page and "rm/held_out_loss" not in page and "rm/epoch" not in page


def test_a_run_that_only_fine_tuned_says_its_loss(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", "sft", {}, 0, Store(tmp_path / "store"))
    run.log("sft", 0, {"sft/valid_loss": 2.5})
    run.log("sft", 5, {"sft/valid_loss": 1.25, "sft/loss": 1.0})
    run.finish("done")
    page = write_report(run.dir).read_text("utf-8")
    assert "held-out loss from 2.500 to 1.250 nats a token" in page and "Training: sft" in page
    assert "No reinforcement" not in page


def test_a_run_without_reinforcement_keeps_what_it_measured(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", "distill", {}, 0, Store(tmp_path / "store"))
    for step in (1, 2, 3):
        run.log("distill", step, {"distill/reverse_kl": 1 / step, "distill/seconds": 2.0})
        run.log("held-out", step, {"eval/pass@1": step / 10, "eval/length": 20.0 + step})
        run.log("samples", step, {"reject/samples": 5.0})
    run.finish("done")
    page = write_report(run.dir).read_text("utf-8")
    assert "Score and length rise together?" in page and "Training: distill" in page
    assert "reverse_kl" in page and "seconds" not in page.split("Training: distill")[1].split("Configuration")[0]
    assert "samples</" not in page.split("Configuration")[0] and "None in this run" not in page


def test_a_held_out_line_stands_in_its_figures_chart_and_alone_where_there_is_none() -> None:
    steps = [(float(n), n / 4) for n in range(1, 5)]
    flat = [(float(n), 1.0) for n in range(1, 5)]
    drawn = stage_figures(
        {"rm": {"rm/accuracy": flat, "rm/held_out_accuracy": steps, "rm/held_out_margin": steps}}, "rm"
    )
    assert len(drawn) == 2 and "held out" in drawn[0] and "rm/held_out_margin" in drawn[1]
    base = stage_figures({"base": {"pretrain/loss": steps, "pretrain/valid_loss": steps}}, "base")
    assert len(base) == 2 and "pretrain/valid_loss" in base[1]
