"""What the tests of training share; it makes this folder's helpers importable: pytest's importlib mode does not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dunwu.data.shards import PackedShards, ShardWriter

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def shards(tmp_path: Path) -> PackedShards:
    """A text of counting in windows of 16, with a little noise: 40 ids, 0 the end."""
    writer = ShardWriter(tmp_path / "train", 40, end_id=0)
    dice = np.random.default_rng(0)
    writer.add([[1 + (n * n + int(dice.integers(2))) % 30 for n in range(start, start + 40)] for start in range(40)])
    writer.close()
    return PackedShards(tmp_path / "train", 16, seed=1)
