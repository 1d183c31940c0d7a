"""R1 over several seeds: the run's own seed whole, the others as far as the stage table, each with a base of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dunwu.disk import write_atomically
from dunwu.eval.report import write_report
from dunwu.eval.stages import seed_table
from dunwu.eval.verdicts import seed_verdicts
from dunwu.log import Run
from dunwu.model.runtime import prepare_torch
from dunwu.recipes.r1 import story
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_ground import check_inputs
from dunwu.recipes.r1_presets import R1StudyConfig, without_side_branches
from dunwu.recipes.r1_table import FILE
from dunwu.store import Artifact
from dunwu.types import UsageError


def run(run: Run, config: R1StudyConfig) -> None:
    """The recipe `r1-study`."""
    config.validate()
    if len({run.seed, *config.more_seeds}) <= len(config.more_seeds):
        seeds = ", ".join(map(str, (run.seed, *config.more_seeds)))
        raise UsageError(f"the study's seeds are {seeds}: one is there twice", "name others with --more_seeds")
    check_inputs(config.recipe)
    prepare_torch(config.recipe.device)
    own = _read(story(run, config.recipe))
    found = {run.seed: own}
    for seed in config.more_seeds:
        found[seed] = _aside(run, without_side_branches(config.recipe), seed)
    rows = [{"seed": seed, "scores": _scores(record)} for seed, record in found.items()]
    over = own | {"seeds": rows, "over_seeds": seed_table(rows)}
    over["verdicts"] = [*own["verdicts"], *seed_verdicts(rows)]
    write_atomically(run.dir / FILE, json.dumps(over, ensure_ascii=False, indent=1) + "\n")
    print(table(over))


def _aside(run: Run, config: R1Config, seed: int) -> dict[str, Any]:
    """The recipe in a folder below the study's; its stage table."""
    with Run.open(run.dir / f"seed-{seed}", "r1", asdict(config), seed, run.store) as other:
        record = _read(story(other, config))
    write_report(other.dir)
    return record


def _read(artifact: Artifact) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((artifact.path / FILE).read_text(encoding="utf-8"))
    return record


def _scores(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of every model its columns, of a reward model its agreement with the truth."""
    found = {
        model["name"]: {key: interval["value"] for key, interval in model["scores"].items()}
        for model in record["models"]
    }
    agreements = {f"rm-{model['name']}": model["agreement"] for model in record["reward_models"]}
    return found | {name: {"agreement": interval["value"]} for name, interval in agreements.items() if interval}


def table(record: Mapping[str, Any]) -> str:
    """The stage table of every seed, and the verdicts, as plain text."""
    columns = [column["key"] for column in record["columns"]]
    lines = [f"{'model':<24}" + "".join(f"{key[:12]:>13}" for key in columns)]
    for seed in record["seeds"]:
        lines.append(f"seed {seed['seed']}")
        lines += [
            f"  {name:<22}" + "".join(f"{scores[key]:>13.3f}" if key in scores else f"{'':>13}" for key in columns)
            for name, scores in seed["scores"].items()
        ]
    words = {True: "yes", False: "NO", None: "open"}
    return "\n".join(lines + [f"{words[v['holds']]:<5}{v['claim']}: {v['figure']}" for v in record["verdicts"]])
