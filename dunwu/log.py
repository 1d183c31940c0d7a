"""The run folder: what ran, on what, with which result. Everything a report needs, in four kinds of file.

    run.json             recipe, config as resolved, seed, git commit, versions, machine, start and end
    stages/STAGE.json    artifact key, inputs, status (running, done, reused, failed, interrupted), seconds, headline metrics
    metrics.jsonl        {"stage", "step", "time", key: number…}, append-only, one line per (stage, step)
    rollouts.jsonl.zst   one zstd frame per (stage, step), in it one JSON line per group

How a killed run ends with neither gap nor duplicate: a stage logs a step before it saves its checkpoint; each
record goes first to the stage's own work folder in the store, then here; both files cut a torn end when opened
and skip what they already hold; entering a stage (to build, resume or reuse it) replays its record here.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from dunwu import machine
from dunwu.progress import Progress
from dunwu.store import Artifact, Store, disk_errors, exclusive_lock, plain, write_atomically
from dunwu.types import DunwuError, Group, UsageError

__all__ = ["METRICS", "ROLLOUTS", "Progress", "Run", "read_json", "read_metrics", "read_rollouts"]

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl.zst"
_Step = tuple[str, int]
_BEAT_SECONDS = 5.0


class Run:
    """An open run folder, locked against other processes until `finish`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> run = Run.open(folder / "run", "demo", {"n": 1}, seed=0, store=Store(folder / "store"))
        >>> run.log("train", 0, {"loss": 2.5})
        >>> run.finish("done")
        >>> [line["loss"] for line in read_metrics(folder / "run")]
        [2.5]
    """

    def __init__(self, directory: Path, store: Store, record: dict[str, Any], closing: contextlib.ExitStack) -> None:
        self.dir, self.store = directory, store
        self._record, self._closing = record, closing
        self._journals = _Journals(directory)
        self._stage_journals: _Journals | None = None
        self._stage: dict[str, Any] = {}
        self._beat_at = self._started = self._spent = 0.0

    @classmethod
    def open(cls, dir: Path, recipe: str, config: Mapping[str, Any], seed: int, store: Store | None = None) -> Run:
        """Create the folder, or resume the same recipe, config and seed in it.

        Raises:
            UsageError: the folder holds another run (the differing fields are named) or something else.
            DunwuError: another process is writing it.
        """
        store = store or Store()
        record = {"recipe": recipe, "config": _finite(plain(config)), "seed": seed}
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_errors(dir))
            file = dir / "run.json"
            if dir.is_dir() and not file.exists() and any(not entry.name.startswith(".") for entry in dir.iterdir()):
                raise UsageError(f"{dir} is no run folder and not empty", "choose another --out")
            dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(dir / ".lock", what=f"the run folder {dir}", wait=False))
            before = read_json(file) if file.exists() else {}
            if before:
                _check_same(dir, before, record)
            record |= {
                "status": "running",
                "start": before.get("start") or _now(),
                "end": None,
                "resumed": [*before.get("resumed", []), _now()] if before else [],
                "git_commit": machine.git_commit(),
                "versions": machine.versions(),
                "machine": machine.describe(),
            }
            write_atomically(file, _pretty(record))
            store.add_root(dir)
            return cls(dir, store, record, stack.pop_all())

    def stage(
        self,
        name: str,
        build: Callable[[Path], Mapping[str, object] | None],
        config: Mapping[str, Any],
        inputs: Sequence[Artifact] = (),
        version: str = "1",
    ) -> Artifact:
        """The artifact of this stage: found in the store, or built there by `build(work folder)`.

        `config` must name everything that changes the result, the seed included where it does: equal configs,
        inputs and versions share one artifact between all runs. What `build` returns is the stage's headline.
        Whatever the stage logs travels with its artifact and appears in every run that uses it.
        """
        key = self.store.key(name, config, [artifact.key for artifact in inputs], version)
        lineage = {"version": version, "config": _finite(plain(config)), "inputs": [item.key for item in inputs]}
        file = self.dir / "stages" / f"{name}.json"
        before = read_json(file) if file.exists() else {}
        if before.get("key") != key:
            before = {}
        spent = float(before.get("seconds") or 0.0) if before.get("status") in _UNFINISHED else 0.0
        self._stage = {"stage": name, "key": key, **lineage, "status": "running", "seconds": spent, "metrics": {}}
        self._journals.forget_fresh()
        if before.get("status") != "done":
            self._write_stage()
        artifact = self.store.find(key)
        if artifact is None:
            artifact = self._build(name, key, build, lineage)
        else:
            self._journals.replay(artifact.path)
            self._stage["status"] = "done" if before.get("status") == "done" else "reused"
            print(f"{name}: reused {key}", file=sys.stderr)
        self._stage |= {"seconds": artifact.meta["seconds"], "metrics": artifact.meta["metrics"]}
        self._write_stage()
        return artifact

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics; a step that is already there (a resumed run) is skipped. Call it before
        saving the checkpoint of the step. NaN and infinities are written as null.

        Raises:
            ValueError: this process already logged the step, or a key is reserved.
        """
        if taken := {"stage", "step", "time"} & metrics.keys():
            raise ValueError(f"metric name {sorted(taken)} is reserved")
        line = {"stage": stage, "step": step, "time": round(time.time(), 3), **_finite(plain(metrics))}
        self._append(METRICS, (stage, step), _line(line))
        if self._stage_journals is not None and time.time() - self._beat_at > _BEAT_SECONDS:
            self._stage |= {"seconds": self._seconds(), "step": step}
            self._write_stage()

    def log_groups(self, stage: str, step: int, groups: Sequence[Group]) -> None:
        """Append one step's sampled groups; skipped if already there. An empty step leaves no trace."""
        if groups:
            text = b"".join(_line({"stage": stage, "step": step, **_group_record(group)}) for group in groups)
            self._append(ROLLOUTS, (stage, step), zstandard.ZstdCompressor(6, write_checksum=True).compress(text))

    def finish(self, status: str) -> None:
        """Write end and status ("done", "failed", "interrupted") and free the folder."""
        self._record |= {"status": status, "end": _now()}
        try:
            write_atomically(self.dir / "run.json", _pretty(self._record))
        finally:
            self._journals.close()
            self._closing.close()

    def _build(
        self, name: str, key: str, build: Callable[[Path], Mapping[str, object] | None], lineage: Mapping[str, Any]
    ) -> Artifact:
        with self.store.building(key) as work:
            made_meanwhile = self.store.find(key)
            if made_meanwhile is not None:
                self._journals.replay(made_meanwhile.path)
                self._stage["status"] = "reused"
                return made_meanwhile
            self._stage_journals = _Journals(work)
            self._journals.replay(work)
            self._started, self._spent = time.monotonic(), self._stage["seconds"]
            self._beat_at = time.time()
            try:
                headline = _finite(plain(build(work) or {}))
            except BaseException as error:
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                self._stage |= {
                    "status": status,
                    "seconds": self._seconds(),
                    "error": f"{type(error).__name__}: {error}",
                }
                with contextlib.suppress(OSError):  # a full disk must not hide the first error
                    self._write_stage()
                raise
            finally:
                self._stage_journals.close()
                self._stage_journals = None
            meta = {"stage": name, **lineage, "seconds": self._seconds(), "metrics": headline}
            artifact = self.store.commit(key, work, meta)
        self._stage["status"] = "done"
        print(f"{name}: built in {meta['seconds']:.1f} s", file=sys.stderr)
        return artifact

    def _append(self, name: str, step: _Step, record: bytes) -> None:
        with disk_errors(self.dir / name):
            if self._stage_journals is not None:
                self._stage_journals.append(name, step, record)
            self._journals.append(name, step, record)

    def _seconds(self) -> float:
        return round(self._spent + time.monotonic() - self._started, 3)

    def _write_stage(self) -> None:
        self._beat_at = time.time()
        with disk_errors(self.dir):
            write_atomically(self.dir / "stages" / f"{self._stage['stage']}.json", _pretty(self._stage))


