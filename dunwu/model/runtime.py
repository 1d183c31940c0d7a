"""How torch is set up on this machine, in one place."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

import torch

from dunwu import machine
from dunwu.native import build
from dunwu.types import UsageError

COMPUTED = "2"
"""Code version of every stage that samples or trains: raised when models come to be computed otherwise, by the bits.
2: the C kernels and trees of `native/`."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings, from malloc.h."""


def prepare_torch(device: str | None = None) -> None:
    """Set torch up, and say how models will be computed on `device`, if one is given (once).

    Flush subnormal numbers to zero, so that arithmetic on Adam's decayed moments never takes the
    slow path that Intel processors have for them (AMD Zen 5 has none: docs/log.md, 2026-11-21)."""
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    _bound_caches()
    if device is not None:
        _tell_path(resolve_device(device))


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


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc's allocator keep what tensors give back. By default it returns blocks of some MB to the system at once,
    and every step then faults its pages in again: a quarter of a small training step (docs/log.md, 2026-11-21)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def _bound_caches() -> None:
    """Matrix products keep what they prepared for every shape they saw: a thousand shapes, half a megabyte each. Batches of
    completions are of a new shape every time, so a long run grew by gigabytes and found nothing again (docs/log.md,
    2026-11-22). oneDNN and its bridge read these names when they first multiply; who set them has his way."""
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


@functools.cache
def _tell_path(device: str) -> None:
    if device.startswith("cuda"):
        way = f"{torch.cuda.get_device_name(device)}: torch's fused attention, sampling by CUDA graphs"
    elif device == "cpu":
        kernels = build.library("train", build.BF16 in machine.cpu_flags()) is not None
        way = f"{torch.get_num_threads()} threads, {'C kernels where the model allows' if kernels else 'plain torch'}"
    else:
        way = "plain torch"
    print(f"computing on {device}: {way}", file=sys.stderr)
