"""The recipe r1-zero, whole, at a size of seconds: what it leaves, what it survives, and what users may give it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TESTS, load

from dunwu.cli import main
from dunwu.eval.report import write_report
from dunwu.log import Run, read_metrics, read_rollouts, summarize
from dunwu.recipes import r1_zero, reinforce, stages
from dunwu.recipes.configs import EvidenceConfig, R1ZeroConfig
from dunwu.recipes.pretraining import MODEL
from dunwu.store import Artifact, Store
from dunwu.train.config import GrpoConfig
from dunwu.types import DunwuError, UsageError
from dunwu.world.knobs import Knobs

kill_resume = load("kill_resume")
CONFIG: R1ZeroConfig = kill_resume.short_config()
STAGES: tuple[str, ...] = kill_resume.STAGES


@dataclass(frozen=True)
class Home:
    """A run folder and its store."""

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def store(self) -> Store:
        return Store(self.path / "store")

    def tell(self, config: R1ZeroConfig = CONFIG, seed: int = 0) -> None:
        """Run the recipe to its end, and report, as `dunwu run` does."""
        with Run.open(self.run, "r1-zero", config, seed, self.store) as run:
            r1_zero.run(run, config)
        write_report(self.run)

    def record(self, stage: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.run / "stages" / f"{stage}.json").read_text())
        return read

    def artifact(self, stage: str) -> Artifact:
        found = self.store.find(self.record(stage)["key"])
        assert found is not None
        return found

    def weights(self, stage: str) -> bytes:
        return (self.artifact(stage).path / MODEL / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A finished run."""
    home = Home(tmp_path_factory.mktemp("done"))
    home.tell()
    return home


# ---- what a run leaves ------------------------------------------------------------------------------


def test_the_story_ends_with_a_report(done: Home) -> None:
    assert [stage["stage"] for stage in summarize(done.run)["stages"]] == list(STAGES)
    assert {stage["status"] for stage in summarize(done.run)["stages"]} == {"done"}
    assert summarize(done.run)["status"] == "done"
    assert "<svg" in (done.run / "report.html").read_text(encoding="utf-8")
    report = json.loads((done.run / "report.json").read_text(encoding="utf-8"))
    evidence = json.loads((done.run / "evidence.json").read_text(encoding="utf-8"))
    assert report["evidence"] == evidence
    assert [point["step"] for point in evidence["checkpoints"]] == stages.checkpoint_steps(CONFIG.grpo.steps)
    assert evidence["checkpoints"][0]["pass@1"]["n"] == CONFIG.evidence.problems
    assert [c["step"] for c in evidence["shown"][0]["completions"]] == [0, 2, 4, 6, 8]
    assert len(evidence["shown"]) == CONFIG.evidence.shown
    assert [point[0] for point in evidence["curve"]] == [0, 3, 6, 8]


def test_metrics_have_every_step_once(done: Home) -> None:
    found: dict[str, list[int]] = {}
    for line in read_metrics(done.run):
        found.setdefault(line["stage"], []).append(line["step"])
    steps = CONFIG.pretrain.steps
    base = sorted({*range(2, steps + 1, 2), *range(9, steps + 1, 9), steps})
    assert found == {"base": base, "r1-zero": list(range(1, 9)), "held-out": [0, 3, 6, 8]}
    groups = list(read_rollouts(done.run))
    assert [group["step"] for group in groups] == sorted([*range(1, 9)] * CONFIG.grpo.problems)
    assert {len(group["rollouts"]) for group in groups} == {CONFIG.grpo.group_size}
    versions = [max(r["weight_version"] for r in group["rollouts"]) for group in groups]
    assert versions == sorted(versions) and versions[0] == 0 < versions[-1]


def test_every_logged_key_is_documented_and_every_documented_one_logged(done: Home) -> None:
    page = load("test_metrics_doc")
    assert page.undocumented(done.run / "metrics.jsonl") == set()
    logged = {key for line in read_metrics(done.run) for key in line}
    wanted = {
        key for key in page.documented_keys() if key.startswith(("grpo/", "pretrain/", "eval/")) and "*" not in key
    }
    others = {"pretrain/bits_per_byte", "pretrain/context", "pretrain/mtp_loss"}  # of recipe pretrain and --arch v3
    steered = {"grpo/importance", "grpo/off_policy_masked", "grpo/kl_coef", "grpo/entropy_coef", "grpo/updates"}
    assert wanted - logged == others | steered  # steered: see test_off_policy, test_stability


