"""Models with experts under the trainers: load, balance, prediction ahead, exact resume, routing used again in RL."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dunwu.data.shards import PackedShards
from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig, MoeShape, model_preset
from dunwu.model.moe import Routing
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.train.checkpoint import load_checkpoint, save_checkpoint
from dunwu.train.config import GrpoConfig, PretrainConfig
from dunwu.train.experts import balance_by, sampled_loads
from dunwu.train.optim import MasterAdamW
from dunwu.train.pretrain import next_token_loss, pretrain, pretraining_loss
from dunwu.train.rows import Row, micro_batches
from dunwu.types import Completion, Group, Problem, Rollout, SamplingParams, Verdict

SHAPE = model_preset("tiny", 40, "v3")
CONFIG = PretrainConfig(tokens=12 * 64, rows=4, context=16, warmup=2, lr=1e-2)
CPU = torch.device("cpu")


def fresh(shape: ModelConfig = SHAPE, seed: int = 0) -> tuple[Transformer, MasterAdamW]:
    model = Transformer(shape)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model, MasterAdamW(model)


def test_a_resumed_run_ends_with_the_same_bits_biases_included(tmp_path: Path, shards: PackedShards) -> None:
    model, optimizer = fresh()
    steps = {step.n: step.metrics for step in pretrain(model, optimizer, shards, CONFIG)}
    first, killed = fresh()
    for step in pretrain(first, killed, shards, CONFIG):
        if step.n == 5:
            save_checkpoint(tmp_path, killed.state(), {"version": killed.version})
        if step.n == 7:
            break
    second, resumed = fresh(seed=3)
    found = load_checkpoint(tmp_path)
    assert found is not None
    resumed.load(found[0], found[1]["version"])
    for step in pretrain(second, resumed, shards, CONFIG, start=5):
        assert {k: v for k, v in step.metrics.items() if "second" not in k} == {
            k: v for k, v in steps[step.n].items() if "second" not in k
        }
    assert any(gate.e_score_correction_bias.any() for gate in model.gates)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_load_is_told_by_expert_and_the_biases_go_against_it(shards: PackedShards) -> None:
    model, optimizer = fresh()
    before = [gate.e_score_correction_bias.clone() for gate in model.gates]
    config = replace(CONFIG, bias_rate=0.25)
    step = next(iter(pretrain(model, optimizer, shards, config)))
    layers = 2  # one block with experts, and that of the prediction ahead
    assert len(model.gates) == layers
    for layer, gate in enumerate(model.gates):
        loads = torch.tensor([step.metrics[f"moe/load/{layer}/{e}"] for e in range(8)])
        assert float(loads.mean()) == pytest.approx(1.0)
        assert torch.equal(gate.e_score_correction_bias - before[layer], 0.25 * torch.sign(1 - loads))
    largest = max(v for k, v in step.metrics.items() if k.startswith("moe/load/"))
    assert step.metrics["moe/max_load"] == largest


def test_without_a_rate_and_under_a_softmax_nothing_is_moved() -> None:
    model, _ = fresh()
    loads = torch.tensor([[9, 1, 1, 1, 1, 1, 1, 1]] * 2)
    balance_by(model, loads, 0.0)
    assert not any(gate.e_score_correction_bias.any() for gate in model.gates)
    soft, _ = fresh(model_preset("tiny", 40, "moe"))
    assert balance_by(soft, loads, 0.1)["moe/max_load"] == 4.5
    assert not list(soft.buffers())


def test_the_loss_is_next_token_and_the_one_after_and_balance() -> None:
    model, _ = fresh()
    ids = torch.randint(0, 40, (3, 17), generator=torch.Generator().manual_seed(2))
    found = pretraining_loss(model, ids, mtp_weight=0.3, balance=0.01)
    assert found.mtp is not None and found.routing is not None
    assert float(found.next_token.detach()) == pytest.approx(float(next_token_loss(model, ids).detach()), abs=1e-6)
    ahead = model.mtp_hidden(model.hidden(ids[:, :15]), ids[:, 1:16]) @ model.head_weight.T
    by_hand = torch.nn.functional.cross_entropy(ahead.flatten(0, 1), ids[:, 2:].flatten())
    assert float(found.mtp) == pytest.approx(float(by_hand), abs=1e-5)
    routing = Routing(sequences=3)
    states = model.hidden(ids[:, :-1], routing=routing)
    model.mtp_hidden(states[:, :-1], ids[:, 1:-1], routing=routing)
    whole = float(found.next_token) + 0.3 * float(by_hand) + 0.01 * float(routing.loss)
    assert float(found.total) == pytest.approx(whole, abs=1e-5)


def test_without_biases_a_gate_collapses_and_with_them_it_is_balanced() -> None:
    """A stream of tokens that mostly look alike: by affinity alone the same experts get them all."""
    shape = MoeShape(experts=8, per_token=2, width=16)
    config = ModelConfig(vocab_size=40, hidden_size=32, num_layers=1, num_heads=2, qk_norm=True, moe=shape)
    loads = {}
    for rate in (0.0, 0.02):
        model, _ = fresh(config)
        (gate,) = model.gates
        torch.nn.init.normal_(gate.weight, std=0.3, generator=torch.Generator().manual_seed(1))
        dice = torch.Generator().manual_seed(5)
        direction = torch.randn(32, generator=dice)
        for _ in range(200):
            tokens = direction + 0.5 * torch.randn(256, 32, generator=dice)
            chosen = gate.choose(gate.affinities(tokens))
            loads[rate] = balance_by(model, torch.bincount(chosen.flatten(), minlength=8)[None], rate)["moe/max_load"]
    assert loads[0.0] > 3 and loads[0.02] < 1.5


# ---- reinforcement learning


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["abc abd abe acd ade bcd bde cde 123 321 213"] * 3, 300)


def sampled(model: Transformer, tokenizer: Tokenizer) -> list[tuple[list[int], Completion]]:
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10], [11]]
    drawn = Engine(model, tokenizer).sample(prompts, [list(range(6))] * 3, SamplingParams(max_tokens=24))
    return [(prompt, completion) for prompt, group in zip(prompts, drawn, strict=True) for completion in group]


def gaps(model: Transformer, drawn: list[tuple[list[int], Completion]], replay: bool, trees: bool) -> torch.Tensor:
    """|trainer − sampler| of every sampled token's logprob."""
    rows = [
        Row((*p, *c.token_ids), len(p), c.sampler_logprobs, 1.0, n, c.routing if replay else None)
        for n, (p, c) in enumerate(drawn)
    ]
    with torch.no_grad():
        parts = micro_batches(rows, GrpoConfig(micro_tokens=150), CPU, trees)
        assert all((micro.routing is not None) == replay for micro in parts)
        return torch.cat([(micro.logprobs(model, 1.0)[0] - micro.sampler_N).abs() for micro in parts])


