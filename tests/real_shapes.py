"""Do checkpoints of real shapes go all the way: loaded, trained by GRPO with LoRA and whole, saved, loaded again?

    python -m tests.real_shapes [--folder DIR] [--only NAME …]

The shapes of `load_memory.py`, with random weights in bf16 and a small tokenizer, whose ids are the first few of the
model's. Every phase is a process of its own:

    load      peak of resident memory over the weights
    lora      `dunwu run grpo --lora.rank 16`, one step; the reward is a hash of the ids, so groups always differ
    full      the same with all weights
    … again   the artifact's model, loaded: its logits must be those of the model that was trained, bit for bit; with
              LoRA also those of base and adapter

A phase begins only with 3 GB of memory to spare; where a full step of all layers has no room, it takes as many layers as
have, and says so. Prints one JSON object: seconds and peak MB of every phase, what was learned, how far logits went;
exit code 1 if something does not hold, and `failed` says what. Files are written below DIR and removed. Not collected
by pytest, which goes the same way with small shapes (`recipes/test_real_shapes.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from dunwu.model.config import ModelConfig
from tests.load_memory import LIMIT, SHAPES, measured, status, write

SPARE = 3_000_000_000
"""Bytes of memory that a phase leaves to others."""
BYTES = {"write": 3, "load": 3, "lora": 4, "full": 24, "again": 4}
"""Of memory a weight, at most. A full step: weights, their copy and gradient in bf16, master, moments and gradient in
fp32, and what the allocator keeps."""
BASE = 1_500_000_000
"""Bytes beside them: libraries, logits, activations."""
RANK = 16
STORE, LOGITS = "store", "logits.safetensors"
REWARD = """\
def residue(completion_ids, **columns):
    return [sum(ids) % 97 / 97 for ids in completion_ids]
"""
STEP = (
    "--task countdown --grpo.steps 1 --grpo.problems 2 --grpo.group_size 4 --grpo.max_tokens 24 --grpo.lr 1e-3 "
    "--grpo.warmup 1 --held_out 2 --held_out_every 1 --device cpu"
)


# ---- phases: each also alone, in a process of its own -------------------------------------------


def checkpoint(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """A model folder with a tokenizer, and a file of rewards beside them."""
    from dunwu.data.tokenizer import train_from_texts
    from dunwu.tasks import get_task

    write(config, folder)
    task = get_task("countdown")
    train_from_texts((task.problem("train", 0, n).prompt for n in range(200)), 512).save(folder)
    (folder / "reward.py").write_text(REWARD)
    return {}


def learn(folder: Path, out: Path, rank: int) -> dict[str, Any]:
    """One step of `dunwu run grpo` in the run folder `out`, which also gets logits of what was trained and of what was saved."""
    from safetensors.torch import save_file

    from dunwu.cli import main
    from dunwu.log import read_metrics
    from dunwu.recipes import grpo
    from dunwu.recipes.reinforce import save_learner

    seen = {}

    def keep(learner: Any, *rest: Any) -> None:
        seen["trained"] = logits(learner.policy)
        save_learner(learner, *rest)
        seen["saved"] = logits(learner.policy)  # with its adapters merged

    words = ["run", "grpo", "--model", str(folder), "--out", str(out), *STEP.split(), "--lora.rank", str(rank)]
    with mock.patch.object(grpo, "save_learner", keep):
        code = main([*words, "--reward", f"{folder / 'reward.py'}:residue"])
    if code:
        raise SystemExit(code)
    save_file(seen, out / LOGITS)
    step = next(line for line in read_metrics(out) if line["stage"] == "grpo")
    names = ("trained_tokens", "moved_tensors", "sampler_mismatch", "grad_norm", "reward")
    return {"step_seconds": round(step["grpo/seconds"], 1), **{name: step[f"grpo/{name}"] for name in names}}


def again(folder: Path, out: Path) -> dict[str, Any]:
    """What `learn` has made, loaded: largest differences of logits."""
    from safetensors.torch import load_file

    from dunwu.model.hf import from_pretrained
    from dunwu.model.lora_files import load_adapted
    from dunwu.store import resolve_folder

    seen, made = load_file(out / LOGITS), resolve_folder(f"{out}:grpo")
    saved = seen["saved"]
    found = {"reloaded": _gap(logits(from_pretrained(made / "model")), saved)}
    if (made / "adapter").is_dir():
        found["adapted"] = _gap(logits(load_adapted(made / "adapter")), saved)
        found["merging"] = _gap(seen["trained"], saved)
    return found | {"learned": _gap(logits(from_pretrained(folder)), saved), "spread": float(saved.std())}


def _gap(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


def logits(model: Any) -> Any:
    """(2, 16, V) float32, of ids from all over the vocabulary."""
    import torch

    ids = torch.arange(32).view(2, 16) * 2_654_435_761 % model.config.vocab_size
    with torch.inference_mode():
        return model.eval()(ids).float()


# ---- the way ------------------------------------------------------------------------------------


def go(config: ModelConfig, home: Path) -> dict[str, Any]:
    """Every phase for one shape, where there is room; what each found."""
    whole = home / "whole"
    found: dict[str, Any] = {"parameters": weights_of(config)}
    found["write"] = alone("write", config, home, str(whole), as_json(config))
    require("load", config)
    weights, peak = measured(whole, "bfloat16")
    found["load"] = {"weights_mb": mb(weights), "peak_mb": mb(peak), "ratio": round(peak / weights, 3)}
    found |= way("lora", config, whole, home)
    fits = fitting(config)
    if fits.num_layers < config.num_layers:
        shutil.rmtree(whole)
        alone("write", fits, home, str(whole), as_json(fits))
        found["full_layers"] = f"{fits.num_layers} of {config.num_layers}: memory has no room for a full step of more"
    return found | way("full", fits, whole, home)


def way(kind: str, config: ModelConfig, folder: Path, home: Path) -> dict[str, Any]:
    """A step, and its artifact loaded."""
    out = home / kind
    found = {kind: alone(kind, config, home, str(folder), str(out), str(RANK if kind == "lora" else 0))}
    found[f"{kind} again"] = alone("again", config, home, str(folder), str(out))
    shutil.rmtree(home / STORE / "artifacts")
    return found


def complaints(found: dict[str, Any]) -> list[str]:
    """What does not hold; [] if all does."""
    wrong = [f"loading takes {found['load']['ratio']} of the weights"] if found["load"]["ratio"] > LIMIT else []
    return wrong + [line for kind in ("lora", "full") for line in unlearned(kind, found[kind], found[f"{kind} again"])]


def unlearned(kind: str, step: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What does not hold of one step and its artifact."""
    holds = {
        "no token was trained": step["trained_tokens"] > 0,
        "no tensor moved": step["moved_tensors"] > 0,
        "logits are as they were": after["learned"] > 0,
        "the loaded model differs from the saved one": after["reloaded"] == 0,
        "base and adapter differ from the merged model": after.get("adapted", 0.0) == 0,
    }
    return [f"{kind}: {what}" for what, held in holds.items() if not held]


