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
from dunwu.recipes.grpo_config import GrpoRunConfig, RlRunConfig
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.reinforce import held_out_point, open_learner, reinforce, save_learner
from dunwu.recipes.stages import data_digest, file_digest, model_digest
from dunwu.recipes.user_models import model_folder
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks import get_task, task_options
from dunwu.tasks.rewards import RewardFunctions, load_reward
from dunwu.train.config import GrpoConfig
from dunwu.train.ppo import Pages
from dunwu.train.ppo_config import PpoConfig
from dunwu.types import SamplingParams, Task, UsageError

LOOKED_AT = 256
"""Training prompts whose length is compared with the model's context before anything begins."""


def run(run: Run, config: GrpoRunConfig) -> None:
    """The recipe `grpo`."""
    config.validate()
    task = make_task(config)
    folder = model_folder(run, config.model)
    check_room(folder, task, config.settings.max_tokens, run.seed)
    prepare_torch(config.device)
    learned = learn(run, config, folder, task)
    figures = learned.meta["metrics"]
    before, after = figures["before"], figures["held_out_accuracy"]
    print(f"{learned.path / MODEL}: held-out accuracy {before:.3f} → {after:.3f} in {config.settings.steps} steps")


def make_task(config: RlRunConfig) -> Task:
    """The problems and what is rewarded."""
    task = get_task(config.task, **task_options(config.options, config.data))
    if not config.reward:
        return task
    weights: Sequence[float] = config.reward_weights or [1.0] * len(config.reward)
    functions = [(load_reward(text), weight) for text, weight in zip(config.reward, weights, strict=True)]
    return RewardFunctions(functions, task, config.task_weight)


def check_room(folder: Path, task: Task, max_tokens: int, seed: int, section: str = "grpo") -> None:
    """Raise UsageError if prompts and completions do not fit the model's context."""
    encoder: Tokenizer = load_tokenizer(folder)
    longest = max(len(prompt_ids(encoder, task.problem("train", seed, index))) for index in range(LOOKED_AT))
    room = claimed_context(folder)
    if longest + max_tokens > room:
        what = f"prompts of {longest} tokens and completions of {max_tokens} exceed the model's {room}"
        raise UsageError(what, f"lower --{section}.max-tokens, or shorten the prompts")


def learn(run: Run, config: GrpoRunConfig, folder: Path, task: Task) -> Artifact:
    """The stage: checkpoints on the way, a held-out curve, the model at the end."""
    key = {"grpo": config.settings, **stage_key(config, folder, run.seed)}
    return rl_stage(run, "grpo", config, config.settings, folder, task, key)


def rl_stage(
    run: Run,
    name: str,
    config: RlRunConfig,
    settings: GrpoConfig | PpoConfig,
    folder: Path,
    task: Task,
    key: dict[str, Any],
    critic_from: Path | None = None,
    pages: Pages | None = None,
) -> Artifact:
    """A model of `folder` after `settings` on `task`, with a held-out curve; of GRPO and PPO alike."""
    device, seed = resolve_device(config.device), run.seed

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, folder, settings, device, config.lora, seed, critic_from)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        params = SamplingParams(max_tokens=settings.max_tokens)

        def on_step(n: int) -> dict[str, float]:
            if n % config.held_out_every and n != settings.steps:
                return {}
            point = held_out_point(run, engine, encoder, task, config.held_out, params, n)
            first = {"before": point["eval/pass@1"]} if n == 0 else {}
            return {**first, "held_out": point["eval/pass@1"]}

        save_every = config.save_every
        last = reinforce(
            run, name, learner, engine, encoder, task, settings, seed, work, state, save_every, on_step, pages
        )
        save_learner(learner, encoder, work, folder)
        figures = {"held_out_accuracy": last["held_out"], "before": last["before"], "steps": settings.steps}
        return figures | ({"trained_parameters": learner.optimizer.master.numel()} if config.lora.rank else {})

    return run.stage(name, build, key, version=COMPUTED)


def stage_key(config: RlRunConfig, folder: Path, seed: int) -> dict[str, Any]:
    """What changes the result besides the algorithm. Modules that a task or reward file imports are not looked into."""
    rewards = [[text.rpartition(":")[2], file_digest(text.rpartition(":")[0])] for text in config.reward]
    weights = config.reward_weights or [1.0] * len(config.reward)
    weighed = [[*reward, float(weight)] for reward, weight in zip(rewards, weights, strict=True)]
    task = file_digest(config.task) if config.task.endswith(".py") else config.task
    return {
        "model": model_digest(folder),
        "task": [task, *sorted(config.options), data_digest(config.data)],
        "rewards": [weighed, config.task_weight],
        "curve": [config.held_out, config.held_out_every],
        "seed": seed,
        **config.lora.key,
    }
