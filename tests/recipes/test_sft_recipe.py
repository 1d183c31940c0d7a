"""The recipe `sft` on a small model made on the spot: through the run folder and the store, killed, and misused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    Killed,
    bad_rows,
    run_recipe,
    save_folder,
    say_tokenizer,
    stage,
    timeless_metrics,
    tiny_model,
    undocumented,
    weights,
)

from dunwu.data.chat import read_chat
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.log import read_metrics
from dunwu.model.config import model_preset
from dunwu.model.hf import load_model, save_model
from dunwu.model.lora import add_lora
from dunwu.model.lora_config import LoraConfig
from dunwu.model.lora_files import save_lora
from dunwu.model.transformer import Transformer
from dunwu.recipes import sft as recipe
from dunwu.recipes.sft import split
from dunwu.recipes.sft_config import SFT_PRESETS, SftRunConfig
from dunwu.rollout.engine import Engine
from dunwu.train.config import SftConfig
from dunwu.types import ChatExample, DunwuError, Message, SamplingParams, UsageError

SMALL = SftRunConfig(
    held_out=0.2,
    sft=SftConfig(epochs=2, context=64, batch_tokens=200, warmup=2, lr=1e-2),
    eval_every=4,
    save_every=3,
    precision="fp32",
    device="cpu",
)


def question(n: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"say {n % 7}"}
    return {"messages": [asked, {"role": "assistant", "content": f"here is {n % 7}", "reasoning_content": f"{n}"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing."""
    tokenizer = say_tokenizer()
    return save_folder(tmp_path_factory.mktemp("model"), tiny_model(tokenizer), tokenizer)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 conversations, among them a line that is none (line 3) and one that is too long (line 6)."""
    lines = [json.dumps(question(n)) for n in range(40)]
    long = question(0)
    long["messages"][0]["content"] = "7 " * 70
    lines[2:2] = ["", '{"messages": []}']
    lines[5:5] = [json.dumps(long)]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


train = partial(run_recipe, "sft")


def test_conversations_become_a_model(
    tmp_path: Path, folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, model=str(folder), data=(str(data),), sft=replace(SMALL.sft, epochs=6))
    run = train(tmp_path, config)
    shown = capsys.readouterr()
    told = [f"{data} line 4: 'messages' is empty", f"{data} line 6: 161 tokens, more than sft.context 64"]
    assert [line for line in shown.err.splitlines() if " line " in line] == told
    assert [f"{row['file']} line {row['line']}: {row['reason']}" for row in bad_rows(run)] == told
    counts = stage(run, "chat-data").meta["metrics"]
    assert counts == {"rows": 42, "bad_rows": 2, "train": 32, "held_out": 8}
    assert len(read_chat(stage(run, "chat-data").path / "train.jsonl")[0]) == 32

    trained = stage(run, "sft")
    figures = trained.meta["metrics"]
    lines = list(read_metrics(run.dir))
    assert [line["step"] for line in lines] == list(range(figures["updates"] + 1))
    curve = [line["sft/valid_loss"] for line in lines if "sft/valid_loss" in line]
    assert [figures["valid_loss_before"], figures["valid_loss"]] == [curve[0], curve[-1]]
    assert curve[-1] < curve[0] / 2 and f"{curve[0]:.4f} → {curve[-1]:.4f}" in shown.out
    assert undocumented(run.dir / "metrics.jsonl") == set()

    model, encoder = load_model(trained.path / "model"), load_tokenizer(trained.path / "model")
    generation = json.loads((trained.path / "model" / "generation_config.json").read_text("utf-8"))
    assert generation["eos_token_id"] == list(encoder.stop_ids) and len(encoder.stop_ids) == 2
    prompt = encoder.encode("<|im_start|>user\nsay 4<|im_end|>\n<|im_start|>assistant\n")
    [[reply]] = Engine(model, encoder).sample([prompt], [[0]], SamplingParams(max_tokens=40, temperature=0))
    assert reply.text.startswith("<think>") and reply.finish_reason == "stop"


def test_a_second_run_reuses_and_tells_again(
    tmp_path: Path, folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, model=str(folder), data=(str(data),))
    first = train(tmp_path, config)
    capsys.readouterr()
    again = train(tmp_path, config, "again")
    assert stage(again, "sft").key == stage(first, "sft").key
    assert "line 4" in capsys.readouterr().err and (again.dir / "bad_rows.jsonl").exists()
    other = train(tmp_path, replace(config, sft=replace(SMALL.sft, lr=2e-2)), "other")
    assert stage(other, "chat-data").key == stage(first, "chat-data").key
    assert stage(other, "sft").key != stage(first, "sft").key


@pytest.mark.parametrize("moment", [2, 5, "last"])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, moment: int | str
) -> None:
    config = replace(SMALL, model=str(folder), data=(str(data),), sft=replace(SMALL.sft, dropout=0.1))
    whole = train(tmp_path / "whole", config)
    updates = stage(whole, "sft").meta["metrics"]["updates"]
    assert updates > 6
    real = recipe.sft

    def dying(*args: Any) -> Iterator[Any]:
        for step in real(*args):
            yield step
            if step.n == (updates if moment == "last" else moment):
                raise Killed

    monkeypatch.setattr(recipe, "sft", dying)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config)
    monkeypatch.setattr(recipe, "sft", real)
    resumed = train(tmp_path / "killed", config)
    assert weights(whole, "sft") == weights(resumed, "sft")
    assert stage(whole, "sft").meta["metrics"] == stage(resumed, "sft").meta["metrics"]
    assert timeless_metrics(whole) == timeless_metrics(resumed)


def test_transformers_talks_with_the_result(tmp_path: Path, folder: Path, data: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    run = train(tmp_path, replace(SMALL, model=str(folder), data=(str(data),), held_out=0.0))
    out = stage(run, "sft").path / "model"
    assert "valid_loss" not in stage(run, "sft").meta["metrics"]
    theirs, encoder = transformers.AutoModelForCausalLM.from_pretrained(out), load_tokenizer(out)
    ids = torch.tensor([encoder.encode("<|im_start|>user\nsay 4<|im_end|>\n")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(out)(ids), atol=1e-4, rtol=0)


def test_another_class_keeps_its_stops_and_loses_its_sampling(tmp_path: Path, data: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    encoder, home = say_tokenizer(), tmp_path / "olmo"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    network = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(vocab_size=encoder.vocab_size, **shape))
    network.save_pretrained(home)
    encoder.save(home)
    (home / "chat_template.jinja").write_text("theirs")
    (home / "generation_config.json").write_text('{"eos_token_id": 9, "temperature": 0.3, "do_sample": true}')
    run = train(tmp_path, replace(SMALL, model=str(home), data=(str(data),), sft=replace(SMALL.sft, epochs=1)))
    out = stage(run, "sft").path / "model"
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": sorted({9, *encoder.stop_ids}), "pad_token_id": encoder.end_id}
    theirs = transformers.AutoTokenizer.from_pretrained(out)  # trained on turns, so asked in turns
    asked = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert asked == "<|im_start|>user\nhi<|im_end|>\n"


def test_an_adapter_merged_has_the_stops_and_template_of_its_base(tmp_path: Path, folder: Path, data: Path) -> None:
    home, model = tmp_path / "base", load_model(folder)
    save_folder(home, model, load_tokenizer(folder))
    (home / "generation_config.json").write_text('{"eos_token_id": 9}')
    (home / "chat_template.jinja").write_text("theirs")
    add_lora(model, LoraConfig(rank=2), torch.Generator().manual_seed(0))
    save_lora(model, tmp_path / "adapter", str(home))
    made = stage(train(tmp_path, replace(SMALL, model=str(tmp_path / "adapter"), data=(str(data),))), "merged").path
    generation = json.loads((made / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted({9, *load_tokenizer(folder).stop_ids})
    assert json.loads((made / "model" / "tokenizer_config.json").read_text())["chat_template"] == "theirs"


def test_equal_conversations_stay_on_one_side() -> None:
    chats = [ChatExample((Message("user", str(n % 10)), Message("assistant", "x")), {"n": n}) for n in range(100)]
    train_part, held_out = split(chats, 0.2, 0)
    assert len(train_part) + len(held_out) == 100 and held_out
    assert not {c.messages for c in train_part} & {c.messages for c in held_out}
    assert split(chats, 0.2, 1) != (train_part, held_out) and split(chats, 0, 0) == (chats, [])
    with pytest.raises(DunwuError, match="too few"):
        split(chats[:1], 0.2, 0)


def test_no_row_left(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n" * 30, "utf-8")
    with pytest.raises(DunwuError, match=r"none of the 30 rows can be used; the first: .*bad\.jsonl line 1: no 'mess"):
        train(tmp_path, replace(SMALL, model=str(folder), data=(str(path),)))
    shown = capsys.readouterr().err
    assert shown.count("bad.jsonl line") == 20 and "… and 10 more rows" in shown
    path.write_text("\n", "utf-8")
    with pytest.raises(DunwuError, match="the files hold no rows"):
        train(tmp_path, replace(SMALL, model=str(folder), data=(str(path),)), "empty")


def test_models_that_do_not_fit(tmp_path: Path, folder: Path, data: Path) -> None:
    config = replace(SMALL, data=(str(data),))
    plain = tmp_path / "plain"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    save_folder(plain, model, tokenizer)
    record = json.loads((plain / "tokenizer.json").read_text("utf-8"))
    record["added_tokens"] = [t for t in record["added_tokens"] if not t["content"].startswith("<|im_")]
    (plain / "tokenizer.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(DunwuError, match=r"no <\|im_start\|> and no <\|im_end\|> token"):
        train(tmp_path, replace(config, model=str(plain)), "plain-run")
    train_from_texts(["more and more words of other texts"] * 3, 400).save(plain)
    small = Transformer(model_preset("tiny", 100))
    small.init_weights(torch.Generator().manual_seed(0))
    save_model(small, plain, 0)
    with pytest.raises(DunwuError, match="ids, the model 100"):
        train(tmp_path, replace(config, model=str(plain)), "small-run")
    with pytest.raises(DunwuError, match="context 2048 is longer than the model's 1024"):
        train(tmp_path, replace(config, model=str(folder), sft=replace(SMALL.sft, context=2048)), "long-run")
    with pytest.raises(UsageError, match="no such folder"):
        train(tmp_path, replace(config, model=str(tmp_path / "nothing")), "no-run")
    with pytest.raises(DunwuError, match=r"cannot read .*none\.jsonl"):
        train(tmp_path, replace(config, model=str(folder), data=("none.jsonl",)), "none-run")


@pytest.mark.parametrize(
    "change", [{"model": ""}, {"data": ()}, {"held_out": 1.0}, {"eval_every": 0}, {"sft": SftConfig(epochs=0)}]
)
def test_settings_that_cannot_work(change: dict[str, Any]) -> None:
    fine = replace(SMALL, model="m", data=("d",))
    fine.validate()
    with pytest.raises(UsageError):
        replace(fine, **change).validate()


@pytest.mark.parametrize("preset", SFT_PRESETS.values())
def test_presets_work_but_for_the_users_part(preset: SftRunConfig) -> None:
    replace(preset, model="m", data=("x",)).validate()
    with pytest.raises(UsageError, match="--model"):
        preset.validate()
