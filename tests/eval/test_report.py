"""The report: escaped, whole, self-contained; graceful where pieces are missing."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from colours import contrast
from fake_run import fake_run

from dunwu.eval.report import write_picture, write_report
from dunwu.eval.report_data import change, collect, curve, evenly, headline, verdicts
from dunwu.eval.report_parts import (
    LONGEST_TEXT,
    clip,
    duration,
    exact,
    interval,
    mark,
    marked,
    number,
    safe,
    stage_figure,
)
from dunwu.types import DunwuError, UsageError

EVIL = (
    "<script>alert(1)</script> 12-7=5 </pre></div><img src=x onerror=alert(1)></think>\n<answer>\"'<b></answer>",
    "控制\x00\x1b[31m\u202e\ud800 等等，(12-7)*3=15 " + "很长" * 5000,
)
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Checker(HTMLParser):
    """Every tag closed in order; tags, attributes and text kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Checker:
    """Well formed, self-contained, without script."""
    page = Checker()
    page.feed(html)
    page.close()
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "href", "action")
            assert "url(" not in (value or "") or (value or "").startswith("url(#"), (tag, name, value)
    assert "@import" not in html and "url(http" not in html
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    return page


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("whole"), steps=24, first=EVIL)


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text("utf-8")


def test_the_page_is_whole_and_self_contained(html: str) -> None:
    page = check(html)
    text = " ".join(page.text)
    sections = ["Stages", "Score and length", "Behaviours", "successive checkpoints", "Controls and seeds", "Groups",
                "Training: r1-zero", "Pretraining", "Every figure", "Configuration", "Lineage and machine"]  # fmt: skip
    for section in sections:
        assert section in text
    for chinese in ("阶段", "检验", "奖励", "配置", "同一题"):
        assert chinese in text
    assert "default-src 'none'" in html
    assert len([tag for tag, _ in page.tags if tag == "svg"]) > 20


