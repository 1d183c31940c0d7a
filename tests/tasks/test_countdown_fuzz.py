"""A small share of `tests/fuzz_countdown.py`, and proof that its oracle can tell a broken verifier from a sound one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dunwu.tasks import countdown, formats
from dunwu.tasks.expression import evaluate


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "fuzz_countdown.py"
    spec = importlib.util.spec_from_file_location("fuzz_countdown", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_verifier_equals_oracle(script: ModuleType) -> None:
    counts = script.fuzz(10_000, seed=1)
    assert counts["ok"] + counts["unparsable"] == 10_000
    assert min(counts["accuracy 1"], counts["accuracy 1 without format"], counts["unparsable"]) > 100  # it reaches all


def test_the_oracle_by_hand(script: ModuleType) -> None:
    assert script.oracle([3, 3, 8, 8], 24, "<think></think><answer>8/(3-8/3)</answer>") == (1.0, 1.0)
    assert script.oracle([3, 3, 8, 8], 24, "<answer>8/(3-8/3)</answer>") == (1.0, 0.0)
    assert script.oracle([3, 8], 24, "<think></think><answer>3*8=24</answer>") == (0.0, 1.0)


def _any_numbers(found: Any, numbers: Any, target: int) -> str | None:
    return None if found.value == target else "wrong"


def _evaluate_with_spaces(text: str) -> Any:
    return evaluate(text.replace("\u3000", " ").replace("=24", ""))


def _first_answer(text: str, think_opened: bool = False) -> formats.Parsed:
    parsed = formats.split_completion(text, think_opened)
    _, tag, rest = text.partition("<answer>")
    return parsed._replace(answer=rest.partition("</answer>")[0] if tag else None)


@pytest.mark.parametrize(
    ("name", "broken"),
    [("_wrong", _any_numbers), ("evaluate", _evaluate_with_spaces), ("split_completion", _first_answer)],
)
def test_a_broken_verifier_is_caught(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, broken: object
) -> None:
    monkeypatch.setattr(countdown, name, broken)
    with pytest.raises(AssertionError, match="the oracle says"):
        script.fuzz(10_000, seed=1)
