"""The crawl: a function of its index, its shares as stated, its truth true, and its text what an extractor gives back."""

from __future__ import annotations

import gzip
import html
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunwu.types import UsageError
from dunwu.world.crawl import Crawled, CrawlKnobs, crawl, dump_of, record_id
from dunwu.world.crawl_texts import languages_of, similarity
from dunwu.world.html import SITES, address, escape, marked, page
from dunwu.world.knobs import Hands, Knobs
from dunwu.world.spam import LANGUAGES, RUBBISH, TRADITIONAL, UNSAFE_DOMAINS, foreign, pii
from dunwu.world.web import pages

WORLD = Knobs(countdown=0.7, general=0.25, knights=0.1, worked_problems=0.05, chinese=0.3, mixed_thinking=0.5)
RICH = CrawlKnobs(
    **dict.fromkeys(RUBBISH, 0.02),
    **dict.fromkeys(("boilerplate", "unsafe", "foreign", "traditional", "mixed", "contaminated", "pii"), 0.03),
    exact=0.05,
    near=0.1,
    damaged=0.02,
    transfer=0.1,
)


def take(count: int, rubbish: CrawlKnobs = RICH, start: int = 0, seed: int = 0, knobs: Knobs = WORLD) -> list[Crawled]:
    return list(islice(crawl(knobs, seed, rubbish, start), count))


@pytest.fixture(scope="module")
def items() -> list[Crawled]:
    return take(1500)


def of_kind(items: list[Crawled], kind: str) -> list[Crawled]:
    found = [item for item in items if item.truth["kind"] == kind]
    assert found, kind
    return found


def body(item: Crawled) -> bytes:
    """The HTML, whatever way it was sent."""
    headers = dict(item.headers)
    if "Transfer-Encoding" in headers:
        parts, rest = [], item.html
        while rest:
            size, rest = rest.split(b"\r\n", 1)
            parts.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return b"".join(parts)
    return gzip.decompress(item.html) if "Content-Encoding" in headers else item.html


def document(item: Crawled) -> str:
    return body(item).decode(item.truth["charset"])


def extracted(text: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(text, main_content=True, preserve_formatting=True))


def test_an_item_depends_on_its_index_alone(items: list[Crawled]) -> None:
    assert items[:200] == take(200)
    assert items[700:760] == take(60, start=700)
    assert items[:50] != take(50, seed=1)
    assert len({item.id for item in items}) == len({item.url for item in items}) == len(items)
    assert [item.id for item in items[:3]] == [record_id(0, index) for index in range(3)]


def test_shares_are_as_stated() -> None:
    shares = CrawlKnobs(contaminated=0.02).shares()
    count = 3000
    found = Counter(item.truth["kind"] for item in take(count, CrawlKnobs(contaminated=0.02)))
    assert sum(shares.values()) == pytest.approx(1)
    for kind, share in shares.items():
        assert abs(found[kind] - count * share) < 6 + 5 * (count * share) ** 0.5, kind
    assert not {"contaminated"} & {item.truth["kind"] for item in take(300, CrawlKnobs())}


def test_plain_pages_are_world_pages(items: list[Crawled]) -> None:
    world = list(islice(pages(WORLD, 0), len(items)))
    for kind in ("page", "unsafe", "damaged"):
        for item in of_kind(items, kind):
            shown = world[item.truth["index"]]
            assert (item.truth["text"], item.truth["domain"]) == (shown.text, shown.domain)


def test_the_fast_extractor_gives_the_text_back(items: list[Crawled]) -> None:
    good = [
        item for item in items if item.truth["fate"] in ("keep", "exact_duplicate", "near_duplicate", "url", "language")
    ]
    wrong = [item.truth["text"] for item in good if extracted(document(item)) != item.truth["text"]]
    assert len(good) > 1000
    assert not wrong
    assert all(extracted(document(item)) == "" for item in of_kind(items, "boilerplate"))


