"""What the documentation says is so: its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dunwu.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", page.read_text(encoding="utf-8"))
    targets = [first or second for first, second in links]
    missing = [
        t for t in targets if not t.startswith(("http:", "https:", "mailto:")) and not (page.parent / t).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_exist(page: Path) -> None:
    named = re.findall(r"(?:^\s*\$ |`|bin/)dunwu ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    known = {name.split()[0] for name in COMMANDS}
    assert set(named) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(
        r"`make ([a-z0-9-]+)|^\s+make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert {first or second for first, second in named} <= targets
