"""What the documentation says is so: its links lead somewhere, its commands exist, what is generated is fresh."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dunwu.cli import main
from dunwu.commands import COMMANDS
from dunwu.eval.verdicts import Findings, seed_verdicts, shape_verdicts
from dunwu.recipes import RECIPES, get_recipe
from dunwu.recipes.flags import parse_flags
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.recipes.r1_table import plan
from dunwu.tasks import get_task, score_stream
from dunwu.tasks.user import load_task
from dunwu.types import DunwuError
from dunwu.world.knobs import Hands, Knobs

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = _load(ROOT / "docs" / "build.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", page.read_text(encoding="utf-8"))
    targets = [first or second for first, second in links]
    missing = [
        t for t in targets if not t.startswith(("http:", "https:", "mailto:")) and not (page.parent / t).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_exist(page: Path) -> None:
    named = re.findall(r"(?:^\s*\$ |`|bin/)dunwu ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    known = {name.split()[0] for name in COMMANDS}
    assert set(named) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(
        r"`make ([a-z0-9-]+)|^\s+make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert {first or second for first, second in named} <= targets


# ---- what docs/build.py writes, and the two READMEs


def test_generated_blocks_are_fresh() -> None:
    assert [file.name for file in BUILD.tables(ROOT, check=True)] == [], "run: python docs/build.py tables"


def test_records_say_where_they_come_from() -> None:
    for file in (ROOT / "docs" / "results").glob("*.json"):
        record = json.loads(_text(file))
        assert record["name"] == file.stem
        assert record.keys() - {"seed", "seeds"} == {"name", "command", "commit", "date", "machine", "result"}
        assert record["commit"] and record["command"] and isinstance(record["result"], dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command line of a shell block, with its flags; what it names need not exist."""
    parsed = []

    def pretend(args: argparse.Namespace) -> dict[str, Any]:
        if hasattr(args, "recipe"):
            recipe = get_recipe(args.recipe)
            parse_flags(recipe.presets[args.preset or recipe.default_preset], args.rest, also=args.flags).validate()
        parsed.append(args)
        return {}

    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, replace(command, run=pretend, show=lambda result: None))
    shown = [words for line in _shell_lines(page) for words in _dunwu_commands(line)]
    for words in shown:
        assert main(words) == 0, words
    assert len(parsed) == len(shown)


def test_the_score_example_prints_what_it_shows() -> None:
    for page in READMES:
        asked, printed = re.findall(
            r"```console\n\$ echo '(.*)' \| dunwu score --task countdown\n(.*)\n```", _text(page)
        )[0]
        out = io.StringIO()
        score_stream(get_task("countdown"), [asked.encode()], out)
        assert out.getvalue().strip() == printed


def test_readmes_say_the_same_in_two_languages() -> None:
    english, chinese = map(_text, READMES)
    for what in (
        r"^(#+) ",  # sections
        r"<!-- (begin: \S+) -->",
        r"^\| (`dunwu [^|`]*`) \|",  # the table of commands
        r"\]\(([^)]+\.(?:svg|json))\)",
        r"^\s+([\w./-]+)  ",  # file trees
    ):
        found = re.findall(what, english, re.MULTILINE)
        assert found and found == re.findall(what, chinese, re.MULTILINE), what
    assert [*_shell_lines(READMES[0])] == [*_shell_lines(READMES[1])]
    pages = [[t.replace(".zh-CN", "") for t in re.findall(r"\]\(([^)#]+\.md)\)", text)] for text in (english, chinese)]
    assert sorted({*pages[0], "README.md"}) == sorted({*pages[1], "README.md"})


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_readme_lists_what_there_is(page: Path) -> None:
    text = _text(page)
    tree = re.search(r"^dunwu/\n((?:  .*\n)+)", text, re.MULTILINE)
    assert tree
    listed = re.findall(r"^  ([\w./]+)  ", tree[1], re.MULTILINE)
    package = [entry for entry in (ROOT / "dunwu").iterdir() if not entry.name.startswith(("_", "."))]
    there = [entry.name + "/" * entry.is_dir() for entry in package if entry.is_dir() or entry.suffix == ".py"]
    assert sorted(listed) == sorted(there)
    table = re.findall(r"^\| `dunwu ([^|`]*)` \|", text, re.MULTILINE)
    assert [" ".join(word for word in row.split() if word.isalpha() and word.islower()) for row in table] == list(
        COMMANDS
    )
    assert all(f"`{name}`" in text for name in RECIPES)


