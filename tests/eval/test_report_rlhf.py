"""The claims, the page and the picture of RLHF, from figures made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dunwu.eval.report_rlhf import KEEPS, curve_svg, rlhf_section, rlhf_sentence, rlhf_table, rlhf_verdicts


def interval(value: float, half: float = 0.01) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 100}


def figures(step: int, truth: float, proxy: float = 1.0, kl: float = 1.0) -> dict[str, Any]:
    named = {"step": step, "kl": kl, "length": 12.0, "refusals": 0.05, "disagreement": None, "parts": {}}
    return named | {"truth": interval(truth), "proxy": interval(proxy)}


def arm(name: str, peak: float, last: float, kl_coef: float = 0.0, judges: str = "one", method: str = "ppo") -> Any:
    """SFT is at 0.5, and the plain arm goes from 0.6 to 0.3."""
    curve = [(0, 0.0, 0.0, 0.5), (5, 1.0, 1.0, peak), (10, 9.0, 2.0, last)]
    keys = ("step", "kl", "proxy", "truth")
    return {
        "name": name,
        "judges": judges,
        "kl_coef": kl_coef,
        "ptx_coef": 0.0,
        "method": method,
        "plain": name == "no-kl",
        "curve": [dict(zip(keys, point, strict=True)) for point in curve],
        "peak": figures(5, peak),
        "stop": figures(5, peak),
        "last": figures(10, last, 2.0, 9.0),
        "gain": {"peak": interval(peak - 0.5), "stop": interval(peak - 0.5), "last": interval(last - 0.5)},
        "fall": {"truth": interval(last - peak), "proxy": interval(1.0)},
        "stopped": interval(peak - last),
        "against": {"peak": interval(peak - 0.6), "last": interval(last - 0.3)},
    }


def found(*others: Any) -> dict[str, Any]:
    return {
        "measure": "100 test prompts, one reply each, temperature 1",
        "kl_budget": 2.0,
        "sft": figures(0, 0.5, 0.0, 0.0),
        "reward": {
            "pairs": 900,
            "bayes_accuracy": 0.75,
            "labelers": 0.7,
            "rows": [
                {
                    "judges": "one",
                    "accuracy": interval(0.6),
                    "of_bayes": interval(0.8),
                    "agreement": {"agreement": interval(0.7)},
                }
            ],
        },
        "arms": [arm("no-kl", 0.6, 0.3), *others],
        "best_of_n": [[1, 0.0, 0.0, 0.5], [4, 0.6, 0.5, 0.55]],
        "shown": [
            {"prompt": "1 < 2?", "replies": [{"name": "sft", "text": "<b>Yes</b>", "proxy": 0.1, "truth": 1.0}]},
        ],
    }


def holds(record: dict[str, Any]) -> dict[str, bool | None]:
    return {verdict["claim"]: verdict["holds"] for verdict in rlhf_verdicts(record)}


def test_over_optimisation_is_a_proxy_that_rises_and_a_truth_that_falls() -> None:
    record = found()
    plain = record["arms"][0]
    claim = next(iter(holds(record)))
    assert "Without a KL" in claim and holds(record)[claim] is True
    plain["fall"]["truth"] = interval(-0.005)
    assert holds(record)[claim] is None
    plain["fall"]["truth"] = interval(0.1)
    assert holds(record)[claim] is False
    plain["fall"] = {"truth": interval(-0.3), "proxy": interval(-1.0)}  # both fall: something else
    assert holds(record)[claim] is False
    plain["fall"]["proxy"] = {"value": 1.0, "low": None, "high": None, "n": 1}
    assert holds(record)[claim] is None


@pytest.mark.parametrize(
    ("peak", "last", "above", "keeps"),
    [(0.6, 0.59, True, True), (0.6, 0.5, None, False), (0.6, 0.6 - KEEPS, True, None), (0.4, 0.39, False, True)],
)
def test_a_kl_keeps_the_truth_or_not(peak: float, last: float, above: bool | None, keeps: bool | None) -> None:
    said = holds(found(arm("kl-0.02", peak, last, kl_coef=0.02)))
    assert said["PPO with β = 0.02 ends above SFT in truth"] is above
    assert next(value for claim, value in said.items() if "keeps the truth" in claim) is keeps


@pytest.mark.parametrize(
    ("peak", "last", "better"), [(0.7, 0.2, True), (0.5, 0.5, True), (0.5, 0.2, False), (0.605, 0.305, None)]
)
def test_an_ensemble_peaks_higher_or_falls_later(peak: float, last: float, better: bool | None) -> None:
    said = holds(found(arm("worst", peak, last, judges="worst")))
    assert said["The judges' worst peaks higher or ends higher"] is better


def test_claims_without_their_arms_are_left_out() -> None:
    record = found(arm("grpo", 0.6, 0.3, method="grpo"))
    assert len(rlhf_verdicts(record)) == 2
    record["arms"] = record["arms"][1:]
    assert rlhf_verdicts(record) == []


def test_the_page_says_what_was_found() -> None:
    record = found(arm("kl-0.02", 0.6, 0.59, kl_coef=0.02))
    page, text = rlhf_section(record), rlhf_table(record)
    assert "&lt;b&gt;Yes&lt;/b&gt;" in page and "<b>Yes</b>" not in page and "1 &lt; 2?" in page
    assert "0.750" in page and "kl-0.02" in page and "0.590" in page and "5.0%" in page
    assert "yes  PPO with β = 0.02" in text and "no-kl" in text
    assert rlhf_sentence(record) == "true utility from 0.500 to 0.300 (no-kl), 0.590 (kl-0.02)"


def test_the_picture_is_against_the_root_of_the_kl() -> None:
    record = found()
    record["arms"][0]["curve"][0]["kl"] = -1e-3  # an estimate may lie below 0
    picture = curve_svg(record)
    assert "no-kl: from 0 at √KL" in picture and f"at {math.sqrt(9):g}." in picture and "best of n" in picture
    record["best_of_n"] = []
    assert "best of n" not in curve_svg(record)
