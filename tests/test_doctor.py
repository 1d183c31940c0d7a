"""The doctor tells what is, and for each trouble its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dunwu import doctor


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "deep" / "home"))
    return doctor.examine()


def test_this_machine_can_run_dunwu(facts: dict[str, Any], tmp_path: Path) -> None:
    assert facts["ok"]
    assert facts["cores"] >= 1
    assert facts["home"]["path"] == str(tmp_path / "deep" / "home")
    assert facts["home"]["writable"]
    assert facts["torch"]["version"]
    assert not (tmp_path / "deep").exists(), "looking changes nothing"


@pytest.mark.parametrize(
    ("change", "level", "what", "cure"),
    [
        ({"python": "3.9.1"}, "broken", "3.9.1 is too old", "PYTHON="),
        (
            {"torch": {"version": None, "gpu": None, "error": "libx.so"}},
            "broken",
            "torch does not load: libx.so",
            "pip",
        ),
        ({"home": {"path": "/h", "writable": False, "free_gib": 9.0}}, "broken", "/h is not writable", "DUNWU_HOME"),
        ({"home": {"path": "/h", "writable": True, "free_gib": 0.5}}, "slow", "0.5 GiB free at /h", "gc"),
        ({"memory_gib": 2.0}, "slow", "2.0 GiB of memory", "--preset tiny"),
        ({"threads": 64, "cores": 2}, "slow", "64 threads on 2 cores", "OMP_NUM_THREADS=2"),
        ({"native": {"dtypes": [], "compiler": None, "off": False}}, "slow", "no C compiler", "gcc"),
        ({"native": {"dtypes": [], "compiler": "cc", "off": True}}, "slow", "switched off", "DUNWU_NATIVE"),
    ],
)
def test_each_trouble_has_its_cure(
    facts: dict[str, Any], change: dict[str, Any], level: str, what: str, cure: str
) -> None:
    found = [finding for finding in doctor.judge(facts | change) if what in finding["what"]]
    assert [finding["level"] for finding in found] == [level]
    assert cure in found[0]["cure"]
    native = {"dtypes": ["float32"], "compiler": "cc", "off": False}
    assert what not in str(doctor.judge(facts | {"threads": 1, "native": native, "memory_gib": 9.0}))
