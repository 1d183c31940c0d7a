"""DeepSeek-R1, whole, from raw pages to the distilled students (arXiv 2501.12948 v2; Nature 645, 2025).

Every line is a stage, and names what it is made from. The numbers are the paper's. A stage runs again only when
its settings or inputs change; `r1_config.py` holds the settings, the modules imported here how each stage is made.
"""

from __future__ import annotations

from dunwu.log import Run
from dunwu.model.runtime import prepare_torch
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_data import cold_start, preferences, rejection
from dunwu.recipes.r1_ground import check_inputs, ground
from dunwu.recipes.r1_students import students
from dunwu.recipes.r1_table import stage_table
from dunwu.recipes.r1_training import fine_tuning, preference_rl, reasoning_rl, reward_model, zero_rl
from dunwu.store import Artifact


def run(run: Run, config: R1Config) -> None:
    """The recipe `r1`."""
    config.validate()
    check_inputs(config)
    prepare_torch(config.device)
    story(run, config)


def story(run: Run, config: R1Config) -> Artifact:
    """Every stage; returns the stage table."""
    # 1. Crawled pages → records → tokenizer → base. R1-Zero: reinforcement of the base with rule rewards only.
    pages = ground(run, config)
    base = pages.base
    zero = zero_rl(run, config, "r1-zero", base, config.zero)

    # 2. R1-Zero's correct, readable samples, rewritten → SFT of the BASE → Dev1.
    cold = cold_start(run, config, zero)
    dev1 = fine_tuning(run, config, "dev1", base, cold, config.cold_sft)

    # 3. Reasoning RL, with the language-consistency reward → Dev2. The ablation goes without it.
    dev2 = reasoning_rl(run, config, "dev2", dev1, config.language_weight, config.reasoning.steps)
    ablation = None
    if config.ablation_steps:
        ablation = reasoning_rl(run, config, "dev2-no-language", dev1, 0.0, config.ablation_steps)

    # 4. Rejection sampling from Dev2, and general conversations, 3 : 1.
    union = rejection(run, config, dev2)

    # 5. SFT of the BASE again, on the union, two epochs → Dev3.
    dev3 = fine_tuning(run, config, "dev3", base, union, config.sft)

    # 6. Reward models from judged pairs and labelled replies.
    pairs = preferences(run, config, dev3)
    helpful = reward_model(run, config, "rm-helpful", dev3, pairs, config.helpful)
    safety = reward_model(run, config, "rm-safety", dev3, pairs, config.safety)

    # 7. Final RL: rules on reasoning, preference on general prompts in the last part only → R1.
    r1 = preference_rl(run, config, "r1", dev3, helpful, safety)
    beyond = None
    if config.final.over_steps:
        beyond = preference_rl(run, config, "r1-overoptimised", r1, helpful, safety, beyond=True)

    # 8. The same data distilled into smaller students; RL alone and on-policy distillation beside it.
    taught = students(run, config, pages, union, r1)

    # Every model asked the same held-out prompts, and the paper's claims decided by the figures.
    models = {"base": base, "R1-Zero": zero, "Dev1": dev1, "Dev2": dev2, "Dev3": dev3, "R1": r1}
    if ablation:
        models["no language reward"] = ablation
    data = {"cold-start": cold, "rejection": union, "preferences": pairs, "rm-helpful": helpful, "rm-safety": safety}
    if pages.cleaned:
        data["cleaning"] = pages.cleaned
    return stage_table(run, config, models | taught, data, beyond)
