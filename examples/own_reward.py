"""Your own rewards, in TRL's signature, on a model folder in Hugging Face's layout: python examples/own_reward.py [FOLDER]
The same from the command line: dunwu run grpo --model FOLDER --reward own_reward.py:digits own_reward.py:brief
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch


def digits(completions, **columns):
    """Share of the completion that is digits; None where the reward does not apply."""
    return [sum(c.isascii() and c.isdigit() for c in text) / len(text) if text else None for text in completions]


def brief(prompts, completions, completion_ids, target, **columns):
    """`target` is a field of Countdown's problems, `completion_ids` are the sampled tokens."""
    return [1.0 if len(ids) < 8 else 0.0 for ids in completion_ids]


def make_model(folder):
    """A model with random weights, for when none is given."""
    from dunwu.data.tokenizer import train_from_texts
    from dunwu.model.config import model_preset
    from dunwu.model.hf import save_model
    from dunwu.model.transformer import Transformer

    tokenizer = train_from_texts(["make 24 from 3 and 8"], 280)
    model = Transformer(model_preset("tiny", tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder, tokenizer.end_id)
    tokenizer.save(folder)
    return folder


def main(folder, steps=10):
    """GRPO with two weighted rewards; returns each one's mean by step."""
    from dunwu.data.tokenizer import load_tokenizer
    from dunwu.model.hf import load_model
    from dunwu.rollout.engine import Engine
    from dunwu.tasks import get_task, rewards
    from dunwu.train.config import GrpoConfig
    from dunwu.train.grpo import grpo
    from dunwu.train.learner import Learner
    from dunwu.train.optim import MasterAdamW

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    task = rewards.RewardFunctions([(digits, 1.0), (brief, 0.5)], get_task("countdown"))
    config = GrpoConfig(steps=steps, problems=8, group_size=16, max_tokens=12, lr=3e-3, warmup=1, minibatches=4)
    steps = grpo(Learner(model, MasterAdamW(model)), Engine(model, tokenizer), tokenizer, task, config, seed=0)
    found = [step.metrics for step in steps]
    curves = {name: [round(metrics[f"grpo/reward/{name}"], 2) for metrics in found] for name in ("digits", "brief")}
    print(*(f"{name} by step: {curve}" for name, curve in curves.items()), sep="\n")
    return curves


if __name__ == "__main__":
    with TemporaryDirectory() as made:
        main(sys.argv[1] if sys.argv[1:] else make_model(Path(made)))
