"""Sorted tables of keys, merged in bounded memory: which documents have equal keys.

A row is a key of W uint64, then the rank and the number of the document that has it: (rows, W + 2) uint64, in
lexicographic order. Nothing here depends on how rows are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.uint64]


def sort_rows(rows: Rows) -> Rows:
    """A sorted copy. One fast sort by the first column; further columns only where that leaves ties."""
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    same = rows[1:, 0] == rows[:-1, 0]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        group = rows[tied]
        rows[tied] = group[np.lexsort(group.T[::-1])]
    return rows


def merge(sources: Sequence[Iterator[Rows]]) -> Iterator[Rows]:
    """Blocks of sorted sources as blocks of the sorted whole; holds about two blocks of each source.

    Every round emits all rows up to the lowest of the blocks' last rows: what the sources have yet to show is above it.
    """
    held = [next(source, None) for source in sources]
    while True:
        alive = [n for n, rows in enumerate(held) if rows is not None]
        if not alive:
            return
        lowest, bound = min((_last(held[n]), n) for n in alive)[::-1]
        parts = []
        for n in alive:
            rows = held[n]
            assert rows is not None
            cut = len(rows) if n == lowest else _count_up_to(rows, bound)
            parts.append(rows[:cut])
            held[n] = _refilled(rows[cut:], sources[n], len(rows))
        yield sort_rows(np.concatenate(parts))


def _last(rows: Rows | None) -> list[int]:
    assert rows is not None
    last: list[int] = rows[-1].tolist()
    return last


def _refilled(rows: Rows, source: Iterator[Rows], before: int) -> Rows | None:
    """Topped up when half is gone, so that each round emits much of every block."""
    if 2 * len(rows) >= max(before, 1):
        return rows
    more = next(source, None)
    if more is None:
        return rows if len(rows) else None
    return np.concatenate([rows, more])


def _count_up_to(rows: Rows, bound: list[int]) -> int:
    """Rows that are at most `bound`."""
    low, high = 0, len(rows)
    for column, value in enumerate(bound):
        part, sought = rows[low:high, column], np.uint64(value)
        low, high = low + int(np.searchsorted(part, sought)), low + int(np.searchsorted(part, sought, side="right"))
        if low == high:
            break
    return high


def equal_pairs(blocks: Iterable[Rows], width: int) -> Iterator[Rows]:
    """Neighbours with equal keys as (pairs, 4) uint64: rank and number of the first, rank and number of the second."""
    before: Rows | None = None
    for rows in blocks:
        if before is not None:
            rows = np.concatenate([before, rows])
        before = rows[-1:]
        seconds = np.flatnonzero(rows[1:, 0] == rows[:-1, 0]) + 1
        seconds = seconds[(rows[seconds, :width] == rows[seconds - 1, :width]).all(axis=1)]
        if len(seconds):
            yield np.hstack([rows[seconds - 1, width:], rows[seconds, width:]])


def components(pairs: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Connected components of (pairs, 2) nodes: all nodes in order, and the lowest node of each one's component; (N,).

    Example:
        >>> nodes, lowest = components(np.array([[7, 3], [9, 7], [4, 5]], np.uint64))
        >>> nodes.tolist(), lowest.tolist()
        ([3, 4, 5, 7, 9], [3, 4, 4, 3, 3])
    """
    nodes, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    label = np.arange(len(nodes))
    while True:
        ends = label[ends]  # roots, since every label is one
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return nodes, nodes[label]
        ends = np.unique(np.sort(ends, axis=1), axis=0)
        np.minimum.at(label, ends[:, 1], ends[:, 0])
        while not np.array_equal(label, jumped := label[label]):
            label = jumped
