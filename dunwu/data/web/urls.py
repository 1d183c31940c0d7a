"""Which addresses are not worth a fetch's text: FineWeb's block lists, a user's own, and the tricks of phishing.

The lists lie inside the datatrove package (domains and URLs from the University of Toulouse's UT1 collection, words chosen by
FineWeb's authors) and are read where they lie. The order of the checks, their outcome and their reasons are those of datatrove's
URLFilter, faults included: words are found in the case they are written in, and the list of URLs holds addresses without
"https://", so that it hardly ever speaks. What datatrove keeps is then looked at for structure.

`url_lists` holds them. The suffix list is the one in tldextract's wheel; nothing is fetched.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from dunwu.data.web.url_lists import BETWEEN_WORDS, UrlLists, letters
from dunwu.types import DunwuError

_SPLIT = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(?://)?([^/?#]*)")
_NUMERIC = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")
CYRILLIC_LOOKALIKES = frozenset("асԁеһіјӏорԛѕԝхуѵ")
"""Cyrillic letters that pass for Latin ones; a name of nothing else under a Latin suffix is a disguise (as in Chromium)."""
LONGEST_HOST, LONGEST_LABEL = 253, 63
"""RFC 1035."""


@dataclass(frozen=True)
class UrlConfig:
    """Which addresses are dropped."""

    integrated: bool = True
    """FineWeb's lists, from the datatrove package."""
    structure: bool = True
    """Drop hosts that are numbers, disguised or malformed addresses, other schemes than http and https."""
    soft_words: int = 2
    """Soft banned words that drop an address (datatrove: `soft_word_threshold`)."""
    domains: tuple[str, ...] = ()
    """The user's own files, one entry a line, "#" begins a comment: domains or hosts, for reasons "domain", "subdomain"."""
    urls: tuple[str, ...] = ()
    """Files of whole addresses ("url"), as they stand in the pages."""
    words: tuple[str, ...] = ()
    """Files of words between signs ("hard_blacklisted")."""
    subwords: tuple[str, ...] = ()
    """Files of letters anywhere, signs left out ("blacklisted_subword")."""
    soft: tuple[str, ...] = ()
    """Files of soft banned words ("soft_blacklisted")."""


class UrlFilter:
    """Addresses to reasons. Lists are read when the first address comes.

    Raises:
        DunwuError: a list cannot be read; datatrove or tldextract is not installed.

    Example:
        >>> UrlFilter(UrlConfig(integrated=False)).reason("http://my-bank.com@203.0.113.7/login")
        'url_userinfo'
    """

    def __init__(self, config: UrlConfig | None = None) -> None:
        self.config = config or UrlConfig()
        self._lists: UrlLists | None = None

    def __getstate__(self) -> dict[str, Any]:
        """To another process goes the config; it maps the lists itself."""
        return {"config": self.config, "_lists": None}

    def reason(self, url: str) -> str | None:
        """Why a page of this address is dropped, or None; never for an empty address, of which nothing is known."""
        if not url:
            return None
        return self._listed(url) or (structural_reason(url) if self.config.structure else None)

    def _listed(self, url: str) -> str | None:
        """What datatrove's URLFilter says."""
        if self._lists is None:
            own = {name: getattr(self.config, name) for name in ("domains", "urls", "words", "subwords", "soft")}
            self._lists = UrlLists(own, self.config.integrated)
        lists = self._lists
        name = _suffixes()(url)
        if lists.has_own(name.top_domain_under_public_suffix or name.domain):
            return "domain"
        if lists.has_own(".".join(filter(None, (name.subdomain, name.domain, name.suffix)))):
            return "subdomain"
        if lists.has_domain(name.top_domain_under_public_suffix):
            return "domain"
        if lists.has_domain(name.fqdn):
            return "subdomain"
        if url in lists.urls:
            return "url"
        words = set(BETWEEN_WORDS.split(url))
        if not words.isdisjoint(lists.words):
            return "hard_blacklisted"
        if len(words & lists.soft) >= self.config.soft_words:
            return "soft_blacklisted"
        return "blacklisted_subword" if lists.has_subword(letters(url)) else None


def structural_reason(url: str) -> str | None:
    """What is wrong with an address whatever it names: "url_malformed", "url_scheme", "url_userinfo", "url_long_host",
    "url_ip_host", "url_lookalike"; None if nothing is.

    Example:
        >>> structural_reason("javascript:alert(1)"), structural_reason("http://2130706433/"), structural_reason("http://例子.com/")
        ('url_scheme', 'url_ip_host', None)
    """
    parts = _SPLIT.match(url)
    if parts is None:
        return "url_malformed"
    scheme, authority = parts[1].lower(), parts[2]
    if scheme not in ("http", "https"):
        return "url_scheme"
    if "\\" in authority or any(not character.isprintable() or character.isspace() for character in authority[:1000]):
        return "url_malformed"
    if "@" in authority:
        return "url_userinfo"
    if authority.startswith("["):
        return "url_ip_host"
    host, _, port = authority.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit())):
        return "url_malformed"
    return _host_reason(host.rstrip(".").lower())


def _host_reason(host: str) -> str | None:
    if len(host) > LONGEST_HOST:
        return "url_long_host"
    labels = host.split(".")
    if any(len(label) > LONGEST_LABEL for label in labels):
        return "url_long_host"
    if not all(labels):
        return "url_malformed"
    if _NUMERIC.fullmatch(labels[-1]):  # the rule of browsers: then the whole is an IPv4 address, in whatever notation
        return "url_ip_host"
    try:
        shown = [label[4:].encode().decode("punycode") if label.startswith("xn--") else label for label in labels]
    except (UnicodeError, ValueError, OverflowError):
        return "url_malformed"
    return "url_lookalike" if any(_disguised(label, shown[-1]) for label in shown[:-1]) else None


def _disguised(label: str, suffix: str) -> bool:
    """Latin beside Cyrillic or Greek in one label, or Cyrillic letters alone that all pass for Latin."""
    if label.isascii():
        return False
    scripts = {unicodedata.name(character, "").split(" ")[0] for character in label if character.isalpha()}
    if "LATIN" in scripts and scripts & {"CYRILLIC", "GREEK"}:
        return True
    return suffix.isascii() and scripts == {"CYRILLIC"} and {c for c in label if c.isalpha()} <= CYRILLIC_LOOKALIKES


@cache
def _suffixes() -> Callable[[str], Any]:
    """The public suffixes of tldextract's wheel: no fetch, no cache on disk."""
    try:
        from tldextract import TLDExtract
    except ImportError as error:
        raise DunwuError("the URL filter needs tldextract", "pip install tldextract") from error
    return TLDExtract(cache_dir=None, suffix_list_urls=())
