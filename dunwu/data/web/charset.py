"""Bytes of a web page to text, whatever the page says its charset is.

Tried in this order: byte order mark; UTF-8, which other charsets are hardly ever mistaken for; then what the HTTP header and
the page's meta tag declare, what uchardet (by resiliparse) finds, and the usual charsets of China, Taiwan, Hong Kong, Japan,
Korea and Europe. Each is judged by what comes out: characters that are frequent in some language, against rare ones, private
ones, holes. A declaration is a hint that breaks near ties, because declarations lie. As browsers do, gb2312 and gbk are read as
GB18030, Big5 with the Hong Kong characters, iso-8859-1 as windows-1252.

Nothing raises: what no charset can read becomes U+FFFD. NULs and lone surrogates are removed. Not covered: EBCDIC, UTF-7,
charsets of single letters' fonts, and pages in two charsets at once.
"""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

import numpy as np

HEAD = 8192
"""Bytes in which a meta tag is looked for (browsers: 1024; pages with long scripts before it exist)."""
SAMPLE = 3000
"""Characters beyond ASCII that are judged."""
HINTS = {"http": 0.12, "meta": 0.12, "uchardet": 0.15, "guess": 0.0}
"""What a charset's score is raised by, per source that names it."""
GUESSES = ("gb18030", "big5hkscs", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1252")
_NAMES = {
    "gb18030": "gb18030 gbk gb2312 gb_2312-80 x-gbk euc-cn hz-gb-2312-8 cp936 ms936 windows-936 chinese csgb2312",
    "big5hkscs": "big5 big5-hkscs big5hkscs x-x-big5 cn-big5 cp950 ms950 csbig5 big5-eten",
    "cp932": "shift_jis shift-jis sjis x-sjis windows-31j ms932 ms_kanji cp932 csshiftjis",
    "euc_jp": "euc-jp eucjp x-euc-jp euc_jp",
    "iso2022_jp": "iso-2022-jp csiso2022jp",
    "cp949": "euc-kr euckr ks_c_5601-1987 ks_c_5601-1989 ksc5601 korean windows-949 cp949 uhc",
    "cp1252": "windows-1252 cp1252 x-cp1252 iso-8859-1 iso8859-1 iso88591 latin1 latin-1 l1 ascii us-ascii ansi_x3.4-1968",
    "iso8859_15": "iso-8859-15 iso8859-15 latin9 latin-9",
    "cp1254": "windows-1254 cp1254 iso-8859-9 latin5",
    "cp874": "windows-874 tis-620 iso-8859-11 cp874",
    "koi8_r": "koi8-r koi8 koi",
    "koi8_u": "koi8-u",
    "mac_roman": "macintosh x-mac-roman mac",
    "hz": "hz-gb-2312 hz",
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 utf-8-sig utf8mb4",
    "utf-16-le": "utf-16 utf-16le utf-16-le utf16 unicode ucs-2",
    "utf-16-be": "utf-16be utf-16-be unicodefffe",
}
_CODECS = {label: codec for codec, labels in _NAMES.items() for label in labels.split()}
_CODECS |= {f"windows-125{n}": f"cp125{n}" for n in range(9)} | {f"cp125{n}": f"cp125{n}" for n in range(9)}
_CODECS |= {f"iso-8859-{n}": f"iso8859_{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 16)}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(rb"<(?:meta|\?xml)\b[^>]{0,400}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:+-]{1,40})", re.IGNORECASE)
_WIDE = re.compile(r"[^\x00-\x7f]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SECONDS = (0xC2, 0xC5, 0xC6, 0xCB, 0xE2)
_BYTES = {
    ord(bytes((byte,)).decode("cp1252")): byte
    for byte in range(0x80, 0xA0)
    if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}

# Frequent characters of running text, by which a right reading is known: simplified and traditional Chinese, Japanese.
_FREQUENT = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么"
    "去法学如都同现当没动面起看定天分还进好小部其些主样理心本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关"
    "點業於無來東與對時會學國們這說過後為個發經裡麼當動進樣實開從機關現種長頭見電話問題車書門馬員場"
    "日本語年月中見行事者会社新聞私今何度気高話読書来食間物車駅電東京"
)


def decode(raw: bytes, declared: str | None = None) -> tuple[str, str]:
    """(text, Python's name of the charset it was read by).

    "utf-8 twice" is UTF-8 that somebody had read as windows-1252 and written as UTF-8 again.

    Args:
        raw: the page.
        declared: the charset of its HTTP header.

    Example:
        >>> decode("大家好，这是中文。".encode("gbk"), "iso-8859-1")
        ('大家好，这是中文。', 'gb18030')
    """
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return clean(raw[len(mark) :].decode(name, "replace")), name
    if raw.isascii() and b"\x1b" not in raw and b"\0" not in raw and b"~" not in raw:
        return raw.decode("ascii"), "utf-8"
    hints = _hints(raw, declared)
    wide = _utf16(raw, hints)
    if wide is not None:
        return clean(raw.decode(wide, "replace")), wide
    escaped = _escaped(raw, hints)
    if escaped is not None:
        return clean(raw.decode(escaped, "replace")), escaped
    text = _strictly(raw, "utf-8")
    if text is not None and not _rather(raw, text, hints):
        return _once(raw, text.replace("\0", ""))
    name, text = _best(raw, hints)
    return clean(text), name


