"""What the tests of the recipes share: tiny models, a recipe run in a folder, and what a run has left there."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.log import Run, read_json, read_metrics
from dunwu.model.config import model_preset
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.recipes import get_recipe
from dunwu.store import Artifact, Store

TESTS = Path(__file__).parents[1]
TIMED = ("time", "seconds", "per_second")
"""How the names of the figures end that differ from run to run."""


class Killed(BaseException):
    """Ends a run where SIGKILL would."""


def load(name: str) -> ModuleType:
    """A module of the tests folder, such as kill_resume."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


undocumented = load("test_metrics_doc").undocumented


# ---- models


def say_tokenizer() -> Tokenizer:
    """Knows the words of "say 3" and "here is 3"."""
    return train_from_texts([f"user assistant say {n} here is {n}" for n in range(9)], 330)


def tiny_model(tokenizer: Tokenizer, seed: int = 0, spread: float = 0.02) -> Transformer:
    """A model that knows nothing."""
    model = Transformer(replace(model_preset("tiny", tokenizer.vocab_size), initializer_range=spread))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def save_folder(path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """A model folder as a user has one."""
    save_model(model, path, tokenizer.end_id)
    tokenizer.save(path)
    return path


# ---- runs


def run_recipe(recipe: str, home: Path, config: Any, name: str = "run", seed: int = 0, store: str = "store") -> Run:
    """Run it in the folder `name`, with the store beside it, as `dunwu run` does."""
    run = Run.open(home / name, recipe, config, seed, Store(home / store))
    with run:
        get_recipe(recipe).load()(run, config)
    return run


def stage(run: Run, name: str) -> Artifact:
    """What a stage of the run has made."""
    artifact = run.store.find(read_json(run.dir / "stages" / f"{name}.json")["key"])
    assert artifact is not None
    return artifact


def status(run: Run, name: str) -> str:
    """ "done" or "reused"."""
    return str(read_json(run.dir / "stages" / f"{name}.json")["status"])


def weights(run: Run, name: str) -> bytes:
    """The weights a stage has made, as they lie on the disk."""
    return (stage(run, name).path / "model" / "model.safetensors").read_bytes()


def bad_rows(run: Run) -> list[dict[str, Any]]:
    """The rows the run could not use."""
    return [json.loads(line) for line in (run.dir / "bad_rows.jsonl").read_text("utf-8").splitlines()]


def timeless_metrics(run: Run) -> list[dict[str, Any]]:
    """Every logged line without what it says of time."""
    return [{k: v for k, v in line.items() if not k.endswith(TIMED)} for line in read_metrics(run.dir)]
