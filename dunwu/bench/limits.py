"""What the machine can do at best: matrix products per dtype, and reading memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dunwu.bench.pairs import best_of, wait


def limits(quick: bool = False, device: str = "cpu") -> dict[str, Any]:
    """`gemm_gflops` per dtype (square products; of 1024 on a CPU, of 8192 elsewhere), `bandwidth_gb_s` (a copy of 256 MB, read and written)."""
    gemm = {name: gemm_gflops(dtype, quick, device) for name, dtype in DTYPES.items()}
    numbers = torch.zeros(1 << (16 if quick else 26), device=device)
    target = torch.empty_like(numbers)
    seconds = best_of(5, lambda: timed(lambda: target.copy_(numbers), device))
    return {"gemm_gflops": gemm, "bandwidth_gb_s": round(2 * numbers.nbytes / seconds / 1e9, 1)}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def gemm_gflops(dtype: torch.dtype, quick: bool = False, device: str = "cpu") -> float:
    """Rate of square matrix products, best of five runs of ten."""
    size, count = (128, 2) if quick else (1024 if device == "cpu" else 8192, 10)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return round(2 * size**3 * count / best_of(5, lambda: timed(products, device)) / 1e9, 1)


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds until the work is really done there."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began