_UNFINISHED = ("running", "failed", "interrupted")


class _Journal:
    """An append-only file of records, one per (stage, step). A torn or damaged end is cut on opening."""

    def __init__(self, path: Path) -> None:
        self.seen: set[_Step] = set()
        self.fresh: set[_Step] = set()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (unbuffered: each record reaches the OS at once)
        good = 0
        for step, record, _ in _scan(path):
            self.seen.add(step)
            good += len(record)
        if good < self._file.seek(0, 2):
            self._file.truncate(good)

    def append(self, step: _Step, record: bytes, fresh: bool) -> None:
        if step in self.fresh and fresh:
            raise ValueError(f"{self._file.name}: step {step[1]} of {step[0]} was already logged")
        if fresh:
            self.fresh.add(step)
        if step not in self.seen:
            self.seen.add(step)
            while record:
                record = record[self._file.write(record) :]

    def close(self) -> None:
        self._file.close()


class _Journals:
    """The two journals of one folder: metrics and rollouts."""

    def __init__(self, directory: Path) -> None:
        self._by_name = {name: _Journal(directory / name) for name in (METRICS, ROLLOUTS)}

    def append(self, name: str, step: _Step, record: bytes) -> None:
        self._by_name[name].append(step, record, fresh=True)

    def replay(self, directory: Path) -> None:
        """Take over what the journals of another folder hold and these do not."""
        for name, journal in self._by_name.items():
            for step, record, _ in _scan(directory / name):
                journal.append(step, record, fresh=False)

    def forget_fresh(self) -> None:
        for journal in self._by_name.values():
            journal.fresh.clear()

    def close(self) -> None:
        for journal in self._by_name.values():
            journal.close()


