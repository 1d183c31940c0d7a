"""The world as a crawl, cleaned: what comes out, how well, and that it is the same wherever it is made."""

from pathlib import Path

import pytest

from dunwu.data.web.records import read_records
from dunwu.disk import plain
from dunwu.eval.report_cleaning import cleaning
from dunwu.log import Run, read_json
from dunwu.recipes.r1_config import CrawlConfig
from dunwu.recipes.r1_crawl import SCORES, _write_dump, cleaned, crawled
from dunwu.recipes.r1_presets import WIDE
from dunwu.store import Artifact, Store
from dunwu.world.crawl import CrawlKnobs

CRAWL = CrawlConfig(pages=700, rubbish=CrawlKnobs(contaminated=0.01, dump=350))


def make(home: Path) -> Artifact:
    with Run.open(home / "run", "r1", CRAWL, 0, Store(home / "store")) as run:
        return cleaned(run, CRAWL, crawled(run, CRAWL, WIDE, 0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make(tmp_path_factory.mktemp("one"))


def test_good_pages_stay_and_rubbish_goes(made: Artifact) -> None:
    scores = read_json(made.path / SCORES)
    assert scores["whole"]["good_kept_share"] > 0.98
    assert scores["whole"]["rubbish_dropped_share"] == 1.0
    assert scores["text"]["exact_share"] == 1.0
    assert scores["pii"]["recall"] == scores["pii"]["precision"] == 1.0
    for step in ("url", "exact_duplicate", "near_duplicate", "contaminated"):
        assert scores["steps"][step]["recall"] == 1.0 and scores["steps"][step]["right"] > 0, step


def test_records_tell_their_dump_and_file(made: Artifact) -> None:
    found = {(record["dump"], record["file_path"]) for record in read_records(made.path / "build")}
    assert found == {("world-000", "warc/000.warc.gz"), ("world-001", "warc/001.warc.gz")}


def test_another_home_makes_the_same_bytes(made: Artifact, tmp_path: Path) -> None:
    other = make(tmp_path)
    assert other.key == made.key

    def contents(artifact: Artifact) -> dict[str, bytes]:
        files = [file for file in sorted(artifact.path.rglob("*")) if file.is_file() and file.name != "meta.json"]
        return {str(file.relative_to(artifact.path)): file.read_bytes() for file in files if "build" in file.parts}

    assert contents(other) == contents(made) and contents(made)


def test_a_killed_crawl_goes_on_with_its_missing_dumps(tmp_path: Path) -> None:
    jobs = [(tmp_path, number, 350, CRAWL, WIDE, 0) for number in (0, 1)]
    for job in jobs:
        _write_dump(job)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    kept, lost = (tmp_path / "warc" / f"{number:03d}.warc.gz" for number in (0, 1))
    written = kept.stat().st_mtime_ns
    lost.unlink()
    assert [_write_dump(job) for job in jobs] == [350, 350]
    assert kept.stat().st_mtime_ns == written
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def test_the_section_of_the_report(made: Artifact) -> None:
    scores = read_json(made.path / SCORES)
    page = cleaning({"cleaning": plain(scores)})
    assert "near-duplicates" in page and "precision" in page and "1.0000" in page
    assert cleaning({}) == ""
