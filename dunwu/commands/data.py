"""Web pages to records: data build, data inspect."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from dunwu.commands.command import Command, Result, arg, print_table

_SWITCH = argparse.BooleanOptionalAction


def _build(args: argparse.Namespace) -> Result:
    from dunwu.data.web.config import BuildConfig
    from dunwu.data.web.engine import Slurm, build

    names = [field.name for field in dataclasses.fields(BuildConfig)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    slurm = Slurm(args.slurm_partition, args.slurm_time, args.slurm_memory)
    return build(
        args.inputs,
        args.out,
        BuildConfig(**given),
        format=args.format,
        executor=args.executor,
        workers=args.workers,
        slurm=slurm,
    ) | {"out": str(args.out)}


def _show_build(result: Result) -> None:
    if "submitted" in result:
        print(f"submitted: {', '.join(result['submitted'])}; {result['out']}/report.json appears at the end")
        return
    rows = [["pages", f"{result['pages']:,}", ""]]
    rows += [["  beside them", f"{count:,}", reason] for reason, count in result["notes"].get("read", {}).items()]
    for step, reasons in result["dropped"].items():
        rows += [[f"- {step}", f"{count:,}", reason] for reason, count in reasons.items()]
    rows.append(
        ["records", f"{result['records']:,}", "" if result["tokens"] is None else f"{result['tokens']:,} tokens"]
    )
    print_table(rows)
    print(f"{result['out']}/records; look at it: dunwu data inspect {result['out']}")


BUILD = Command(
    "web pages to FineWeb's records; kill -9 is safe, the same command resumes",
    _build,
    _show_build,
    (
        arg(
            "inputs", nargs="+", metavar="INPUT", help="WARC, ARC, WET, HTML, JSONL, Parquet files, or folders of them"
        ),
        arg("--out", type=Path, required=True, metavar="DIR", help="folder of the build"),
        arg("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the records (jsonl, packed with zstd)"),
        arg("--workers", type=int, default=0, metavar="N", help="tasks at the same time (one per core)"),
        arg("--executor", choices=("local", "ray", "slurm"), default="local", help="datatrove's executor (local)"),
        arg("--dump", metavar="NAME", help="name of the crawl for all pages (as files say)"),
        arg(
            "--extraction",
            choices=("quality", "fast"),
            help="HTML to text: trafilatura (quality) or resiliparse (fast)",
        ),
        arg("--page-seconds", type=float, metavar="S", help="limit of one page's extraction (10)"),
        arg("--page-megabytes", type=int, metavar="MB", help="memory limit of an extraction process (1536)"),
        arg("--url-filter", action=_SWITCH, default=None, help="drop pages by their address (on)"),
        arg("--blocked", nargs="*", metavar="FILE", help="files of further domains to drop, one a line"),
        arg(
            "--languages",
            nargs="*",
            metavar="L",
            help="languages that stay (en zh-Hans zh-Hant mixed); none given: all",
        ),
        arg("--language-score", type=float, metavar="P", help="least confidence in the language (0.65)"),
        arg("--quality", choices=("fineweb", "world", "none"), help="limits of the quality filters (fineweb)"),
        arg("--pii", action=_SWITCH, default=None, help="replace addresses and numbers of people (on)"),
        arg("--filter", metavar="FILE.py", help="your own filter: a file with keep(text, record)"),
        arg("--exact-duplicates", action=_SWITCH, default=None, help="drop pages with equal text (on)"),
        arg("--near-duplicates", action=_SWITCH, default=None, help="drop pages that MinHash finds alike (on)"),
        arg("--decontaminate", nargs="*", metavar="FILE", help="evaluation files whose problems no page may show"),
        arg("--decontaminate-ngram", type=int, metavar="N", help="words in a row that count (10)"),
        arg(
            "--tokenizer", metavar="NAME_OR_DIR", help='counts tokens: gpt2 (as FineWeb), a folder, or "" for no count'
        ),
        arg("--shards", action=_SWITCH, default=None, help="write the tokens as shuffled shards too (off)"),
        arg(
            "--list-dropped", action=_SWITCH, default=None, help="write id, step and reason of every dropped page (off)"
        ),
        arg("--seed", type=int, metavar="N", help="order of the shards (0)"),
        arg("--slurm-partition", default="", metavar="NAME", help="where Slurm runs the jobs"),
        arg("--slurm-time", default="20:00:00", metavar="H:M:S", help="time limit of a Slurm task (20:00:00)"),
        arg("--slurm-memory", type=int, default=4, metavar="GB", help="memory of a Slurm task (4)"),
    ),
)


def _inspect(args: argparse.Namespace) -> Result:
    from dunwu.data.web.engine import read_report
    from dunwu.eval.report_crawl import write_crawl_page

    report = read_report(args.folder)
    page = write_crawl_page(report, args.folder.resolve().name, args.page or args.folder / "report.html")
    return {name: report[name] for name in ("pages", "records", "tokens", "dropped", "notes", "histograms")} | {
        "page": str(page)
    }


INSPECT = Command(
    "one offline page about a build: counts, samples of each reason, before and after, histograms",
    _inspect,
    lambda result: print(result["page"]),
    (
        arg("folder", type=Path, metavar="DIR", help="folder of a build"),
        arg("--page", type=Path, metavar="FILE", help="where the page goes (DIR/report.html)"),
    ),
)