@pytest.mark.parametrize("arch", ["moe", "moe-mla"])
def test_completions_tell_their_routing_and_the_trainer_agrees(tokenizer: Tokenizer, arch: str) -> None:
    model, _ = fresh(replace(model_preset("tiny", tokenizer.vocab_size, arch), initializer_range=0.2))
    drawn = sampled(model, tokenizer)
    for prompt, completion in drawn:
        assert completion.routing is not None
        assert completion.routing.shape[0] == len(prompt) + len(completion.token_ids) - 1
        routing = Routing()
        model.hidden(torch.tensor([[*prompt, *completion.token_ids[:-1]]]), routing=routing)
        assert np.array_equal(np.sort(completion.routing, -1), np.sort(routing.all_chosen().numpy(), -1))
    for trees in (False, True) if model.native else (False,):
        assert float(gaps(model, drawn, replay=True, trees=trees).max()) < 2e-5


def test_in_bf16_routing_used_again_brings_trainer_and_sampler_together(tokenizer: Tokenizer) -> None:
    """Near ties fall otherwise in another order of sums; then a token passes other experts."""
    model, _ = fresh(replace(model_preset("tiny", tokenizer.vocab_size, "moe-mla"), initializer_range=0.2))
    low = copy.deepcopy(model).to(torch.bfloat16)
    drawn = sampled(low, tokenizer)
    anew, again = (gaps(low, drawn, replay, trees=False) for replay in (False, True))
    assert float(again.mean()) < float(anew.mean())
    assert float(again.max()) < float(anew.max())


def test_the_update_uses_other_experts_if_it_is_told_to(tokenizer: Tokenizer) -> None:
    model, _ = fresh(replace(model_preset("tiny", tokenizer.vocab_size, "moe-mla"), initializer_range=0.2))
    drawn = sampled(model, tokenizer)
    swapped = [(p, replace(c, routing=(c.routing + 1) % 8)) for p, c in drawn if c.routing is not None]
    assert float(gaps(model, swapped, replay=True, trees=False).mean()) > 0.01


def test_loads_of_a_step_are_counted_from_its_rollouts() -> None:
    def group(*routings: np.ndarray | None) -> Group:
        made = (Completion("", (1,), (0.0,), "stop", 0, routing=routing) for routing in routings)
        return Group(Problem("a", "", {}, ""), (1,), tuple(Rollout(c, Verdict({}, 0.0, "ok")) for c in made))

    chosen = np.array([[[0, 1]], [[1, 3]]], dtype=np.uint8)
    found = sampled_loads([group(chosen, None), group(chosen[:1])], experts=4)
    assert found is not None and found.tolist() == [[2, 3, 0, 1]]
    assert sampled_loads([group(None)], experts=4) is None


def test_architectures_of_a_size_pass_as_many_weights_a_token() -> None:
    for name in ("tiny", "0.8M", "2M", "12M"):
        dense = model_preset(name, 1024).num_parameters
        for arch in ("mla", "moe", "moe-mla", "v3"):
            config = model_preset(name, 1024, arch)
            assert abs(config.active_parameters / dense - 1) < 0.03, (name, arch)
            config.validate()
