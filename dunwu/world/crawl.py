"""The web as a crawler brings it: world pages on sites, among rubbish, re-posts and damage, each with what is true of it.

Every item that should stay is a world page in a site's HTML. What should go, and by which step of the pipeline, is the item's
fate. `truth` of a `Crawled`:

- `id`, `url`, `index`, `dump`; `kind`: a share of `CrawlKnobs`, or "page"; `text`: what a perfect extractor gives;
- `fate`: "keep", or the step that should drop it: "url", "extraction", "language", "quality:repetition", "quality:gopher",
  "quality:c4", "exact_duplicate", "near_duplicate", "contaminated", "damaged";
- `languages`: the labels that are right, best first; more than one where English and Chinese share a page unevenly;
- `domain`: of the world page, if there is one; `charset` with what the page says of it in `declared`: [header, document];
- `pii`: the planted strings, as `{"kind", "text"}`; `of`: the id of what is posted again, with `similarity` (Jaccard, 5-grams);
- `held_out`: the problem of another split that the page shows; `damage`: "member", "header" or "body".

Two world pages may have the same text by nature (puzzles, greetings). Their fate is "keep" each; `eval.cleaning` counts one of
them as the duplicate, whichever stays.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate, count, islice
from random import Random
from typing import Any

from dunwu.types import UsageError, derive_seed
from dunwu.world.crawl_texts import asked, edited, is_prose, languages_of, similarity, units
from dunwu.world.html import SITES, Site, address, escape, marked, page
from dunwu.world.knobs import Knobs
from dunwu.world.spam import LANGUAGES, RUBBISH, TRADITIONAL, UNSAFE_DOMAINS, foreign, pii
from dunwu.world.web import Page, pages
from dunwu.world.wire import as_sent, draw_charset

WINDOW = 5000
"""A re-post stands at most that many items after its original."""
_GOLDEN = 0x9E3779B97F4A7C15
_FAR = 1 << 40
"""World pages from here on are for items that look for a page of some kind; no other item shows them."""
_BEGIN = 1_748_736_000
"""The crawl's first second, 2025-06-01; an item takes one."""


@dataclass(frozen=True)
class CrawlKnobs:
    """What a crawl holds besides plain world pages. Shares of all items; the rest is world pages.

    Example:
        >>> 0.7 < CrawlKnobs().shares()["page"] < 0.9
        True
    """

    spam: float = 0.012
    """One keyword over and over. Goes by repetition."""
    link_farm: float = 0.008
    """Nothing but links with like names. Goes by repetition, if the extractor leaves anything."""
    repeated: float = 0.008
    """One line again and again. Goes by repetition."""
    gibberish: float = 0.006
    """Encoded text in words far too long. Goes by Gopher's rules."""
    teasers: float = 0.006
    """Lines cut off with dots. Goes by Gopher's rules."""
    lorem: float = 0.006
    """Filler Latin. Goes by C4's rules."""
    code: float = 0.006
    """Source code in curly brackets. Goes by C4's rules."""
    cookies: float = 0.006
    """A consent dialogue and nothing else. Goes by C4's rules."""
    boilerplate: float = 0.008
    """Menus and footers without a text. Goes as empty after extraction."""
    unsafe: float = 0.008
    """World pages on hosts of `spam.UNSAFE_DOMAINS`. Go by their URL."""
    foreign: float = 0.012
    """Sentences in French, German, Spanish, Russian or Japanese. Go by language."""
    traditional: float = 0.012
    """Chinese world pages in traditional characters. Go by language, unless `languages` has "zh-Hant"."""
    mixed: float = 0.012
    """A page with an English and a Chinese world page on it. Stays."""
    exact: float = 0.02
    """A world page once more, word for word, on another site."""
    near: float = 0.03
    """A world page once more with a word or a sign before or after it."""
    contaminated: float = 0.0
    """Pages that show a problem of the split "test"."""
    pii: float = 0.02
    """World pages with a sentence that has somebody's data. Stay, without the data."""
    damaged: float = 0.001
    """World pages in records that cannot be read, or whose body breaks off in its head: those go as empty after extraction."""
    similarity: float = 0.95
    """Least Jaccard similarity, over 5-grams of words and ideographs, of a near-duplicate and its original."""
    dump: int = 50_000
    """Items of a dump, within which re-posts and their originals stand. Duplicates are looked for by dump: over 200,000 world
    pages a third of the puzzles would go, for there are only so many of them."""
    languages: tuple[str, ...] = field(default=("en", "zh-Hans", "mixed", "und"))
    """What the pipeline is going to keep; "und" is a page without words."""
    legacy: float = 0.25
    """Share of the Chinese pages in GBK, GB18030 or Big5, and of the English ones in windows-1252, where it has their characters."""
    undeclared: float = 0.06
    """Share of all pages that name no charset."""
    misdeclared: float = 0.04
    """Share of all pages that name a wrong one."""
    transfer: float = 0.02
    """Share of all pages stored as they were sent: gzipped or in chunks."""

    def shares(self) -> dict[str, float]:
        """Kind → probability, "page" (plain world pages) last."""
        named = {name: getattr(self, name) for name in _KINDS}
        return {**named, "page": 1 - sum(named.values())}

    def validate(self) -> None:
        """Raise UsageError naming a share outside [0, 1]."""
        for name in (*_KINDS, "similarity", "legacy", "undeclared", "misdeclared", "transfer"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"crawl knob {name} = {getattr(self, name)} is not a share", "use a value from 0 to 1")
        if self.shares()["page"] < 0:
            raise UsageError("the crawl's shares sum to more than 1", "give smaller shares")
        if self.dump < 1:
            raise UsageError(f"a dump of {self.dump} items", "1 or more")
        if self.undeclared + self.misdeclared > 1:
            raise UsageError("undeclared and misdeclared sum to more than 1", "give smaller shares")


