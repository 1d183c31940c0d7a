"""Ray and Slurm run the same phases to the same bytes; and all of it without a network."""

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dunwu.data.web.engine import REPORT, Slurm, build, read_report
from dunwu.data.web.minhash import MinhashConfig
from dunwu.types import UsageError
from tests.data.web.test_build_kill import contents
from tests.data.web.test_engine import CONFIG, many_tasks, write_pages  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
from pathlib import Path
from dunwu.data.web import engine
from tests.data.web.test_executors import FEW
engine._GROUP_BYTES = 1
if __name__ == "__main__":
    engine.build([sys.argv[1]], Path(sys.argv[2]), FEW, workers=2, executor=sys.argv[3])
"""
FEW = replace(CONFIG, minhash=MinhashConfig(buckets=2))
"""Ray starts an actor for every task, which takes seconds."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    source = write_pages(folder / "in", files=2, pages=4)
    build([source], folder / "out", FEW, workers=1)
    return source, folder / "out"


def test_a_real_ray_gives_the_same_records(plain, tmp_path):
    pytest.importorskip("ray", reason="pip install 'dunwu[ray]'")
    source, whole = plain
    command = [sys.executable, "-c", SCRIPT, str(source), str(tmp_path / "out"), "ray"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(whole)
    assert read_report(tmp_path / "out") == read_report(whole)


def test_slurm_gives_the_same_records(plain, tmp_path, monkeypatch):
    """A stand-in for sbatch that runs each array job at once, in order: what it is given is what a cluster is given."""
    source, whole = plain
    programs = tmp_path / "bin"
    programs.mkdir()
    launcher = Path(sys.executable).with_name("launch_pickled_pipeline")
    written = {
        "sbatch": f"""#!{sys.executable}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
count = re.search(r"array=0-([0-9]+)", text)
if count:
    for n in range(int(count[1]) + 1):
        extra = dict(part.split("=") for arg in sys.argv if arg.startswith("--export=ALL,") for part in arg[13:].split(","))
        done = subprocess.run(["bash", script], env={{**os.environ, **extra, "SLURM_ARRAY_TASK_ID": str(n), "SLURM_NODELIST": "localhost",
            "SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_CPU": "1"}}, stdout=2)
        if done.returncode:
            raise SystemExit(done.returncode)
print("Submitted batch job 1")
""",
        "srun": '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = "-n" ] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/sh\necho localhost\n",
        "launch_pickled_pipeline": f'#!/bin/sh\nexec {sys.executable} {launcher} "$@"\n',
    }
    for name, text in written.items():
        (programs / name).write_text(text)
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    said = build([source], tmp_path / "out", FEW, executor="slurm", slurm=Slurm(partition="cpu"))
    assert said["submitted"] == ["clean", "pairs", "clusters", "write", "finish"]
    assert contents(tmp_path / "out") == contents(whole)
    assert read_report(tmp_path / "out") == read_report(whole)


def test_slurm_without_sbatch_is_told(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="no sbatch"):
        build([plain[0]], tmp_path / "out", CONFIG, executor="slurm")


NO_NETWORK = """
import os, socket
connect = socket.socket.connect
def refuse(*_):
    os.write(2, b"something asked for the network")
    os._exit(3)
def local_only(self, address):
    return connect(self, address) if self.family == socket.AF_UNIX else refuse()
socket.socket.connect, socket.getaddrinfo = local_only, refuse
"""


def test_nothing_asks_for_the_network(plain, tmp_path):
    """With the address filter, quality extraction and GPT-2's tokens: everything that elsewhere downloads."""
    script = NO_NETWORK + (
        "from dataclasses import replace\n"
        + SCRIPT.replace("FEW, workers=2, executor=sys.argv[3]", "WIDE, workers=1").replace(
            'if __name__ == "__main__":',
            'WIDE = replace(FEW, url_filter=True, tokenizer="gpt2")\nif __name__ == "__main__":',
        )
    )
    page = tmp_path / "page.html"
    page.write_text("<html><body><article><p>A page of its own, with words.</p></article></body></html>")
    done = subprocess.run(
        [sys.executable, "-c", script, str(page), str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / REPORT).is_file()
