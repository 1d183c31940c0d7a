"""V3's architecture as a claim: r1-zero dense and with experts, as many weights a token, the load of the experts, and what
becomes of it when their biases are not moved.

Each architecture is a run of its own in a folder below the study's; what they share (pages, tokens) is built once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from dunwu.disk import write_atomically
from dunwu.eval.report import write_report
from dunwu.eval.report_architectures import load_svg
from dunwu.log import Run, read_json, read_metrics
from dunwu.model.runtime import prepare_torch
from dunwu.recipes import stages
from dunwu.recipes.configs import ArchStudyConfig, R1ZeroConfig
from dunwu.recipes.evidence import read_evidence
from dunwu.recipes.r1_zero import story

LOAD_AT_MOST, COLLAPSED, WITHIN = 1.5, 2.0, 0.05
"""What is claimed: the largest load of an expert over the mean, balanced and not; how far pass@1 may lie below dense."""
FILE, PLOT = "architectures.json", "expert-load.svg"


def run(run: Run, config: ArchStudyConfig) -> None:
    """The recipe `arch-study`."""
    config.validate()
    prepare_torch(config.recipe.device)
    rows = [_one(run, replace(config.recipe, arch=arch)) for arch in ("dense", config.arch)]
    alone = _without_biases(run, replace(config.recipe, arch=config.arch), config.collapse_tokens)
    found = {"rows": rows, "unbalanced": alone, "verdicts": _verdicts(rows, alone, config.settled)}
    write_atomically(run.dir / FILE, json.dumps(found, indent=1) + "\n")
    evidence = {"architectures": found, "verdicts": found["verdicts"]}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, indent=1) + "\n")
    write_atomically(run.dir / PLOT, load_svg(rows[1]["load"], alone["load"]))
    print(table(found))


def _one(run: Run, config: R1ZeroConfig) -> dict[str, Any]:
    """r1-zero under one architecture: its scores, its cost, its load by update."""
    with Run.open(run.dir / config.arch, "r1-zero", asdict(config), run.seed, run.store) as other:
        evidence = read_evidence(story(other, config))
    write_report(other.dir)
    base = read_json(other.dir / "stages" / "base.json")["metrics"]
    lines = list(read_metrics(other.dir))
    steps = [line for line in lines if line["stage"] == "r1-zero"]
    first, last = evidence["checkpoints"][0], evidence["checkpoints"][-1]
    return {
        "arch": config.arch,
        "parameters": base["parameters"],
        "active_parameters": base.get("active_parameters", base["parameters"]),
        "base": first["pass@1"],
        "result": last["pass@1"],
        "pretraining_tokens_per_second": base["tokens_per_second"],
        "rollout_tokens_per_second": _mean(steps, "grpo/rollout_tokens_per_second"),
        "update_tokens_per_second": _mean(steps, "grpo/update_tokens_per_second"),
        "sampler_mismatch": _mean(steps, "grpo/sampler_mismatch"),
        "load": _load(lines, "base"),
        "rl_load": _load(lines, "r1-zero"),
    }


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Over the lines that have it; None if none has, as where no step had anything to train on."""
    values = [line[key] for line in lines if key in line]
    return fmean(values) if values else None


def _without_biases(run: Run, config: R1ZeroConfig, tokens: int) -> dict[str, Any]:
    """The first `tokens` tokens of a base whose routers' biases stay 0."""
    alone = replace(config, pretrain=replace(config.pretrain, tokens=tokens, bias_rate=0.0))
    with Run.open(run.dir / "no-bias", "r1-zero", asdict(alone), run.seed, run.store) as other:
        seed = stages.base_seed(run.seed, alone)
        vocabulary = stages.tokenizer(other, alone, seed)
        stages.base(other, alone, seed, vocabulary, stages.shards(other, alone, seed, vocabulary))
    return {"tokens": tokens, "load": _load(read_metrics(other.dir), "base")}


def _load(lines: Any, stage: str) -> list[list[float]]:
    """(step, largest load over the mean) of every logged step."""
    return [[line["step"], line["moe/max_load"]] for line in lines if line["stage"] == stage and "moe/max_load" in line]


def _verdicts(rows: Sequence[Mapping[str, Any]], alone: Mapping[str, Any], settled: int) -> list[dict[str, Any]]:
    dense, experts = rows
    behind = dense["result"]["value"] - experts["result"]["value"]
    balanced = max(load for step, load in experts["load"] if step >= settled)
    in_rl = fmean(load for _, load in experts["rl_load"])
    unbalanced = fmean(load for step, load in alone["load"] if step >= settled)
    claims = [
        (
            f"max/mean load ≤ {LOAD_AT_MOST} at every logged update from {settled} on",
            balanced <= LOAD_AT_MOST,
            balanced,
        ),
        (f"mean over RL's steps ≤ {LOAD_AT_MOST}", in_rl <= LOAD_AT_MOST, in_rl),
        (f"without moved biases it stays ≥ {COLLAPSED}", unbalanced >= COLLAPSED, unbalanced),
        (f"R1-Zero at most {WITHIN} below dense", behind <= WITHIN, behind),
    ]
    return [{"claim": claim, "holds": holds, "figure": f"{value:.3f}"} for claim, holds, value in claims]


def table(found: Mapping[str, Any]) -> str:
    """What was found as plain text."""
    head = f"{'arch':<10}{'weights':>11}{'a token':>11}{'base':>8}{'R1-Zero':>9}{'pretrain tok/s':>16}{'rollout tok/s':>15}"
    lines = [head] + [
        f"{row['arch']:<10}{row['parameters']:>11,}{row['active_parameters']:>11,}{row['base']['value']:>8.3f}"
        f"{row['result']['value']:>9.3f}{row['pretraining_tokens_per_second']:>16,.0f}{row['rollout_tokens_per_second']:>15,.0f}"
        for row in found["rows"]
    ]
    return "\n".join(
        [*lines, *(f"{'yes' if v['holds'] else 'NO':<5}{v['claim']}: {v['figure']}" for v in found["verdicts"])]
    )
