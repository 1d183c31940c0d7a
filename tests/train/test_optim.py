"""The optimizer against torch's AdamW, and schedules against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dunwu.train.optim import MasterAdamW
from dunwu.types import DunwuError


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 11)).to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    ids = torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(step))
    loss: Tensor = nn.functional.cross_entropy(model(ids).float(), ids.flip(0)) * (0.1 if step % 3 else 30.0)
    return loss


def test_twenty_steps_equal_adamw() -> None:
    """With clipping, a changing learning rate, and weight decay on matrices only."""
    ours, theirs = network(), network()
    optimizer = MasterAdamW(ours, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)
    decays = [
        {"params": [p for p in theirs.parameters() if (p.dim() > 1) is matrix], "weight_decay": 0.3 * matrix}
        for matrix in (True, False)
    ]
    oracle = torch.optim.AdamW(decays, betas=(0.9, 0.95), eps=1e-8)
    clipped = 0
    for step in range(20):
        lr = 0.02 / (step + 1)
        loss_of(ours, step).backward()
        loss_of(theirs, step).backward()
        their_norm = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert optimizer.step(lr, max_grad_norm=1.0) == pytest.approx(float(their_norm), rel=1e-5)
        clipped += float(their_norm) > 1.0
        for group in oracle.param_groups:
            group["lr"] = lr
        oracle.step()
        oracle.zero_grad()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
    assert 0 < clipped < 20  # both sides of the threshold were met
    assert optimizer.version == 20


def test_bf16_parameters_are_the_rounded_master() -> None:
    model = network(torch.bfloat16)
    optimizer = MasterAdamW(model)
    before = optimizer.master.clone()
    for step in range(30):
        loss_of(model, step).backward()
        optimizer.step(1e-5)
        flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert torch.equal(flat, optimizer.master.bfloat16())
        assert all(p.grad is None for p in model.parameters())
    # One step is 1e-5 at most, far below what bf16 resolves at these weights; in the master they add up.
    assert float((optimizer.master - before).abs().median()) > 3e-5


def test_a_bad_gradient_changes_nothing() -> None:
    model = network()
    optimizer = MasterAdamW(model)
    loss_of(model, 0).backward()
    optimizer.step(0.01)
    before = {name: t.clone() for name, t in optimizer.state().items()}
    weights = [p.detach().clone() for p in model.parameters()]
    for bad in (math.nan, math.inf):
        loss_of(model, 1).backward()
        grad = next(model.parameters()).grad
        assert grad is not None
        grad[0, 0] = bad
        with pytest.raises(DunwuError, match="gradient is"):
            optimizer.step(0.01, max_grad_norm=1.0)
    assert optimizer.version == 1
    assert all(torch.equal(t, before[name]) for name, t in optimizer.state().items())
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = MasterAdamW(model)
    saved: dict[str, Tensor] = {}
    for step in range(8):
        if step == 5:
            saved = {name: t.clone() for name, t in optimizer.state().items()}
        loss_of(model, step).backward()
        optimizer.step(0.01, 1.0)
    other = network(dtype)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    resumed = MasterAdamW(other)
    resumed.load(saved, version=5)
    for step in range(5, 8):
        loss_of(other, step).backward()
        resumed.step(0.01, 1.0)
    assert all(torch.equal(t, resumed.state()[name]) for name, t in optimizer.state().items())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_state_of_another_shape_is_refused() -> None:
    optimizer = MasterAdamW(network())
    with pytest.raises(DunwuError, match="checkpoint holds 3 weights"):
        optimizer.load({name: torch.zeros(3) for name in optimizer.state()}, 1)


def test_decay_takes_from_matrices_with_a_gradient_only() -> None:
    """A module that takes no part in the loss (MTP in SFT) stays as it is; a gradient of 0 is a part."""
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    before = [p.detach().clone() for p in model.parameters()]
    (0 * model[0](torch.ones(1, 4))).sum().backward()
    MasterAdamW(model, weight_decay=0.5).step(lr=0.1)
    weight, *others = model.parameters()
    torch.testing.assert_close(weight.detach(), before[0] * (1 - 0.1 * 0.5), atol=1e-7, rtol=0)
    assert all(torch.equal(p.detach(), b) for p, b in zip(others, before[1:], strict=True))
