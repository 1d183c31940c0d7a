"""What every stage of reinforcement learning does around `train.grpo` or `train.ppo`: load, log, save, resume, keep the
result. Which of the two it is, the config says.

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
from dunwu.model.transformer import Transformer
from dunwu.recipes.adapters import fit_adapters, keep_adapter
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.config import GrpoConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.grpo import grpo
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.ppo import Pages, ppo
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.reward_model import RewardModel, load_reward_model
from dunwu.train.value import Critic, ValueModel
from dunwu.types import DunwuError, Sampler, SamplingParams, Task

REFERENCE, CRITIC = "reference.", "critic."
"""Prefixes of the reference model's weights in a checkpoint, and of the critic's training state."""
STATE = ("step", "version", "critic_version", "coefficients")
"""What a checkpoint's record says besides figures."""

OnStep = Callable[[int], Mapping[str, float]]
"""Steps done (0 before the first) → figures of now: shown in the progress line and kept in the checkpoint's state."""


def open_learner(
    work: Path,
    folder: Path,
    config: GrpoConfig | PpoConfig | DistillConfig,
    device: str,
    lora: LoraConfig | None = None,
    seed: int = 0,
    critic_from: Path | None = None,
) -> tuple[Learner, Tokenizer, dict[str, Any]]:
    """The model of `folder` with a fresh optimizer, or, if `work` holds a checkpoint, both as they were there.

    Args:
        lora: if its rank is not 0, adapters are trained, and the model is frozen; `seed` is theirs.
        critic_from: folder of a reward model that PPO's own critic begins from (InstructGPT); else it begins from the policy's.

    Returns:
        the learner, the folder's tokenizer with its model's stop ids, and the checkpoint's state ({"step": steps done, …}; step 0 without one).
    """
    encoder = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
    model = from_pretrained(folder, device)
    fit_adapters(model, lora, seed)
    optimizer = MasterAdamW(model, config.betas, weight_decay=config.weight_decay)
    learner = Learner(model, optimizer)
    if isinstance(config, PpoConfig) and config.critic != "none":
        learner.critic = make_critic(model, folder, config, device, lora, seed, critic_from)
    state, others = restore(work, optimizer)
    reference, critic = (
        {k.removeprefix(prefix): t for k, t in others.items() if k.startswith(prefix)} for prefix in (REFERENCE, CRITIC)
    )
    if reference:
        learner.load_reference(reference)
    if critic and learner.critic is not None:
        learner.critic.load(critic, state["critic_version"])
    learner.coefficients = state.get("coefficients", {})
    return learner, encoder, state


def make_critic(
    policy: Transformer,
    folder: Path,
    config: PpoConfig,
    device: str,
    lora: LoraConfig | None = None,
    seed: int = 0,
    reward_model: Path | None = None,
) -> Critic:
    """A critic with a trunk of its own, the policy's or the reward model's to begin with, or with the policy's trunk.

    Raises:
        DunwuError: the reward model has another vocabulary than the policy; its width and depth may differ.
    """
    head = backbone = None
    if config.critic == "own" and reward_model is not None:
        judge, _ = load_reward_model(reward_model, device)
        backbone, head = judge.backbone, judge.score.weight.detach() if isinstance(judge, RewardModel) else None
        if backbone.config.vocab_size != policy.config.vocab_size:
            what = f"the reward model has {backbone.config.vocab_size} tokens, the policy {policy.config.vocab_size}"
            raise DunwuError(what, "use a reward model made from a model with the same tokenizer")
    elif config.critic == "own":
        backbone = from_pretrained(folder, device)
    if backbone is not None:
        fit_adapters(backbone, lora, seed)
    width = (backbone or policy).config.hidden_size
    model = ValueModel(width, backbone, head).to(device)
    return Critic(model, MasterAdamW(model, config.betas, weight_decay=config.weight_decay))


def reinforce(
    run: Run,
    stage: str,
    learner: Learner,
    sampler: Sampler,
    encoder: Tokenizer,
    task: Task,
    config: GrpoConfig | PpoConfig,
    seed: int,
    work: Path,
    state: Mapping[str, Any],
    save_every: int,
    on_step: OnStep | None = None,
    pages: Pages | None = None,
) -> dict[str, Any]:
    """Take `learner` from `state["step"]` to `config.steps`, logging each step as `stage` before any checkpoint of it.

    Args:
        state: as `open_learner` returned it; figures of the last `on_step` are in it.
        save_every: steps between checkpoints in `work`; the last step is always saved.
        on_step: called before the first step of a run that begins, then after each; it may log under other names,
            write into `work` (again the same after a kill), and returns figures; those not returned stay as they were.
        pages: pretraining windows for PPO's ptx mix.

    Returns:
        the last state: "step" and the figures.
    """
    start = int(state["step"])
    figures = {name: value for name, value in state.items() if name not in STATE}
    if start == 0 and on_step is not None:
        figures |= on_step(0)
    if isinstance(config, PpoConfig):
        method, steps = "ppo", ppo(learner, sampler, encoder, task, config, seed, start, work, pages)
    else:
        method, steps = "grpo", grpo(learner, sampler, encoder, task, config, seed, start, work)
    with Progress(config.steps, stage, "steps", start=start) as progress:
        for step in steps:
            run.log(stage, step.n, step.metrics)
            run.log_groups(stage, step.n, step.groups)
            if on_step is not None:
                figures |= on_step(step.n)
            if step.n % save_every == 0 or step.n == config.steps:
                save_state(work, learner, {**figures, "step": step.n})
            shown = {name: step.metrics[f"{method}/{name}"] for name in ("reward", "length")}
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
    """A checkpoint: weights, moments, reference and critic if there are any, and a small record."""
    tensors = dict(learner.optimizer.state())
    tensors |= {f"{REFERENCE}{name}": t for name, t in learner.reference_state().items()}
    record = {**state, "version": learner.optimizer.version}
    if learner.critic is not None:
        tensors |= {f"{CRITIC}{name}": t for name, t in learner.critic.state().items()}
        record["critic_version"] = learner.critic.optimizer.version
    if learner.coefficients:
        record["coefficients"] = learner.coefficients
    save_checkpoint(work, tensors, record)


def save_learner(learner: Learner, encoder: Tokenizer, work: Path, base: Path | None = None) -> None:
    """The policy with its tokenizer as the artifact's model folder, adapters merged and kept beside it.

    Args:
        base: the folder it was opened from.
    """
    keep_adapter(learner.policy, work, base)
    save_model(learner.policy, work / MODEL, encoder.end_id, encoder.stop_ids)
    encoder.save(work / MODEL, learner.policy.config.max_position_embeddings)
