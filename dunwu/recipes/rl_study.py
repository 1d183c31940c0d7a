"""One base, many ways to reinforce it: PPO against GRPO, and every variant of the shelf, on equal budgets.

A unit is (task, arm, seed): a stage of its own, whose key does not depend on what else is compared. So a killed study
resumes at its unit's last checkpoint, and processes that share a store can make parts of one study.

Not covered: how the findings are read from the units (`eval.rl_comparison`) and shown (`eval.report_rl_study`).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import plain, write_atomically
from dunwu.eval.evaluate import evaluate, held_out, sample_groups
from dunwu.eval.report_rl_study import BY, curves_svg
from dunwu.eval.rl_comparison import compare, study_table
from dunwu.log import Run, read_metrics
from dunwu.model.hf import from_pretrained, stop_ids_of
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.r1_ground import base_of
from dunwu.recipes.reinforce import OnStep, open_learner, reinforce, save_learner
from dunwu.recipes.rl_study_config import VARIANT_TASK, RlStudyConfig
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks.countdown_exercise import CountdownExercise
from dunwu.tasks.frames import Framed
from dunwu.tasks.knights import Knights
from dunwu.train.config import PolicyConfig
from dunwu.train.learner import Learner
from dunwu.types import Exercise, Sampler, SamplingParams, Task, UsageError

FILE, TEST = "rl-study.json", "test.json"
"""What was found, in the run folder; a unit's figures on the test problems, in its artifact."""
PROCESSOR, SECONDS = "rl_study/processor_seconds", "rl_study/seconds"
"""Of the steps so far, sampling, scoring, update and bookkeeping; what held-out problems cost is left out."""


class Unit(NamedTuple):
    """One training of the study."""

    task: str
    arm: str
    seed: int

    @property
    def stage(self) -> str:
        """Its name in the run."""
        return f"{self.task}-{self.arm}-seed{self.seed}"


def run(run: Run, config: RlStudyConfig) -> None:
    """The recipe `rl-study`."""
    config.validate()
    if run.seed in config.more_seeds:
        raise UsageError(f"seed {run.seed} is the run's own and among more_seeds", "name others with --more_seeds")
    prepare_torch(config.device)
    base, _ = base_of(run, config)
    wanted = units(config, run.seed)
    tasks = list(dict.fromkeys(unit.task for unit in wanted))
    bases = {task: measure_base(run, config, task, base) for task in tasks}
    artifacts = {unit: reinforced(run, config, unit, base) for unit in wanted}
    curves = held_out_curves(run, config.shared)
    records = [
        {**unit._asdict(), **artifact.meta["metrics"], **_test(artifact), "curve": curves[unit.stage]}
        for unit, artifact in artifacts.items()
    ]
    settings = {arm: plain(config.settings(arm)) for arm in dict.fromkeys(unit.arm for unit in wanted)}
    found = compare(
        records,
        {task: _test(artifact) for task, artifact in bases.items()},
        plain(config.shared),
        settings,
        config.tasks,
        config.arms,
        config.variants if config.variant_seeds else (),
        [run.seed, *config.more_seeds][: config.variant_seeds],
        VARIANT_TASK,
    )
    write_atomically(run.dir / FILE, json.dumps(found, indent=1) + "\n")
    evidence = {"rl_study": found, "verdicts": found["verdicts"]}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, indent=1) + "\n")
    for task in found["tasks"]:
        for by in BY:
            write_atomically(run.dir / f"rl-study-{task}-{by.split()[-1]}.svg", curves_svg(found, task, by) + "\n")
    print(study_table(found))


