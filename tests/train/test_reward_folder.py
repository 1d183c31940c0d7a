"""Folders of reward models of every class: transformers scores as we do, and damage is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.hf import save_model
from dunwu.train.reward_model import Meaning, RewardModel, load_reward_model, save_reward_model
from dunwu.types import DunwuError
from tests.model.shapes import SHAPES, random_model

CLASSES = {
    "qwen2": "Qwen2", "qwen2-untied": "Qwen2", "llama": "Llama", "llama-wide-heads": "Llama", "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe", "deepseek_v3": "DeepseekV3", "deepseek_v3-dense": "DeepseekV3",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)


@pytest.mark.parametrize("name", list(SHAPES))
def test_transformers_scores_as_we_do(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    shape = replace(SHAPES[name], vocab_size=288, mtp_depth=1 if SHAPES[name].mla else 0)
    model = RewardModel.from_model(random_model(shape), seed=1)
    assert model.config.mtp_depth == 0
    save_reward_model(model, tmp_path, tokenizer, Meaning("pointwise", mean=2.0))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == f"{CLASSES[name]}ForSequenceClassification"
    ids = torch.randint(1, 90, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.eval()(ids, torch.tensor([19, 19]))
        wanted = torch.stack([theirs(row[None]).logits[0, 0] for row in ids])
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    loaded, meaning = load_reward_model(tmp_path)
    assert meaning == Meaning("pointwise", mean=2.0)
    with torch.no_grad():
        assert torch.equal(loaded(ids, torch.tensor([19, 19])), ours)


def test_damage_is_one_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    language_model = random_model(SHAPES["llama"])
    save_model(language_model, tmp_path / "lm", end_id=0)
    with pytest.raises(DunwuError, match=r"no head score\.weight"):
        load_reward_model(tmp_path / "lm")
    save_reward_model(RewardModel.from_model(language_model, seed=1), tmp_path / "rm", tokenizer, Meaning())
    record = json.loads((tmp_path / "rm" / "config.json").read_text())
    (tmp_path / "rm" / "config.json").write_text(json.dumps(record | {"num_hidden_layers": 4}))
    with pytest.raises(DunwuError, match=r"tensor 'model\.layers\.3.* are missing"):
        load_reward_model(tmp_path / "rm")
    (tmp_path / "rm" / "config.json").write_text(json.dumps(record))
    weights = tmp_path / "rm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DunwuError, match="truncated: tensor"):
        load_reward_model(tmp_path / "rm")
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(DunwuError, match="a pickle"):
        load_reward_model(tmp_path / "rm")
