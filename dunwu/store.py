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
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dunwu.disk import (
    LockHeld,
    canonical_json,
    disk_errors,
    exclusive_lock,
    fsync,
    plain,
    remove_temporaries,
    write_atomically,
)
from dunwu.hub import from_hub, is_hub_name
from dunwu.types import UsageError

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
                for private in _private(path):  # killed at the very end of commit
                    _remove(private)
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
            remove_temporaries(work)
            files = {}
            for file in _files(work):
                files[file.relative_to(work).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
                fsync(file)
            for folder, _, _ in os.walk(work):
                fsync(Path(folder))
            manifest = json.dumps({"key": key, "meta": plain(meta), "files": files}, indent=1, ensure_ascii=False)
            write_atomically(work / MANIFEST, manifest)
            if path.exists():
                self._set_aside(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            work.rename(path)
            fsync(path.parent)
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


def default_home() -> Path:
    """`DUNWU_HOME`, else `~/.cache/dunwu`."""
    chosen = os.environ.get("DUNWU_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "dunwu"


def resolve_model(text: str, store: Store | None = None) -> Path:
    """The folder of MODEL: a folder, a run's stage such as `runs/x:r1-zero`, or a name of the hub (`Qwen/Qwen2.5-3B`).

    A folder is a model if it, or its `model/` subfolder, holds a `config.json`.

    Raises:
        UsageError: naming what is there instead.
    """
    if is_hub_name(text) and not Path(text).exists() and not Path(text).parent.is_dir():
        return from_hub(text)
    folder = resolve_folder(text, store)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    cure = "give a model's folder"
    if (folder / "adapter_config.json").is_file():
        cure = f"merge the adapter first: dunwu import {text} --out DIR, then give DIR"
    raise UsageError(f"{text} is no model folder: config.json is missing, it holds {there}", cure)


def resolve_folder(text: str, store: Store | None = None) -> Path:
    """A folder by its path, or the artifact of a run's stage by RUN:STAGE.

    Raises:
        UsageError: naming what is there instead.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir() and ":" in text:
        run, _, stage = text.rpartition(":")
        return _stage_folder(run, stage, store or Store())
    if not folder.exists():
        raise UsageError(f"no such folder: {text}", "give a folder, or RUN:STAGE; see `dunwu runs`")
    if not folder.is_dir():
        raise UsageError(f"{text} is a file, not a folder", "give the folder that holds config.json")
    return folder


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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # another process is at it too
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