def test_reinforcement_changed_the_base_and_the_kept_checkpoints_differ(done: Home) -> None:
    kept = done.artifact("r1-zero").path / "kept"
    weights = [(kept / str(step) / "model.safetensors").read_bytes() for step in (0, 2, 4, 6, 8)]
    assert len(set(weights)) == 5
    assert weights[0] == done.weights("base")
    assert weights[-1] == done.weights("r1-zero")
    last = [line for line in read_metrics(done.run) if line["stage"] == "held-out"][-1]
    assert done.record("r1-zero")["metrics"]["held_out_accuracy"] == last["eval/pass@1"]


def test_the_model_is_a_hugging_face_folder(done: Home) -> None:
    transformers = pytest.importorskip("transformers")
    folder = done.artifact("r1-zero").path / MODEL
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert tokenizer.decode(tokenizer("3+4=7").input_ids) == "3+4=7"


# ---- the same bits ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_seed_another(done: Home, tmp_path: Path) -> None:
    again, other = Home(tmp_path / "again"), Home(tmp_path / "other")
    again.tell()
    assert kill_resume.differences(done.path, again.path) == ([], [])
    other.tell(seed=1)
    assert other.weights("base") != done.weights("base")
    assert other.weights("r1-zero") != done.weights("r1-zero")


def test_runs_that_agree_on_the_base_share_it(done: Home, tmp_path: Path) -> None:
    shutil.copytree(done.path, tmp_path / "copy")
    home = Home(tmp_path / "copy")
    shutil.rmtree(home.run)
    home.tell(replace(CONFIG, base_seed=0, grpo=replace(CONFIG.grpo, steps=1)), seed=5)
    assert home.record("base")["key"] == done.record("base")["key"]
    assert home.record("base")["status"] == "reused"
    assert home.record("r1-zero")["key"] != done.record("r1-zero")["key"]
    copied = [line for line in read_metrics(home.run) if line["stage"] == "base"]
    assert copied == [line for line in read_metrics(done.run) if line["stage"] == "base"]


def test_a_control_changes_the_rewards_and_not_the_base(done: Home, tmp_path: Path) -> None:
    shutil.copytree(done.path, tmp_path / "copy")
    home = Home(tmp_path / "copy")
    shutil.rmtree(home.run)
    home.tell(replace(CONFIG, grpo=replace(CONFIG.grpo, reward="format", steps=1)))
    assert home.record("base")["key"] == done.record("base")["key"]
    first = next(read_rollouts(home.run))["rollouts"]
    assert all(rollout["reward"] == rollout["rewards"]["format"] for rollout in first)


# ---- killed, damaged, interrupted ---------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(400)
def test_killed_at_random_moments_and_resumed_it_ends_with_the_same_bits() -> None:
    command = [sys.executable, str(TESTS / "kill_resume.py"), "--kills", "3", "--per-run", "3", "--seed", "2"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=390)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(ended.stdout)
    assert result["kills"] >= 3
    assert (result["identical"], result["metrics_identical"], result["differences"]) == (True, True, [])


def before_rl(done: Home, folder: Path) -> Home:
    """A copy of the finished run whose reinforcement has still to begin."""
    shutil.copytree(done.path / "store", folder / "store")
    for stage in ("r1-zero", "evidence"):
        shutil.rmtree(folder / "store" / "artifacts" / done.record(stage)["key"])
    return Home(folder)


@pytest.mark.parametrize("last", [1, 3, 5, 6])  # checkpoints come every 2 steps, a new reference after 3 and 6
def test_stopped_at_a_step_it_goes_on_from_its_checkpoint(
    done: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    home = before_rl(done, tmp_path)
    log = Run.log

    def stop(self: Run, stage: str, step: int, metrics: dict[str, float]) -> None:
        log(self, stage, step, metrics)
        if (stage, step) == ("r1-zero", last):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "log", stop)
        home.tell()
    assert home.record("r1-zero")["status"] == "interrupted"
    home.tell()
    assert kill_resume.differences(done.path, home.path) == ([], [])


