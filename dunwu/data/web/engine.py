"""`dunwu data build`: pages in files to FineWeb's records, by datatrove's executors, resumable.

A build is a row of phases, each a datatrove pipeline over numbered tasks. What a task reads and writes follows from the
inputs alone, never from the number of workers or the executor, and files appear whole or not at all; so a build that
was killed, or done by others, ends with the same records.

    clean       a task per group of input files: read, filter, clean; cleaned pages, text hashes and signatures
    pairs       a task per MinHash bucket: pages of a dump with equal signatures
    clusters    one task: which pages are the first of their kind
    write       a task per group of input files: what is left to records, and to tokens
    finish      one task: shuffled shards, counts, report.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dunwu.data.web.config import BuildConfig, Executor
from dunwu.data.web.records import NEEDS_DATA, SUFFIX, Format
from dunwu.disk import disk_errors, exclusive_lock, is_alive, plain, remove_temporaries, write_atomically
from dunwu.machine import die_with_parent
from dunwu.progress import Progress
from dunwu.types import DunwuError, UsageError

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep

WORK, PLAN, REPORT = ".work", "build.json", "report.json"
VERSION = 1
"""Raise it when the pipeline makes other records from the same pages."""
_GROUP_BYTES, _GROUPS = 1 << 20, 64
_MOST_GROUP_BYTES = 1 << 30
SUBMITTED = "submitted.json"


@dataclass(frozen=True)
class Slurm:
    """What a Slurm cluster wants to know."""

    partition: str = ""
    """Partition the jobs go to."""
    time: str = "20:00:00"
    """Time limit of a task."""
    memory_gb: int = 4
    """Memory of a task."""


@dataclass(frozen=True)
class Phase:
    """A pipeline and its number of tasks."""

    name: str
    steps: Sequence[PipelineStep]
    tasks: int


def build(
    inputs: Sequence[str | Path],
    out: Path,
    config: BuildConfig,
    *,
    format: Format = "jsonl",
    executor: Executor = "local",
    workers: int = 0,
    slurm: Slurm | None = None,
) -> dict[str, Any]:
    """Clean the pages of `inputs` into `out`; the same call goes on where a killed one stopped.

    Args:
        inputs: files, or folders whose files are taken by their names.
        out: folder of the build: records/, shards/ if asked, report.json.
        workers: tasks at the same time; 0: one per core.

    Returns:
        the counts of report.json; for Slurm, the submitted jobs' folder.

    Raises:
        UsageError: settings that cannot work, or a folder that holds another build.
        DunwuError: a missing file, a full disk, a task that failed.
    """
    config.validate()
    if workers < 0:
        raise UsageError(f"{workers} workers", "use 1 or more; 0 takes one per core")
    out, config = out.resolve(), _resolved(config)
    _check_installed(executor, config, format)
    check_users_files(config)
    files = find_files(inputs, out)
    groups = group_files(files)
    plan = _plan(files, config, format)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out / ".lock", f"the build in {out}", wait=False):
        _check_plan(out, plan)
        if (out / REPORT).is_file():
            shutil.rmtree(out / WORK, ignore_errors=True)  # a cluster's build ends without us
            return read_report(out)
        if (out / WORK / SUBMITTED).is_file():
            raise UsageError(
                f"a cluster works on {out}", f"wait for it; if its jobs are gone, remove {out / WORK / SUBMITTED}"
            )
        for folder in ("records", "dropped"):
            remove_temporaries(out / folder)
        hands = workers or os.cpu_count() or 1
        # With fewer files than cores, a task extracts in several processes.
        extractors = max(1, hands // len(groups)) if executor == "local" else 1
        phases = make_phases(groups, out, config, format, extractors)
        if executor == "slurm":
            return _submit(phases, out, slurm or Slurm(), workers)
        for phase in phases:
            _run_phase(phase, out, executor, hands, groups)
        shutil.rmtree(out / WORK, ignore_errors=True)
    return read_report(out)


def _resolved(config: BuildConfig) -> BuildConfig:
    """The user's files by their whole paths: a task elsewhere has another working folder."""

    def whole(path: str) -> str:
        return str(Path(path).resolve()) if path else ""

    tokenizer = whole(config.tokenizer) if Path(config.tokenizer).exists() else config.tokenizer
    return replace(
        config,
        filter=whole(config.filter),
        blocked=tuple(map(whole, config.blocked)),
        decontaminate=tuple(map(whole, config.decontaminate)),
        tokenizer=tokenizer if config.tokenizer else "",
    )


