"""The study of policy gradients on invented units: figures worked by hand, claims either way, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dunwu.eval.plots import Panel, Series, chart
from dunwu.eval.report import write_report
from dunwu.eval.report_rl_study import BY, curves_svg, rl_study_section, rl_study_sentence
from dunwu.eval.rl_comparison import at, compare, differing, mean_curve, said, study_table
from dunwu.log import Run
from dunwu.store import Store

SHARED = {"steps": 10, "problems": 4, "group_size": 8, "lr": 1e-4, "off": {"tis": "none", "cap": 2.0}}
ARMS = ("grpo", "ppo", "ppo-lambda-1")


def share(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50}


def unit(arm: str, seed: int, score: float, seconds: float, task: str = "countdown", **also: Any) -> dict[str, Any]:
    """A training that rises straight from 0.2 to its score."""
    curve = [
        {
            "step": step,
            "samples": 32 * step,
            "processor_seconds": seconds * step / 10,
            "seconds": seconds * step / 5,
            "pass@1": 0.2 + (score - 0.2) * step / 10,
            "length": 50.0,
        }
        for step in (0, 5, 10)
    ]
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "pass@1": share(score),
        "pass@k": share(min(0.9, score + 0.3)),
        "length": 60.0,
        "processor_seconds": seconds,
        "seconds": 2 * seconds,
        "memory": {"policy": 1_000_000, "optimizer": 6_000_000} | ({"critic": 7_000_000} if "ppo" in arm else {}),
        "curve": {"held_out": curve, "entropy": [[step, 0.5 - step / 100] for step in range(1, 11)]},
        **also,
    }


def study(units: list[dict[str, Any]], **also: Any) -> dict[str, Any]:
    base = {"problems": 50, "samples": 16, "pass@1": share(0.2), "k": 16, "pass@k": share(0.8), "length": 40.0}
    settings = {arm: {**SHARED, "lam": 0.95 if arm == "ppo" else 1.0} for arm in ARMS}
    return compare(units, {"countdown": base}, SHARED, settings, ["countdown"], ARMS, **also)


def three_seeds(grpo: float, ppo: float, ppo_1: float, spread: float = 0.01) -> list[dict[str, Any]]:
    """GRPO takes 10 processor seconds, PPO 20; seeds lie `spread` apart, the same way in every arm but a little."""
    found = []
    for seed in range(3):
        for arm, score, seconds, tilt in zip(ARMS, (grpo, ppo, ppo_1), (10.0, 20.0, 20.0), (0.0, 0.1, 0.2)):
            found.append(unit(arm, seed, score + spread * (seed - 1) * (1 + tilt), seconds))
    return found


def verdict(found: dict[str, Any], words: str) -> dict[str, Any]:
    (one,) = [v for v in found["verdicts"] if words in v["claim"]]
    return dict(one)


def test_figures_at_equal_samples_and_at_equal_processor_seconds() -> None:
    found = study(three_seeds(0.8, 0.4, 0.6))
    part = found["tasks"]["countdown"]
    assert part["seeds"] == [0, 1, 2] and part["equal_seconds"] == 10.0
    grpo, ppo, _ = part["rows"]
    assert grpo["pass@1"]["value"] == pytest.approx(0.8) == grpo["at_equal_seconds"]["value"]
    assert ppo["at_equal_seconds"]["value"] == pytest.approx(0.3)  # halfway from 0.2 to 0.4
    assert grpo["pass@1"]["high"] - 0.8 == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)  # Student's t, 2 degrees
    assert (grpo["processor_seconds_per_step"], grpo["seconds_per_step"]) == (1.0, 2.0)
    assert (grpo["memory_mb"], ppo["memory_mb"]) == (7.0, 14.0)
    assert grpo["on_the_way"]["value"] == pytest.approx(0.5)
    assert grpo["entropy"] == pytest.approx(0.445) and grpo["samples"] == 320
    assert [row[:2] for row in part["curves"]["ppo"]] == [[0.0, 0.0], [160.0, 10.0], [320.0, 20.0]]


def test_claims_hold_fail_or_stay_open() -> None:
    clear = study(three_seeds(0.8, 0.4, 0.79))
    assert verdict(clear, "ahead of PPO, λ = 0.95, at equal samples")["holds"] is True
    assert verdict(clear, "comes within")["holds"] is True
    assert verdict(clear, "better with λ = 1 than")["holds"] is True
    assert verdict(clear, "ahead of PPO, λ = 1, at equal processor seconds")["holds"] is True
    assert verdict(clear, "PPO, λ = 1 raises pass@16")["holds"] is True
    against = study(three_seeds(0.4, 0.8, 0.7))
    assert verdict(against, "ahead of PPO, λ = 0.95, at equal samples")["holds"] is False
    assert verdict(against, "comes within")["holds"] is False
    assert verdict(against, "GRPO raises pass@16")["holds"] is False
    assert verdict(against, "better with λ = 1 than")["holds"] is False
    noisy = study(three_seeds(0.5, 0.48, 0.49, spread=0.2))
    assert {v["holds"] for v in noisy["verdicts"]} == {None}
    assert "3 seeds" in noisy["verdicts"][0]["figure"] and "more seeds" in noisy["verdicts"][0]["reason"]


def test_one_seed_decides_nothing() -> None:
    found = study([u for u in three_seeds(0.8, 0.4, 0.6) if u["seed"] == 1])
    assert {v["holds"] for v in found["verdicts"]} == {None}
    row = found["tasks"]["countdown"]["rows"][0]
    assert row["pass@1"] == share(0.8) and row["at_equal_seconds"]["low"] is None
    assert "one seed" in found["verdicts"][0]["figure"]
    json.dumps(found, allow_nan=False)


def test_variants_are_compared_over_their_own_seeds() -> None:
    units = [*three_seeds(0.8, 0.4, 0.6), unit("dapo", 0, 0.9, 15.0)]
    found = study(units, variants=["dapo", "grpo"], variant_seeds=[0], variant_task="countdown")
    assert [row["arm"] for row in found["variants"]["rows"]] == ["dapo", "grpo"]
    assert {row["seeds"] for row in found["variants"]["rows"]} == {1}
    assert found["tasks"]["countdown"]["rows"][0]["seeds"] == 3
    assert "variants on countdown" in study_table(found)


def test_a_curve_is_read_between_its_points() -> None:
    curve = unit("grpo", 0, 0.8, 10.0)["curve"]["held_out"]
    assert [at(curve, seconds) for seconds in (-1.0, 0.0, 2.5, 10.0, 99.0)] == pytest.approx([0.2, 0.2, 0.35, 0.8, 0.8])
    assert [row[2]["value"] for row in mean_curve([curve, curve[:2]])] == pytest.approx([0.2, 0.5])


def test_settings_are_said_whole_once_and_then_by_difference() -> None:
    own = {**SHARED, "lr": 2e-4, "off": {"tis": "truncate", "cap": 2.0}, "lam": 1.0}
    assert differing(own, SHARED) == {"lr": 2e-4, "off.tis": "truncate", "lam": 1.0}
    assert said(differing(own, SHARED)) == "lr=0.0002 off.tis=truncate lam=1"
    found = study(three_seeds(0.8, 0.4, 0.6))
    text = study_table(found)
    assert "shared: steps=10" in text and "off.tis=none" in text and "\nppo: lam=0.95\n" in text
    assert "yes  countdown: GRPO is ahead" in text


def test_the_page_says_everything_and_escapes_it(tmp_path: Path) -> None:
    units = three_seeds(0.8, 0.4, 0.6)
    found = study(units)
    found["arms"]["<b>"] = {"x": "<script>"}
    page = rl_study_section(found)
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert [svg[0].text for svg in drawings] == [f"countdown: held-out pass@1 by {by}" for by in BY]
    assert "PPO,\u00a0λ\u00a0=\u00a00.95" in page and "after 10 processor s" in page and "lam=0.95" in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert rl_study_sentence(found) == "countdown from 20.0%; GRPO: 80.0%; PPO, λ = 0.95: 40.0%; PPO, λ = 1: 60.0%"
    run = Run.open(tmp_path / "run", "rl-study", {}, 0, Store(tmp_path / "store"))
    for step, score in ((0, 0.1), (5, 0.9)):
        run.log("countdown-grpo-seed0/held-out", step, {"eval/pass@1": score})
    (run.dir / "evidence.json").write_text(json.dumps({"rl_study": found, "verdicts": found["verdicts"]}), "utf-8")
    run.finish("done")
    html = write_report(run.dir).read_text("utf-8")
    assert "countdown from 20.0%" in html and "✓ holds" in html and "Rule rewards alone" not in html


def test_bands_are_drawn_within_the_axes() -> None:
    found = study(three_seeds(0.8, 0.4, 0.6, spread=0.3))
    drawn = curves_svg(found, "countdown", "samples")
    assert drawn.count("stroke:none;opacity:") == 3
    edges = [tuple(map(float, corner.split())) for corner in re.findall(r"M([^Z\"]*)Z", drawn)[0].split("L")]
    assert len(edges) == 6 and edges[0][0] == edges[-1][0] < edges[2][0] == edges[3][0]
    assert all(high <= low for (_, high), (_, low) in zip(edges[:3], reversed(edges[3:])))
    alone = chart(
        [Panel([Series("a", [(0, 0.5), (1, 0.5)], band=[(0, 0.2, 0.8), (1, float("nan"), 0.9)])], "share")], "t"
    )
    assert alone.count('Z"') == 1 and "nan" not in alone