def test_stopped_after_the_last_checkpoint_it_still_knows_its_result(
    done: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = before_rl(done, tmp_path)
    point = stages._curve_point
    monkeypatch.setattr(stages, "_curve_point", lambda *given: point(*given) + given[-1] / 16)  # at step 8, 1/2

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reinforce, "save_model", lambda model, folder, *_: stop() if folder.name == MODEL else None)
        home.tell()
    monkeypatch.setattr(stages, "_curve_point", stop)  # nothing is left to measure
    with monkeypatch.context() as patch:
        patch.setattr(r1_zero, "gather", lambda *_: stop())
        with pytest.raises(KeyboardInterrupt):
            home.tell()
    assert home.record("r1-zero")["status"] == "done"
    assert home.record("r1-zero")["metrics"]["held_out_accuracy"] == 0.5


@pytest.mark.parametrize("stage", ["base", "r1-zero"])
def test_a_damaged_artifact_is_named_and_built_again(
    done: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    shutil.copytree(done.path, tmp_path / "copy")
    home = Home(tmp_path / "copy")
    key = home.record(stage)["key"]
    file = home.store.home / "artifacts" / key / MODEL / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    home.tell()
    assert f"artifact {key} is damaged (model/model.safetensors has a wrong checksum)" in capsys.readouterr().err
    assert kill_resume.differences(done.path, home.path) == ([], [])


def environment(**more: str) -> dict[str, str]:
    root = str(TESTS.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


SHORT = shlex.split(
    "--preset tiny --vocab-size 300 --tokenizer-pages 50 --world.high 6 --world.target-high 20 "
    "--world.four-operands 0 --task.high 6 --task.target-high 20 --pretrain.tokens 4000 --pretrain.rows 4 "
    "--pretrain.context 64 --pretrain.precision fp32 --grpo.problems 2 --grpo.group-size 4 --grpo.max-tokens 8 "
    "--grpo.reward random --save-every 1 --evidence.problems 4 --evidence.curve-problems 2 "
    "--evidence.pass-k-problems 2 --evidence.pass-k-samples 2 --evidence.four-operands 0 --evidence.shown 1"
)


def test_ctrl_c_is_one_line_and_the_same_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "r1-zero", "--out", str(tmp_path / "run"), *SHORT, "--grpo.steps", "100000"]
    home = str(tmp_path / "store")
    process = subprocess.Popen(
        [sys.executable, "-m", "dunwu", *words],
        env=environment(DUNWU_HOME=home),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    try:
        _wait_for(tmp_path / "run" / "metrics.jsonl", '"r1-zero","step":3', process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "dunwu: interrupted; the same command resumes"
    assert "Traceback" not in errors
    assert summarize(tmp_path / "run")["status"] == "interrupted"
    logged = [line["step"] for line in read_metrics(tmp_path / "run") if line["stage"] == "r1-zero"]

    monkeypatch.setenv("DUNWU_HOME", home)
    monkeypatch.setattr(r1_zero, "gather", _stop)  # far enough: r1-zero itself would go on for hours
    monkeypatch.setattr(stages, "checkpoint_steps", lambda steps: [0])
    monkeypatch.setattr(reinforce, "grpo", _Resumed(reinforce.grpo, after=2))
    assert main(words) == 1
    assert _Resumed.started >= len(logged) - 1 >= 2
    again = [line["step"] for line in read_metrics(tmp_path / "run") if line["stage"] == "r1-zero"]
    assert again == list(range(1, len(again) + 1)) and len(again) >= len(logged)


class _Resumed:
    """`grpo` that says where it started and stops soon."""

    started = -1

    def __init__(self, grpo: Any, after: int) -> None:
        self.grpo, self.after = grpo, after

    def __call__(self, *words: Any) -> Iterator[Any]:
        _Resumed.started = words[6]
        for number, step in enumerate(self.grpo(*words), 1):
            yield step
            if number == self.after:
                raise DunwuError("enough")


def _stop(*_: object) -> None:
    raise DunwuError("enough")


def _wait_for(file: Path, text: str, process: subprocess.Popen[str]) -> None:
    for _ in range(1000):
        if file.exists() and text in file.read_text(encoding="utf-8"):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError(f"{file} never held {text}")


# ---- real input -------------------------------------------------------------------------------------


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, last line on stderr) of `dunwu run r1-zero`, in a run folder of its own."""
    code = main(["run", "r1-zero", "--out", f"runs/{Path(words[-1]).name}", *words])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_a_users_problems_and_a_users_model(done: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    model = tmp_path / "my model"
    shutil.copytree(done.artifact("base").path / MODEL, model)
    data = tmp_path / "题目.jsonl"
    rows = [{"nums": [a, b, 2], "target": a + b - 2} for a in range(1, 9) for b in range(a, 9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    template = tmp_path / "template.txt"
    template.write_text("Question: {question} Answer:", encoding="utf-8")
    out = tmp_path / "run"
    words = ["--out", str(out), *SHORT, "--grpo.steps", "2", "--evidence.problems", "50"]
    words += ["--data", str(data), "--base", str(model), "--prompt-template", str(template)]
    assert main(["run", "r1-zero", *words]) == 0
    assert (out / "report.html").exists()
    assert [stage["stage"] for stage in summarize(out)["stages"]] == ["r1-zero", "evidence"]
    given = {(tuple(sorted(row["nums"])), row["target"]) for row in rows}  # type: ignore[arg-type]
    for group in read_rollouts(out):
        assert (tuple(sorted(group["problem"]["numbers"])), group["problem"]["target"]) in given
        assert group["prompt"].startswith("Question: Use ")
    evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    counted = evidence["checkpoints"][0]["problems"]
    assert 0 < counted < 50  # as many as the file's test split holds, none twice
    assert evidence["measure"].startswith(f"{counted} held-out problems")


@pytest.mark.parametrize(
    ("flag", "content", "code", "said"),
    [
        ("--data", None, 1, "cannot read {path}: No such file or directory"),
        ("--data", "", 1, "{path} holds no problems"),
        ("--data", '{"nums": [3, 7], "target": 10}\n{"nums": "3", "target": 1}\n', 1, "{path}:2: "),
        ("--data", '{"nums": [3, 7], "target": 10}\n', 1, "{path}: none of its problems falls into split"),
        ("--prompt-template", None, 1, "cannot read prompt template {path}"),
        ("--prompt-template", "Hello!", 2, "prompt template {path} does not say where the problem goes"),
        ("--base", None, 2, "no such folder: {path}"),
        ("--base", "a file", 2, "{path} is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_long_begins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    content: str | None,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    got, line = told([flag, str(path)], capsys)
    assert (got, line.startswith("dunwu: " + said.format(path=path))) == (code, True), line
    assert not list((tmp_path / "store" / "artifacts").glob("*"))


def test_bad_model_folders_are_one_line(
    done: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    good = done.artifact("base").path / MODEL

    def harmed(name: str) -> Path:
        shutil.copytree(good, tmp_path / name)
        return tmp_path / name

    empty = tmp_path / "empty"
    empty.mkdir()
    assert told(["--base", str(empty)], capsys)[1].startswith(f"dunwu: {empty} is no model folder")
    (harmed("weightless") / "model.safetensors").unlink()
    assert "model.safetensors" in told(["--base", "weightless"], capsys)[1]
    (harmed("mute") / "tokenizer.json").unlink()
    assert "tokenizer.json" in told(["--base", "mute"], capsys)[1]
    (harmed("torn") / "model.safetensors").write_bytes(b"\x08")
    code, line = told(["--base", "torn"], capsys)
    assert (code, "torn/model.safetensors is damaged" in line) == (1, True), line
    config = json.loads((good / "config.json").read_text())
    (harmed("other") / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert "q_proj.bias' and 5 more are not expected" in told(["--base", "other"], capsys)[1]
    (harmed("misfit") / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "'model.layers.2.self_attn.q_proj.weight' and 11 more are missing" in told(["--base", "misfit"], capsys)[1]


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, save_every=0),
        replace(CONFIG, world=Knobs(chinese=1.5)),
        replace(CONFIG, grpo=GrpoConfig(group_size=1)),
        replace(CONFIG, evidence=EvidenceConfig(problems=0)),
        replace(CONFIG, evidence=EvidenceConfig(curve_every=0)),
        replace(CONFIG, evidence=EvidenceConfig(pass_k_problems=0)),
        replace(CONFIG, pretrain=replace(CONFIG.pretrain, rows=0)),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(config: R1ZeroConfig) -> None:
    with pytest.raises(UsageError):
        config.validate()
