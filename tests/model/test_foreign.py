"""Other classes through transformers: the same logits, samples and gradients; and what is refused."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dunwu.data.tokenizer import train_from_texts
from dunwu.model.foreign import Foreign, load_foreign
from dunwu.model.hf import from_pretrained, load_model, save_model
from dunwu.model.hf_config import NotOurs
from dunwu.model.transformer import Transformer
from dunwu.recipes.rm import check_fit
from dunwu.rollout.engine import Engine
from dunwu.rollout.stream import stream
from dunwu.rollout.torch_decoder import TorchDecoder
from dunwu.train.config import GrpoConfig
from dunwu.train.grpo import grpo
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.types import DunwuError, Problem, SamplingParams, Verdict
from tests.model.shapes import QWEN2, random_model

transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")

COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
KINDS: dict[str, dict[str, Any]] = {
    "Olmo2": COMMON | {"intermediate_size": 48},
    "Mistral": COMMON | {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 8, "head_dim": 8},
    "Gemma": COMMON | {"num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 8},
    "Phi3": COMMON | {"num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2},
    "GPT2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.5},
}
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11, 12], [1]]


def network(kind: str, folder: Path, **change: Any) -> Any:
    """A random model of a class that is not ours, saved."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**KINDS.get(kind, COMMON) | {"initializer_range": 0.2} | change)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    made.save_pretrained(folder)
    return made


@pytest.fixture(params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Foreign]:
    theirs = network(request.param, tmp_path)
    ours = from_pretrained(tmp_path)
    assert isinstance(ours, Foreign)
    return theirs, ours


def logits_of(model: Transformer, ids: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([list(ids)]))[0]


def test_logits_are_transformers(pair: tuple[Any, Foreign]) -> None:
    theirs, ours = pair
    ids = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)
    assert ours.config.vocab_size == 97 and ours.config.hidden_size == 32 and not ours.native
    assert ours.config.num_parameters == theirs.num_parameters()


def test_packed_is_alone(pair: tuple[Any, Foreign]) -> None:
    _, model = pair
    segments = torch.tensor([[1] * 12 + [2] * 5 + [3] * 3, [1] * 14 + [0] * 6])
    ids = torch.randint(0, 97, segments.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        packed = model.hidden(ids, segments_BT=segments)
        for row, start, end in ((0, 0, 12), (0, 12, 17), (0, 17, 20), (1, 0, 14)):
            alone = model.hidden(ids[row : row + 1, start:end])[0]
            torch.testing.assert_close(packed[row, start:end], alone, atol=1e-5, rtol=1e-5)


def test_greedy_decoding_is_the_whole_text_again(pair: tuple[Any, Foreign]) -> None:
    """Left-padded prompts, one of them drawn twice, rows that stop and leave; against no cache at all."""
    _, model = pair
    params = SamplingParams(max_tokens=16, temperature=0.0)
    draws = TorchDecoder(model, [96]).draw(PROMPTS, [0, 1, 1, 2], [1, 2, 3, 4], params)
    for parent, tokens, logprobs, length in zip([0, 1, 1, 2], draws.tokens, draws.logprobs, draws.lengths, strict=True):
        ids = list(PROMPTS[parent])
        for token, logprob in zip(tokens[:length].tolist(), logprobs[:length].tolist(), strict=True):
            with torch.no_grad():
                whole = logits_of(model, ids)[-1].log_softmax(-1)
            assert whole.max() - whole[token] < 1e-4
            assert logprob == pytest.approx(float(whole[token]), abs=1e-4) or logprob == 0.0
            ids.append(token)


def test_rows_that_stop_leave(tmp_path: Path) -> None:
    network("Mistral", tmp_path)
    model = from_pretrained(tmp_path)
    params = SamplingParams(max_tokens=24, temperature=1.0)
    many = TorchDecoder(model, list(range(20))).draw(PROMPTS, [0, 1, 2] * 4, list(range(12)), params)
    assert many.lengths.min() < 24
    for n in range(12):
        alone = TorchDecoder(model, list(range(20))).draw([PROMPTS[n % 3]], [0], [n], params)
        assert torch.equal(alone.tokens[0], many.tokens[n, : alone.lengths[0]])
    streamed = list(stream(model, PROMPTS[0], 0, params, list(range(20))))
    assert streamed == many.tokens[0, : many.lengths[0]].tolist()


def test_gradients_are_transformers(pair: tuple[Any, Foreign]) -> None:
    """In training mode, where GPT-2 would drop half of everything."""
    theirs, ours = pair
    ids = torch.tensor(PROMPTS[1])[None]
    ours.train()
    ours(ids).log_softmax(-1)[0, :, 3].sum().backward()
    theirs.eval()(ids).logits.log_softmax(-1)[0, :, 3].sum().backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-4, rtol=1e-3)


class EvenLength:
    """Reward 1 for completions of an even number of characters."""

    name = "even-length"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, f"{split}-{seed}-{index}", {}, f"{index % 7}+{index % 3}=")

    def score(self, problem: Problem, completion: str) -> Verdict:
        return Verdict({"accuracy": 1.0 - len(completion) % 2}, 1.0 - len(completion) % 2)

    def gold(self, problem: Problem) -> str:
        return "42"

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


