"""AdamW over one flat fp32 master vector, and learning-rate schedules.

The model's parameters may be bf16 (on AVX512-BF16 CPUs matrix products run 2-4× faster); the
master copy, both moments and the update are fp32. `step` writes every parameter before it
returns, so whoever samples between steps sees one version of the weights, never a mixture.

Frozen parameters have no part in it. An update needs 16 bytes a weight: master, moments and gradient; the
arithmetic runs piece by piece, which changes no bit of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dunwu.types import DunwuError

Schedule = Literal["cosine", "wsd", "constant", "linear"]

_PIECE = 1 << 22
"""Weights updated at a time."""


class MasterAdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Args:
        model: its parameters that require a gradient are updated in place; gradients are consumed and cleared.
        betas: (β1, β2).
        eps: ε.
        weight_decay: λ, on matrices only (not on norms and biases).
    """

    def __init__(
        self,
        model: nn.Module,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        if not self.parameters:
            raise ValueError("no parameter requires a gradient")
        self.master = self._empty()
        for place, p in self._places(self.master):
            place.copy_(p.detach().reshape(-1))
        self.first = torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master)
        self.version = 0
        self.buffers = {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}

    def step(self, lr: float, max_grad_norm: float = 0.0, check: Callable[[float], None] = lambda norm: None) -> float:
        """One update; returns the gradient's norm before clipping.

        Args:
            check: called with that norm before anything is changed; it refuses the update by raising.

        Raises:
            DunwuError: the gradient is NaN or infinite; nothing has been changed then.
        """
        idle = [p.grad is None for p in self.parameters]
        grad = self._take_gradients()
        norm = float(grad.norm())
        check(norm)
        if not math.isfinite(norm):
            raise DunwuError(f"the gradient is {norm} at update {self.version}", "lower the learning rate")
        if max_grad_norm and norm > max_grad_norm:
            grad.mul_(max_grad_norm / norm)
        beta1, beta2 = self.betas
        self.version += 1
        if self.weight_decay:
            one = torch.ones((), device=self.master.device)
            # What took no part in the loss, as the MTP module in SFT, does not shrink either.
            for (place, p), unused in zip(self._places(self.master), idle):
                if p.dim() > 1 and not unused:
                    place.addcmul_(place, one, value=-lr * self.weight_decay)
        scale, rate = math.sqrt(1 - beta2**self.version), lr / (1 - beta1**self.version)
        pieces = (torch.split(whole, _PIECE) for whole in (self.master, self.first, self.second, grad))
        for master, first, second, g in zip(*pieces):
            first.lerp_(g, 1 - beta1)
            second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            master.addcdiv_(first, second.sqrt().div_(scale).add_(self.eps), value=-rate)
        self._write_parameters()
        return norm

    def _empty(self) -> Tensor:
        """fp32 room for a number per weight."""
        return torch.empty(sum(p.numel() for p in self.parameters), device=self.parameters[0].device)

    def _places(self, flat: Tensor) -> Iterator[tuple[Tensor, nn.Parameter]]:
        """Every parameter with its stretch of a vector over all of them."""
        return zip(torch.split(flat, [p.numel() for p in self.parameters]), self.parameters)

    def _take_gradients(self) -> Tensor:
        """All gradients as one fp32 vector; the parameters' own are let go one by one."""
        grad = self._empty()
        for place, p in self._places(grad):
            place.zero_() if p.grad is None else place.copy_(p.grad.reshape(-1))
            p.grad = None
        return grad

    @torch.no_grad()
    def _write_parameters(self) -> None:
        for place, p in self._places(self.master):
            p.copy_(place.view_as(p))
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint; with `version` they are the whole state."""
        return {"master": self.master, "first": self.first, "second": self.second, **self.buffers}

    def load(self, tensors: dict[str, Tensor], version: int) -> None:
        """Restore `state()` bit for bit, the model's parameters included."""
        for name, mine in self.state().items():
            if tensors[name].shape != mine.shape:
                raise DunwuError(
                    f"checkpoint holds {tensors[name].numel()} weights, the model has {mine.numel()}",
                    "delete the checkpoint or use the config it was made with",
                )
            mine.copy_(tensors[name])
        self.version = version
        self._write_parameters()


def learning_rate(
    step: int, total: int, peak: float, warmup: int, schedule: Schedule = "cosine", final: float = 0.1
) -> float:
    """Learning rate of update `step` (0-based): linear warm-up, then the schedule down to `final`·peak.

    "wsd" is warm-up, stable, then linear decay over the last fifth (MiniCPM, section 4).

    Example:
        >>> learning_rate(0, 100, 1.0, warmup=10), learning_rate(99, 100, 1.0, warmup=0, final=0.0) < 0.001
        (0.1, True)
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup + 1) / max(1, total - warmup))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - (1 - final) * progress)
    if schedule == "wsd":
        return peak * (1.0 if progress < 0.8 else 1 - (1 - final) * (progress - 0.8) / 0.2)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
