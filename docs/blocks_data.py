"""Blocks about the data pipeline: what it made of the world's crawl and of real files, in English or Chinese."""

from __future__ import annotations

from typing import Any

from blocks_results import Results, table


def data(results: Results) -> str:
    """Every recorded figure of the pipeline."""
    parts = [_crawl(results), _real(results), _memory(results)]
    return "\n\n".join(part for part in parts if part) or results.missing


def _crawl(results: Results) -> str:
    record = results.read("data-crawl")
    if record is None:
        return ""
    found = record["result"]
    rows = [
        [
            step,
            *(f"{counts[name]:,}" for name in ("reached", "dropped", "wrong", "missed")),
            *map(_share, _both(counts)),
        ]
        for step, counts in found["steps"].items()
        if counts["dropped"] or counts["missed"]
    ]
    whole, text, pii, language = found["whole"], found["text"], found["pii"], found["language"]
    said = (
        f"Of {whole['good_texts']:,} good texts {whole['good_kept_share']:.2%} stay, of {whole['rubbish']:,} pages of rubbish "
        f"{whole['rubbish_dropped_share']:.2%} go. {text['exact_share']:.2%} of the kept texts are exactly the world's. "
        f"Language at page level {language['accuracy']:.4f} of {language['pages']:,} ({language['accuracy_one_label']:.4f} where only one "
        f"label is right). Personal data: precision {pii['precision']:.4f}, recall {pii['recall']:.4f} over {pii['planted']:,} planted strings."
    )
    heads = ["the world's crawl", "reached", "dropped", "wrongly", "missed", "precision", "recall"]
    return "\n\n".join([table([heads, *rows]), said, results.origin(record)])


def _both(counts: dict[str, Any]) -> tuple[float | None, float | None]:
    return counts["precision"], counts["recall"]


def _real(results: Results) -> str:
    record = results.read("data-real")
    if record is None:
        return ""
    found = record["result"]
    rows = [
        [f"`{name}`", str(archive["pages"]), ", ".join(f"{reason} {n}" for reason, n in archive["told"].items())]
        for name, archive in found["archives"].items()
    ]
    modes = ", ".join(
        f"{name} {score['f1']:.3f} (precision {score['precision']:.3f}, recall {score['recall']:.3f})"
        for name, score in found["extraction"].items()
    )
    parity, made = found["parity"], found["build"]
    equal = ", ".join(f"{name} {count:,}" for name, count in parity["equal"].items())
    dropped = sum(sum(reasons.values()) for reasons in made["dropped"].values())
    said = (
        f"Extraction, F1 of 4-gram shingles on {found['extraction']['quality']['pages']} news pages: {modes}. "
        f"Of {parity['texts']:,} texts each filter gives datatrove's own verdict and text on: {equal}. "
        f"A build of all of these files: {made['pages']} pages, {dropped} dropped, {made['records']} records, {made['tokens']:,} tokens."
    )
    return "\n\n".join([table([["crawl archive", "pages", "what else was told"], *rows]), said, results.origin(record)])


def _memory(results: Results) -> str:
    record = results.read("data-memory")
    if record is None:
        return ""
    peaks = record["result"]["memory"]
    shown = ", ".join(
        f"{size} MB of input: {peak['peak_mb']} MB ({peak['pages']:,} pages)" for size, peak in peaks.items()
    )
    return f"Peak memory of a whole build, one worker, everything in one process: {shown}.\n\n{results.origin(record)}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
