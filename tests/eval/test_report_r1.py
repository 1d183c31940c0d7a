"""The report of the whole of R1: every part there, escaped, links that lead somewhere; graceful while it runs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_r1 import fake_r1
from fake_run import fake_run

from dunwu.cli import main
from dunwu.eval.report import write_report
from dunwu.eval.report_data import collect
from dunwu.eval.report_r1_figure import ARROWS, PLACES, r1_figure, stage_id

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Every tag closed in order; only links within the page; ids, links and text kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes(tag, dict(attrs))

    def attributes(self, tag: str, attributes: dict[str, str | None]) -> None:
        assert tag not in ("script", "iframe", "img", "link", "form", "b-evil")
        assert not any(name.startswith("on") or name in ("src", "action") for name in attributes)
        if "id" in attributes:
            self.ids.append(str(attributes["id"]))
        if "href" in attributes:
            self.links.append(str(attributes["href"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Checker:
    page = Checker()
    page.feed(html)
    page.close()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith("#") and link[1:] in page.ids, link
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    return page


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r1")


@pytest.fixture(scope="module")
def run_dir(home: Path) -> Path:
    return fake_r1(home)


@pytest.fixture(scope="module")
def html(run_dir: Path, home: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUNWU_HOME", str(home / "store"))
        return write_report(run_dir).read_text("utf-8")


def test_every_part_is_there_and_every_link_leads_somewhere(html: str) -> None:
    page = check(html)
    text = " ".join(page.text)
    parts = ("The stages of R1", "Every stage on the same problems", "directions and ours", "The same prompts at every stage",
             "Does the language reward hold", "Reward models", "Calibration of rm-helpful", "How long can the preference be trusted",
             "What was kept", "mixed language", "The judge", "Students", "Over seeds", "Cost of each stage", "Stage by stage",
             "first rows of chat.jsonl", "samples of the first and the last step", "Configuration", "Lineage and machine")  # fmt: skip
    for part in parts:
        assert part in text, part
    for chinese in ("各阶段成绩", "同一问题", "语言一致性", "奖励模型", "蒸馏", "用3、7、12凑出24。", "你好"):
        assert chinese in text
    boxes = set(page.links)
    assert {f"#{stage_id(name)}" for name in PLACES} <= boxes  # each box is a link
    assert "#stage-student-tiny-sft" in boxes
    assert "Training: r1-zero" not in text  # its curves are in its section


def test_the_headline_is_dev1_and_r1(html: str) -> None:
    assert "held-out reasoning from 36% (Dev1) to 68% (R1); 9 of 11 claims" in html


def test_verdicts_show_their_reasons(run_dir: Path, html: str) -> None:
    claims = json.loads((run_dir / "stages.json").read_text("utf-8"))["verdicts"]
    assert len(claims) == 11 and any(claim["reason"] for claim in claims)
    data = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert data["verdicts"] == claims  # and no claims of other recipes
    for claim in claims:
        assert claim["reason"].replace("'", "&#x27;") in html


def test_model_text_is_escaped(html: str) -> None:
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert "\u202e" not in html and "␛[31m" in html and "hello &lt;b&gt;" in html


def test_the_paper_and_ours_by_hand(html: str) -> None:
    """Reasoning R1-Zero → Dev1: 77.9 → 59.0 in the paper, 61.0 → 36.0 here, both down."""
    row = re.search(r"AIME 2024.*?</tr>", html)
    assert row is not None
    assert "▼ 77.9 → 59.0<br>" in row[0] and ">▼ 61.0 → 36.0</span>" in row[0]
    assert "≈ 78.1 → 79.8" in row[0]  # within two points: flat
    assert 'mark yes" title="-25.0 points [-30.8, -18.7]"' in row[0]


def test_over_optimisation_is_named_only_where_it_is(run_dir: Path, tmp_path: Path, html: str) -> None:
    assert "falls to 0.373 after it, while the proxy rose on: over-optimisation" in html
    points = [{"step": s, "proxy": s / 10, "truth": s / 100} for s in range(0, 50, 10)]
    page = write_report(changed(run_dir, tmp_path, {"over_optimisation": points})).read_text("utf-8")
    assert "The truth is highest at the last step." in page


def changed(run_dir: Path, tmp_path: Path, record: dict[str, Any]) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (copy / "stages.json").write_text(json.dumps(record), "utf-8")
    return copy


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"columns": [{}], "models": [{}], "verdicts": [{}], "chats": [{}], "students": [{}], "reward_models": [{}], "seeds": [{}]},
        {"columns": [{"key": "reasoning"}], "models": [{"name": "Dev1", "against": "R1-Zero", "scores": {"reasoning": None}}]},
        {"columns": [{"key": "reasoning", "title": "<i>"}], "models": [
            {"name": "R1-Zero", "scores": {"reasoning": {"value": 0.5, "low": None, "high": None}}},
            {"name": "Dev1", "against": "R1-Zero", "scores": {"reasoning": {"value": 0.5}}, "changes": {"reasoning": {"value": 0.1, "low": None, "high": None}}}]},
        {"over_optimisation": [{"step": 1, "proxy": 1.0, "truth": None}], "language_ablation": {"with": [[0, 0.9]], "without": []}},
        {"language_ablation": {"with": [[0, 0.9, None], [1, 0.95, None]]}, "rejection": {"kept": 3}, "judge": {"a": {"b": 1}}},
        {"reward_models": [{"name": "x", "calibration": [[0.1, 1.2, 3], [0.5, 0.4, 0], [0.9, 0.9, 2]], "agreement": {"agreement": None}}]},
    ],
)  # fmt: skip
def test_partial_tables(run_dir: Path, tmp_path: Path, record: dict[str, Any]) -> None:
    page = check(write_report(changed(run_dir, tmp_path, record)).read_text("utf-8"))
    assert "nan" not in " ".join(page.text).lower().split()


@pytest.mark.parametrize("upto", [0, 3, 9])
def test_a_run_under_way_shows_what_has_not_begun(tmp_path: Path, upto: int) -> None:
    run = fake_r1(tmp_path, status="interrupted", upto=upto)
    html = write_report(run).read_text("utf-8")
    page = check(html)
    assert "The stage table has not been measured yet." in html and "no stage has been measured yet" in html
    assert html.count(">not begun</text>") == sum(name not in begun(run) for name in PLACES)
    assert len(page.links) >= upto  # and `check` saw that each leads to a section that is there


def begun(run: Path) -> set[str]:
    return {file.stem for file in (run / "stages").glob("*.json")}


def test_samples_are_of_the_first_and_last_step_of_each_stage(run_dir: Path) -> None:
    samples = collect(run_dir)["r1"]["samples"]
    reinforced = {"r1-zero", "dev2", "dev2-no-language", "r1", "r1-overoptimised", "student-0.5M-rl"}
    assert samples.keys() == reinforced
    assert all([group["step"] for group in groups] == [1, 12] for groups in samples.values())


def test_other_reports_have_no_r1_parts(tmp_path: Path) -> None:
    run = fake_run(tmp_path, steps=3)
    data = collect(run)
    assert "r1" not in data and data["groups"]
    assert "The stages of R1" not in write_report(run).read_text("utf-8")


def test_the_figure_knows_its_places() -> None:
    assert len({(place.column, place.row) for place in PLACES.values()}) == len(PLACES)
    assert all(a.start in PLACES and a.end in PLACES for a in ARROWS)
    begun = [
        {"stage": "base", "status": "done", "seconds": 1.0},
        {"stage": "dev1", "status": "running"},
        {"stage": "my-own"},
    ]
    drawn = r1_figure(begun, waiting=False)
    assert re.findall(r'href="#stage-([^"]+)"', drawn) == ["base", "dev1", "my-own"]
    # One arrow besides the legend's two: base to Dev1; the cold start is not there.
    assert drawn.count('class="flow weights"') == 2 and drawn.count('class="flow data"') == 1
    assert "not begun" not in drawn and r1_figure(begun, waiting=True).count(">not begun<") == len(PLACES) - 2
    assert r1_figure([], False) == ""


def test_runs_line_of_many_stages(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(run_dir.parent)]) == 0
    line = capsys.readouterr().out
    assert "25 stages: 25 done" in line and "hold 9" in line and "student" not in line
