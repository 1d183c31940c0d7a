"""LoRA against PEFT, in value, gradient, merge and files both ways; against a copy of the model; and misused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dunwu.model.config import MlaShape, ModelConfig, MoeShape
from dunwu.model.hf import load_model, save_model
from dunwu.model.lora import adapters, add_lora, disabled, lora_parameters, merge
from dunwu.model.lora_config import LoraConfig
from dunwu.model.lora_files import CONFIG, WEIGHTS, base_folder, is_adapter, load_adapted, load_lora, save_lora
from dunwu.model.transformer import Transformer
from dunwu.train.reward_model import RewardModel
from dunwu.types import DunwuError, UsageError

DENSE = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    num_layers=2,
    intermediate_size=48,
    initializer_range=0.1,
)
EXPERTS = replace(DENSE, qkv_bias=False, qk_norm=True, moe=MoeShape(4, 2, 24, gate="softmax"))
LATENT = replace(
    DENSE, qkv_bias=False, mla=MlaShape(16, 8, 8, 8, 12), moe=MoeShape(4, 2, 24, shared=1, first_dense=1), mtp_depth=1
)
SHAPES = {"dense": DENSE, "experts": EXPERTS, "latent": LATENT}
LORA = LoraConfig(rank=4, alpha=8)
LINEAR = {"dense": 14, "experts": 8 + 2 * 3 * 4, "latent": 10 + 6 + 3 * 4}
"""Linear layers of the shapes above, experts one by one."""


def network(config: ModelConfig = DENSE) -> Transformer:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def ids(seed: int = 1, width: int = 9) -> Tensor:
    return torch.randint(0, 64, (2, width), generator=torch.Generator().manual_seed(seed))


def stirred(model: nn.Module, lora: LoraConfig = LORA, also: tuple[str, ...] = ()) -> None:
    """Adapters that change something: B is not zero."""
    add_lora(model, lora, torch.Generator().manual_seed(3), also)
    dice = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            if name.endswith("_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=dice) * 0.2)


def saved(path: Path, model: Transformer) -> Path:
    save_model(model, path, end_id=0)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "base", network())


# ---- the model -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_fresh_adapters_change_nothing_and_train_alone(shape: str) -> None:
    model = network(SHAPES[shape])
    before = model(ids()).detach()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    add_lora(model, LORA, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(ids()), before, atol=2e-6, rtol=0)
    own = lora_parameters(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == own.keys()
    assert frozen.keys() == {name for name, _ in model.named_parameters()} - own.keys()
    model(ids()).square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert all(p.grad is not None and p.grad.any() for name, p in own.items() if name.endswith("_B"))
    expected = sum(2 * len(m.parts) if hasattr(m, "parts") else 2 for m in adapters(model).values())
    assert len(own) == expected and not [name for name in own if ".mtp." in name or ".gate." in name]


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_is_the_same_model_and_off_is_the_one_before(shape: str) -> None:
    model = network(SHAPES[shape])
    plain, reference = model(ids()).detach(), copy.deepcopy(model)
    reference.native_allowed = False
    kinds = [type(module) for module in model.modules()]
    was_native = model.native
    stirred(model)
    assert not model.native
    adapted = model(ids()).detach()
    assert float((adapted - plain).abs().max()) > 0.1
    with disabled(model):
        assert torch.equal(model(ids()), reference(ids()))
    assert torch.equal(model(ids()), adapted)
    merge(model)
    torch.testing.assert_close(model(ids()), adapted, atol=1e-5, rtol=0)
    assert model.native == was_native and kinds == [type(module) for module in model.modules()]
    assert all(p.requires_grad for p in model.parameters()) and not adapters(model)
    assert model.state_dict().keys() == reference.state_dict().keys()


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_with_a_cache_has_the_adapters_too(shape: str) -> None:
    """For latent attention this is the absorbed way, which reads a matrix instead of calling its layer."""
    model = network(SHAPES[shape])
    stirred(model)
    with torch.no_grad():
        whole, cache = model(ids()), model.new_cache(torch.zeros(2, dtype=torch.long), 9)
        parts = [model(ids()[:, t : t + 1], None, cache) for t in range(9)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_the_kernels_agree_where_they_are_let() -> None:
    model = network(replace(DENSE, hidden_size=64, num_heads=2, num_kv_heads=1, intermediate_size=64))
    if not model.native:
        pytest.skip("no kernels here")
    stirred(model)
    torch_way = model(ids()).detach()
    model.native_allowed = True  # slow, but right: whole matrices are made for them
    torch.testing.assert_close(model(ids()), torch_way, atol=1e-5, rtol=0)


def test_merge_gives_back_what_was_there() -> None:
    model = network()
    model.native_allowed = False
    stirred(model)
    merge(model)
    assert model.native_allowed is False and "native_before_lora" not in vars(model)
    merge(model)  # nothing to do
    bf16 = network().bfloat16()
    stirred(bf16)
    q = bf16.model.layers[0].self_attn.q_proj
    exact = (q.weight.float() + q.lora_B.float() @ q.lora_A.float() * 2.0).bfloat16()
    assert {p.dtype for p in bf16.parameters()} == {torch.bfloat16}
    merge(bf16)
    assert torch.equal(bf16.model.layers[0].self_attn.q_proj.weight, exact)


def test_adapters_follow_from_seed_and_config() -> None:
    def made(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
        model = network().to(dtype)
        add_lora(model, LORA, torch.Generator().manual_seed(seed))
        return lora_parameters(model)

    one, two, other, half = made(1), made(1), made(2), made(1, torch.bfloat16)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name].bfloat16(), half[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("_A"))
    A = one["model.layers.0.mlp.down_proj.lora_A"]
    assert A.shape == (4, 48) and 0.8 * 48**-0.5 < float(A.detach().abs().max()) <= 48**-0.5
    # Kaiming's uniform with a = √5, PEFT's default, has the bound √(6 / (6 · in)).


def test_dropout_is_of_training_only() -> None:
    model = network()
    stirred(model, replace(LORA, dropout=0.5))
    assert torch.equal(model.eval()(ids()), model(ids()))
    calm = model(ids())
    torch.manual_seed(0)
    wild = model.train()(ids())
    assert not torch.equal(wild, calm) and not torch.equal(wild, model(ids()))
    torch.manual_seed(0)
    assert torch.equal(wild, model(ids()))


def test_only_what_is_named() -> None:
    model = network(EXPERTS)
    add_lora(model, replace(LORA, targets=("v_proj", "up_proj")), torch.Generator())
    assert {name.rpartition(".")[2] for name in adapters(model)} == {"v_proj", "experts"}
    assert sorted({name.rpartition(".")[2] for name in lora_parameters(model)}) == [
        "lora_A",
        "lora_B",
        "up_proj_A",
        "up_proj_B",
    ]
    model(ids()).sum().backward()


def test_what_cannot_work_is_refused() -> None:
    for change in ({"rank": 257}, {"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(UsageError):
            replace(LORA, **change).validate()  # type: ignore[arg-type]
    for lora, says in ((LoraConfig(), "rank is 0"), (replace(LORA, targets=("lm_head",)), "choose from all down_proj")):
        with pytest.raises(UsageError) as caught:
            add_lora(network(), lora, torch.Generator())
        assert says in f"{caught.value} {caught.value.cure}"
    model = network()
    add_lora(model, LORA, torch.Generator())
    with pytest.raises(UsageError, match="has an adapter already"):
        add_lora(model, LORA, torch.Generator())
    with pytest.raises(UsageError, match="no linear layers of ours"):
        add_lora(nn.Linear(2, 2), LORA, torch.Generator())
    with pytest.raises(DunwuError, match="no adapter to save"):
        save_lora(network(), Path("nowhere"))


# ---- PEFT ------------------------------------------------------------------------------------


def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def random_peft(folder: Path, **settings: Any) -> Any:
    """PEFT's own model on the base, its B not zero."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(theirs(folder), peft.LoraConfig(**settings))
    dice = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=dice) * 0.2)
    return model


