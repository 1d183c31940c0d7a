"""Which split a problem belongs to, and how a seed orders a split: both pure functions, nothing is stored.

A problem's split is a hash of the problem itself (its numbers whatever their order, and its target), so no seed, index,
range of numbers or version of a generator can put one problem into two splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from dunwu.types import UsageError, derive_seed

SPLITS = ("train", "valid", "test")
TEST_PERCENT = 10
VALID_PERCENT = 5


def split_of(numbers: Sequence[int], target: int) -> str:
    """The only split in which this problem may appear: "test" 10%, "valid" 5%, "train" the rest.

    Example:
        >>> split_of([3, 7, 12], 24) == split_of([12, 3, 7], 24)
        True
    """
    return split_by("countdown split", ",".join(map(str, sorted(numbers))), target)


def split_by(*content: object) -> str:
    """The only split of a problem, by all that makes it this problem; begin with the task's name.

    Example:
        >>> split_by("a task", 1, 2) == split_by("a task", 1, 2)
        True
    """
    bucket = derive_seed(*content) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "valid" if bucket < TEST_PERCENT + VALID_PERCENT else "train"


def check_draw(split: str, index: int) -> None:
    """Raise UsageError unless `split` is one of `SPLITS` and `index` is not negative."""
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", f"one of {', '.join(SPLITS)}")
    if index < 0:
        raise UsageError(f"problem index {index} is negative", "indices start at 0")


def permuted(index: int, size: int, *key: object) -> int:
    """Where a keyed permutation of range(size) sends `index`; any size, no table.

    Four Feistel rounds on the smallest even number of bits that holds `size`, walked until the result is in range.

    Example:
        >>> sorted(permuted(i, 5, "a key") for i in range(5))
        [0, 1, 2, 3, 4]
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is outside range({size})")
    seed = derive_seed(*key)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    place = index
    while True:
        left, right = place >> half, place & mask
        for step in range(4):
            left, right = right, left ^ (derive_seed(seed, step, right) & mask)
        place = left << half | right
        if place < size:
            return place


def count_multisets(low: int, high: int, size: int) -> int:
    """How many sorted tuples of `size` numbers from low..high there are."""
    return comb(high - low + size, size)


def multiset(rank: int, low: int, high: int, size: int) -> tuple[int, ...]:
    """The `rank`-th sorted tuple of `size` numbers from low..high, in lexicographic order.

    Example:
        >>> [multiset(rank, 1, 2, 2) for rank in range(3)]
        [(1, 1), (1, 2), (2, 2)]
    """
    numbers = []
    for place in range(size, 0, -1):
        while rank >= (here := count_multisets(low, high, place - 1)):
            rank -= here
            low += 1
        numbers.append(low)
    return tuple(numbers)