def test_the_task_of_the_readme_is_one(tmp_path: Path) -> None:
    """The file shown passes the checks of `load_task`, and is no longer than the README says."""
    code = re.findall(r"```python\n(.*?)```", _text(READMES[0]), re.DOTALL)[0]
    assert code in _text(READMES[1]) and len(code.splitlines()) <= 12
    (tmp_path / "letters.py").write_text(code)
    task = load_task(tmp_path / "letters.py")
    problem = task.problem("test", 0, 0)
    assert task.score(problem, task.gold(problem)).reward == 1.0


def test_settings_of_r1_are_flags_with_the_values_shown() -> None:
    """Every flag of the table, given the value it has, is a flag and changes nothing."""
    recipe, blocks = get_recipe("r1"), BUILD.blocks_r1
    config = recipe.presets[blocks.PRESET]
    words: list[str] = []
    for path in (path for _, _, settings in blocks.PAPER for *_, path in settings):
        value = blocks._field(config, path)
        words += [f"--{path}", *map(str, value if isinstance(value, tuple) else (value,))]
    assert parse_flags(config, words) == config
    assert [blocks._shown(value) for value in (2e-4, 0.7, 3.0, 12_000, ("0.5M", "tiny"))] == [
        "2e-4", "0.7", "3", "12,000", "0.5M, tiny",
    ]  # fmt: skip


def test_what_r1_measures_and_claims_has_chinese() -> None:
    blocks = BUILD.blocks_r1
    assert {column.key for column in plan(R1_PRESETS["cpu"], "chat")} == set(blocks.ZH_COLUMNS)
    runs = [
        {
            "seed": n,
            "scores": {m: {"reasoning": 0.5} for m in ("R1-Zero", "Dev1", "Dev2", "Dev3", "R1")}
            | {"rm-helpful": {"agreement": 0.75}},
        }
        for n in (0, 1)
    ]
    claims = [verdict["claim"] for verdict in [*shape_verdicts(Findings({})), *seed_verdicts(runs)]]
    assert len(claims) == 16
    assert [claim for claim in claims if blocks.chinese_claim(claim) == claim] == []
    assert (
        blocks.chinese_claim("R1 beats Dev1 by at least 0.25 on held-out reasoning")
        == "留出推理题上 R1 比 Dev1 至少高 0.25"
    )


def test_every_knob_is_explained_in_both_languages() -> None:
    known = [f"| `{field.name}` |" for kind in (Knobs, Hands) for field in fields(kind) if field.type != "Hands"]
    for name in ("world.md", "world.zh-CN.md"):
        assert [row for row in known if row not in _text(ROOT / "docs" / name)] == []
    assert set(BUILD.blocks_world.ZH_KNOBS) == {f.name for f in fields(Knobs) if f.type != "Hands"}
    assert set(BUILD.blocks_world.ZH_HANDS) == {f.name for f in fields(Hands)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_plain_words(page: Path) -> None:
    """No path of somebody's machine, no advertising."""
    text = _text(page)
    assert re.findall(r"(?<![\w.:/~-])/(?:home|root|Users|tmp|mnt|opt|srv|work)/\S*", text) == []
    hype = r"blazing|cutting.edge|state.of.the.art|revolution|seamless|effortless|game.chang|world.class|震撼|颠覆|碾压|吊打|史上最|遥遥领先|黑科技"
    assert re.findall(hype, text, re.IGNORECASE) == []


# ---- docs/build.py itself


def test_build_records_and_writes_a_study(tmp_path: Path) -> None:
    """A made-up study appears in the page with its controls, in the page's language; a second build changes nothing."""
    results = tmp_path / "docs" / "results"
    (tmp_path / "study.json").write_text(json.dumps(_study()))
    file = BUILD.record("r1-zero-study", "dunwu run r1-zero-study", tmp_path / "study.json", [0, 1], results)
    assert json.loads(file.read_text("utf-8"))["seeds"] == [0, 1]
    marked = "".join(
        f"<!-- begin: {n} -->\nold\n<!-- end: {n} -->\n" for n in ("results", "verdicts", "behaviours", "picture")
    )
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / name).write_text(f"before\n{marked}after\n", encoding="utf-8")
    assert {file.name for file in BUILD.tables(tmp_path, check=True)} == {"README.md", "README.zh-CN.md"}
    assert "old" in _text(tmp_path / "README.md")
    BUILD.tables(tmp_path, check=False)
    assert BUILD.tables(tmp_path, check=True) == []
    text, chinese = _text(tmp_path / "README.md"), _text(tmp_path / "README.zh-CN.md")
    assert "| **mean of 2 seeds** (95% interval) | 0.300 (0.200 … 0.400) | 0.700 | +0.400 |" in text
    assert "| control: random reward | 0.310 (0.280 … 0.340) | 0.300 | -0.010 |" in text
    assert "| four numbers, seed of the run | 0.100 | 0.200 | +0.100 |" in text
    assert (
        "| Mean gain ≥ 0.3 | yes | 0.400 |" in text
        and "| control: random reward: \\|Δ\\| ≤ 0.03 | yes | -0.010 |" in text
    )
    assert "| tokens | 60 | 120 |" in text and "| true checks | 0.50 | 2.00 |" in text
    assert text.startswith("before\n") and text.endswith("after\n")
    assert (
        "| 对照：随机奖励 | 0.310 (0.280 … 0.340) | 0.300 | -0.010 |" in chinese
        and "| 平均提升 ≥ 0.3 | 成立 |" in chinese
    )
    assert "r1-zero.svg" not in text
    (results / "r1-zero.svg").write_text("<svg/>")
    assert "](docs/results/r1-zero.svg)" in BUILD.build(tmp_path)[tmp_path / "README.md"]