@pytest.mark.parametrize("rank", [1, 16, 256])
@pytest.mark.parametrize("rslora", [False, True])
def test_value_and_gradient_are_pefts(folder: Path, tmp_path: Path, rank: int, rslora: bool) -> None:
    settings = {"r": rank, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": rslora}
    other = random_peft(folder, **settings)
    other.save_pretrained(tmp_path / "peft")
    model = load_model(folder)
    load_lora(model, tmp_path / "peft")
    assert len(adapters(model)) == LINEAR["dense"]
    out, expected = model(ids()), other(ids()).logits
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    (out.square().mean()).backward()
    (expected.square().mean()).backward()
    gradients = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    own = lora_parameters(model)
    assert len(own) == len(gradients) == 28
    for name, parameter in own.items():
        assert parameter.grad is not None
        gradient = gradients[f"base_model.model.{name}.default.weight"]
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
    merge(model)
    merged = other.merge_and_unload().state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        ("dense", ("all",)),
        ("dense", ("q_proj", "down_proj")),
        ("experts", ("all",)),
        ("latent", ("kv_b_proj", "o_proj")),
    ],
)
def test_peft_reads_what_we_save(tmp_path: Path, shape: str, targets: tuple[str, ...]) -> None:
    peft = pytest.importorskip("peft")
    model = network(SHAPES[shape])
    folder = saved(tmp_path / "base", model)
    stirred(model, replace(LORA, targets=targets, dropout=0.1))
    model.eval()
    save_lora(model, tmp_path / "ours", str(folder))
    with torch.no_grad():
        other = peft.PeftModel.from_pretrained(theirs(folder), str(tmp_path / "ours"))
        torch.testing.assert_close(other(ids()).logits, model(ids()), atol=1e-5, rtol=0)
        merge(model)
        torch.testing.assert_close(other.merge_and_unload()(ids()).logits, model(ids()), atol=1e-5, rtol=0)


