"""Task files: what a good one does, and that every bad one is told with its file, line and cure."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dunwu.tasks import get_task, score_stream, user
from dunwu.tasks.splits import SPLITS
from dunwu.tasks.user import load_task
from dunwu.types import DunwuError, UsageError

GOOD = """
name = "sums"

def problems(split):
    first = {"train": 0, "valid": 40, "test": 50}[split]
    return [{"a": a, "b": 7} for a in range(first, first + 10)]

def prompt(problem):
    return f"{problem['a']}+{problem['b']}="

def score(problem, completion):
    return float(completion == gold(problem))

def gold(problem):
    return str(problem["a"] + problem["b"])
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_a_task(tmp_path: Path) -> None:
    task = get_task(str(write(tmp_path, GOOD)))
    assert task.name == "sums"
    for split in SPLITS:
        lap = [task.problem(split, 3, index) for index in range(10)]
        assert len({problem.id for problem in lap}) == 10  # all of a list before anything twice
        assert lap == [task.problem(split, 3, index) for index in range(10)]
    problem = task.problem("train", 0, 0)
    assert [task.problem("train", 0, i).id for i in range(10)] != [task.problem("train", 1, i).id for i in range(10)]
    assert problem.prompt == f"{problem.data['a']}+7=" and problem.messages == ()
    assert task.score(problem, task.gold(problem)).reward == 1.0
    assert task.score(problem, "x").to_json() == {
        "rewards": {"accuracy": 0.0}, "reward": 0.0, "status": "ok", "reason": None, "answer": "x",
    }  # fmt: skip
    out = io.StringIO()
    score_stream(
        task, [b'{"problem": {"a": 1, "b": 2}, "completion": "3"}', b'{"problem": {}, "completion": "3"}'], out
    )
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["reward"] == 1.0 and second["status"] == "error" and "own.py:15: KeyError: 'a'" in second["reason"]


