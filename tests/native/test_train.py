"""The training kernels against plain torch, in value and gradient; packed trees against whole rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.model.attention import visible_keys
from dunwu.model.config import ModelConfig
from dunwu.model.rope import rope_tables, turn
from dunwu.model.transformer import Transformer
from dunwu.native import build, train
from dunwu.native.train import Layout, Segment

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")

DTYPES = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: {"atol": 2e-5, "rtol": 2e-5}, torch.bfloat16: {"atol": 4e-2, "rtol": 4e-2}}


@pytest.fixture(params=DTYPES, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not train.available(request.param):
        pytest.skip("no bfloat16 products on this processor")
    found: torch.dtype = request.param
    return found


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """Whatever the test command allows: sums over threads, and trees shared out among them, are part of what is tested."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_(True)


def agree(ours: Callable[..., Tensor], oracle: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Equal values and gradients; the oracle computes in float64 from the same numbers."""
    exact = [x.detach().double().requires_grad_(True) for x in inputs]
    got, expected = ours(*inputs), oracle(*exact)
    near = NEAR[inputs[0].dtype]
    torch.testing.assert_close(got.double(), expected, **near)
    grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(99))
    got.backward(grad.to(got.dtype))
    expected.backward(grad.to(got.dtype).double())
    for mine, theirs in zip(inputs, exact):
        assert mine.grad is not None and theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(mine.grad.double() / scale, theirs.grad / scale, **near)


def test_norm_of_a_sum(dtype: torch.dtype) -> None:
    inputs = [random(37, 48, dtype=dtype, seed=n) for n in range(2)] + [random(48, dtype=dtype, seed=5)]

    def both(h: Tensor, y: Tensor) -> Tensor:
        return torch.cat([h, 2 * y], dim=1)

    agree(
        lambda x, branch, weight: both(*train.norm(x, branch, weight, 1e-6)),
        lambda x, branch, weight: both(x + branch, F.rms_norm(x + branch, (48,), weight, 1e-6)),
        inputs,
    )


def test_norm_without_a_branch_and_with_one_output_used(dtype: torch.dtype) -> None:
    x, weight = random(5, 32, dtype=dtype, seed=1), random(32, dtype=dtype, seed=2)
    agree(lambda x, w: train.norm(x, None, w, 1e-6)[1], lambda x, w: F.rms_norm(x, (32,), w, 1e-6), [x, weight])
    x, branch = random(5, 32, dtype=dtype, seed=1), random(5, 32, dtype=dtype, seed=3)
    agree(lambda x, b: train.norm(x, b, weight.detach(), 1e-6)[0], lambda x, b: x + b, [x, branch])


def test_swiglu(dtype: torch.dtype) -> None:
    gate_up = (4 * random(23, 96, dtype=torch.float32, seed=1)).detach().to(dtype).requires_grad_(True)
    agree(train.swiglu, lambda x: F.silu(x[:, :48]) * x[:, 48:], [gate_up])


def test_swiglu_of_large_numbers(dtype: torch.dtype) -> None:
    gates = torch.tensor([60.0, 87, 88.5, 89, 100, 177.4, 180, 300, 1e4])
    gate_up = torch.stack([torch.cat([gates, -gates, torch.zeros(14)]), torch.ones(32)]).flatten()
    gate_up = gate_up.to(dtype)[None].requires_grad_(True)
    agree(train.swiglu, lambda x: F.silu(x[:, :32]) * x[:, 32:], [gate_up])


@pytest.mark.parametrize("vocab", [64, 71])
@pytest.mark.parametrize("rows", [1000, 7])
def test_log_probabilities_of_chosen_tokens(dtype: torch.dtype, vocab: int, rows: int) -> None:
    hidden, head = random(31, 32, dtype=dtype, seed=1), random(vocab, 32, dtype=dtype, seed=2)
    chosen = torch.randint(vocab, (31,), generator=torch.Generator().manual_seed(3))

    def oracle(hidden: Tensor, head: Tensor) -> Tensor:
        return F.log_softmax(hidden @ head.T / 0.7, -1).gather(1, chosen[:, None]).squeeze(1)

    if dtype == torch.bfloat16:  # logits are stored in bf16, as torch stores them: the oracle sees the rounded ones
        got, entropy = train.chosen_logprobs(hidden, head, chosen, 0.7, rows)
        copies = [x.detach().clone().requires_grad_(True) for x in (hidden, head)]
        table = F.log_softmax(F.linear(*copies).float() / 0.7, -1)
        expected = table.gather(1, chosen[:, None]).squeeze(1)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        upstream = torch.linspace(-1, 1, 31)
        for value in (got, expected):
            (value * upstream).sum().backward()
        for mine, theirs in zip((hidden, head), copies):
            assert mine.grad is not None and theirs.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad, **NEAR[dtype])
        table = table.detach()
    else:
        agree(lambda h, w: train.chosen_logprobs(h, w, chosen, 0.7, rows)[0], oracle, [hidden, head])
        entropy = train.chosen_logprobs(hidden, head, chosen, 0.7, rows)[1]
        table = F.log_softmax(hidden @ head.T / 0.7, -1)
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(-1), atol=1e-4, rtol=1e-4)


def tree_attention(qkv: Tensor, segments: list[Segment], heads: int, kv_heads: int, wide: int) -> Tensor:
    """The definition: every token against the tokens it may see, one at a time."""
    positions = torch.cat([torch.arange(s.end - s.start) + s.prefix_end - s.prefix_start for s in segments])
    cos, sin = (t[0, 0].double() for t in rope_tables(positions[None], ModelConfig(head_size=wide), torch.float32))
    rows = qkv.view(len(qkv), heads + 2 * kv_heads, wide)
    turned = turn(rows[:, : heads + kv_heads].transpose(0, 1), cos, sin).transpose(0, 1)
    out = []
    for s in segments:
        for t in range(s.start, s.end):
            seen = [*range(s.prefix_start, s.prefix_end), *range(s.start, t + 1)]
            for h in range(heads):
                kv = heads + h // (heads // kv_heads)
                scores = turned[seen, kv] @ turned[t, h] * wide**-0.5
                out.append(scores.softmax(0) @ rows[seen, kv + kv_heads])
    return torch.stack(out).view(len(qkv), heads * wide)


TREES = [Segment(0, 9), Segment(9, 12, 0, 9), Segment(12, 30, 0, 9), Segment(30, 31, 0, 9)]
LAYOUTS = {
    "one": [Segment(0, 70)],
    "several": [Segment(0, 1), Segment(1, 34), Segment(34, 50)],
    "a prompt of several": TREES,
    "mixed": [*TREES, Segment(31, 36), Segment(36, 40), Segment(40, 50, 36, 40)],
    "long completions": [Segment(0, 33), Segment(33, 130, 0, 33), Segment(130, 197, 0, 33)],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("heads", "kv_heads", "wide"), [(2, 1, 16), (4, 2, 32), (3, 3, 16)])
def test_attention_over_segments(name: str, heads: int, kv_heads: int, wide: int, dtype: torch.dtype) -> None:
    segments = LAYOUTS[name]
    tables = rope_tables(torch.arange(200)[None], ModelConfig(head_size=wide), torch.float32)
    cos, sin = (table[0, 0, :, : wide // 2] for table in tables)
    layout = Layout(segments, heads, kv_heads, wide, cos, sin)
    qkv = random(segments[-1].end, (heads + 2 * kv_heads) * wide, dtype=dtype, seed=7)
    agree(
        lambda x: train.attention(x, layout),
        lambda x: tree_attention(x, segments, heads, kv_heads, wide),
        [qkv],
    )


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(1, 4)],
        [Segment(0, 4), Segment(5, 6)],
        [Segment(0, 4), Segment(4, 4)],
        [Segment(0, 4), Segment(4, 6), Segment(6, 8, 0, 4)],
        [Segment(0, 4, 0, 2)],
    ],
)
def test_layouts_that_are_none_are_refused(segments: list[Segment]) -> None:
    with pytest.raises(ValueError, match="segment"):
        Layout(segments, 1, 1, 16, torch.zeros(9, 8), torch.zeros(9, 8))
    with pytest.raises(ValueError, match="RoPE"):
        Layout([Segment(0, 10)], 1, 1, 16, torch.zeros(9, 8), torch.zeros(9, 8))


# ---- the whole model ------------------------------------------------------------------------


def both_ways(dtype: torch.dtype) -> tuple[Transformer, Transformer]:
    """The same weights, native and in plain torch."""
    model = Transformer(ModelConfig(vocab_size=90, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2))
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.05)
    model = model.to(dtype)
    plain = copy.deepcopy(model)
    plain.native_allowed = False
    assert model.native and not plain.native
    return model, plain


def gradients(model: Transformer, hidden: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (hidden.float() * weights).sum().backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        gap = float((ours[name] - expected).norm() / expected.norm().clamp(min=1e-6))
        assert gap < tolerance, f"{name}: {gap}"


@pytest.mark.parametrize("packed", [False, True])
def test_the_model_is_the_same_both_ways(dtype: torch.dtype, packed: bool) -> None:
    model, plain = both_ways(dtype)
    ids = torch.randint(90, (3, 80), generator=torch.Generator().manual_seed(3))
    segments = torch.tensor([[1] * 80, [1] * 30 + [2] * 41 + [0] * 9, [1] * 5 + [2] * 70 + [3] * 5]) if packed else None
    ours, theirs = (m.hidden(ids, segments_BT=segments) for m in (model, plain))
    torch.testing.assert_close(ours, theirs, **(NEAR[dtype] if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}))
    close(gradients(model, ours), gradients(plain, theirs), 1e-4 if dtype == torch.float32 else 0.06)


def test_a_shared_prompt_is_each_completion_with_its_own(dtype: torch.dtype) -> None:
    """The sum over rows of (prompt, completion) has the same value and gradient as the tree."""
    model, plain = both_ways(dtype)
    prompt, completions = list(range(20, 41)), [[1, 2, 3], list(range(50, 80)), [5], list(range(10, 20))]
    at, segments = len(prompt), [Segment(0, len(prompt))]
    for completion in completions:
        segments.append(Segment(at, at + len(completion), 0, len(prompt)))
        at += len(completion)
    tree = model.packed(torch.tensor(prompt + [t for c in completions for t in c]), segments)
    ours = torch.cat([tree[s.start : s.end] for s in segments[1:]])
    rows = [plain.hidden(torch.tensor([prompt + c]))[0, len(prompt) :] for c in completions]
    theirs = torch.cat(rows)
    torch.testing.assert_close(ours, theirs, **(NEAR[dtype] if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}))
    close(gradients(model, ours), gradients(plain, theirs), 1e-4 if dtype == torch.float32 else 0.06)


def test_dropout_masks_are_those_of_plain_torch(dtype: torch.dtype) -> None:
    model, plain = both_ways(dtype)
    ids = torch.randint(90, (4, 16), generator=torch.Generator().manual_seed(3))
    outputs = []
    for m in (model, plain):
        m.set_dropout(0.3)
        m.train()
        torch.manual_seed(5)
        outputs.append(m.hidden(ids))
    torch.testing.assert_close(*outputs, **(NEAR[dtype] if dtype == torch.float32 else {"atol": 0.15, "rtol": 0.15}))


@pytest.mark.parametrize("chosen", [[0, 64], [-1, 3], [0.0, 1.0]])
def test_ids_out_of_the_vocabulary_are_refused(dtype: torch.dtype, chosen: list[float]) -> None:
    hidden, head = random(2, 32, dtype=dtype, seed=1), random(64, 32, dtype=dtype, seed=2)
    with pytest.raises(ValueError, match="vocabulary of 64"):
        train.chosen_logprobs(hidden, head, torch.tensor(chosen), 1.0, 10)


def test_the_same_bits_again(dtype: torch.dtype) -> None:
    """With several threads, which are torch's own."""
    model, _ = both_ways(dtype)
    library = build.library("train", dtype == torch.bfloat16)
    assert library is not None and library.dunwu_threads() == 3
    ids = torch.randint(90, (8, 60), generator=torch.Generator().manual_seed(3))
    runs = []
    for _ in range(3):
        model.zero_grad()
        runs.append(gradients(model, model.hidden(ids)))
    assert all(torch.equal(runs[0][name], run[name]) for run in runs[1:] for name in run)


def test_visible_keys_are_those_of_segments() -> None:
    """The torch path's mask and the segments say the same of a packed row."""
    from dunwu.model.transformer import segments_of

    row = torch.tensor([[1, 1, 1, 2, 0, 0]])
    seen = visible_keys(row)[0, 0]
    for s in segments_of(row):
        for t in range(s.start, s.end):
            assert seen[t].nonzero().flatten().tolist() == list(range(s.start, t + 1))