def test_a_reward_models_head_goes_along(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = network()
    folder = saved(tmp_path / "base", base)
    model = RewardModel.from_model(base, seed=1)
    stirred(model, also=("score",))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {*lora_parameters(model), "score.weight"}
    save_lora(model, tmp_path / "ours", str(folder))
    record = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert record["modules_to_save"] == ["score"] and record["task_type"] == "SEQ_CLS"
    again = RewardModel.from_model(base, seed=2)
    load_lora(again, tmp_path / "ours")
    last = torch.tensor([8, 8])
    with torch.no_grad():
        assert torch.equal(again(ids(), last), model(ids(), last))
        start = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0)
        other = peft.PeftModel.from_pretrained(start, str(tmp_path / "ours"))
        states = other.base_model.model.model(ids()).last_hidden_state[:, -1]
        torch.testing.assert_close(other.base_model.model.score(states)[:, 0], model(ids(), last), atol=1e-5, rtol=0)
        scores = model(ids(), last)
        merge(model)
        torch.testing.assert_close(model(ids(), last), scores, atol=1e-5, rtol=0)


def test_ranks_and_layers_may_differ(folder: Path, tmp_path: Path) -> None:
    other = random_peft(
        folder,
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"up_proj": 3},
    )
    other.save_pretrained(tmp_path / "peft")
    model = load_model(folder)
    load_lora(model, tmp_path / "peft")
    torch.testing.assert_close(model(ids()), other(ids()).logits, atol=1e-5, rtol=0)
    save_lora(model, tmp_path / "ours", str(folder))
    peft = pytest.importorskip("peft")
    again = peft.PeftModel.from_pretrained(theirs(folder), str(tmp_path / "ours"))
    torch.testing.assert_close(again(ids()).logits, other(ids()).logits, atol=1e-5, rtol=0)

    some = random_peft(folder, r=2, target_modules=["q_proj"], layers_to_transform=[1])
    some.save_pretrained(tmp_path / "some")
    model = load_model(folder)
    load_lora(model, tmp_path / "some")
    assert list(adapters(model)) == ["model.layers.1.self_attn.q_proj"]
    save_lora(model, tmp_path / "ours-some")
    assert json.loads((tmp_path / "ours-some" / CONFIG).read_text())["target_modules"] == [
        "model.layers.1.self_attn.q_proj"
    ]


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_loads_to_the_same_bits(tmp_path: Path, shape: str) -> None:
    model = network(SHAPES[shape])
    folder = saved(tmp_path / "base", model)
    stirred(model, LoraConfig(rank=3, alpha=2.5, rslora=True))
    save_lora(model, tmp_path / "a", str(folder))
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    assert len(tensors) == 2 * LINEAR[shape]
    assert all(name.startswith("base_model.model.model.layers.") for name in tensors)
    again = load_model(folder)
    load_lora(again, tmp_path / "a")
    assert torch.equal(again(ids()), model(ids()))
    assert all(torch.equal(p, lora_parameters(again)[name]) for name, p in lora_parameters(model).items())
    save_lora(again, tmp_path / "b", str(folder))
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    merge(model)
    assert is_adapter(tmp_path / "a") and not is_adapter(folder)
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in load_adapted(tmp_path / "a").state_dict().items()
    )


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    model = load_model(folder)
    stirred(model)
    save_lora(model, tmp_path / "adapter", str(folder))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save names embed_tokens"),
        ({"modules_to_save": ["score"]}, "score.weight' is missing"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is"),
        ({"something_of_tomorrow": 3}, "something_of_tomorrow is 3"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 8}, r"lora_A.weight' has shape \(4, 48\), not \(8, 48\)"),
        ({"r": "many"}, "is damaged"),
        ({"rank_pattern": {"(": 3}}, "is damaged"),
    ],
)
def test_what_is_not_covered_is_named(folder: Path, adapter: Path, change: dict[str, Any], says: str) -> None:
    record = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(record | change))
    refused(folder, adapter, says)


