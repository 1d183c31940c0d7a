"""The scripts in examples/ run without arguments, do what they say, and stay short."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dunwu.tasks.user import load_task

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_four_and_each_is_short() -> None:
    assert [script.stem for script in SCRIPTS] == ["chat_sft", "evaluate_endpoint", "own_reward", "own_task"]
    assert max(len(script.read_text(encoding="utf-8").splitlines()) for script in SCRIPTS) <= 60


def test_own_task_is_a_task_and_is_learned() -> None:
    assert load_task(FOLDER / "own_task.py").name == "own_task"
    rewards = load("own_task").main()
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05


def test_own_rewards_rise(tmp_path: Path) -> None:
    example = load("own_reward")
    curves = example.main(example.make_model(tmp_path))
    assert curves["brief"][-1] > curves["brief"][0] + 0.2
    assert curves["digits"][-1] > curves["digits"][0]


def test_own_chat_data_is_learned_and_the_bad_row_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("chat_sft")
    example.make_data(tmp_path / "chat.jsonl")
    bad, (first, last), (question, reply) = example.main(tmp_path / "chat.jsonl")
    assert [row.line for row in bad] == [6] and "chat.jsonl line 6: " in capsys.readouterr().out
    assert last < first / 4
    assert (question, reply) == ("What colour is grass?", "It is green.")


def test_an_endpoint_is_evaluated() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "evaluate_endpoint.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stand-in: 0.67 (") and done.stdout.endswith("of 30 problems\n")
