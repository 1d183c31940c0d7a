"""Experts against brute force: the products, the choice, the balance loss by hand, biases that balance, routing told again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.model import moe
from dunwu.model.config import ModelConfig, MoeShape
from dunwu.model.moe import Gate, MixtureOfExperts, Routing, grouped, move_biases
from dunwu.model.transformer import Transformer
from tests.model.families import FAMILIES, PLAIN_ONLY, V3, farthest, ids, pair, way

CONFIG = V3
SHAPE = replace(V3.moe, first_dense=0) if V3.moe else MoeShape(1, 1, 1)
WITH_EXPERTS = [name for name, config in FAMILIES.items() if config.moe]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- one product for all experts

LOADS = {
    "even": [3, 3, 3, 3],
    "some empty": [0, 5, 0, 2],
    "first and last empty": [0, 4, 1, 0],
    "one takes all": [0, 0, 9, 0],
    "a single token": [1, 0, 0, 0],
}


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(("width", "inner"), [(16, 32), (6, 5)], ids=["torch's own", "padded"])
@pytest.mark.parametrize("product", [grouped, moe._padded_products])
def test_grouped_products_equal_a_loop(
    product: Callable[..., Tensor], width: int, inner: int, loads: list[int]
) -> None:
    x, weight = random(sum(loads), width), random(4, inner, width, seed=1)
    x.requires_grad_(True), weight.requires_grad_(True)
    ends = torch.tensor(loads).cumsum(0).int()
    expected = torch.cat([part @ w.T for part, w in zip(x.split(loads), weight)])
    out = product(x, weight, ends)
    assert farthest(out.detach(), expected.detach()) <= 1e-5
    grad = random(*out.shape, seed=2)
    for mine, other in zip(
        torch.autograd.grad(out, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad)
    ):
        assert farthest(mine, other) <= 1e-5
    assert moe._has_grouped(x, weight) == (width == 16)


def brute_force(part: MixtureOfExperts, x: Tensor, chosen: Tensor) -> Tensor:
    """Token by token, expert by expert (V3, eq. 12-13)."""
    shape, rows = part.gate.shape, []
    for token, experts in zip(x, chosen.tolist()):
        logits = part.gate.weight @ token
        scores = logits.sigmoid() if shape.gate == "sigmoid" else logits.softmax(0)
        total = sum(scores[e] for e in experts) if shape.normalize else 1.0
        out = part.shared_experts(token) if part.shared else torch.zeros_like(token)
        for e in experts:
            gate, up = (part.experts.gate_up_proj[e] @ token).chunk(2)
            out = out + shape.scale * scores[e] / total * (part.experts.down_proj[e] @ (F.silu(gate) * up))
        rows.append(out)
    return torch.stack(rows)


def layer(shape: MoeShape) -> MixtureOfExperts:
    part = MixtureOfExperts(replace(CONFIG, moe=shape), 0)
    with torch.no_grad():
        for n, p in enumerate(part.parameters()):
            p.copy_(0.3 * random(*p.shape, seed=n))
    if shape.gate == "sigmoid":
        part.gate.e_score_correction_bias.copy_(0.2 * random(shape.experts, seed=50))
    return part


VARIETIES = {
    "v3": SHAPE,
    "not normalized": replace(SHAPE, normalize=False, shared=0),
    "softmax": MoeShape(8, 2, 32, gate="softmax"),
    "one expert of one": MoeShape(1, 1, 32, normalize=False),
    "all experts": MoeShape(6, 6, 16, shared=2, gate="softmax", normalize=False),
}


@pytest.mark.parametrize("shape", VARIETIES.values(), ids=VARIETIES)
@pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])
def test_a_layer_equals_token_by_token(shape: MoeShape, native: bool) -> None:
    part, x, routing = layer(shape), random(2, 11, 64, seed=9), Routing()
    with way(native):
        out = part.packed(x.flatten(0, 1), routing).view_as(x) if native else part(x, routing)
    chosen = routing.chosen[0]
    assert chosen.shape == (22, shape.per_token)
    assert all(len(set(row)) == shape.per_token for row in chosen.tolist())  # none twice, none dropped
    assert int(routing.loads(shape.experts).sum()) == 22 * shape.per_token
    expected = brute_force(part, x.flatten(0, 1), chosen).view_as(x)
    assert farthest(out.detach(), expected.detach()) <= 1e-5 * float(expected.detach().abs().max())
    grads = [torch.autograd.grad(y.square().sum(), list(part.parameters())) for y in (out, expected)]
    for (name, _), mine, other in zip(part.named_parameters(), *grads):
        assert farthest(mine, other) <= 1e-4 * float(other.abs().max()) + 1e-6, name


def test_all_tokens_may_go_to_the_same_experts() -> None:
    """Nothing is dropped however full an expert gets; those without tokens have gradient zero, not none."""
    part, x = layer(SHAPE), random(40, 64, seed=9)
    part.gate.e_score_correction_bias.copy_(torch.tensor([9.0, 9.0, 9.0, 0, 0, 0, 0, 0]))
    routing = Routing()
    out = part(x, routing)
    assert routing.loads(8).tolist() == [[40, 40, 40, 0, 0, 0, 0, 0]]
    assert farthest(out.detach(), brute_force(part, x, routing.chosen[0]).detach()) <= 1e-4
    (grad,) = torch.autograd.grad(out.square().sum(), [part.experts.down_proj])
    assert (grad.abs().amax((1, 2)) > 0).tolist() == [True] * 3 + [False] * 5


# ---- the choice


@pytest.mark.parametrize(("groups", "top"), [(1, 1), (4, 2), (2, 1), (4, 3), (8, 4), (4, 4)])
def test_the_choice_is_the_best_admissible_one(groups: int, top: int) -> None:
    """Of all sets of groups the one whose members' two best sum highest, then of all sets of experts in them."""
    K = 2 if top == 1 else 3
    gate = Gate(64, replace(SHAPE, per_token=K, groups=groups, top_groups=top))
    gate.e_score_correction_bias.copy_(0.4 * random(8, seed=1))
    scores = random(200, 8, seed=2).sigmoid()
    size = 8 // groups
    chosen = gate.choose(scores)
    for row, mine in zip((scores + gate.e_score_correction_bias).tolist(), chosen.tolist()):
        goods = [sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        kept = max(combinations(range(groups), top), key=lambda some: sum(goods[g] for g in some))
        allowed = [e for e in range(8) if e // size in kept]
        best = max(combinations(allowed, K), key=lambda some: sum(row[e] for e in some))
        assert set(mine) == set(best)


def test_the_bias_chooses_and_weighs_nothing() -> None:
    gate = Gate(64, replace(SHAPE, groups=1, top_groups=1, per_token=1, normalize=False, scale=2.0))
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
    assert gate.choose(scores).tolist() == [[0]]
    gate.e_score_correction_bias[1] = 0.85
    chosen = gate.choose(scores)
    assert chosen.tolist() == [[1]] and gate.weigh(scores, chosen).item() == pytest.approx(0.2)


# ---- balance


def test_the_balance_loss_by_hand() -> None:
    """V3, eq. 17-20: two sequences of two tokens, three experts, one of them for each token."""
    gate = Gate(4, MoeShape(experts=3, per_token=1, width=8))
    gate.e_score_correction_bias.copy_(torch.tensor([0.0, 0.0, 9.0]))  # takes part in the choice, not here
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.2, 0.2], [0.2, 0.2, 0.6], [0.1, 0.9, 0.0]])
    # First sequence: both tokens prefer expert 0, f = 3/(1·2) · (2, 0, 0); s' = (.6 .3 .1), (.5 .25 .25), P = (.55 .275 .175).
    # Second: one each for 2 and 1, f = (0, 1.5, 1.5); s' = (.2 .2 .6), (.1 .9 0), P = (.15 .55 .3).
    first, second = 3 * 0.55, 1.5 * 0.55 + 1.5 * 0.3
    assert gate.balance_loss(scores, 2).item() == pytest.approx((first + second) / 2, abs=1e-6)
    # As one sequence of four: f = 3/4 · (2, 1, 1), P the mean of all four.
    whole = 0.75 * (2 * 0.35 + 0.4125 + 0.2375)
    assert gate.balance_loss(scores, 1).item() == pytest.approx(whole, abs=1e-6)
    # All alike: f = 1 and P = 1/E summed over E.
    even = torch.eye(3) * 0.5 + 0.1
    assert gate.balance_loss(even, 1).item() == pytest.approx(1.0)