_KINDS = (
    *RUBBISH,
    *("boilerplate", "unsafe", "foreign", "traditional", "mixed", "exact", "near", "contaminated", "pii", "damaged"),
)


@dataclass(frozen=True)
class Crawled:
    """One fetched page."""

    id: str
    """WARC-Record-ID, a seeded UUID."""
    url: str
    date: str
    """Of the fetch, ISO 8601, UTC."""
    html: bytes
    """The body as it was sent."""
    headers: tuple[tuple[str, str], ...]
    """HTTP headers."""
    truth: dict[str, Any]
    damage: str = ""
    """What the writer has to do to the record: "member", "header" or nothing; damage of the body is done already."""


def crawl(knobs: Knobs, seed: int, rubbish: CrawlKnobs | None = None, start: int = 0) -> Iterator[Crawled]:
    """Items `start`, `start + 1`, …; item i depends on (knobs, seed, rubbish, i) alone.

    Raises:
        UsageError: a knob that is no share.

    Example:
        >>> one = next(crawl(Knobs(), seed=0, start=7))
        >>> one == next(crawl(Knobs(), seed=0, start=7)), one.truth["fate"]
        (True, 'keep')
    """
    source = _Crawl(knobs, seed, rubbish or CrawlKnobs())
    return (source.item(index) for index in count(start))


def record_id(seed: int, index: int) -> str:
    """The id of item `index`: a UUID of version 8 (RFC 9562) from seed and index.

    Example:
        >>> record_id(0, 1)
        '<urn:uuid:8cad42fd-47de-8644-a931-d1833816c9e9>'
    """
    digits = blake2b(f"crawl {seed} {index}".encode(), digest_size=16).hexdigest()
    return f"<urn:uuid:{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-a{digits[17:20]}-{digits[20:]}>"


def dump_of(rubbish: CrawlKnobs, index: int) -> str:
    """The dump of item `index`; give every dump files of its own.

    Example:
        >>> dump_of(CrawlKnobs(), 0), dump_of(CrawlKnobs(dump=100), 250)
        ('world-000', 'world-002')
    """
    return f"world-{index // rubbish.dump:03d}"


@dataclass
class _Draft:
    """A text on its way to a page."""

    text: str
    chinese: bool
    fate: str = "keep"
    domain: str | None = None
    languages: list[str] | None = None
    """None: found by `languages_of`."""
    body: str | None = None
    """HTML of the body; None: `marked`."""
    unsafe: bool = False
    traditional: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def legacy(self) -> str:
        """Which old charsets have its characters; "" for none."""
        if self.chinese:
            return "zh-Hant" if self.traditional else "zh-Hans"
        return "en" if self.text.isascii() else ""


