"""The run folder: killed anywhere and resumed, it has every step once; what a stage logged follows its artifact."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dunwu.log import METRICS, ROLLOUTS, Run, needed_keys, read_metrics, read_rollouts, summarize
from dunwu.store import Artifact, Store
from dunwu.types import Completion, DunwuError, Group, Problem, Rollout, UsageError, Verdict

STEPS = 7


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def open_run(folder: Path, store: Store, **config: Any) -> Run:
    return Run.open(folder, "demo", config or {"n": 1}, 0, store)


def group(step: int) -> Group:
    problem = Problem("countdown", f"c-{step}", {"numbers": [3, 8], "target": 24}, "用 3, 8 …")
    completion = Completion(f"第{step}步\n3*8", (5, 6), (-0.5, -0.25), "stop", seed=step, weight_version=step)
    rollout = Rollout(completion, Verdict({"accuracy": 1.0}, 1.0, answer="3*8"), advantage=0.5)
    return Group(problem, (1, 2), (rollout, rollout))


def log_step(run: Run, step: int) -> None:
    run.log("train", step, {"loss": 1 / (step + 1)})
    run.log_groups("train", step, [group(step), group(step + 100)])


def steps(folder: Path) -> tuple[list[int], list[int]]:
    return [line["step"] for line in read_metrics(folder)], [line["step"] for line in read_rollouts(folder)]


def train(run: Run, tick: Callable[[], None] = lambda: None) -> Callable[[Path], Mapping[str, object]]:
    """A stage as every trainer writes it: resume from the checkpoint, log the step, then save."""

    def build(work: Path) -> Mapping[str, object]:
        checkpoint = work / "checkpoint.json"
        start = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
        for step in range(start, STEPS):
            tick()
            run.log("train", step, {"loss": 1 / (step + 1)})
            tick()
            run.log_groups("train", step, [group(step), group(step + 100)])
            tick()
            if step % 3 == 2:
                (work / "new").write_text(json.dumps({"step": step + 1}))
                (work / "new").replace(checkpoint)
        (work / "model.txt").write_text("weights")
        return {"final_loss": 1 / STEPS}

    return build


def test_what_is_written_is_what_was_logged(tmp_path: Path, store: Store) -> None:
    with open_run(tmp_path / "run", store) as run:
        run.log("train", 0, {"loss": np.float32(0.5), "tokens": 12, "bad": float("nan"), "worse": float("-inf")})
        run.log_groups("train", 0, [group(4)])
        run.log_groups("train", 1, [])
    (line,) = read_metrics(tmp_path / "run")
    assert isinstance(line.pop("time"), float)
    assert line == {"stage": "train", "step": 0, "loss": 0.5, "tokens": 12, "bad": None, "worse": None}
    (record,) = read_rollouts(tmp_path / "run")
    rollout = {
        "completion": "第4步\n3*8",
        "rewards": {"accuracy": 1.0},
        "reward": 1.0,
        "advantage": 0.5,
        "length": 2,
        "status": "ok",
        "reason": None,
        "answer": "3*8",
        "finish_reason": "stop",
        "seed": 4,
        "weight_version": 4,
    }
    assert record == {
        "stage": "train",
        "step": 0,
        "task": "countdown",
        "id": "c-4",
        "problem": {"numbers": [3, 8], "target": 24},
        "prompt": "用 3, 8 …",
        "rollouts": [rollout, rollout],
    }


@pytest.mark.parametrize("name", [METRICS, ROLLOUTS])
def test_a_file_torn_within_its_last_record_is_mended_on_the_next_open(tmp_path: Path, store: Store, name: str) -> None:
    with open_run(tmp_path / "run", store) as run:
        for step in range(2):
            log_step(run, step)
        two = (tmp_path / "run" / name).stat().st_size
        log_step(run, 2)
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    for cut in {*range(two, len(whole), 7), len(whole) - 1}:
        file.write_bytes(whole[:cut])
        before = len(list((read_metrics if name == METRICS else read_rollouts)(tmp_path / "run")))
        assert before == (2 if name == METRICS else 4), "a reader leaves the torn end out"
        with open_run(tmp_path / "run", store) as run:
            assert file.read_bytes() == whole[:two]
            for step in range(3):
                log_step(run, step)
        assert steps(tmp_path / "run") == ([0, 1, 2], [0, 0, 1, 1, 2, 2])


def test_a_damaged_frame_is_never_read(tmp_path: Path, store: Store) -> None:
    with open_run(tmp_path / "run", store) as run:
        sizes = []
        for step in range(3):
            log_step(run, step)
            sizes.append((tmp_path / "run" / ROLLOUTS).stat().st_size)
    data = bytearray((tmp_path / "run" / ROLLOUTS).read_bytes())
    data[(sizes[0] + sizes[1]) // 2] ^= 0x40
    (tmp_path / "run" / ROLLOUTS).write_bytes(data)
    assert steps(tmp_path / "run")[1] == [0, 0]


def test_a_step_is_logged_once_by_a_process_and_once_in_all(tmp_path: Path, store: Store) -> None:
    with open_run(tmp_path / "run", store) as run:
        run.log("train", 0, {"loss": 1.0})
        run.log("eval", 0, {"score": 1.0})
        with pytest.raises(ValueError, match="step 0 of train was already logged"):
            run.log("train", 0, {"accuracy": 0.5})
        with pytest.raises(ValueError, match="reserved"):
            run.log("train", 1, {"step": 3})
    with open_run(tmp_path / "run", store) as run:
        run.log("train", 0, {"loss": 2.0})
        run.log("train", 1, {"loss": 3.0})
    assert [line.get("loss") for line in read_metrics(tmp_path / "run")] == [1.0, None, 3.0]


def without_time(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "time"} for line in read_metrics(folder)]


def test_killed_anywhere_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    calm = Store(tmp_path / "calm-home")
    with open_run(tmp_path / "calm", calm) as run:
        run.stage("train", train(run), {"n": 1})
    expected = without_time(tmp_path / "calm"), (tmp_path / "calm" / ROLLOUTS).read_bytes()
    assert steps(tmp_path / "calm")[0] == list(range(STEPS))

    for first in range(1, 3 * STEPS + 1, 3):
        store, folder = Store(tmp_path / f"home-{first}"), tmp_path / f"run-{first}"
        for kill_at in (first, first % 5 + 2, None):
            child = os.fork()
            if child == 0:
                seen = 0

                def tick(kill_at: int | None = kill_at) -> None:
                    nonlocal seen
                    seen += 1
                    if seen == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

                try:
                    with open_run(folder, store) as run:
                        run.stage("train", train(run, tick), {"n": 1})
                except BaseException:  # noqa: BLE001  (a forked child must not return into pytest)
                    os._exit(1)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert status == signal.SIGKILL if kill_at == first else status in (0, signal.SIGKILL)
        assert status == 0
        assert (without_time(folder), (folder / ROLLOUTS).read_bytes()) == expected
        key = json.loads((folder / "stages" / "train.json").read_text())["key"]
        artifact = store.find(key)
        assert artifact is not None
        assert without_time(artifact.path) == expected[0]


def test_a_reused_artifact_brings_its_record_into_a_fresh_run(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path / "one", store) as run:
        made = run.stage("train", train(run), {"n": 1})
        assert "train: built in" in capsys.readouterr().err
    with open_run(tmp_path / "two", store) as run:
        again = run.stage("train", lambda work: pytest.fail("built twice"), {"n": 1})
        assert f"train: reused {made.key}" in capsys.readouterr().err
    assert again == made
    assert list(read_metrics(tmp_path / "two")) == list(read_metrics(tmp_path / "one"))
    assert (tmp_path / "two" / ROLLOUTS).read_bytes() == (tmp_path / "one" / ROLLOUTS).read_bytes()
    one, two = (json.loads((tmp_path / name / "stages" / "train.json").read_text()) for name in ("one", "two"))
    assert (one["status"], two["status"]) == ("done", "reused")
    assert one["metrics"] == two["metrics"] == {"final_loss": 1 / STEPS}
    assert one["seconds"] == two["seconds"]


def test_a_build_begun_by_another_run_is_finished_without_a_gap(tmp_path: Path, store: Store) -> None:
    ticks = 0

    def stop() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "one", store) as run:
        run.stage("train", train(run, stop), {"n": 1})
    with open_run(tmp_path / "two", store) as run:
        run.stage("train", train(run), {"n": 1})
    assert steps(tmp_path / "two")[0] == list(range(STEPS))
    assert json.loads((tmp_path / "one" / "stages" / "train.json").read_text())["status"] == "interrupted"
    assert json.loads((tmp_path / "one" / "run.json").read_text())["status"] == "interrupted"


def test_a_damaged_artifact_is_rebuilt_and_the_record_has_no_duplicate(tmp_path: Path, store: Store) -> None:
    with open_run(tmp_path / "run", store) as run:
        made = run.stage("train", train(run), {"n": 1})
    (made.path / "model.txt").write_text("weightz")
    with open_run(tmp_path / "run", store) as run:
        again = run.stage("train", train(run), {"n": 1})
    assert (again.path / "model.txt").read_text() == "weights"
    assert steps(tmp_path / "run")[0] == list(range(STEPS))


def test_lineage_names_the_inputs_and_changes_with_them(tmp_path: Path, store: Store) -> None:
    def build(text: str) -> Callable[[Path], None]:
        def write(work: Path) -> None:
            (work / "f").write_text(text)

        return write

    with open_run(tmp_path / "run", store) as run:
        first: Artifact = run.stage("data", build("a"), {"n": 1})
        second = run.stage("train", build("b"), {"lr": 0.1}, [first])
        other = run.stage("tune", build("b"), {"lr": 0.1}, [first], version="2")
        record = json.loads((tmp_path / "run" / "stages" / "train.json").read_text())
    assert record["inputs"] == [first.key]
    assert record["config"] == {"lr": 0.1}
    assert record["key"] == second.key
    assert len({first.key, second.key, other.key}) == 3
    assert not (first.path / METRICS).exists(), "a stage that logs nothing leaves no empty files"
    assert needed_keys(store, tmp_path / "elsewhere") == {first.key, second.key, other.key}
    stages = [stage["stage"] for stage in summarize(tmp_path / "run")["stages"]]
    assert stages == ["data", "train", "tune"]


def test_a_failed_stage_is_on_record(tmp_path: Path, store: Store) -> None:
    def fail(work: Path) -> None:
        raise DunwuError("loss is NaN at step 3")

    with pytest.raises(DunwuError), open_run(tmp_path / "run", store) as run:
        run.stage("train", fail, {})
    record = json.loads((tmp_path / "run" / "stages" / "train.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "DunwuError: loss is NaN at step 3")
    assert summarize(tmp_path / "run")["status"] == "failed"


def test_run_json_says_what_ran_on_what(tmp_path: Path, store: Store) -> None:
    with open_run(tmp_path / "run", store, lr=0.1, inner={"steps": 3}):
        during = json.loads((tmp_path / "run" / "run.json").read_text())
    after = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (during["status"], during["end"]) == ("running", None)
    assert (after["status"], after["recipe"], after["seed"]) == ("done", "demo", 0)
    assert after["config"] == {"lr": 0.1, "inner": {"steps": 3}}
    assert after["start"] <= after["end"]
    assert {"python", "torch", "dunwu", "numpy"} <= after["versions"].keys()
    assert after["machine"]["cores"] >= 1
    assert after["machine"]["memory_gib"] > 0
    with open_run(tmp_path / "run", store, lr=0.1, inner={"steps": 3}):
        again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["start"] == after["start"]
    assert len(again["resumed"]) == 1


def test_another_config_in_the_same_folder_is_refused_by_name(tmp_path: Path, store: Store) -> None:
    open_run(tmp_path / "run", store, lr=0.1, inner={"steps": 3}).finish("done")
    with pytest.raises(UsageError, match=r"inner\.steps 3 there, 4 now \(choose another --out") as caught:
        open_run(tmp_path / "run", store, lr=0.1, inner={"steps": 4})
    assert "lr" not in caught.value.what.split(":", 1)[1]
    with pytest.raises(UsageError, match="seed 0 there, 1 now"):
        Run.open(tmp_path / "run", "demo", {"lr": 0.1, "inner": {"steps": 3}}, 1, store)


def test_a_run_that_failed_at_its_first_stage_leaves_the_folder_to_any_other(tmp_path: Path, store: Store) -> None:
    for closing in ("failed", "interrupted"):
        open_run(tmp_path / "run", store, base="mistyped").finish(closing)
        run = open_run(tmp_path / "run", store, base="")
        run.finish("failed")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"] == {"base": ""} and record["resumed"] == []

    def bad_file(work: Path) -> dict[str, object]:
        raise DunwuError("none of the rows can be used", "mend them")

    with pytest.raises(DunwuError), open_run(tmp_path / "run", store, base="") as run:
        run.stage("data", bad_file, {})
    assert (tmp_path / "run" / "stages" / "data.json").exists()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    open_run(tmp_path / "run", store, base="").finish("failed")
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["start"] == record["start"] and len(again["resumed"]) == len(record["resumed"]) + 1
    open_run(tmp_path / "run", store, base="better").finish("failed")
    assert not (tmp_path / "run" / "stages" / "data.json").exists()
    with open_run(tmp_path / "run", store, base="") as run:
        run.log("train", 1, {"loss": 1.0})
        run.finish("failed")
    with pytest.raises(UsageError, match="base '' there, 'other' now"):
        open_run(tmp_path / "run", store, base="other")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, store: Store) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    with pytest.raises(UsageError, match="no run folder and not empty"):
        open_run(tmp_path / "photos", store)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_two_processes_never_write_one_run_and_a_dead_one_shows_as_stopped(tmp_path: Path, store: Store) -> None:
    run = open_run(tmp_path / "run", store)
    with pytest.raises(DunwuError, match=f"in use by process {os.getpid()}"):
        open_run(tmp_path / "run", store)
    assert summarize(tmp_path / "run")["status"] == "running"
    run.finish("done")
    child = os.fork()
    if child == 0:
        open_run(tmp_path / "run", store)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert summarize(tmp_path / "run")["status"] == "stopped"
    open_run(tmp_path / "run", store).finish("done")
