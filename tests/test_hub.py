"""Models by name: what counts as one, what is asked of the hub, and what is said when it gives nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dunwu.hub import FILES, from_hub
from dunwu.store import resolve_model
from dunwu.types import DunwuError


def test_a_name_is_fetched_without_code_or_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.extend((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert resolve_model("some-org/some-model") == tmp_path
    assert asked == ["some-org/some-model", list(FILES)]
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in FILES)


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == Path("org/model")


def test_without_the_extra_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DunwuError, match=r"pip install 'dunwu\[hf\]'"):
        from_hub("org/model")


def test_a_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(DunwuError, match="no route to the hub") as caught:
        from_hub("org/model")
    assert "\n" not in str(caught.value)
