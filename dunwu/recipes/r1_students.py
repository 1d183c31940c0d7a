"""Distillation: smaller students taught by R1's data, and what RL alone or R1's own logits do for the small one."""

from __future__ import annotations

from pathlib import Path

from dunwu.log import Progress, Run
from dunwu.model.config import PRESETS
from dunwu.model.hf import from_pretrained
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.recipes.pretraining import MODEL, base_stage
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_ground import Ground, given_model
from dunwu.recipes.r1_tasks import reasoning_task, tasks_key
from dunwu.recipes.r1_training import fine_tuning, zero_rl
from dunwu.recipes.reinforce import open_learner, save_learner, save_state
from dunwu.recipes.stages import base_seed, held_out_losses
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.train.distill import on_policy_distill


def students(run: Run, config: R1Config, pages: Ground, data: Artifact, teacher: Artifact) -> dict[str, Artifact]:
    """Every student by name: SFT on the teacher's data for all; RL alone and on-policy distillation for the first."""
    taught: dict[str, Artifact] = {}
    for number, size in enumerate(config.students.models):
        stage = f"student-{Path(size).name}"
        base = student_base(run, config, pages, size, f"{stage}-base")
        by_sft = fine_tuning(run, config, f"{stage}-sft", base, data, config.sft)
        taught |= {f"{stage}-base": base, f"{stage}-sft": by_sft}
        if number == 0:
            taught[f"{stage}-rl"] = zero_rl(run, config, f"{stage}-rl", base, config.students.rl)
            start = by_sft if config.students.on_policy_from == "sft" else base
            taught[f"{stage}-opd"] = on_policy(run, config, f"{stage}-opd", start, teacher)
    return taught


def student_base(run: Run, config: R1Config, pages: Ground, size: str, stage: str) -> Artifact:
    """A smaller base: a size trained on the same pages, or a model folder as it is."""
    if size not in PRESETS:
        return given_model(run, stage, size)
    assert pages.vocabulary is not None and pages.tokens is not None  # `check_inputs` has seen to it
    seed, settings = base_seed(run.seed, config), config.students.pretrain
    held_out = held_out_losses(pages.tokens.path / "valid", settings.context, seed)
    return base_stage(run, size, settings, seed, config.device, pages.vocabulary, pages.tokens, held_out, stage=stage)


def on_policy(run: Run, config: R1Config, stage: str, student: Artifact, teacher: Artifact) -> Artifact:
    """Reverse KL to the teacher on the student's own samples (Agarwal et al. 2024, GKD; DeepSeek-V4's last stage)."""
    settings = config.students.on_policy
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, student.path / MODEL, settings, device)
        master = from_pretrained(teacher.path / MODEL, device)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        task = reasoning_task(config.tasks, "chat", config.language_weight)
        figures: dict[str, object] = {}
        with Progress(settings.steps, stage, "steps", start=state["step"]) as progress:
            steps = on_policy_distill(learner, master, engine, encoder, task, settings, run.seed, state["step"], work)
            for step in steps:
                run.log(stage, step.n, step.metrics)
                run.log_groups(stage, step.n, step.groups)
                figures = {"reverse_kl": step.metrics["distill/reverse_kl"]}
                if step.n % config.save_every == 0 or step.n == settings.steps:
                    save_state(work, learner, {**figures, "step": step.n})
                progress.update(step.n, reverse_kl=step.metrics["distill/reverse_kl"])
        save_learner(learner, encoder, work)
        return figures or {k: v for k, v in state.items() if k == "reverse_kl"}

    key = {
        "distill": settings,
        "language_weight": config.language_weight,
        "tasks": tasks_key(config.tasks),
        "frame": "chat",
        "seed": run.seed,
    }
    return run.stage(stage, build, key, [student, teacher], version=COMPUTED)
