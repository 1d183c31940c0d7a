"""PPO, GRPO, RLOO and REINFORCE on systems that can be understood: who needs a critic, and when.

Every arm (a system, a variant, a group size) is a stage: all its seeds learn in one worker's process, and its artifact has the
learning curve and the policies. A few workers are ahead of the story, which takes the arms in order; so a killed study has lost
what was under way, and nothing that was done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dunwu.control.config import Trial
from dunwu.control.envs import environment
from dunwu.control.findings import Result, sentence, title, verdicts, who_needs_a_critic
from dunwu.control.trial import CURVE, FINAL, Outcome, best_cost, play
from dunwu.control.workers import Workers
from dunwu.disk import write_atomically
from dunwu.eval.report_control import PICTURES
from dunwu.log import Run
from dunwu.progress import Progress
from dunwu.recipes.control_config import Arm, ControlRunConfig
from dunwu.store import Artifact

FILE, RESULT, POLICY = "control.json", "result.json", "policy.safetensors"
COMPUTED = "1"
"""Code version of the arms: raised when a trial comes to be computed otherwise."""
PLAYED = ("ppo", "grpo", "grpo-to-go")
"""Variants that are played in gymnasium's own environments at the end."""
EPISODES = 10
"""Episodes there by seed."""


def run(run: Run, config: ControlRunConfig) -> None:
    """The recipe `control`."""
    config.validate()
    arms = list(config.arms())
    trials = {arm.name: config.trial(arm, run.seed) for arm in arms}
    made: dict[str, Artifact] = {}
    with Workers(config.workers) as workers, Progress(len(arms), "control", "arms") as progress:
        ahead = {name: workers.submit(trial) for name, trial in trials.items() if not _is_made(run, name, trial)}
        for number, arm in enumerate(arms):
            trial = trials[arm.name]
            made[arm.name] = _arm(run, arm, trial, partial(_waiting, ahead.get(arm.name), workers, trial))
            progress.update(number + 1)
    played, version = _gymnasium(run, arms, trials, made)
    results = [_result(arm, trials[arm.name], made[arm.name], played.get(arm.name, ())) for arm in arms]
    _write(run, config, arms, results, version)


def _arm(run: Run, arm: Arm, trial: Trial, waiting: Callable[[], Future[Outcome]]) -> Artifact:
    """The stage of one arm: curve and policies, and a line of metrics for every point of the curve."""

    def build(work: Path) -> dict[str, object]:
        outcome = waiting().result()
        for step, values, metrics in zip(outcome.steps[1:], outcome.curve[1:], outcome.metrics):
            line = {f"control/{name}": value for name, value in metrics.items()}
            run.log(arm.name, step, line | {"control/held_out": sum(values) / len(values)})
        record = {
            "steps": outcome.steps,
            "curve": outcome.curve,
            "final": outcome.final,
            "updates": outcome.updates,
            "best": {which: best_cost(trial, which) for which in (CURVE, FINAL)},
        }
        write_atomically(work / RESULT, json.dumps(record, indent=1) + "\n")
        save_file({"weights": outcome.weights}, work / POLICY)
        mean = sum(outcome.final) / len(outcome.final)
        return {"return": mean, "updates": outcome.updates, "cpu_seconds": outcome.metrics[-1]["seconds"]}

    return run.stage(arm.name, build, _key(trial), version=COMPUTED)


def _waiting(ahead: Future[Outcome] | None, workers: Workers, trial: Trial) -> Future[Outcome]:
    """What was begun, or, if the artifact was there and then was not, begins now."""
    return ahead or workers.submit(trial)


def _key(trial: Trial) -> dict[str, Any]:
    return {"trial": asdict(trial)}


def _is_made(run: Run, name: str, trial: Trial) -> bool:
    return run.store.find(run.store.key(name, _key(trial), version=COMPUTED)) is not None


