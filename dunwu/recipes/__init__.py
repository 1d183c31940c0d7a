"""What can be run. A recipe is a story told by one module; here are only their names, knobs and presets.

Nothing here imports torch: `dunwu recipes` and `dunwu run --help` answer at once, and a recipe's
module is imported when it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dunwu.log import Run
from dunwu.recipes import (
    configs,
    control_config,
    distill_config,
    dpo_config,
    expert_config,
    extend_config,
    grpo_config,
    lr_find_config,
    ppo_config,
    r1_config,
    r1_presets,
    reject_config,
    rl_study_config,
    rlhf_config,
    rm_config,
    rm_study_config,
    sft_config,
)
from dunwu.types import UsageError


@dataclass(frozen=True)
class Recipe:
    """One thing `dunwu run` can do.

    `config` is a frozen dataclass; `presets` maps a name (tiny, cpu, gpu) to an instance of it, the first
    being the default; `run` is "module:function", called as `function(run, config)`.
    """

    name: str
    summary: str
    config: type
    presets: Mapping[str, Any]
    run: str

    @property
    def default_preset(self) -> str:
        """The preset used when none is named."""
        return next(iter(self.presets))

    def load(self) -> Callable[[Run, Any], None]:
        """Import the story."""
        module, _, function = self.run.partition(":")
        loaded: Callable[[Run, Any], None] = getattr(importlib.import_module(module), function)
        return loaded


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="r1",
            summary="the whole of R1: base, R1-Zero, cold start, reasoning RL, rejection sampling, rewards, R1, students",
            config=r1_config.R1Config,
            presets=r1_presets.R1_PRESETS,
            run="dunwu.recipes.r1:run",
        ),
        Recipe(
            name="r1-study",
            summary="r1 over several seeds: the stage table with intervals over runs",
            config=r1_presets.R1StudyConfig,
            presets=r1_presets.R1_STUDY_PRESETS,
            run="dunwu.recipes.r1_study:run",
        ),
        Recipe(
            name="r1-zero",
            summary="pages, tokenizer, base model, then GRPO with rule rewards only: the aha experiment, in minutes",
            config=configs.R1ZeroConfig,
            presets=configs.R1_ZERO_PRESETS,
            run="dunwu.recipes.r1_zero:run",
        ),
        Recipe(
            name="r1-zero-study",
            summary="r1-zero over several seeds with its controls: random reward, format only, a base without search",
            config=configs.StudyConfig,
            presets=configs.STUDY_PRESETS,
            run="dunwu.recipes.r1_zero_study:run",
        ),
        Recipe(
            name="arch-study",
            summary="r1-zero with V3's experts and latent attention beside the dense one: scores, load, cost",
            config=configs.ArchStudyConfig,
            presets=configs.ARCH_STUDY_PRESETS,
            run="dunwu.recipes.arch_study:run",
        ),
        Recipe(
            name="pretrain",
            summary="a base model from scratch on your own text or JSONL files: --data FILE [FILE …]",
            config=configs.PretrainRunConfig,
            presets=configs.PRETRAIN_PRESETS,
            run="dunwu.recipes.pretrain:run",
        ),
        Recipe(
            name="extend",
            summary="a longer context with YaRN and a short training: --model FOLDER --data FILE …, or a demonstration",
            config=extend_config.ExtendRunConfig,
            presets=extend_config.EXTEND_PRESETS,
            run="dunwu.recipes.extend:run",
        ),
        Recipe(
            name="sft",
            summary="fine-tuning on your own conversations: --model FOLDER --data FILE [FILE …]",
            config=sft_config.SftRunConfig,
            presets=sft_config.SFT_PRESETS,
            run="dunwu.recipes.sft:run",
        ),
        Recipe(
            name="rm",
            summary="a reward model from your own pairs or labels: --model FOLDER --data FILE --kind pairwise|ranking|pointwise",
            config=rm_config.RmRunConfig,
            presets=rm_config.RM_PRESETS,
            run="dunwu.recipes.rm:run",
        ),
        Recipe(
            name="dpo",
            summary="DPO, IPO, KTO, ORPO or SimPO on your own pairs: --model FOLDER --data FILE [--dpo.loss kto]",
            config=dpo_config.DpoRunConfig,
            presets=dpo_config.DPO_PRESETS,
            run="dunwu.recipes.dpo:run",
        ),
        Recipe(
            name="grpo",
            summary="GRPO alone: --model FOLDER --task NAME_OR_FILE.py [--reward FILE.py:FUNCTION …]",
            config=grpo_config.GrpoRunConfig,
            presets=grpo_config.GRPO_PRESETS,
            run="dunwu.recipes.grpo:run",
        ),
        Recipe(
            name="ppo",
            summary="PPO with a critic: --model FOLDER --task NAME_OR_FILE.py [--ppo.critic own|shared|none]",
            config=ppo_config.PpoRunConfig,
            presets=ppo_config.PPO_PRESETS,
            run="dunwu.recipes.ppo:run",
        ),
        Recipe(
            name="reject",
            summary="rejection sampling: --model FOLDER_or_URL --task NAME_or_FILE.py | --data FILE --judge FOLDER_or_URL",
            config=reject_config.RejectRunConfig,
            presets=reject_config.REJECT_PRESETS,
            run="dunwu.recipes.reject:run",
        ),
        Recipe(
            name="distill",
            summary="teach a student: --student FOLDER --teacher FOLDER [--method on-policy] --prompts FILE | --task NAME",
            config=distill_config.DistillRunConfig,
            presets=distill_config.DISTILL_PRESETS,
            run="dunwu.recipes.distill:run",
        ),
        Recipe(
            name="expert",
            summary="expert iteration (STaR, RAFT): --model FOLDER --task NAME_OR_FILE.py [--rounds 3], its own right samples",
            config=expert_config.ExpertRunConfig,
            presets=expert_config.EXPERT_PRESETS,
            run="dunwu.recipes.expert:run",
        ),
        Recipe(
            name="rl-study",
            summary="PPO against GRPO, and every variant of the shelf, from one base on equal samples and processor seconds",
            config=rl_study_config.RlStudyConfig,
            presets=rl_study_config.RL_STUDY_PRESETS,
            run="dunwu.recipes.rl_study:run",
        ),
        Recipe(
            name="rlhf",
            summary="SFT, reward models, PPO as InstructGPT: proxy against truth with and without KL, ensembles, early stop",
            config=rlhf_config.RlhfConfig,
            presets=rlhf_config.RLHF_PRESETS,
            run="dunwu.recipes.rlhf:run",
        ),
        Recipe(
            name="rm-study",
            summary="reward models of every kind on the world's noisy labels, against the best possible",
            config=rm_study_config.RmStudyConfig,
            presets=rm_study_config.RM_STUDY_PRESETS,
            run="dunwu.recipes.rm_study:run",
        ),
        Recipe(
            name="lr-find",
            summary="a learning rate for GRPO by short trials: --model FOLDER --task NAME_OR_FILE.py [--low 1e-5 --high 1e-2]",
            config=lr_find_config.LrFindConfig,
            presets=lr_find_config.LR_FIND_PRESETS,
            run="dunwu.recipes.lr_find:run",
        ),
        Recipe(
            name="control",
            summary="PPO, GRPO, RLOO, REINFORCE on CartPole, Pendulum, Acrobot and an LQR: who needs a critic, and when",
            config=control_config.ControlRunConfig,
            presets=control_config.CONTROL_PRESETS,
            run="dunwu.recipes.control:run",
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UsageError: naming the nearest one.
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1)
        raise UsageError(
            f"unknown recipe {name!r}", f"did you mean {near[0]!r}?" if near else f"one of {', '.join(RECIPES)}"
        )
    return RECIPES[name]
