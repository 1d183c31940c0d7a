"""The model, tokenizer and prompts that ours and the peers are measured with: made on the spot, the same for all."""

from __future__ import annotations

import itertools

import torch

from dunwu import machine
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import model_preset
from dunwu.model.hf import resolve_dtype
from dunwu.model.transformer import Transformer
from dunwu.recipes.r1_presets import WIDE
from dunwu.world.web import pages

VOCAB = 1024


def working_dtype(device: str = "cpu") -> torch.dtype:
    """What training and sampling use there by default."""
    return resolve_dtype("auto", device, machine.cpu_flags())


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE of 1,024 tokens on pages of the world."""
    return train_from_texts((page.text for page in itertools.islice(pages(WIDE, seed=0), 4000)), VOCAB)


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


def make_prompts(tokenizer: Tokenizer, count: int, length: int, seed: int) -> list[list[int]]:
    """The first tokens of pages that are long enough."""
    found = (tokenizer.encode(page.text) for page in pages(WIDE, seed))
    return [ids[:length] for ids in itertools.islice((ids for ids in found if len(ids) >= length), count)]