def test_the_balance_loss_has_the_gradient_of_the_means() -> None:
    gate = Gate(4, MoeShape(experts=6, per_token=2, width=8))
    scores = random(12, 6).double().sigmoid().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: gate.balance_loss(s, 3), (scores,))


@pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])
def test_balance_losses_of_a_pass(native: bool) -> None:
    """One of every layer with experts, over rows; a step along their gradient evens the load."""
    model = copy.deepcopy(pair("v3 mtp")[1])
    batch = ids(4, 32)
    with way(native):
        routing = Routing(sequences=4)
        states = model.hidden(batch, routing=routing)
        model.mtp_hidden(states, batch, routing=routing)
        assert len(routing.losses) == 2 and isinstance(routing.loss, Tensor)
        weights = [gate.weight for gate in model.gates]
        for weight, grad in zip(weights, torch.autograd.grad(routing.loss, weights)):
            weight.data -= 0.3 * grad
        after = Routing(sequences=4)
        model.mtp_hidden(model.hidden(batch, routing=after), batch, routing=after)
    assert isinstance(after.loss, Tensor) and float(after.loss.detach()) < float(routing.loss.detach())
    assert Routing().loss == 0.0


@pytest.mark.parametrize("seed", [1, 2, 4, 5])
def test_moved_biases_balance_a_stream(seed: int) -> None:
    """A router that sends most tokens to few experts; nothing but its bias moves."""
    gate = Gate(16, MoeShape(experts=8, per_token=2, width=8))
    gate.weight.data = 0.3 * random(8, 16, seed=seed)
    direction, generator = random(16, seed=50 + seed), torch.Generator().manual_seed(3)

    def load() -> Tensor:
        x = torch.randn(512, 16, generator=generator) + direction
        return torch.bincount(gate.choose(gate.affinities(x)).flatten(), minlength=8)

    def imbalance(batches: int) -> float:
        total = torch.stack([load() for _ in range(batches)]).sum(0).float()
        return float(total.max() / total.mean())

    assert imbalance(20) > 3.0
    weight = gate.weight.detach().clone()
    for _ in range(600):
        move_biases([gate], load()[None], rate=0.003)
    assert imbalance(20) <= 1.1
    assert torch.equal(gate.weight, weight) and not gate.e_score_correction_bias.requires_grad