def test_model_text_is_escaped_and_cut(html: str) -> None:
    assert "<script" not in html and "onerror=alert(1)&gt;" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "&lt;/pre&gt;&lt;/div&gt;" in html
    assert "\x00" not in html and "\x1b" not in html and "\u202e" not in html and "␀␛[31m" in html
    assert re.search(r"… \[[0-9]{4,} more characters\]", html)
    assert "很长" * (LONGEST_TEXT // 2) not in html


def test_checks_are_marked_by_class_sign_and_words(html: str) -> None:
    assert re.search(r'<span class="eq true" title="true sum">[0-9()+*/-]+=[0-9]+</span>', html)
    assert re.search(r'<span class="eq false" title="false sum">', html)
    assert re.search(r'<span class="verdict true" title="true check">', html)
    assert re.search(r'<span class="verdict false" title="false or unsound check">', html)
    assert 'content: "✓"' in html and 'content: "✗"' in html


def numbers_in(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(numbers_in, value.values()))
    if isinstance(value, list):
        return sum(map(numbers_in, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def test_report_json_holds_the_curves_evidence_and_verdicts(run_dir: Path, html: str) -> None:
    data = json.loads((run_dir / "report.json").read_text("utf-8"))
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    for line in logged:
        for key, value in line.items():
            if key not in ("stage", "step", "time"):
                assert [line["step"], value] in data["curves"][line["stage"]][key]
    assert data["evidence"]["checkpoints"] == json.loads((run_dir / "evidence.json").read_text("utf-8"))["checkpoints"]
    assert [stage["stage"] for stage in data["stages"]] == ["tokenizer", "shards", "base", "r1-zero", "evidence"]
    assert [group["step"] for group in data["groups"]] == [1, 13, 24]
    assert numbers_in(data) > 1000
    for verdict in data["verdicts"]:
        assert safe(verdict["claim"]) in html


def test_out_names_both_files(run_dir: Path, tmp_path: Path) -> None:
    out = write_report(run_dir, tmp_path / "deep" / "页.html")
    assert out.exists() and out.with_suffix(".json").exists()
    with pytest.raises(UsageError, match="json"):
        write_report(run_dir, tmp_path / "page.json")


def test_the_picture_stands_alone(run_dir: Path, tmp_path: Path) -> None:
    svg = write_picture(run_dir, tmp_path / "picture.svg").read_text("utf-8")
    names = {"".join(text.itertext()) for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"held-out", "training", "all", "right", "wrong", "share of right answers", "tokens per response"} <= names
    assert "var(" not in svg
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run_dir / "run.json", bare)
    with pytest.raises(DunwuError, match="no held-out score"):
        write_picture(bare, tmp_path / "none.svg")


def test_the_same_run_gives_the_same_page(run_dir: Path, html: str, tmp_path: Path) -> None:
    assert write_report(run_dir, tmp_path / "again.html").read_text("utf-8") == html


@pytest.mark.parametrize("missing", ["evidence.json", "rollouts.jsonl.zst", "metrics.jsonl", "stages", "all"])
def test_missing_pieces_become_sentences(run_dir: Path, tmp_path: Path, missing: str) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run_dir, partial)
    for entry in list(partial.iterdir()):
        if entry.name == missing or (missing == "all" and entry.name != "run.json"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    page = check(write_report(partial).read_text("utf-8"))
    text = " ".join(page.text)
    said = {
        "evidence.json": "the evidence stage has not run",
        "rollouts.jsonl.zst": "No sampled groups were kept",
        "metrics.jsonl": "No training metrics have been logged",
        "stages": "No stage has begun",
        "all": "no held-out score yet",
    }
    assert said[missing] in text
    assert "nan" not in text.lower().split()


def test_a_running_and_a_torn_run(run_dir: Path, tmp_path: Path) -> None:
    torn = tmp_path / "run"
    shutil.copytree(run_dir, torn)
    record = json.loads((torn / "run.json").read_text("utf-8")) | {"status": "running", "end": None, "config": None}
    (torn / "run.json").write_text(json.dumps(record), "utf-8")
    for name in ("metrics.jsonl", "rollouts.jsonl.zst"):
        whole = (torn / name).read_bytes()
        (torn / name).write_bytes(whole[: len(whole) // 2 + 3])
    text = " ".join(check(write_report(torn).read_text("utf-8")).text)
    assert "had not ended when this page was written" in text and "Training: r1-zero" in text


@pytest.mark.parametrize(
    "evidence",
    [
        {"checkpoints": []},
        {"checkpoints": [{"name": "base"}], "shown": [{}], "controls": [{}], "seeds": [{}], "verdicts": [{}]},
        {"checkpoints": [{"pass@1": {"value": 0.5}}, {"pass@1": {"value": 0.6, "low": None, "high": None}}],
         "difference": {"value": 0.1, "low": None, "high": None}, "over_seeds": {"base": None}},
        {"shown": [{"problem": {"question": "<b>?"}, "completions": [{"completion": "x"}]}], "notes": ["<i>"]},
    ],
)  # fmt: skip
def test_partial_evidence(run_dir: Path, tmp_path: Path, evidence: dict[str, Any]) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run_dir, partial)
    (partial / "evidence.json").write_text(json.dumps(evidence), "utf-8")
    page = check(write_report(partial).read_text("utf-8"))
    assert not {"b", "i"} & {tag for tag, attributes in page.tags if tag == "i"}


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DunwuError, match=r"no run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{torn", "utf-8")
    with pytest.raises(DunwuError, match="damaged"):
        write_report(tmp_path)


def data_of(**pieces: Any) -> dict[str, Any]:
    return {"evidence": {}, "curves": {}, "rl_stages": [], "run": {}} | pieces


def test_headline_and_verdicts_by_hand() -> None:
    base = {"value": 0.3, "low": 0.25, "high": 0.35, "n": 100}
    better = {"value": 0.6, "low": 0.55, "high": 0.65, "n": 100}
    close = {"value": 0.36, "low": 0.31, "high": 0.41, "n": 100}
    falling = [(float(step), 0.4 - 0.01 * step) for step in range(20)]
    longer = [(float(step), 50.0 + step) for step in range(20)]

    def holds(result: dict[str, Any], **more: Any) -> dict[str, Any]:
        evidence = {"checkpoints": [{"pass@1": base}, {"pass@1": result}], **more}
        curves = {
            "held-out": {"eval/length": longer},
            "r": {"emergence/false_checks": falling, "emergence/backtracks": falling},
        }
        return {v["claim"]: v["holds"] for v in verdicts(data_of(evidence=evidence, curves=curves, rl_stages=["r"]))}

    found = holds(better)
    assert found["Rule rewards alone raise the held-out score"] is True
    assert found["Score and response length rise together"] is True
    assert found["False checks become rarer"] is True and found["Backtracking becomes more frequent"] is False
    claim = "Rule rewards alone raise the held-out score"
    assert holds(close)[claim] is None  # the intervals overlap
    assert holds(close)["Score and response length rise together"] is None
    assert holds({"value": 0.1, "low": 0.05, "high": 0.15, "n": 100})[claim] is False
    paired = {"value": 0.06, "low": 0.02, "high": 0.1, "n": 100}
    assert holds(close, difference=paired)[claim] is True
    only_curve = data_of(curves={"held-out": {"eval/pass@1": [(0.0, 0.3), (10.0, 0.5)]}})
    assert headline(only_curve)["result"] == {"value": 0.5, "low": None, "high": None}
    assert verdicts(only_curve)[0]["holds"] is None  # without an interval the question stays open
    assert headline(data_of()) == {} and verdicts(data_of()) == []


def test_held_out_measurements_win_over_training_ones() -> None:
    curves = {
        "r": {"grpo/reward": [(1.0, 0.0)], "emergence/tries": [(1.0, 1.0)]},
        "held-out": {"emergence/tries": [(1.0, 2.0)]},
    }
    assert curve(data_of(curves=curves, rl_stages=["r"]), "emergence/tries") == [(1.0, 2.0)]


def test_small_things() -> None:
    assert change([(1, 0.0), (2, 4.0)]) == (0.0, 4.0, None) and change([(1, 0.0)]) is None
    noise = [(float(step), random.Random(step).gauss(1, 1)) for step in range(100)]
    for points, rises in [
        (noise, None),
        ([(step, y + step / 10) for step, y in noise], True),
        ([(step, -step) for step in range(100)], False),
    ]:
        found = change(points)
        assert found is not None and found.rises is rises
    assert evenly(list(range(100)), 3) == [0, 50, 99] and evenly([1, 2], 5) == [1, 2]
    assert clip({"a": ["x" * (LONGEST_TEXT + 7)]})["a"][0].endswith("… [7 more characters]")
    assert clip({"a": [math.nan, math.inf, 1.5]}) == {"a": [None, None, 1.5]}
    assert [duration(s) for s in (0.5, 48, 365.2, 7620)] == ["0.5 s", "48 s", "6 min 05 s", "2 h 07 min"]
    assert [number(v) for v in (None, False, 7, 1500.0, 0.25, "<a>")] == [
        "–",
        "false",
        "7",
        "1,500",
        "0.25",
        "&lt;a&gt;",
    ]
    assert (
        exact(0.000123456789) == "0.000123456789"
        and exact("") == "&quot;&quot;"
        and exact([0.9, 0.95]) == "[0.9, 0.95]"
    )
    assert interval({"value": 0.5, "low": None, "high": None}) == "0.500" and interval(None) == "–"
    assert "✓" in mark(True) and "✗" in mark(False) and "open" in mark(None)
    assert safe("a\u200b<\"'>\t\n\x07") == "a\ufffd&lt;&quot;&#x27;&gt;\t\n␇"


def test_marks_do_not_change_the_text() -> None:
    text = "<think>Keep 7: 3*5=15, no. Wait, (12-7)*3=15, yes!</think>\n<answer>(12-7)*3</answer>"
    for cut in range(len(text)):
        page = Checker()
        page.feed(marked({"numbers": [3, 7, 12], "target": 15}, text[:cut]))
        page.close()
        assert "".join(page.text) == text[:cut]


def test_stage_figure_draws_direct_inputs_only() -> None:
    def stage(name: str, *inputs: str) -> dict[str, Any]:
        return {
            "stage": name,
            "key": name,
            "inputs": list(inputs),
            "metrics": {"x": 1},
            "seconds": 2.0,
            "status": "done",
        }

    chain = [stage("a"), stage("b", "a"), stage("c", "a", "b"), stage("d", "c")]
    assert stage_figure(chain).count("marker-end") == 3  # a→c goes through b
    fork = [stage("a"), stage("b"), stage("c", "a", "b", "gone")]
    assert stage_figure(fork).count("marker-end") == 2
    many = [stage("s0"), *(stage(f"s{n}", f"s{n - 1}") for n in range(1, 12))]
    check(stage_figure(many))
    assert stage_figure([]) == ""


def test_a_cycle_of_stages_does_not_hang(run_dir: Path, tmp_path: Path) -> None:
    loop = tmp_path / "run"
    shutil.copytree(run_dir, loop)
    for name, other in (("a", "b"), ("b", "a")):
        (loop / "stages" / f"{name}.json").write_text(
            json.dumps({"stage": name, "key": name, "inputs": [other]}), "utf-8"
        )
    assert {"a", "b"} <= {stage["stage"] for stage in collect(loop)["stages"]}


def test_colours_can_be_read_in_light_and_dark() -> None:
    css = (Path(__file__).parents[2] / "dunwu" / "eval" / "report.css").read_text("utf-8")
    themes = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)) for block in css.split(":root")[1:3]]
    for theme in themes:
        for name in ("ink", "soft", "s1", "s2", "s3", "s4", "s6", "true", "false", "word", "goal"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, name
            assert contrast(theme[name], theme["raised"]) >= 4.5, name
        assert contrast(theme["true"], theme["true-bg"]) >= 4.5 and contrast(theme["false"], theme["false-bg"]) >= 4.5
        assert contrast(theme["s5"], theme["paper"]) >= 3
