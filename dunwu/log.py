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
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dunwu import machine
from dunwu.disk import LockHeld, disk_errors, exclusive_lock, finite, plain, write_atomically
from dunwu.journal import METRICS, ROLLOUTS, Journals, Step, line, read_metrics, read_rollouts, zstd_frame
from dunwu.progress import Progress
from dunwu.store import Artifact, Store
from dunwu.types import DunwuError, Group, UsageError

__all__ = [
    "METRICS",
    "ROLLOUTS",
    "Progress",
    "Run",
    "needed_keys",
    "read_json",
    "read_metrics",
    "read_rollouts",
    "summarize",
]

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
        self.seed: int = record["seed"]
        self._journals = Journals(directory)
        self._stage_journals: Journals | None = None
        self._stage: dict[str, Any] = {}
        self._beat_at = self._started = self._spent = 0.0

    @classmethod
    def open(cls, dir: Path, recipe: str, config: Mapping[str, Any], seed: int, store: Store | None = None) -> Run:
        """Create the folder, or resume the same recipe, config and seed in it.

        A run that failed at or before its first stage (a mistyped flag, a bad file) left nothing: any other may take its
        folder.

        Raises:
            UsageError: the folder holds another run (the differing fields are named) or something else.
            DunwuError: another process is writing it.
        """
        store = store or Store()
        record = {"recipe": recipe, "config": finite(plain(config)), "seed": seed}
        file = dir / "run.json"
        with disk_errors(dir), contextlib.ExitStack() as stack:
            if dir.is_dir() and not file.exists() and any(not entry.name.startswith(".") for entry in dir.iterdir()):
                raise UsageError(f"{dir} is no run folder and not empty", "choose another --out")
            dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(dir / ".lock", what=f"the run folder {dir}", wait=False))
            before = read_json(file) if file.exists() else {}
            differing = _differing(before, record) if before else {}
            if differing and _begun(dir, before):
                raise _other_settings(dir, differing)
            if differing:  # with nothing to lose the folder is taken over
                before = {}
                for failed in (dir / "stages").glob("*.json"):
                    failed.unlink()
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
        lineage = {"version": version, "config": finite(plain(config)), "inputs": [item.key for item in inputs]}
        file = self.dir / "stages" / f"{name}.json"
        before = read_json(file) if file.exists() else {}
        if before.get("key") != key:
            before = {}
        spent = float(before.get("seconds") or 0.0) if before.get("status") in _UNFINISHED else 0.0
        self._stage = {"stage": name, "key": key, **lineage, "status": "running", "seconds": spent, "metrics": {}}
        self._stage["start"] = before.get("start", round(time.time(), 3))
        self._journals.forget_fresh()
        artifact = self.store.find(key)
        if artifact is None:
            self._write_stage()
            artifact = self._build(name, key, build, lineage)
        else:
            self._journals.replay(artifact.path)
            # Begun here and found whole: this run built it, and was killed before it could say so.
            self._stage["status"] = "done" if before.get("status") in ("done", *_UNFINISHED) else "reused"
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
        record = {"stage": stage, "step": step, "time": round(time.time(), 3), **finite(plain(metrics))}
        self._append(METRICS, (stage, step), line(record))
        if self._stage_journals is not None and time.time() - self._beat_at > _BEAT_SECONDS:
            self._stage |= {"seconds": self._seconds(), "step": step}
            self._write_stage()

    def log_groups(self, stage: str, step: int, groups: Sequence[Group]) -> None:
        """Append one step's sampled groups; skipped if already there. An empty step leaves no trace."""
        if groups:
            text = b"".join(line({"stage": stage, "step": step, **_group_record(group)}) for group in groups)
            self._append(ROLLOUTS, (stage, step), zstd_frame(text))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish as done, failed or interrupted; a second failure (a full disk) does not hide the first."""
        if kind is None:
            self.finish("done")
            return
        with contextlib.suppress(OSError, DunwuError):
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def finish(self, status: str) -> None:
        """Write end and status ("done", "failed", "interrupted") and free the folder."""
        self._record |= {"status": status, "end": _now()}
        try:
            with disk_errors(self.dir):
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
            self._stage_journals = Journals(work)
            self._journals.replay(work)
            self._started, self._spent = time.monotonic(), self._stage["seconds"]
            self._beat_at = time.time()
            try:
                headline = finite(plain(build(work) or {}))
            except BaseException as error:
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                self._stage |= {
                    "status": status,
                    "seconds": self._seconds(),
                    "error": f"{type(error).__name__}: {error}",
                }
                with contextlib.suppress(OSError, DunwuError):  # a full disk must not hide the first error
                    self._write_stage()
                raise
            finally:
                self._stage_journals.close(keep_empty=False)
                self._stage_journals = None
                machine.return_memory()
            meta = {"stage": name, **lineage, "seconds": self._seconds(), "metrics": headline}
            artifact = self.store.commit(key, work, meta)
        self._stage["status"] = "done"
        print(f"{name}: built in {meta['seconds']:.1f} s", file=sys.stderr)
        return artifact

    def _append(self, name: str, step: Step, record: bytes) -> None:
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


def summarize(directory: Path) -> dict[str, Any]:
    """A run folder in short: path, recipe, seed, status, start, end, and its stages in the order they ran.

    A run whose process is gone without a word (killed, power cut) has status "stopped".
    """
    record = read_json(directory / "run.json")
    stages = sorted(
        (read_json(file) for file in (directory / "stages").glob("*.json")), key=lambda s: s.get("start", 0)
    )
    shown = ("stage", "status", "seconds", "step", "metrics", "key")
    summary: dict[str, Any] = {"path": str(directory)}
    summary |= {name: record.get(name) for name in ("recipe", "seed", "status", "start", "end")}
    if record.get("status") == "running" and not _is_locked(directory):
        summary["status"] = "stopped"
    return summary | {"stages": [{name: stage[name] for name in shown if name in stage} for stage in stages]}


def needed_keys(store: Store, directory: Path) -> set[str]:
    """Every artifact that a run remembered by the store, or lying under `directory`, made or used."""
    keys: set[str] = set()
    for run in {*store.roots(), *(file.parent.resolve() for file in directory.glob("*/run.json"))}:
        for file in (run / "stages").glob("*.json"):
            record = read_json(file)
            keys |= {record["key"], *record.get("inputs", [])}
    return keys


def _is_locked(directory: Path) -> bool:
    try:
        with exclusive_lock(directory / ".lock", wait=False):
            return False
    except LockHeld:
        return True
    except OSError:  # not ours to lock
        return False


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


def _begun(directory: Path, record: Mapping[str, Any]) -> bool:
    """Whether the run of this record is done, or left anything but its record and failed stages."""
    metrics = directory / METRICS
    stages = (read_json(file)["status"] for file in (directory / "stages").glob("*.json"))
    left = any(status != "failed" for status in stages) or (metrics.exists() and metrics.stat().st_size > 0)
    return record.get("status") == "done" or left


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that two records do not share: name → (before, now)."""
    there, here = (_flat({name: record.get(name) for name in ("recipe", "seed", "config")}) for record in (before, now))
    names = sorted(there.keys() | here.keys())
    return {name: (there.get(name), here.get(name)) for name in names if there.get(name) != here.get(name)}


def _other_settings(directory: Path, differing: Mapping[str, tuple[Any, Any]]) -> UsageError:
    if "recipe" in differing:
        was = differing["recipe"][0]
        return UsageError(f"{directory} holds a run of {was}", "choose another --out")
    shown = ", ".join(f"{name} {there!r} there, {here!r} now" for name, (there, here) in [*differing.items()][:4])
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    cure = "choose another --out, or the same settings to resume"
    return UsageError(f"{directory} holds a run with other settings: {shown}{more}", cure)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name.removeprefix("config."): value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else key)
    return flat


def _pretty(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
