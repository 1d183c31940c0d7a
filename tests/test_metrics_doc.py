"""docs/metrics.md says what every logged key is: compared with the keys the code makes."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

from dunwu.eval.emergence import aggregate

DOC = Path(__file__).parents[1] / "docs" / "metrics.md"


def documented_keys(path: Path = DOC) -> set[str]:
    """Keys in the first column of the tables; `*` in them stands for any rest."""
    return set(re.findall(r"^\|\s*`([^`]+)`", path.read_text("utf-8"), re.MULTILINE))


def undocumented(metrics_file: Path, doc: Path = DOC) -> set[str]:
    """Keys of a metrics.jsonl that no row of the page covers."""
    patterns = documented_keys(doc)
    logged: set[str] = set()
    for line in metrics_file.read_text("utf-8").splitlines():
        logged |= json.loads(line).keys() - {"stage", "step", "time"}
    return {key for key in logged if not any(fnmatchcase(key, pattern) for pattern in patterns)}


def test_behaviours_are_documented_and_nothing_else() -> None:
    rollout = {"rewards": {"accuracy": 1.0}, "status": "ok", "length": 1}
    text = "12+7+3=22, no. (12-7)*3=15, yes</think><answer>12</answer>"
    wrong = rollout | {"rewards": {"accuracy": 0.0}}
    group = {"problem": {"numbers": [3, 7, 12], "target": 15}}
    group["rollouts"] = [rollout | {"completion": text}, wrong | {"completion": text}]
    documented = {key for key in documented_keys() if key.startswith("emergence/")}
    assert documented == set(aggregate([group]))


def test_undocumented_keys_are_found(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"stage": "s", "step": 1, "time": 0.0, "eval/pass@1": 0.5}, {"stage": "s", "step": 2, "a/new/one": 1}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    doc = tmp_path / "metrics.md"
    doc.write_text("| key | formula |\n|---|---|\n| `eval/pass@1` | x |\n", "utf-8")
    assert undocumented(metrics, doc) == {"a/new/one"}
    doc.write_text(doc.read_text("utf-8") + "| `a/new/*` | y |\n", "utf-8")
    assert undocumented(metrics, doc) == set()
