"""What the data pipeline does on real files, as one JSON object. Not collected by pytest: it takes minutes.

    python tests/data_figures.py [--texts 5000] > FILE
    python tests/data_figures.py --memory 10 100 1000 > FILE

The second shows the peak memory of whole builds by the size of their input. The first needs ../shared/data, trafilatura and datatrove's word splitters (the extra `dev`); it has the extraction's F1 on the
benchmark's 48 pages, what each crawl archive gives, a whole build of all of them, and how many of so many texts
get datatrove's own verdict from each filter.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared" / "data"


def extraction() -> dict[str, Any]:
    """Mean precision and recall over the pages' 4-gram shingles, as scrapinghub's benchmark has them."""
    from dunwu.data.web.extract import extract
    from dunwu.data.web.extract_score import score

    truth = json.loads((DATA / "pages" / "ground-truth.json").read_text(encoding="utf-8"))
    raw = {name: gzip.decompress((DATA / "pages" / "html" / f"{name}.html.gz").read_bytes()) for name in truth}
    found = {}
    for backend in ("quality", "fast"):
        scored = score((page["articleBody"], extract(raw[name], backend)) for name, page in truth.items())
        found[backend] = {name: round(getattr(scored, name), 4) for name in ("f1", "precision", "recall", "pages")}
    return found


def archives() -> dict[str, Any]:
    """Pages, and whatever else was told, of every archive."""
    from dunwu.data.web.read import read_pages

    found = {}
    for path in sorted((DATA / "warc").iterdir()):
        told: Counter[str] = Counter()
        count = sum(1 for _ in read_pages(path, on_skip=lambda reason, detail, told=told: told.update([reason])))
        found[path.name] = {"pages": count, "told": dict(sorted(told.items()))}
    return found


def whole_build() -> dict[str, Any]:
    """Crawl samples and pages through the pipeline."""
    from dunwu.data.web.config import BuildConfig
    from dunwu.data.web.engine import build

    with tempfile.TemporaryDirectory() as out:
        report = build([*sorted((DATA / "warc").iterdir()), DATA / "pages" / "html"], Path(out) / "o", BuildConfig())
    return {name: report[name] for name in ("pages", "records", "tokens", "dropped", "notes")}


def parity(count: int) -> dict[str, Any]:
    """Texts with datatrove's verdict, filter by filter."""
    from tests.data.web import test_quality

    names = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
    equal, reasons = Counter[str](), Counter[str]()
    for text in test_quality.corpus(count):
        mine = test_quality.ours(text)
        for name, step, verdict in zip(names, test_quality.their_filters(), mine):
            wanted = test_quality.theirs(step, text)
            equal[name] += verdict == wanted
            reasons[wanted[1] or "kept"] += 1
    return {"texts": count, "equal": dict(equal), "verdicts": dict(reasons.most_common())}


_PEAK = """
import json, resource, sys
from pathlib import Path
from dunwu.data.web.config import BuildConfig
from dunwu.data.web.engine import build
if __name__ == "__main__":
    report = build([sys.argv[1]], Path(sys.argv[2]), BuildConfig(tokenizer="", isolate=False), workers=1)
    print(json.dumps([report["pages"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def memory(folder: Path, megabytes: Sequence[int]) -> dict[str, Any]:
    """Peak memory of a whole build of JSONL input of so many megabytes, one worker, everything in one process."""
    from dunwu.bench.data import documents

    peaks = {}
    for size in megabytes:
        source = folder / f"{size}.jsonl"
        with open(source, "w", encoding="utf-8") as file:
            for number, text in enumerate(documents(size)):
                file.write(json.dumps({"text": text, "id": str(number)}) + "\n")
                if file.tell() > size * 1_000_000:
                    break
        command = [sys.executable, "-c", _PEAK, str(source), str(folder / f"memory{size}")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        count, peak = json.loads(done.stdout.splitlines()[-1])
        peaks[str(size)] = {"pages": count, "peak_mb": round(peak)}
        source.unlink()
    return peaks


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument(
        "--memory", type=int, nargs="*", metavar="MB", help="peak memory of builds of so much input, nothing else"
    )
    args = parser.parse_args()
    if args.memory:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"memory": memory(Path(folder), args.memory)}, indent=1))
        return
    found = {"extraction": extraction(), "archives": archives(), "build": whole_build(), "parity": parity(args.texts)}
    print(json.dumps(found, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
