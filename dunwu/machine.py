"""Facts about where a run happens: processor, memory, library versions, git commit. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from dunwu import __version__

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "zstandard")


def versions() -> dict[str, str | None]:
    """Versions of Python, dunwu and the libraries that decide a run's numbers; None if absent."""
    found: dict[str, str | None] = {"python": platform.python_version(), "dunwu": __version__}
    return found | {name: library_version(name) for name in LIBRARIES}


@functools.cache
def library_version(name: str) -> str | None:
    """The installed version, or None; does not import the library."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, str | int | float]:
    """Processor, usable cores, memory in GiB, threads torch computes with, operating system."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "threads": threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def cpu_name() -> str:
    """The processor's own name for itself."""
    name = _cpuinfo().get("model name")
    if name is None and sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The instruction sets Linux reports (x86 `flags`, Arm `Features`); empty elsewhere."""
    facts = _cpuinfo()
    return set((facts.get("flags") or facts.get("Features") or "").split())


def cores() -> int:
    """Cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Threads torch computes with (what it will use, if it is not loaded yet)."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() else cores()


def memory_gib() -> float:
    """Memory this process may use, in GiB: the machine's, or its container's if that is less; 0 if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0.0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        total = min(total, int(limit))
    except (OSError, ValueError):
        pass
    return round(total / 2**30, 1)


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout dunwu runs from, "-dirty" added if tracked files differ; None if installed. Asked once
    per process: it is the code that was loaded."""
    here = Path(__file__).resolve().parent
    if _output("git", "-C", str(here), "ls-files", "types.py") != "types.py":
        return None
    commit = _output("git", "-C", str(here), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo."""
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def die_with_parent() -> None:
    """This process ends when its parent does, even by SIGKILL; on Linux only, elsewhere nothing happens."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def return_memory() -> None:
    """Give freed memory back to the system: glibc keeps the holes between what is in use, gigabytes after a long stage."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc has no such function
            ctypes.CDLL(None).malloc_trim(0)
