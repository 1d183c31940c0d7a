"""The whole pipeline on small inputs: what comes out, what is counted, and that it does not depend on who did the work."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from dunwu.data.web import engine
from dunwu.data.web.config import BuildConfig
from dunwu.data.web.engine import REPORT, build, find_files, group_files, read_report
from dunwu.data.web.records import FIELDS, read_records
from dunwu.types import DunwuError, UsageError

NOUNS = [
    "river",
    "harbour",
    "library",
    "orchard",
    "railway",
    "market",
    "bridge",
    "castle",
    "school",
    "garden",
    "engine",
    "letter",
    "window",
    "kitchen",
    "teacher",
    "village",
    "forest",
    "mountain",
    "painter",
    "station",
    "island",
    "doctor",
    "winter",
    "morning",
    "journal",
    "hammer",
    "captain",
    "farmer",
    "valley",
    "concert",
    "museum",
    "lantern",
    "barrel",
    "meadow",
    "carpet",
    "thunder",
    "pocket",
    "mirror",
    "shoulder",
    "canvas",
    "ladder",
    "basket",
]
VERBS = [
    "crossed",
    "painted",
    "described",
    "forgot",
    "carried",
    "opened",
    "admired",
    "repaired",
    "followed",
    "visited",
    "sketched",
    "measured",
    "borrowed",
    "remembered",
    "guarded",
    "watched",
    "planted",
    "gathered",
    "polished",
    "counted",
]


def article(number: int, sentences: int = 14) -> str:
    """An English text that FineWeb's filters keep; another for every number."""
    dice = Random(number)
    words = [*NOUNS, *VERBS, *("the", "of", "and", "to", "with", "that") * 9]
    return "\n".join(f"Those who {' '.join(dice.choices(words, k=16))}." for _ in range(sentences))


def write_warc(path, bodies):
    """Pages as a WARC; returns how many."""
    count = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        for count, body in enumerate(bodies, 1):
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
            head = (
                f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{count:032x}>\r\n"
                f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: https://example.org/{count}\r\n"
                f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
            )
            file.write(head.encode() + http + b"\r\n\r\n")
    return count


def write_pages(folder: Path, files: int = 3, pages: int = 8) -> Path:
    """JSONL files of articles; page 0 of every file repeats page 0 of the first, page 1 changes one word of it."""
    folder.mkdir()
    for file in range(files):
        rows = []
        for page in range(pages):
            text = article(file * pages + page)
            if file and page == 0:
                text = article(0)
            if page == 1:
                text = article(0).replace("Those who", "People who", 1)
            rows.append({"text": text, "id": f"{file}-{page}", "url": f"https://example.org/{file}/{page}"})
        rows.append({"text": "too short", "id": f"{file}-short"})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{file}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


CONFIG = BuildConfig(isolate=False, url_filter=False, tokenizer="", dump="test")
"""Without the address filter, whose lists take seconds to read."""


@pytest.fixture(scope="module", autouse=True)
def many_tasks():
    """A task per file, however small."""
    before, engine._GROUP_BYTES = engine._GROUP_BYTES, 1
    yield
    engine._GROUP_BYTES = before


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    source = write_pages(folder / "in")
    report = build([source], folder / "out", CONFIG, workers=1)
    return source, folder / "out", report


def records(out):
    return sorted(read_records(out), key=lambda record: record["id"])


def test_records_have_finewebs_fields_and_nothing_is_lost(built):
    _, out, report = built
    rows = records(out)
    assert tuple(rows[0]) == FIELDS
    assert rows[0]["dump"] == "test" and rows[0]["language"] == "en" and rows[0]["language_score"] > 0.65
    dropped = sum(sum(reasons.values()) for reasons in report["dropped"].values())
    assert report["pages"] == 27 and report["records"] == len(rows) and report["pages"] == len(rows) + dropped


def test_duplicates_go_and_the_first_stays(built):
    _, out, report = built
    kept = {row["id"] for row in records(out)}
    assert "0-0" in kept
    assert not kept & {"0-1", "1-0", "1-1", "2-0", "2-1"}
    # 1-1 and 2-1 equal 0-1 exactly; 1-0 and 2-0 equal 0-0; 0-1 is only like 0-0.
    assert report["dropped"]["duplicates"] == {"exact_duplicate": 4, "near_duplicate": 1}


