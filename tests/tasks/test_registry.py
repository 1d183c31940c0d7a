"""Tasks by name, the catalogue, templates from files, and what importing the room costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run

import pytest

from dunwu.tasks import Countdown, catalogue, get_task, load_template, task_names
from dunwu.tasks.templates import question
from dunwu.types import DunwuError, Problem, UsageError


def test_names_and_options() -> None:
    assert task_names() == ("countdown",)
    task = get_task("countdown", operands=4, high=9)
    assert isinstance(task, Countdown)
    assert (task.config.operands, task.config.high) == (4, 9)


def test_unknown_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'countdwon' \(did you mean 'countdown'\?\)"):
        get_task("countdwon")
    with pytest.raises(UsageError, match="one of countdown"):
        get_task("zzz")
    with pytest.raises(UsageError, match=r"no option 'operand' \(did you mean 'operands'\?\)"):
        get_task("countdown", operand=4)


def test_catalogue_is_json_and_its_example_holds() -> None:
    (entry,) = json.loads(json.dumps(catalogue()))
    assert entry["name"] == "countdown"
    assert set(entry) == {"name", "summary", "problem", "rewards", "splits", "options", "example"}
    example = entry["example"]
    assert set(entry["problem"]) == set(example["problem"])
    verdict = get_task("countdown").score(Problem("countdown", "", example["problem"], ""), example["gold"])
    assert set(entry["rewards"]) == {name for name, reward in verdict.rewards.items() if reward == 1.0}


def test_question() -> None:
    assert question([3, 7, 12], 24) == "Use 3, 7, 12 once each with + - * / to make 24."
    assert question([3, 7, 12], 24, "zh") == "用3、7、12各一次，加减乘除，得到24。"


def test_template_file(tmp_path: Path) -> None:
    path = tmp_path / "模板.txt"
    path.write_text("\ufeffQ: {question}\nA: <think>\n\n", encoding="utf-8")
    assert load_template(path) == "Q: {question}\nA: <think>"
    path.write_text("Make {target} from {numbers}.", encoding="utf-8")
    assert load_template(path) == "Make {target} from {numbers}."


@pytest.mark.parametrize("content", [b"", b"Solve it.", b"{numbers}", b"{target}", b"\xff\xfe{question}"])
def test_bad_template_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(DunwuError, match=r"t\.txt") as caught:
        load_template(path)
    assert caught.value.cure
    assert "\n" not in str(caught.value)


def test_missing_template_file(tmp_path: Path) -> None:
    with pytest.raises(DunwuError, match="No such file"):
        load_template(tmp_path / "none.txt")


def test_import_is_light() -> None:
    """No torch, no numpy, nothing to wait for."""
    code = (
        "import sys, time; start = time.process_time(); import dunwu.tasks; spent = time.process_time() - start\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules), 'heavy import'\n"
        "assert spent < 0.15, spent"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
