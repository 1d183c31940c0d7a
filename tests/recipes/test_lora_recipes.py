"""LoRA in the recipes sft, rm and grpo: the base stays bit for bit, a killed run resumes, files are PEFT's, keys stay."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import (
    Killed,
    run_recipe,
    save_folder,
    say_tokenizer,
    stage,
    timeless_metrics,
    tiny_model,
    weights,
)
from torch import Tensor

from dunwu.cli import main
from dunwu.log import Run, read_metrics
from dunwu.model.config import MlaShape, ModelConfig, MoeShape
from dunwu.model.hf import load_model
from dunwu.model.lora import add_lora, disabled, lora_parameters, merge
from dunwu.model.lora_config import LoraConfig
from dunwu.model.lora_files import load_adapted, load_lora
from dunwu.model.transformer import Transformer
from dunwu.recipes import reinforce, rm, sft
from dunwu.recipes.grpo_config import GrpoRunConfig
from dunwu.recipes.rm_config import RmRunConfig
from dunwu.recipes.sft_config import SftRunConfig
from dunwu.train.config import GrpoConfig, SftConfig
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.reward_model import load_reward_model
from dunwu.types import UsageError

LORA = LoraConfig(rank=4, alpha=8)
TASK = """
def problems(split):
    first = {"train": 0, "valid": 1, "test": 2}[split]
    return [{"n": n} for n in range(first, 9, 3)]

def prompt(problem):
    return [{"role": "user", "content": f"say {problem['n']}"}]

def score(problem, completion):
    return float(len(completion) % 2)

