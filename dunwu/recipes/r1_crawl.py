"""The first line of the story: the world's pages as a crawler brings them, and the pipeline that cleans them.

`crawl` writes WARC files, a dump each, with what is true of every page aside; `clean` gives FineWeb's records and says,
against that truth, what each step of the pipeline found and missed.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dunwu.data.web.config import BuildConfig
from dunwu.data.web.engine import PLAN, REPORT, VERSION, build, read_report
from dunwu.data.web.minhash import MinhashConfig
from dunwu.data.web.records import read_records
from dunwu.disk import remove_temporaries, write_atomically
from dunwu.eval.cleaning import score_cleaning
from dunwu.log import Progress, Run
from dunwu.machine import die_with_parent
from dunwu.recipes.r1_config import CrawlConfig
from dunwu.recipes.stages import BUILD
from dunwu.store import Artifact
from dunwu.world.crawl import crawl
from dunwu.world.knobs import Knobs
from dunwu.world.spam import UNSAFE_DOMAINS
from dunwu.world.warc import read_truth, write_warc

TRUTH = "truth"
EXAM = "exam.jsonl"
SCORES = "cleaning.json"


def crawled(run: Run, settings: CrawlConfig, world: Knobs, seed: int) -> Artifact:
    """WARC files of the world, `warc/NNN.warc.gz`, with `truth/NNN.jsonl.zst`; a dump each."""

    def make(work: Path) -> dict[str, object]:
        remove_temporaries(work)
        sizes = [
            min(settings.rubbish.dump, settings.pages - first)
            for first in range(0, settings.pages, settings.rubbish.dump)
        ]
        jobs = [(work, number, size, settings, world, seed) for number, size in enumerate(sizes)]
        workers = min(os.cpu_count() or 1, len(jobs))
        done = 0
        with (
            Progress(settings.pages, "crawl", "pages") as progress,
            ProcessPoolExecutor(workers, get_context("spawn"), initializer=die_with_parent) as pool,
        ):
            for size in pool.map(_write_dump, jobs):
                done += size
                progress.update(done)
        _write_exam(work)
        return {"pages": done, "dumps": len(jobs), "megabytes": _megabytes(work / "warc")}

    key = {"pages": settings.pages, "rubbish": settings.rubbish, "world": world, "seed": seed}
    return run.stage("crawl", make, key)


def _write_dump(job: tuple[Path, int, int, CrawlConfig, Knobs, int]) -> int:
    work, number, size, settings, world, seed = job
    warc, truth = work / "warc" / f"{number:03d}.warc.gz", work / TRUTH / f"{number:03d}.jsonl.zst"
    for path in (warc, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    if warc.is_file():  # from before a kill; its truth was written first
        return size
    items = crawl(world, seed, settings.rubbish, start=number * settings.rubbish.dump)
    written = write_warc(islice(items, size), warc, truth, dump=f"world-{number:03d}", level=1)
    return written.records


def _write_exam(work: Path) -> None:
    """The held-out problems that some pages show, as an evaluation file the pipeline is to keep out."""
    truths = (page for path in sorted((work / TRUTH).glob("[0-9]*.zst")) for page in read_truth(path))
    lines = [json.dumps({"question": page["held_out"]}, ensure_ascii=False) for page in truths if "held_out" in page]
    write_atomically(work / EXAM, "".join(f"{line}\n" for line in lines))


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def cleaned(run: Run, settings: CrawlConfig, source: Artifact) -> Artifact:
    """FineWeb's records of a crawl, in `build`, and `cleaning.json`: every step against the truth."""

    def make(work: Path) -> dict[str, object]:
        lists = work / "blocked.txt"
        write_atomically(lists, "".join(f"{domain}\n" for domain in UNSAFE_DOMAINS))
        exam = source.path / EXAM
        pipeline = pipeline_of(settings, lists, exam if exam.stat().st_size else None)
        if not (work / BUILD / PLAN).is_file():  # killed while places were forgotten, or not begun
            shutil.rmtree(work / BUILD, ignore_errors=True)
        report = build([source.path / "warc"], work / BUILD, pipeline)
        scores = score(source.path, work / BUILD)
        write_atomically(work / SCORES, json.dumps(scores, ensure_ascii=False) + "\n")
        _forget_places(work / BUILD)
        whole = scores["whole"]
        return {
            "pages": report["pages"],
            "records": report["records"],
            **{k: v for k, v in whole.items() if "share" in k},
        }

    nowhere = pipeline_of(settings, Path(), Path())
    return run.stage("clean", make, {"crawl": settings, "pipeline": nowhere}, [source], version=str(VERSION))


def _forget_places(built: Path) -> None:
    """Nothing in an artifact tells where on the disk it was made."""
    (built / "build.json").unlink(missing_ok=True)
    (built / ".lock").unlink(missing_ok=True)
    report = read_report(built)
    for name in ("blocked", "decontaminate"):
        report["config"][name] = [Path(file).name for file in report["config"][name]]
    write_atomically(built / REPORT, json.dumps(report, ensure_ascii=False, indent=1) + "\n")


def pipeline_of(settings: CrawlConfig, blocked: Path, exam: Path | None) -> BuildConfig:
    """FineWeb's steps with limits for the world's pages, which are short and full of numbers.

    Numbers are what such pages are about, so MinHash keeps them apart, and asks for more agreement; and a page without
    words ("und") is a page of sums.
    """
    return BuildConfig(
        extraction="fast",
        isolate=False,
        blocked=(str(blocked),),
        languages=settings.rubbish.languages,
        language_score=0.0,
        quality="world",
        minhash=MinhashConfig(numbers_alike=False, buckets=6, hashes_per_bucket=18),
        decontaminate=(str(exam),) if exam else (),
        decontaminate_ngram=64,
        tokenizer="",
        list_dropped=True,
    )


def score(source: Path, built: Path) -> dict[str, Any]:
    """What the pipeline made of a crawl, against its truth."""
    dropped = ((row["id"], row["step"], row["reason"]) for row in read_records(built / "dropped"))
    return score_cleaning(sorted((source / TRUTH).glob("[0-9]*.zst")), read_records(built), dropped)
