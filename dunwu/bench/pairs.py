"""Ours and a peer's, by turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def best_of(times: int, measure: Callable[[], float]) -> float:
    """The least of several measurements."""
    return min(measure() for _ in range(times))


def rate(work: Callable[[], float], device: str = "cpu") -> float:
    """What `work` returns (things done) per second of it, until the device is done."""
    wait(device)
    began = time.perf_counter()
    done = work()
    wait(device)
    return done / (time.perf_counter() - began)


QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
"""Settings of transformers' Trainer, and of those made from it, that writes nothing."""


def seconds_of_steps(trainer: Any) -> float:
    """Run a Trainer; seconds of its steps after the first, which still sets things up."""
    import transformers

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        began = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            self.ended = time.perf_counter()
            if state.global_step == 1:
                self.began = self.ended

    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return clock.ended - clock.began


def compare(ours: Callable[[], float], peer: Callable[[], float] | None, pairs: int) -> dict[str, Any]:
    """Rates of both (medians), and the median, least and largest of the pairs' ratios.

    Both return a rate, higher is better. Each runs once before anything counts; who begins changes with every pair.
    """
    ours()
    if peer is None:
        rates = [ours() for _ in range(pairs)]
        return {"ours": _shown(statistics.median(rates))}
    peer()
    mine: list[float] = []
    theirs: list[float] = []
    for pair in range(pairs):
        for who in ("ours", "peer") if pair % 2 == 0 else ("peer", "ours"):
            (mine if who == "ours" else theirs).append((ours if who == "ours" else peer)())
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "ours": _shown(statistics.median(mine)),
        "peer": _shown(statistics.median(theirs)),
        "ratio": _shown(statistics.median(ratios)),
        "ratio_low": _shown(min(ratios)),
        "ratio_high": _shown(max(ratios)),
    }


def _shown(value: float) -> float:
    """Four digits.

    Example:
        >>> _shown(12345.678), _shown(0.123456)
        (12350.0, 0.1235)
    """
    return float(f"{value:.4g}")