def check_users_files(config: BuildConfig) -> None:
    """Read what the user gave before anything is made, so that its faults are told now.

    Raises:
        DunwuError: a missing or unreadable filter, list, evaluation file or tokenizer.
    """
    from dunwu.data.web import steps
    from dunwu.data.web.evaluation_files import read_evaluation
    from dunwu.data.web.tokens import open_tokenizer
    from dunwu.data.web.users_filter import load_filter

    for cached in (load_filter, open_tokenizer, steps.url_filter, steps.ngram_index):
        cached.cache_clear()  # files may have changed since this process looked
    if config.filter:
        load_filter(config.filter)
    for path in config.decontaminate:
        next(iter(read_evaluation(Path(path), None)), None)
    for path in config.blocked:
        if not Path(path).is_file():
            raise UsageError(f"no file {path}", "check --blocked")
    if config.tokenizer:
        open_tokenizer(config.tokenizer)


@dataclass(frozen=True)
class Input:
    """A file of pages."""

    path: Path
    name: str
    """As records tell it: as given, or below the name of a folder that was given."""
    size: int


def find_files(inputs: Sequence[str | Path], out: Path | None = None) -> list[Input]:
    """The input files, in the order of their names within each input; other files of a folder are named on stderr.

    Args:
        out: a folder that is no input even if it lies in one.

    Raises:
        DunwuError: nothing there, a file of no known kind, or a folder without any of one.
    """
    from dunwu.data.web.read import kind_of

    files: dict[Path, Input] = {}
    for given in inputs:
        path = Path(given)
        if not path.is_dir():
            kind_of(path)
            files.setdefault(path.resolve(), Input(path.resolve(), str(given), path.stat().st_size))
            continue
        found = 0
        for file in sorted(_walk(path, out)):
            if not os.access(file, os.R_OK):
                raise DunwuError(
                    f"{file} cannot be read", "change its permissions, or remove a link that leads nowhere"
                )
            try:
                kind_of(file)
                name = f"{path.resolve().name}/{file.relative_to(path).as_posix()}"
                files.setdefault(file.resolve(), Input(file.resolve(), name, file.stat().st_size))
                found += 1
            except DunwuError as error:
                print(f"left out: {error.what}", file=sys.stderr)
        if not found:
            raise DunwuError(f"no pages in {path}", "give WARC, ARC, WET, HTML, JSONL or Parquet files")
    if not files:
        raise UsageError("no input", "name files or folders of pages")
    return list(files.values())


def _walk(folder: Path, out: Path | None) -> Iterator[Path]:
    """Every file below a folder, links followed; nothing in `out` and nothing hidden."""

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if name[:1] != "." and Path(root, name).resolve() != out]
        yield from (Path(root, name) for name in names if name[:1] != ".")


