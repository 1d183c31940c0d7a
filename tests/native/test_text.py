"""The text kernels against xxhash and against the permutations in Python's own integers; numpy's path has the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dunwu.native import build, text

PATHS = ["native", "numpy"]


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything here is asked of both."""
    if request.param == "numpy":
        monkeypatch.setattr(text, "_native", lambda: None)
    elif text._native() is None:
        pytest.skip("no C compiler, or kernels switched off")
    yield request.param


def test_the_kernel_is_the_one_that_was_built(path: str) -> None:
    assert (text._native() is not None) == (path == "native")
    assert path == "numpy" or build.library("text") is text._native()


def test_every_length_hashes_as_xxhash() -> None:
    data = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
    starts = np.arange(150).repeat(2)
    ends = np.concatenate([starts[::2] + np.arange(150), starts[1::2]]).reshape(2, 150).T.ravel()
    for seed in (0, 1, 2**64 - 1):
        expected = [xxhash.xxh64_intdigest(data[a:b], seed) for a, b in zip(starts.tolist(), ends.tolist())]
        assert text.hash_spans(data, starts, ends, seed).tolist() == expected


def test_no_spans_no_hashes() -> None:
    nothing = np.empty(0, np.int64)
    assert text.hash_spans(b"", nothing, nothing).tolist() == []


@pytest.mark.parametrize("span", [(-1, 2), (0, 4), (2, 1), (4, 4)])
def test_a_span_outside_the_text_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not parts of 3 bytes"):
        text.hash_spans(b"abc", np.array([0, span[0]]), np.array([3, span[1]]))
    with pytest.raises(ValueError, match="not parts"):
        text.hash_spans(b"abc", np.array([0, 1]), np.array([3]))


WORD64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**61 - 2, 2**61 - 1, 2**61, 2**64 - 1])


@given(st.lists(WORD64, min_size=1, max_size=9), st.lists(st.tuples(WORD64, WORD64), min_size=1, max_size=9))
def test_minima_are_those_of_exact_arithmetic(values: list[int], permutations: list[tuple[int, int]]) -> None:
    factors, terms = (np.array(column, np.uint64) for column in zip(*permutations))
    found = text.minima(np.array(values, np.uint64), factors, terms).tolist()
    assert found == [min((x * a + b) % 2**64 % (2**61 - 1) for x in values) for a, b in permutations]


def test_many_values_are_the_minimum_of_parts() -> None:
    dice = np.random.default_rng(1)
    values, factors, terms = (dice.integers(0, 2**63, size, dtype=np.uint64) for size in (5000, 112, 112))
    parts = [text.minima(values[n : n + 700], factors, terms) for n in range(0, 5000, 700)]
    assert (text.minima(values, factors, terms) == np.minimum.reduce(parts)).all()


def test_minima_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="minima of 0 values"):
        text.minima(np.empty(0, np.uint64), np.ones(1, np.uint64), np.ones(1, np.uint64))
    with pytest.raises(ValueError, match="1 values"):
        text.minima(np.ones(1, np.uint64), np.ones(2, np.uint64), np.ones(1, np.uint64))
