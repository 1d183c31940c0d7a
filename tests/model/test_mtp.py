"""Multi-token prediction: transformers' module of the same weights, its parts one by one, and the cache at its own pace."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dunwu.model.moe import Routing
from dunwu.model.rope import rope_tables
from dunwu.model.transformer import Transformer
from tests.model.families import FAMILIES, absorbing, farthest, ids, pair, randomize, way

NAME = "v3 mtp"
NEAR = 1e-4
both_ways = pytest.mark.parametrize("native", [False, True], ids=["plain", "kernels"])


@cache
def theirs() -> Any:
    """transformers' MTP module beside `pair(NAME)`, with our weights."""
    layers = pytest.importorskip("transformers.modeling_layers", reason="the [hf] extra is not installed")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this transformers has no MTP")
    main, ours = pair(NAME)
    module = layers.MtpModel(main, 1).float().eval()
    module.set_experts_implementation("eager")
    state = {theirs_name(n): w for n, w in ours.state_dict().items() if n.startswith("model.mtp.")}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {"embed_tokens.weight", "shared_head.weight"}  # those of the main model
    return module


def theirs_name(name: str) -> str:
    rest = name.removeprefix("model.mtp.")
    if rest.startswith("block."):
        return "layers.0.mtp_block." + rest.removeprefix("block.")
    return "layers.0." + ("post_norm.weight" if rest == "norm.weight" else rest)


def their_states(batch: Tensor, states: Tensor) -> Tensor:
    """What theirs makes of the main model's states (B, T, D) and the T tokens after them."""
    T = batch.shape[1]
    out: Tensor = theirs().forward_layer(0, states[:, : T - 1], torch.arange(1, T)[None], None, input_ids=batch[:, 1:])
    return out


@both_ways
@torch.no_grad()
def test_states_equal_transformers(native: bool) -> None:
    batch = ids(3, 70)
    main, ours = pair(NAME)
    expected = their_states(batch, main.model(batch).last_hidden_state)
    with way(native):
        assert ours.native == native
        mine = ours.mtp_hidden(ours.hidden(batch)[:, :-1], batch[:, 1:])
    assert farthest(mine, expected) <= NEAR and expected.abs().max() > 2


@both_ways
def test_gradients_equal_transformers(native: bool) -> None:
    """Main loss and MTP's together: the states, the embedding and the head gather from both."""

    def loss(states: Tensor, ahead: Tensor, head: Tensor, batch: Tensor) -> Tensor:
        first = F.cross_entropy(F.linear(states[:, :-1], head).flatten(0, 1), batch[:, 1:].flatten())
        second = F.cross_entropy(F.linear(ahead[:, :-1], head).flatten(0, 1), batch[:, 2:].flatten())
        return first + 0.3 * second

    batch = ids(2, 40, seed=1)
    main, ours = pair(NAME)
    states = main.model(batch).last_hidden_state
    expected = loss(states, their_states(batch, states), main.lm_head.weight, batch)
    named = dict(main.named_parameters())
    named |= {n: p for n, p in theirs().named_parameters() if n.startswith("layers.")}
    grads = dict(zip(named, torch.autograd.grad(expected, list(named.values()))))
    with way(native):
        states = ours.hidden(batch)
        mine = loss(states, ours.mtp_hidden(states[:, :-1], batch[:, 1:]), ours.head_weight, batch)
        parameters = dict(ours.named_parameters())
        found = dict(zip(parameters, torch.autograd.grad(mine, list(parameters.values()))))
    assert len(found) == len(grads)
    for name, grad in found.items():
        other = grads[theirs_name(name) if name.startswith("model.mtp.") else name]
        assert farthest(grad, other) <= NEAR * float(other.abs().max()), name
        assert other.abs().max() > 0, name


def test_generation_of_transformers_feeds_the_module_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """States behind the last norm, the tokens after them; and its first guess is ours."""
    module, (main, ours), prompt = theirs(), pair(NAME), ids(1, 12, seed=2)
    calls = []

    def noted(*args: Any, **fields: Any) -> Any:
        calls.append((fields, forward(*args, **fields)))
        return calls[-1][1]

    forward = type(module).forward
    monkeypatch.setattr(type(module), "forward", noted)
    monkeypatch.setattr(type(module), "from_pretrained", lambda *_, **__: module)
    out = main.generate(prompt, use_mtp=True, max_new_tokens=6, do_sample=False, eos_token_id=None)
    fed, (guesses, logits, _) = calls[0]
    with torch.no_grad():
        states = ours.hidden(prompt)
        assert farthest(fed["last_hidden_states"], states) <= NEAR
        assert torch.equal(fed["input_ids"], out[:, 1:13])
        mine = ours.mtp_hidden(states, out[:, 1:13])[:, -1:] @ ours.head_weight.T
    assert farthest(mine, logits) <= NEAR and torch.equal(mine.argmax(-1), guesses)


