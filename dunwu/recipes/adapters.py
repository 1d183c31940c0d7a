"""LoRA in a stage: adapters put in before training, kept and merged behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dunwu.model.lora import adapters, add_lora, merge
from dunwu.model.lora_config import LoraConfig
from dunwu.model.lora_files import save_lora
from dunwu.types import derive_seed

ADAPTER = "adapter"
"""Sub-folder of a LoRA stage's artifact that is a PEFT adapter; `model/` beside it has it merged."""


def fit_adapters(model: nn.Module, lora: LoraConfig | None, seed: int, also: Sequence[str] = ()) -> dict[str, object]:
    """Give the model adapters if a rank is set; what a stage's headline says of it, or nothing.

    Args:
        seed: the run's.
        also: modules that are trained as they are, such as a reward model's "score".
    """
    if lora is None or not lora.rank:
        return {}
    add_lora(model, lora, torch.Generator().manual_seed(derive_seed("lora", seed)), also)
    return {"trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def keep_adapter(model: nn.Module, work: Path, base: Path | None) -> None:
    """Save the adapters as `adapter/` and merge them; nothing where there are none.

    Args:
        base: folder of the model without them.
    """
    if adapters(model):
        save_lora(model, work / ADAPTER, str(base.resolve()) if base else "")
        merge(model)
