"""What a user gives, in the forms it comes in: models in several files, problems in a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import run_recipe, save_folder, say_tokenizer, stage, tiny_model, weights

from dunwu.recipes import grpo
from dunwu.recipes.distill_config import DistillRunConfig
from dunwu.recipes.grpo_config import GrpoRunConfig
from dunwu.recipes.rm_config import RmRunConfig
from dunwu.recipes.sft_config import SftRunConfig
from dunwu.recipes.stages import data_digest, file_digest, model_digest
from dunwu.train.config import SftConfig
from dunwu.train.distill_config import DistillConfig

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file."""
    encoder = say_tokenizer()
    return save_folder(tmp_path_factory.mktemp("models") / "whole", tiny_model(encoder), encoder)


@pytest.fixture(scope="module")
def sharded(whole: Path) -> Path:
    """The same model in two files and an index, as large ones come."""
    folder = whole.parent / "sharded"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(whole / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_every_file_of_a_model_folder_counts(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sharded, folder)
    (folder / "README.md").write_text("not read")
    before = model_digest(folder)
    assert {INDEX, "config.json", "tokenizer.json", "model-00001-of-00002.safetensors"} <= before.keys()
    assert "README.md" not in before
    last = folder / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    after = model_digest(folder)
    assert [name for name in before if before[name] != after[name]] == [last.name]
    assert model_digest(folder, weights=False) == {n: d for n, d in after.items() if n.endswith(".json")}


@pytest.mark.parametrize("recipe", ["sft", "rm"])
def test_a_model_in_several_files_learns_what_it_learns_in_one(
    whole: Path, sharded: Path, tmp_path: Path, recipe: str
) -> None:
    data = tmp_path / "rows.jsonl"
    replies = [{"role": "assistant", "content": text} for text in ("here is 1", "say 2")]
    asked = [[{"role": "user", "content": f"say {n}"}] for n in range(16)]
    rows: list[Any] = [{"messages": [*turns, replies[0]]} for turns in asked]
    config: Any = SftRunConfig(sft=SftConfig(epochs=1, context=64, batch_tokens=400, warmup=0), precision="fp32")
    if recipe == "rm":
        rows = [{"messages": turns, "chosen": replies[0], "rejected": replies[1]} for turns in asked]
        config = RmRunConfig(rows=8, context=64, held_out=0.2, length_balance=False)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(config, data=(str(data),), device="cpu")
    runs = [run_recipe(recipe, tmp_path, replace(config, model=str(f)), f.name) for f in (whole, sharded)]
    assert stage(runs[0], recipe).path != stage(runs[1], recipe).path
    assert weights(runs[0], recipe) == weights(runs[1], recipe) != (whole / "model.safetensors").read_bytes()


def test_data_is_a_file_or_a_folder_of_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("1")
    two.write_text("2")
    (tmp_path / "nested").mkdir()
    assert data_digest("") == ""
    assert data_digest(str(one)) == file_digest(str(one))
    assert data_digest(str(tmp_path)) == {"one.jsonl": file_digest(str(one)), "two.jsonl": file_digest(str(two))}


def test_problems_in_a_folder_are_distilled_on_and_decide_the_stage(whole: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems"
    problems.mkdir()
    for split in ("test", "train"):
        lines = [json.dumps({"question": f"say {split} {n}", "gold": str(n)}) + "\n" for n in range(60)]
        (problems / f"{split}.jsonl").write_text("".join(lines))
    config = DistillRunConfig(
        student=str(whole),
        teacher=str(whole),
        method="on-policy",
        task="gsm8k",
        task_data=str(problems),
        distill=DistillConfig(steps=1, problems=2, group_size=1, max_tokens=4, warmup=0),
        held_out_problems=2,
        device="cpu",
    )
    keys = []
    for name in ("first", "second"):
        keys.append(stage(run_recipe("distill", tmp_path, config, name), "distill").key)
        (problems / "train.jsonl").write_text("".join(lines[:50]))
    assert keys[0] != keys[1]
    own = GrpoRunConfig(model=str(whole), task="gsm8k", data=str(problems))
    assert grpo.stage_key(own, whole, 0)["task"][-1] == data_digest(str(problems))
