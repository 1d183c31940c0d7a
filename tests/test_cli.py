"""The command line as a user meets it: order, exit codes, one line per mistake, clean stdout, no torch for small things."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dunwu import recipes
from dunwu.cli import main
from dunwu.commands import COMMANDS
from dunwu.log import Run
from dunwu.types import DunwuError

ROOT = Path(__file__).parent.parent
ORDER = [
    "doctor",
    "run",
    "recipes",
    "runs",
    "report",
    "eval",
    "score",
    "tasks",
    "peek",
    "tokenizer",
    "data",
    "chat",
    "export",
    "import",
    "bench",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "home"))


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A recipe `demo` whose story a test chooses: `demo.tell = …`."""

    @dataclass(frozen=True)
    class Config:
        steps: int = 3

    module = ModuleType("demo_story")
    module.tell = lambda run, config: run.log("train", 0, {"steps": config.steps})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "demo_story", module)
    presets = {"cpu": Config(), "tiny": Config(1)}
    recipe = recipes.Recipe("demo", "a demo", Config, presets, "demo_story:tell")
    monkeypatch.setitem(recipes.RECIPES, "demo", recipe)
    return module


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=variables, check=False)


def test_help_lists_the_commands_in_order_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert list(dict.fromkeys(listed)) == ORDER
    assert len(listed) == len(COMMANDS)
    assert main([]) == 0
    assert main(["--version"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([*name.split(), "--help"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 0
    assert f"usage: dunwu {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["taks"], "'tasks'"),
        (["rnu", "r1-zero"], "'run'"),
        (["tasks", "sho"], "'dunwu tasks show'"),
        (["tokenizer", "encod"], "'dunwu tokenizer encode'"),
        (["tokenizer"], "tokenizer train"),
        (["score", "--tsk", "countdown"], "--task"),
        (["score", "--task", "countdow"], "'countdown'"),
        (["tasks", "--jsn"], "--json"),
        (["run", "r1-zer"], "'r1-zero'"),
        (["run", "demo", "--stps", "3"], "--steps"),
        (["run", "demo", "--prest", "tiny"], "--preset"),
        (["run", "demo", "--preset", "huge"], "cpu, tiny"),
        (["run", "demo", "--steps", "x"], "--steps"),
        (["run"], "RECIPE"),
        (["eval", "m", "--task", "countdown", "--n", "many"], "--n"),
        (["tasks", "show", "countdown", "--set", "operands"], "NAME=VALUE"),
        (["tasks", "show", "countdown", "--set", "operand=4"], "operands"),
        (["peek", "nowhere", "hi"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["tokenizer", "train", "nowhere.txt", "--vocab-size", "300", "--out", "t"], "nowhere.txt"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_nearest_and_exit_code_2(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], nearest: str
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dunwu: ")
    assert err.count("\n") == 1
    assert nearest in err
    assert not list(Path.cwd().iterdir()), "nothing half done"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DunwuError("loss is NaN at step 7", "lower --grpo.lr"), 1, "loss is NaN at step 7 (lower --grpo.lr)"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
        (OSError(errno.ENOSPC, "No space", "big.bin"), 1, "no space left while writing big.bin (free some space"),
        (OSError(errno.EACCES, "Denied", "x"), 1, "no permission for x (choose a place"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt"), 1, "No such file or directory: x.txt"),
        (RuntimeError("write failed: No space left on device\nat line 3"), 1, "no space left"),
        (ZeroDivisionError("by\nzero"), 1, "ZeroDivisionError: by (unexpected; --debug shows where)"),
    ],
)
def test_a_failure_is_one_line_with_its_exit_code_and_debug_shows_where(
    demo: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def tell(run: Run, config: object) -> None:
        raise error

    demo.tell = tell
    assert main(["run", "demo"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    status = json.loads(Path("runs/demo/run.json").read_text())["status"]
    assert status == ("interrupted" if code == 130 else "failed")
    assert main(["run", "demo", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "folder", "steps"),
    [
        ([], "runs/demo", 3),
        (["--preset", "tiny"], "runs/demo-tiny", 1),
        (["--seed", "2", "--preset", "tiny", "--steps", "9"], "runs/demo-tiny-seed2", 9),
        (["--preset", "cpu", "--out", "here/x"], "here/x", 3),
    ],
)
def test_run_goes_to_its_folder_with_its_config(demo: ModuleType, flags: list[str], folder: str, steps: int) -> None:
    assert main(["run", "demo", *flags]) == 0
    record = json.loads((Path(folder) / "run.json").read_text())
    assert (record["status"], record["config"]) == ("done", {"steps": steps})


def test_another_config_in_the_same_folder_is_wrong_use(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo"]) == 0
    assert main(["run", "demo", "--steps", "4"]) == 2
    assert "steps 3 there, 4 now" in capsys.readouterr().err


def test_runs_and_gc_know_what_was_made(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(run: Run, config: Any) -> None:
        run.stage(
            "train", lambda work: {"pass@1": 0.75, "note": str((work / "f").write_text("x"))}, {"n": config.steps}
        )

    demo.tell = tell
    for steps in ("1", "2"):
        assert main(["run", "demo", "--steps", steps, "--out", f"runs/{steps}"]) == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    table = capsys.readouterr().out
    assert "runs/1  demo  seed 0  done  train:done  pass@1 0.75\n" in table
    assert main(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["path"], run["status"]) for run in listed] == [("runs/1", "done"), ("runs/2", "done")]
    (Path("runs/2/run.json")).unlink()
    assert main(["runs", "gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert main(["runs", "gc"]) == 0
    assert capsys.readouterr().out.startswith("0 things removed")


def test_runs_of_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["doctor"], ["recipes"], ["runs"], ["tasks"], ["tasks", "show", "countdown"]])
def test_what_is_shown_without_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["doctor"], ["recipes"], ["runs"], ["tasks"], ["tasks", "show", "countdown"]])
def test_json_is_one_object_alone_on_stdout(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = " ".join(words[:2]) if words[:2] == ["tasks", "show"] else words[0]
    real = COMMANDS[name].run

    def chatty(args: Any) -> dict[str, Any]:
        print("a library talks")
        return real(args)

    monkeypatch.setitem(COMMANDS, name, with_run(COMMANDS[name], chatty))
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert isinstance(json.loads(out), dict)
    assert out.count("\n") == 1
    assert "a library talks" in err


def with_run(command: Any, run: Any) -> Any:
    from dataclasses import replace

    return replace(command, run=run)


def test_nothing_small_imports_torch() -> None:
    line = '{"problem": {"numbers": [3, 8], "target": 24}, "completion": "<think>x</think> <answer>3*8</answer>"}'
    program = f"""
import io, sys
from dunwu.cli import main
sys.stdin = io.TextIOWrapper(io.BytesIO({line!r}.encode()))
codes = [main(["score", "--task", "countdown"])]
codes += [main(words.split()) for words in (
    "--help", "tasks", "tasks show countdown --split test --index 3", "recipes", "runs", "run r1-zero --help", "run r1-zero --x")]
print(codes, "torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 0, 2] False", done.stderr
    verdict = json.loads(done.stdout.splitlines()[0])
    assert (verdict["rewards"], verdict["status"]) == ({"accuracy": 1.0, "format": 1.0}, "ok")


def test_score_keeps_order_and_count_and_answers_a_waiting_partner() -> None:
    lines = [
        {
            "problem": {"numbers": [3, 8], "target": 24},
            "completion": f"<think>{n}</think> <answer>3*{8 + n % 2}</answer>",
        }
        for n in range(40)
    ]
    command = [sys.executable, "-m", "dunwu", "score", "--task", "countdown"]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stdin is not None
    assert child.stdout is not None
    for n, line in enumerate(lines):  # one at a time: a buffered answer would hang here
        child.stdin.write(json.dumps(line) + "\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["rewards"]["accuracy"] == float(n % 2 == 0)
    child.stdin.close()
    assert child.wait() == 0


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("{}\n" * 50_000)
    done = shell('"$PYTHON" -m dunwu score --task countdown < in | head -1; echo "${PIPESTATUS[0]}"')
    assert done.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_a_terminal_without_chinese_gets_question_marks_and_clean_json(tmp_path: Path) -> None:
    show = '"$PYTHON" -m dunwu tasks show countdown'
    assert shell(show, PYTHONIOENCODING="ascii").returncode == 0
    done = shell(f"{show} --json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["task"] == "countdown"


def test_a_tokenizer_is_trained_and_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("文 本.txt").write_text("the cat sat on the mat. 猫坐在垫子上。\n" * 50, encoding="utf-8")
    assert main(["tokenizer", "train", "文 本.txt", "--vocab-size", "300", "--out", "tok", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tokenizer": "tok", "vocab_size": 300}
    text = "the cat, 猫 42\r\n\n"
    feed(monkeypatch, text.encode())
    assert main(["tokenizer", "encode", "--tokenizer", "tok", "--json"]) == 0
    encoded = capsys.readouterr().out
    feed(monkeypatch, encoded.encode())
    assert main(["tokenizer", "decode", "--tokenizer", "tok"]) == 0
    assert capsys.readouterr().out == text
    feed(monkeypatch, " ".join(map(str, json.loads(encoded)["ids"])).encode())
    assert main(["tokenizer", "decode", "--tokenizer", "tok", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": text}
    for wrong, said in (
        (b'{"ids": ["x"]}', "no token ids"),
        (b"99999", "token id 99999"),
        (b"\xff", "not UTF-8 (byte 0)"),
    ):
        feed(monkeypatch, wrong)
        assert main(["tokenizer", "decode", "--tokenizer", "tok"]) == 2
        assert said in capsys.readouterr().err
