"""Every benchmark runs, tiny, and says what it must; the speed itself is no test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dunwu.bench import BENCHMARKS
from dunwu.bench.pairs import compare
from dunwu.bench.train import training_flops
from dunwu.cli import main
from dunwu.model.config import ModelConfig


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_in_small(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--quick", "--pairs", "1", "--no-peers", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == name and result["rows"] and result["missing"] == {}
    assert all(row["ours"] > 0 for row in result["rows"])
    assert set(result["limits"]["gemm_gflops"]) == {"float32", "bfloat16"} and result["limits"]["bandwidth_gb_s"] > 0


@pytest.mark.parametrize("name", ["rollout", "train", "grpo"])
def test_the_peers_in_small(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("trl", "transformers", "accelerate", "xllamacpp", "gguf"):
        pytest.importorskip(module, reason="the extra [bench] is not installed")
    assert main(["bench", name, "--quick", "--pairs", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["missing"] == {} and any("ratio" in row for row in result["rows"])


def test_no_pairs_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "verify", "--pairs", "0"]) == 2
    assert "--pairs 0" in capsys.readouterr().err


def test_the_table_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("trl", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["bench", "grpo", "--quick", "--pairs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "matrix products" in shown and "steps/s" in shown
    assert "not measured: TRL" in shown and "pip install 'dunwu[bench]'" in shown


def test_an_unknown_benchmark_names_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 2
    assert "rollout, train, grpo" in capsys.readouterr().err


def test_a_comparison_takes_turns_and_gives_the_median_ratio() -> None:
    turns: list[str] = []

    def rates(name: str, values: list[float]) -> Any:
        def next_one() -> float:
            turns.append(name)
            return values[turns.count(name) - 1]

        return next_one

    # The first of each warms up.
    found = compare(rates("ours", [99.0, 8.0, 6.0, 30.0]), rates("peer", [99.0, 2.0, 3.0, 3.0]), 3)
    assert turns == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert found == {"ours": 8.0, "peer": 3.0, "ratio": 4.0, "ratio_low": 2.0, "ratio_high": 10.0}


def test_training_flops_by_hand() -> None:
    shape = ModelConfig(vocab_size=10, hidden_size=4, num_layers=1, num_heads=1, intermediate_size=8)
    matrices = 4 * 4 * 4 + 3 * 4 * 8  # q, k, v, o; gate, up, down
    vectors = 3 * 4 + 2 * 4 + 4  # biases, two norms, the last norm
    attention = 6 * 4 * 20  # scores and sums over half of 20 tokens: 2 · 2 · 10 · 4, three times
    assert training_flops(shape, 20) == 6 * (matrices + vectors + 10 * 4) + attention
