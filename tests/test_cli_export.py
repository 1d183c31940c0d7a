"""`dunwu export` as a user meets it: three forms, whole or absent, nothing of a user's ever overwritten."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dunwu.commands.export import EXPORT, MARKER
from dunwu.data.tokenizer import CHAT_TEMPLATE, GO_TEMPLATE, Tokenizer, train_from_texts
from dunwu.model import stored
from dunwu.model.config import MlaShape, ModelConfig, MoeShape
from dunwu.model.hf import load_model, save_model
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError, UsageError

V3 = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    intermediate_size=64,
    qkv_bias=False,
    tie_word_embeddings=False,
    mla=MlaShape(32, 16, 8, 16),
    moe=MoeShape(4, 2, 32, shared=1, first_dense=1),
    mtp_depth=1,
)
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def export(*words: str | Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    for names, settings in EXPORT.arguments:
        parser.add_argument(*names, **settings)
    return EXPORT.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["user assistant hello"] * 4, 290)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    made = Transformer(V3)
    made.init_weights(torch.Generator().manual_seed(0))
    save_model(made, folder, tokenizer.end_id, tokenizer.stop_ids)
    tokenizer.save(folder)
    (folder / "checkpoint.pt").write_bytes(b"a pickle")
    return folder


def test_hf_is_complete_and_changes_nothing_by_surprise(model: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    result = export(model, "--to", "hf", tmp_path / "out")
    assert set(result["files"]) == FILES
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES | {MARKER}
    assert result["files"]["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
    assert said == {"eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.end_id}
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert config["chat_template"] == CHAT_TEMPLATE and "reasoning_content" in CHAT_TEMPLATE
    ids = torch.arange(6)[None]
    assert torch.equal(load_model(model)(ids), load_model(tmp_path / "out")(ids))


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_hf_in_another_type(
    model: Path, tmp_path: Path, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK", 1000)
    export(model, tmp_path / "out", "--to", "hf", "--dtype", name)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for tensor in before:
        wanted = torch.float32 if tensor.endswith("e_score_correction_bias") else dtype
        assert after[tensor].dtype == wanted and torch.equal(before[tensor].to(wanted), after[tensor])
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["torch_dtype"] == str(dtype)[6:]
    load_model(tmp_path / "out")


def test_hf_in_transformers(model: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    export(model, tmp_path / "out", "--to", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, load_model(model)(ids), atol=1e-4)
    assert theirs.generation_config.do_sample is None or not theirs.generation_config.do_sample
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").encode("hello") == tokenizer.encode("hello")


def test_hf_shards(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    names = sorted(tensors)
    (tmp_path / "m" / "model.safetensors").unlink()
    placed = {}
    for number, part in enumerate((names[:9], names[9:])):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name].float() for name in part}, tmp_path / "m" / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    result = export(tmp_path / "m", tmp_path / "out", "--to", "hf", "--dtype", "bf16")
    assert len([name for name in result["files"] if name.endswith(".safetensors")]) == 2
    said = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))
    biases = sum(4 * t.numel() for name, t in tensors.items() if name.endswith("correction_bias"))
    rest = sum(2 * t.numel() for name, t in tensors.items() if not name.endswith("correction_bias"))
    assert said == {"metadata": {"total_size": biases + rest}, "weight_map": placed}
    load_model(tmp_path / "out")


def test_gguf_and_ollama(model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
    result = export(model, tmp_path / "mine", "--to", "gguf", "--type", "q8_0")
    assert set(result["files"]) == {"model.gguf"} and result["type"] == "q8_0"
    assert result["stayed_f16"] == 2  # attn_k_b of both layers: rows of 16
    reader = gguf.GGUFReader(tmp_path / "mine" / "model.gguf")
    assert reader.fields["general.name"].contents() == "mine" and len(reader.tensors) == result["tensors"]
    result = export(model, tmp_path / "other", "--to", "ollama")
    assert set(result["files"]) == {"model.gguf", "Modelfile"} and result["type"] == "f16"
    assert GO_TEMPLATE in (tmp_path / "other" / "Modelfile").read_text("utf-8")


def test_a_foreign_template_is_left_to_the_gguf(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
    shutil.copytree(model, tmp_path / "m")
    file = tmp_path / "m" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"chat_template": "theirs"}), "utf-8")
    export(tmp_path / "m", tmp_path / "out", "--to", "ollama")
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text("utf-8")


def test_only_a_former_export_is_overwritten(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(model, out, "--to", "hf")
    export(model, out, "--to", "hf", "--dtype", "bf16")
    assert next(iter(load_file(out / "model.safetensors").values())).dtype != torch.float64
    (out / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match=r"holds notes\.txt, which no export wrote \(name a new folder"):
        export(model, out, "--to", "hf")
    assert (out / "notes.txt").read_text("utf-8") == "mine"
    with pytest.raises(UsageError, match="is a file"):
        export(model, out / "notes.txt", "--to", "hf")


@pytest.mark.parametrize("where", [".", "sub", "..", "link"])
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_the_model_itself_is_never_replaced(to: str, where: str, model: Path, tmp_path: Path) -> None:
    source = tmp_path / "a" / "model"
    export(model, source, "--to", "hf")
    (tmp_path / "a" / "link").symlink_to(source)
    before = {file: file.read_bytes() for file in source.iterdir()}
    out = {"link": tmp_path / "a" / "link"}.get(where, source / where)
    with pytest.raises(UsageError, match=r"overlaps the model's folder .* \(name a folder apart from it\)"):
        export(source, out, "--to", to)
    assert {file: file.read_bytes() for file in source.iterdir()} == before


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_killed_export_left_is_mended(moved: bool, model: Path, tmp_path: Path) -> None:
    out, dead = tmp_path / "out", dead_process()
    export(model, out, "--to", "hf")
    (out / "notes.txt").write_text("mine", "utf-8")
    kept = [tmp_path / f".out.{os.getppid()}.new", tmp_path / f".other.{dead}.new", tmp_path / ".out.x.new"]
    for left in (*kept, tmp_path / f".out.{dead}.new"):
        left.mkdir()
        (left / "model.safetensors").touch()
    old = tmp_path / f".out.{dead}.old"
    if moved:
        out.rename(old)
    else:
        old.mkdir()
    # It refuses, for the notes, and yet has mended.
    with pytest.raises(UsageError, match=r"holds notes\.txt"):
        export(model, out, "--to", "hf")
    assert sorted(tmp_path.iterdir()) == sorted([out, *kept])
    assert (out / "notes.txt").read_text("utf-8") == "mine"


def test_a_place_that_cannot_be_written_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DunwuError, match=r"file/out cannot be written: .* \(name a folder you can write to\)"):
        export(model, tmp_path / "file" / "out", "--to", "hf")

    def forbidden(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(DunwuError) as caught:
        export(model, tmp_path / "out", "--to", "hf")
    assert caught.value.what == f"{tmp_path / 'out'} cannot be written: Permission denied"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "{", r"tokenizer\.json is damaged"),
        ("tokenizer.json", "{}", r"tokenizer\.json is not a tokenizer file"),
        ("tokenizer_config.json", "[", r"tokenizer_config\.json is damaged"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json holds no JSON object"),
    ],
)
def test_a_damaged_tokenizer_is_not_exported(name: str, text: str, said: str, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / name).write_text(text, "utf-8")
    with pytest.raises(DunwuError, match=said) as caught:
        export(tmp_path / "m", tmp_path / "out", "--to", "hf")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_not_exported(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    text = "there are many more words in this one than in the other, whose vocabulary stays quite small"
    train_from_texts([text] * 2, 330).save(tmp_path / "m")
    with pytest.raises(DunwuError, match=r"the tokenizer has 3\d\d tokens, the model 300 \(use the tokenizer"):
        export(tmp_path / "m", tmp_path / "out", "--to", "hf")


def test_a_reward_model_goes_to_hugging_face_only(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
    shutil.copytree(model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file) | {"score.weight": torch.ones(1, 32)}, file)
    for to in ("hf", "gguf"):
        with pytest.raises(DunwuError, match=r"/m is a reward model, no language model \(peek, chat, export and grpo"):
            export(tmp_path / "m", tmp_path / "out", "--to", to)
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text("utf-8").replace("ForCausalLM", "ForSequenceClassification"), "utf-8")
    export(tmp_path / "m", tmp_path / "hf", "--to", "hf")
    with pytest.raises(DunwuError, match=r"/m is a reward model, no language model \(peek, chat, export and grpo"):
        export(tmp_path / "m", tmp_path / "out", "--to", "gguf")


def test_weights_of_another_config_have_their_cure(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"intermediate_size": 48}), "utf-8")
    with pytest.raises(DunwuError, match=r"\(copy the model folder again, or restore its config\.json\)"):
        export(tmp_path / "m", tmp_path / "out", "--to", "hf")


@pytest.mark.parametrize("former", [False, True])
def test_a_failure_leaves_what_was_there(
    former: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "to" / "out"
    if former:
        export(model, out, "--to", "hf")
    before = {file.name: file.read_bytes() for file in out.iterdir()} if former else None
    real = os.replace

    def broken(source: Any, target: Any) -> None:
        if Path(source).suffix == ".new":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        export(model, out, "--to", "hf")
    monkeypatch.undo()
    if not former:
        assert list(out.parent.iterdir()) == []
        return
    assert list(out.parent.iterdir()) == [out]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("tokenizer.json", r"has no tokenizer\.json \(copy the tokenizer"),
        ("tokenizer_config.json", r"has no tokenizer_config\.json"),
        ("model.safetensors", r"a pickle: it could run code|model\.safetensors is missing"),
    ],
)
def test_missing_files_are_named(lost: str, said: str, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / lost).unlink()
    with pytest.raises(DunwuError, match=said):
        export(tmp_path / "m", tmp_path / "out", "--to", "hf")
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_go_together(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--type is for gguf and ollama"):
        export(model, tmp_path / "out", "--to", "hf", "--type", "f16")
    with pytest.raises(UsageError, match="--dtype is for hf, not for gguf"):
        export(model, tmp_path / "out", "--to", "gguf", "--dtype", "bf16")
