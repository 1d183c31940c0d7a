"""Mixtures: shares at every moment, batches from the step alone, every window once an epoch, caps kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data.mixture import CYCLE, MixedShards, Source, cycle_counts, interleave, shares
from dunwu.data.shards import ShardWriter
from dunwu.types import DunwuError, UsageError

LENGTH = 8
WEIGHTS = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three folders whose tokens say where they lie: (folder, position), no window twice the same."""
    made = []
    for number, tokens in enumerate((1000, 400, 160)):
        folder = tmp_path_factory.mktemp(f"part{number}")
        writer = ShardWriter(folder, 60_000, end_id=0, shard_tokens=300)
        writer.add([range(number * 2000 + 1, number * 2000 + tokens)])
        writer.close()
        made.append(folder)
    return made


def mixed(folders: list[Path], weights: tuple[float | None, ...] = (None, None, None), temperature: float = 1.0,
          epochs: tuple[float, ...] = (0, 0, 0), seed: int = 3) -> MixedShards:  # fmt: skip
    names = "abc"
    sources = [Source(f, names[n], weights[n], epochs[n]) for n, f in enumerate(folders[: len(weights)])]
    return MixedShards(sources, LENGTH, seed, temperature)


def origin(window: np.ndarray) -> int:
    return int(window[0]) // 2000


@given(WEIGHTS, st.floats(0.3, 10.0))
@settings(max_examples=30, deadline=None)
def test_shares_follow_the_formula(amounts: list[float], temperature: float) -> None:
    found = shares(amounts, temperature)
    powers = [amount ** (1 / temperature) for amount in amounts]
    assert found == pytest.approx([power / sum(powers) for power in powers])


@given(WEIGHTS)
@settings(max_examples=25, deadline=None)
def test_every_prefix_has_its_shares_within_one_window(amounts: list[float]) -> None:
    wanted = shares(amounts)
    counts = cycle_counts(wanted, longest=1000)
    cycle = sum(counts)
    assert len(wanted) <= cycle <= 1000 and min(counts) >= 1
    order = interleave(counts)
    so_far = np.cumsum(order[:, None] == np.arange(len(counts)), axis=0)
    due = np.arange(1, cycle + 1)[:, None] * np.asarray(counts) / cycle
    assert np.abs(so_far - due).max() < 1
    assert so_far[-1].tolist() == counts
    rounded = [share for share in wanted if share >= 1 / 1000]  # smaller ones get their one window
    if len(rounded) == len(wanted):
        assert np.abs(np.asarray(counts) / cycle - wanted).max() < 1 / 1000


def test_decimal_shares_are_met_exactly() -> None:
    assert cycle_counts([0.625, 0.25, 0.125]) == [5, 2, 1]
    assert cycle_counts([0.9999, 0.0001]) == [9999, 1]
    assert cycle_counts([1.0]) == [1]
    tiny = cycle_counts([1 - 1e-9, 1e-9])
    assert tiny[1] == 1 and sum(tiny) == CYCLE  # no source is left out


def test_a_mixture_has_its_shares_at_every_moment(folders: list[Path]) -> None:
    parts = mixed(folders, (5.0, 3.0, 2.0))
    assert parts.shares == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})
    seen: Counter[int] = Counter()
    for position in range(500):
        seen[origin(parts.window(position))] += 1
        for source, share in enumerate((0.5, 0.3, 0.2)):
            assert abs(seen[source] - share * (position + 1)) < 1
        if position % 50 == 49:
            assert parts.counts(position + 1) == {"a": seen[0], "b": seen[1], "c": seen[2]}
    assert parts.epochs(500)["c"] == pytest.approx(100 / parts.parts[2].total)


def test_without_weights_tokens_decide_and_temperature_lifts_the_small(folders: list[Path]) -> None:
    assert mixed(folders).shares == pytest.approx({"a": 1000 / 1560, "b": 400 / 1560, "c": 160 / 1560})
    warm = mixed(folders, temperature=100.0).shares
    assert warm == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, rel=0.02) and warm["a"] > warm["c"]


def test_a_batch_is_a_function_of_the_step(folders: list[Path]) -> None:
    epochs = (0.0, 1.5, 2.0)
    parts, other = mixed(folders, epochs=epochs), mixed(folders, epochs=epochs)
    in_order = [parts.batch(step, 4) for step in range(120)]
    for step in np.random.default_rng(0).permutation(120):
        assert np.array_equal(other.batch(int(step), 4), in_order[step])
    assert np.array_equal(np.concatenate(in_order[6:8]), other.batch(3, 8))  # the number of rows changes no order
    assert not np.array_equal(mixed(folders, epochs=epochs, seed=4).batch(5, 4), in_order[5])