def test_short_pages_are_dropped_for_their_reason(built):
    _, _, report = built
    assert report["dropped"]["gopher_repetition"] == {"top_2_gram": 3}


def test_the_work_folder_is_gone_and_the_same_call_does_nothing(built):
    source, out, report = built
    assert not (out / ".work").exists()
    stamp = (out / REPORT).stat().st_mtime_ns
    assert build([source], out, CONFIG, workers=1) == report == read_report(out)
    assert (out / REPORT).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_change_the_output(built, tmp_path, workers):
    source, out, report = built
    assert build([source], tmp_path / "out", CONFIG, workers=workers) == report
    assert records(tmp_path / "out") == records(out)
    mine, theirs = (sorted((folder / "records").iterdir()) for folder in (tmp_path / "out", out))
    assert [file.read_bytes() for file in mine] == [file.read_bytes() for file in theirs]


def test_other_settings_in_the_same_folder_are_refused(built):
    source, out, _ = built
    with pytest.raises(UsageError, match="other quality"):
        build([source], out, replace(CONFIG, quality="none"))
    with pytest.raises(UsageError, match="other inputs"):
        build([source / "0.jsonl.gz"], out, CONFIG)


def test_a_users_filter_and_decontamination_have_their_reasons(tmp_path):
    source = write_pages(tmp_path / "in", files=1)
    mine = tmp_path / "mine.py"
    mine.write_text("def keep(text, record):\n    return 'my reason' if record['id'].endswith('-3') else True\n")
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": article(5).split("\n")[2]}) + "\n")
    config = BuildConfig(isolate=False, url_filter=False, tokenizer="", filter=str(mine), decontaminate=(str(exam),))
    report = build([source], tmp_path / "out", config, workers=1)
    assert report["dropped"]["filter"] == {"my reason": 1}
    assert report["dropped"]["contamination"] == {"shows_exam.jsonl": 1}
    kept = {row["id"] for row in read_records(tmp_path / "out")}
    assert "0-3" not in kept and "0-5" not in kept and "0-6" in kept


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_filter_fails_the_build_in_one_line(tmp_path, workers):
    source = write_pages(tmp_path / "in")
    mine = tmp_path / "mine.py"
    mine.write_text("def keep(text, record):\n    return text.nothing\n")
    config = replace(CONFIG, filter=str(mine))
    with pytest.raises(DunwuError, match=r"mine\.py:2 failed on page [012]-0"):
        build([source], tmp_path / "out", config, workers=workers)
    assert not (tmp_path / "out" / REPORT).exists()
    mine.write_text("def keep(text, record):\n    return True\n")
    with pytest.raises(UsageError, match="other files"):
        build([source], tmp_path / "out", config, workers=workers)


