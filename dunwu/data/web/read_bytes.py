"""A file's bytes, decompressed as they are asked for, however damaged the file is.

gzip files may have many members, zstd files many frames; each is a piece of its own. Where a piece is broken, `Damaged` is
raised once, and `resync` goes on at the next piece that opens. Memory: a few hundred kilobytes beside what one call returns.
Time: linear in the file, times a constant: what nobody keeps of a bomb is thrown away up to `BOMB_BYTES`, then the piece is
given up.

Not covered: bzip2, xz, lz4, archives (zip, tar), and anything that is not a local file.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import zstandard

CHUNK = 64 << 10
"""Bytes read from the file at once, and decompressed at once."""
BOMB_BYTES = 1 << 30
"""Bytes of a piece thrown away (of a record or line that is too long) before it may be called a bomb …"""
LINE_COST = 256
"""A line thrown away counts as that many bytes more: its time."""
BOMB_RATIO = 200
"""… if it also holds this many bytes for each compressed one; plain text reaches 3 to 10."""
MOST_DAMAGES = 1000
"""Pieces of a file that may be broken before the rest of it is given up."""
MOST_AGAIN = 4
"""Times a file's size (and `BOMB_BYTES`) that may be read again in looking for the next piece, likewise."""
MOST_FALSE = 20_000
"""Places that look like a beginning and are none, likewise; chance makes one in 16 MB."""
_BLANK = b" \t\r\n"
_PROBE = 4096
"""Bytes by which it is judged whether a piece begins."""
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16))
_DICTIONARY = _SKIPPABLE[13]
_ZSTD_WINDOW = 128 << 20


class Damaged(Exception):
    """A compressed piece cannot be read on. `reason`: "truncated_gzip", "bad_gzip", "gzip_bomb", and so for zstd."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class _Piece(Protocol):
    """A decompressor of one member or frame."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what came out, what of `data` is to be fed again); some may come out of nothing fed."""

    @property
    def rest(self) -> bytes | None:
        """What followed the piece, once it has ended; None before."""


class _Gzip:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return self._inflate.decompress(data, CHUNK), self._inflate.unconsumed_tail

    @property
    def rest(self) -> bytes | None:
        return self._inflate.unused_data if self._inflate.eof else None


class _Zstd:
    _STEP = 256
    """Bytes fed at once: a block of 128 kB can come out of 4, so 256 bytes give 8 MB at most."""

    def __init__(self, dictionary: bytes) -> None:
        shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self._frame: Any = zstandard.ZstdDecompressor(shared, max_window_size=_ZSTD_WINDOW).decompressobj()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        parts: list[bytes] = []
        at = size = 0
        while at < len(data) and not self._frame.eof and size < CHUNK:
            parts.append(self._frame.decompress(data[at : at + self._STEP]))
            at, size = at + self._STEP, size + len(parts[-1])
        if self._frame.eof:
            self._after = self._frame.unused_data + data[at:]
            return b"".join(parts), b""
        return b"".join(parts), data[at:]

    @property
    def rest(self) -> bytes | None:
        return self._after if self._frame.eof else None


def _packing(path: Path, head: bytes) -> str | None:
    """By the first bytes; where they are broken, by the name, if such a piece begins farther on."""
    named = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}.get(path.suffix.lower())
    if head.startswith(_GZIP) or (named == "gzip" and _GZIP in head):
        return "gzip"
    if head.startswith((_ZSTD, *_SKIPPABLE)) or (named == "zstd" and _ZSTD in head):
        return "zstd"
    return None


