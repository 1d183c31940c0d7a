"""Personal data out of a text: e-mail addresses, public IP addresses, telephone, identity and card numbers.

E-mail and IP addresses are found as datatrove's PIIFormatter finds them, so as in FineWeb, and replaced by the same texts; with
one replacement text, and `emails_after_cjk` off, results are equal. Two differences are meant: addresses right after a Chinese
character are found; and where several replacement texts take turns, datatrove's turn goes on from document to document, so that
its output depends on their order, while ours begins anew with each document. A third cannot be seen: datatrove's pattern is
tried at every character, quadratic time on a long run without "@"; ours looks left from each "@", linear whatever the text.

What numbers count, and what never does, is in `pii_numbers`. Not covered: names, postal addresses, IPv6.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from dunwu.data.web.pii_numbers import KINDS, find
from dunwu.types import UsageError

_ATOM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+/=?^_`{|}~-")
_LABEL = "[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+{_LABEL}|\[(?:{_BYTE}\.){{3}}(?:{_BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)\]")
_IP = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_IP_LIKELY = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")


@dataclass(frozen=True)
class PiiConfig:
    """What is replaced, and by what. A replacement text has the form of what it stands for and belongs to nobody."""

    emails: bool = True
    """Whether e-mail addresses are replaced."""
    emails_after_cjk: bool = True
    """Find an address that follows a Chinese, Japanese or Korean character without a space, as it usually does. datatrove's
    pattern wants a word boundary and misses it, or takes its end only."""
    ips: bool = True
    """Whether IPv4 addresses are."""
    public_ips_only: bool = True
    """Leave private, local and reserved addresses, as FineWeb does."""
    numbers: tuple[str, ...] = KINDS
    """Kinds of numbers that are replaced: "id", "card", "mobile", "phone"."""
    email_replacements: tuple[str, ...] = ("email@example.com", "firstname.lastname@example.org")
    """Take turns within a document. datatrove's; example.com and .org are reserved (RFC 2606)."""
    ip_replacements: tuple[str, ...] = (
        "22.214.171.124",
        "126.96.36.199",
        "188.8.131.52",
        "184.108.40.206",
        "220.127.116.11",
        "18.104.22.168",
    )
    """Take turns within a document. datatrove's: drawn at random, silent when they were."""
    id_replacement: str = "110101190001010006"
    """A right check digit, but the serial number 000, which is not given out."""
    card_replacement: str = "6200000000000005"
    """A number for trying payment forms, right by Luhn, never issued."""
    mobile_replacement: str = "13800138000"
    """China Mobile's own line for topping up, which everybody writes as an example; China reserves no numbers for that."""
    phone_replacement: str = "202-555-0143"
    """555-0100 to 555-0199 are reserved for fiction in every North American area code."""

    def validate(self) -> None:
        """Raise UsageError for unknown kinds and missing replacements."""
        if unknown := sorted(set(self.numbers) - set(KINDS)):
            raise UsageError(f"pii.numbers has {unknown[0]!r}", f"any of {', '.join(KINDS)}")
        for name in ("email", "ip"):
            if not getattr(self, f"{name}_replacements"):
                raise UsageError(f"pii.{name}_replacements is empty", f"give one text, or set {name}s to false")


def scrub(text: str, config: PiiConfig | None = None) -> tuple[str, dict[str, int]]:
    """The text without personal data, and how often each kind was replaced: "email", "ip", "id", "card", "mobile", "phone".

    E-mail addresses go first, then IP addresses, then numbers, each in what the former left. The result depends on this
    document alone, and scrubbing it once more changes nothing but the turns of e-mail and IP replacements.

    Example:
        >>> scrub("Write to ann@post.net from 9.9.9.9 or call 13912345678.")
        ('Write to email@example.com from 22.214.171.124 or call 13800138000.', {'email': 1, 'ip': 1, 'mobile': 1})
    """
    config = config or PiiConfig()
    counts: dict[str, int] = {}
    if config.emails and "@" in text:
        text = _replace(text, _emails(text, config.emails_after_cjk), "email", config.email_replacements, counts)
    if config.ips and _IP_LIKELY.search(text):
        text = _replace(text, _ips(text, config.public_ips_only), "ip", config.ip_replacements, counts)
    if config.numbers and (found := find(text, config.numbers)):
        pieces, place = [], 0
        for number in found:
            pieces += [text[place : number.start], getattr(config, f"{number.kind}_replacement")]
            counts[number.kind] = counts.get(number.kind, 0) + 1
            place = number.end
        text = "".join(pieces) + text[place:]
    return text, counts


def _replace(text: str, spans: list[tuple[int, int]], kind: str, by: tuple[str, ...], counts: dict[str, int]) -> str:
    """Spans replaced by the texts in turn, counted."""
    pieces, place = [], 0
    for turn, (start, end) in enumerate(spans):
        pieces += [text[place:start], by[turn % len(by)]]
        place = end
    if spans:
        counts[kind] = len(spans)
    return "".join(pieces) + text[place:]


def _emails(text: str, after_cjk: bool) -> list[tuple[int, int]]:
    """Addresses from the left: a dot-atom (RFC 5322) that begins at a word boundary, "@", and a domain or an address literal.

    Every address has one "@", and its beginning and end do not depend on each other: so the domain is matched right of
    each "@", and the beginning is the leftmost that fits, not before the former address or "@".
    """
    spans: list[tuple[int, int]] = []
    free, at = 0, text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        start = _beginning(text, free, at, after_cjk) if domain else -1
        if domain and start >= 0:
            free = domain.end()
            spans.append((start, free))
        else:
            free = at + 1
        at = text.find("@", max(free, at + 1))
    return spans


def _beginning(text: str, free: int, at: int, after_cjk: bool) -> int:
    """The leftmost place, `free` or later, from which a dot-atom runs up to `at`; -1 if there is none."""
    found, place = -1, at - 1
    dot = True  # what stands right of `place` is a dot, or the "@": no dot may precede it
    while place >= free and (text[place] in _ATOM or (text[place] == "." and not dot)):
        dot = text[place] == "."
        before = text[place - 1] if place else " "
        if not dot and (_is_word(before) != _is_word(text[place]) or (after_cjk and before >= "\u2e80")):
            found = place
        place -= 1
    return found


def _is_word(character: str) -> bool:
    """As \\w has it."""
    return character.isalnum() or character == "_"


def _ips(text: str, public_only: bool) -> list[tuple[int, int]]:
    return [match.span() for match in _IP.finditer(text) if _is_address(match.group(), public_only)]


def _is_address(written: str, public_only: bool) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:  # a leading zero
        return False
    return address.is_global or not public_only