def refused(folder: Path, adapter: Path, says: str) -> None:
    """One line, and the model as it was."""
    model = load_model(folder)
    with pytest.raises(DunwuError, match=says) as caught:
        load_lora(model, adapter)
    assert "\n" not in str(caught.value) and caught.value.cure
    assert not adapters(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("cut", [0, 5, 300, -40])
def test_a_cut_file_is_named(folder: Path, adapter: Path, cut: int) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data[:cut])
    refused(folder, adapter, rf"{WEIGHTS}.* (damaged|truncated)")


def test_tensors_that_do_not_fit(folder: Path, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    for edit, says in (
        ({f"{first}B.weight": None}, "q_proj.lora_B.weight' is missing"),
        ({f"{first}A.weight": None, f"{first}B.weight": None}, "q_proj.lora_A.weight' is missing"),
        ({f"{first}A.weight": torch.zeros(4, 31)}, r"has shape \(4, 31\), not \(4, 32\)"),
        ({f"{first}magnitude_vector": torch.zeros(32)}, "magnitude_vector' is of no kind"),
        ({"base_model.model.model.embed_tokens.weight": torch.zeros(64, 32)}, "embed_tokens.weight' is of no kind"),
        (
            {f"base_model.model.lm_head.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"},
            "no linear layer lm_head",
        ),
    ):
        changed = {name: t for name, t in {**tensors, **edit}.items() if t is not None}  # type: ignore[dict-item]
        save_file(changed, adapter / WEIGHTS)
        refused(folder, adapter, says)
    save_file({}, adapter / WEIGHTS)
    refused(folder, adapter, "holds no adapter")


def test_pickles_and_other_folders(folder: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / WEIGHTS).unlink()
    refused(folder, adapter, "adapter_model.safetensors is missing")

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder, adapter, "adapter_model.bin, a pickle")
    assert not (tmp_path / "sprung").exists()
    refused(folder, tmp_path, "adapter_config.json is missing")
    (adapter / CONFIG).write_text("[1")
    refused(folder, adapter, "is damaged")


def test_the_base_is_found_or_asked_for(folder: Path, adapter: Path) -> None:
    record = json.loads((adapter / CONFIG).read_text())
    for name, there in ((str(folder), True), ("../base", True), ("some-org/base", False), ("", False), (None, False)):
        (adapter / CONFIG).write_text(json.dumps(record | {"base_model_name_or_path": name}))
        if there:
            assert base_folder(adapter).resolve() == folder
        else:
            with pytest.raises(DunwuError, match=r"adapter: (its base 'some-org/base' is no model|it names no base)"):
                load_adapted(adapter)
            load_adapted(adapter, folder)
