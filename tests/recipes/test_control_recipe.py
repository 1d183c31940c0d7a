"""The study of control systems at toy size: arms, curves, verdicts, pictures; killed and gone on with."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Killed, run_recipe, stage, status, undocumented

from dunwu.eval.report import write_report
from dunwu.log import read_metrics
from dunwu.recipes import control
from dunwu.recipes.control_config import CONTROL_PRESETS, ControlRunConfig, settings
from dunwu.types import UsageError

SMALL = replace(
    CONTROL_PRESETS["tiny"],
    systems=("pendulum", "lqr"),
    algorithms=("ppo", "grpo"),
    group_sizes=(4,),
    workers=1,
    budget=0.01,
)


def results(run: Any) -> list[bytes]:
    """What every arm left, as it lies on the disk."""
    names = sorted(file.stem for file in (run.dir / "stages").glob("*.json"))
    return [(stage(run, name).path / control.RESULT).read_bytes() for name in names]


def test_the_study_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_recipe("control", tmp_path, SMALL)
    found = json.loads((run.dir / control.FILE).read_text())
    assert [arm["name"] for arm in found["arms"]] == [arm.name for arm in SMALL.arms()]
    assert all(len(arm["curve"]) == 4 and len(arm["each"]) == 2 for arm in found["arms"])
    assert all(arm["final"]["value"] >= 1 for arm in found["arms"] if arm["system"].startswith("lqr"))
    assert {row["variant"] for row in found["critic"]} == {"grpo"} and found["verdicts"]
    lines = [line for line in read_metrics(run.dir) if line["stage"] == "pendulum-ppo"]
    assert [line["step"] for line in lines] == [steps for steps, *_ in found["arms"][0]["curve"][1:]]
    assert undocumented(run.dir / "metrics.jsonl") == set()
    page = write_report(run.dir).read_text(encoding="utf-8")
    assert "Who needs a critic" in page and "Learning curves" in page and "held-out score" not in page
    assert (run.dir / "control-horizon.svg").read_text().startswith("<svg")
    shown = capsys.readouterr().out
    assert "Pendulum-v1" in shown and found["sentence"] in shown


def test_gymnasiums_own_systems_judge_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium", reason="the extra [control] is not installed")
    config = replace(SMALL, systems=("pendulum",), algorithms=("ppo",), final=8)
    played = run_recipe("control", tmp_path, config)
    arm = json.loads((played.dir / control.FILE).read_text())["arms"][0]
    # The same system and policies, from other start states: about the same return.
    assert arm["gym"]["value"] == pytest.approx(arm["final"]["value"], rel=0.3)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    without = run_recipe("control", tmp_path, config, name="without")
    record = json.loads((without.dir / control.FILE).read_text())
    assert record["gymnasium"] is None and record["arms"][0]["gym"] is None
    assert record["arms"][0]["final"] == arm["final"] and status(without, "pendulum-ppo") == "reused"
    assert "gymnasium is not installed" in (without.dir / "evidence.json").read_text()


def test_a_killed_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, systems=("lqr",), algorithms=("grpo",))
    whole = run_recipe("control", tmp_path, config, name="whole", store="one")
    build, made = control._arm, []

    def dies(*args: Any) -> Any:
        if len(made) == 2:
            raise Killed
        made.append(build(*args))
        return made[-1]

    monkeypatch.setattr(control, "_arm", dies)
    with pytest.raises(Killed):
        run_recipe("control", tmp_path, config, store="two")
    monkeypatch.setattr(control, "_arm", build)
    resumed = run_recipe("control", tmp_path, replace(config, workers=1), store="two")
    assert results(resumed) == results(whole)


def test_presets_and_settings() -> None:
    config = ControlRunConfig()
    config.validate()
    arms = list(config.arms())
    assert len({arm.name for arm in arms}) == len(arms) and config.seeds >= 10
    for arm in arms:
        arm.config.validate()
        assert not arm.swept or arm.config.episodes == 64
    same = {settings(f"lqr-{horizon}", "grpo").lr for horizon in config.horizons}
    assert len(same) == 1 and settings("lqr-20", "grpo").hidden == ()
    trial = config.trial(arms[0], 0)
    assert len(set(trial.seeds)) == config.seeds and trial.seeds == config.trial(arms[-1], 0).seeds


def test_settings_that_cannot_work_are_told() -> None:
    for change, said in (
        ({"systems": ("cartpol",)}, "no system 'cartpol'"),
        ({"algorithms": ()}, "algorithms are"),
        ({"group_sizes": (5,)}, "groups of 5 do not divide 64"),
        ({"horizons": (1,)}, "horizons are"),
        ({"seeds": 0}, "seeds is 0"),
        ({"budget": 0.0}, "budget 0.0"),
    ):
        with pytest.raises(UsageError, match=said):
            replace(SMALL, **change).validate()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no settings for ppo on lqr"):
        settings("lqr", "ppo")