@torch.no_grad()
def test_states_equal_the_parts_one_by_one() -> None:
    """V3, eq. 21-22: both norms, one map of embedding and state side by side, a block, a norm."""
    ours, batch = pair(NAME)[1], ids(2, 9)
    mtp, states = ours.model.mtp, ours.hidden(batch)[:, :-1]
    rows = []
    for b in range(2):
        joined = []
        for t in range(8):
            embedding, state = ours.model.embed_tokens.weight[batch[b, t + 1]], states[b, t]
            both = torch.cat(
                [F.rms_norm(v, v.shape, n.weight, n.eps) for v, n in ((embedding, mtp.enorm), (state, mtp.hnorm))]
            )
            joined.append(mtp.eh_proj.weight @ both)
        rows.append(torch.stack(joined))
    cos, sin = rope_tables(torch.arange(8)[None], ours.config, torch.float32)
    expected = mtp.norm(mtp.block(torch.stack(rows), cos, sin))
    assert farthest(ours.mtp_hidden(states, batch[:, 1:]), expected) <= 1e-5


@pytest.mark.parametrize("few", [0, 1000], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("steps", [[1] * 20, [11, 1, 3, 5]], ids=["one by one", "in chunks"])
@torch.no_grad()
def test_cached_equals_uncached(steps: list[int], few: int) -> None:
    """With rows padded on the left, and guesses that were taken back."""
    ours, pad, batch = pair(NAME)[1], torch.tensor([0, 7]), ids(2, 21)
    states = torch.randn(2, 20, ours.config.hidden_size, generator=torch.Generator().manual_seed(3))
    following = batch[:, 1:]
    cache = ours.new_mtp_cache(pad, 24)
    assert cache.keys.shape == (1, 2, 1, 24, 48) and cache.values is None  # one layer, latents only
    out = []
    with absorbing(few):
        for s, token in zip(states.split(steps, dim=1), following.split(steps, dim=1)):
            ours.mtp_hidden(torch.ones_like(s[:, :2]), torch.zeros_like(token[:, :2]), cache)
            cache.advance(-s[:, :2].shape[1])
            out.append(ours.mtp_hidden(s, token, cache))
    assert cache.length == 20
    for line, row, tokens, padded in zip(torch.cat(out, 1), states, following, pad.tolist()):
        alone = ours.mtp_hidden(row[None, padded:], tokens[None, padded:])[0]
        assert farthest(line[padded:], alone) <= NEAR


@torch.no_grad()
def test_a_state_knows_one_token_ahead_and_no_more() -> None:
    ours, batch = pair(NAME)[1], ids(1, 12)
    other = batch.clone()
    other[0, 8] = (other[0, 8] + 1) % 99

    def ahead(tokens: Tensor) -> Tensor:
        return ours.mtp_hidden(ours.hidden(tokens)[:, :-1], tokens[:, 1:])

    moved = (ahead(batch) - ahead(other)).abs().amax(-1)[0] > 1e-4
    assert moved.tolist() == [False] * 7 + [True] * 4


@both_ways
@torch.no_grad()
def test_its_router_is_recorded_and_replayed_with_the_others(native: bool) -> None:
    ours, batch = pair(NAME)[1], ids(2, 10)
    with way(native):
        record = Routing()
        first = ours.mtp_hidden(ours.hidden(batch, routing=record), batch, routing=record)
        chosen = record.all_chosen()
        assert chosen.shape == (20, len(ours.gates), 3)
        other = (chosen + 1) % 8
        swapped = torch.cat((chosen[:, :-1], other[:, -1:]), 1)
        for replay, same in ((chosen, True), (swapped, False)):
            told = Routing(replay=replay)
            states = ours.hidden(batch, routing=told)
            again = ours.mtp_hidden(states, batch, routing=told)
            assert torch.equal(states, ours.hidden(batch))
            assert torch.equal(again, first) == same


@torch.no_grad()
def test_the_main_model_is_the_same_without_it() -> None:
    config = FAMILIES[NAME]
    ours, alone = pair(NAME)[1], Transformer(replace(config, mtp_depth=0))
    randomize(alone, seed=5)
    kept = {name: w for name, w in ours.state_dict().items() if not name.startswith("model.mtp.")}
    alone.load_state_dict(kept)
    assert torch.equal(ours(ids(2, 20)), alone(ids(2, 20)))
    assert ours.config.num_parameters == alone.config.num_parameters
