"""The evidence stage: the same held-out problems at every kept checkpoint, from the base to the end.

Its artifact holds `evidence.json` in the schema of `dunwu.eval.report`, the held-out score curve of
the run included, so that a study can lay runs side by side without sampling again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.evaluate import evaluate, held_out, sample_groups, summarise
from dunwu.eval.passk import paired_difference
from dunwu.log import Progress, Run, read_metrics
from dunwu.model.hf import from_pretrained
from dunwu.model.runtime import resolve_device
from dunwu.recipes import stages
from dunwu.recipes.configs import R1ZeroConfig
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks.countdown import Countdown
from dunwu.types import Group, SamplingParams

FILE = "evidence.json"


def gather(run: Run, config: R1ZeroConfig, base_folder: Path, zero: Artifact) -> Artifact:
    """Measure the kept checkpoints of an r1-zero stage on held-out problems."""

    def build(work: Path) -> dict[str, object]:
        evidence = _measure(config, base_folder, zero)
        write_atomically(work / FILE, json.dumps(evidence, ensure_ascii=False, indent=1) + "\n")
        first, last = evidence["checkpoints"][0], evidence["checkpoints"][-1]
        return {"base": first["pass@1"]["value"], "result": last["pass@1"]["value"]}

    settings = {"evidence": config.evidence, "task": config.task, "max_tokens": config.grpo.max_tokens}
    # 2: failed subgoals count as backtracks.
    return run.stage("evidence", build, settings, [zero], version="2")


def read_evidence(artifact: Artifact) -> dict[str, Any]:
    """What `gather` wrote."""
    evidence: dict[str, Any] = json.loads((artifact.path / FILE).read_text(encoding="utf-8"))
    return evidence


def write_evidence(run: Run, evidence: dict[str, Any]) -> None:
    """Put the evidence where the report looks for it."""
    write_atomically(run.dir / FILE, json.dumps(evidence, ensure_ascii=False, indent=1) + "\n")


def _measure(config: R1ZeroConfig, base_folder: Path, zero: Artifact) -> dict[str, Any]:
    encoder = load_tokenizer(base_folder)
    steps = stages.checkpoint_steps(config.grpo.steps)
    checkpoints: list[dict[str, Any]] = []
    headline_groups: list[list[Group]] = []
    shown: list[list[Group]] = []
    with Progress(len(steps), "evidence", "checkpoints") as progress:
        for done, step in enumerate(steps, 1):
            model = from_pretrained(zero.path / "kept" / str(step), resolve_device(config.device))
            ends = step in (steps[0], steps[-1])
            record, groups = _checkpoint(Engine(model, encoder), encoder, config, thorough=ends)
            name = "base" if step == 0 else "R1-Zero" if step == steps[-1] else f"step {step}"
            checkpoints.append({"name": name, "step": step, **record})
            headline_groups.append(groups)
            shown.append(groups[: config.evidence.shown])
            progress.update(done, pass_at_1=record["pass@1"]["value"])
    right = [[[r.verdict.rewards.get("accuracy") == 1.0 for r in g.rollouts] for g in part] for part in headline_groups]
    count = len(headline_groups[0])
    return {
        "measure": f"{count} held-out problems, one sample each, temperature 1, at most {config.grpo.max_tokens} tokens",
        "checkpoints": checkpoints,
        "difference": paired_difference(right[-1], right[0]).as_json(),
        "shown": _side_by_side(checkpoints, shown),
        "curve": [
            [line["step"], line["eval/pass@1"], line["eval/length"]]
            for line in read_metrics(zero.path)
            if line["stage"] == "held-out"
        ],
    }


def _checkpoint(
    engine: Engine, encoder: Tokenizer, config: R1ZeroConfig, thorough: bool
) -> tuple[dict[str, Any], list[Group]]:
    """One checkpoint: the headline score; for the first and the last also pass@k, cons@k and four operands."""
    task, wanted = stages.make_task(config), config.evidence
    params = SamplingParams(max_tokens=config.grpo.max_tokens)
    groups = sample_groups(engine, encoder, task, held_out(task, "test", wanted.problems), 1, params)
    record = summarise(task, groups)
    if thorough:
        several = evaluate(engine, encoder, task, wanted.pass_k_problems, wanted.pass_k_samples, "test", params, seed=1)
        record |= {key: value for key, value in several.summary.items() if key == "pass@k" or key.startswith("cons@")}
        if wanted.four_operands and not config.data:
            harder = Countdown(replace(config.task, operands=4))
            record["four_operands"] = evaluate(
                engine, encoder, harder, wanted.four_operands, 1, "test", params
            ).summary["pass@1"]
    return record, groups


def _side_by_side(checkpoints: list[dict[str, Any]], shown: list[list[Group]]) -> list[dict[str, Any]]:
    """The first held-out problems with their completion at every checkpoint."""
    return [
        {
            "problem": dict(group.problem.data),
            "prompt": group.problem.prompt,
            "completions": [
                {
                    "name": checkpoint["name"],
                    "step": checkpoint["step"],
                    "completion": part[number].rollouts[0].completion.text,
                    "reward": part[number].rollouts[0].verdict.reward,
                    "length": len(part[number].rollouts[0].completion.token_ids),
                    "right": part[number].rollouts[0].verdict.rewards.get("accuracy") == 1.0,
                }
                for checkpoint, part in zip(checkpoints, shown, strict=True)
            ],
        }
        for number, group in enumerate(shown[0])
    ]