def read_metrics(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run folder's (or an artifact's) metrics, in the order logged; a torn end is left out."""
    for _, _, text in _scan(directory / METRICS):
        yield json.loads(text)


def read_rollouts(directory: Path) -> Iterator[dict[str, Any]]:
    """The groups of a run folder (or an artifact), one dict each, a step in memory at a time."""
    for _, _, text in _scan(directory / ROLLOUTS):
        for line in text.splitlines():
            yield json.loads(line)


def read_json(file: Path) -> dict[str, Any]:
    """One of the run folder's JSON files.

    Raises:
        DunwuError: if it is not a JSON object.
    """
    try:
        record = json.loads(file.read_text("utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DunwuError(f"{file} is damaged", "delete it and run the recipe again: finished stages are reused")
    return record


def _scan(path: Path) -> Iterator[tuple[_Step, bytes, bytes]]:
    """(stage and step, record as stored, its text) up to the first torn or damaged record; nothing if no file."""
    records = _frames(path) if path.suffix == ".zst" else _lines(path)
    for record, text in records:
        try:
            first = json.loads(text.split(b"\n", 1)[0])
            step = (str(first["stage"]), int(first["step"]))
        except (ValueError, KeyError, TypeError):
            return
        yield step, record, text


def _lines(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield line, line


def _frames(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        pending = b""
        while True:
            frame = zstandard.ZstdDecompressor().decompressobj()
            stored, text = bytearray(), bytearray()
            while not frame.eof:
                chunk = pending or file.read(1 << 16)
                pending = b""
                if not chunk:
                    return
                try:
                    text += frame.decompress(chunk)
                except zstandard.ZstdError:
                    return
                stored += chunk
            pending = frame.unused_data
            yield bytes(stored[: len(stored) - len(pending)]), bytes(text)


def _group_record(group: Group) -> dict[str, Any]:
    problem = group.problem
    rollouts = [
        {
            "completion": rollout.completion.text,
            "rewards": dict(rollout.verdict.rewards),
            "reward": rollout.verdict.reward,
            "advantage": rollout.advantage,
            "length": len(rollout.completion.token_ids),
            "status": rollout.verdict.status,
            "reason": rollout.verdict.reason,
            "answer": rollout.verdict.answer,
            "finish_reason": rollout.completion.finish_reason,
            "seed": rollout.completion.seed,
            "weight_version": rollout.completion.weight_version,
        }
        for rollout in group.rollouts
    ]
    return {
        "task": problem.task,
        "id": problem.id,
        "problem": problem.data,
        "prompt": problem.prompt,
        "rollouts": rollouts,
    }


def _check_same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = ("recipe", "seed", "config")
    there, here = (_flat({name: record.get(name) for name in names}) for record in (before, now))
    differing = [name for name in there.keys() | here.keys() if there.get(name) != here.get(name)]
    if differing:
        shown = ", ".join(f"{name} {there.get(name)} there, {here.get(name)} now" for name in sorted(differing)[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        cure = "choose another --out, or the same settings to resume"
        raise UsageError(f"{directory} holds a run with other settings: {shown}{more}", cure)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name.removeprefix("config."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else key)
    return flat


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(_finite(plain(record)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def _pretty(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