def test_build_writes_the_tables_of_r1(tmp_path: Path) -> None:
    """A made-up study, whose every figure is found again where it belongs."""
    results = tmp_path / "docs" / "results"
    names = ("r1-table", "r1-verdicts", "r1-seeds", "r1-students", "r1-language", "r1-rewards", "r1-cost")
    marked = "".join(f"<!-- begin: {name} -->\n<!-- end: {name} -->\n" for name in names)
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / name).write_text(marked, encoding="utf-8")
    assert BUILD.build(tmp_path)[tmp_path / "README.md"].count("not measured yet") == len(names)
    (tmp_path / "study.json").write_text(json.dumps(_stages()))
    BUILD.record("r1-study", "dunwu run r1-study", tmp_path / "study.json", [4, 5], results)
    (tmp_path / "time.json").write_text('{"minutes": 48, "stages": {"base": 600, "dev1": 66, "table": 1, "pairs": 2}}')
    BUILD.record("time-r1", "make r1", tmp_path / "time.json", [], results)
    built = BUILD.build(tmp_path)
    text, chinese = built[tmp_path / "README.md"], built[tmp_path / "README.zh-CN.md"]
    for row in (
        "| held out | base | Dev1 | Dev2 | R1 |",
        "| Reasoning | 0.100<br><sub>0.050 … 0.150</sub> | 0.300<br><sub>0.250 … 0.350</sub> | 0.400 | 0.600<br><sub>0.550 … 0.650</sub> |",
        "| Length in tokens | 50 | 60 | 70 |  |",
        "(9 to 9 a figure). Seed 4.",
        "| Cold start lowers reasoning (Dev1 below R1-Zero) | **NO** | +0.1 | little is lost |",
        "| held-out reasoning | seed 4 | seed 5 | mean, all | mean, hard | mean, easy |",
        "| R1 | 0.600 | 0.700 | 0.650<br><sub>0.500 … 0.800</sub> |  |  |",
        "| 0.5M | SFT on R1's data | 0.450 | 1.5 |",
        "| R1, the teacher |  | 0.600<br><sub>0.550 … 0.650</sub> |  |",
        "| Dev2, 70 steps with the reward | 1.000 | 0.900 | 0.400 |", "| 20 steps without it | 0.800 | 0.700 | 0.500 |",
        "| helpful | 70 | 0.700 | 0.800 | 0.050 |",
        "| `base` | 10.0 |", "| `dev1` | 1.1 |", "| 2 shorter ones | 0.1 |",
    ):  # fmt: skip
        assert row in text, row
    assert "no language reward" not in text and "student-0.5M-sft" not in text
    assert "| 冷启动降低推理（Dev1 低于 R1-Zero） | **不成立** | +0.1 | little is lost |" in chinese
    assert "| 推理 | 0.100<br><sub>0.050 … 0.150</sub> |" in chinese and "| 另外 2 个 | 0.1 |" in chinese


