"""The model, tokenizer and prompts that ours and the peers are measured with: made on the spot, the same for all."""

from __future__ import annotations

from random import Random

import torch

from dunwu import machine
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import model_preset
from dunwu.model.hf import resolve_dtype
from dunwu.model.transformer import Transformer

VOCAB = 1024


def working_dtype(device: str = "cpu") -> torch.dtype:
    """What training and sampling use there by default."""
    return resolve_dtype("auto", device, machine.cpu_flags())


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE of 1,024 tokens on sums and small talk."""
    rng = Random(0)
    words = [
        "the",
        "a",
        "one",
        "two",
        "three",
        "Using",
        "numbers",
        "create",
        "an",
        "equation",
        "that",
        "equals",
        "answer",
        "think",
        "wait",
        "no",
        "yes",
        "because",
    ]
    lines = [
        " ".join(rng.choice(words) if rng.random() < 0.6 else str(rng.randint(1, 999)) for _ in range(12))
        + f" {rng.randint(1, 99)}+{rng.randint(1, 99)}*{rng.randint(1, 9)}={rng.randint(1, 999)}"
        for _ in range(4000)
    ]
    return train_from_texts(lines, VOCAB)


def make_model(
    size: str, tokenizer: Tokenizer, seed: int, mean_length: int | None = None, device: str = "cpu"
) -> Transformer:
    """Random weights of a preset's shape.

    Args:
        mean_length: the end token gets such a row that a completion is about this long; None leaves it to chance,
            and completions practically never end.
    """
    model = Transformer(model_preset(size, max(VOCAB, tokenizer.vocab_size)))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    if mean_length:
        _end_after(model, tokenizer.end_id, mean_length, generator)
    return model.to(device, working_dtype(device)).eval()


@torch.no_grad()
def _end_after(model: Transformer, end_id: int, mean_length: int, generator: torch.Generator) -> None:
    """Values with a bias give every final state a part in common; along it the end token's row is laid."""
    for name, parameter in model.named_parameters():
        if name.endswith("v_proj.bias"):
            parameter.normal_(0.0, 0.5, generator=generator)
    ids = torch.randint(0, VOCAB, (16, 64), generator=generator)
    states = model.hidden(ids).flatten(0, 1)
    wanted = (model(ids).flatten(0, 1).logsumexp(-1)).mean() - torch.tensor(float(mean_length)).log()
    model.head_weight[end_id] = torch.linalg.lstsq(states, wanted.expand(len(states))[:, None]).solution[:, 0]


def make_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random token ids; ordinary tokens only."""
    rng = Random(seed)
    return [[rng.randrange(300, VOCAB - 24) for _ in range(length)] for _ in range(count)]