def test_a_bias_moves_against_the_load_by_its_sign() -> None:
    gates = [Gate(4, MoeShape(experts=3, per_token=1, width=8)) for _ in range(2)]
    move_biases(gates, torch.tensor([[4, 1, 1], [2, 2, 2]]), rate=0.25)
    assert [gate.e_score_correction_bias.tolist() for gate in gates] == [[-0.25, 0.25, 0.25], [0.0, 0.0, 0.0]]


def test_biases_stay_fp32() -> None:
    """A step of V3's γ = 0.001 is lost in bfloat16 from a bias of 0.25 on."""
    model = copy.deepcopy(pair("v3")[1])
    biases = [gate.e_score_correction_bias.clone() for gate in model.gates]
    assert len(biases) == 2 and all(b.abs().max() > 0.05 for b in biases)
    state = model.state_dict()
    for moved in (
        model.to(torch.bfloat16),
        copy.deepcopy(model).half(),
        copy.deepcopy(model).to("cpu", torch.bfloat16),
    ):
        for gate, before in zip(moved.gates, biases):
            assert gate.weight.dtype in (torch.bfloat16, torch.float16)
            assert gate.e_score_correction_bias.dtype == torch.float32
            assert torch.equal(gate.e_score_correction_bias, before)
    loaded = Transformer(model.config).to(torch.bfloat16)
    loaded.load_state_dict(state)
    with torch.device("meta"):
        empty = Transformer(model.config)
    empty = empty.to(torch.bfloat16).to_empty(device="cpu")
    empty.load_state_dict(loaded.state_dict())
    rough = {name: w.bfloat16() for name, w in state.items()}
    from_bf16 = Transformer(model.config)
    from_bf16.load_state_dict(rough)
    for gate, exact, third, before in zip(loaded.gates, empty.gates, from_bf16.gates, biases):
        assert torch.equal(gate.e_score_correction_bias, before)
        assert torch.equal(exact.e_score_correction_bias, before)
        assert third.e_score_correction_bias.dtype == torch.float32


