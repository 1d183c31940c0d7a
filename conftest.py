"""What every test leaves as it found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _floats_as_they_were() -> Iterator[None]:
    """A recipe run in the test's own process flushes subnormal floats to zero, for speed; the next test wants them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