def units(config: RlStudyConfig, seed: int) -> list[Unit]:
    """What the study trains, in order, each once.

    Example:
        >>> config = RlStudyConfig(tasks=("knights",), arms=("grpo",), more_seeds=(1,), variants=("grpo",))
        >>> [unit.stage for unit in units(config, 0)]
        ['knights-grpo-seed0', 'knights-grpo-seed1', 'countdown-grpo-seed0']
    """
    seeds = (seed, *config.more_seeds)
    arms = [Unit(task, arm, s) for task in config.tasks for s in seeds for arm in config.arms]
    variants = [Unit(VARIANT_TASK, name, s) for s in seeds[: config.variant_seeds] for name in config.variants]
    return list(dict.fromkeys(arms + variants))


def make_task(config: RlStudyConfig, name: str) -> Task:
    """A task in R1-Zero's frame, rewarded for the right answer and for the format."""
    exercise: Exercise = CountdownExercise(chinese=config.chinese)
    if name == "knights":
        exercise = Knights(chinese=config.chinese, three=config.three)
    return Framed(exercise, "zero")


def task_key(config: RlStudyConfig, name: str) -> dict[str, Any]:
    """What decides a task's problems."""
    return {"name": name, "chinese": config.chinese} | ({"three": config.three} if name == "knights" else {})


# ---- the stages ---------------------------------------------------------------------------------


def measure_base(run: Run, config: RlStudyConfig, name: str, base: Artifact) -> Artifact:
    """The base on the test problems every arm is tested on."""
    task = make_task(config, name)

    def build(work: Path) -> dict[str, object]:
        folder = base.path / MODEL
        model = from_pretrained(folder, resolve_device(config.device))
        encoder = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
        return measured(config, Engine(model, encoder), encoder, task, work)

    key = {"task": task_key(config, name), "test": _test_key(config)}
    return run.stage(f"{name}-base", build, key, [base], version=COMPUTED)


def reinforced(run: Run, config: RlStudyConfig, unit: Unit, base: Artifact) -> Artifact:
    """One unit: the model, its figures on the test problems, and on the way its held-out curve."""
    task, settings = make_task(config, unit.task), config.settings(unit.arm)
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, base.path / MODEL, settings, device, seed=unit.seed)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        on_step = _watch(run, config, unit, engine, encoder, task, state)
        state = reinforce(
            run,
            unit.stage,
            learner,
            engine,
            encoder,
            task,
            settings,
            unit.seed,
            work,
            state,
            config.save_every,
            on_step,
        )
        figures = {name: state[name] for name in ("processor_seconds", "seconds") if name in state}
        save_learner(learner, encoder, work)
        return figures | {"memory": memory_of(learner)} | measured(config, engine, encoder, task, work)

    key = {"task": task_key(config, unit.task), "settings": settings, "seed": unit.seed, "test": _test_key(config)}
    key |= {"curve": [config.held_out, config.held_out_samples, config.held_out_every]}
    return run.stage(unit.stage, build, key, [base], version=COMPUTED)


def _watch(
    run: Run,
    config: RlStudyConfig,
    unit: Unit,
    engine: Sampler,
    encoder: Tokenizer,
    task: Task,
    state: Mapping[str, Any],
) -> OnStep:
    """Keeps the time of the steps, and every few of them asks the validation problems, logged as `STAGE/held-out`."""
    problems = held_out(task, "valid", config.held_out)
    params = SamplingParams(max_tokens=config.shared.max_tokens)
    spent = [float(state.get("processor_seconds", 0.0)), float(state.get("seconds", 0.0))]
    since = _now()

    def on_step(step: int) -> dict[str, float]:
        nonlocal since
        if step:
            spent[:] = [before + now - then for before, now, then in zip(spent, _now(), since, strict=True)]
        if step % config.held_out_every == 0 or step == config.shared.steps:
            groups = sample_groups(engine, encoder, task, problems, config.held_out_samples, params)
            point = _means([r.verdict.rewards for g in groups for r in g.rollouts])
            lengths = [len(r.completion.token_ids) for g in groups for r in g.rollouts]
            metrics = {"eval/pass@1": point["accuracy"], "eval/format": point["format"]}
            metrics |= {"eval/length": sum(lengths) / len(lengths), PROCESSOR: spent[0], SECONDS: spent[1]}
            run.log(f"{unit.stage}/held-out", step, metrics)
        since = _now()
        return {"processor_seconds": spent[0], "seconds": spent[1]}

    return on_step


