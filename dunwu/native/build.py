"""Compile a C file of this folder for this processor, once, and load it.

The compiler is `CC`, or the first of cc, gcc and clang. Libraries lie under DUNWU_HOME/native, named after a hash of
sources, flags, compiler and processor. Without a compiler `library` returns None and says why once; with DUNWU_NATIVE=0 it returns
None. Everything works without, several times slower.

Not covered: Windows.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dunwu import machine
from dunwu.disk import disk_errors
from dunwu.store import default_home
from dunwu.types import DunwuError

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-shared")
"""Not -ffast-math: sums keep their order, so the same tokens come out whatever the batch and the number of threads."""
TUNING = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-mcpu=native",), ())
"""The first of these that the compiler understands. Apple's has no OpenMP: training kernels then use one thread."""
BF16 = "avx512_bf16"
"""The processor's flag for products of bfloat16."""


@functools.cache
def library(name: str, bf16: bool = False) -> ctypes.CDLL | None:
    """`NAME.c`, compiled for float32 or for bfloat16, loaded; None if that cannot be had here (said once)."""
    if os.environ.get("DUNWU_NATIVE") == "0" or (bf16 and BF16 not in machine.cpu_flags()):
        return None
    command = compiler()
    if command is None:
        _say("no C compiler found: sampling and training run several times slower; install gcc or clang, or set CC")
        return None
    try:
        return ctypes.CDLL(str(_compiled(name, bf16, command)))
    except (OSError, DunwuError, subprocess.SubprocessError) as error:
        _say(f"{name}.c cannot be used ({_short(error)}): plain torch instead, several times slower")
        return None


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The command of the C compiler, or None."""
    chosen = os.environ.get("CC")
    if chosen:
        words = tuple(shlex.split(chosen))
        return words if words and shutil.which(words[0]) else None
    return next(((name,) for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def _compiled(name: str, bf16: bool, command: tuple[str, ...]) -> Path:
    defines = ("-DDUNWU_BF16",) if bf16 else ()
    version = subprocess.run([*command, "--version"], capture_output=True, timeout=60).stdout
    parts = [name.encode(), version, " ".join((*command, *FLAGS, *defines)).encode()]
    parts += [machine.cpu_name().encode(), " ".join(sorted(machine.cpu_flags())).encode()]
    parts += [file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]"))]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    target = default_home() / "native" / f"{name}-{digest}.so"
    if not target.exists():
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = Path(folder) / "made.so"
                _compile([*command, *FLAGS, *defines], SOURCES / f"{name}.c", made)
                os.replace(made, target)
    return target


def _compile(command: list[str], source: Path, target: Path) -> None:
    for tuning in TUNING:
        line = [*command, *tuning, str(source), "-o", str(target), "-lm", "-lpthread"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            return
    raise DunwuError(f"{command[0]} failed: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}")


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]


@functools.cache
def _say(text: str) -> None:
    print(f"dunwu: {text}", file=sys.stderr)