def alone(name: str, config: ModelConfig, home: Path, *words: str) -> dict[str, Any]:
    """A phase in a process of its own; what it found, with seconds and peak."""
    require(name, config)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tests.real_shapes", "--phase", name, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "DUNWU_HOME": str(home / STORE)},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(time.perf_counter() - began, 1), **found}


PHASES: dict[str, Callable[..., dict[str, Any]]] = {
    "write": lambda folder, config: checkpoint(from_json(config), Path(folder)),
    "lora": lambda folder, out, rank: learn(Path(folder), Path(out), int(rank)),
    "full": lambda folder, out, rank: learn(Path(folder), Path(out), int(rank)),
    "again": lambda folder, out: again(Path(folder), Path(out)),
}


# ---- memory -------------------------------------------------------------------------------------


def weights_of(config: ModelConfig) -> int:
    """All weights, the module of `mtp_depth` included, which is about a layer."""
    layer = config.num_parameters - replace(config, num_layers=config.num_layers - 1).num_parameters
    return config.num_parameters + config.mtp_depth * layer


def need(phase: str, config: ModelConfig) -> int:
    """Bytes of memory that a phase takes at most."""
    return BASE + BYTES[phase] * weights_of(config)


def require(phase: str, config: ModelConfig) -> None:
    """End with a line where memory has no room for a phase."""
    if need(phase, config) + SPARE > available():
        gb = [f"{size / 1e9:.1f} GB" for size in (need(phase, config), SPARE, available())]
        raise SystemExit(f"{phase} needs {gb[0]} and {gb[1]} to spare, {gb[2]} are available: free some memory")


def fitting(config: ModelConfig) -> ModelConfig:
    """The config with as many of its layers as a full step has room for."""
    layers = config.num_layers
    while layers > 2 and need("full", replace(config, num_layers=layers)) + SPARE > available():
        layers -= 1
    return replace(config, num_layers=layers)


def available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def mb(size: int) -> float:
    return round(size / 1e6, 1)


def as_json(config: ModelConfig) -> str:
    """Of a shape here: its name and how many of its layers."""
    name = next(name for name, shape in SHAPES.items() if replace(shape, num_layers=config.num_layers) == config)
    return json.dumps([name, config.num_layers])


def from_json(text: str) -> ModelConfig:
    name, layers = json.loads(text)
    return replace(SHAPES[name], num_layers=layers)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--phase", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        found = PHASES[args.phase[0]](*args.phase[1:])
        print(json.dumps(found | {"peak_mb": mb(status("VmHWM"))}))
        return 0
    result: dict[str, Any] = {}
    for name in args.only:
        with tempfile.TemporaryDirectory(dir=args.folder) as home:
            result[name] = go(SHAPES[name], Path(home))
    result["failed"] = [f"{name}, {line}" for name, found in result.items() for line in complaints(found)]
    print(json.dumps(result, indent=2))
    return int(bool(result["failed"]))


if __name__ == "__main__":
    sys.exit(main())
