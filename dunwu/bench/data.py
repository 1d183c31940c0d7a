"""Web pages to records: MinHash, filters, extraction and the whole pipeline beside datatrove's own steps.

Both sides see the same documents in the same process (the whole pipelines: in processes of one worker each). datatrove's
language filter is left out on its side: it wants a model from the network, and a package that excludes ours.
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dunwu.bench import BenchConfig
from dunwu.bench.pairs import compare
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

WORDS = 400
"""Words of a document."""
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Real pages and texts, where they lie beside the project."""


def bench_data(config: BenchConfig) -> dict[str, Any]:
    """Documents/s and pages/s on one core, and the whole pipeline."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    count = 40 if config.quick else 1500
    texts = list(itertools.islice(documents(config.seed), count))
    missing = _missing_peers(config)
    peers = config.peers and not missing
    rows = [
        _row("MinHash signatures", texts, _our_signatures, _their_signatures if peers else None, config),
        _row("quality filters", texts, _our_filters, _their_filters if peers else None, config),
        *_extraction(config),
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows.append(_pipelines(Path(folder), config, peers))
    names = ("datatrove", "trafilatura", "resiliparse", "spacy")
    versions = {name: version(name) for name in names if importlib.util.find_spec(name)}
    return {"unit": "documents/s", "rows": rows, "missing": missing, "versions": versions}


def documents(seed: int) -> Iterator[str]:
    """English texts of some 400 words: real ones where there are any, and general pages of the world."""
    real = [text for text in _real_texts() if len(text) > 200]
    world = (page.text for page in pages(Knobs(general=1.0, chinese=0.0), seed))
    for number in itertools.count():
        parts: list[str] = []
        source = iter(real[number * 7 % len(real) :]) if real and number % 2 == 0 else world
        while sum(len(part.split()) for part in parts) < WORDS:
            parts.append(next(source, None) or next(world))
        yield "\n\n".join(parts)


def _real_texts() -> list[str]:
    texts: list[str] = []
    for name in ("alpaca_en_demo", "dpo_en_demo"):
        file = REAL / "chat" / f"{name}.json"
        if file.is_file():
            for row in json.loads(file.read_text(encoding="utf-8")):
                said = row.get("output") or (row.get("chosen") or {}).get("value", "")
                texts += [said] if isinstance(said, str) else []
    return texts


def _row(case: str, texts: list[str], ours: _Work, peer: _Work | None, config: BenchConfig) -> dict[str, Any]:
    def timed(work: _Work) -> Callable[[], float]:
        run = work()

        def once() -> float:
            began = time.perf_counter()
            for text in texts:
                run(text)
            return len(texts) / (time.perf_counter() - began)

        return once

    figures = compare(timed(ours), timed(peer) if peer else None, config.pairs)
    return {"case": case, "peer_name": "datatrove" if peer else None} | figures


_Work = Callable[[], Callable[[str], Any]]


def _our_signatures() -> Callable[[str], Any]:
    from dunwu.data.web.minhash import Signer

    return Signer().signature


def _their_signatures() -> Callable[[str], Any]:
    from datatrove.pipeline.dedup import MinhashDedupSignature

    step = MinhashDedupSignature(tempfile.mkdtemp())
    return lambda text: step.get_signature(step.get_shingles(text))


def _our_filters() -> Callable[[str], Any]:
    from dunwu.data.web.limits import limits
    from dunwu.data.web.quality import judge

    published = limits("en")
    return lambda text: judge(text, "en", published)


def _their_filters() -> Callable[[str], Any]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    steps = (
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    )

    def run(text: str) -> bool:
        page = Document(text=text, id="0")
        return all(step.filter(page) is True for step in steps)

    return run


def _extraction(config: BenchConfig) -> list[dict[str, Any]]:
    from dunwu.data.web.extract import extract

    raw = html_pages(config.seed, 4 if config.quick else 48)
    size = sum(map(len, raw)) // len(raw)
    rows = []
    for case, backend in (("extraction, fast", "fast"), ("extraction, quality", "quality")):
        if backend == "quality" and importlib.util.find_spec("trafilatura") is None:
            continue

        def once(backend: Any = backend) -> float:
            began = time.perf_counter()
            for page in raw:
                extract(page, backend)
            return len(raw) / (time.perf_counter() - began)

        figures = compare(once, None, config.pairs)
        rows.append({"case": f"{case}, {size // 1000} kB a page", "peer_name": None} | figures)
    return rows


def html_pages(seed: int, count: int) -> list[bytes]:
    """Real news pages where they lie beside the project, else articles of the world in HTML."""
    folder = REAL / "pages" / "html"
    if folder.is_dir():
        return [gzip.decompress(file.read_bytes()) for file in sorted(folder.iterdir())[:count]]
    texts = itertools.islice(documents(seed), count)
    return [b"<html><body><nav>menu</nav><article>%s</article></body></html>" % _paragraphs(text) for text in texts]


def _paragraphs(text: str) -> bytes:
    return "".join(f"<p>{line}</p>" for line in text.split("\n") if line).encode()


def _pipelines(folder: Path, config: BenchConfig, peers: bool) -> dict[str, Any]:
    """The same rows of HTML by both, one worker each: address, extraction, filters, MinHash, identities, records.

    Rows and not WARC, because datatrove's reader of that wants a system library.
    """
    count = 20 if config.quick else 600
    source = folder / "pages.jsonl.gz"
    with gzip.open(source, "wt", encoding="utf-8") as file:
        for number, text in enumerate(itertools.islice(documents(config.seed + 1), count)):
            html = f"<html><body><article>{_paragraphs(text).decode()}</article></body></html>"
            row = {"html": html, "id": str(number), "url": f"https://example.org/{number}"}
            file.write(json.dumps(row) + "\n")
    runs = itertools.count()

    def once(script: str) -> float:
        began = time.perf_counter()
        out = folder / f"run{next(runs)}"
        command = [sys.executable, "-c", script, str(source), str(out)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return count / (time.perf_counter() - began)

    figures = compare(lambda: once(_OURS), (lambda: once(_THEIRS)) if peers else None, max(1, config.pairs // 2))
    return {"case": "whole pipeline, one worker, start included", "peer_name": "datatrove" if peers else None} | figures


_OURS = """
import sys
from pathlib import Path
from dunwu.data.web.config import BuildConfig
from dunwu.data.web.engine import build
if __name__ == "__main__":
    build([sys.argv[1]], Path(sys.argv[2]), BuildConfig(tokenizer=""), workers=1)
