"""The report's part on in-context learning: from a run folder's files to figures, and nothing where nothing was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dunwu.eval.report import write_report
from dunwu.eval.report_context import in_context_section, stairs
from dunwu.eval.report_data import collect
from dunwu.log import Run
from dunwu.store import Store

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
FOUND: dict[str, Any] = {
    "borders": [[0, 8], [50, 16]],
    "loss": {
        "context": 16,
        "windows": 9,
        "score": {"value": -0.25, "low": -0.3, "high": -0.2, "n": 9},
        "bins": [[1, 1, 3.0, 0.1], [2, 3, 2.5, 0.1], [4, 7, 2.4, None], [8, 16, 2.2, 0.05]],
    },
    "few_shot": {
        "<b>sums": [{"shots": n, "accuracy": INTERVAL, "tokens": 4.0 + 9 * n, "best": None} for n in (0, 4)],
        "symbols": [{"shots": n, "accuracy": INTERVAL, "tokens": 5.0, "best": 0.1 * n} for n in (0, 4)],
    },
}


def a_run(home: Path, curve: bool, found: dict[str, Any] | None) -> Path:
    run = Run.open(home / "run", "pretrain", {}, 0, Store(home / "store"))
    for step in range(10, 101, 10):
        metrics = {"pretrain/loss": 5 - step / 40, "pretrain/valid_loss": 5 - step / 50}
        if curve:
            metrics |= {"pretrain/context": 8.0 if step <= 50 else 16.0, "in_context/score": -step / 400}
            metrics |= {f"in_context/loss/{last}": 4 - step / 90 for last in (1, 3, 7, 16)}
            metrics |= {f"in_context/accuracy/symbols/{shots}": step / 100 for shots in (0, 4)}
        run.log("base", step, metrics)
    if found is not None:
        (run.dir / "evidence.json").write_text(json.dumps({"in_context": found}), encoding="utf-8")
    run.finish("done")
    return run.dir


def drawings(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def titles(html: str) -> list[str | None]:
    return [svg[0].text for svg in drawings(html)]


def test_all_of_it(tmp_path: Path) -> None:
    folder = a_run(tmp_path, curve=True, found=FOUND)
    section = in_context_section(collect(folder))
    assert titles(section) == ["Loss by position", "Few-shot accuracy", "The context of base"]
    assert "Late minus early: -0.250" in section and "<b>sums" not in section
    position, shots, growth = (svg[1].text or "" for svg in drawings(section))
    assert [f"update {step}:" in position for step in (10, 90, 100)] == [True, True, False]  # the last is the end
    assert "end: from 3 at log2 of the position in the window 0 to 2.2 at 3.5." in position
    assert "symbols, best: from 0% at solved examples in the prompt 0 to 40%" in shots
    assert "context: from 8 at update 10 to 16 at 100." in growth and "symbols: from 10%" in growth
    page = write_report(folder).read_text("utf-8")
    assert "Learning in context" in page and "from update" in page
    assert json.loads((folder / "report.json").read_text())["evidence"]["in_context"] == FOUND


def test_only_what_was_measured(tmp_path: Path) -> None:
    section = in_context_section(collect(a_run(tmp_path / "end", curve=False, found=FOUND | {"borders": []})))
    assert titles(section) == ["Loss by position", "Few-shot accuracy"] and "from update" not in section
    only_shots = {"few_shot": FOUND["few_shot"]}
    assert titles(in_context_section(collect(a_run(tmp_path / "shots", False, only_shots)))) == ["Few-shot accuracy"]
    growing = in_context_section(collect(a_run(tmp_path / "running", curve=True, found=None)))
    assert titles(growing) == ["The context of base"]  # a run still going


@pytest.mark.parametrize("found", [None, {}])
def test_nothing_where_nothing_was_measured(tmp_path: Path, found: dict[str, Any] | None) -> None:
    folder = a_run(tmp_path, curve=False, found=found)
    assert in_context_section(collect(folder)) == ""
    assert "Learning in context" not in write_report(folder).read_text("utf-8")


def test_stairs_jump() -> None:
    assert stairs([]) == [] and stairs([(3, 8)]) == [(3, 8)]
    assert stairs([(1, 8), (2, 16)]) == [(1, 8), (2, 8), (2, 16)]
