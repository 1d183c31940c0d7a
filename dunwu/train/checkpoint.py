"""One file that is a whole training state: tensors and a small JSON record, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dunwu.types import DunwuError

NAME = "checkpoint.safetensors"


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint; whoever reads sees the old one or the new one, whole."""
    temporary = folder / (NAME + ".tmp")
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, temporary, {"state": json.dumps(state)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the folder's checkpoint, or None if there is none.

    Raises:
        DunwuError: the file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            state = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise DunwuError(f"checkpoint {path} is damaged: {error}", "delete it; the stage then starts afresh") from error
    return tensors, state