def gold(problem):
    return "x"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and what each recipe learns from."""
    home, tokenizer = tmp_path_factory.mktemp("lora"), say_tokenizer()
    save_folder(home / "model", tiny_model(tokenizer), tokenizer)
    chats, pairs = [], []
    for n in range(40):
        asked = {"role": "user", "content": f"say {n % 7} {n % 5}"}
        chats.append({"messages": [asked, {"role": "assistant", "content": f"here is {n % 7}"}]})
        replies = {"chosen": f"here is {n % 7}", "rejected": f"is {n % 7} here"}
        pairs.append({"messages": [asked], **{k: {"role": "assistant", "content": t} for k, t in replies.items()}})
    for name, rows in (("chats", chats), ("pairs", pairs)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (home / "odd.py").write_text(TASK)
    return home


def sft_config(home: Path) -> SftRunConfig:
    return SftRunConfig(
        model=str(home / "model"),
        data=(str(home / "chats.jsonl"),),
        held_out=0.2,
        sft=SftConfig(epochs=2, context=64, batch_tokens=150, warmup=2, lr=1e-2),
        lora=replace(LORA, dropout=0.1),
        eval_every=4,
        save_every=3,
        precision="fp32",
        device="cpu",
    )


def rm_config(home: Path) -> RmRunConfig:
    return RmRunConfig(
        model=str(home / "model"),
        data=(str(home / "pairs.jsonl"),),
        rows=4,
        lr=3e-3,
        warmup=2,
        context=64,
        length_balance=False,
        held_out=0.2,
        lora=replace(LORA, dropout=0.1),
        held_out_every=4,
        save_every=3,
        device="cpu",
    )


def grpo_config(home: Path) -> GrpoRunConfig:
    return GrpoRunConfig(
        model=str(home / "model"),
        task=str(home / "odd.py"),
        grpo=GrpoConfig(
            steps=4, problems=2, group_size=4, max_tokens=6, warmup=1, lr=1e-2, kl_coef=0.01, reference_every=2
        ),
        lora=LORA,
        held_out=3,
        held_out_every=2,
        save_every=1,
        device="cpu",
    )


CONFIGS = {"sft": sft_config, "rm": rm_config, "grpo": grpo_config}


def started_from(home: Path) -> dict[str, Tensor]:
    return load_file(home / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[str, Run]:
    """Each recipe, run without a stop."""
    return {name: run_recipe(name, home / name, config(home)) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("recipe", CONFIGS)
def test_only_adapters_move_and_the_model_is_their_sum(recipe: str, runs: dict[str, Run], home: Path) -> None:
    made, base = stage(runs[recipe], recipe), started_from(home)
    tensors = load_file(made.path / "adapter" / "adapter_model.safetensors")
    model = load_file(made.path / "model" / "model.safetensors")
    B = {name: tensor for name, tensor in tensors.items() if ".lora_B." in name}
    assert len(B) == 14 and all(tensor.any() for tensor in B.values())
    for name, stored in base.items():
        tensor = stored.to(model[name].dtype)  # a reward model's is bf16 where that is fast
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_B.weight" not in tensors:  # embedding, norms, biases: bit for bit
            assert torch.equal(model[name], tensor), name
            continue
        sum_ = tensor.float() + tensors[f"{key}.lora_B.weight"].float() @ tensors[f"{key}.lora_A.weight"].float() * 2.0
        assert torch.equal(model[name], sum_.to(tensor.dtype)), name
    extra = {"base_model.model.score.weight"} if recipe == "rm" else set()
    assert {name for name in tensors if ".lora_" not in name} == extra
    record = json.loads((made.path / "adapter" / "adapter_config.json").read_text())
    assert record["r"] == 4 and record["base_model_name_or_path"] == str((home / "model").resolve())
    trained = sum(tensor.numel() for tensor in tensors.values())
    assert made.meta["metrics"]["trained_parameters"] == trained


def test_what_was_learned_is_there(runs: dict[str, Run], home: Path) -> None:
    figures = stage(runs["sft"], "sft").meta["metrics"]
    assert figures["valid_loss"] < figures["valid_loss_before"] - 0.3
    made = stage(runs["sft"], "sft").path
    model, again = load_model(made / "model"), load_adapted(made / "adapter")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    rewards = load_reward_model(stage(runs["rm"], "rm").path / "model")[0]
    assert rewards.score.weight.any()
    moved = [line["grpo/moved_tensors"] for line in read_metrics(runs["grpo"].dir) if line["stage"] == "grpo"]
    # Of 26 tensors of the model and 28 of the adapters the latter move; at the first update B alone, since A's gradient
    # is 0 where B is.
    assert len(started_from(home)) == 26
    assert moved[0] == pytest.approx(14 / 54) and moved[-1] == pytest.approx(28 / 54)


@pytest.mark.parametrize(
    ("recipe", "moment"), [("sft", 2), ("sft", 7), ("rm", 5), ("rm", "last"), ("grpo", 1), ("grpo", 3)]
)
def test_a_killed_run_resumes_to_the_same_bits(
    recipe: str, moment: int | str, runs: dict[str, Run], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = {"sft": (sft, "sft"), "rm": (rm, "train_rm"), "grpo": (reinforce, "grpo")}[recipe]
    real = getattr(module, name)
    lines = [line["step"] for line in read_metrics(runs[recipe].dir) if line["stage"] == recipe]
    last = max(lines)

    def dying(*args: Any) -> Iterator[Any]:
        for step in real(*args):
            yield step
            if step.n == (last if moment == "last" else moment + 1):
                raise Killed

    torch.manual_seed(99)  # another process begins with another state
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, dying)
        run_recipe(recipe, tmp_path, CONFIGS[recipe](home))
    (checkpoint,) = tmp_path.rglob("checkpoint.safetensors")
    with safe_open(checkpoint, "pt") as file:
        sizes = {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118 (no mapping)
    trained = stage(runs[recipe], recipe).meta["metrics"]["trained_parameters"]
    reference = {key: size for key, size in sizes.items() if key.startswith("reference.")}
    assert {key: sizes[key] for key in ("master", "first", "second")} == dict.fromkeys(
        ("master", "first", "second"), trained
    )
    assert sum(reference.values()) == (trained if recipe == "grpo" else 0)  # no second copy of the model, nor on disk
    torch.manual_seed(7)
    resumed = run_recipe(recipe, tmp_path, CONFIGS[recipe](home))
    assert weights(resumed, recipe) == weights(runs[recipe], recipe)
    ours, theirs = (
        stage(run, recipe).path / "adapter" / "adapter_model.safetensors" for run in (resumed, runs[recipe])
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert timeless_metrics(resumed) == timeless_metrics(runs[recipe])


def test_the_reference_is_the_base_and_shares_it() -> None:
    tokenizer = say_tokenizer()
    policy = tiny_model(tokenizer)
    policy.native_allowed = False
    copied = copy.deepcopy(policy)
    add_lora(policy, LORA, torch.Generator().manual_seed(0))
    learner = Learner(policy, MasterAdamW(policy))
    learner.refresh_reference()
    reference = learner.reference
    assert reference is not None and not any(p.requires_grad for p in reference.parameters())
    own, theirs = dict(policy.named_parameters()), dict(reference.named_parameters())
    assert {name for name in own if own[name] is not theirs[name]} == lora_parameters(policy).keys()
    assert learner.reference_state().keys() == lora_parameters(policy).keys()
    ids = torch.arange(20)[None]
    policy(ids).square().mean().backward()
    learner.optimizer.step(1e-2)
    policy(ids).square().mean().backward()
    learner.optimizer.step(1e-2)
    with torch.no_grad():
        assert not torch.allclose(policy(ids), reference(ids), atol=1e-3)
        assert torch.equal(reference(ids), copied(ids))
        with disabled(policy):
            assert torch.equal(policy(ids), copied(ids))
        saved = {name: t.clone() for name, t in learner.reference_state().items()}
        learner.refresh_reference()
        assert torch.equal(learner.reference(ids), policy(ids))
        learner.load_reference(saved)
        assert torch.equal(learner.reference(ids), copied(ids))
        merge(policy)  # the reference keeps the base
        assert torch.equal(learner.reference(ids), copied(ids))


def test_a_full_reference_is_a_whole_copy() -> None:
    policy = tiny_model(say_tokenizer())
    learner = Learner(policy, MasterAdamW(policy))
    learner.refresh_reference()
    assert learner.reference is not None
    assert learner.reference_state().keys() == policy.state_dict().keys()
    assert not {id(p) for p in policy.parameters()} & {id(p) for p in learner.reference.parameters()}


@pytest.mark.parametrize("recipe", CONFIGS)
def test_keys_know_lora_only_where_it_is_on(recipe: str, home: Path, tmp_path: Path) -> None:
    class Asked(BaseException):
        pass

    asked: dict[str, Any] = {}

    def key_of(lora: LoraConfig) -> dict[str, Any]:
        run = Run.open(tmp_path / str(len(asked)) / str(lora.rank), recipe, {}, 0)
        real = run.stage

        def stop(name: str, build: Any, config: Any, *rest: Any, **more: Any) -> Any:
            if name != recipe:
                return real(name, build, config, *rest, **more)
            asked[str(lora)] = config
            raise Asked

        run.stage = stop  # type: ignore[method-assign]
        with run, pytest.raises(Asked):
            run_module(recipe)(run, replace(CONFIGS[recipe](home), lora=lora))  # type: ignore[type-var]
        return asked[str(lora)]  # type: ignore[no-any-return]

    off = key_of(LoraConfig())
    assert "lora" not in off and off == key_of(LoraConfig(alpha=1.0))
    assert key_of(LORA)["lora"] == LORA


def run_module(recipe: str) -> Any:
    from dunwu.recipes import get_recipe

    return get_recipe(recipe).load()


def test_experts_and_latents_learn_and_routers_do_not(home: Path, tmp_path: Path) -> None:
    tokenizer = say_tokenizer()
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_heads=2,
        num_layers=2,
        intermediate_size=96,
        qkv_bias=False,
        mla=MlaShape(32, 16, 16, 16, 24),
        moe=MoeShape(4, 2, 32, shared=1, first_dense=1),
        mtp_depth=1,
    )
    model = Transformer(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    folder = save_folder(tmp_path / "experts", model, tokenizer)
    run = run_recipe("grpo", tmp_path, replace(grpo_config(home), model=str(folder)))
    for line in read_metrics(run.dir):  # sampled by the absorbed way, with the experts that the update replays
        assert line.get("grpo/sampler_mismatch", 0.0) < 1e-5
    before, after = (load_file(path / "model.safetensors") for path in (folder, stage(run, "grpo").path / "model"))
    moved = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    tensors = load_file(stage(run, "grpo").path / "adapter" / "adapter_model.safetensors")
    trained = {name for name, tensor in tensors.items() if ".lora_B." in name and tensor.any()}
    assert moved == {name.removeprefix("base_model.model.").removesuffix(".lora_B.weight") for name in trained}
    layers = {name.removeprefix("model.layers.") for name in moved}
    assert {"0.self_attn.kv_b_proj", "0.mlp.up_proj", "1.mlp.shared_experts.up_proj"} <= layers
    assert {f"1.mlp.experts.{e}.{part}_proj" for e in range(4) for part in ("gate", "up", "down")} <= layers


def test_training_begins_where_an_adapter_stands(runs: dict[str, Run], home: Path, tmp_path: Path) -> None:
    made = stage(runs["sft"], "sft").path
    config = replace(sft_config(home), model=str(made / "adapter"), lora=LoraConfig())
    config = replace(config, sft=replace(config.sft, epochs=1))
    run = run_recipe("sft", tmp_path, config)
    before = load_file(stage(run, "merged").path / "model" / "model.safetensors")
    expected = load_file(made / "model" / "model.safetensors")
    assert before.keys() == expected.keys() and all(torch.equal(before[name], expected[name]) for name in before)
    figures = stage(run, "sft").meta["metrics"]
    assert figures["valid_loss_before"] == pytest.approx(
        stage(runs["sft"], "sft").meta["metrics"]["valid_loss"], abs=1e-4
    )
    assert not (stage(run, "sft").path / "adapter").exists()


def test_peft_loads_the_adapter(runs: dict[str, Run], home: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    made = stage(runs["grpo"], "grpo").path
    base = transformers.AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(made / "adapter"))
    ours = load_model(home / "model", dtype=torch.float32)
    load_lora(ours, made / "adapter")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-5, rtol=0)


def test_the_flags_and_what_cannot_work(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    words = ["run", "sft", "--preset", "tiny", "--model", str(home / "model"), "--data", str(home / "chats.jsonl")]
    words += ["--lora.rank", "2", "--lora.targets", "q_proj", "v_proj", "--lora.rslora", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["config"]["lora"]
    assert record == {"rank": 2, "alpha": 32.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"], "rslora": True}
    assert main([*words, "--lora.rank", "300", "--out", str(tmp_path / "odd")]) == 2
    for make in CONFIGS.values():
        with pytest.raises(UsageError):
            replace(make(home), lora=LoraConfig(rank=300)).validate()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"lora.dropout is 0\.1"):
        replace(grpo_config(home), lora=replace(LORA, dropout=0.1)).validate()
