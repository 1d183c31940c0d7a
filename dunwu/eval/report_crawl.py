"""`dunwu data inspect`: what became of the pages of a build, on one page. Reads report.json, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dunwu.disk import write_atomically
from dunwu.eval.report_parts import exact, flat, folded, heading, note, number, safe, table
from dunwu.eval.report_shell import whole_page

STEPS: dict[str, str] = {
    "url": "address",
    "extract": "HTML to text",
    "language": "language",
    "gopher_repetition": "Gopher: repetition",
    "gopher_quality": "Gopher: quality",
    "c4": "C4",
    "fineweb": "FineWeb",
    "filter": "your own filter",
    "duplicates": "duplicates",
    "contamination": "contamination",
}
"""In the order in which a page meets them."""
_PARTS = ("raw", "extracted", "kept")


def write_crawl_page(report: Mapping[str, Any], name: str, path: Path) -> Path:
    """Write the page of a build's report."""
    write_atomically(path, crawl_page(report, name))
    return path


def crawl_page(report: Mapping[str, Any], name: str) -> str:
    """The page."""
    return whole_page(f"{name} · pages", "\n".join(_sections(report, name)))


def _sections(report: Mapping[str, Any], name: str) -> Iterator[str]:
    yield _top(report, name)
    yield heading("Where pages went", "网页去了哪里") + _funnel(report)
    yield heading("Why they went", "为何去掉") + _reasons(report)
    yield heading("Before and after", "清洗前后") + _before_and_after(report)
    yield heading("What stayed", "留下了什么") + _histograms(report)
    yield heading("Damaged, changed, removed", "损坏、改动与删行") + _notes(report)
    yield heading("Settings", "设置") + _settings(report)
    yield "<footer>Every number of this page is in report.json beside it. Samples are those whose id hashes lowest.</footer>"


def _top(report: Mapping[str, Any], name: str) -> str:
    pages, records = report["pages"], report["records"]
    share = f"{100 * records / pages:.1f}<small> %</small>" if pages else "–"
    figures = [
        ("pages · 网页", number(pages), ""),
        ("records · 记录", number(records), ""),
        ("kept · 留下", share, " result"),
    ]
    if report.get("tokens") is not None:
        figures.append(("tokens · 词元", number(report["tokens"]), ""))
    blocks = "".join(
        f'<div><div class="what">{what}</div><div class="figure{kind}">{value}</div></div>'
        for what, value, kind in figures
    )
    return f'<p class="eyebrow">dunwu data build</p><h1>{safe(name)}</h1><div class="hero story">{blocks}</div>'


def _funnel(report: Mapping[str, Any]) -> str:
    """A bar per step: what was left after it, and what it took."""
    left, rows = report["pages"], [("pages read", report["pages"], 0)]
    for step in _steps(report):
        gone = sum(report["dropped"][step].values())
        left -= gone
        rows.append((STEPS.get(step, step), left, gone))
    return _bars(rows, report["pages"])


def _bars(rows: Sequence[tuple[str, int, int]], whole: int, title: str = "Pages left after each step") -> str:
    height, width, label = 24, 560, 190
    parts = []
    for n, (name, left, gone) in enumerate(rows):
        y = n * height
        x, long, lost = label, width * left / max(1, whole), width * gone / max(1, whole)
        said = number(left) + (f"  −{number(gone)}" if gone else "")
        parts.append(
            f'<text x="{label - 10}" y="{y + 15}" text-anchor="end" font-size="12.5" style="fill:var(--ink)">{safe(name)}</text>'
            f'<rect x="{x}" y="{y + 4}" width="{long:.1f}" height="15" style="fill:var(--s1)"/>'
            f'<rect x="{x + long:.1f}" y="{y + 4}" width="{lost:.1f}" height="15" style="fill:var(--s2);opacity:.55"/>'
            f'<text x="{x + long + lost + 8:.1f}" y="{y + 15}" font-size="12" style="fill:var(--soft)">{safe(said)}</text>'
        )
    total = label + width + 130
    return (
        f'<figure class="wide"><svg viewBox="0 0 {total} {len(rows) * height + 6}" width="{total}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{safe(title)}</title>{"".join(parts)}</svg></figure>'
    )


def _reasons(report: Mapping[str, Any]) -> str:
    samples: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for sample in report["samples"]:
        samples.setdefault((sample["step"], sample["reason"]), []).append(sample)
    rows = []
    for step in _steps(report):
        for reason, count in sorted(report["dropped"][step].items(), key=lambda item: -item[1]):
            share = f"{100 * count / report['pages']:.2g} %"
            looked = "".join(map(_sample, samples.get((step, reason), [])))
            looked = folded(f"{len(samples.get((step, reason), []))} to look at", looked) if looked else ""
            rows.append([safe(STEPS.get(step, step)), safe(reason), number(count), share, looked])
    if not rows:
        return note("No page was dropped.")
    return table(["step", "reason", "pages", "share", "samples"], rows, (2, 3))


def _sample(sample: Mapping[str, Any]) -> str:
    where = f"<header><span>{safe(sample['url'] or sample['id'])}</span></header>"
    text = safe(sample["text"]) or '<span class="dim">no text</span>'
    return f'<div class="card rowcard">{where}<pre class="text">{text}</pre></div>'


def _before_and_after(report: Mapping[str, Any]) -> str:
    parts = []
    for page in report["shown"]:
        cards = "".join(
            f'<div class="card"><header><b>{name}</b></header><pre class="text">{safe(page[name])}</pre></div>'
            for name in _PARTS
            if name in page
        )
        parts.append(folded(safe(page.get("url") or page["id"]), f'<div class="row">{cards}</div>'))
    return "".join(parts) or note("No page was kept.")


def _histograms(report: Mapping[str, Any]) -> str:
    parts = []
    for name, counts in report["histograms"].items():
        if name == "characters":
            rows = [(f"{int(low):,} to {2 * int(low):,} characters", count, 0) for low, count in counts.items()]
        else:
            rows = [(label, count, 0) for label, count in sorted(counts.items(), key=lambda item: -item[1])]
        parts.append(f"<h3>{safe(name)}</h3>" + _bars(rows, max(counts.values(), default=1), f"Records by {name}"))
    return "".join(parts) or note("Nothing stayed.")


def _notes(report: Mapping[str, Any]) -> str:
    rows = [
        [safe(step), safe(name), number(count)]
        for step, counts in report["notes"].items()
        for name, count in counts.items()
    ]
    return table(["where", "what", "how many"], rows, (2,)) if rows else note("Nothing.")


def _settings(report: Mapping[str, Any]) -> str:
    return table(["setting", "value"], [[safe(name), exact(value)] for name, value in flat(report["config"])])


def _steps(report: Mapping[str, Any]) -> list[str]:
    known = [step for step in STEPS if step in report["dropped"]]
    return [*known, *(step for step in report["dropped"] if step not in STEPS)]
