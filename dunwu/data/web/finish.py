"""The end of a build: shards, and every count in report.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dunwu.data.web.config import BuildConfig
from dunwu.data.web.ledger import merge
from dunwu.disk import plain, write_atomically
from dunwu.types import DunwuError


def finish(out: Path, config: BuildConfig, tasks: int) -> dict[str, Any]:
    """Write shards, then report.json, whose presence says that the build is finished.

    Raises:
        DunwuError: pages that came in and are neither kept nor counted as dropped.
    """
    work = out / ".work"
    clean = [_read(work, "clean", rank) for rank in range(tasks)]
    write = [_read(work, "write", rank) for rank in range(tasks)]
    first, second = merge(clean), merge(write)
    if first["kept"] != second["seen"]:
        raise DunwuError(f"{first['kept']} pages were cleaned but {second['seen']} came on", "please report this")
    report: dict[str, Any] = {
        "pages": first["seen"],
        "records": second["kept"],
        "tokens": sum(part["tokens"] for part in write) if config.tokenizer else None,
        "dropped": {**first["dropped"], **second["dropped"]},
        "notes": first["notes"],
        "histograms": second["histograms"],
        "samples": first["samples"] + second["samples"],
        "shown": second["shown"],
        "config": plain(config),
    }
    if config.shards:
        report["shards"] = _shards(out, work, tasks, config)
    write_atomically(out / "report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    return report


def _shards(out: Path, work: Path, tasks: int, config: BuildConfig) -> dict[str, Any]:
    from dunwu.data.web.tokens import shuffle_into_shards

    made = work / f"shards.{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    index = shuffle_into_shards(work / "tokens", tasks, made, config.tokenizer, config.seed)
    shutil.rmtree(out / "shards", ignore_errors=True)
    os.replace(made, out / "shards")
    return {"tokens": sum(index["shards"]), "documents": index["documents"], "files": len(index["shards"])}


def _read(work: Path, phase: str, rank: int) -> dict[str, Any]:
    part: dict[str, Any] = json.loads((work / "ledgers" / f"{phase}-{rank:05d}.json").read_text(encoding="utf-8"))
    return part
