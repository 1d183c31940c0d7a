"""A learning rate for GRPO: a stage per rate, each from the same weights on the same problems, and what each did.

The rule is `train.lr_finder`'s. Every trial is a stage, so a killed finder goes on where it was, and a finer grid over
the same rates finds them in the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dunwu.data.tokenizer import Tokenizer
from dunwu.disk import finite, write_atomically
from dunwu.eval.evaluate import held_out, sample_groups
from dunwu.log import Run, read_metrics
from dunwu.model.hf import from_pretrained
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.recipes.grpo import check_room, make_task, stage_key
from dunwu.recipes.lr_find_config import LrFindConfig
from dunwu.recipes.reinforce import open_learner, reinforce
from dunwu.recipes.user_models import model_folder
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.train.lr_finder import (
    Advice,
    Point,
    Start,
    Trial,
    advise,
    drift,
    grid,
    group_rewards,
    is_over,
    judge,
)
from dunwu.types import DunwuError, Group, SamplingParams, Task

TRIAL = "trial.json"
_STOPPED = re.compile(r"(?:loss|gradient norm) is \S+ at step \d+")
"""How `train.steps.check_finite` begins."""


def run(run: Run, config: LrFindConfig) -> None:
    """The recipe `lr-find`."""
    config.validate()
    task = make_task(config)
    folder = model_folder(run, config.model)
    check_room(folder, task, config.settings.max_tokens, run.seed)
    prepare_torch(config.device)
    measured = start(run, config, folder, task)
    trials: list[Trial] = []
    for lr in grid(config.low, config.high, config.points):
        trials.append(trial(run, config, folder, task, lr))
        points = judge(measured, trials)
        if is_over(points):
            break
    advice = advise(points)
    write_evidence(run, config, measured, points, advice)
    show(points, advice)


def start(run: Run, config: LrFindConfig, folder: Path, task: Task) -> Start:
    """Reward and entropy of the model as given."""

    def build(work: Path) -> dict[str, object]:
        learner, encoder, _ = open_learner(work, folder, config.settings, resolve_device(config.device))
        groups = _measure(config, Engine(learner.policy, encoder), encoder, task)
        _, entropy = drift(learner.policy, learner.policy, groups, config.settings)
        found = Start(group_rewards(groups), entropy)
        _write(work, asdict(found))
        return {"reward": sum(found.rewards) / len(found.rewards), "entropy": entropy}

    made = run.stage(
        "start", build, _key(config, replace(config.settings, lr=0.0, steps=1), folder, run), version=COMPUTED
    )
    record = _read(made)
    return Start(tuple(record["rewards"]), float(record["entropy"]))


def trial(run: Run, config: LrFindConfig, folder: Path, task: Task, lr: float) -> Trial:
    """A few steps at one rate, and what they did to the held-out problems; numbers gone bad end the trial, not the run."""
    settings, device = replace(config.settings, lr=lr), resolve_device(config.device)
    name = f"lr-{lr:.3g}"

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, folder, settings, device, config.lora, run.seed)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        try:
            reinforce(run, name, learner, engine, encoder, task, settings, run.seed, work, state, config.save_every)
        except DunwuError as error:
            if not (stopped := _STOPPED.search(str(error))):
                raise
            found = Trial(lr, clipped=_clipped(work), stopped=stopped[0])
        else:
            groups = _measure(config, engine, encoder, task)
            kl, entropy = drift(learner.policy, from_pretrained(folder, device), groups, settings)
            found = Trial(lr, group_rewards(groups), entropy, kl, _clipped(work))
        _write(work, asdict(found))
        shown: dict[str, object] = {"lr": lr, "reward": sum(found.rewards) / max(1, len(found.rewards)), "kl": found.kl}
        return {**shown, "stopped": found.stopped} if found.stopped else shown

    record = _read(run.stage(name, build, _key(config, settings, folder, run), version=COMPUTED))
    figures = {name: float("nan") if value is None else value for name, value in record.items()}
    return Trial(**figures | {"rewards": tuple(record["rewards"])})


def _measure(config: LrFindConfig, engine: Engine, encoder: Tokenizer, task: Task) -> list[Group]:
    """The same problems with the same dice, whoever is asked."""
    settings = config.settings
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature)
    problems = held_out(task, "valid", config.held_out)
    return sample_groups(engine, encoder, task, problems, config.samples, params)


def _clipped(work: Path) -> float:
    """Clipped tokens of the trial's steps: mean share."""
    keys = ("grpo/clip_low_frac", "grpo/clip_high_frac")
    shares = [sum(line[key] or 0.0 for key in keys) for line in read_metrics(work) if keys[0] in line]
    return sum(shares) / len(shares) if shares else float("nan")


def _key(config: LrFindConfig, settings: Any, folder: Path, run: Run) -> dict[str, Any]:
    measured = {"held_out": [config.held_out, config.samples]}
    return {"grpo": settings, **stage_key(config, folder, run.seed), **measured}


def _write(work: Path, record: dict[str, Any]) -> None:
    write_atomically(work / TRIAL, json.dumps(finite(record)) + "\n")


def _read(made: Artifact) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((made.path / TRIAL).read_text("utf-8"))
    return record


# ---- what is shown


def write_evidence(run: Run, config: LrFindConfig, measured: Start, points: Sequence[Point], advice: Advice) -> None:
    """`evidence.json` with every point and the recommendation, and a line of metrics per rate."""
    for number, point in enumerate(points, 1):
        figures = {"lr": point.lr, "reward_change": point.gain, "reward_error": point.error, "kl": point.kl}
        figures |= {"entropy_left": point.entropy_left, "clipped": point.clipped, "broke": float(bool(point.broke))}
        run.log("lr-find", number, {f"lr_find/{name}": value for name, value in figures.items()})
    found = {
        "start": {"reward": sum(measured.rewards) / len(measured.rewards), "entropy": measured.entropy},
        "trial": {"steps": config.settings.steps, "problems": len(measured.rewards), "samples": config.samples},
        "points": [asdict(point) for point in points],
        "advice": asdict(advice),
    }
    both = advice.lr is not None and advice.breaks_at is not None
    claim = {"claim": "Some rates learn, and larger ones break", "holds": both, "figure": advice.why}
    evidence = {"lr_finder": finite(found), "verdicts": [claim]}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, indent=1, ensure_ascii=False) + "\n")


def show(points: Sequence[Point], advice: Advice) -> None:
    """The table on the terminal."""
    print(f"{'lr':>9}  {'reward change':>16}  {'KL':>8}  {'entropy':>8}  {'clipped':>8}")
    for p in points:
        chosen = "  ← recommended" if p.lr == advice.lr else f"  broke: {p.broke}" if p.broke else ""
        change = f"{p.gain:+.3f} ± {p.error:.3f}"
        print(f"{p.lr:9.3g}  {change:>16}  {p.kl:8.2g}  {p.entropy_left:8.0%}  {p.clipped:8.2g}{chosen}")
    print(f"learning rate {advice.lr:g}: {advice.why}" if advice.lr is not None else advice.why)
