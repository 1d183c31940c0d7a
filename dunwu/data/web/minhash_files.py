"""From signatures on disk to the documents that go: sorted files, pairs, clusters. Per dump, as FineWeb.

Three steps that map on tasks: a `SignatureWriter` per rank, `find_duplicates` per bucket, one `cluster`. Files are
datatrove's, so its own steps can take over after any of ours. The result does not depend on the number of workers or on
who finishes first: the first document of a cluster stays, in order of (rank, number). A folder belongs to one set of
documents: what an earlier set left in it is not looked for.

Not covered: an index of signatures from earlier runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dunwu.data.web.key_files import AGAIN, MEMORY, KeyFiles, KeyWriter, Layout, safe_name, whole_file
from dunwu.data.web.minhash import MinhashConfig
from dunwu.data.web.sorted_rows import components, equal_pairs
from dunwu.disk import canonical_json, disk_errors, write_atomically
from dunwu.native.text import Hashes
from dunwu.types import DunwuError

SUMMARY = "clusters.json"
_KINDS = ("remove", "clusters", "sizes")
"""Files of a rank: numbers to remove; (number, cluster) and (number, cluster's size) of all that have a duplicate."""
_RANK = np.uint64(32)


def signature_layout(config: MinhashConfig) -> Layout:
    """Signatures on disk, as datatrove writes them."""
    return Layout(".minhash.sig", config.buckets, config.hashes_per_bucket, asdict(config))


class SignatureWriter(KeyWriter):
    """Signatures of one rank's documents, to sorted files below `folder`, one folder per dump."""

    def __init__(self, folder: Path, rank: int, config: MinhashConfig | None = None, memory: int = MEMORY) -> None:
        super().__init__(folder, rank, signature_layout(config or MinhashConfig()), memory)

    def add(self, number: int, dump: str, signature: Hashes) -> None:
        """Document `number` of this rank; its signature is (buckets, hashes_per_bucket)."""
        if signature.shape != (self.layout.buckets, self.layout.width):
            raise ValueError(f"signature {signature.shape} for {self.layout.buckets} buckets of {self.layout.width}")
        self.add_key(number, dump, signature)


def find_duplicates(
    folder: Path,
    out: Path,
    bucket: int,
    config: MinhashConfig | None = None,
    *,
    dump: str | None = None,
    ranks: int | None = None,
    memory: int = MEMORY,
) -> int:
    """Pairs of documents with equal keys in `bucket`, to `out/DUMP/BUCKET_00.dups`; returns how many.

    Documents with one key form a chain: each is paired with the one before it.

    Args:
        config: if given, the settings the signatures must have been made with.
        dump: only this dump; every one otherwise.
        ranks: if given, how many ranks must be there.
        memory: bytes held at a time, about; whatever the number of documents.

    Raises:
        DunwuError: a damaged, missing or unfinished file (named), or other settings.
    """
    files = KeyFiles(folder, ranks)
    if config is not None and asdict(config) != files.layout.settings:
        raise DunwuError(
            f"the signatures in {folder} have the settings {files.layout.settings}", "use these, or sign anew"
        )
    if not 0 <= bucket < files.layout.buckets:
        raise DunwuError(f"bucket {bucket} of {files.layout.buckets}", "buckets count from 0")
    names = list(files.dumps()) if dump is None else [safe_name(dump)]
    if dump is not None and names[0] not in files.dumps():
        raise DunwuError(f"no dump {dump!r} in {folder}", f"there are: {', '.join(files.dumps().values()) or 'none'}")
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name in names:
        path, pairs, digest = out / name / f"{bucket:05d}_00.dups", 0, hashlib.blake2b(digest_size=16)
        path.with_suffix(".json").unlink(missing_ok=True)
        with whole_file(path) as file:
            for found in equal_pairs(files.merged(name, bucket, memory), files.layout.width):
                data = found.astype("<u4").tobytes()
                digest.update(data)
                file.write(data)
                pairs += len(found)
        record = {"buckets": files.layout.buckets, "pairs": pairs, "checksum": digest.hexdigest()}
        write_atomically(path.with_suffix(".json"), canonical_json(record) + "\n")
        total += pairs
    return total


@dataclass(frozen=True)
class Clusters:
    """What `cluster` found in a dump."""

    pairs: int
    """Equal keys, over all buckets."""
    clusters: int
    """Groups of near-duplicates."""
    documents: int
    """Documents in them."""
    removed: int
    """Documents that are not the first of their group: documents - clusters."""
    largest: int
    """Documents of the largest group."""


def cluster(folder: Path, out: Path, *, dump: str | None = None) -> dict[str, Clusters]:
    """Groups of documents joined by pairs of any bucket; all but the first of each are to be removed. By dump's folder.

    Writes datatrove's files to `out/DUMP`: `RANK.remove`, `RANK.clusters`, `RANK.sizes`, and `clusters.json` last.
    Memory grows with the documents that have a duplicate and with one bucket's pairs, not with all documents.

    Raises:
        DunwuError: pairs of a bucket are missing or damaged; the file is named.
    """
    if not folder.is_dir():
        raise DunwuError(f"no folder of pairs {folder}", "find_duplicates makes it, for every bucket")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if dump is None else [safe_name(dump)]
    out.mkdir(parents=True, exist_ok=True)
    return {name: _cluster(folder / name, out / name) for name in names}


def _cluster(folder: Path, out: Path) -> Clusters:
    known = np.empty((0, 2), np.uint64)
    total, nodes, firsts = 0, *components(known)
    for pairs in _pairs(folder):
        total += len(pairs)
        nodes, firsts = components(np.concatenate([known, pairs]))
        # A forest says the same as all the pairs so far, in less.
        known = np.stack([firsts, nodes], axis=1)
    _, numbers, counts = np.unique(firsts, return_inverse=True, return_counts=True)
    sizes, later = counts[numbers], nodes != firsts
    found = Clusters(total, len(counts), len(nodes), int(later.sum()), int(max(counts, default=0)))
    low = nodes.astype(np.uint32)  # the rank is in the upper half
    columns = {"remove": (low[later],), "clusters": (low, numbers), "sizes": (low, sizes)}
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / SUMMARY, *(path for kind in _KINDS for path in out.glob(f"*.{kind}"))):
        old.unlink(missing_ok=True)
    files = {}
    for kind in _KINDS:
        table = np.stack([column.astype("<u4") for column in columns[kind]], axis=1)
        ranks, starts = np.unique((nodes[later] if kind == "remove" else nodes) >> _RANK, return_index=True)
        for rank, part in zip(ranks.tolist(), np.split(table, starts[1:])):
            data = part.tobytes()
            with whole_file(out / f"{rank:06d}.{kind}") as file:
                file.write(data)
            files[f"{rank:06d}.{kind}"] = hashlib.blake2b(data, digest_size=16).hexdigest()
    with disk_errors(out):
        write_atomically(out / SUMMARY, canonical_json({**asdict(found), "files": files}) + "\n")
    return found