# ---- routing, recorded and told


@pytest.mark.parametrize("name", WITH_EXPERTS)
@pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])
@torch.no_grad()
def test_replayed_choices_give_the_same_and_others_do_not(name: str, native: bool) -> None:
    model, batch, record = pair(name)[1], ids(3, 12), Routing()
    config: ModelConfig = model.config
    assert config.moe
    layers = config.num_layers - config.moe.first_dense
    with way(native):
        assert model.native == (native and name not in PLAIN_ONLY)
        first = model.hidden(batch, routing=record)
        chosen = record.all_chosen()
        assert chosen.shape == (36, layers, config.moe.per_token)
        assert torch.equal(first, model.hidden(batch))
        for kind in (torch.uint8, torch.int16, torch.int64):
            told = Routing(replay=chosen.to(kind))
            assert torch.equal(model.hidden(batch, routing=told), first)
            assert torch.equal(told.all_chosen(), chosen)
        other = Routing(replay=(chosen + 1) % config.moe.experts)
        assert farthest(model.hidden(batch, routing=other), first) > 0.1
    loads = record.loads(config.moe.experts)
    assert loads.shape == (layers, config.moe.experts) and (loads.sum(1) == 36 * config.moe.per_token).all()
    for n in range(layers):
        assert loads[n].tolist() == [int((chosen[:, n] == e).sum()) for e in range(config.moe.experts)]


@torch.no_grad()
def test_records_lie_token_by_token() -> None:
    """Rows one after the other, so that a sampler's record, made row by row over the cache, is what training replays."""
    model, batch = pair("v3")[1], ids(3, 12)
    whole = Routing()
    model.hidden(batch, routing=whole)
    by_row = whole.all_chosen().view(3, 12, 2, 3)
    cache = model.new_cache(torch.zeros(3, dtype=torch.long), 12)
    steps = []
    for part in batch.split([5, 1, 6], dim=1):
        step = Routing()
        model.hidden(part, cache=cache, routing=step)
        steps.append(step.all_chosen().view(3, -1, 2, 3))
    assert torch.equal(torch.cat(steps, 1).sort(-1).values, by_row.sort(-1).values)
    for row, record in zip(batch, by_row):
        alone = Routing()
        model.hidden(row[None], routing=alone)
        assert torch.equal(alone.all_chosen().sort(-1).values, record.sort(-1).values)


@pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])
def test_told_experts_still_train_the_router(native: bool) -> None:
    """The choice has no gradient, the weights of the chosen have; nothing but chosen experts trains."""
    model, batch = pair("v3 full queries, one group")[1], ids(2, 8)
    told = torch.tensor([5, 1, 6]).expand(16, 2, 3)
    with way(native):
        states = model.hidden(batch, routing=Routing(replay=told))
        weights = [gate.weight for gate in model.gates] + [b.mlp.experts.down_proj for b in model.model.layers]
        grads = torch.autograd.grad(states.square().mul(random(*states.shape)).sum(), weights)
    for grad in grads[:2]:
        assert (grad.abs().amax(1) > 0).tolist() == [e in (1, 5, 6) for e in range(8)]  # not normalized: no other score
    for grad in grads[2:]:
        assert (grad.abs().amax((1, 2)) > 0).tolist() == [e in (1, 5, 6) for e in range(8)]


def test_gates_are_listed_from_the_bottom_up() -> None:
    model = pair("v3 mtp")[1]
    assert model.gates == [model.model.layers[1].mlp.gate, model.model.mtp.block.mlp.gate]
    assert [b.mlp.number for b in (model.model.layers[1], model.model.mtp.block)] == [0, 1]
    assert pair("llama")[1].gates == []
