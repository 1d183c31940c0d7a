"""A checkpoint is whole or absent, and comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dunwu.train import checkpoint
from dunwu.train.checkpoint import NAME, load_checkpoint, save_checkpoint
from dunwu.types import DunwuError


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    tensors = {
        "master": torch.tensor([1.0, -0.0, float("inf"), 1e-45]),
        "half": torch.randn(3, 2).bfloat16(),
        "rows": torch.arange(6).view(2, 3).T,
    }
    state = {"step": 7, "version": 9, "seconds": 0.1, "note": "中文"}
    save_checkpoint(tmp_path, tensors, state)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == state
    assert found[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[0][name].dtype == tensor.dtype and torch.equal(found[0][name], tensor)
    assert torch.signbit(found[0]["master"][1])  # -0.0 stays -0.0


def test_the_new_replaces_the_old(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, {"w": torch.full((4,), float(step))}, {"step": step})
    found = load_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 2 and float(found[0]["w"][0]) == 2.0
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_a_kill_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {"w": torch.ones(4)}, {"step": 1})

    def torn(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"w": torch.zeros(4)}, {"step": 2})
    found = load_checkpoint(tmp_path)
    assert found is not None and found[1] == {"step": 1} and torch.equal(found[0]["w"], torch.ones(4))


@pytest.mark.parametrize("damage", ["cut", "garbage", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, {"w": torch.ones(100)}, {"step": 1})
    path = tmp_path / NAME
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 200)
    else:  # somebody else's safetensors file
        checkpoint.save_file({"w": torch.ones(3)}, path)
    with pytest.raises(DunwuError, match=f"{NAME} is damaged.*delete it"):
        load_checkpoint(tmp_path)