def test_build_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- begin: results -->\n<!-- end: results -->\n")
    assert "not measured yet" in BUILD.build(tmp_path)[page]
    page.write_text("<!-- begin: measured -->\n<!-- end: measured -->\n")
    assert BUILD.build(tmp_path)[page].count("not measured yet") == len(BUILD.blocks_results.MEASURED)
    for text, complaint in (
        ("<!-- begin: nonsense -->\n<!-- end: nonsense -->\n", "no block is called 'nonsense'"),
        ("<!-- begin: results -->\n", "no partner"),
        ("<!-- begin: results -->\n<!-- end: verdicts -->\n", "no partner"),
    ):
        page.write_text(text)
        with pytest.raises(DunwuError, match=complaint):
            BUILD.build(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    for name, source in (("Bad Name", "list.json"), ("fine", "list.json"), ("fine", "absent.json")):
        with pytest.raises(DunwuError):
            BUILD.record(name, "true", tmp_path / source, [], tmp_path)


def test_build_keeps_what_a_command_printed(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("done ✓\n", encoding="utf-8")
    results = tmp_path / "docs" / "results"
    BUILD.record("output-test", "make test", tmp_path / "out.txt", [], results)
    (tmp_path / "speed.json").write_text('{"seconds": 90.0}')
    BUILD.record("time-test", "make test", tmp_path / "speed.json", [], results)
    (tmp_path / "README.md").write_text(
        "<!-- begin: output-test -->\n<!-- end: output-test -->\n<!-- begin: measured -->\n<!-- end: measured -->\n"
    )
    text = BUILD.build(tmp_path)[tmp_path / "README.md"]
    assert "```text\ndone ✓\n```\n<sub>`make test`, " in text
    assert "| `make test` | 1.5 min | `make test` |" in text


def _study() -> dict[str, Any]:
    def interval(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
        return {"value": value, "low": low, "high": high, "n": 2}

    return {
        "seeds": [{"seed": s, "base": 0.3, "result": 0.7, "curve": [[0, 0.3], [10, 0.7]]} for s in (0, 1)],
        "over_seeds": {"base": interval(0.3, 0.2, 0.4), "result": interval(0.7), "difference": interval(0.4)},
        "controls": [
            {
                "name": "random reward",
                "base": interval(0.31, 0.28, 0.34),
                "result": interval(0.30),
                "curve": [[0, 0.31], [10, 0.3]],
                "expected": "|Δ| ≤ 0.03",
                "holds": True,
            }
        ],
        "verdicts": [{"claim": "Mean gain ≥ 0.3", "holds": True, "figure": "0.400"}],
        "curve": [[0, 0.3, 60.0], [10, 0.7, 120.0]],
        "checkpoints": [
            {
                "four_operands": interval(0.1),
                "behaviours": {"emergence/length_all": 60.0, "emergence/true_checks": 0.5},
            },
            {
                "four_operands": interval(0.2),
                "behaviours": {"emergence/length_all": 120.0, "emergence/true_checks": 2.0},
            },
        ],
    }


def _stages() -> dict[str, Any]:
    """`stages.json` of a study, as far as the tables read it."""

    def interval(value: float, spread: float | None = None) -> dict[str, Any]:
        return {"value": value, "low": spread and value - spread, "high": spread and value + spread, "n": 9}

    def model(name: str, **scores: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "scores": scores}

    language = [{"language": interval(a), "language_zh": interval(b)} for a, b in ((0.9, 0.8), (1.0, 0.9), (0.8, 0.7))]
    return {
        "columns": [{"key": "reasoning", "title": "Reasoning"}, {"key": "length", "title": "Length"}],
        "models": [
            model("base", reasoning=interval(0.1, 0.05), length=interval(50.0)),
            model("Dev1", reasoning=interval(0.3, 0.05), length=interval(60.0), **language[0]),
            model("Dev2", reasoning=interval(0.4), length=interval(70.0), **language[1]),
            model("R1", reasoning=interval(0.6, 0.05)),
            model("no language reward", reasoning=interval(0.5), **language[2]),
            model("student-0.5M-sft", reasoning=interval(0.45)),
        ],
        "verdicts": [
            {
                "claim": "Cold start lowers reasoning (Dev1 below R1-Zero)",
                "holds": False,
                "figure": "+0.1",
                "reason": "not reproduced: little is lost",
            }
        ],
        "language_ablation": {"with": [[0, 0.9, 0.3], [70, 1.0, 0.4]], "without": [[0, 0.9, 0.3], [20, 0.8, 0.5]]},
        "students": [
            {
                "name": "student-0.5M-sft",
                "arm": "sft",
                "size": "0.5M",
                "scores": {"reasoning": interval(0.45)},
                "seconds": 90,
            }
        ],
        "reward_models": [
            {"name": "helpful", "rows": 70, "accuracy": interval(0.7), "agreement": interval(0.8), "ece": 0.05}
        ],
        "seeds": [{"seed": 4 + n, "scores": {"R1": {"reasoning": 0.6 + n / 10}}} for n in (0, 1)],
        "over_seeds": {"R1": {"reasoning": interval(0.65, 0.15)}},
    }


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _shell_lines(page: Path) -> Iterator[str]:
    """Commands of the page's shell blocks, without comments; one that goes on after a backslash is one."""
    for block in re.findall(r"^```sh\n(.*?)^```", _text(page), re.DOTALL | re.MULTILINE):
        yield from filter(None, (line.partition(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines()))
    yield from re.findall(r"^\$ (.*)", _text(page), re.MULTILINE)


def _dunwu_commands(line: str) -> Iterator[list[str]]:
    """The words after `dunwu` of every command of a pipe."""
    words = shlex.split(line)
    while words:
        end = words.index("|") if "|" in words else len(words)
        if words[0].rpartition("/")[2] == "dunwu":
            yield words[1:end]
        words = words[end + 1 :]
