"""What store and log need of a disk: locks, writes that are whole or absent, errors with a cure, plain JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dunwu.types import DunwuError

if sys.platform != "win32":
    import fcntl

_FULL = (errno.ENOSPC, errno.EDQUOT)


class LockHeld(DunwuError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive_lock(path: Path, what: str = "", wait: bool = True) -> Iterator[None]:
    """Hold `path` locked; the kernel frees it when the process ends, however it ends.

    Raises:
        LockHeld: if another holder exists and `wait` is false; otherwise says so once and waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 32).decode("ascii", "replace").strip() or "?"
                if not wait:
                    raise LockHeld(f"{what or path} is in use by process {holder}", "wait for it to end") from None
                print(f"dunwu: {what or path} is held by process {holder}; waiting for it", file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new, never a part; on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to work in, which takes the place of `out` when the block ends well, and is gone when it does not.

    A killed process leaves it beside `out`: call `mend_folder` before you look at `out`.

    Raises:
        DunwuError: `out` cannot be written, or the disk is full.
    """
    out = out.resolve()
    work, old = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    with disk_errors(out):
        try:
            with _place_errors(out):
                work.mkdir(parents=True)
            yield work
            for file in work.iterdir():
                fsync(file)
            if out.exists():
                os.replace(out, old)
            os.replace(work, out)
            fsync(out.parent)
        except BaseException:
            if old.exists() and not out.exists():
                os.replace(old, out)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)


def mend_folder(out: Path) -> None:
    """Remove what killed processes left of a `whole_folder`, and put back what they had moved away to make room.

    Raises:
        DunwuError: the place cannot be read.
    """
    out = out.resolve()
    left = re.compile(rf"\.{re.escape(out.name)}\.(\d+)\.(new|old)")
    with _place_errors(out):
        beside = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
        for entry in beside:
            found = left.fullmatch(entry.name)
            # Our own number is one that was given out again: whoever had it before is gone.
            if not found or (int(found[1]) != os.getpid() and is_alive(int(found[1]))):
                continue
            if found[2] == "old" and not out.exists():
                os.replace(entry, out)
            else:
                shutil.rmtree(entry, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process runs under this number; on Windows, where asking would end it, it is taken to."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _place_errors(out: Path) -> Iterator[None]:
    """What keeps `out` from being made becomes a DunwuError that names it; a full disk passes."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise DunwuError(f"{out} cannot be written: {error.strerror}", "name a folder you can write to") from error


def remove_temporaries(folder: Path) -> None:
    """Remove what killed calls of `write_atomically` and of safetensors' `save_file` (`.tmp` and six characters) left
    anywhere below a folder that nobody else writes."""
    for pattern in (".*.tmp", ".tmp??????"):
        for file in folder.rglob(pattern):
            file.unlink(missing_ok=True)


def explain_os_error(error: OSError, path: Path | str | None = None) -> DunwuError | None:
    """The one line, with its cure, for a full disk or a missing permission; None for other errors."""
    where = error.filename or path or "the disk"
    if error.errno in _FULL:
        cure = "free some space, or set DUNWU_HOME and --out to another disk; the same command resumes"
        return DunwuError(f"no space left while writing {where}", cure)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DunwuError(f"no permission for {where}", "choose a place you may write with DUNWU_HOME or --out")
    return None


@contextlib.contextmanager
def disk_errors(path: Path | str | None = None) -> Iterator[None]:
    """Full disk and missing permission become a DunwuError; other errors pass."""
    try:
        yield
    except OSError as error:
        explained = explain_os_error(error, path)
        if explained is None:
            raise
        raise explained from error


def fsync(path: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def later(default: Any) -> Any:
    """A dataclass field that came after results were recorded: `canonical_json` names it only where it is not `default`,
    which must be what was done before. So artifacts made earlier are still found.

    Example:
        >>> Settings = dataclasses.make_dataclass("Settings", [("a", int, 1), ("b", int, later(0))])
        >>> canonical_json(Settings()), canonical_json(Settings(b=2))
        ('{"a":1}', '{"a":1,"b":2}')
    """
    return dataclasses.field(default=default, metadata={"later": True})


def plain(value: Any, all_fields: bool = True) -> Any:
    """`value` as JSON types: dataclasses and mappings to dicts, tuples to lists, paths to text.

    Args:
        all_fields: False leaves out fields that came `later` and have their default.

    Raises:
        TypeError: for anything JSON has no word for.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: plain(item, all_fields)
            for field, item in named
            if all_fields or "later" not in field.metadata or item != field.default
        }
    if isinstance(value, Mapping):
        return {str(name): plain(item, all_fields) for name, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item, all_fields) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item, all_fields) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if callable(getattr(value, "item", None)):  # a numpy or torch scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces.

    Example:
        >>> canonical_json({"b": (1, 2), "a": 0.5})
        '{"a":0.5,"b":[1,2]}'
    """
    return json.dumps(plain(value, all_fields=False), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