"""
_THEIRS = """
import sys
from datatrove.executor import LocalPipelineExecutor as Local
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, URLFilter)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from pathlib import Path
if __name__ == "__main__":
    source, out = Path(sys.argv[1]), sys.argv[2]
    def run(name, steps, tasks=1):
        Local(steps, tasks=tasks, workers=1, logging_dir=f"{out}/logs/{name}").run()
    run("clean", [JsonlReader(str(source.parent), glob_pattern=source.name, text_key="html"), URLFilter(), Trafilatura(favour_precision=True),
                  GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False),
                  FineWebQualityFilter(), JsonlWriter(f"{out}/clean")])
    run("one", [JsonlReader(f"{out}/clean"), MinhashDedupSignature(f"{out}/sig")])
    run("two", [MinhashDedupBuckets(f"{out}/sig", f"{out}/pairs")], 14)
    run("three", [MinhashDedupCluster(f"{out}/pairs", f"{out}/drop")])
    run("four", [JsonlReader(f"{out}/clean"), MinhashDedupFilter(f"{out}/drop"), PIIFormatter(), JsonlWriter(f"{out}/records")])
"""


def _missing_peers(config: BenchConfig) -> dict[str, str]:
    if not config.peers:
        return {}
    absent = [
        name for name in ("spacy", "trafilatura", "ahocorasick", "fasteners") if importlib.util.find_spec(name) is None
    ]
    return {"datatrove": f"its steps need {', '.join(absent)}"} if absent else {}