class _Crawl:
    def __init__(self, knobs: Knobs, seed: int, rubbish: CrawlKnobs) -> None:
        knobs.validate()
        rubbish.validate()
        self.knobs, self.seed, self.rubbish = knobs, seed, rubbish
        self.base = derive_seed("crawl", seed)
        self.only = {chinese: replace(knobs, chinese=float(chinese)) for chinese in (False, True)}
        shares = rubbish.shares()
        self.kinds, self.upto = list(shares), list(accumulate(shares.values()))[:-1]

    def item(self, index: int) -> Crawled:
        dice, kind = self._drawn(index)
        draft, kind = self._draft(dice, kind, index)
        site = dice.choice(_UNSAFE[draft.chinese] if draft.unsafe else SITES[draft.chinese])
        url, date = address(dice, site, index), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_BEGIN + index))
        legacy = draft.legacy if dice.random() < self.rubbish.legacy else ""
        charset, declared = draw_charset(dice, legacy, self.rubbish.undeclared, self.rubbish.misdeclared)
        body = marked(dice, draft.text) if draft.body is None else draft.body
        title, place = draft.text, dice.getrandbits(16)

        def document(said: str | None) -> str:
            whole = page(place, site, body, title, url, date, said, index)
            return whole.translate(TRADITIONAL) if draft.traditional else whole

        try:
            html = document(declared[1]).encode(charset)
        except UnicodeEncodeError:
            charset, declared = "utf-8", ("utf-8", None)
            html = document(None).encode()
        headers = [("Content-Type", "text/html" + (f"; charset={declared[0]}" if declared[0] else ""))]
        damage = draft.more.get("damage", "")
        if damage == "body" or dice.random() < self.rubbish.transfer:
            html, said = as_sent(dice, html, damage == "body")
            headers.append(said)
        truth = {
            "id": record_id(self.seed, index),
            "index": index,
            "dump": dump_of(self.rubbish, index),
            "url": url,
            "kind": kind,
            "fate": draft.fate,
            "languages": draft.languages or languages_of(draft.text),
            "domain": draft.domain,
            "charset": charset,
            "declared": declared,
            **draft.more,
            "text": draft.text,
        }
        headers.append(("Content-Length", str(len(html))))
        return Crawled(truth["id"], url, date, html, tuple(headers), truth, "" if damage == "body" else damage)

    def _drawn(self, index: int) -> tuple[Random, str]:
        dice = Random(self.base + index * _GOLDEN)
        return dice, self.kinds[bisect(self.upto, dice.random())]

    def _page(self, index: int) -> Page:
        return next(pages(self.knobs, self.seed, index))

    def _draft(self, dice: Random, kind: str, index: int) -> tuple[_Draft, str]:
        """The draft, and the kind it came to be: a plain page where no page fit for the kind was found."""
        if kind in RUBBISH:
            return self._rubbish(dice, kind), kind
        if kind in _SEEKERS:
            found = _SEEKERS[kind](self, dice, index)
            if found is not None:
                return found, kind
            kind = "page"
        shown = self._page(index)
        draft = _Draft(shown.text, shown.language == "zh", domain=shown.domain)
        if kind == "unsafe":
            draft.fate, draft.unsafe = "url", True
        elif kind == "damaged":
            damage = dice.choice(("member", "header", "body"))
            draft.fate, draft.more = "extraction" if damage == "body" else "damaged", {"damage": damage}
        elif kind == "pii":
            sentence, what, planted = pii(dice, draft.chinese)
            draft.text += "\n" + sentence
            draft.more = {"pii": [{"kind": what, "text": planted}]}
        return draft, kind

    def _rubbish(self, dice: Random, kind: str) -> _Draft:
        chinese = dice.random() < self.knobs.chinese
        fate, write = RUBBISH[kind]
        draft = _Draft(write(dice, chinese), chinese, fate)
        if kind == "link_farm":
            lines = enumerate(draft.text.split("\n"))
            draft.body = "".join(f'<p><a href="http://go{n}.example.net/">{escape(line)}</a></p>' for n, line in lines)
        return draft

    def _boilerplate(self, dice: Random, index: int) -> _Draft:
        return _Draft("", dice.random() < self.knobs.chinese, "extraction", body="")

    def _foreign(self, dice: Random, index: int) -> _Draft:
        language = dice.choice(LANGUAGES)
        return _Draft(foreign(dice, language), False, "language", languages=[language])

    def _traditional(self, dice: Random, index: int) -> _Draft | None:
        for shown in self._search(index, self.only[True]):
            text = shown.text.translate(TRADITIONAL)
            if languages_of(shown.text) == ["zh-Hans"] and sum(a != b for a, b in zip(text, shown.text)) >= 3:
                fate = "keep" if {"zh", "zh-Hant"} & set(self.rubbish.languages) else "language"
                return _Draft(text, True, fate, shown.domain, ["zh-Hant"], traditional=True)
        return None

    def _mixed(self, dice: Random, index: int) -> _Draft | None:
        halves: list[Page] = []
        for chinese in (False, True):
            label = ["zh-Hans" if chinese else "en"]
            pool = self._search(index, self.only[chinese])
            halves += islice((shown for shown in pool if is_prose(shown.text) and languages_of(shown.text) == label), 1)
        chinese_first = dice.random() < 0.5
        if chinese_first:
            halves.reverse()
        text = "\n".join(shown.text for shown in halves)
        # Prose of both, and neither much longer: no doubt about this one.
        if len(halves) < 2 or languages_of(text)[0] != "mixed":
            return None
        return _Draft(text, chinese_first, domain=halves[0].domain, languages=["mixed"])

    def _exact(self, dice: Random, index: int) -> _Draft | None:
        for place, shown in self._earlier(dice, index):
            more = {"of": record_id(self.seed, place), "similarity": 1.0}
            return _Draft(shown.text, shown.language == "zh", "exact_duplicate", shown.domain, more=more)
        return None

    def _near(self, dice: Random, index: int) -> _Draft | None:
        for place, shown in self._earlier(dice, index):
            chinese = shown.language == "zh"
            for text in edited(dice, shown.text, chinese):
                alike = similarity(shown.text, text)
                if alike >= self.rubbish.similarity:
                    more = {"of": record_id(self.seed, place), "similarity": round(alike, 4)}
                    return _Draft(text, chinese, "near_duplicate", shown.domain, more=more)
        return None

    def _contaminated(self, dice: Random, index: int) -> _Draft | None:
        for shown in self._search(index, self.knobs, "test"):
            if not {"numbers", "statements", "given"} & shown.truth.keys():
                continue
            problem = asked(shown.text)
            if len(units(problem)) >= 10:
                more = {"held_out": problem}
                return _Draft(shown.text, shown.language == "zh", "contaminated", shown.domain, more=more)
        return None

    def _search(self, index: int, knobs: Knobs, split: str = "train") -> Iterator[Page]:
        """Pages to choose from, of which no other item has any."""
        return islice(pages(knobs, self.seed, _FAR + 32 * index, split), 32)

    def _earlier(self, dice: Random, index: int) -> Iterator[tuple[int, Page]]:
        """Plain pages among the `WINDOW` items before in the same dump, in any order."""
        before = min(index % self.rubbish.dump, WINDOW)
        for _ in range(32 if before else 0):
            place = index - 1 - int(dice.random() * before)
            if self._drawn(place)[1] == "page":
                yield place, self._page(place)


_SEEKERS = {
    "boilerplate": _Crawl._boilerplate,
    "foreign": _Crawl._foreign,
    "traditional": _Crawl._traditional,
    "mixed": _Crawl._mixed,
    "exact": _Crawl._exact,
    "near": _Crawl._near,
    "contaminated": _Crawl._contaminated,
}
_UNSAFE: dict[bool, tuple[Site, ...]] = {
    chinese: tuple(Site(host, sites[n].name, sites[n].layout, chinese) for n, host in enumerate(UNSAFE_DOMAINS))
    for chinese, sites in SITES.items()
}
