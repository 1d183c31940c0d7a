"""Training windows from several shard folders in stated shares, none read more often than it may be.

**Shares.** A source with amount a (its weight; without weights, its tokens) has the share a^(1/τ) / Σ a^(1/τ). τ = 1 keeps
the amounts' proportions, a larger τ lifts small sources, τ → ∞ gives all the same. It is the sampling of XLM (Lample &
Conneau 2019, section 3.1), XLM-R and mT5, whose α is 1/τ (0.3 in both).

**Order.** Which source window n comes from is a table lookup, not a draw. Shares are counts out of a cycle of at most
`CYCLE` windows: the smallest cycle that meets them to 1e-9 (0.7 and 0.3: ten), else the one that meets them best, with
at least one window for each source. In a cycle the j-th window of a source with c of D is due in [jD/c, (j+1)D/c);
earliest deadline first meets them all (Baruah et al. 1996, "Proportionate progress", one processor). So at any window
every source is within one of its share, and its place follows from (cycles done, table).

**Epochs.** A source that has given `max_epochs` of its windows leaves; the others share on in proportion, from a cycle of
their own. When all have left, a batch is an error: `windows` says how many there are, so ask before training.
Four passes over a text are worth almost as much as four times the text (Muennighoff et al. 2023, section 6).

Not covered: shares that change on the way (a curriculum), and finding good ones (DoReMi).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dunwu.data.shards import PackedShards
from dunwu.types import DunwuError, UsageError, derive_seed

CYCLE = 1 << 16
"""Longest cycle; the smallest share there is, is one in so many."""


@dataclass(frozen=True)
class Source:
    """One folder of token shards in a mixture."""

    folder: Path
    """As `ShardWriter` leaves it."""
    name: str = ""
    """For metrics; must differ between sources, also because it seeds the order of the windows."""
    weight: float | None = None
    """Its amount; None: its tokens. Give it to all sources or to none."""
    max_epochs: float = 0.0
    """Passes over it at most, 1.5 is allowed; 0 for no limit."""
    limit: int | None = None
    """Only its first so many tokens; None for all."""


def shares(amounts: Sequence[float], temperature: float = 1.0) -> list[float]:
    """a^(1/τ) / Σ a^(1/τ).

    Raises:
        UsageError: an amount or the temperature is not above 0.

    Example:
        >>> [round(share, 3) for share in shares([1, 9])]
        [0.1, 0.9]
        >>> [round(share, 3) for share in shares([1, 9], temperature=2)]
        [0.25, 0.75]
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"a mixture's temperature is {temperature}", "use a number above 0; 1 keeps the proportions")
    if not all(amount > 0 and math.isfinite(amount) for amount in amounts):
        raise UsageError(f"a source's weight is {min(amounts)}", "use numbers above 0, or leave the source away")
    powers = np.log(np.asarray(amounts, dtype=float)) / temperature
    parts = np.exp(powers - powers.max())
    return [float(part) for part in parts / parts.sum()]


def cycle_counts(wanted: Sequence[float], longest: int = CYCLE) -> list[int]:
    """Windows of each source in a cycle: whole numbers above 0, as near to the shares as a cycle of `longest` allows.

    Example:
        >>> cycle_counts([0.7, 0.3]), cycle_counts([1 / 3, 1 / 3, 1 / 3])
        ([7, 3], [1, 1, 1])
    """
    lengths_D = np.arange(len(wanted), max(longest, len(wanted)) + 1)
    exact_DS = lengths_D[:, None] * np.asarray(wanted)
    errors_D = (np.abs(exact_DS - np.maximum(1, np.rint(exact_DS))) / lengths_D[:, None]).max(1)
    length = int(lengths_D[np.argmax(errors_D <= max(1e-9, errors_D.min()))])
    exact = [length * share for share in wanted]
    counts = [max(1, math.floor(part + 1e-6)) for part in exact]
    while sum(counts) < length:  # largest remainder
        counts[max(range(len(counts)), key=lambda i: exact[i] - counts[i])] += 1
    while sum(counts) > length:  # what the least of one took
        counts[max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - exact[i])] -= 1
    return counts


