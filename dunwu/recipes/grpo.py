"""GRPO alone: any model folder, any task or reward functions, a learned model in the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.log import Run
from dunwu.model.hf import claimed_context
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.recipes.grpo_config import GrpoRunConfig
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.reinforce import held_out_point, open_learner, reinforce, save_learner
from dunwu.recipes.stages import data_digest, file_digest, model_digest
from dunwu.recipes.user_models import model_folder
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks import get_task, task_options
from dunwu.tasks.rewards import RewardFunctions, load_reward
from dunwu.types import SamplingParams, Task, UsageError

LOOKED_AT = 256
"""Training prompts whose length is compared with the model's context before anything begins."""


def run(run: Run, config: GrpoRunConfig) -> None:
    """The recipe `grpo`."""
    config.validate()
    task = make_task(config)
    folder = model_folder(run, config.model)
    check_room(folder, task, config, run.seed)
    prepare_torch(config.device)
    learned = learn(run, config, folder, task)
    figures = learned.meta["metrics"]
    before, after = figures["before"], figures["held_out_accuracy"]
    print(f"{learned.path / MODEL}: held-out accuracy {before:.3f} → {after:.3f} in {config.grpo.steps} steps")


def make_task(config: GrpoRunConfig) -> Task:
    """The problems and what is rewarded."""
    task = get_task(config.task, **task_options(config.options, config.data))
    if not config.reward:
        return task
    weights: Sequence[float] = config.reward_weights or [1.0] * len(config.reward)
    functions = [(load_reward(text), weight) for text, weight in zip(config.reward, weights, strict=True)]
    return RewardFunctions(functions, task, config.task_weight)


def check_room(folder: Path, task: Task, config: GrpoRunConfig, seed: int) -> None:
    """Raise UsageError if prompts and completions do not fit the model's context."""
    encoder: Tokenizer = load_tokenizer(folder)
    longest = max(len(prompt_ids(encoder, task.problem("train", seed, index))) for index in range(LOOKED_AT))
    room = claimed_context(folder)
    if longest + config.grpo.max_tokens > room:
        what = f"prompts of {longest} tokens and completions of {config.grpo.max_tokens} exceed the model's {room}"
        raise UsageError(what, "lower --grpo.max-tokens, or shorten the prompts")


def learn(run: Run, config: GrpoRunConfig, folder: Path, task: Task) -> Artifact:
    """The stage: checkpoints on the way, a held-out curve, the model at the end."""
    device, settings, seed = resolve_device(config.device), config.grpo, run.seed

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, folder, settings, device, config.lora, seed)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        params = SamplingParams(max_tokens=settings.max_tokens)

        def on_step(n: int) -> dict[str, float]:
            if n % config.held_out_every and n != settings.steps:
                return {}
            point = held_out_point(run, engine, encoder, task, config.held_out, params, n)
            first = {"before": point["eval/pass@1"]} if n == 0 else {}
            return {**first, "held_out": point["eval/pass@1"]}

        last = reinforce(
            run, "grpo", learner, engine, encoder, task, settings, seed, work, state, config.save_every, on_step
        )
        save_learner(learner, encoder, work, folder)
        figures = {"held_out_accuracy": last["held_out"], "before": last["before"], "steps": settings.steps}
        return figures | ({"trained_parameters": learner.optimizer.master.numel()} if config.lora.rank else {})

    return run.stage("grpo", build, _key(config, folder, seed), version=COMPUTED)


def _key(config: GrpoRunConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Everything that changes the result. Modules that a task or reward file imports are not looked into."""
    rewards = [[text.rpartition(":")[2], file_digest(text.rpartition(":")[0])] for text in config.reward]
    weights = config.reward_weights or [1.0] * len(config.reward)
    weighed = [[*reward, float(weight)] for reward, weight in zip(rewards, weights, strict=True)]
    task = file_digest(config.task) if config.task.endswith(".py") else config.task
    return {
        "model": model_digest(folder),
        "task": [task, *sorted(config.options), data_digest(config.data)],
        "rewards": [weighed, config.task_weight],
        "grpo": config.grpo,
        "curve": [config.held_out, config.held_out_every],
        "seed": seed,
        **config.lora.key,
    }
