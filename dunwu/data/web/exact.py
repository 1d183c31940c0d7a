"""Documents whose whole text is another's: a 128-bit hash of the text, the first one stays.

Before hashing, every run of white space becomes one space, and those at the ends go. Case, punctuation and Unicode's
forms stay: whoever wants documents joined that differ in those has MinHash. The hash is BLAKE2b of 16 bytes, for which
collisions are not cheaply made to order.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dunwu.data.web.key_files import MEMORY, KeyWriter, Layout
from dunwu.data.web.minhash_files import Clusters, cluster, find_duplicates, removed
from dunwu.data.web.sorted_rows import Rows

__all__ = ["ExactWriter", "exact_duplicates", "exact_hash", "removed"]

BUCKETS = 16
"""Parts by the leading four bits, which may be looked through side by side."""
EVERYWHERE = "all"
"""Stands for the dump when duplicates are looked for across dumps."""


def exact_hash(text: str) -> bytes:
    """16 bytes, equal for texts that differ in white space only.

    Example:
        >>> exact_hash("to be\\n or not ") == exact_hash("to be or not"), exact_hash("To be") == exact_hash("to be")
        (True, False)
    """
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ExactWriter(KeyWriter):
    """Hashes of one rank's documents, to sorted files below `folder`.

    Args:
        across: look for duplicates in all dumps together; otherwise in each of its own, as MinHash does.
    """

    def __init__(self, folder: Path, rank: int, across: bool = False, memory: int = MEMORY) -> None:
        settings = {"hash": "blake2b-128", "spaces": "one", "across": across}
        super().__init__(folder, rank, Layout(".exact", BUCKETS, 2, settings), memory)
        self.across = across

    def add(self, number: int, dump: str, text: str) -> None:
        """Document `number` of this rank."""
        key = np.frombuffer(exact_hash(text), ">u8").astype(np.uint64)
        self.add_key(number, EVERYWHERE if self.across else dump, key)

    def rows(self, keys: NDArray[np.uint64], numbers: NDArray[np.uint64], bucket: int) -> Rows:
        """The rows of documents whose hash begins with `bucket`."""
        here = keys[:, 0] >> np.uint64(60) == bucket
        return self._rows(keys[here], numbers[here])


def exact_duplicates(folder: Path, out: Path, *, ranks: int | None = None, memory: int = MEMORY) -> dict[str, Clusters]:
    """All but the first of equal documents, by rank and number, to `out`; `removed(out, rank)` reads them.

    Memory grows with the documents that have a duplicate, not with all. The parts may be done side by side too:
    `find_duplicates(folder, pairs, part)` for each of `BUCKETS`, then `cluster(pairs, out)`.

    Raises:
        DunwuError: a damaged, missing or unfinished file; it is named.
    """
    pairs = out.with_name(out.name + ".pairs")
    for bucket in range(BUCKETS):
        find_duplicates(folder, pairs, bucket, ranks=ranks, memory=memory)
    return cluster(pairs, out)
