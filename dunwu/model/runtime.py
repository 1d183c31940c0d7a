"""How torch is set up on this machine, in one place."""

from __future__ import annotations

import torch

from dunwu.types import UsageError


def prepare_torch() -> None:
    """Flush subnormal numbers to zero, so that arithmetic on Adam's decayed moments never takes the
    slow path that Intel processors have for them (AMD Zen 5 has none: docs/log.md, 2026-11-21)."""
    torch.set_flush_denormal(True)


def resolve_device(device: str) -> str:
    """ "auto" → cuda, mps or cpu, whichever is there first.

    Raises:
        UsageError: the device asked for is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise UsageError(f"device {device!r} is not available", "use --device cpu, or see `dunwu doctor`")
    return device