def test_grpo_trains_it(tmp_path: Path) -> None:
    """Sampler, trainer and reference agree, which the loop itself checks at its first step; and all weights move."""
    tokenizer = train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)
    network("Mistral", tmp_path, vocab_size=280)
    policy = from_pretrained(tmp_path)
    learner = Learner(policy, MasterAdamW(policy, eps=1e-8, weight_decay=0.0))
    engine = Engine(policy, tokenizer, lambda: learner.optimizer.version)
    config = GrpoConfig(steps=2, problems=4, group_size=4, max_tokens=12, warmup=0, lr=1e-2, kl_coef=0.01)
    steps = list(grpo(learner, engine, tokenizer, EvenLength(), config, seed=0))
    assert steps[0].metrics["grpo/ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert steps[0].metrics["grpo/moved_tensors"] == 1.0


def test_a_copy_is_a_reference(tmp_path: Path) -> None:
    network("Olmo2", tmp_path)
    model = from_pretrained(tmp_path, dtype=torch.bfloat16)
    reference = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        model.head_weight.add_(1.0)
    assert model.head_weight.dtype == torch.bfloat16 and not torch.equal(reference.head_weight, model.head_weight)
    assert not any(p.requires_grad for p in reference.parameters())


def test_it_is_saved_as_what_it_is(tmp_path: Path) -> None:
    network("Phi3", tmp_path / "a")
    model = from_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.head_weight.mul_(2.0)
    model.network.generation_config.update(temperature=0.3, do_sample=True)
    save_model(model, tmp_path / "b", end_id=0, stop_ids=(0, 5))
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [0, 5], "pad_token_id": 0}
    assert json.loads((tmp_path / "b" / "config.json").read_text())["architectures"] == ["Phi3ForCausalLM"]
    with torch.no_grad():
        assert torch.equal(logits_of(from_pretrained(tmp_path / "b"), [1, 2]), logits_of(model, [1, 2]))


def test_ours_can_go_that_way_too(tmp_path: Path) -> None:
    """`foreign=True` is the cure for a field that is not known."""
    model = random_model(QWEN2)
    save_model(model, tmp_path, end_id=0)
    record = json.loads((tmp_path / "config.json").read_text()) | {"of_no_meaning": 1}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(DunwuError, match=r"in Python: from_pretrained\(FOLDER, foreign=True\)"):
        from_pretrained(tmp_path)
    with torch.no_grad():
        theirs = from_pretrained(tmp_path, foreign=True)
        torch.testing.assert_close(logits_of(theirs, [1, 2, 3]), logits_of(model, [1, 2, 3]), atol=1e-4, rtol=0)


# ---- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (
            "Gemma2",
            {"final_logit_softcapping": 30.0, "head_dim": 8, "num_key_value_heads": 2, "initializer_range": 0.02},
        ),
        ("Cohere", {"logit_scale": 0.0625, "num_key_value_heads": 2, "intermediate_size": 48}),
        ("Phi", {"intermediate_size": 48}),
    ],
)
def test_heads_that_are_no_product_are_refused(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    """A cap, a scale and a bias."""
    network(kind, tmp_path, **change)
    with pytest.raises(DunwuError, match="more than a product"):
        from_pretrained(tmp_path)


def test_a_reward_model_is_told_so(tmp_path: Path) -> None:
    """And not to install what is there."""
    train_from_texts(["a b c"], 280).save(tmp_path)
    network("Olmo2", tmp_path, vocab_size=280)
    with pytest.raises(DunwuError, match=r"olmo2.*reward models need one of Qwen2,.*DeepSeek-V3\)$"):
        check_fit(tmp_path, 16)


def test_weights_are_never_made_up(tmp_path: Path) -> None:
    network("Olmo2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DunwuError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        from_pretrained(tmp_path)
    save_file(
        tensors | {"model.layers.1.mlp.up_proj.weight": gone[:7]}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(DunwuError, match=r"up_proj\.weight' has shape \(7, 32\), the config says \(48, 32\)") as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_damage_is_one_line(tmp_path: Path) -> None:
    network("Olmo2", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DunwuError, match="transformers does not load") as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DunwuError, match="a pickle"):
        from_pretrained(tmp_path)


def test_code_that_comes_along_is_not_run(tmp_path: Path) -> None:
    network("Olmo2", tmp_path)
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\nclass EvilConfig: pass\n")
    record = json.loads((tmp_path / "config.json").read_text())
    record |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(DunwuError, match="transformers does not load"):
        from_pretrained(tmp_path)
    assert not mark.exists()


def test_without_transformers_the_known_classes_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network("Olmo2", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotOurs, match=r"olmo2.*Qwen2.*Llama 3, DeepSeek-V3.*pip install 'dunwu\[hf\]'"):
        from_pretrained(tmp_path)
    with pytest.raises(DunwuError, match=r"pip install 'dunwu\[hf\]'"):
        from_pretrained(tmp_path, foreign=True)
    with pytest.raises(NotOurs):
        load_model(tmp_path)


def test_dropout_and_our_own_kernels_are_refused(tmp_path: Path) -> None:
    network("Olmo2", tmp_path)
    model = load_foreign(tmp_path)
    model.set_dropout(0.0)
    with pytest.raises(DunwuError, match="no dropout"):
        model.set_dropout(0.1)
    with pytest.raises(DunwuError, match="olmo2 exists through transformers only"):
        Transformer(model.config)
    with pytest.raises(ValueError, match="no cache"):
        ids = torch.zeros(1, 2, dtype=torch.long)
        model.hidden(ids, cache=model.new_cache(torch.zeros(1), 4), segments_BT=ids)
