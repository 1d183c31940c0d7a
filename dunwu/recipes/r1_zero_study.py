"""R1-Zero as a claim: the same recipe over several seeds, its controls beside it, and the verdicts.

The run's own folder holds the run's seed in full; other seeds and controls are runs of their own
in folders below it. Everything they share is built once: artifacts are found by content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dunwu.eval.passk import over_seeds
from dunwu.eval.report import write_report
from dunwu.log import Run
from dunwu.model.runtime import prepare_torch
from dunwu.recipes.configs import R1ZeroConfig, StudyConfig, control_config
from dunwu.recipes.evidence import read_evidence, write_evidence
from dunwu.recipes.r1_zero import story
from dunwu.types import UsageError

BASE_AT_MOST, RESULT_AT_LEAST, GAIN_AT_LEAST, RANDOM_WITHIN = 0.40, 0.65, 0.30, 0.03
"""What counts as reproduced: mean held-out pass@1 of the bases, of the results, their difference; the random control's drift."""

TITLES = {"random": "random reward", "format": "format reward only", "no-search": "base without search pages"}


def run(run: Run, config: StudyConfig) -> None:
    """The recipe `r1-zero-study`."""
    config.validate()
    if len({run.seed, *config.more_seeds}) <= len(config.more_seeds):
        seeds = ", ".join(map(str, (run.seed, *config.more_seeds)))
        raise UsageError(f"the study's seeds are {seeds}: one is there twice", "name others with --more-seeds")
    prepare_torch(config.recipe.device)
    own = read_evidence(story(run, config.recipe))
    found = {run.seed: own}
    for seed in config.more_seeds:
        found[seed] = _aside(run, f"seed-{seed}", config.recipe, seed)
    controls = {
        name: _aside(run, f"control-{name}", control_config(config.recipe, name), run.seed) for name in config.controls
    }
    evidence = own | _summary(found, controls)
    write_evidence(run, evidence)
    print(table(evidence))


def _aside(run: Run, name: str, config: R1ZeroConfig, seed: int) -> dict[str, Any]:
    """The recipe in a folder below the study's; its evidence."""
    with Run.open(run.dir / name, "r1-zero", asdict(config), seed, run.store) as other:
        evidence = read_evidence(story(other, config))
    write_report(other.dir)
    return evidence


def _summary(found: Mapping[int, Mapping[str, Any]], controls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ends = {seed: _ends(evidence) for seed, evidence in found.items()}
    seeds = [{"seed": seed, **ends[seed], "curve": _curve(evidence)} for seed, evidence in found.items()]
    base = over_seeds([both["base"] for both in ends.values()])
    result = over_seeds([both["result"] for both in ends.values()])
    gain = over_seeds([both["result"] - both["base"] for both in ends.values()])
    beside = [_control(name, evidence) for name, evidence in controls.items()]
    claims = [
        (f"Mean base ≤ {BASE_AT_MOST}", base.value <= BASE_AT_MOST, base.value),
        (f"Mean R1-Zero ≥ {RESULT_AT_LEAST}", result.value >= RESULT_AT_LEAST, result.value),
        (f"Mean gain ≥ {GAIN_AT_LEAST}", gain.value >= GAIN_AT_LEAST, gain.value),
    ]
    return {
        "seeds": seeds,
        "over_seeds": {"base": base.as_json(), "result": result.as_json(), "difference": gain.as_json()},
        "controls": beside,
        "verdicts": [{"claim": claim, "holds": holds, "figure": f"{value:.3f}"} for claim, holds, value in claims],
    }


def _ends(evidence: Mapping[str, Any]) -> dict[str, float]:
    first, last = evidence["checkpoints"][0], evidence["checkpoints"][-1]
    return {"base": first["pass@1"]["value"], "result": last["pass@1"]["value"]}


def _curve(evidence: Mapping[str, Any]) -> list[list[float]]:
    return [point[:2] for point in evidence["curve"]]


def _control(name: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    first, last = evidence["checkpoints"][0]["pass@1"], evidence["checkpoints"][-1]["pass@1"]
    drift = last["value"] - first["value"]
    record: dict[str, Any] = {"name": TITLES[name], "base": first, "result": last, "curve": _curve(evidence)}
    if name == "random":
        record |= {"expected": f"|Δ| ≤ {RANDOM_WITHIN}", "holds": abs(drift) <= RANDOM_WITHIN}
    return record


def table(evidence: Mapping[str, Any]) -> str:
    """The verdict table as plain text."""
    lines = [f"{'run':<28}{'base':>8}{'result':>8}{'change':>8}"]
    rows = [(f"seed {s['seed']}", s["base"], s["result"]) for s in evidence["seeds"]]
    rows += [(c["name"], c["base"]["value"], c["result"]["value"]) for c in evidence["controls"]]
    lines += [f"{name:<28}{base:>8.3f}{result:>8.3f}{result - base:>+8.3f}" for name, base, result in rows]
    words = {True: "yes", False: "NO", None: "open"}
    lines += [f"{words[v['holds']]:<5}{v['claim']}: {v['figure']}" for v in evidence["verdicts"]]
    for control in evidence["controls"]:
        if "expected" in control:
            drift = control["result"]["value"] - control["base"]["value"]
            lines.append(f"{words[control['holds']]:<5}{control['name']}: {control['expected']}: {drift:+.3f}")
    return "\n".join(lines)
