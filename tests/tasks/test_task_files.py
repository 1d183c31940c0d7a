"""Problems from files: the public form and ours, bad rows by place, Parquet without pyarrow, splits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dunwu.tasks.files import FileCountdown, load_problems
from dunwu.tasks.registry import get_task
from dunwu.tasks.splits import SPLITS, split_of
from dunwu.types import DunwuError

ROWS = [{"target": 98, "nums": [44, 19, 35]}, {"numbers": [3, 7, 12], "target": 24, "extra": "ignored"}]
WANTED = [{"numbers": [44, 19, 35], "target": 98}, {"numbers": [3, 7, 12], "target": 24}]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_both_forms_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "题目.jsonl", json.dumps(ROWS[0]), "", json.dumps(ROWS[1]))
    assert load_problems(path) == WANTED
    assert load_problems(str(path)) == WANTED


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not an object"),
        ("3", "not an object"),
        ('{"nums": [3, 7]}', '"target" is not an integer'),
        ('{"target": 24}', '"numbers" is not a list'),
        ('{"nums": [3, "7"], "target": 24}', '"numbers" holds something else'),
        ('{"nums": [3, true], "target": 24}', '"numbers" holds something else'),
        ('{"nums": [], "target": 24}', '"numbers" is not a list'),
        ('{"nums": [3, 7], "target": 24.0}', '"target" is not an integer'),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", json.dumps(ROWS[0]), "", line)
    with pytest.raises(DunwuError) as caught:
        load_problems(path)
    assert caught.value.what.startswith(f"{path}:3: ")
    assert reason in caught.value.what
    assert caught.value.cure
    assert "\n" not in str(caught.value)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"nums": [3, 7], "target": 21}\n\xff\xfe\xfd\n')
    with pytest.raises(DunwuError, match=r"bad\.jsonl:2: not JSON in UTF-8"):
        load_problems(path)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(DunwuError, match=r"cannot read .*none\.jsonl: No such file"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(DunwuError, match="cannot read"):
        load_problems(tmp_path)
    with pytest.raises(DunwuError, match="holds no problems"):
        load_problems(write(tmp_path / "empty.jsonl", "", ""))


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DunwuError) as caught:
        load_problems(tmp_path / "x.parquet")
    assert caught.value.cure == 'pip install "dunwu[data]"'


def test_parquet_rows_through_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading loop without pyarrow: batches in order, rows counted across batches, errors of the library named."""

    class Failure(Exception):
        pass

    class Batch:
        def __init__(self, rows: list[dict[str, Any]]) -> None:
            self.rows = rows

        def to_pylist(self) -> list[dict[str, Any]]:
            return self.rows

    class ParquetFile:
        def __init__(self, path: Path) -> None:
            if path.stem == "broken":
                raise Failure("no magic bytes\nmore")
            self.bad = path.stem == "bad"

        def __enter__(self) -> ParquetFile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def iter_batches(self) -> list[Batch]:
            return [Batch(ROWS[:1]), Batch([*ROWS[1:], *([{"nums": [1.5], "target": 1}] if self.bad else [])])]

    library, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    vars(library)["ArrowException"] = Failure
    vars(parquet)["ParquetFile"] = ParquetFile
    monkeypatch.setitem(sys.modules, "pyarrow", library)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert load_problems(tmp_path / "good.parquet") == WANTED
    with pytest.raises(DunwuError, match=r"bad\.parquet:3: "):
        load_problems(tmp_path / "bad.parquet")
    with pytest.raises(DunwuError, match=r"broken\.parquet: no magic bytes \(give"):
        load_problems(tmp_path / "broken.parquet")


def test_real_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    rows = [{"nums": row.get("nums", row.get("numbers")), "target": row["target"]} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert load_problems(path) == WANTED
    write(tmp_path / "no.parquet", "not parquet")
    with pytest.raises(DunwuError, match="cannot read"):
        load_problems(tmp_path / "no.parquet")
    with pytest.raises(DunwuError, match="cannot read"):
        load_problems(tmp_path / "none.parquet")


@pytest.fixture
def problems() -> list[dict[str, Any]]:
    generated = get_task("countdown")
    drawn = [
        generated.problem(split, 0, i).data
        for split, n in (("train", 80), ("valid", 8), ("test", 12))
        for i in range(n)
    ]
    return [{"numbers": list(data["numbers"]), "target": data["target"]} for data in drawn]


def test_a_file_is_served_by_split_each_problem_once_a_lap(problems: list[dict[str, Any]]) -> None:
    reordered = [{**problem, "numbers": problem["numbers"][::-1]} for problem in problems]
    task = FileCountdown(problems + reordered)
    seen = []
    for split, size in (("train", 80), ("valid", 8), ("test", 12)):
        drawn = [task.problem(split, 7, index) for index in range(size)]
        assert drawn == [task.problem(split, 7, index) for index in range(size)]
        assert {problem.id for problem in drawn} == {task.problem(split, 8, index + size).id for index in range(size)}
        for problem in drawn:
            assert split_of(problem.data["numbers"], problem.data["target"]) == split
            assert task.score(problem, task.gold(problem)).reward == 2.0
        seen += [problem.id for problem in drawn]
    assert len(set(seen)) == 100


def test_a_split_without_problems(problems: list[dict[str, Any]]) -> None:
    task = FileCountdown(problems[:5], source="five.jsonl")
    assert task.problem("train", 0, 9).task == "countdown"
    with pytest.raises(DunwuError, match=r"five\.jsonl: none of its problems falls into split 'test'"):
        task.problem("test", 0, 0)


def test_by_name(tmp_path: Path, problems: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "p.jsonl", *map(json.dumps, problems))
    task = get_task("countdown", data=path, language="zh")
    assert isinstance(task, FileCountdown)
    assert "用户" in task.problem("test", 0, 0).prompt
    assert set(task.splits) == set(SPLITS)
