"""FineWeb's lists of unwanted addresses, and a user's own, in memory that does not hurt.

4.6 million domains would be half a gigabyte of Python text. They are kept as sorted 64-bit hashes, 37 MB, made once under
DUNWU_HOME and mapped from there by every process. The file appears whole or not at all, under a lock, so that processes may
start together; its checksum is looked at when it is mapped, and a damaged file is made again. That a harmless name has the
hash of a listed one: once in 10^12.
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dunwu.disk import disk_errors, exclusive_lock, fsync
from dunwu.store import default_home
from dunwu.types import DunwuError

BETWEEN_WORDS = re.compile(r"[^a-zA-Z0-9]+")
"""What separates the words of an address; in datatrove's filter no other letters are in words."""
_ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"
_MAGIC = b"dunwu urls 1\0\0\0\0"
_PIECE = 1 << 22


class UrlLists:
    """The integrated lists, if wanted, with the user's: files by the names "domains", "urls", "words", "subwords", "soft".

    Raises:
        DunwuError: a list cannot be read, or datatrove is not installed.
    """

    def __init__(self, files: Mapping[str, Iterable[str]], integrated: bool) -> None:
        own = {name: frozenset(_own(paths)) for name, paths in files.items()}
        assets = _assets() if integrated else None
        self._hosts = {host.lower() for host in own["domains"]}
        self._hashes = _domain_hashes(assets) if assets else np.empty(0, np.uint64)
        self.urls = own["urls"] | (_integrated_urls(assets) if assets else frozenset())
        words = {name: {letters(word) for word in own[name]} for name in ("words", "subwords", "soft")}
        if assets:
            for name, file in (
                ("words", "banned_words"),
                ("subwords", "banned_subwords"),
                ("soft", "soft_banned_words"),
            ):
                words[name] |= {letters(word) for word in _entries(assets / f"{file}.txt")}
        self.words, self.soft = words["words"] - {""}, words["soft"] - {""}
        self._stems: dict[str, list[str]] = {}
        subwords = words["subwords"] - {""}
        self._stem = min(map(len, subwords), default=0)
        for word in subwords:
            self._stems.setdefault(word[: self._stem], []).append(word)

    def has_own(self, host: str) -> bool:
        """Whether the user lists this name, in any case of letters."""
        return host.lower() in self._hosts

    def has_domain(self, host: str) -> bool:
        """Whether FineWeb's list has exactly this name."""
        if not host:
            return False
        sought = np.uint64(_hash(host.encode("utf-8", "surrogatepass")))
        place = int(self._hashes.searchsorted(sought))
        return place < len(self._hashes) and bool(self._hashes[place] == sought)

    def has_subword(self, run: str) -> bool:
        """Whether a banned sub-word is inside; the time hardly grows with their number."""
        size = self._stem
        if not size:
            return False
        for place in range(len(run) - size + 1):
            for word in self._stems.get(run[place : place + size], ()):
                if run.startswith(word, place):
                    return True
        return False


def letters(text: str) -> str:
    """Letters and digits of ASCII in lower case."""
    return BETWEEN_WORDS.sub("", text).lower()


def _own(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        path = Path(file).expanduser()
        try:
            yield from _entries(path)
        except (OSError, UnicodeDecodeError) as error:
            raise DunwuError(
                f"cannot read the list {path}: {error}", "a text file in UTF-8, one entry a line"
            ) from error


def _entries(path: Path) -> Iterator[str]:
    """The lines of a file without comments and blanks."""
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if (entry := line.strip()) and not entry.startswith("#"):
                yield entry


def _assets() -> Path:
    package = find_spec("datatrove")
    if package is None or package.origin is None:
        raise DunwuError("FineWeb's block lists are inside datatrove", "pip install datatrove, or integrated = false")
    folder = Path(package.origin).parent / "assets"
    if not (folder / _ARCHIVE).is_file():
        raise DunwuError(f"{folder / _ARCHIVE} is missing", "pip install --force-reinstall datatrove")
    return folder


def _member(assets: Path, name: str) -> Iterator[bytes]:
    """The whole lines of a file in the archive, in pieces of some megabytes."""
    with tarfile.open(assets / _ARCHIVE, "r:gz") as archive:
        member = next((one for one in archive if one.isfile() and Path(one.name).name == name), None)
        file: IO[bytes] | None = archive.extractfile(member) if member else None
        if file is None:
            raise DunwuError(f"{assets / _ARCHIVE} has no list of {name}", "pip install --force-reinstall datatrove")
        rest = b""
        while piece := file.read(_PIECE):
            whole, _, rest = (rest + piece).rpartition(b"\n")
            yield whole
        yield rest


def _integrated_urls(assets: Path) -> frozenset[str]:
    lines = (
        line.decode("utf-8", "surrogateescape").strip()
        for piece in _member(assets, "urls")
        for line in piece.split(b"\n")
    )
    return frozenset(line for line in lines if line and not line.startswith("#"))


def _hash(host: bytes) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(host)


def _domain_hashes(assets: Path) -> NDArray[np.uint64]:
    """Sorted hashes of the integrated domains, mapped from the file that the first process makes."""
    source = (assets / _ARCHIVE).stat()
    key = f"{_ARCHIVE} {source.st_size}".encode()
    path = default_home() / "lists" / f"domains-{_hash(key):016x}.u64"
    hashes = _mapped(path)
    if hashes is None:
        with disk_errors(path), exclusive_lock(path.with_suffix(".lock"), "the list of blocked domains"):
            hashes = _mapped(path)  # another process may have made it meanwhile
            if hashes is None:
                _write(path, _hashed(assets))
                hashes = _mapped(path)
    if hashes is None:
        raise DunwuError(f"{path} is damaged as soon as it is written", "check the disk, or set DUNWU_HOME to another")
    return hashes


def _hashed(assets: Path) -> NDArray[np.uint64]:
    from xxhash import xxh3_64_intdigest as digest

    parts = [np.fromiter(map(digest, filter(None, piece.split())), np.uint64) for piece in _member(assets, "domains")]
    hashes = np.concatenate(parts)
    hashes.sort()
    distinct: NDArray[np.uint64] = hashes[np.append(True, hashes[1:] != hashes[:-1])]
    return distinct


def _mapped(path: Path) -> NDArray[np.uint64] | None:
    """The hashes in a file: 16 bytes of magic, 8 of checksum, then the hashes; None if it is absent or not as written."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    if size >= 24 and size % 8 == 0:
        words: NDArray[np.uint64] = np.memmap(path, dtype=np.uint64, mode="r")
        if words[:2].tobytes() == _MAGIC and int(words[2]) == _hash(memoryview(words[3:]).cast("B")):  # type: ignore[arg-type]
            return words[3:]
    print(f"dunwu: {path} is damaged; it is made again", file=sys.stderr)
    return None


def _write(path: Path, hashes: NDArray[np.uint64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC + np.uint64(_hash(hashes.tobytes())).tobytes())
            file.write(hashes.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)
