"""The study: seeds and controls beside the claim, everything shared built once, verdicts that follow the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import load

from dunwu.log import Run, read_json
from dunwu.recipes import r1_zero_study
from dunwu.recipes.configs import R1ZeroConfig, StudyConfig, control_config
from dunwu.recipes.r1_zero_study import table
from dunwu.store import Store
from dunwu.types import UsageError
from dunwu.world.knobs import Hands, Knobs


def short_config() -> R1ZeroConfig:
    config: R1ZeroConfig = load("kill_resume").short_config()
    return replace(config, grpo=replace(config.grpo, steps=2, reward="rule"))


STUDY = StudyConfig(recipe=short_config(), more_seeds=(1,), controls=("random", "no-search"))


def tell(home: Path, config: StudyConfig = STUDY, seed: int = 0) -> dict[str, Any]:
    with Run.open(home / "study", "r1-zero-study", config, seed, Store(home / "store")) as run:
        r1_zero_study.run(run, config)
    evidence: dict[str, Any] = json.loads((home / "study" / "evidence.json").read_text(encoding="utf-8"))
    return evidence


def test_a_study_is_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = tell(tmp_path)
    folders = [tmp_path / "study" / name for name in ("", "seed-1", "control-random", "control-no-search")]
    keys = {stage: [read_json(f / "stages" / f"{stage}.json")["key"] for f in folders] for stage in ("base", "r1-zero")}
    own, other_seed, coin, searchless = keys["base"]
    assert own == coin and len({own, other_seed, searchless}) == 3
    assert len(set(keys["r1-zero"])) == 4
    assert all(read_json(f / "run.json")["status"] == "done" for f in folders)
    assert all((f / "report.html").exists() for f in folders[1:])  # the study's own comes after it
    assert [line["seed"] for line in evidence["seeds"]] == [0, 1]
    assert [line["name"] for line in evidence["controls"]] == ["random reward", "base without search pages"]
    for folder, line in zip(folders, [*evidence["seeds"], *evidence["controls"]], strict=True):
        points = read_json(folder / "evidence.json")["checkpoints"]
        for end, point in (("base", points[0]), ("result", points[-1])):
            there = line[end]["value"] if isinstance(line[end], dict) else line[end]
            assert there == point["pass@1"]["value"]
    assert table(evidence) in capsys.readouterr().out
    assert tell(tmp_path) == evidence  # every stage is found again
    assert "built in" not in capsys.readouterr().err


def test_verdicts_follow_the_numbers() -> None:
    def run_of(base: float, result: float) -> dict[str, Any]:
        ends = [{"pass@1": {"value": value, "low": value, "high": value, "n": 9}} for value in (base, result)]
        return {"checkpoints": ends, "curve": [[0, base, 3.0], [9, result, 5.0]]}

    found = {0: run_of(0.3, 0.7), 1: run_of(0.4, 0.8)}
    evidence = r1_zero_study._summary(found, {"random": run_of(0.3, 0.34), "format": run_of(0.3, 0.1)})
    assert [verdict["holds"] for verdict in evidence["verdicts"]] == [True, True, True]
    assert [verdict["figure"] for verdict in evidence["verdicts"]] == ["0.350", "0.750", "0.400"]
    coin, form = evidence["controls"]
    assert coin["holds"] is False and "holds" not in form  # 0.04 is more than 0.03; format's drift is only told
    assert r1_zero_study._control("random", run_of(0.3, 0.28))["holds"] is True
    printed = table(evidence)
    assert "seed 1" in printed and "+0.400" in printed and "-0.200" in printed
    weak = r1_zero_study._summary({0: run_of(0.45, 0.6)}, {})
    assert [verdict["holds"] for verdict in weak["verdicts"]] == [False, False, False]


def test_a_control_changes_one_thing() -> None:
    config = replace(STUDY.recipe, world=Knobs(high=6, chinese=0.5))
    for name in ("random", "format"):
        control = control_config(config, name)
        assert control.grpo.reward == name
        assert replace(control, grpo=config.grpo) == config
    searchless = control_config(config, "no-search")
    assert replace(searchless, world=config.world) == config
    hands = (searchless.world.forum_hands, searchless.world.template_hands)
    assert all(hand.search == hand.backward == 0 for hand in hands)
    assert replace(searchless.world, forum_hands=Hands(), template_hands=config.world.template_hands) == config.world


def test_what_makes_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown control 'coin'"):
        replace(STUDY, controls=("coin",)).validate()
    with pytest.raises(UsageError, match="seeds are 1, 1: one is there twice"):
        tell(tmp_path, seed=1)
