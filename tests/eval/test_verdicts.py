"""The claims on the shape of R1's table: each holds, fails and stays open on figures made for it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dunwu.eval.passk import Interval, mean_share
from dunwu.eval.stages import Measured
from dunwu.eval.verdicts import (
    PAPER_MODELS,
    PAPER_TABLE,
    Findings,
    Margins,
    Student,
    seed_verdicts,
    shape_verdicts,
)

PAPER_LIKE = {
    "R1-Zero": {"reasoning": 0.6, "instruction": 0.2, "helpful": 0.2, "safety": 0.3, "facts": 0.3, "language": 0.8},
    "Dev1": {"reasoning": 0.3, "instruction": 0.5, "helpful": 0.4, "safety": 0.4, "facts": 0.3, "language": 0.9},
    "Dev2": {"reasoning": 0.65, "instruction": 0.5, "helpful": 0.4, "safety": 0.4, "facts": 0.3, "language": 1.0},
    "Dev3": {"reasoning": 0.65, "instruction": 0.7, "helpful": 0.6, "safety": 0.6, "facts": 0.3, "language": 1.0},
    "R1": {"reasoning": 0.65, "instruction": 0.7, "helpful": 0.8, "safety": 0.9, "facts": 0.3, "language": 1.0},
}
ORDER = ("follows", "pays", "recovers", "broadens", "pleases", "keeps", "gains", "speaks", "agrees", "distils", "opd")


def measured(levels: dict[str, float], n: int = 1000) -> Measured:
    """n problems a column, the first level·n of them right: differences are paired and exact."""
    values = {key: {f"{k}": float(k < round(level * n)) for k in range(n)} for key, level in levels.items()}
    return Measured({key: mean_share([[v] for v in column.values()]) for key, column in values.items()}, values)


def findings(n: int = 1000, **changed: dict[str, float]) -> Findings:
    rows = {
        name: measured({**levels, **changed.get(name.replace("-", ""), {})}, n) for name, levels in PAPER_LIKE.items()
    }
    arms = {"sft": 0.5, "rl": 0.3, "opd": 0.6}
    students = [Student(arm, "0.5M", arm, measured({"reasoning": level}, n)) for arm, level in arms.items()]
    return Findings(rows, measured({"language": 0.8}, n), Interval(0.8, 0.77, 0.83, 500), students)


def holds(found: Findings) -> dict[str, bool | None]:
    return {name: verdict["holds"] for name, verdict in zip(ORDER, shape_verdicts(found), strict=True)}


def test_a_table_of_the_papers_shape_holds_in_every_claim() -> None:
    found = shape_verdicts(findings())
    assert [verdict["holds"] for verdict in found] == [True] * 11
    assert all(verdict["reason"] == "" and "[" in verdict["figure"] for verdict in found)
    assert found[1]["figure"].startswith("-0.300 [-0.3")


@pytest.mark.parametrize(
    ("claim", "changed", "words"),
    [
        ("follows", {"Dev1": {"instruction": 0.1}}, "too few conversations with instructions"),
        ("follows", {"R1Zero": {"instruction": 0.95}}, "already follows"),
        ("pays", {"Dev1": {"reasoning": 0.8}}, "taught the base more"),
        ("recovers", {"Dev2": {"reasoning": 0.2}}, "too few RL steps"),
        ("recovers", {"Dev2": {"reasoning": 0.45}}, "shorter than what R1-Zero had"),
        ("broadens", {"Dev3": {"facts": 0.1}}, "a column that falls"),
        ("broadens", {"Dev3": {"reasoning": 0.4}}, "reasoning share of the SFT data"),
        ("pleases", {"R1": {"safety": 0.5}}, "preference reward is learned"),
        ("pleases", {"Dev3": {"helpful": 0.95}}, "ceiling"),
        ("keeps", {"R1": {"reasoning": 0.4}}, "crowd out reasoning"),
        ("keeps", {"R1": {"reasoning": 0.9}}, "had not converged"),
        ("gains", {"R1": {"reasoning": 0.4}}, "compare Dev2 and Dev3"),
        ("gains", {"Dev1": {"reasoning": 0.8}}, "leaves less than 0.25"),
        ("speaks", {"Dev2": {"language": 0.9}}, "still mix languages"),
    ],
)
def test_each_claim_fails_with_its_reason(claim: str, changed: dict[str, dict[str, float]], words: str) -> None:
    verdict = shape_verdicts(findings(**changed))[ORDER.index(claim)]
    assert verdict["holds"] is False
    assert verdict["reason"].startswith("not reproduced: ") and words in verdict["reason"]


def test_claims_beside_the_table_fail_too() -> None:
    whole = findings()
    no_decay = replace(whole, without_language=measured({"language": 1.0}))
    assert holds(no_decay)["speaks"] is False
    assert holds(replace(whole, agreement=Interval(0.6, 0.55, 0.65, 300)))["agrees"] is False
    swapped = [
        replace(s, measured=measured({"reasoning": {"sft": 0.3, "rl": 0.5, "opd": 0.4}[s.arm]})) for s in whole.students
    ]
    assert holds(replace(whole, students=swapped))["distils"] is False
    assert holds(replace(whole, students=swapped))["opd"] is False  # beats one arm only


def test_an_interval_with_both_answers_leaves_a_claim_open() -> None:
    few = findings(n=10)
    verdicts = dict(zip(ORDER, shape_verdicts(few), strict=True))
    assert verdicts["follows"]["holds"] is None and verdicts["follows"]["reason"].startswith("open: ")
    edge = replace(findings(), agreement=Interval(0.76, 0.72, 0.8, 300))
    assert holds(edge)["agrees"] is None
    same = findings(Dev3={"instruction": 0.5, "helpful": 0.4})
    assert holds(same)["broadens"] is None  # nothing falls, nothing rises


def test_one_part_that_fails_decides_whatever_is_open() -> None:
    mixing = replace(findings(Dev2={"language": 0.9}), without_language=None)
    verdict = shape_verdicts(mixing)[ORDER.index("speaks")]
    assert verdict["holds"] is False and "the ablation was not measured" in verdict["figure"]
    assert "still mix languages" in verdict["reason"]


def test_a_bound_that_is_met_exactly_is_met() -> None:
    for low, high, expected in ((0.75, 0.85, True), (0.7, 0.75, None), (0.7, 0.7499, False)):
        assert holds(replace(findings(), agreement=Interval(0.75, low, high, 300)))["agrees"] is expected


def test_a_decay_within_its_margin_is_none() -> None:
    slight = replace(findings(), without_language=measured({"language": 0.89}))  # 0.01 below Dev1's 0.9
    assert holds(slight)["speaks"] is False


def test_what_was_not_measured_is_said() -> None:
    empty = shape_verdicts(Findings({}))
    assert {verdict["holds"] for verdict in empty} == {None}
    assert {verdict["reason"] for verdict in empty} == {"not measured in this run"}
    assert all(verdict["figure"] for verdict in empty)


def test_margins_are_settings() -> None:
    assert holds(replace(findings(), margins=Margins(gain=0.5)))["gains"] is False
    assert holds(replace(findings(R1={"reasoning": 0.4}), margins=Margins(close=0.4)))["keeps"] is True


def test_chance_differences_rarely_decide() -> None:
    """Two equal models, independent answers: the claim Dev1 > R1-Zero may hold by chance in about 2.5%."""
    dice, held = random.Random(5), 0
    for _ in range(200):
        pair = []
        for _ in range(2):
            values = {str(k): float(dice.random() < 0.5) for k in range(100)}
            pair.append(Measured({"instruction": mean_share([[v] for v in values.values()])}, {"instruction": values}))
        found = Findings({"R1-Zero": pair[0], "Dev1": pair[1]})
        held += shape_verdicts(found)[0]["holds"] is True
    assert held <= 12


def test_over_seeds_the_differences_are_per_run() -> None:
    seeds = [
        {"seed": s, "scores": {name: {"reasoning": level["reasoning"] + shift} for name, level in PAPER_LIKE.items()}}
        for s, shift in enumerate((-0.1, 0.0, 0.1))  # runs differ much, their differences not at all
    ]
    found = seed_verdicts(seeds)
    assert [verdict["holds"] for verdict in found] == [True] * 4
    assert found[0]["claim"] == "Over 3 seeds: cold start lowers reasoning"
    assert found[0]["figure"] == "Dev1 − R1-Zero: -0.300 [-0.300, -0.300]"
    assert seed_verdicts(seeds[:1]) == []
    agreed = [seed | {"scores": {"rm-helpful": {"agreement": 0.8 + seed["seed"] / 1000}}} for seed in seeds]
    assert seed_verdicts(agreed)[0]["figure"] == "0.801 [0.799, 0.803] (0.800, 0.801, 0.802)"
    assert [seed_verdicts(agreed, Margins(agreement=least))[0]["holds"] for least in (0.799, 0.8, 0.81)] == [
        None,
        None,
        False,
    ]
    del seeds[2]["scores"]["R1"]
    assert found[3]["claim"].startswith("Over 3 seeds: R1") and "Over 2 seeds" in seed_verdicts(seeds)[3]["claim"]


def test_runs_without_any_difference_neither_rise_nor_fall() -> None:
    seeds = [{"seed": s, "scores": {name: {"reasoning": 0.5} for name in PAPER_LIKE}} for s in range(3)]
    assert [verdict["holds"] for verdict in seed_verdicts(seeds)] == [False, False, True, False]


def test_the_papers_table_has_a_figure_for_every_model() -> None:
    for benchmarks in PAPER_TABLE.values():
        for figures in benchmarks.values():
            assert len(figures) == len(PAPER_MODELS)
