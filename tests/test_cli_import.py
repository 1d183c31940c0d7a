"""`dunwu import` as a user meets it: our classes, others, adapters, and what it says of bad folders."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dunwu.commands.importing import IMPORT
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.hf import load_model, save_model
from dunwu.types import DunwuError
from tests.model.shapes import SHAPES, random_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete DeepSeek-V3 of a few thousand weights."""
    made = tmp_path / "v3"
    tokenizer = train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)
    save_model(random_model(wide(SHAPES["deepseek_v3"])), made, tokenizer.end_id, tokenizer.stop_ids)
    tokenizer.save(made, 256)
    return made


def wide(config: ModelConfig) -> ModelConfig:
    return ModelConfig(**vars(config) | {"vocab_size": 288})


def run(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    for names, settings in IMPORT.arguments:
        parser.add_argument(*names, **settings)
    result = IMPORT.run(parser.parse_args([str(word) for word in words]))
    json.dumps(result)
    IMPORT.show(result)
    return result


def test_what_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(str(folder))
    config = wide(SHAPES["deepseek_v3"])
    assert result["class"] == "DeepseekV3ForCausalLM" and result["through"] == "dunwu" and "out" not in result
    assert (result["parameters"], result["active_parameters"]) == (config.num_parameters, config.active_parameters)
    assert (result["dtype"], result["context"]) == ("float32", 256)
    size = load_tokenizer(folder).vocab_size
    ends = {"<|endoftext|>", "<|im_end|>"}
    assert {*result["tokenizer"].pop("end")} == ends
    assert result["tokenizer"] == {"size": size, "rows": 288, "think_tags": True, "chat": True}
    shown = capsys.readouterr().out
    assert "DeepseekV3ForCausalLM" in shown and f"{config.active_parameters:,} active" in shown and "can chat" in shown


def test_a_folder_of_ours_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    record = json.loads((folder / "generation_config.json").read_text()) | {
        "eos_token_id": [7],
        "temperature": 0.6,
    }
    (folder / "generation_config.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    assert run(str(folder), "--out", str(out), "--dtype", "bf16")["out"] == str(out)
    made, given = load_model(out), load_model(folder, dtype=torch.bfloat16)
    assert made.config == given.config
    assert all(torch.equal(t, made.state_dict()[name]) for name, t in given.state_dict().items())
    assert load_tokenizer(out).encode("3+4=7") == load_tokenizer(folder).encode("3+4=7")
    assert (out / "chat_template.jinja").is_file()
    assert json.loads((out / "generation_config.json").read_text()) == {
        "eos_token_id": sorted({7, *load_tokenizer(out).stop_ids}),
        "pad_token_id": load_tokenizer(out).end_id,
    }
    with pytest.raises(DunwuError, match="is there already"):
        run(str(folder), "--out", str(out))


def test_an_adapter_is_merged(folder: Path, tmp_path: Path) -> None:
    lora = pytest.importorskip("dunwu.model.lora")
    from dunwu.model.lora_files import save_lora

    model = load_model(folder)
    lora.add_lora(model, lora.LoraConfig(rank=2), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    save_lora(model, tmp_path / "adapter", str(folder))
    result = run(str(tmp_path / "adapter"), "--out", str(tmp_path / "out"))
    assert result["base"] == str(folder)
    lora.merge(model)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "out")(ids), model(ids), atol=1e-4, rtol=1e-4)


def test_others_come_through_transformers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    config = transformers.Olmo2Config(
        vocab_size=288, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    other = tmp_path / "olmo"
    transformers.Olmo2ForCausalLM(config).save_pretrained(other)
    load_tokenizer(folder).save(other)
    result = run(str(other), "--out", str(tmp_path / "out"))
    assert (result["class"], result["through"]) == ("Olmo2ForCausalLM", "transformers")
    assert result["works"] == {
        "native_kernels": False,
        "native_sampling": False,
        "packing": True,
        "mtp": False,
        "gguf": False,
    }
    assert "through transformers" in capsys.readouterr().out
    assert run(str(tmp_path / "out"))["parameters"] == result["parameters"]


def test_bad_folders_are_one_line(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    with pytest.raises(DunwuError, match="no such folder"):
        run(str(folder / "nowhere"))
    model = load_model(folder)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    save_model(model, folder, end_id=0)
    with pytest.raises(DunwuError, match=r"tensor 'model\.norm\.weight' holds NaN"):
        run(str(folder))
    weights.write_bytes(whole[:-10])
    with pytest.raises(DunwuError, match="truncated"):
        run(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DunwuError, match=r"no tokenizer at .*v3 .*tokenizer\.json"):
        run(str(folder))


def test_a_tokenizer_of_another_model_is_told(folder: Path) -> None:
    made = train_from_texts(["there are many more words in this one than in the other"] * 2, 330)
    assert made.vocab_size > 288
    made.save(folder)
    with pytest.raises(DunwuError, match=r"the tokenizer has \d+ tokens, the model 288"):
        run(str(folder))


@pytest.mark.parametrize("empty", [False, True])
def test_what_is_written_is_whole_or_absent(
    empty: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "to" / "out"
    out.parent.mkdir()
    if empty:
        out.mkdir()
    real = os.replace

    def broken(source: Any, target: Any) -> None:
        if Path(target).name == "config.json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        run(str(folder), "--out", str(out))
    monkeypatch.undo()
    assert list(out.parent.rglob("*")) == ([out] if empty else [])
    # As a kill would have left it: the same command goes through.
    (out.parent / f".out.{os.getpid()}.new").mkdir()
    run(str(folder), "--out", str(out))
    assert list(out.parent.iterdir()) == [out]
    load_model(out)


def test_a_place_that_cannot_be_written_is_named(folder: Path) -> None:
    out = folder / "config.json" / "out"
    with pytest.raises(DunwuError, match=r"config\.json/out cannot be written: .* \(name a folder you can write to\)"):
        run(str(folder), "--out", str(out))


def test_a_reward_model_is_told(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    record["architectures"] = ["DeepseekV3ForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(DunwuError, match="/v3 is a reward model, no language model"):
        run(str(folder))