def _pairs(folder: Path) -> Iterator[NDArray[np.uint64]]:
    """Pairs of nodes (rank · 2^32 + number), bucket by bucket."""
    buckets: int | None = None
    bucket = 0
    while buckets is None or bucket < buckets:
        path = folder / f"{bucket:05d}_00.dups"
        try:
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            data, buckets = path.read_bytes(), int(record["buckets"])
            if hashlib.blake2b(data, digest_size=16).hexdigest() != record["checksum"]:
                raise ValueError("its checksum is another")
        except FileNotFoundError as error:
            raise DunwuError(f"no file {error.filename}", f"find_duplicates has not finished bucket {bucket}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DunwuError(f"{path} is damaged ({error})", "run find_duplicates for this bucket again") from error
        pairs = np.frombuffer(data, "<u4").reshape(-1, 2, 2).astype(np.uint64)
        yield (pairs[..., 0] << _RANK) | pairs[..., 1]
        bucket += 1


def removed(folder: Path, rank: int) -> frozenset[int]:
    """Numbers of the documents of `rank` that go, over all dumps `cluster` has written to `folder`.

    Raises:
        DunwuError: clustering has not finished, or a file is damaged (named).
    """
    return frozenset(number for rows in _tables(folder, rank, "remove", 1) for number in rows[:, 0].tolist())


def cluster_sizes(folder: Path, rank: int) -> dict[int, int]:
    """Number to size of the cluster, for the documents of `rank` that have a near-duplicate, kept ones included.

    Raises:
        DunwuError: clustering has not finished, or a file is damaged (named).
    """
    return {number: size for rows in _tables(folder, rank, "sizes", 2) for number, size in rows.tolist()}


def _tables(folder: Path, rank: int, kind: str, width: int) -> Iterator[NDArray[Any]]:
    if not folder.is_dir():
        raise DunwuError(f"no folder {folder}", "cluster makes it")
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        name = f"{rank:06d}.{kind}"
        try:
            files = json.loads((place / SUMMARY).read_text(encoding="utf-8"))["files"]
        except FileNotFoundError:
            raise DunwuError(f"{place} is not finished", "run cluster again") from None
        except (ValueError, KeyError) as error:
            raise DunwuError(f"{place / SUMMARY} is damaged ({error})", AGAIN) from error
        if name not in files:
            continue
        data = (place / name).read_bytes() if (place / name).is_file() else b""
        if hashlib.blake2b(data, digest_size=16).hexdigest() != files[name]:
            raise DunwuError(f"{place / name} is damaged or missing", "run cluster again")
        yield np.frombuffer(data, "<u4").reshape(-1, width)
