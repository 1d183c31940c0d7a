"""A build killed with SIGKILL, at moments spread over all its phases, and started again ends with the same records."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dunwu.data.web.engine import build, read_report
from tests.data.web.test_engine import CONFIG, many_tasks, write_pages  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
from pathlib import Path
from dunwu.data.web import engine
from tests.data.web.test_engine import CONFIG
engine._GROUP_BYTES = 1
if __name__ == "__main__":
    engine.build([sys.argv[1]], Path(sys.argv[2]), CONFIG, workers=2)
"""


def contents(out):
    return {file.name: file.read_bytes() for file in sorted((out / "records").iterdir())}


def start(source, out):
    command = [sys.executable, "-c", SCRIPT, str(source), str(out)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)


MARKS = (
    "logs/clean",
    "beats/clean/1",
    "ledgers/clean-00000.json",
    "logs/pairs",
    "pairs/test",
    "logs/clusters",
    "drop-exact",
    "logs/write",
    "ledgers/write-00001.json",
    "logs/finish",
)
"""What a build has made when it is killed: every phase, before, amid and after its tasks."""


@pytest.mark.timeout(280)
def test_ten_kills_change_nothing(tmp_path):
    source = write_pages(tmp_path / "in", files=4, pages=6)
    whole = build([source], tmp_path / "whole", CONFIG, workers=1)
    out, killed = tmp_path / "killed", []
    for mark in MARKS:
        process = start(source, out)
        while process.poll() is None and not (out / ".work" / mark).exists():
            time.sleep(0.001)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed.append(mark)
    final = start(source, out)
    assert final.wait() == 0, final.stderr.read().decode()
    assert killed == list(MARKS)
    assert read_report(out) == whole
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.rglob("*.tmp"))


def test_killing_the_parent_alone_leaves_no_worker_behind(tmp_path):
    source = write_pages(tmp_path / "in", files=4, pages=6)
    out = tmp_path / "out"
    process = start(source, out)
    while process.poll() is None and not (out / ".work" / "beats").exists():
        time.sleep(0.005)
    group = process.pid
    process.kill()
    process.wait()
    for _ in range(400):
        if not alive(group):
            break
        time.sleep(0.05)
    assert not alive(group)
    assert build([source], out, CONFIG, workers=1)["records"] > 0


def alive(group):
    """Processes of a group that are not zombies."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout.split("\n")
    return [line for line in found if line.split()[:1] == [str(group)] and "Z" not in line.split()[1]]


def test_settings_that_do_not_change_records_are_not_in_the_plan(tmp_path):
    source = write_pages(tmp_path / "in", files=2, pages=3)
    report = build([source], tmp_path / "out", CONFIG, workers=2)
    assert build([source], tmp_path / "out", CONFIG, workers=1) == report
