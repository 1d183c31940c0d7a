"""HTML to text, by trafilatura (as FineWeb) or by resiliparse (as DCLM).

Either way the text is in Unicode's form NFC, has a paragraph, heading, list item or table row to the line, "- " before list
items, no empty lines, no control characters; the indentation of code stays. Before a parser sees a page, one linear pass over its bytes refuses those
that are made to choke it: tags too many, too deep, or with too many attributes. Time and memory of what passes are limited
from outside, in `workers.py`.

Not covered: scripts are not run, frames not followed; comments below an article are left out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import numpy as np

from dunwu.data.web.charset import clean, decode

Backend = Literal["quality", "fast"]

MOST_DEPTH = 512
"""Open elements inside one another; browsers stop nesting there, pages seldom reach 60."""
MOST_TAGS = 150_000
"""Tags of a page. A long page has some thousands."""
MOST_ATTRIBUTES = 4000
"""Attributes of one tag: a parser compares each with all."""
_LONG_TAG = 32 << 10
_VOID = frozenset(b"area base br col embed hr img input link meta param source track wbr".split())
_CLOSED_BY_NEXT = frozenset(
    b"p li dt dd option optgroup tr td th thead tbody tfoot colgroup rp rt html head body".split()
)
"""Elements that need no end tag, and do not nest for the want of one."""
_TAG = re.compile(rb"<(/?)([A-Za-z][A-Za-z0-9:-]{0,31})[^<>]{0,512}(/?>)?")
_HIDDEN = re.compile(
    rb"<!--.*?(?:-->|\Z)|<(script|style|textarea|template)\b.*?(?:</\1\b|\Z)", re.DOTALL | re.IGNORECASE
)
_TAG_PART = re.compile(rb"[>\"']|[^\s>\"'=/]+")
_SPACES = re.compile(r"[^\S\n]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u200b\u2060]")
_ITEM = re.compile(r"([-•◦▪‣*·](?: |$))|\d{1,3}\. ")


class ExtractionError(Exception):
    """A page that gives no text. `reason`: "dom_too_deep", "too_many_tags", "too_many_attributes"."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def extract(html: str | bytes, backend: Backend = "quality", url: str | None = None, charset: str | None = None) -> str:
    """The main text of a page; "" where there is none.

    "quality" is trafilatura with precision favoured, as FineWeb has it, without comments. Its `deduplicate` stays off: that
    remembers other pages, and the text of a page would depend on who came before. "fast" is resiliparse's main content.

    Args:
        html: the page; bytes are decoded by `charset.decode`.
        backend: which extractor.
        url: the page's address, handed on to trafilatura; the text does not depend on it.
        charset: what the HTTP header says of the bytes.

    Raises:
        ExtractionError: the page is refused.
    """
    page, name = decode(html, charset) if isinstance(html, bytes) else (clean(html), "")
    check_markup(html if isinstance(html, bytes) and name == "utf-8" else page.encode("utf-8"))
    return tidy(_fast(page) if backend == "fast" else _quality(page, url))


def _quality(page: str, url: str | None) -> str:
    from trafilatura import extract as main_text

    if not page.strip():
        return ""
    text: str | None = main_text(
        page, url=url, favor_precision=True, include_comments=False, include_tables=True, deduplicate=False
    )
    return text or ""


def _fast(page: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(
        page, main_content=True, preserve_formatting=True, list_bullets=True, alt_texts=False, links=False
    )
    return text


def tidy(text: str) -> str:
    """Extracted text in one form: see the module's head.

    Example:
        >>> tidy("A  title \\n\\n\\n•  one\\n• \\n•  two\\r\\n")
        'A title\\n- one\\n- two'
    """
    text = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", " "))
    lines = (_tidy_line(line) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line.strip(" \t-"))
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _tidy_line(line: str) -> str:
    """Spaces inside are one; those before it stay where they are code's, not a list's."""
    words = _SPACES.sub(" ", line).strip()
    item = _ITEM.match(words)
    if item is not None:
        return ("- " if item[1] else item[0]) + words[item.end() :]
    return line[: len(line) - len(line.lstrip(" \t"))] + words


def check_markup(html: bytes) -> None:
    """Refuse pages made to choke a parser. Linear in the page, some microseconds per 100 kB for an honest one.

    Raises:
        ExtractionError: "too_many_tags", "dom_too_deep", "too_many_attributes".
    """
    marks = html.count(b"<")
    if marks > MOST_TAGS:
        raise ExtractionError("too_many_tags", f"{marks}, more than {MOST_TAGS}")
    if marks == 0:
        return
    data = np.frombuffer(html, dtype=np.uint8)
    at = np.flatnonzero(data == 0x3C)
    after = data[np.minimum(at + 1, len(data) - 1)]
    letters = ((after | 0x20) >= 0x61) & ((after | 0x20) <= 0x7A)
    # Void and unclosed elements counted as if they nested: an upper bound, and the whole check for most pages.
    if marks > MOST_DEPTH and int(np.cumsum(letters.astype(np.int32) - (after == 0x2F)).max()) > MOST_DEPTH:
        depth = _depth(html)
        if depth > MOST_DEPTH:
            raise ExtractionError("dom_too_deep", f"{depth} elements inside one another, more than {MOST_DEPTH}")
    gaps = np.diff(at, append=len(data))
    for start in at[(gaps > _LONG_TAG) & letters]:
        if _attributes(html, int(start)) > MOST_ATTRIBUTES:
            raise ExtractionError("too_many_attributes", f"more than {MOST_ATTRIBUTES} in a tag")


def _depth(html: bytes) -> int:
    """The deepest nesting, unclosed elements included, scripts and comments left out; stops soon after `MOST_DEPTH`."""
    depth = deepest = 0
    for tag in _TAG.finditer(_HIDDEN.sub(b" ", html)):
        name = tag[2].lower()
        if name in _VOID or name in _CLOSED_BY_NEXT:
            continue
        if tag[1]:
            depth = max(0, depth - 1)
        elif tag[3] != b"/>":
            depth += 1
            deepest = max(deepest, depth)
    return deepest


def _attributes(html: bytes, start: int) -> int:
    """Attributes of the tag that starts there, about; quoted values count as one."""
    count, at = 0, start + 1
    while (part := _TAG_PART.search(html, at)) is not None and count <= MOST_ATTRIBUTES:
        at = part.end()
        if part[0] == b">":
            break
        if part[0] in (b'"', b"'"):
            at = html.find(part[0], at) + 1
            if at == 0:
                break
        else:
            count += 1
    return count