def test_each_window_is_seen_once_an_epoch(folders: list[Path]) -> None:
    parts = mixed(folders, (1.0, 1.0))
    sizes = [part.total for part in parts.parts]
    windows = [parts.window(position) for position in range(2 * sum(sizes))]
    for source, size in enumerate(sizes):
        own = [window.tobytes() for window in windows if origin(window) == source]
        assert len(own) == sum(sizes)
        assert len(set(own[:size])) == size  # the first epoch repeats nothing


@pytest.mark.parametrize("caps", [(1.0, 2.0, 3.0), (2.5, 0.5, 1.0), (1.0, 1.0, 1.0)])
def test_a_source_leaves_when_it_has_given_what_it_may(folders: list[Path], caps: tuple[float, ...]) -> None:
    parts = mixed(folders, (1.0, 2.0, 3.0), epochs=caps)
    most = [int(cap * part.total) for cap, part in zip(caps, parts.parts)]
    assert parts.windows == sum(most)
    seen: Counter[int] = Counter()
    for position in range(sum(most)):
        source = origin(parts.window(position))
        assert seen[source] < most[source]
        seen[source] += 1
        assert list(parts.counts(position + 1).values()) == [seen[0], seen[1], seen[2]]
    assert [seen[n] for n in range(3)] == most
    assert all(passes <= cap for passes, cap in zip(parts.epochs(sum(most)).values(), caps))
    for ask in (lambda: parts.window(sum(most)), lambda: parts.require(sum(most) + 1), lambda: parts.batch(10**6, 4)):
        with pytest.raises(DunwuError, match="the sources end after"):
            ask()


@given(st.lists(st.floats(0.1, 9.0), min_size=3, max_size=3), st.lists(st.sampled_from([0.0, 0.7, 1.0, 2.0]), min_size=3, max_size=3))  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_what_is_left_shares_on_in_proportion(folders: list[Path], weights: list[float], caps: list[float]) -> None:
    parts = mixed(folders, tuple(weights), epochs=tuple(caps))
    asked = min(parts.windows or 600, 600)
    places: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for position in range(asked):
        source, place = parts.locate(position)
        places[source].append(place)
    assert all(own == list(range(len(own))) for own in places.values())  # no window skipped, none twice
    before = dict.fromkeys("abc", 0)
    for phase, end in zip(parts._phases, [*parts._starts[1:], asked]):
        taking = [n for n in range(3) if phase.per_cycle[n]]
        whole = sum(weights[n] for n in taking)
        now = parts.counts(end) if end else before
        for n in taking:
            given_now = now["abc"[n]] - before["abc"[n]]
            length = end - phase.start
            assert abs(given_now - length * weights[n] / whole) < 1 + length / CYCLE
        before = now


def test_only_the_first_tokens_are_read(folders: list[Path]) -> None:
    parts = MixedShards([Source(folders[0], "a", limit=450)], LENGTH, 0)
    assert max(int(parts.window(position).max()) for position in range(200)) <= 450
    assert parts.tokens == 450


@pytest.mark.parametrize(
    ("weights", "temperature", "epochs", "says"),
    [
        ((1.0, None, None), 1.0, (0, 0, 0), "'b' has no weight"),
        ((1.0, 0.0, 1.0), 1.0, (0, 0, 0), "weight is 0.0"),
        ((None, None, None), 0.0, (0, 0, 0), "temperature is 0.0"),
        ((None, None, None), 1.0, (0, -1, 0), "epochs of 'b' are -1"),
        ((None, None, None), 1.0, (0, 1e-6, 0), "no window"),
    ],
)
def test_settings_that_cannot_work(
    folders: list[Path], weights: tuple[float | None, ...], temperature: float, epochs: tuple[float, ...], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        mixed(folders, weights, temperature, epochs)


def test_sources_that_cannot_be(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no source"):
        MixedShards([], LENGTH, 0)
    with pytest.raises(UsageError, match="called 'x'"):
        MixedShards([Source(folders[0], "x"), Source(folders[1], "x")], LENGTH, 0)
    with pytest.raises(DunwuError, match="no token shards"):
        MixedShards([Source(folders[0], "x"), Source(tmp_path, "y")], LENGTH, 0)
