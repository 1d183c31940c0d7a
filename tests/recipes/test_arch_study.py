"""The study of architectures at toy size: its runs, figures and verdicts; `--arch` in the recipes' keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import run_recipe, undocumented

from dunwu.eval.report import write_report
from dunwu.log import read_json
from dunwu.model.hf import load_model
from dunwu.recipes.arch_study import FILE, PLOT
from dunwu.recipes.configs import ARCH_STUDY_PRESETS, ArchStudyConfig, EvidenceConfig
from dunwu.train.config import GrpoConfig, PretrainConfig
from dunwu.types import UsageError

TINY = ARCH_STUDY_PRESETS["tiny"].recipe
SMALL = ArchStudyConfig(
    recipe=replace(
        TINY,
        tokenizer_pages=200,
        pretrain=PretrainConfig(tokens=40_000, rows=8, context=64, warmup=2, log_every=5, eval_every=80, save_every=40),
        grpo=GrpoConfig(steps=2, problems=2, group_size=4, max_tokens=12, warmup=1),
        evidence=EvidenceConfig(4, 4, 2, 2, 2, 2, 1),
    ),
    arch="v3",
    collapse_tokens=10_000,
    settled=10,
)


def test_the_study_lays_architectures_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_recipe("arch-study", tmp_path, SMALL)
    found = json.loads((run.dir / FILE).read_text())
    dense, v3 = found["rows"]
    assert (dense["arch"], v3["arch"]) == ("dense", "v3")
    assert dense["parameters"] == dense["active_parameters"] < v3["parameters"]
    assert abs(v3["active_parameters"] / dense["parameters"] - 1) < 0.03
    assert dense["load"] == [] and [step for step, _ in v3["load"]] == [*range(5, 79, 5), 78]
    assert len(found["verdicts"]) == 4 and len(v3["rl_load"]) == 2
    assert (run.dir / PLOT).read_text().startswith("<svg")
    page = write_report(run.dir).read_text(encoding="utf-8")
    assert "as many weights a token" in page and "held-out score" not in page and "biases left at 0" in page
    assert "v3" in capsys.readouterr().out
    for part in ("dense", "v3", "no-bias"):
        assert undocumented(run.dir / part / "metrics.jsonl") == set()
    keys = [read_json(run.dir / part / "stages" / "base.json")["config"] for part in ("dense", "v3", "no-bias")]
    assert "arch" not in keys[0] and "bias_rate" not in keys[0]["pretrain"]
    assert keys[1]["arch"] == keys[2]["arch"] == "v3" and keys[2]["pretrain"]["bias_rate"] == 0.0
    model = load_model(_model(run.dir / "v3", tmp_path))
    assert model.config.mtp_depth == 1 and any(gate.e_score_correction_bias.any() for gate in model.gates)
    alone = load_model(_model(run.dir / "no-bias", tmp_path))
    assert not any(gate.e_score_correction_bias.any() for gate in alone.gates)


def _model(folder: Path, home: Path) -> Path:
    return home / "store" / "artifacts" / read_json(folder / "stages" / "base.json")["key"] / "model"


def test_settings_that_cannot_work_are_told() -> None:
    with pytest.raises(UsageError, match="mla has no experts"):
        replace(SMALL, arch="mla").validate()
    with pytest.raises(UsageError, match="no architecture 'transformer'"):
        replace(TINY, arch="transformer").validate()
    with pytest.raises(UsageError, match="settled 10 of"):
        replace(SMALL, collapse_tokens=1000).validate()
