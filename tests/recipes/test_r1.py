"""The recipe r1, whole, at a size of seconds: what it leaves, what it reuses, what it survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TESTS, load

from dunwu.eval.report import write_report
from dunwu.log import Run, read_json
from dunwu.recipes import r1
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.store import Store
from dunwu.train.checkpoint import NAME as CHECKPOINT
from dunwu.train.checkpoint import load_checkpoint
from dunwu.types import DunwuError, UsageError

kill_resume = load("kill_resume")
CONFIG: R1Config = kill_resume.short_r1_config()
ROOT = ("tokenizer", "shards", "base")
UNTOUCHED = {*ROOT, "r1-zero", "cold-start", "dev1", "dev2", "dev2-no-language", "student-tiny-base", "student-tiny-rl"}
"""Stages that do not descend from rejection sampling, their measurements apart."""
TRAIN: tuple[str, ...] = ("base", "r1-zero", "dev1", "dev2", "rm-helpful", "rm-safety", "dev3", "r1")
TRAIN += tuple(f"student-tiny-{arm}" for arm in ("base", "sft", "rl", "opd"))
"""Stages that save checkpoints, one of each kind and each model's."""


def tell(home: Path, config: R1Config, name: str = "run") -> Path:
    with Run.open(home / name, "r1", config, 0, Store(home / "store")) as run:
        r1.run(run, config)
    return home / name


def statuses(run: Path) -> dict[str, str]:
    return {file.stem: read_json(file)["status"] for file in (run / "stages").glob("*.json")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("r1")
    tell(home, CONFIG)
    return home


def test_every_stage_is_built_and_measured(home: Path) -> None:
    found = statuses(home / "run")
    wanted = {*UNTOUCHED, "rejection", "dev3", "preferences", "rm-helpful", "rm-safety", "r1", "r1-overoptimised"}
    wanted |= {"student-tiny-sft", "student-tiny-opd", "stage-table"}
    assert found.keys() >= wanted
    assert set(found.values()) == {"done"}
    table = json.loads((home / "run" / "stages.json").read_text("utf-8"))
    assert [m["name"] for m in table["models"]][:6] == ["base", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"]
    lineage = {m["name"]: (m["parent"], m["data"]) for m in table["models"]}
    assert lineage["Dev3"] == ("base", ["rejection"])
    assert lineage["R1"] == ("dev3", ["rm-helpful", "rm-safety"])
    assert len(table["verdicts"]) == 11 and all(v["claim"] and v["figure"] for v in table["verdicts"])
    assert {chat["language"] for chat in table["chats"]} == {"en", "zh"}
    assert {reply["name"] for reply in table["chats"][0]["replies"]} == {m["name"] for m in table["models"]}
    assert [point["step"] for point in table["over_optimisation"]] == [0, 2, 4, 6]
    page = write_report(home / "run").read_text("utf-8")
    assert "Dev3" in page and "<script" not in page


def test_counts_of_rejection_add_up(home: Path) -> None:
    counts = json.loads((home / "run" / "stages.json").read_text("utf-8"))["rejection"]
    assert counts["sampled"] == counts["kept"] + sum(counts["reasons"].values()) == 12


def test_another_knob_of_stage_four_runs_it_and_its_descendants_only(home: Path) -> None:
    other = replace(CONFIG, rejection=replace(CONFIG.rejection, clean=0.4))
    found = statuses(tell(home, other, "other"))
    reused = {name for name, status in found.items() if status == "reused"}
    assert {name for name in found if not name.startswith("measure-")} - reused == {
        "rejection",
        "dev3",
        "preferences",
        "rm-helpful",
        "rm-safety",
        "r1",
        "r1-overoptimised",
        "student-tiny-sft",
        "student-tiny-opd",
        "stage-table",
    }
    assert reused >= UNTOUCHED
    assert reused >= {"measure-dev1", "measure-dev2", "measure-r1-zero", "measure-base"}


def test_a_damaged_artifact_is_named_and_rebuilt_the_same(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = read_json(home / "run" / "stages" / "dev1.json")
    weights = home / "store" / "artifacts" / record["key"] / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    found = statuses(tell(home, CONFIG))
    said = capfd.readouterr().err
    assert record["key"] in said and "checksum" in said
    assert weights.read_bytes() == before
    assert found["dev2"] in ("done", "reused") and "built" not in said.split("dev2:")[1].splitlines()[0]


def test_killed_in_every_stage_it_ends_with_the_same_bytes(home: Path, tmp_path: Path) -> None:
    stages = sorted(statuses(home / "run"), key=lambda s: read_json(home / "run" / "stages" / f"{s}.json")["start"])
    assert set(TRAIN) < set(stages)
    for stage in stages:
        key = read_json(home / "run" / "stages" / f"{stage}.json")["key"]
        for half_way in (True, False) if stage in TRAIN else (False,):
            child = os.fork()
            if child == 0:
                _die_in(stage, key, tmp_path, half_way)
            status = os.waitpid(child, 0)[1]
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (stage, half_way)
            if half_way:
                (left,) = (tmp_path / "store").rglob(CHECKPOINT)
                found = load_checkpoint(left.parent)
                first = CONFIG.pretrain.save_every if stage.endswith("base") else CONFIG.save_every
                assert found is not None and found[1]["step"] == first, stage
    tell(tmp_path, CONFIG)
    assert kill_resume.differences(home, tmp_path) == ([], [])


def _die_in(stage: str, key: str, home: Path, half_way: bool) -> None:
    """Run on in this process until `stage` has saved its first checkpoint (half way), or is about to commit; then die.

    It does not return.
    """
    commit, rename = Store.commit, os.replace

    def last_breath(self: Store, key: str, work: Path, meta: Any) -> Any:
        if meta["stage"] == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(self, key, work, meta)

    def last_save(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name == CHECKPOINT and key in str(target):
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        Store.commit = last_breath  # type: ignore[method-assign]
        if half_way:
            os.replace = last_save  # type: ignore[assignment]
        tell(home, CONFIG)
    finally:
        os._exit(3)


def test_a_given_base_is_used_as_it_is(home: Path, tmp_path: Path) -> None:
    base = read_json(home / "run" / "stages" / "base.json")["key"]
    folder = tmp_path / "given"
    shutil.copytree(home / "store" / "artifacts" / base / "model", folder)
    config = replace(
        CONFIG, base=str(folder), students=replace(CONFIG.students, models=(str(folder),)), ablation_steps=0
    )
    found = statuses(tell(tmp_path, config))
    assert "shards" not in found and found["r1"] == "done" and found["student-given-sft"] == "done"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, base="nowhere"), "no such folder"),
        (replace(CONFIG, preferences=replace(CONFIG.preferences, judge="nowhere")), "no such folder"),
        (replace(CONFIG, tasks=replace(CONFIG.tasks, chinese=2.0)), "tasks.chinese"),
        (replace(CONFIG, final=replace(CONFIG.final, preference_steps=99)), "preference_steps"),
        (replace(CONFIG, students=replace(CONFIG.students, on_policy_from="rl")), "on_policy_from"),
    ],
)
def test_what_cannot_work_is_said_before_anything_begins(tmp_path: Path, config: R1Config, said: str) -> None:
    with pytest.raises((UsageError, DunwuError), match=said):
        tell(tmp_path, config)
    assert statuses(tmp_path / "run") == {}