def test_problems_by_index_conversations_several_rewards_and_weights(tmp_path: Path) -> None:
    text = """
from random import Random
weights = {"brief": 0.5}

def problems(split, index):
    number = Random(f"{index}").randrange(10**9)
    return {"n": number * 10 + {"train": 0, "valid": 1, "test": 2}[split], "language": "zh"}

def prompt(problem):
    return [{"role": "system", "content": "short"}, {"role": "user", "content": str(problem["n"])}]

def score(problem, completion):
    return {"right": completion.endswith(gold(problem)), "brief": 1 if len(completion) < 12 else 0}

def gold(problem):
    return str(problem["n"])

def corrupt(problem):
    return "0" + gold(problem)[:-1] + "x"
"""
    task = load_task(write(tmp_path, text))
    problem = task.problem("train", 0, 0)
    assert [m.role for m in problem.messages] == ["system", "user"] and problem.meta["language"] == "zh"
    assert problem.prompt == f"system: short\nuser: {problem.data['n']}"
    drawn = {task.problem("train", seed, index).data["n"] for seed in range(3) for index in range(5)}
    assert len(drawn) == 15  # seeds ask other problems, not the same in other places
    verdict = task.score(problem, task.gold(problem))
    assert verdict.rewards == {"accuracy": 1.0, "right": 1.0, "brief": 1.0} and verdict.reward == 1.5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def gold", "def golden", r"own.py:1: no function gold \(a task file defines problems, prompt, score, gold\)"),
        ("return f", "retrun f", r"own.py:9: SyntaxError"),
        ('"test": 50', '"test": 45', r"own.py:4: \{'a': 45, 'b': 7\} is in split 'valid' and in 'test'"),
        ('"test": 50}', '}', r"own.py:5: KeyError: 'test'"),
        ("first + 10)]", "first)]", r"own.py:4: no problems in split 'train'"),
        ('"b": 7}', '"b": {7}}', r"own.py:4: \{'a': 0, 'b': \{7\}\} is no problem"),
        ("+{problem['b']}", "+{problem['c']}", r"own.py:9: KeyError: 'c'"),
        ("return f\"", "return None and f\"", r"own.py:8: prompt gave None \(give a text"),
        ("== gold(problem))", "!= gold(problem))", r"own.py:11: the gold answer of .* scores 0, not 1"),
        ("completion == gold(problem)", "1", r"own.py:11: the wrong answer '8' to \{'a': 0, 'b': 7\} scores 1, not 0"),
        ("float(completion == gold(problem))", "0.5", r"own.py:11: the gold answer of .* scores 0.5, not 1"),
        ("float(completion == gold(problem))", "None", r"own.py:11: ValueError: score returned NoneType"),
        ("float(completion == gold(problem))", "float('nan')", r"ValueError: score returned nan"),
        ("float(completion == gold(problem))", "1/int(completion == 'a')", r"own.py:12: ZeroDivisionError"),
        ("return str(problem", "return (problem", r"own.py:14: gold gave 7 \(give the completion as text\)"),
        ("[{\"a\": a, \"b\": 7}", "[{\"a\": __import__('random').random(), \"b\": 7}", r"own.py:4: two calls of problems"),
        ("return float(", "import os; os._exit(3); return float(", r"score ended its process"),
        ('name = "sums"', 'weights = {"accuracy": "big"}', r"own.py:1: weights is \{'accuracy': 'big'\}"),
        ('name = "sums"', "raise SystemExit('no')", r"own.py:2: SystemExit: no"),
        ("def problems(split)", "def problems(split, index, more)", r"own.py:4: problems takes 3 arguments"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(DunwuError, match=said) as error:
        load_task(write(tmp_path, GOOD.replace(old, new)))
    assert "\n" not in str(error.value) and error.value.exit_code == 1


COUNTING = "calls = []\n\ndef count():\n    calls.append(1)\n    return len(calls)\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("+{problem['b']}=", "+{problem['b']}={count()}", r"own.py:13: two calls of prompt with one problem differ"),
        ("completion == gold(problem)", "count() % 2", r"own.py:16: two calls of score for .* differ"),
        ("return str(problem", "return count() * ' ' + str(problem", r"own.py:19: two calls of gold for .* differ"),
        (
            "f\"{problem['a']}+{problem['b']}=\"",
            '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]',
            r"own.py:13: the last turn is the assistant's",
        ),
        (
            "completion == gold(problem)",
            "not completion or completion == gold(problem)",
            r"the wrong answer '' to .* 1",
        ),
        ("completion == gold(problem)", "1 if completion == gold(problem) else 0.25", r"wrong answer .* scores 0.25"),
        ("return [{", "return ({", r"own.py:9: more than 1000 problems in split 'train'"),
    ],
)
def test_what_depends_on_more_than_the_problem_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str
) -> None:
    monkeypatch.setattr(user, "MOST", 1000)
    text = GOOD.replace('name = "sums"', COUNTING).replace(old, new)
    if "more than" in said:
        text = text.replace("for a in range(first, first + 10)]", "for a in __import__('itertools').count())")
    with pytest.raises(DunwuError, match=said):
        load_task(write(tmp_path, text))


def test_a_score_that_does_not_look_at_the_problem_is_found(tmp_path: Path) -> None:
    """Golds without digits: only those of other problems can tell."""
    letters = GOOD.replace("str(problem['a'] + problem['b'])".replace("'", '"'), '"abcdefghij"[problem["a"] % 10]')
    assert letters != GOOD
    assert load_task(write(tmp_path, letters))
    careless = letters.replace("completion == gold(problem)", 'completion != ""')
    with pytest.raises(
        DunwuError, match=r"own.py:11: \{'a': 0, 'b': 7\} accepts 'b', the gold answer of another problem"
    ):
        load_task(write(tmp_path, careless))
    assert load_task(write(tmp_path, careless + "\n\ndef corrupt(problem):\n    return ''\n"))


