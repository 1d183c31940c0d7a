"""A task of your own in one file: the last letter of a word. Run it to check the task and to train on it, in seconds.

python examples/own_task.py, dunwu tasks show examples/own_task.py, or
dunwu run grpo --model MODEL --task examples/own_task.py
"""

from itertools import product


def problems(split):
    """Every word of three letters a to f: a tenth for the test, a tenth for validation."""
    for number, letters in enumerate(product("abcdef", repeat=3)):
        if split == {0: "test", 1: "valid"}.get(number % 10, "train"):
            yield {"word": "".join(letters)}


def prompt(problem):
    return f"{problem['word']} ends in"


def score(problem, completion):
    return float(completion.strip() == problem["word"][-1])


def gold(problem):
    return f" {problem['word'][-1]}"


def main(steps=12):
    """A few updates on gold answers, then GRPO, on a model made on the spot; returns the rewards."""
    import torch

    from dunwu.data.chat import Encoded
    from dunwu.data.tokenizer import train_from_texts
    from dunwu.model.config import model_preset
    from dunwu.model.transformer import Transformer
    from dunwu.rollout.engine import Engine
    from dunwu.tasks.user import load_task
    from dunwu.train.config import GrpoConfig, SftConfig
    from dunwu.train.grpo import grpo
    from dunwu.train.learner import Learner
    from dunwu.train.optim import MasterAdamW
    from dunwu.train.sft import sft

    task = load_task(__file__)  # checks that gold earns 1, corrupted gold 0, splits share nothing
    golds = [(prompt(problem), gold(problem)) for problem in problems("train")]
    tokenizer = train_from_texts(map("".join, golds), 280)
    model = Transformer(model_preset("tiny", tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    pairs = ((tokenizer.encode(asked), [*tokenizer.encode(right), tokenizer.end_id]) for asked, right in golds)
    examples = [Encoded((*a, *b), (0,) * len(a) + (1,) * len(b)) for a, b in pairs]
    list(sft(model, MasterAdamW(model), examples, SftConfig(epochs=30, batch_tokens=1000, lr=3e-3), seed=0))
    config = GrpoConfig(steps=steps, problems=16, group_size=16, max_tokens=3, lr=1e-3, warmup=1, minibatches=4)
    steps = grpo(Learner(model, MasterAdamW(model)), Engine(model, tokenizer), tokenizer, task, config, seed=0)
    print("reward by step:", *(rewards := [round(step.metrics["grpo/reward"], 2) for step in steps]))
    return rewards


if __name__ == "__main__":
    main()