class Source:
    """A file read forwards, as it is or through gzip or zstd (told by its first bytes, then by its name).

    Raises:
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        self.packing = _packing(path, self._file.read(CHUNK))
        self._size = self._file.seek(0, 2)
        self._file.seek(0)
        self._buffer, self._at = b"", 0
        self._piece: _Piece | None = None
        self._raw, self._raw_end, self._ended = b"", 0, False
        self._start = self._fed = self._out = self._thrown = 0
        self._dictionary = b""
        self._damages = self._again = self._false = 0
        self._gave_up = False
        # Where pieces begin, counted in bytes that came out; numbers of the first of them and of the last one opened.
        self._total, self._number, self._opened = 0, 1, 0
        self._starts: deque[int] = deque()
        self.broken: Damaged | None = None
        """What every call that needs more bytes raises, until `resync`."""

    @property
    def place(self) -> int:
        """Bytes of the file taken so far."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only where the file ends. After `Damaged` what was there is still to be read."""
        return self._until(size, None)

    def line(self, limit: int) -> bytes:
        """Up to and with the next line feed, or `limit` bytes if it is farther; b"" at the end of the file."""
        return self._until(limit, b"\n")

    def _until(self, size: int, end: bytes | None) -> bytes:
        """Up to `size` bytes, or up to and with `end`."""
        parts: list[bytes] = []
        missing, place = size, 0
        while missing > 0 and place == 0 and (self._at < len(self._buffer) or self._fill(parts)):
            place = self._buffer.find(end, self._at, self._at + missing) + 1 if end else 0
            part = self._buffer[self._at : place or self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int, within_piece: bool = False) -> int:
        """Throw up to `size` bytes away, on request no farther than this member or frame; how many there were."""
        gone = 0
        while gone < size:
            if self._at == len(self._buffer):
                if within_piece and self._piece is not None:
                    self._at, advanced = 0, self._advance()
                    if not advanced:
                        continue
                elif within_piece and self.packing is not None:
                    break
                elif self.packing is None:
                    step = max(0, min(size - gone, self._size - self._file.tell()))
                    self._file.seek(step, 1)
                    return gone + step
                elif not self._fill():
                    break
            step = min(size - gone, len(self._buffer) - self._at)
            self._at += step
            gone += step
            self.throw_away(step)
        return gone

    def back(self, size: int) -> bool:
        """Go back over what was just skipped, where the file is not compressed; whether that was done."""
        if size and self.packing is None:
            self._file.seek(self._file.tell() - (len(self._buffer) - self._at) - size)
            self._buffer, self._at = b"", 0
        return not size or self.packing is None

    def piece_here(self) -> int | None:
        """The number of the member or frame whose first byte is read next; None within one, or in a plain file."""
        place = self._total - (len(self._buffer) - self._at)
        while self._starts and self._starts[0] < place:
            self._starts.popleft()
            self._number += 1
        return self._number if self._starts and self._starts[0] == place else None

    def tainted(self, piece: int) -> bool:
        """Whether that member or frame has turned out to be broken."""
        return self.broken is not None and self._piece is not None and piece == self._opened

    def skip_line(self) -> None:
        """Throw the rest of the line away, with its line feed."""
        while self._at < len(self._buffer) or self._fill():
            end = self._buffer.find(b"\n", self._at) + 1
            self.throw_away((end or len(self._buffer)) - self._at)
            self._at = end or len(self._buffer)
            if end:
                return

    def skip_blank(self) -> int:
        """Throw away blanks and empty lines that come next; how many line feeds there were."""
        lines = 0
        while self._at < len(self._buffer) or self._fill():
            if self._buffer[self._at] not in _BLANK:
                break
            rest = self._buffer[self._at :].lstrip(_BLANK)
            end = len(self._buffer) - len(rest)
            lines += self._buffer.count(b"\n", self._at, end)
            self.throw_away(end - self._at)
            self._at = end
        return lines

    def peek(self, size: int) -> bytes:
        """Up to `size` bytes that are read again, and stop before damage."""
        if len(self._buffer) - self._at < size:
            with contextlib.suppress(Damaged):
                self.unread(self.read(size))
        return self._buffer[self._at : self._at + size]

    def unread(self, data: bytes) -> None:
        """Put bytes back: they are read next."""
        self._buffer, self._at = data + self._buffer[self._at :], 0

    def throw_away(self, size: int) -> None:
        """Account for bytes nobody wanted.

        Raises:
            Damaged: "gzip_bomb" or "zstd_bomb", if this piece has given too many of them out of too few.
        """
        self._thrown += size
        if self._piece is not None and self._thrown > BOMB_BYTES and self._out > BOMB_RATIO * self._fed:
            raise Damaged(f"{self.packing}_bomb", f"{self._out} bytes out of {self._fed}, at byte {self._start}")

    def go_on(self, damage: Damaged, tell: Callable[[str, str], None]) -> bool:
        """Tell the damage and `resync`; whether there is more to read. The reason "too_damaged" is the rest given up."""
        tell(damage.reason, f"{self._path}: {damage.detail}")
        if self.resync():
            return True
        if self._gave_up:
            tell("too_damaged", f"{self._path}: the rest, after byte {self._start}")
        return False

    def resync(self) -> bool:
        """After `Damaged`: go to the next piece that opens; False if there is none."""
        self._buffer, self._at, self._piece, self.broken = b"", 0, None, None
        self._damages += 1
        magic = {"gzip": _GZIP, "zstd": _ZSTD}.get(self.packing or "")
        self._again += self._raw_end - self._start
        if magic is None or self._damages > MOST_DAMAGES or self._again > MOST_AGAIN * self._size + BOMB_BYTES:
            self._gave_up = magic is not None
            self._finish()
            return False
        # From just behind the broken piece's first byte: a torn piece is noticed only after it has eaten the next one.
        self._seek(self._start + 1)
        at = 0
        while True:
            at = self._raw.find(magic, at)
            if at < 0:
                self._raw, at = self._raw[-3:], 0
                if not self._more():
                    self._finish()
                    return False
                continue
            if len(self._raw) - at < _PROBE:
                self._raw, at = self._raw[at:], 0
                self._more()
            if self._opens(self._raw[at : at + _PROBE]):
                self._raw = self._raw[at:]
                return True
            at, self._false = at + 1, self._false + 1
            if self._false > MOST_FALSE:
                self._gave_up = True
                self._finish()
                return False

    def _opens(self, data: bytes) -> bool:
        """Whether a piece begins with `data`: it gives something, or wants more."""
        try:
            out, rest = self._new_piece().feed(data)
        except (zlib.error, zstandard.ZstdError):
            return False
        return bool(out) or not rest

    def _new_piece(self) -> _Piece:
        return _Gzip() if self.packing == "gzip" else _Zstd(self._dictionary)

    def _fill(self, parts: list[bytes] | None = None) -> bool:
        """Replace the empty buffer by the next bytes; False at the end of the file.

        Raises:
            Damaged: again and again, until `resync`; `parts`, if given, are in the buffer then.
        """
        self._buffer, self._at = b"", 0
        if self.packing is None:
            self._buffer = self._file.read(CHUNK)
            return bool(self._buffer)
        try:
            if self.broken is not None:
                raise self.broken
            while True:
                if self._piece is None and not self._open_piece():
                    return False
                if self._advance():
                    return True
        except Damaged as damage:
            self.broken, self._buffer = damage, b"".join(parts or ())
            raise

    def _advance(self) -> bool:
        """Feed the open piece once; whether anything came out."""
        assert self._piece is not None
        if not self._raw:
            self._more()
        offered = self._raw
        try:
            self._buffer, self._raw = self._piece.feed(offered)
        except (zlib.error, zstandard.ZstdError) as error:
            raise Damaged(f"bad_{self.packing}", f"piece at byte {self._start}: {error}") from None
        rest = self._piece.rest
        if rest is not None:
            self._raw = rest
        self._fed += len(offered) - len(self._raw)
        self._out += len(self._buffer)
        self._total += len(self._buffer)
        if rest is not None:
            self._piece = None
        elif not offered and not self._buffer and self._ended:
            raise Damaged(f"truncated_{self.packing}", f"piece at byte {self._start} has no end")
        return bool(self._buffer)

    def _open_piece(self) -> bool:
        """Begin the next member or frame; False at the end of the file. Padding with zeros is allowed."""
        while True:
            self._raw = self._raw.lstrip(b"\0")
            if len(self._raw) < 8 and self._more():
                continue
            if not self._raw:
                return False
            if self.packing == "zstd" and self._raw[:4] in _SKIPPABLE:
                self._skip_frame()
                continue
            break
        self._start = self._raw_end - len(self._raw)
        self._fed = self._out = self._thrown = 0
        if not self._raw.startswith(_GZIP if self.packing == "gzip" else _ZSTD):
            raise Damaged(f"bad_{self.packing}", f"byte {self._start} begins no piece")
        self._piece = self._new_piece()
        self._opened += 1
        self._starts.append(self._total)
        return True

    def _skip_frame(self) -> None:
        """A skippable frame: the dictionary of a .warc.zst, or nothing of interest."""
        kind, size = self._raw[:4], int.from_bytes(self._raw[4:8], "little")
        self._start = self._raw_end - len(self._raw)
        if kind != _DICTIONARY or size > 16 << 20:
            self._seek(self._start + 8 + size)
            return
        while len(self._raw) < 8 + size and self._more():
            pass
        dictionary, self._raw = self._raw[8 : 8 + size], self._raw[8 + size :]
        if dictionary[:4] == _ZSTD:
            try:
                dictionary = zstandard.ZstdDecompressor().decompress(dictionary, max_output_size=16 << 20)
            except zstandard.ZstdError as error:
                raise Damaged("bad_zstd", f"dictionary at byte {self._start}: {error}") from None
        self._dictionary = dictionary

    def _more(self) -> bool:
        """Append to what was read from the file."""
        data = self._file.read(CHUNK)
        self._raw += data
        self._raw_end += len(data)
        self._ended = not data
        return bool(data)

    def _seek(self, place: int) -> None:
        self._file.seek(place)
        self._raw, self._raw_end, self._ended = b"", place, False

    def _finish(self) -> None:
        self._seek(self._size)
        self._ended = True