def group_files(files: Sequence[Input]) -> list[list[Input]]:
    """Files in order, cut into tasks: small files share one, so that a task is worth its start.

    Follows from the files alone: some 64 tasks, more where they would be above 1 GB, none made of files below 1 MB in all
    if there are others to join. A file is never cut: a task has at least one.
    """
    enough = min(_MOST_GROUP_BYTES, max(_GROUP_BYTES, sum(file.size for file in files) // _GROUPS))
    groups: list[list[Input]] = [[]]
    held = 0
    for file in files:
        if groups[-1] and held + file.size > enough:
            groups.append([])
            held = 0
        groups[-1].append(file)
        held += file.size
    return groups


def make_phases(
    groups: Sequence[Sequence[Input]], out: Path, config: BuildConfig, format: Format, extractors: int = 1
) -> list[Phase]:
    """The phases of a build; `extractors` processes turn a task's HTML into text."""
    from dunwu.data.web import steps

    work = out / WORK
    names = [[(str(file.path), file.name) for file in group] for group in groups]
    phases = [Phase("clean", steps.cleaning(names, work, config, extractors), len(names))]
    if config.near_duplicates:
        phases.append(Phase("pairs", [steps.FindPairs(work, config.minhash, len(names))], config.minhash.buckets))
    if config.near_duplicates or config.exact_duplicates:
        phases.append(Phase("clusters", [steps.FindClusters(work, config, len(names))], 1))
    phases.append(Phase("write", steps.writing(work, out / "records", config, format), len(names)))
    phases.append(Phase("finish", [steps.Finish(out, config, len(names))], 1))
    return phases


def read_report(out: Path) -> dict[str, Any]:
    """A finished build's counts.

    Raises:
        DunwuError: no finished build there.
    """
    try:
        report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DunwuError(f"no finished build in {out}", "`dunwu data build` makes one, and resumes one") from None
    except ValueError as error:
        raise DunwuError(f"{out / REPORT} is damaged: {error}", "remove it and build again") from error
    if not {"pages", "records", "dropped"} <= report.keys():
        raise DunwuError(f"{out / REPORT} is no build's report", "name the folder that `dunwu data build` made")
    return report


def _run_phase(phase: Phase, out: Path, executor: Executor, workers: int, groups: Sequence[Sequence[Input]]) -> None:
    from datatrove.executor import LocalPipelineExecutor

    logs = out / WORK / "logs" / phase.name
    shutil.rmtree(out / WORK / "failures", ignore_errors=True)
    with contextlib.ExitStack() as around:
        if executor == "ray":
            from datatrove.executor import RayPipelineExecutor

            around.enter_context(_ray())
            runner: Any = RayPipelineExecutor(
                list(phase.steps), tasks=phase.tasks, workers=workers, logging_dir=str(logs), mem_per_cpu_gb=1
            )
        else:
            # "spawn": a fork of this process could not use the server that its parent's "forkserver" left it.
            runner = LocalPipelineExecutor(
                list(phase.steps),
                tasks=phase.tasks,
                workers=min(workers, phase.tasks),
                logging_dir=str(logs),
                start_method="spawn",
            )
            around.enter_context(_forks_die_with_us())
        around.enter_context(_task_errors(out))
        around.enter_context(_progress(phase, out, groups, executor))
        runner.run()
    # An executor may swallow a task's failure; its mark would be missing.
    missing = runner.get_incomplete_ranks(skip_completed=True)
    if missing:
        for file in sorted((out / WORK / "failures").glob("*.json")):
            told = json.loads(file.read_text(encoding="utf-8"))
            raise DunwuError(told["what"], told["cure"])
        raise DunwuError(f"{len(missing)} tasks of phase {phase.name} failed", f"see {logs}; the same command resumes")


_forks = {"die": False, "registered": False}


@contextlib.contextmanager
def _forks_die_with_us() -> Iterator[None]:
    """datatrove's executor forks a helper that would outlive a SIGKILL of this process; Linux can take it along."""
    if not _forks["registered"] and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: die_with_parent() if _forks["die"] else None)
        _forks["registered"] = True
    _forks["die"] = True
    try:
        yield
    finally:
        _forks["die"] = False


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextlib.contextmanager
def _task_errors(out: Path) -> Iterator[None]:
    """A task's failure is told in one line, whatever way it came here."""
    try:
        with disk_errors(out):
            yield
    except OSError as error:
        raise DunwuError(f"a task failed: {error}", "the same command resumes") from error


@contextlib.contextmanager
def _progress(phase: Phase, out: Path, groups: Sequence[Sequence[Input]], executor: Executor) -> Iterator[None]:
    """A line about the phase while its tasks work elsewhere; they leave their counts in small files."""
    beats = out / WORK / "beats" / phase.name
    total: float = phase.tasks
    unit = "tasks"
    if phase.name == "clean":
        total, unit = sum(file.size for group in groups for file in group) / 1e6, "MB"
    marks = out / WORK / "logs" / phase.name / "completions"
    sizes = [sum(file.size for file in group) / 1e6 for group in groups]

    suspects: set[str] = set()
    dead: list[str] = []

    def look(progress: Progress) -> None:
        finished = {int(mark.name) for mark in marks.iterdir()} if marks.is_dir() else set()
        pages, megabytes = 0, 0.0
        for beat in beats.iterdir() if beats.is_dir() else []:
            with contextlib.suppress(ValueError, OSError):
                read, seen, process = beat.read_text(encoding="ascii").split()
                pages += int(seen)
                if int(beat.name) in finished:
                    continue
                megabytes += int(read) / 1e6
                if process in former or is_alive(int(process)):
                    continue
                if process in suspects:
                    dead.append(beat.name)
                suspects.add(process)
        if phase.name == "clean":
            megabytes += sum(sizes[rank] for rank in finished)
            progress.update(min(total, megabytes), pages=pages)
        else:
            progress.update(len(finished), **({"pages": pages} if pages else {}))

    former = _former(beats)
    over = threading.Event()
    with Progress(total, phase.name, unit) as progress:

        def watch() -> None:
            while not over.wait(0.2):
                look(progress)
                if dead and executor == "local":
                    # A pool waits for ever for the task of a process that is gone; only a real signal wakes its waiting.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        except KeyboardInterrupt:
            if not dead:
                raise
            raise DunwuError(
                f"the process of task {dead[0]} of phase {phase.name} died",
                "it may have run out of memory: use fewer --workers; the same command resumes",
            ) from None
        finally:
            over.set()
            watcher.join()
            look(progress)


def _former(beats: Path) -> set[str]:
    """Processes of a build before this one, which left beats behind."""
    found = set()
    for beat in beats.iterdir() if beats.is_dir() else []:
        with contextlib.suppress(ValueError, OSError):
            found.update(beat.read_text(encoding="ascii").split()[-1:])
            beat.unlink()
    return found


def _submit(phases: Sequence[Phase], out: Path, slurm: Slurm, workers: int) -> dict[str, Any]:
    """Hand every phase to Slurm, each waiting for the one before; the cluster does the rest."""
    from datatrove.executor import SlurmPipelineExecutor

    if shutil.which("sbatch") is None:
        raise UsageError("there is no sbatch here", "submit from a login node of the cluster, or use --executor local")
    if not slurm.partition:
        raise UsageError("Slurm wants a partition", "name one with --slurm-partition; `sinfo` lists them")
    before: Any = None
    for phase in phases:
        before = SlurmPipelineExecutor(
            list(phase.steps),
            tasks=phase.tasks,
            time=slurm.time,
            partition=slurm.partition,
            mem_per_cpu_gb=slurm.memory_gb,
            workers=workers or -1,
            job_name=f"dunwu-{phase.name}",
            depends=before,
            logging_dir=str((out / WORK / "logs" / phase.name).resolve()),
            qos="",
            env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        )
    write_atomically(out / WORK / SUBMITTED, json.dumps({"phases": [phase.name for phase in phases]}) + "\n")
    try:
        before.run()
    except Exception:
        (out / WORK / SUBMITTED).unlink()
        raise
    return {"submitted": [phase.name for phase in phases], "out": str(out)}


def _plan(files: Sequence[Input], config: BuildConfig, format: Format) -> dict[str, Any]:
    inputs = [[file.name, file.size] for file in files]
    given = [config.filter, *config.blocked, *config.decontaminate]
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in given if path}
    return {"version": VERSION, "config": plain(config), "format": format, "inputs": inputs, "files": digests}


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    """A folder holds one build: the same inputs and settings go on, others are refused."""
    file = out / PLAN
    if not file.is_file():
        if any(out.glob(f"records/*{SUFFIX[plan['format']]}")):
            raise UsageError(f"{out} holds records but no {PLAN}", "choose another --out")
        write_atomically(file, json.dumps(plan, ensure_ascii=False, indent=1) + "\n")
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    if there == json.loads(json.dumps(plan)):
        return
    settings = [name for name in plan["config"] if there.get("config", {}).get(name) != plain(plan["config"][name])]
    parts = [
        name
        for name in ("version", "format", "inputs", "files")
        if there.get(name) != json.loads(json.dumps(plan[name]))
    ]
    raise UsageError(
        f"{out} holds a build with other {', '.join([*settings, *parts])}", "choose another --out, or remove it"
    )


def _check_installed(executor: Executor, config: BuildConfig, format: Format) -> None:
    """Whatever the settings need is there before anything begins."""
    if sys.platform == "win32":
        raise UsageError("the data pipeline does not run on Windows", "use WSL")
    needs = ["datatrove"]
    needs += ["ray"] if executor == "ray" else []
    needs += ["trafilatura"] if config.extraction == "quality" else []
    needs += ["pyarrow"] if format == "parquet" else []
    for name in needs:
        try:
            import_module(name)
        except ImportError as error:
            cure = "pip install 'dunwu[ray]'" if name == "ray" else NEEDS_DATA
            also = ", or take --extraction fast" if name == "trafilatura" else ""
            raise UsageError(f"these settings need {name} ({error})", cure + also) from None