def test_presets_are_valid() -> None:
    for preset in R1_PRESETS.values():
        preset.validate()


def test_a_base_and_problems_of_ones_own(home: Path, tmp_path: Path) -> None:
    base = read_json(home / "run" / "stages" / "base.json")["key"]
    folder = home / "store" / "artifacts" / base / "model"
    rows = [{"question": f"Tom has {n} apples and buys {n + 1}. How many?", "gold": str(2 * n + 1)} for n in range(80)]
    data = tmp_path / "problems"
    data.mkdir()
    for split, part in (("train", rows[:60]), ("test", rows[60:])):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    own = replace(
        CONFIG,
        base=str(folder),
        tasks=replace(CONFIG.tasks, name="gsm8k", data=str(data)),
        students=replace(CONFIG.students, models=()),
        ablation_steps=0,
    )
    found = statuses(tell(tmp_path, own))
    assert set(found.values()) == {"done"}
    table = json.loads((tmp_path / "run" / "stages.json").read_text("utf-8"))
    assert "reasoning_hard" not in {column["key"] for column in table["columns"]}
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:50]))
    again = statuses(tell(tmp_path, own, "again"))
    assert again["base"] == "reused" and again["r1-zero"] == "done"


def test_a_task_file_of_ones_own(home: Path, tmp_path: Path) -> None:
    base = read_json(home / "run" / "stages" / "base.json")["key"]
    own = replace(
        CONFIG,
        base=str(home / "store" / "artifacts" / base / "model"),
        tasks=replace(CONFIG.tasks, name=str(TESTS.parent / "examples" / "own_task.py")),
        students=replace(CONFIG.students, models=()),
        ablation_steps=0,
    )
    assert set(statuses(tell(tmp_path, own)).values()) == {"done"}


def test_two_runs_at_once_share_one_store(home: Path, tmp_path: Path) -> None:
    children = []
    for name in ("one", "two"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(tmp_path / f"{name}.log", os.O_WRONLY | os.O_CREAT), 2)
                tell(tmp_path, CONFIG, name)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0, [(tmp_path / f"{n}.log").read_text()[-2000:] for n in ("one", "two")]
    one, two = statuses(tmp_path / "one"), statuses(tmp_path / "two")
    assert one.keys() == two.keys() == statuses(home / "run").keys()
    # Every stage was built by exactly one of them.
    assert all({one[stage], two[stage]} == {"done", "reused"} for stage in one)
    for stage in one:
        keys = {read_json(run / "stages" / f"{stage}.json")["key"] for run in (tmp_path / "one", tmp_path / "two")}
        assert len(keys) == 1
        contents = [
            kill_resume._contents(store / "artifacts" / next(iter(keys)))
            for store in (home / "store", tmp_path / "store")
        ]
        assert contents[0] == contents[1], stage