@given(st.text(st.sampled_from("ab1+=<>&\"' 。黑一\n"), max_size=60), st.integers(0, 999))
def test_any_text_comes_back_from_its_markup(text: str, seed: int) -> None:
    dice = Random(seed)
    site = SITES[seed % 2 == 0][seed % 10]
    whole = page(seed, site, marked(dice, text), text, address(dice, site, seed), "2025-06-01T00:00:00Z", "utf-8", seed)
    inner = re.sub(r"<br/?>\n?|</div>\n<div class=\"line\">", "\n", marked(Random(seed), text))
    assert html.unescape(re.sub(r"</?(?:pre|code|p|b|blockquote|div(?: class=\"line\")?)>", "", inner)) == text
    assert marked(Random(seed), text) in whole


def test_what_is_posted_again_is_what_it_says(items: list[Crawled]) -> None:
    by_id = {item.id: item for item in items}
    for item in of_kind(items, "exact"):
        original = by_id[item.truth["of"]]
        assert original.truth["kind"] == "page"
        assert original.truth["text"] == item.truth["text"]
    for item in of_kind(items, "near"):
        original = by_id[item.truth["of"]]
        assert original.truth["text"] != item.truth["text"]
        assert item.truth["similarity"] >= RICH.similarity
        assert item.truth["similarity"] == pytest.approx(
            similarity(original.truth["text"], item.truth["text"]), abs=1e-4
        )
        assert original.truth["index"] < item.truth["index"]