def _gymnasium(
    run: Run, arms: Sequence[Arm], trials: Mapping[str, Trial], made: Mapping[str, Artifact]
) -> tuple[dict[str, list[float]], str | None]:
    """The policies in gymnasium's own environments: mean return by arm and seed, and its version; none where it is not installed."""
    chosen = [arm for arm in arms if arm.variant in PLAYED and not arm.swept and environment(arm.system).gym_id]
    try:
        import gymnasium
    except ImportError:
        return {}, None
    if not chosen:
        return {}, gymnasium.__version__
    inputs = [made[arm.name] for arm in chosen]

    def build(work: Path) -> dict[str, object]:
        found = {
            arm.name: play(trials[arm.name], load_file(artifact.path / POLICY)["weights"], EPISODES)
            for arm, artifact in zip(chosen, inputs)
        }
        write_atomically(work / RESULT, json.dumps(found, indent=1) + "\n")
        return {name: sum(values) / len(values) for name, values in found.items()}

    key = {"gymnasium": gymnasium.__version__, "episodes": EPISODES, "arms": [arm.name for arm in chosen]}
    return _read(run.stage("gymnasium", build, key, inputs)), gymnasium.__version__


def _result(arm: Arm, trial: Trial, artifact: Artifact, gym: Sequence[float]) -> Result:
    """An arm's record; an LQR's returns as costs over the best controller's."""
    record = _read(artifact)

    def valued(values: Sequence[float], which: str) -> list[float]:
        best = record["best"][which]
        return list(values) if best is None else [-value / best for value in values]

    return Result(
        arm.system,
        arm.variant,
        arm.config.group_size,
        arm.config.episodes,
        arm.swept,
        valued(record["final"], FINAL),
        record["steps"],
        [valued(values, CURVE) for values in record["curve"]],
        record["updates"],
        artifact.meta["metrics"]["cpu_seconds"],
        gym,
    )


def _read(artifact: Artifact) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((artifact.path / RESULT).read_text(encoding="utf-8"))
    return record


def _write(
    run: Run, config: ControlRunConfig, arms: Sequence[Arm], results: Sequence[Result], version: str | None
) -> None:
    """control.json, evidence.json and the pictures in the run folder; the table on the screen."""
    critic = who_needs_a_critic(results)
    found: dict[str, Any] = {
        "seeds": config.seeds,
        "episodes": config.final,
        "gymnasium": version,
        "arms": [
            result.as_json() | {"name": arm.name, "settings": asdict(arm.config)} for arm, result in zip(arms, results)
        ],
        "critic": critic,
        "sentence": sentence(critic),
        "verdicts": verdicts(results),
        "seconds": round(sum(result.seconds for result in results), 1),
    }
    played = f"gymnasium {version} itself, {EPISODES} episodes" if version else "gymnasium is not installed: ours alone"
    notes = [
        f"{config.seeds} seeds an arm, {config.final} final episodes each, likeliest actions, in our environments; {played}.",
        f"{found['seconds']:,.0f} processor seconds in all.",
    ]
    write_atomically(run.dir / FILE, json.dumps(found, indent=1) + "\n")
    evidence = {"control": found, "verdicts": found["verdicts"], "notes": notes}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, indent=1) + "\n")
    for name, draw in PICTURES.items():
        if drawn := draw(found):
            write_atomically(run.dir / name, drawn)
    print(table(found))


def table(found: Mapping[str, Any]) -> str:
    """What was found as plain text."""
    lines = [
        f"{'system':<16}{'algorithm':<22}{'G':>4}{'result':>11}{'95% interval':>20}{'to target':>12}{'steps':>12}{'cpu s':>8}"
    ]
    for arm in found["arms"]:
        value = arm["final"]
        ends = "" if value["low"] is None else f"[{value['low']:.3f}, {value['high']:.3f}]"
        target = "never" if arm["steps_to_target"] is None else f"{arm['steps_to_target']:,.0f}"
        lines.append(
            f"{title(arm['system']):<16}{arm['title']:<22}{arm['group_size']:>4}{value['value']:>11.3f}{ends:>20}"
            f"{target:>12}{arm['env_steps']:>12,}{arm['seconds']:>8.1f}"
        )
    words = {True: "yes", False: "NO", None: "open"}
    return "\n".join(
        [*lines, *(f"{words[v['holds']]:<5}{v['claim']}: {v['figure']}" for v in found["verdicts"]), found["sentence"]]
    )