def test_a_score_that_raises_or_hangs_is_no_zero_and_harms_no_later_call(tmp_path: Path) -> None:
    text = GOOD.replace(
        "    return float(completion == gold(problem))",
        "    print('told to stderr')\n    if completion == 'long':\n        return 99 ** 99 ** 99\n"
        "    assert completion != 'bad', 'no such thing'\n    return float(completion == gold(problem))",
    )
    task = load_task(write(tmp_path, text.replace('name = "sums"', "time_limit = 0.5")))
    problem = task.problem("train", 0, 0)
    bad = task.score(problem, "bad")
    assert (bad.status, bad.rewards, bad.reward) == ("error", {}, 0.0)
    assert "AssertionError: no such thing" in str(bad.reason) and "own.py:15" in str(bad.reason)
    began = time.monotonic()
    found = []
    thread = threading.Thread(target=lambda: found.append(task.score(problem, "long")))  # off the main thread too
    thread.start()
    thread.join()
    assert found[0].status == "timeout" and found[0].reason == "score took more than 0.5 s"
    assert time.monotonic() - began < 5
    assert task.score(problem, task.gold(problem)).reward == 1.0


def test_a_score_that_left_a_process_behind_holds_nobody_up(tmp_path: Path) -> None:
    """What a forked process holds open must not be waited for, nor closed under the thread that reads it."""
    text = GOOD.replace(
        "    return float(",
        "    import os, time\n    if completion == 'fork':\n        if os.fork() == 0:\n"
        "            time.sleep(20)\n            os._exit(0)\n        time.sleep(20)\n    return float(",
    )
    task = load_task(write(tmp_path, text.replace('name = "sums"', "time_limit = 0.5")))
    problem = task.problem("train", 0, 0)
    began = time.monotonic()
    assert task.score(problem, "fork").status == "timeout"
    assert task.score(problem, task.gold(problem)).reward == 1.0
    assert time.monotonic() - began < 10


def test_scoring_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    script = (
        "import sys; from dunwu.tasks.user import load_task; t = load_task(sys.argv[1]); "
        "print(t.scorer._child.process.pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_neighbours_can_be_imported_and_options_belong_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_own.py").write_text("SEVEN = 7\n")
    text = "from neighbour_of_own import SEVEN\n" + GOOD.replace('"b": 7', '"b": SEVEN')
    path = write(tmp_path, text)
    assert load_task(path).problem("test", 0, 0).data["b"] == 7
    with pytest.raises(UsageError, match=r"has no option .operands"):
        get_task(str(path), operands=3)
    with pytest.raises(DunwuError, match="no such file"):
        get_task(str(tmp_path / "absent.py"))


def test_many_scores_at_once_are_those_of_one_at_a_time(tmp_path: Path) -> None:
    """Calls beyond what a pipe holds, with one that hangs, one that raises and one that kills the process among them."""
    text = GOOD.replace(
        "    return float(",
        "    if completion == 'hang':\n        while True: pass\n    if completion == 'die':\n        import os; os._exit(1)\n"
        "    if completion == 'raise':\n        raise ValueError('x' * 10)\n    return float(",
    )
    task = load_task(write(tmp_path, text.replace('name = "sums"', "time_limit = 0.3")))
    problem = task.problem("train", 0, 0)
    said = [task.gold(problem) if n % 3 else "no" + "o" * 2000 for n in range(60)]
    said[7:7] = ["hang", "raise", "die", "y" * 200_000, "hang"]
    verdicts = task.score_all([problem] * len(said), said)
    wanted = {"hang": "timeout", "raise": "error", "die": "error"}
    assert [v.status for v in verdicts] == [wanted.get(text, "ok") for text in said]
    right = [float(text == task.gold(problem)) for text in said if text not in wanted]
    assert [v.reward for v in verdicts if v.status == "ok"] == right