def test_a_re_post_stands_in_the_dump_of_its_original() -> None:
    items = take(300, replace(RICH, dump=40))
    index = {item.id: item.truth["index"] for item in items}
    reposts = [item.truth for item in items if "of" in item.truth]
    assert len(reposts) > 20
    assert all(truth["index"] // 40 == index[truth["of"]] // 40 for truth in reposts)
    assert items[39].truth["dump"] == dump_of(CrawlKnobs(dump=40), 0) != items[40].truth["dump"]


def test_similarity_is_jaccard() -> None:
    one, other = "a b c d e f g", "a b c d e f h"
    assert similarity(one, other) == 2 / 4
    assert similarity(one, one.upper() + "!") == 1
    assert similarity("小明有三个苹果", "小明有三个梨") == pytest.approx(1 / 4)


def test_rubbish_has_its_fate_and_its_mark(items: list[Crawled]) -> None:
    for kind, (fate, _) in RUBBISH.items():
        assert {item.truth["fate"] for item in of_kind(items, kind)} == {fate}
    assert {item.url.split("/")[2] for item in of_kind(items, "unsafe")} <= set(UNSAFE_DOMAINS)
    hosts = {item.url.split("/")[2] for item in items if item.truth["kind"] != "unsafe"}
    assert hosts == {site.host for sites in SITES.values() for site in sites}
    assert {item.truth["languages"][0] for item in of_kind(items, "foreign")} == set(LANGUAGES)
    assert all("{" in item.truth["text"] for item in of_kind(items, "code"))
    assert {item.truth["damage"] for item in of_kind(items, "damaged")} == {"member", "header", "body"}


def test_contaminated_pages_show_problems_of_the_test_split(items: list[Crawled]) -> None:
    for item in of_kind(items, "contaminated"):
        assert item.truth["held_out"] in item.truth["text"]
        assert item.truth["held_out"] in html.unescape(re.sub(r"<[^>]+>", "", document(item)))
    plain = "\n".join(item.truth["text"] for item in of_kind(items, "page"))
    assert not any(item.truth["held_out"] in plain for item in of_kind(items, "contaminated"))


def luhn(number: str) -> bool:
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


def mod_11_2(number: str) -> bool:
    """ISO 7064: the check character makes the weighted sum 1 modulo 11."""
    values = [10 if digit == "X" else int(digit) for digit in number]
    return sum(value * pow(2, 17 - place, 11) for place, value in enumerate(values)) % 11 == 1


def test_planted_data_is_there_and_valid(items: list[Crawled]) -> None:
    assert mod_11_2("11010519491231002X")  # the standard's own example
    for item in of_kind(items, "pii"):
        (planted,) = item.truth["pii"]
        assert item.truth["text"].count(planted["text"]) == 1
        assert item.truth["fate"] == "keep"
    kinds = Counter()
    for seed in range(600):
        sentence, kind, planted = pii(Random(seed), seed % 2 == 0)
        kinds[kind] += 1
        digits = re.sub(r"\D", "", planted)
        assert planted in sentence
        if kind == "bank_card":
            assert len(digits) == 16
            assert luhn(digits)
        elif kind == "cn_id":
            assert len(planted) == 18
            assert mod_11_2(planted)
        elif kind == "cn_mobile":
            assert re.fullmatch(r"(?:86)?1[3-9]\d{9}", digits)
        elif kind == "phone":
            assert "555-01" in planted or "7700 900" in planted
    assert set(kinds) == {"email", "ip", "phone", "cn_mobile", "cn_id", "bank_card"}
    assert min(kinds.values()) > 50


def test_charsets_fit_their_text_and_are_declared_as_said(items: list[Crawled]) -> None:
    used = Counter()
    for item in items:
        charset, (header, said) = item.truth["charset"], item.truth["declared"]
        assert dict(item.headers)["Content-Type"] == "text/html" + (f"; charset={header}" if header else "")
        if item.truth.get("damage") == "body":
            continue
        whole = document(item)
        found = re.search(r'charset="?([\w-]+)"', whole)
        assert (found.group(1) if found else None) == said
        used[charset, bool(header or said)] += 1
    assert {charset for charset, _ in used} == {"utf-8", "windows-1252", "gbk", "gb18030", "big5"}
    assert used["gbk", True] > 10 * (used["gbk", False] == 0)
    assert sum(count for (_, declared), count in used.items() if not declared) > 40


def test_traditional_pages_are_traditional(items: list[Crawled]) -> None:
    opencc = pytest.importorskip("opencc")
    convert = opencc.OpenCC("t2s").convert
    for item in of_kind(items, "traditional"):
        assert convert(item.truth["text"]) != item.truth["text"]
        assert item.truth["languages"] == ["zh-Hant"]
    kept = replace(RICH, languages=("en", "zh-Hans", "zh-Hant"))
    assert {item.truth["fate"] for item in of_kind(take(400, kept), "traditional")} == {"keep"}
    assert {item.truth["fate"] for item in of_kind(items, "traditional")} == {"language"}
    same = [chr(code) for code, to in TRADITIONAL.items() if convert(chr(to)) != chr(code)]
    assert set(same) <= {"昵", "着"}  # characters that serve for several


def test_languages_of_counts_both_scripts() -> None:
    assert languages_of("12=12") == ["und"]
    assert languages_of("Q: make 5 from 2, 3\nA: 2+3=5 it works!") == ["en"]
    assert languages_of("<think>小明有3个苹果</think>") == ["zh-Hans"]
    assert languages_of("I have two red apples = 我有两个红苹果")[0] == "mixed"
    assert all(languages_of(foreign(Random(0), language)) for language in LANGUAGES)


def test_bad_knobs_are_named() -> None:
    for bad in (CrawlKnobs(spam=1.2), CrawlKnobs(legacy=-0.1), CrawlKnobs(spam=0.9, near=0.9), CrawlKnobs(dump=0)):
        with pytest.raises(UsageError):
            crawl(WORLD, 0, bad)
    with pytest.raises(UsageError):
        crawl(Knobs(chinese_hands=Hands(), chinese=2.0), 0)


def test_markup_escapes() -> None:
    assert html.unescape(escape("<a> & \"b\" 'c'")) == "<a> & \"b\" 'c'"
