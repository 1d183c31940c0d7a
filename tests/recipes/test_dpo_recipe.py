"""The recipe `dpo` as a user runs it: five losses on pairs and labels in files, bad rows named, killed, with adapters, misused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    Killed,
    bad_rows,
    load,
    run_recipe,
    save_folder,
    stage,
    timeless_metrics,
    tiny_model,
    undocumented,
    weights,
)

from dunwu.cli import main
from dunwu.data.tokenizer import train_from_texts
from dunwu.log import Run, read_metrics
from dunwu.model.lora_config import LoraConfig
from dunwu.recipes import dpo
from dunwu.recipes.dpo_config import DPO_PRESETS, DpoRunConfig
from dunwu.store import Artifact
from dunwu.train.dpo_config import DpoConfig, PreferenceLoss
from dunwu.types import DunwuError, UsageError

LOSSES: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "kto", "orpo", "simpo")
THINGS = ("hat", "dog", "book", "river", "cup", "tree")
TRAINING = DpoConfig(rows=16, lr=3e-3, warmup=3, context=64, held_out=0.2)
SMALL = DpoRunConfig(dpo=TRAINING, held_out_every=8, save_every=5, precision="fp32", device="cpu")
FILES = ("model/model.safetensors", "preferences.json", "bad_rows.jsonl")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a user has one."""
    texts = [f"Tell me of {a} and {b}. Gladly, of {b}. Go away, no {a}." for a in THINGS for b in THINGS]
    encoder = train_from_texts(texts, 300)
    return save_folder(tmp_path_factory.mktemp("模型"), tiny_model(encoder), encoder)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Polite replies are chosen; the truth agrees, but in every tenth pair."""
    dice = Random(seed)
    rows = []
    for n in range(count):
        a, b = dice.choice(THINGS), dice.choice(THINGS)
        row: dict[str, Any] = {"messages": [{"role": "user", "content": f"Tell me of {a} and {b} {n % 50}."}]}
        row |= {"chosen": f"Gladly, of {b}.", "rejected": f"Go away, no {a}."}
        rows.append(row | {"meta": {"truth": [0.9, 0.2] if n % 10 else [0.1, 0.2]}})
    return rows


def labelled(count: int) -> list[dict[str, Any]]:
    """The same as single replies, every other one unwelcome."""
    rows = []
    for n, row in enumerate(pairs(count, seed=2)):
        reply = {"role": "assistant", "content": row["chosen"] if n % 2 else row["rejected"]}
        rows.append({"messages": [*row["messages"], reply], "meta": {"label": n % 2}})
    return rows


def write(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


train = partial(run_recipe, "dpo")


def made(run: Run) -> Artifact:
    return stage(run, "dpo")


def given(start: Path, data: str, **changes: Any) -> DpoRunConfig:
    """The small run on these files; `changes` are the training's."""
    return replace(SMALL, model=str(start), data=(data,), dpo=replace(TRAINING, **changes))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches_what_is_preferred(tmp_path: Path, start: Path, loss: PreferenceLoss) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(300))
    run = train(tmp_path, given(start, data, loss=loss))
    figures = made(run).meta["metrics"]
    assert figures["accuracy"] > 0.95 and figures["ranking"] > figures["ranking_before"]
    if loss == "ipo":  # (τ times) 1 / (2τ), however sure the judges are
        assert figures["margin"] == pytest.approx(0.5, abs=0.05)
    assert figures["margin"] > 0 and figures["loss"] < figures["loss_before"]
    assert 0.7 < figures["agreement_with_truth"] < 1.0  # the model followed the judge, who erred in a tenth
    logged = list(read_metrics(run.dir))
    assert [line["step"] for line in logged] == list(range(figures["updates"] + 1))
    assert logged[-1]["dpo/held_out_accuracy"] == pytest.approx(figures["accuracy"])
    assert undocumented(run.dir / "metrics.jsonl") == set()
    assert not (made(run).path / "checkpoint.safetensors").exists()


