"""What every stage of reinforcement learning does around `train.grpo`: load, log, save, resume, keep the result.

A stage's `build(work)` is three calls:

    learner, encoder, state = open_learner(work, folder, config, device)
    state = reinforce(run, name, learner, engine, encoder, task, config, seed, work, state, save_every, on_step)
    save_learner(learner, encoder, work)

Not covered: what is rewarded (the task's affair), and what is measured on the way (`on_step`) but for one held-out curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.eval.evaluate import evaluate
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained, save_model, stop_ids_of
from dunwu.model.lora_config import LoraConfig
from dunwu.recipes.adapters import fit_adapters, keep_adapter
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.config import GrpoConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.grpo import Learner, grpo
from dunwu.train.optim import MasterAdamW
from dunwu.types import Sampler, SamplingParams, Task

REFERENCE = "reference."
"""Prefix of the reference model's weights in a checkpoint."""

OnStep = Callable[[int], Mapping[str, float]]
"""Steps done (0 before the first) → figures of now: shown in the progress line and kept in the checkpoint's state."""


def open_learner(
    work: Path,
    folder: Path,
    config: GrpoConfig | DistillConfig,
    device: str,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> tuple[Learner, Tokenizer, dict[str, Any]]:
    """The model of `folder` with a fresh optimizer, or, if `work` holds a checkpoint, both as they were there.

    Args:
        lora: if its rank is not 0, adapters are trained, and the model is frozen; `seed` is theirs.

    Returns:
        the learner, the folder's tokenizer with its model's stop ids, and the checkpoint's state ({"step": steps done, …}; step 0 without one).
    """
    encoder = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
    model = from_pretrained(folder, device)
    fit_adapters(model, lora, seed)
    optimizer = MasterAdamW(model, config.betas, weight_decay=config.weight_decay)
    learner = Learner(model, optimizer)
    state, reference = restore(work, optimizer)
    if reference:
        learner.load_reference({k.removeprefix(REFERENCE): t for k, t in reference.items()})
    return learner, encoder, state


def reinforce(
    run: Run,
    stage: str,
    learner: Learner,
    sampler: Sampler,
    encoder: Tokenizer,
    task: Task,
    config: GrpoConfig,
    seed: int,
    work: Path,
    state: Mapping[str, Any],
    save_every: int,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Take `learner` from `state["step"]` to `config.steps`, logging each step as `stage` before any checkpoint of it.

    Args:
        state: as `open_learner` returned it; figures of the last `on_step` are in it.
        save_every: steps between checkpoints in `work`; the last step is always saved.
        on_step: called before the first step of a run that begins, then after each; it may log under other names,
            write into `work` (again the same after a kill), and returns figures; those not returned stay as they were.

    Returns:
        the last state: "step" and the figures.
    """
    start = int(state["step"])
    figures = {name: value for name, value in state.items() if name not in ("step", "version")}
    if start == 0 and on_step is not None:
        figures |= on_step(0)
    with Progress(config.steps, stage, "steps", start=start) as progress:
        for step in grpo(learner, sampler, encoder, task, config, seed, start, work):
            run.log(stage, step.n, step.metrics)
            run.log_groups(stage, step.n, step.groups)
            if on_step is not None:
                figures |= on_step(step.n)
            if step.n % save_every == 0 or step.n == config.steps:
                save_state(work, learner, {**figures, "step": step.n})
            shown = {"reward": step.metrics["grpo/reward"], "length": step.metrics["grpo/length"]}
            progress.update(step.n, **shown, **figures)
    return {**figures, "step": config.steps}


def held_out_point(
    run: Run, sampler: Sampler, encoder: Tokenizer, task: Task, problems: int, params: SamplingParams, step: int
) -> dict[str, float]:
    """One point of the held-out curve, logged as "held-out", on validation problems; the test problems wait for the end.

    Rollouts whose verifier failed are left out of `eval/pass@1`.
    """
    result = evaluate(sampler, encoder, task, problems, split="valid", params=params)
    rollouts = [rollout for group in result.groups for rollout in group.rollouts]
    scored = [r.verdict.rewards.get("accuracy", 0.0) for r in rollouts if r.verdict.status in ("ok", "unparsable")]
    metrics = {
        "eval/pass@1": sum(scored) / max(1, len(scored)),
        "eval/format": float(result.summary["format"]),
        "eval/length": sum(len(r.completion.token_ids) for r in rollouts) / len(rollouts),
    }
    run.log("held-out", step, metrics)
    return metrics


def save_state(work: Path, learner: Learner, state: Mapping[str, Any]) -> None:
    """A checkpoint: weights, moments, the reference if there is one, and a small record."""
    tensors = dict(learner.optimizer.state())
    tensors |= {f"{REFERENCE}{name}": t for name, t in learner.reference_state().items()}
    save_checkpoint(work, tensors, {**state, "version": learner.optimizer.version})


def save_learner(learner: Learner, encoder: Tokenizer, work: Path, base: Path | None = None) -> None:
    """The policy with its tokenizer as the artifact's model folder, adapters merged and kept beside it.

    Args:
        base: the folder it was opened from.
    """
    keep_adapter(learner.policy, work, base)
    save_model(learner.policy, work / MODEL, encoder.end_id, encoder.stop_ids)
    encoder.save(work / MODEL, learner.policy.config.max_position_embeddings)
