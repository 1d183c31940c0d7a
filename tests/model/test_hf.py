"""Model folders: transformers computes what we do with them, both ways round; every kind of damage is one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dunwu.model.config import ModelConfig
from dunwu.model.hf import from_pretrained, load_model, resolve_dtype, save_model
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError
from tests.load_memory import measured, write
from tests.model.shapes import MLA, PLAIN, QWEN2, SHAPES, V3, random_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IDS = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(1))
WITH_MTP = replace(PLAIN, num_kv_heads=4, mla=MLA, moe=V3, mtp_depth=1, tie_word_embeddings=False)


def their_logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    assert type(theirs).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    with torch.no_grad():
        logits: torch.Tensor = theirs(IDS).logits
    return logits


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS)


def same(a: Transformer, b: Transformer) -> bool:
    theirs = b.state_dict()
    return a.config == b.config and all(torch.equal(t, theirs.pop(name)) for name, t in a.state_dict().items())


# ---- there and back -------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SHAPES))
def test_transformers_loads_what_we_save(name: str, tmp_path: Path) -> None:
    model = random_model(SHAPES[name])
    save_model(model, tmp_path, end_id=0)
    torch.testing.assert_close(logits(model), their_logits(tmp_path), atol=1e-4, rtol=0)
    assert same(model, load_model(tmp_path))


@pytest.mark.parametrize("name", list(SHAPES))
def test_we_load_what_transformers_saves(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    save_model(random_model(SHAPES[name]), tmp_path / "ours", end_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    assert same(load_model(tmp_path / "ours"), load_model(tmp_path / "theirs"))


def test_the_module_behind_the_last_layer_goes_along(tmp_path: Path) -> None:
    """V3's own names, with the copies it holds; and transformers leaves it out."""
    model = random_model(WITH_MTP)
    save_model(model, tmp_path, end_id=0)
    behind = {
        name.removeprefix("model.layers.3."): t for name, t in load_file(tmp_path / WEIGHTS).items() if ".3." in name
    }
    behind = {name: tensor for name, tensor in behind.items() if not name.startswith("model.")}
    assert behind.keys() >= {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
    assert "mlp.experts.7.up_proj.weight" in behind and "self_attn.kv_b_proj.weight" in behind
    assert torch.equal(behind["embed_tokens.weight"], model.model.embed_tokens.weight)
    assert torch.equal(behind["shared_head.head.weight"], model.head_weight)
    assert same(model, load_model(tmp_path))
    torch.testing.assert_close(logits(model), their_logits(tmp_path), atol=1e-4, rtol=0)


def test_a_module_that_only_the_config_has_is_left_out(tmp_path: Path) -> None:
    model = random_model(replace(WITH_MTP, mtp_depth=0))
    save_model(model, tmp_path, end_id=0)
    change_config(tmp_path, num_nextn_predict_layers=1)
    assert same(model, load_model(tmp_path))


def test_a_module_that_only_the_files_have_is_left_out(tmp_path: Path) -> None:
    save_model(random_model(WITH_MTP), tmp_path, end_id=0)
    change_config(tmp_path, num_nextn_predict_layers=0)
    assert load_model(tmp_path).config == replace(WITH_MTP, mtp_depth=0)


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_dtypes_on_load(name: str, tmp_path: Path) -> None:
    model = random_model(SHAPES[name])
    save_model(model, tmp_path, end_id=0)
    halved = load_model(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in halved.parameters()} == {torch.bfloat16}
    assert all(torch.equal(t.bfloat16(), halved.state_dict()[name]) for name, t in model.state_dict().items())
    save_model(halved, tmp_path / "half", end_id=0)
    assert same(halved, load_model(tmp_path / "half"))
    assert same(halved.float(), load_model(tmp_path / "half", dtype=torch.float32))
    save_model(halved.half(), tmp_path / "fp16", end_id=0)
    assert load_model(tmp_path / "fp16").head_weight.dtype == torch.float16


def test_biases_of_experts_stay_exact(tmp_path: Path) -> None:
    """V3 keeps them in fp32 among weights in bf16; the sum of small steps would be lost."""
    model = random_model(SHAPES["deepseek_v3"])
    save_model(model, tmp_path, end_id=0)
    halved = load_model(tmp_path, dtype=torch.bfloat16)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(halved.state_dict()[name], model.state_dict()[name])
    save_model(halved, tmp_path / "half", end_id=0)
    assert load_file(tmp_path / "half" / WEIGHTS)[name].dtype == torch.float32
    assert same(halved, load_model(tmp_path / "half"))


def test_what_the_copies_do_not_say(tmp_path: Path) -> None:
    """A tied model's output head and RoPE's old buffers are passed over, as transformers does."""
    model = random_model(QWEN2)
    save_model(model, tmp_path, end_id=0)
    extra = {"lm_head.weight": torch.zeros(97, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    save_file(load_file(tmp_path / WEIGHTS) | extra, tmp_path / WEIGHTS)
    assert same(model, load_model(tmp_path))


# ---- what is written ------------------------------------------------------------------------


def test_large_models_are_cut_into_files(tmp_path: Path) -> None:
    model = random_model(SHAPES["deepseek_v3"])
    save_model(model, tmp_path, end_id=0)
    save_model(model, tmp_path, end_id=0, max_shard_bytes=50_000)
    assert not (tmp_path / WEIGHTS).exists()
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 5 and {file.name for file in files} == set(index["weight_map"].values())
    for file in files:
        held = load_file(file)
        assert sum(t.nbytes for t in held.values()) <= 50_000 or len(held) == 1
        assert all(index["weight_map"][name] == file.name for name in held)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    torch.testing.assert_close(logits(model), their_logits(tmp_path), atol=1e-4, rtol=0)
    assert same(model, load_model(tmp_path))
    save_model(model, tmp_path, end_id=0)
    assert sorted(file.name for file in tmp_path.glob("*safetensors*")) == [WEIGHTS]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that dies leaves the file that was there, or none, and nothing beside it."""
    save_model(random_model(QWEN2), tmp_path, end_id=0)
    before = (tmp_path / WEIGHTS).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DunwuError, match="no space left"):
        save_model(random_model(QWEN2, seed=1), tmp_path, end_id=0)
    assert (tmp_path / WEIGHTS).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_generation_config_names_tokens_only(tmp_path: Path) -> None:
    save_model(random_model(QWEN2), tmp_path, end_id=3, stop_ids=(3, 5))
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [3, 5], "pad_token_id": 3}
    save_model(random_model(QWEN2), tmp_path, end_id=3)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 3


# ---- damage ---------------------------------------------------------------------------------


def change_config(folder: Path, **change: Any) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | change))


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def change_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        blob = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", blob[:8])
        header = json.loads(blob[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + length :])

    return apply


def change_bytes(change: Callable[[bytes], bytes], name: str = WEIGHTS) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def change_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        save_model(random_model(QWEN2), folder, end_id=0, max_shard_bytes=60_000)
        record = json.loads((folder / INDEX).read_text())
        change(record["weight_map"])
        (folder / INDEX).write_text(json.dumps(record))

    return apply


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def two_shards(folder: Path) -> None:
    save_model(random_model(QWEN2), folder, end_id=0, max_shard_bytes=60_000)
    next(folder.glob("model-00002*")).unlink()


NORM = "model.norm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (change_bytes(lambda b: b[:-100]), rf"{WEIGHTS} is truncated: tensor '{NORM}' ends at byte"),
    "empty": (change_bytes(lambda b: b""), f"{WEIGHTS} is damaged: it has 0 bytes"),
    "no header": (change_bytes(lambda b: b"\xff" * 100), f"{WEIGHTS} is damaged"),
    "cut in the header": (change_bytes(lambda b: b[:200]), f"{WEIGHTS} is damaged"),
    "header no JSON": (change_bytes(lambda b: b[:8] + b"[" + b[9:]), "its header is no JSON object"),
    "header a list": (change_bytes(lambda b: struct.pack("<Q", 2) + b"[]"), "its header is no JSON object"),
    "header too deep": (change_bytes(lambda b: struct.pack("<Q", 200_000) + b"[" * 200_000), "no JSON object"),
    "entry a number": (change_header(lambda h: h.update({NORM: 3})), f"entry of tensor '{NORM}' is incomplete"),
    "no offsets": (change_header(lambda h: h[NORM].pop("data_offsets")), f"tensor '{NORM}' is incomplete"),
    "negative": (change_header(lambda h: h[NORM].update(shape=[-64])), f"tensor '{NORM}' is incomplete"),
    "backwards": (change_header(lambda h: h[NORM]["data_offsets"].reverse()), f"tensor '{NORM}' .* bytes"),
    "size": (change_header(lambda h: h[NORM].update(dtype="BF16")), f"tensor '{NORM}' of shape .64,. has 256 bytes"),
    "fp8": (change_header(lambda h: h[NORM].update(dtype="F8_E4M3")), f"tensor '{NORM}' is F8_E4M3; quantised"),
    "whole numbers": (change_header(lambda h: h[NORM].update(dtype="I32")), f"tensor '{NORM}' is I32"),
    "missing": (change_weights(lambda t: t.pop(NORM)), f"does not fit .*tensor '{NORM}' is missing"),
    "extra": (
        change_weights(lambda t: t.update(x=torch.ones(2))),
        "does not fit .*tensor 'x' is not expected .*restore its config",
    ),
    "shape": (
        change_weights(lambda t: t.update({NORM: torch.ones(65)})),
        rf"tensor '{NORM}' has shape \(65,\), the config says \(64,\) \(.*, or restore its config\.json\)",
    ),
    "layers": (
        lambda f: change_config(f, num_hidden_layers=4),
        "tensor 'model.layers.3.* and 11 more are missing .*, or restore its config.json",
    ),
    "a head for rewards": (
        change_weights(lambda t: t.update({"score.weight": torch.ones(1, 64)})),
        r"is a reward model, no language model \(peek, chat, export and grpo want a language model\)",
    ),
    "a class for rewards": (
        lambda f: change_config(f, architectures=["Qwen2ForSequenceClassification"]),
        "is a reward model, no language model",
    ),
    "untied": (lambda f: change_config(f, tie_word_embeddings=False), "tensor 'lm_head.weight' is missing"),
    "field": (lambda f: change_config(f, num_hidden_layers=-4), r"config\.json: num_hidden_layers is -4"),
    "unknown field": (lambda f: change_config(f, qk_clip=1), r"config\.json: field 'qk_clip' is not known"),
    "config no JSON": (change_bytes(lambda b: b[:-9], "config.json"), r"config\.json is damaged"),
    "config a list": (change_bytes(lambda b: b"[]", "config.json"), r"config\.json is damaged"),
    "config not text": (change_bytes(lambda b: b"\xff\xfe", "config.json"), r"config\.json is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "a pickle": (only_a_pickle, r"pytorch_model\.bin, a pickle.* never loaded \(convert it"),
    "no shard": (two_shards, "model-00002-of-.* is missing, which"),
    "outside": (change_index(lambda m: m.update({NORM: "../x.safetensors"})), f"tensor '{NORM}' into '../x"),
    "absolute": (change_index(lambda m: m.update({NORM: "/etc/x.safetensors"})), f"tensor '{NORM}' into '/etc"),
    "a pickled shard": (change_index(lambda m: m.update({NORM: "x.bin"})), f"tensor '{NORM}' into 'x.bin'"),
    "elsewhere": (change_index(lambda m: m.update(x=m[NORM])), "has no tensor 'x', which"),
    "empty index": (change_index(lambda m: m.clear()), "weight_map names no files"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_is_one_line(kind: str, tmp_path: Path) -> None:
    spoil, match = DAMAGE[kind]
    save_model(random_model(QWEN2), tmp_path, end_id=0)
    spoil(tmp_path)
    with pytest.raises(DunwuError, match=match) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value) and caught.value.cure and str(tmp_path) in str(caught.value)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    """One that would leave a mark, in every place where weights are looked for."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    save_model(random_model(QWEN2), tmp_path, end_id=0)
    for name in ("pytorch_model.bin", WEIGHTS, INDEX, "config.json"):
        torch.save(Evil(), tmp_path / name)
        with pytest.raises(DunwuError):
            if name == "pytorch_model.bin":
                (tmp_path / WEIGHTS).unlink()
            from_pretrained(tmp_path)
    assert not mark.exists()


# ---- memory ---------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
@pytest.mark.parametrize(("name", "dtype"), [("qwen2-untied", "bfloat16"), ("deepseek_v3", "float32")])
def test_loading_needs_little_more_than_the_weights(name: str, dtype: str, tmp_path: Path) -> None:
    """Peak resident memory, as stored and to twice the width; a gigabyte is measured by load_memory.py."""
    moe = SHAPES[name].moe and replace(V3, width=256, experts=32)
    wide = replace(SHAPES[name], vocab_size=20_000, hidden_size=512, intermediate_size=1536, moe=moe)
    write(wide, tmp_path)
    weights, peak = measured(tmp_path, dtype)
    assert weights > 40e6
    assert peak <= 1.3 * weights


def test_dtype_by_name() -> None:
    assert resolve_dtype("auto", "cpu", {"amx_bf16"}) == resolve_dtype("bf16", "cpu", set()) == torch.bfloat16
    assert resolve_dtype("auto", "cpu", set()) == resolve_dtype("fp32", "cuda", set()) == torch.float32


def test_a_config_without_class_is_not_saved(tmp_path: Path) -> None:
    model = random_model(replace(PLAIN, qk_norm=True, qkv_bias=True))
    with pytest.raises(DunwuError, match="no Qwen3ForCausalLM has qkv_bias"):
        save_model(model, tmp_path / "x", end_id=0)
    assert not (tmp_path / "x").exists()
    assert isinstance(model.config, ModelConfig)
