"""Splits and orderings are pure functions with the properties the rest relies on."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import pytest

from dunwu.tasks.splits import SPLITS, check_draw, count_multisets, multiset, permuted, split_of
from dunwu.types import UsageError


def test_split_is_of_the_problem_not_of_its_order() -> None:
    assert {split_of(order, 24) for order in ([3, 7, 12], [12, 7, 3], (7, 12, 3))} == {split_of([3, 7, 12], 24)}


def test_shares() -> None:
    """10% test, 5% valid, within four standard deviations of 10,000 draws."""
    splits = [split_of([number, 3, 7], target) for number in range(100) for target in range(100)]
    assert abs(splits.count("test") - 1000) < 120
    assert abs(splits.count("valid") - 500) < 87
    assert set(splits) == set(SPLITS)


def test_splits_never_move() -> None:
    """Pinned: a change of these would let a trained model meet its test problems."""
    assert [target for target in range(100) if split_of([3, 7, 12], target) == "test"] == [
        13,
        18,
        23,
        26,
        29,
        38,
        39,
        42,
        44,
        69,
        79,
        90,
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1540])
def test_permuted_is_a_permutation(size: int) -> None:
    assert sorted(permuted(index, size, "key", 1) for index in range(size)) == list(range(size))


def test_permuted_depends_on_its_key_and_mixes() -> None:
    one, two = ([permuted(index, 1000, "key", key) for index in range(1000)] for key in (1, 2))
    assert one != two
    assert sum(a == b for a, b in zip(one, two)) < 12  # 1 expected
    assert sum(b == a + 1 for a, b in pairwise(one)) < 12


def test_permuted_outside() -> None:
    for index in (-1, 5):
        with pytest.raises(ValueError, match="outside"):
            permuted(index, 5)


@pytest.mark.parametrize(("low", "high", "size"), [(1, 6, 3), (0, 4, 2), (5, 5, 4), (3, 9, 1)])
def test_multisets_in_order(low: int, high: int, size: int) -> None:
    expected = list(combinations_with_replacement(range(low, high + 1), size))
    assert count_multisets(low, high, size) == len(expected)
    assert [multiset(rank, low, high, size) for rank in range(len(expected))] == expected


def test_check_draw() -> None:
    check_draw("test", 0)
    with pytest.raises(UsageError, match=r"unknown split 'tset'.*train, valid, test"):
        check_draw("tset", 0)
    with pytest.raises(UsageError, match="negative"):
        check_draw("test", -1)