def measured(config: RlStudyConfig, sampler: Sampler, encoder: Tokenizer, task: Task, work: Path) -> dict[str, object]:
    """The test problems' figures as a file, and its headline."""
    params = SamplingParams(max_tokens=config.shared.max_tokens)
    result = evaluate(sampler, encoder, task, config.test, config.test_samples, "test", params)
    summary = dict(result.summary)
    lengths = [len(r.completion.token_ids) for group in result.groups for r in group.rollouts]
    summary["length"] = sum(lengths) / len(lengths)
    write_atomically(work / TEST, json.dumps(summary, indent=1) + "\n")
    return {"pass@1": summary["pass@1"]["value"], "length": summary["length"]}


def _test_key(config: RlStudyConfig) -> list[int]:
    return [config.test, config.test_samples, config.shared.max_tokens]


def _test(artifact: Artifact) -> dict[str, Any]:
    """The figures of a unit or a base on the test problems: pass@k for the largest k alone."""
    found: dict[str, Any] = json.loads((artifact.path / TEST).read_text("utf-8"))
    kept = {name: found[name] for name in ("problems", "samples", "pass@1", "format", "length")}
    by_k = found.get("pass@k") or {"1": found["pass@1"]}
    most = max(by_k, key=int)
    return kept | {"k": int(most), "pass@k": by_k[most]}


def _means(rewards: list[Mapping[str, float]]) -> dict[str, float]:
    """Of accuracy and format, over completions that have a verdict."""
    judged = [found for found in rewards if "accuracy" in found]
    return {name: sum(found[name] for found in judged) / max(1, len(judged)) for name in ("accuracy", "format")}


def held_out_curves(run: Run, settings: PolicyConfig) -> dict[str, dict[str, Any]]:
    """By stage: `held_out`, a point {"step", "samples", "processor_seconds", "seconds", "pass@1", "length"} each, and `entropy`,
    [step, nats]. Samples count those of groups that were replaced (DAPO)."""
    found: dict[str, dict[str, Any]] = {}
    replaced: dict[str, float] = defaultdict(float)
    for line in read_metrics(run.dir):
        stage, _, kind = line["stage"].partition("/")
        of_stage = found.setdefault(stage, {"held_out": [], "entropy": []})
        if kind == "held-out":
            groups = line["step"] * settings.problems + replaced[stage]
            point = {"step": line["step"], "samples": round(groups * settings.group_size)}
            point |= {"processor_seconds": line[PROCESSOR], "seconds": line[SECONDS]}
            of_stage["held_out"].append(point | {"pass@1": line["eval/pass@1"], "length": line["eval/length"]})
        replaced[stage] += line.get("grpo/replaced_groups", 0.0)
        for key in ("grpo/entropy", "ppo/entropy"):
            if key in line:
                of_stage["entropy"].append([line["step"], line[key]])
    return found


# ---- what it costs ------------------------------------------------------------------------------


def memory_of(learner: Learner) -> dict[str, int]:
    """Bytes of what must be kept between steps, by what it is."""
    policy = {p.data_ptr(): p.numel() * p.element_size() for p in learner.policy.parameters()}
    kept = {"policy": sum(policy.values()), "optimizer": _bytes(learner.optimizer.state())}
    reference = learner.reference_state()
    if reference:
        kept["reference"] = _bytes(reference)
    if learner.critic is not None:
        own = {p.data_ptr(): p.numel() * p.element_size() for p in learner.critic.model.parameters()}
        kept["critic"] = sum(own.values()) + _bytes(learner.critic.state())
    return kept


def _bytes(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _now() -> tuple[float, float]:
    """Processor seconds of this process, and seconds."""
    return time.process_time(), time.perf_counter()
