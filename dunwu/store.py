"""Content-addressed artifacts: what a stage made, found again by what it was made from.

    HOME/artifacts/KEY/   files, manifest.json (sizes, sha256, meta), COMPLETE (written last)
    HOME/work/KEY/        a stage in the making; survives a kill, so the stage can resume from its own checkpoints
    HOME/damaged/         artifacts that failed their checksums, set aside
    HOME/locks/KEY        one builder at a time, across processes
    HOME/roots/           one file per run folder; `gc` keeps what those runs name

HOME is `DUNWU_HOME` or `~/.cache/dunwu`. A key is the hash of stage, code version, config and input keys,
so equal keys mean equal content. An artifact without its COMPLETE marker does not exist for a reader.

Not covered: network file systems without `flock`, and Windows (no lock there: do not run two builds at once).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dunwu.types import DunwuError, UsageError

if sys.platform != "win32":
    import fcntl

MANIFEST, MARKER = "manifest.json", "COMPLETE"


@dataclass(frozen=True)
class Artifact:
    """A complete, verified result of a stage: files under `path`, described by `meta`."""

    key: str
    path: Path
    meta: Mapping[str, Any]


class Store:
    """Artifacts under one folder, shared between runs and processes.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> key = store.key("greet", {"word": "hi"})
        >>> with store.building(key) as work:
        ...     _ = (work / "out.txt").write_text("hi")
        ...     artifact = store.commit(key, work, {"words": 1})
        >>> store.find(key) == artifact
        True
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = home if home is not None else default_home()

    def key(self, stage: str, config: Mapping[str, Any], inputs: Sequence[str] = (), version: str = "1") -> str:
        """The name of what `stage` makes from this config and these inputs (order counts).

        Example:
            >>> Store(Path("x")).key("a", {"n": 1, "m": 2}) == Store(Path("y")).key("a", {"m": 2, "n": 1})
            True
        """
        text = canonical_json({"stage": stage, "version": version, "config": config, "inputs": list(inputs)})
        return f"{stage.replace('/', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def find(self, key: str) -> Artifact | None:
        """The artifact if it is complete and its checksums hold, else None.

        A damaged one is named on stderr and set aside, so that the caller builds it again.
        """
        path = self.home / "artifacts" / key
        with disk_errors(path):
            try:
                marker = (path / MARKER).read_text("ascii", "replace").strip()
            except (FileNotFoundError, NotADirectoryError):
                return None
            damage, meta = _verify(path, marker)
            if damage is None:
                return Artifact(key, path, meta)
            aside = self._set_aside(path)
        print(f"dunwu: artifact {key} is damaged ({damage}); set aside as {aside}, building it again", file=sys.stderr)
        return None

    @contextlib.contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """Hold the lock of `key` and yield its work folder, as an earlier, killed builder left it.

        After waiting for another builder the artifact may exist: call `find` first. Leaving without
        `commit` keeps the folder for the next try.
        """
        work, done = self.home / "work" / key, self.home / "artifacts" / key
        with disk_errors(work), exclusive_lock(self.home / "locks" / key, what=f"the build of {key}"):
            if done.exists() and not (done / MARKER).exists():  # killed between the two last steps of commit
                if work.exists():
                    self._set_aside(done)
                else:
                    work.parent.mkdir(parents=True, exist_ok=True)
                    done.rename(work)
            work.mkdir(parents=True, exist_ok=True)
            yield work

    def commit(self, key: str, work: Path, meta: Mapping[str, Any]) -> Artifact:
        """Turn the work folder into the artifact; call it inside `building`.

        Files and folders at the top whose name starts with `checkpoint`, and `scratch/`, are private to the
        builder and do not become part of the artifact. They go last: a kill during commit loses no work.
        """
        path = self.home / "artifacts" / key
        with disk_errors(work):
            for leftover in (MANIFEST, MARKER):
                (work / leftover).unlink(missing_ok=True)
            files = {}
            for file in _files(work):
                files[file.relative_to(work).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
                _fsync(file)
            for folder, _, _ in os.walk(work):
                _fsync(Path(folder))
            manifest = json.dumps({"key": key, "meta": plain(meta), "files": files}, indent=1, ensure_ascii=False)
            write_atomically(work / MANIFEST, manifest)
            if path.exists():
                self._set_aside(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            work.rename(path)
            _fsync(path.parent)
            write_atomically(path / MARKER, hashlib.sha256(manifest.encode()).hexdigest() + "\n")
            for private in _private(path):
                _remove(private)
        return Artifact(key, path, json.loads(manifest)["meta"])

    def gc(self, keep: set[str]) -> tuple[int, int]:
        """Remove artifacts and abandoned work whose key is not in `keep`, and everything set aside as damaged.

        Returns (things removed, bytes freed). What another process is building is left alone.
        """
        count = freed = 0
        with disk_errors(self.home):
            for room in ("artifacts", "work", "damaged"):
                for path in sorted((self.home / room).glob("*")):
                    if room != "damaged" and path.name in keep:
                        continue
                    with contextlib.suppress(LockHeld), exclusive_lock(self.home / "locks" / path.name, wait=False):
                        freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                        (path / MARKER).unlink(missing_ok=True)  # first, so that a kill leaves no half artifact
                        _remove(path)
                        count += 1
        return count, freed

    def add_root(self, run_dir: Path) -> None:
        """Remember a run folder, wherever it lies, so that `gc` keeps what it names."""
        path = str(run_dir.resolve())
        with disk_errors(self.home):
            write_atomically(self.home / "roots" / hashlib.sha256(path.encode()).hexdigest()[:24], path)

    def roots(self) -> list[Path]:
        """The remembered run folders that still exist; the others are forgotten."""
        found = []
        for file in sorted((self.home / "roots").glob("*")):
            run_dir = Path(file.read_text("utf-8"))
            if (run_dir / "run.json").exists():
                found.append(run_dir)
            else:
                file.unlink(missing_ok=True)
        return found

    def _set_aside(self, path: Path) -> Path:
        damaged = self.home / "damaged"
        damaged.mkdir(parents=True, exist_ok=True)
        number = 1
        while (aside := damaged / f"{path.name}.{number}").exists():
            number += 1
        path.rename(aside)
        return aside


class LockHeld(DunwuError):
    """Another process holds the lock."""


def default_home() -> Path:
    """`DUNWU_HOME`, else `~/.cache/dunwu`."""
    chosen = os.environ.get("DUNWU_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dunwu"


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


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses and mappings to dicts, tuples to lists, paths to text.

    Raises:
        TypeError: for anything JSON has no word for.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if callable(getattr(value, "item", None)):  # a numpy or torch scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces.

    Example:
        >>> canonical_json({"b": (1, 2), "a": 0.5})
        '{"a":0.5,"b":[1,2]}'
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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
    _fsync(path.parent)


def explain_os_error(error: OSError, path: Path | str | None = None) -> DunwuError | None:
    """The one line, with its cure, for a full disk or a missing permission; None for other errors."""
    where = error.filename or path or "the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
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


def resolve_model(text: str, store: Store | None = None) -> Path:
    """The folder of MODEL: a folder, or a run's stage such as `runs/x:r1-zero`.

    A folder is a model if it, or its `model/` subfolder, holds a `config.json`.

    Raises:
        UsageError: naming what is there instead.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir() and ":" in text:
        run, _, stage = text.rpartition(":")
        folder = _stage_folder(run, stage, store or Store())
    if not folder.exists():
        raise UsageError(f"no model at {text}: no such folder", "give a model folder or RUN:STAGE; see `dunwu runs`")
    if not folder.is_dir():
        raise UsageError(f"{text} is a file, not a model folder", "give the folder that holds config.json")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise UsageError(f"{text} is no model folder: config.json is missing, it holds {there}", "give a model's folder")


def _stage_folder(run: str, stage: str, store: Store) -> Path:
    stages = Path(run).expanduser() / "stages"
    known = sorted(file.stem for file in stages.glob("*.json"))
    if stage not in known:
        there = f"its stages are {', '.join(known)}" if known else f"{run} is no run folder"
        raise UsageError(f"no stage {stage!r} in {run}: {there}", "see `dunwu runs`")
    record = json.loads((stages / f"{stage}.json").read_text("utf-8"))
    artifact = store.find(record["key"])
    if artifact is None:
        status = record.get("status")
        missing = (
            f"the files of {run}:{stage} are gone" if status in ("done", "reused") else f"{run}:{stage} is {status}"
        )
        raise UsageError(missing, "run the recipe again with the same --out: it resumes and rebuilds what is missing")
    return artifact.path


def _verify(path: Path, marker: str) -> tuple[str | None, Mapping[str, Any]]:
    """(what is wrong or None, the artifact's meta)."""
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"{MANIFEST} is missing", {}
    if hashlib.sha256(text).hexdigest() != marker:
        return f"{MANIFEST} has changed", {}
    manifest = json.loads(text)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing", {}
        size = file.stat().st_size
        if size != expected["size"]:
            return f"{name} has {size} bytes instead of {expected['size']}", {}
        if _sha256(file) != expected["sha256"]:
            return f"{name} has a wrong checksum", {}
    return None, manifest["meta"]


def _private(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name.startswith("checkpoint") or entry.name == "scratch"]


def _files(work: Path) -> Iterable[Path]:
    private = set(_private(work))
    for top in sorted(work.iterdir()):
        if top not in private:
            yield from [top] if top.is_file() else sorted(file for file in top.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
