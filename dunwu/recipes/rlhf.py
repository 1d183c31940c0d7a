"""RLHF, whole: SFT → reward models → PPO with InstructGPT's settings (arXiv 2203.02155), on the world's preferences.

What labelers prefer follows from a hidden true utility, through noise. So beside every reward that is optimised stands what
it was meant to be, and over-optimisation can be seen (Gao et al., arXiv 2210.10760): every arm optimises the same SFT model
against the same reward models, and one thing is different in it. Every line is a stage and names what it is made from.
"""

from __future__ import annotations

from dunwu.log import Run
from dunwu.model.runtime import prepare_torch
from dunwu.recipes.r1_ground import base_of
from dunwu.recipes.rlhf_arms import best_of_n, measured, optimised, write_found
from dunwu.recipes.rlhf_config import RlhfConfig
from dunwu.recipes.rlhf_stages import comparisons, demonstrations, fine_tuned, reward_models, reward_zero


def run(run: Run, config: RlhfConfig) -> None:
    """The recipe `rlhf`."""
    config.validate()
    prepare_torch(config.device)

    # 0. The world's pages → tokenizer → shards → base; or a model folder.
    base, tokens = base_of(run, config)

    # 1. Demonstrations of mixed quality → the SFT model, from which everything else begins.
    demos = demonstrations(run, config)
    sft = fine_tuned(run, config, base, demos)

    # 2. Its replies, several to a prompt, ranked by noisy labelers → reward models; demonstrations score 0.
    ranked = comparisons(run, config, sft)
    judges = reward_models(run, config, sft, ranked)
    zero = reward_zero(run, config, judges, demos, ranked)

    # 3. Each arm: the SFT model reinforced by the judges it names, and held to the SFT model as firmly as it says.
    arms = {arm: optimised(run, config, arm, sft, judges, zero, tokens) for arm in config.parsed}

    # The best of n replies of the SFT model, which nothing was trained for; then claims on prompts no one has seen.
    best = best_of_n(run, config, sft, judges, zero)
    figures = {arm: measured(run, config, arm, sft, judges, zero, made) for arm, made in arms.items()}
    write_found(run, config, arms, figures, zero, best)
