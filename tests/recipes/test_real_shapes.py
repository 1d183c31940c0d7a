"""What real_shapes.py does with a gigabyte, with small shapes of the same three classes: GRPO with LoRA and whole, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dunwu.data.tokenizer import load_tokenizer
from dunwu.model.config import MlaShape, ModelConfig, MoeShape
from dunwu.model.hf import from_pretrained
from dunwu.store import default_home
from tests.load_memory import DEEPSEEK, LLAMA, QWEN
from tests.real_shapes import again, checkpoint, learn, unlearned

NARROW = {"vocab_size": 1000, "hidden_size": 64, "num_layers": 2, "intermediate_size": 128}
EXPERTS = MoeShape(8, 2, 32, shared=1, first_dense=1, groups=4, top_groups=2, scale=2.5)
SHAPES: dict[str, ModelConfig] = {
    "qwen2": replace(QWEN, **NARROW, num_heads=4),  # type: ignore[arg-type]
    "llama": replace(LLAMA, **NARROW, num_heads=4, num_kv_heads=2),  # type: ignore[arg-type]
    "deepseek_v3": replace(DEEPSEEK, **NARROW, num_heads=2, mla=MlaShape(32, 16, 16, 16, 24), moe=EXPERTS),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / request.param
    checkpoint(SHAPES[request.param], folder)
    return folder


@pytest.mark.parametrize("rank", [16, 0])
def test_a_checkpoint_learns_is_saved_and_loads(
    folder: Path, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = default_home() / "native"
    kernels.mkdir(parents=True, exist_ok=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "native").symlink_to(kernels)  # nothing is compiled again
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    step = learn(folder, tmp_path / "run", rank)
    found = again(folder, tmp_path / "run")
    assert ("adapted" in found) == bool(rank)
    assert unlearned("", step, found) == []
    assert step["trained_tokens"] > 100
    assert found.get("merging", 0.0) < 0.1 * found["spread"]


def test_the_model_may_have_more_ids_than_the_tokenizer(folder: Path) -> None:
    """Real checkpoints pad their vocabulary. An id that the tokenizer lacks can be drawn, and has no text."""
    tokenizer, model = load_tokenizer(folder), from_pretrained(folder)
    assert model.config.model_type == folder.name
    assert tokenizer.vocab_size < model.config.vocab_size == 1000
    assert tokenizer.decode([999, tokenizer.encode("7")[0], 998]) == "7"