def test_bad_rows_are_named_and_counted(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["not json", {"messages": [{"role": "user", "content": "hi"}], "chosen": "a"}, labelled(1)[0]]
    long, odd = pairs(1)[0] | {"chosen": "Gladly, of hat. " * 30}, pairs(1)[0] | {"meta": {"truth": "high"}}
    data = write(tmp_path / "pairs.jsonl", [*pairs(5), *bad, long, odd, *pairs(100, seed=1)])
    run = train(tmp_path, given(start, data))
    figures = made(run).meta["metrics"]
    assert figures["rows"] + figures["held_out_rows"] + figures["bad_rows"] == 110 and figures["bad_rows"] == 5
    said = capsys.readouterr()
    assert f"accuracy {figures['accuracy']:.3f} [" in said.out and "ranking" in said.out
    shown = [line for line in said.err.splitlines() if " line " in line and data in line]
    assert [line.split(": ")[0].rpartition(" ")[2] for line in shown] == ["6", "7", "8", "9", "10"]
    for text, line in zip(("not JSON", "rejected", "chosen", "tokens, the context is 64", "truth"), shown, strict=True):
        assert text in line
    assert [(row["file"], row["line"]) for row in bad_rows(run)] == [(data, n) for n in range(6, 11)]
    report = json.loads((made(run).path / "preferences.json").read_text())
    assert report["loss"] == "dpo" and report["pairs"] == figures["held_out_rows"] and report["agreement"]


def test_kto_learns_from_labels_as_well(tmp_path: Path, start: Path) -> None:
    unlabelled = labelled(1)[0] | {"meta": {}}
    mixed = write(tmp_path / "mixed.jsonl", [unlabelled, "[]", *labelled(120), *pairs(120, seed=1)])
    run = train(tmp_path, given(start, mixed, loss="kto"), "mixed")
    assert ["no label" in row["reason"] for row in bad_rows(run)] == [True, False]
    figures = made(run).meta["metrics"]
    assert figures["bad_rows"] == 2 and figures["rows"] + figures["held_out_rows"] == 240
    assert figures["accuracy"] > 0.9
    single = write(tmp_path / "labels.jsonl", labelled(240))
    artifact = made(train(tmp_path, given(start, single, loss="kto"), "labels"))
    figures = artifact.meta["metrics"]
    assert figures["accuracy"] > 0.9 and "ranking" not in figures
    report = json.loads((artifact.path / "preferences.json").read_text())
    assert report["accuracy_good"]["value"] > 0.8 and report["accuracy_bad"]["value"] > 0.8
    with pytest.raises(DunwuError, match="none of the 240 rows can be used"):
        train(tmp_path, given(start, single), "pairs wanted")


@pytest.mark.parametrize(("loss", "moment"), [("dpo", 2), ("dpo", 7), ("kto", 13), ("simpo", 15)])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch, loss: PreferenceLoss, moment: int
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(150))
    config = given(start, data, loss=loss, epochs=2, held_out=0.24)
    whole = train(tmp_path / "whole", config)
    total = made(whole).meta["metrics"]["updates"]
    assert total == 16
    real, started = dpo.train_dpo, []

    def dying(*args: Any) -> Iterator[Any]:
        started.append(args[5])
        for step in real(*args):
            yield step
            if step.n == moment and len(started) == 1:
                raise Killed

    monkeypatch.setattr(dpo, "train_dpo", dying)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config)
    resumed = train(tmp_path / "killed", config)
    assert started == [0, moment // 5 * 5]
    for file in FILES:
        assert (made(whole).path / file).read_bytes() == (made(resumed).path / file).read_bytes(), file
    assert timeless_metrics(whole) == timeless_metrics(resumed)


def test_the_training_that_kill_resume_kills_is_one(tmp_path: Path) -> None:
    """tests/kill_resume.py --recipe dpo does it with SIGKILL, again and again; here its run is whole, and repeats itself."""
    config = load("kill_resume").short_dpo_config()
    first, again = (run_recipe("dpo", tmp_path / name, config) for name in ("first", "again"))
    assert weights(first, "dpo") == weights(again, "dpo") and timeless_metrics(first) == timeless_metrics(again)


def test_adapters_alone_move(tmp_path: Path, start: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(200))
    config = replace(given(start, data, lr=1e-2), lora=LoraConfig(rank=4, alpha=8))
    run = train(tmp_path, config)
    figures = made(run).meta["metrics"]
    assert figures["accuracy"] > 0.9 and figures["trained_parameters"] > 0
    base, model = load_file(start / "model.safetensors"), load_file(made(run).path / "model" / "model.safetensors")
    assert torch.equal(base["model.embed_tokens.weight"], model["model.embed_tokens.weight"])
    assert (made(run).path / "adapter" / "adapter_model.safetensors").exists()
    first = next(line for line in read_metrics(run.dir) if line["step"] == 1)
    assert first["dpo/margin"] == pytest.approx(0, abs=1e-4)  # adapters that do nothing yet are the reference


def test_the_same_data_is_not_learned_twice(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "pairs.jsonl", ["[]", *pairs(60)])
    first = train(tmp_path, given(start, data))
    capsys.readouterr()
    again = train(tmp_path, given(start, data), "again")
    assert made(again).key == made(first).key and f"{data} line 1: " in capsys.readouterr().err
    assert made(train(tmp_path, given(start, data, loss="ipo"), "other")).key != made(first).key


def test_settings_that_cannot_work(tmp_path: Path, start: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(4))
    good = given(start, data)
    for change in ({"model": ""}, {"data": ()}, {"save_every": 0}, {"dpo": replace(TRAINING, beta=0.0)}):
        with pytest.raises(UsageError):
            train(tmp_path, replace(good, **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"lora\.dropout is 0\.1"):
        replace(good, lora=LoraConfig(rank=2, dropout=0.1)).validate()
    with pytest.raises(DunwuError, match="context 5000 is longer than the model's 1024") as caught:
        train(tmp_path, given(start, data, context=5000), "long")
    assert "--dpo.context 1024" in caught.value.cure
    with pytest.raises(DunwuError, match="1 different conversations cannot be split"):
        train(tmp_path, given(start, write(tmp_path / "same.jsonl", pairs(1) * 4)), "same")
    for preset in DPO_PRESETS.values():
        replace(preset, model="x", data=("y",)).validate()


def test_the_command_reads_its_flags(tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "home"))
    data = write(tmp_path / "pairs.jsonl", pairs(40))
    words = ["run", "dpo", "--preset", "tiny", "--model", str(start), "--data", data, "--dpo.loss"]
    assert main([*words, "simpo", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert record["config"]["dpo"]["loss"] == "simpo" and record["status"] == "done"
    assert main([*words, "ppo", "--out", str(tmp_path / "odd")]) == 2