def interleave(counts: Sequence[int]) -> NDArray[np.int16]:
    """(Σ counts,) source of every window of a cycle; after t of them source i has had ⌊t·cᵢ/D⌋ or ⌈t·cᵢ/D⌉.

    Example:
        >>> interleave([3, 1, 2]).tolist()
        [0, 2, 0, 1, 0, 2]
    """
    cycle = sum(counts)
    order = np.empty(cycle, np.int16)
    waiting = [(0, i, 0) for i in range(len(counts))]  # (released at, source, number)
    ready: list[tuple[int, int, int]] = []  # (due before, source, number)
    for slot in range(cycle):
        while waiting and waiting[0][0] <= slot:
            _, i, j = heappop(waiting)
            heappush(ready, (-(-(j + 1) * cycle // counts[i]), i, j))
        _, i, j = heappop(ready)
        order[slot] = i
        if j + 1 < counts[i]:
            heappush(waiting, ((j + 1) * cycle // counts[i], i, j + 1))
    return order


class _Phase:
    """The windows from `start` on, while the same sources take part."""

    def __init__(self, start: int, given: list[int], active: list[int], wanted: Sequence[float]) -> None:
        self.start, self.given = start, given  # windows of every source before the phase
        self.per_cycle = [0] * len(given)
        for source, count in zip(active, cycle_counts(wanted), strict=True):
            self.per_cycle[source] = count
        self.order = np.asarray(active, np.int16)[interleave([self.per_cycle[source] for source in active])]
        self.places = {source: np.flatnonzero(self.order == source) for source in active}
        self.ranks = np.empty(len(self.order), np.int64)
        for places in self.places.values():
            self.ranks[places] = np.arange(len(places))

    def locate(self, position: int) -> tuple[int, int]:
        """(source, how many windows it has given before) of the window at `position`."""
        cycles, slot = divmod(position - self.start, len(self.order))
        source = int(self.order[slot])
        return source, self.given[source] + cycles * self.per_cycle[source] + int(self.ranks[slot])

    def counts(self, position: int) -> list[int]:
        """Windows of every source before `position`."""
        cycles, slot = divmod(position - self.start, len(self.order))
        found = [given + cycles * count for given, count in zip(self.given, self.per_cycle, strict=True)]
        for source, places in self.places.items():
            found[source] += int(np.searchsorted(places, slot))
        return found

    def after(self, source: int, number: int) -> int:
        """The position after the one where the source gives its `number`-th window."""
        cycles, rank = divmod(number - 1 - self.given[source], self.per_cycle[source])
        return self.start + cycles * len(self.order) + int(self.places[source][rank]) + 1


class MixedShards:
    """Windows of `length + 1` tokens from several folders; a batch is a function of the step, as in `PackedShards`.

    Args:
        sources: at least one.
        length: tokens of a window that are predicted.
        seed: of the order inside each source.
        temperature: τ of the shares.

    Raises:
        UsageError: no source, two of one name, weights for some only, a cap below one window.
        DunwuError: a folder without shards, or with too few tokens for a window.
    """

    def __init__(self, sources: Sequence[Source], length: int, seed: int, temperature: float = 1.0) -> None:
        _check(sources)
        self.sources, self.length = tuple(sources), length
        self.parts: list[PackedShards] = []
        try:
            for source in sources:
                own = derive_seed("source", seed, source.name)
                self.parts.append(PackedShards(source.folder, length, own, source.limit))
            amounts = [
                float(part.tokens) if s.weight is None else s.weight
                for s, part in zip(sources, self.parts, strict=True)
            ]
            self.shares = dict(zip((s.name for s in sources), shares(amounts, temperature), strict=True))
            self._most = [_cap(source, part.total) for source, part in zip(sources, self.parts, strict=True)]
        except DunwuError:
            self.close()
            raise
        self._phases: list[_Phase] = []
        self._starts: list[int] = []
        self._end: int | None = None  # of the last phase, when a source leaves
        self._begin(0, [0] * len(sources))

    @property
    def tokens(self) -> int:
        """Tokens on disk, of all sources."""
        return sum(part.tokens for part in self.parts)

    @property
    def windows(self) -> int | None:
        """Windows until every source has given all it may; None: without end."""
        known = [most for most in self._most if most is not None]
        return sum(known) if len(known) == len(self._most) else None

    def require(self, windows: int) -> None:
        """Raise DunwuError if there are fewer windows than that."""
        if self.windows is not None and windows > self.windows:
            raise DunwuError(
                f"the sources end after {self.windows * self.length:,} tokens, {windows * self.length:,} are asked for",
                "allow more epochs, ask for fewer tokens, or give more text",
            )

    def batch(self, step: int, rows: int) -> NDArray[np.int64]:
        """(rows, length + 1) ids: windows step·rows … of the mixed sequence.

        Raises:
            DunwuError: all sources have given what they may.
        """
        return np.stack([self.window(step * rows + row) for row in range(rows)])

    def window(self, position: int) -> NDArray[np.int64]:
        """(length + 1,) ids of one window of the mixed sequence."""
        source, place = self.locate(position)
        return self.parts[source].window(place)

    def locate(self, position: int) -> tuple[int, int]:
        """(source, its windows given before) of the window at `position`."""
        self.require(position + 1)
        return self._phase(position).locate(position)

    def counts(self, windows: int) -> dict[str, int]:
        """Windows of every source among the first `windows`."""
        self.require(windows)
        found = self._phase(max(0, windows - 1)).counts(windows)
        return dict(zip(self.shares, found, strict=True))

    def epochs(self, windows: int) -> dict[str, float]:
        """Passes over every source in the first `windows`."""
        totals = dict(zip(self.shares, self.parts, strict=True))
        return {name: count / totals[name].total for name, count in self.counts(windows).items()}

    def close(self) -> None:
        """Close the shard files."""
        for part in self.parts:
            part.close()

    def _phase(self, position: int) -> _Phase:
        while self._end is not None and position >= self._end:
            if not self._begin(self._end, self._phases[-1].counts(self._end)):
                break
        return self._phases[bisect_right(self._starts, position) - 1]

    def _begin(self, start: int, given: list[int]) -> bool:
        """Begin a phase with the sources that have windows left; False if there are none."""
        left = [i for i, most in enumerate(self._most) if most is None or given[i] < most]
        if not left:
            return False
        all_shares = list(self.shares.values())
        whole = sum(all_shares[i] for i in left)
        phase = _Phase(start, given, left, [all_shares[i] / whole for i in left])
        self._phases.append(phase)
        self._starts.append(start)
        self._end = min((phase.after(i, most) for i in left if (most := self._most[i]) is not None), default=None)
        return True


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise UsageError("a mixture has no source", "give at least one")
    names = [source.name for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two sources are called {min(twice)!r}", "name them apart: NAME=PATH")
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        bare = names[weighted.index(False)]
        raise UsageError(f"source {bare!r} has no weight, others have", "give a weight to all sources or to none")


def _cap(source: Source, windows: int) -> int | None:
    """Windows a source may give in all; None: no limit."""
    if source.max_epochs < 0 or math.isnan(source.max_epochs):
        raise UsageError(
            f"epochs of {source.name!r} are {source.max_epochs}", "use 0 for no limit, or a number above it"
        )
    if source.max_epochs == 0 or math.isinf(source.max_epochs):
        return None
    if (most := math.floor(source.max_epochs * windows + 1e-9)) < 1:
        raise UsageError(f"{source.max_epochs} epochs of {source.name!r} are no window", "allow more of it")
    return most
