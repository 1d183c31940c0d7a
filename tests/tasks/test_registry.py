"""Tasks by name, the catalogue, templates from files, and what importing the room costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run

import pytest

from dunwu.tasks import Countdown, catalogue, get_task, load_template, task_names
from dunwu.tasks.frames import Framed
from dunwu.tasks.templates import question
from dunwu.types import DunwuError, Problem, UsageError


def test_names_and_options() -> None:
    assert task_names() == ("countdown", "word-problems", "knights", "gsm8k", "math")
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


def test_catalogue_is_json_and_its_examples_hold() -> None:
    """From the problem's data alone, as `dunwu score` has it."""
    entries = json.loads(json.dumps(catalogue()))
    assert tuple(entry["name"] for entry in entries) == task_names()
    for entry in entries:
        assert set(entry) == {"name", "summary", "problem", "rewards", "splits", "options", "example"}
        example = entry["example"]
        assert set(entry["problem"]) == set(example["problem"])
        verdict = get_task(entry["name"]).score(Problem(entry["name"], "", example["problem"], ""), example["gold"])
        assert set(entry["rewards"]) == {name for name, reward in verdict.rewards.items() if reward == 1.0}


def test_options_of_framed_tasks() -> None:
    task = get_task("knights", frame="chat", chinese=1.0, three=0, language_weight=2)
    assert isinstance(task, Framed)
    problem = task.problem("test", 0, 0)
    assert problem.meta["language"] == "zh" and len(problem.data["statements"]) <= 3
    assert task.score(problem, task.gold(problem)).reward == 4.0
    with pytest.raises(UsageError, match=r"task 'knights' has no option 'operands'"):
        get_task("knights", operands=3)
    with pytest.raises(UsageError, match=r"did you mean 'chinese'"):
        get_task("word-problems", chines=1)
    with pytest.raises(UsageError, match="unknown frame 'chatt'"):
        get_task("word-problems", frame="chatt")
    for bad in (-0.1, 1.5, "half", True, float("nan")):
        with pytest.raises(UsageError, match="is not a share"):
            get_task("word-problems", chinese=bad)
    for bad in (float("inf"), float("nan"), "1", True):
        with pytest.raises(UsageError, match="number"):
            get_task("word-problems", accuracy_weight=bad)


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
