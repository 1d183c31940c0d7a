"""The wheel has everything that the checkout has, and the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dunwu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        entry_points = archive.read(entry).decode()
    tracked = subprocess.run(["git", "ls-files", "dunwu"], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = set(tracked.stdout.split()) or {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "dunwu").rglob("*.py")
    }
    assert expected <= inside
    assert {"dunwu/py.typed", "dunwu/types.py"} <= inside
    assert "dunwu = dunwu.cli:main" in entry_points
    assert not any(name.startswith("tests") for name in inside)
