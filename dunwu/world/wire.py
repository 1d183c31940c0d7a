"""How the crawl's pages come over the wire: in which charset and what they say it is, gzipped, in chunks."""

from __future__ import annotations

import zlib
from random import Random

Declared = tuple[str | None, str | None]
"""The charset by the HTTP header and by the document."""


def draw_charset(dice: Random, legacy: str, undeclared: float, misdeclared: float) -> tuple[str, Declared]:
    """A charset, and what is said of it.

    Args:
        legacy: "zh-Hans", "zh-Hant" or "en" for one of the charsets used before UTF-8; "" for UTF-8.
        undeclared: share of pages that name none.
        misdeclared: share of pages that name a wrong one.

    Example:
        >>> draw_charset(Random(0), "zh-Hant", 0.0, 0.0)
        ('big5', ('big5', None))
    """
    charset, name = dice.choice(_LEGACY[legacy])
    place = dice.random()
    if place < undeclared:
        return charset, (None, None)
    if place < undeclared + misdeclared:
        wrong = "iso-8859-1" if charset == "utf-8" else "utf-8"
        return charset, dice.choice(((wrong, None), (None, wrong), (wrong, name)))
    return charset, dice.choice(((name, name), (name, None), (None, name)))


_LEGACY: dict[str, tuple[tuple[str, str], ...]] = {
    "": (("utf-8", "utf-8"),),
    "en": (("windows-1252", "windows-1252"), ("windows-1252", "iso-8859-1")),
    "zh-Hans": (("gbk", "gbk"), ("gbk", "gb2312"), ("gb18030", "gb18030")),
    "zh-Hant": (("big5", "big5"),),
}
"""(charset, the name it goes by)."""


def as_sent(dice: Random, html: bytes, broken: bool) -> tuple[bytes, tuple[str, str]]:
    """A body gzipped or in chunks, and the header that says so; `broken` cuts it off before the text begins."""
    if broken or dice.random() < 0.5:
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        packed = packer.compress(html) + packer.flush()
        return packed[: len(packed) // 5] if broken else packed, ("Content-Encoding", "gzip")
    middle = dice.randint(1, len(html) - 1)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (html[:middle], html[middle:], b""))
    return chunks, ("Transfer-Encoding", "chunked")
