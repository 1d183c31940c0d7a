"""Divergences between distributions: equal to torch's, TRL's and finite differences, whole or in chunks; their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dunwu.train import divergences
from dunwu.train.divergences import forward_kl, jsd, reverse_kl

Divergence = Callable[..., Tensor]
ALL = [reverse_kl, forward_kl, jsd, partial(jsd, beta=0.1), partial(jsd, beta=0.9)]
NAMES = ["reverse", "forward", "jsd", "jsd-0.1", "jsd-0.9"]
each = pytest.mark.parametrize("divergence", ALL, ids=NAMES)


def pair(rows: int = 7, vocab: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(3 * torch.randn(rows, vocab, generator=generator, dtype=dtype) for _ in range(2))  # type: ignore[return-value]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities by torch, whose kl_div(input, target) is KL(target ‖ exp(input))."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def oracle(divergence: Divergence, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = (F.log_softmax(x / temperature, -1) for x in (student, teacher))
    if divergence is reverse_kl:
        return kl(s, t)
    if divergence is forward_kl:
        return kl(t, s)
    beta = divergence.keywords["beta"] if isinstance(divergence, partial) else 0.5
    m = (beta * t.exp() + (1 - beta) * s.exp()).log()
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


@each
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk", [1, 25, 10_000])
def test_equals_torch_kl_div_and_its_gradient(
    divergence: Divergence, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergences, "CHUNK_VALUES", chunk)
    student, teacher = pair()
    mine, theirs = (student.clone().requires_grad_() for _ in range(2))
    values_N, oracle_N = divergence(mine, teacher, temperature), oracle(divergence, theirs, teacher, temperature)
    torch.testing.assert_close(values_N, oracle_N, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, len(values_N) + 1, dtype=torch.float64)
    (weights * values_N).sum().backward()
    (weights * oracle_N).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("beta", "divergence"), [*zip([1.0, 0.0, 0.5, 0.1, 0.9], ALL, strict=True)], ids=NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_trl(beta: float, divergence: Divergence, temperature: float) -> None:
    """TRL takes the limits of β for the KLs themselves."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    student, teacher = pair()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
    )
    mine = divergence(student, teacher, temperature).sum()
    torch.testing.assert_close(mine, theirs.double(), rtol=1e-6, atol=1e-9)  # its β is a fp32 number on the way


@each
def test_gradient_is_that_of_finite_differences(divergence: Divergence) -> None:
    student, teacher = pair(2, 5)
    assert torch.autograd.gradcheck(lambda x: divergence(x, teacher, 0.8), (student.requires_grad_(),))


def test_jsd_goes_to_the_forward_kl_and_to_the_reverse_kl() -> None:
    student, teacher = (x / 3 for x in pair())
    gradients = {}
    for name, loss in (
        ("forward", lambda x: forward_kl(x, teacher)),
        ("near 0", lambda x: jsd(x, teacher, beta=1e-6) / 1e-6),
        ("reverse", lambda x: reverse_kl(x, teacher)),
        ("near 1", lambda x: jsd(x, teacher, beta=1 - 1e-6) / 1e-6),
    ):
        leaf = student.clone().requires_grad_()
        values = loss(leaf)
        values.sum().backward()
        gradients[name] = (values.detach(), leaf.grad)
    torch.testing.assert_close(gradients["near 0"], gradients["forward"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradients["near 1"], gradients["reverse"], rtol=1e-3, atol=1e-3)


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=2, max_size=6), st.floats(0.01, 0.99))
def test_divergences_are_never_negative_jsd_is_bounded_and_a_shift_of_logits_is_nothing(
    logits: list[tuple[float, float]], beta: float
) -> None:
    student, teacher = torch.tensor(logits, dtype=torch.float64).T.unsqueeze(1)
    for divergence in (reverse_kl, forward_kl, partial(jsd, beta=beta)):
        value = divergence(student, teacher)
        assert float(value) > -1e-12
        torch.testing.assert_close(divergence(student + 3, teacher - 5), value, rtol=1e-6, atol=1e-10)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)  # of the coin that chooses a side
    assert float(jsd(student, teacher, beta=beta)) <= entropy + 1e-12
    # The two sides change places when β does.
    mirrored = jsd(teacher, student, beta=1 - beta)
    torch.testing.assert_close(jsd(student, teacher, beta=beta), mirrored, rtol=1e-9, atol=1e-12)


@each
def test_zero_with_zero_gradient_where_student_is_teacher(divergence: Divergence) -> None:
    student, _ = pair(dtype=torch.float32)
    mine = student.clone().requires_grad_()
    values_N = divergence(mine, student)
    values_N.sum().backward()
    assert values_N.abs().max() < 1e-6 and mine.grad is not None and mine.grad.abs().max() < 1e-6


def test_reverse_picks_a_mode_and_forward_pays_for_the_one_it_misses() -> None:
    student = torch.tensor([[4.0, 0.0, 0.0]])
    teacher = torch.tensor([[4.0, 4.0, 0.0]])
    # A student on one of the teacher's two modes pays ln 2 at most; the other way round it pays for the mode it misses.
    assert float(reverse_kl(student, teacher)) < math.log(2) < float(forward_kl(student, teacher))


@each
def test_bf16_logits_are_compared_in_fp32(divergence: Divergence) -> None:
    student, teacher = pair(dtype=torch.bfloat16)
    values_N = divergence(student, teacher)
    assert values_N.dtype == torch.float32
    torch.testing.assert_close(values_N, divergence(student.float(), teacher.float()))


@each
def test_the_teacher_has_no_gradient(divergence: Divergence) -> None:
    student, teacher = (x.requires_grad_() for x in pair())
    divergence(student, teacher).sum().backward()
    assert student.grad is not None and teacher.grad is None


@each
def test_shapes_that_differ_are_refused(divergence: Divergence) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_limits_of_beta_are_other_functions(beta: float) -> None:
    with pytest.raises(ValueError, match="forward_kl and reverse_kl are the limits"):
        jsd(torch.zeros(1, 2), torch.zeros(1, 2), beta=beta)
