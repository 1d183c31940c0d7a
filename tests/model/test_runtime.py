"""What is said about the way models are computed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dunwu.model.runtime import resolve_device
from dunwu.native import build
from dunwu.types import UsageError


@pytest.mark.parametrize("environment", [{}, {"DUNWU_NATIVE": "0"}], ids=["as it is", "switched off"])
def test_the_path_is_said_once_and_is_the_one_taken(environment: dict[str, str], tmp_path: Path) -> None:
    program = """
from dunwu.model.config import ModelConfig
from dunwu.model.runtime import prepare_torch
from dunwu.model.transformer import Transformer
prepare_torch()
for _ in range(2):
    prepare_torch("cpu")
print(Transformer(ModelConfig(vocab_size=64, hidden_size=32, num_heads=2, num_layers=1)).native)
"""
    home = os.environ.get("DUNWU_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"DUNWU_HOME": home, "OMP_NUM_THREADS": "2"} | environment,
    )
    kernels = done.stdout.strip() == "True"
    assert kernels == (not environment and build.library("train") is not None)
    way = "C kernels where the model allows" if kernels else "plain torch"
    assert done.stderr.count(f"computing on cpu: 2 threads, {way}\n") == 1 and done.stderr.count("computing") == 1


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UsageError, match="device 'tpu' is not available"):
        resolve_device("tpu")


def test_what_matrix_products_keep_is_bounded_and_the_users_bound_stays() -> None:
    told = "import os; from dunwu.model.runtime import prepare_torch; prepare_torch(); "
    told += "print(*(os.environ[name] for name in ('LRU_CACHE_CAPACITY', 'ONEDNN_PRIMITIVE_CACHE_CAPACITY')))"
    names = {"LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for given, wanted in ((bare, "64 64"), (bare | {"LRU_CACHE_CAPACITY": "7"}, "7 64")):
        done = subprocess.run([sys.executable, "-c", told], env=given, capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[0] == wanted
