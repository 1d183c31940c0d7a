"""PPO alone: any model folder, any task or reward functions, a learned model in the same layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dunwu.data.shards import PackedShards
from dunwu.data.tokenizer import load_tokenizer
from dunwu.log import Run
from dunwu.model.hf import read_config
from dunwu.model.hf_weights import stored_in
from dunwu.model.runtime import prepare_torch
from dunwu.recipes.grpo import check_room, make_task, rl_stage, stage_key
from dunwu.recipes.ppo_config import PpoRunConfig
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.stages import data_digest, model_digest
from dunwu.recipes.user_models import model_folder
from dunwu.store import Artifact, resolve_folder, resolve_model
from dunwu.train.ppo import Pages
from dunwu.train.reward_model import load_meaning
from dunwu.types import DunwuError, Task


def run(run: Run, config: PpoRunConfig) -> None:
    """The recipe `ppo`."""
    config.validate()
    task = make_task(config)
    folder = model_folder(run, config.model)
    check_room(folder, task, config.settings.max_tokens, run.seed, "ppo")
    prepare_torch(config.device)
    learned = learn(run, config, folder, task)
    figures = learned.meta["metrics"]
    before, after = figures["before"], figures["held_out_accuracy"]
    print(f"{learned.path / MODEL}: held-out accuracy {before:.3f} → {after:.3f} in {config.settings.steps} steps")


def learn(run: Run, config: PpoRunConfig, folder: Path, task: Task) -> Artifact:
    """The stage: checkpoints on the way, a held-out curve, the model at the end."""
    settings = config.settings
    key = {"ppo": settings, **stage_key(config, folder, run.seed)}
    critic_from = pages = None
    if config.critic_from:
        critic_from = resolve_model(config.critic_from, run.store)
        check_critic(critic_from, folder)
        key["critic_from"] = model_digest(critic_from)
    if settings.ptx_coef:
        shards = shards_folder(run, config.ptx_data)
        pages = pages_of(shards, load_tokenizer(folder).vocab_size, config.ptx_rows, config.ptx_context, run.seed)
        key["ptx"] = [data_digest(str(shards)), config.ptx_rows, config.ptx_context]
    return rl_stage(run, "ppo", config, settings, folder, task, key, critic_from, pages)


def check_critic(reward_model: Path, folder: Path) -> None:
    """Raise DunwuError if no critic of the model in `folder` can begin from that reward model; only headers are read."""
    if "score.weight" not in stored_in(reward_model) and load_meaning(reward_model).head == "scalar":
        raise DunwuError(f"{reward_model} is no reward model: it has no head score.weight", "make one: `dunwu run rm`")
    theirs, ours = (read_config(path).get("vocab_size") for path in (reward_model, folder))
    if theirs != ours:
        what = f"the reward model has {theirs} tokens, the policy {ours}"
        raise DunwuError(what, "use a reward model made from a model with the same tokenizer")


def shards_folder(run: Run, text: str) -> Path:
    """The folder of token shards that a user names: itself, its `train`, or those of a run's stage."""
    found = resolve_folder(text, run.store)
    return found / "train" if (found / "train").is_dir() else found


def pages_of(folder: Path, vocab_size: int, rows: int, context: int, seed: int) -> Pages:
    """Pretraining windows for the ptx mix, a function of step and update.

    Raises:
        DunwuError: no shards there, too few tokens, or those of another tokenizer.
    """
    shards = PackedShards(folder, context, seed)

    def pages(step: int, update: int) -> Tensor:
        # Updates of a step are fewer than 4096: minibatches × epochs.
        windows = torch.from_numpy(shards.batch(step * 4096 + update, rows))
        if int(windows.max()) >= vocab_size:
            what = f"{folder} has token {int(windows.max())}, the model {vocab_size} tokens"
            raise DunwuError(what, "give shards made with the model's tokenizer")
        return windows

    pages(0, 0)  # so that another tokenizer is noticed before anything begins
    return pages
