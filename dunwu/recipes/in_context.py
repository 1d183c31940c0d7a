"""The stage `in-context` of a pretraining run: loss by position and few-shot accuracy of the base, for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.data.shards import TokenFolder
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.in_context import SHORTEST, TASKS, few_shot_accuracy, loss_by_position
from dunwu.log import Run
from dunwu.model.hf import load_model
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.configs import InContextConfig, PretrainRunConfig
from dunwu.recipes.evidence import FILE, write_evidence
from dunwu.recipes.pretraining import MODEL
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.types import UsageError

ROWS = 16
"""Windows per forward pass."""


def check_tasks(settings: InContextConfig) -> None:
    """Raise UsageError for a task nobody knows."""
    if unknown := set(settings.tasks) - set(TASKS):
        raise UsageError(f"no few-shot task {min(unknown)!r}", "choose from " + ", ".join(TASKS))


def in_context(run: Run, config: PretrainRunConfig, base: Artifact, tokens: Artifact) -> None:
    """Measure the base and put what was found where the report looks for it."""
    settings = config.in_context
    if not settings.windows and not (settings.problems and settings.tasks):
        return

    def build(work: Path) -> dict[str, object]:
        model = load_model(base.path / MODEL, resolve_device(config.device))
        found = measure(model, load_tokenizer(base.path / MODEL), config, tokens.path / "held-out", run.seed)
        write_atomically(work / FILE, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        return {name.partition("/")[2]: value for name, value in curve_metrics(found).items() if "/loss/" not in name}

    measured = {name: getattr(settings, name) for name in ("windows", "tasks", "shots", "problems")}
    key = {"in_context": measured, "context": config.pretrain.context, "seed": run.seed}
    artifact = run.stage("in-context", build, key, [base, tokens], version=COMPUTED)
    found = json.loads((artifact.path / FILE).read_text(encoding="utf-8"))
    borders = config.pretrain.context_borders if config.pretrain.context_steps else []
    write_evidence(run, {"in_context": found | {"borders": borders}})


def measure(
    model: Transformer, encoder: Tokenizer, config: PretrainRunConfig, held_out: Path, seed: int
) -> dict[str, Any]:
    """`{"loss": LossByPosition.as_json(), "few_shot": {task: [FewShotPoint.as_json(), …]}}`; what cannot be, is left out.

    Args:
        held_out: folder of shard folders, one a source.
    """
    settings, found = config.in_context, dict[str, Any]()
    windows = list(_windows(held_out, config.pretrain.context, settings.windows))
    if windows and config.pretrain.context >= SHORTEST:
        batches = (np.stack(windows[start : start + ROWS]) for start in range(0, len(windows), ROWS))
        found["loss"] = loss_by_position(model, batches).as_json()
    if settings.problems and settings.tasks:
        engine = Engine(model, encoder)
        found["few_shot"] = {
            name: [
                point.as_json()
                for point in few_shot_accuracy(engine, encoder, TASKS[name], settings.shots, settings.problems, seed)
            ]
            for name in settings.tasks
        }
    return found


def curve_metrics(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of `measure` as metrics, see docs/metrics.md."""
    metrics: dict[str, float] = {}
    if loss := found.get("loss"):
        metrics["in_context/score"] = loss["score"]["value"]
        metrics |= {f"in_context/loss/{last}": mean for _, last, mean, _ in loss["bins"]}
    for task, points in found.get("few_shot", {}).items():
        metrics |= {f"in_context/accuracy/{task}/{p['shots']}": p["accuracy"]["value"] for p in points}
    return metrics


def _windows(held_out: Path, context: int, count: int) -> Iterator[NDArray[np.int64]]:
    """`count` windows that do not overlap, evenly spread, as many from each source as it has; none from a short text."""
    folders = sorted(held_out.iterdir())
    each = -(-count // len(folders))
    for folder in folders:
        with closing(TokenFolder(folder)) as text:
            there = (text.tokens - 1) // context
            for place in sorted({round(n) for n in np.linspace(0, there - 1, min(each, there))}):
                yield text.read(place * context, context + 1)