def test_a_worker_that_dies_ends_the_build(tmp_path):
    source = write_pages(tmp_path / "in")
    mine = tmp_path / "mine.py"
    mine.write_text("import os\n\n\ndef keep(text, record):\n    os.kill(os.getpid(), 9)\n")
    with pytest.raises(DunwuError, match=r"process of task [0-9]+ of phase clean died"):
        build([source], tmp_path / "out", replace(CONFIG, filter=str(mine)), workers=2)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"filter": "nowhere.py"}, "no file"),
        ({"decontaminate": ("nowhere.jsonl",)}, "nowhere.jsonl"),
        ({"blocked": ("nowhere.txt",)}, "no file"),
        ({"tokenizer": "nowhere"}, "no tokenizer"),
        ({"languages": ("english",)}, "no language label"),
    ],
)
def test_faults_of_the_users_files_are_told_before_anything_is_made(tmp_path, change, said):
    source = write_pages(tmp_path / "in", files=1)
    with pytest.raises(DunwuError, match=said):
        build([source], tmp_path / "out", replace(CONFIG, **change))
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_told_and_its_rest_read(tmp_path):
    bodies = (f"<html><body><article><p>{article(n)}</p></article></body></html>".encode() for n in range(6))
    write_warc(tmp_path / "crawl.warc.gz", bodies)
    raw = (tmp_path / "crawl.warc.gz").read_bytes()
    (tmp_path / "crawl.warc.gz").write_bytes(raw[: len(raw) * 2 // 3])
    report = build([tmp_path / "crawl.warc.gz"], tmp_path / "out", replace(CONFIG, extraction="fast"))
    assert 2 <= report["records"] < 6
    assert report["notes"]["read"]["truncated_gzip"] == 1


def test_one_file_is_extracted_by_several_processes_to_the_same_records(tmp_path):
    bodies = [f"<html><body><article><p>{article(n)}</p></article></body></html>".encode() for n in range(30)]
    write_warc(tmp_path / "crawl.warc.gz", iter(bodies))
    isolated = replace(CONFIG, extraction="fast", isolate=True)
    for workers in (1, 3):
        build([tmp_path / "crawl.warc.gz"], tmp_path / str(workers), isolated, workers=workers)
    assert records(tmp_path / "1") == records(tmp_path / "3") and len(records(tmp_path / "1")) == 30


def test_parquet_holds_the_same_records(built, tmp_path):
    pytest.importorskip("pyarrow")
    source, out, _ = built
    build([source], tmp_path / "out", CONFIG, format="parquet")
    assert records(tmp_path / "out") == records(out)


def test_text_pages_stream(tmp_path):
    """However many pages of text there are, few are held at a time."""
    from datatrove.data import Document

    from dunwu.data.web.ledger import Ledger
    from dunwu.data.web.steps import _RUN_PAGES, ExtractText

    taken = 0

    def pages():
        nonlocal taken
        for n in range(5000):
            taken += 1
            yield Document("", str(n), metadata={"_content": "text", "_kind": "text", "_charset": None})

    step = ExtractText(CONFIG, Ledger())
    for seen, _ in enumerate(step.run(pages()), 1):
        assert taken - seen <= _RUN_PAGES
    assert seen == 5000


def test_a_folder_inside_the_input_is_no_input(tmp_path):
    source = write_pages(tmp_path / "in", files=1)
    (source / ".git").mkdir()
    (source / ".git" / "x.json").write_text("{}")
    report = build([source], source / "out", CONFIG, workers=1)
    assert build([source], source / "out", CONFIG, workers=1) == report
    (source / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(DunwuError, match="leads nowhere"):
        find_files([source])


def test_shown_pages_are_those_that_stayed(built):
    _, out, report = built
    kept = {row["id"] for row in records(out)}
    assert report["shown"] and {page["id"] for page in report["shown"]} <= kept


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(tmp_path):
    source = write_pages(tmp_path / "in", files=2)
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom dunwu.data.web.engine import build\n"
        "from dunwu.types import DunwuError\nfrom tests.data.web.test_engine import CONFIG\n"
        "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "if __name__ == '__main__':\n    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "    try:\n        build([sys.argv[1]], Path(sys.argv[2]), CONFIG, workers=1)\n"
        "    except (DunwuError, OSError) as error:\n        print('told:', error)\n"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "told: " in done.stdout and "File too large" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "out" / REPORT).exists()
    assert build([source], tmp_path / "out", CONFIG, workers=1)["records"] > 0
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_missing_inputs_are_named_before_anything_is_made(tmp_path):
    with pytest.raises(DunwuError, match="no such file"):
        build([tmp_path / "none.warc"], tmp_path / "out", CONFIG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DunwuError, match="no pages in"):
        build([tmp_path / "empty"], tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_groups_follow_from_the_files_alone(tmp_path):
    for n in range(300):
        (tmp_path / f"{n:03}.html").write_bytes(b"x" * (50_000 if n % 10 else 900_000))
    engine._GROUP_BYTES = 1 << 20
    files = find_files([tmp_path])
    groups = group_files(files)
    engine._GROUP_BYTES = 1
    assert [file for group in groups for file in group] == files
    assert files[0].name == f"{tmp_path.name}/000.html"
    assert 20 < len(groups) <= 64
    assert group_files(files[:1]) == [files[:1]]