def clean(text: str) -> str:
    """Without NULs and lone surrogates, which neither UTF-8 nor XML can hold."""
    text = text.replace("\0", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _SURROGATES.sub("", text)
    return text


def codec(label: str | None) -> str | None:
    """Python's codec for a charset's name on the web; None for names that are not charsets of pages.

    Example:
        >>> codec("GB2312"), codec("ISO-8859-1"), codec("punycode")
        ('gb18030', 'cp1252', None)
    """
    return _CODECS.get((label or "").strip().strip("\"'").lower().replace("_", "-")) or _CODECS.get(
        (label or "").strip().strip("\"'").lower()
    )


def _hints(raw: bytes, declared: str | None) -> dict[str, str]:
    """{source: codec} of what is declared."""
    hints = {}
    if (name := codec(declared)) is not None:
        hints["http"] = name
    meta = _META.search(raw, 0, HEAD)
    if meta is not None and (name := codec(meta[1].decode("ascii", "replace"))) is not None:
        hints["meta"] = "utf-8" if name.startswith("utf-16") else name  # a tag that ASCII can find is not in UTF-16
    return hints


def _utf16(raw: bytes, hints: dict[str, str]) -> str | None:
    """UTF-16 without a mark: markup has a NUL in every other byte; plain Chinese has none, and must be declared."""
    head = raw[:2048]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) >= max(4, len(head) // 8) and min(even, odd) * 10 <= max(even, odd):
        name = "utf-16-be" if even > odd else "utf-16-le"
        return name if _strictly(raw, name) is not None else None
    declared = hints.get("http", "")
    if declared.startswith("utf-16") and (text := _strictly(raw, declared)) is not None and sanity(text) > 0.3:
        return declared
    return None


def _escaped(raw: bytes, hints: dict[str, str]) -> str | None:
    """The charsets of seven bits, told by their escapes; HZ's are innocent characters, so it must be declared or make sense."""
    if b"\x1b" in raw and b"\x1b$" in raw and _strictly(raw, "iso2022_jp") is not None:
        return "iso2022_jp"
    if b"~" in raw and b"~{" in raw and b"~}" in raw and (text := _strictly(raw, "hz")) is not None:
        return "hz" if "hz" in hints.values() or sanity(text) > 0.7 else None
    return None


def _rather(raw: bytes, text: str, hints: dict[str, str]) -> bool:
    """Whether a few bytes that happen to be UTF-8 read better as what is declared: 联通 in GBK is the classic."""
    others = {name for name in hints.values() if name != "utf-8"}
    if not others or len(raw) - len(raw.translate(None, _HIGH)) > _FEW:
        return False
    mine = sanity(text)
    return any((other := _strictly(raw, name)) is not None and sanity(other) > mine + 0.3 for name in others)


def _once(raw: bytes, text: str) -> tuple[str, str]:
    """UTF-8 written twice is read twice, if all of it can be, and comes out saner."""
    if _looks_twice(raw):
        try:
            inner = text.translate(_BYTES).encode("latin-1").decode("utf-8")
        except (UnicodeEncodeError, UnicodeDecodeError):
            return text, "utf-8"
        if sanity(inner) > sanity(text):
            return inner.replace("\0", ""), "utf-8 twice"
    return text, "utf-8"


def _looks_twice(raw: bytes) -> bool:
    """Whether lead bytes of UTF-8, read as Latin letters and written again, are followed by what a second byte became."""
    if raw.count(b"\xc3", 0, 256 << 10) < 2:
        return False
    data = np.frombuffer(raw[: 256 << 10] + b"\0\0", dtype=np.uint8)
    at = np.flatnonzero(data[:-2] == 0xC3)
    lead, after = data[at + 1], data[np.minimum(at + 2, len(data) - 1)]
    return int(((lead >= 0x82) & (lead <= 0xB4) & np.isin(after, _SECONDS)).sum()) >= 2


def _best(raw: bytes, hints: dict[str, str]) -> tuple[str, str]:
    """(codec, text) of the best reading among the hinted and the usual ones."""
    from resiliparse.parse.encoding import detect_encoding

    found = codec(detect_encoding(raw, max_len=64 << 10))
    if found is not None and not found.startswith("utf-16"):
        hints = {**hints, "uchardet": found}
    best = (-9.0, "cp1252")
    sample = _sample(raw)
    # The less there is to judge, the more a declaration counts.
    trust = 1 + 20 / max(1, len(sample) - len(sample.translate(None, _HIGH)))
    for name in dict.fromkeys((*hints.values(), "utf-8", *GUESSES)):
        if name.startswith("utf-16"):
            continue
        hinted = sum(HINTS[by] * (1.0 if by == "uchardet" else trust) for by, named in hints.items() if named == name)
        score = sanity(sample.decode(name, "replace")) + hinted
        if score > best[0]:
            best = (score, name)
    return best[1], raw.decode(best[1], "replace")


def _sample(raw: bytes) -> bytes:
    """The first lines of `raw` that are not ASCII, some `SAMPLE` characters."""
    size, lines = 0, []
    for line in raw.split(b"\n", 20_000):
        if not line.isascii():
            lines.append(line[: 16 * SAMPLE])
            size += len(lines[-1]) - len(lines[-1].translate(None, _HIGH))
            if size > 2 * SAMPLE:
                break
    return b"\n".join(lines)


def _strictly(raw: bytes, name: str) -> str | None:
    """`raw` in that charset; the last character may be cut off, as crawlers cut pages."""
    try:
        return raw.decode(name)
    except UnicodeDecodeError as error:
        end = error.start
    try:
        return raw[:end].decode(name) if len(raw) - 3 <= end > 0 else None
    except UnicodeDecodeError:
        return None


def sanity(text: str) -> float:
    """How much the characters beyond ASCII look like language: about 1 for running text, below 0 for the wrong charset.

    Example:
        >>> sanity("这是一个很好的例子") > 0.5 > 0 > sanity("这是一个很好的例子".encode("gbk").decode("latin-1"))
        True
    """
    total, count = 0.0, 0
    weights = _weights()
    for run in _WIDE.finditer(text):
        chars = run[0]
        # Letters of Latin-1 stand among ASCII letters; two in a row happen, five are bytes of something else.
        latin = sum(weights.get(char, 0.0) == _LATIN for char in chars)
        total += sum(_weight(char, weights) for char in chars) - (
            1.5 * latin if latin > 2 else 0.5 * latin * (latin - 1)
        )
        # Within a word scripts do not mix: a Cyrillic letter beside an ASCII one was something else.
        total -= 1.5 * (_foreign(chars[0]) and text[run.start() - 1 : run.start()].isalpha())
        total -= 1.5 * (_foreign(chars[-1]) and text[run.end() : run.end() + 1].isalpha())
        count += len(chars)
        if count > SAMPLE:
            break
    return total / count if count else 0.0


_LATIN = 0.61
_HIGH = bytes(range(128, 256))
_FEW = 24
"""Bytes beyond ASCII that may happen to be UTF-8 and mean something else."""


def _foreign(char: str) -> bool:
    """Letters of the Greek, Cyrillic, Hebrew, Arabic … blocks."""
    return "\u0250" <= char < "\u3000" and char.isalpha()


def _weight(char: str, weights: dict[str, float]) -> float:
    known = weights.get(char)
    if known is not None:
        return known
    code = ord(char)
    if 0x4E00 <= code < 0xA000:
        return -0.4  # an ideograph no common charset has among its common ones
    if 0xE000 <= code < 0xF900 or 0xFFF0 <= code < 0xFFFE or 0x80 <= code < 0xA0 or code >= 0xF0000:
        return -4.0
    if 0xAC00 <= code < 0xD7B0 or 0xFF61 <= code < 0xFFA0 or 0x3400 <= code < 0x4E00 or code >= 0x20000:
        return -0.6  # syllables Korean hardly uses, half-width kana, rare ideographs
    return 0.2 if char.isalpha() else 0.0


@lru_cache(maxsize=1)
def _weights() -> dict[str, float]:
    """Characters with a weight of their own."""
    weights: dict[str, float] = {}
    for name, leads, weight in (("euc_jp", range(0xB0, 0xD0), 0.3), ("big5", range(0xA4, 0xC7), 0.4)):
        weights |= dict.fromkeys(_pairs(name, leads), weight)
    weights |= dict.fromkeys(_pairs("gb2312", range(0xB0, 0xD8)), 0.4)
    weights |= dict.fromkeys(_pairs("euc_kr", range(0xB0, 0xC9)), 0.7)
    weights |= dict.fromkeys((chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FD))), 0.7)
    weights |= dict.fromkeys((chr(code) for code in range(0x430, 0x450)), 0.8)
    weights |= dict.fromkeys((chr(code) for code in range(0x410, 0x430)), 0.1)  # KOI8 read as 1251 swaps the cases
    weights |= dict.fromkeys((chr(code) for code in range(0xC0, 0x180) if chr(code).isalpha()), _LATIN)
    weights |= dict.fromkeys("，。、；：？！“”‘’（）《》「」『』【】—…·　«»–„", 0.6)
    weights |= dict.fromkeys("\u00a0£§©®°±²³·»«½€™•", 0.2)
    weights |= dict.fromkeys(_FREQUENT, 1.5)
    return weights


def _pairs(name: str, leads: range) -> str:
    """The characters of these lead bytes."""
    trails = (*range(0x40, 0x7F), *range(0xA1, 0xFF)) if name == "big5" else range(0xA1, 0xFF)
    return "".join(bytes((lead, trail)).decode(name, "ignore") for lead in leads for trail in trails)
