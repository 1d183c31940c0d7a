"""The training stages of R1: reinforcement, fine-tuning, reward models. Each is one artifact with a model in it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dunwu.data.chat import encode_conversation, read_chat
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.eval.evaluate import held_out, sample_groups
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained, save_model
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_data import CHAT, PAIRS, SAFETY
from dunwu.recipes.r1_tasks import Onward, general_task, reasoning_parts, reasoning_task, tasks_key
from dunwu.recipes.reinforce import OnStep, open_learner, reinforce, save_learner
from dunwu.recipes.rm import read_files, reward_stage
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.config import GrpoConfig, SftConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.preference import PreferenceTask, PreferenceWeights
from dunwu.train.reward_model import Scorer
from dunwu.train.rm_config import RmConfig
from dunwu.train.sft import sft, sft_steps, trainable
from dunwu.types import SamplingParams, Task

REWARD_EVERY = 20
"""Updates of a reward model between held-out figures."""


def zero_rl(run: Run, config: R1Config, name: str, base: Artifact, settings: GrpoConfig) -> Artifact:
    """Pure RL from a base in R1-Zero's template: accuracy and format, nothing else (R1, 2.1)."""
    task = reasoning_task(config.tasks, "zero", 0.0)
    key = {"grpo": settings, "tasks": tasks_key(config.tasks), "frame": "zero"}
    return _rl_stage(run, config, name, base, settings, task, key)


def reasoning_rl(
    run: Run, config: R1Config, name: str, parent: Artifact, language_weight: float, steps: int
) -> Artifact:
    """RL on reasoning prompts in the chat format, with the language reward if it weighs anything (R1, 3.2)."""
    task, settings = reasoning_task(config.tasks, "chat", language_weight), replace(config.reasoning, steps=steps)
    key = {"grpo": settings, "tasks": tasks_key(config.tasks), "frame": "chat", "language_weight": language_weight}
    return _rl_stage(run, config, name, parent, settings, task, key)


def _rl_stage(
    run: Run,
    config: R1Config,
    name: str,
    parent: Artifact,
    settings: GrpoConfig,
    task: Task,
    key: dict[str, Any],
    inputs: tuple[Artifact, ...] = (),
) -> Artifact:
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, parent.path / MODEL, settings, device)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        on_step = _curve(run, config, name, task, settings, engine, encoder)
        state = reinforce(
            run, name, learner, engine, encoder, task, settings, run.seed, work, state, config.save_every, on_step
        )
        save_learner(learner, encoder, work)
        return {k: v for k, v in state.items() if k != "version"}

    key |= {"seed": run.seed, "curve": [config.table.curve_every, config.table.curve_problems]}
    return run.stage(name, build, key, [parent, *inputs], version=COMPUTED)


def _curve(
    run: Run, config: R1Config, name: str, task: Task, settings: GrpoConfig, engine: Engine, encoder: Tokenizer
) -> OnStep:
    """Every few steps the mean of each reward on validation problems, logged as `NAME/held-out`."""
    problems = held_out(task, "valid", config.table.curve_problems)
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature)

    def on_step(step: int) -> dict[str, float]:
        if step % config.table.curve_every and step != settings.steps:
            return {}
        groups = sample_groups(engine, encoder, task, problems, 1, params)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        names = sorted({key for r in rollouts for key in r.verdict.rewards})
        means = {}
        for key in names:
            values = [r.verdict.rewards[key] for r in rollouts if key in r.verdict.rewards]
            means[key] = sum(values) / len(values)
        length = sum(len(r.completion.token_ids) for r in rollouts) / len(rollouts)
        run.log(f"{name}/held-out", step, {f"eval/{k}": v for k, v in means.items()} | {"eval/length": length})
        return {f"held_out_{k}": means[k] for k in ("accuracy", "language") if k in means}

    return on_step


def fine_tuning(run: Run, config: R1Config, name: str, base: Artifact, data: Artifact, settings: SftConfig) -> Artifact:
    """SFT of `base` on the chat data of `data`; loss on the assistant's tokens only (R1, 3.1 and B.4.2)."""
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(base.path / MODEL)
        model = from_pretrained(base.path / MODEL, device)
        optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
        state, _ = restore(work, optimizer)
        examples, _ = read_chat(data.path / CHAT)
        encoded = [encode_conversation(encoder, example.messages) for example in examples]
        total, loss = sft_steps(encoded, settings), float(state.get("loss", 0.0))
        with Progress(total, name, "updates", start=state["step"]) as progress:
            for step in sft(model, optimizer, encoded, settings, run.seed, state["step"], work):
                run.log(name, step.n, step.metrics)
                loss = step.metrics["sft/loss"]
                if step.n % config.save_every == 0 or step.n == total:
                    record = {"step": step.n, "version": optimizer.version, "loss": loss}
                    save_checkpoint(work, optimizer.state(), record)
                progress.update(step.n, loss=loss)
        save_model(model, work / MODEL, encoder.end_id, encoder.stop_ids)
        encoder.for_chat().save(work / MODEL, model.config.max_position_embeddings)
        used = len(trainable(encoded, settings))
        return {"examples": used, "left_out": len(encoded) - used, "updates": total, "loss": loss, "samples": used}

    return run.stage(name, build, {"sft": settings, "frame": "chat", "seed": run.seed}, [base, data], version=COMPUTED)


def reward_model(
    run: Run, config: R1Config, name: str, parent: Artifact, data: Artifact, settings: RmConfig
) -> Artifact:
    """A scalar head on `parent`, trained on the pairs or the labels of `data` (R1, B.3.4)."""
    file = str(data.path / (PAIRS if settings.kind == "pairwise" else SAFETY))
    return reward_stage(
        run,
        name,
        parent.path / MODEL,
        partial(read_files, [file], settings.kind),
        settings,
        {},
        [parent, data],
        device=config.device,
        held_out_every=REWARD_EVERY,
        save_every=config.save_every,
    )


def preference_rl(
    run: Run, config: R1Config, name: str, parent: Artifact, helpful: Artifact, safety: Artifact, beyond: bool = False
) -> Artifact:
    """Rules on reasoning, preference on general prompts in the last steps, language everywhere (R1, B.3.5).

    Args:
        beyond: a side branch that goes on from R1 with general prompts alone, where a proxy comes off the truth.
    """
    final, device = config.final, resolve_device(config.device)
    settings = replace(final.grpo, steps=final.over_steps) if beyond else final.grpo
    likes, safe = (Scorer.load(artifact.path / MODEL, device) for artifact in (helpful, safety))
    weights = PreferenceWeights(final.helpful_weight, final.safety_weight)
    general = PreferenceTask(general_task(config.tasks), likes, safe, weights)
    if beyond:
        task: Task = general
    else:
        turn = (settings.steps - final.preference_steps) * settings.problems * settings.dynamic_rounds
        task = Onward(reasoning_parts(config.tasks, "chat", config.language_weight), general, turn, final.general)
    decides = replace(final, grpo=settings, over_steps=final.over_steps if beyond else 0)
    key = {"final": decides, "tasks": tasks_key(config.tasks), "language_weight": config.language_weight}
    return _rl_stage(run, config, name, parent, settings, task, key | {"frame": "chat"}, (helpful, safety))
