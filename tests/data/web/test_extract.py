"""HTML to text: the benchmark's F1 on real pages, the form of the text, pages made to choke parsers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunwu.data.web.extract import MOST_DEPTH, ExtractionError, check_markup, extract, tidy
from dunwu.data.web.extract_score import page_score, score, shingles

PAGES = Path(__file__).parents[3].parent / "shared" / "data" / "pages"
BACKENDS = ("quality", "fast")
ARTICLE = """<html><head><title>T</title><style>p {}</style></head><body>
<nav><ul><li><a href=/>Home</a></li><li><a href=/a>About us</a></li></ul></nav>
<article><h1>A title of an article</h1>
<p>This is the first paragraph of the article, which has <b>enough</b> words to count   as text, and\na few more.</p>
<p>A second paragraph speaks of cafe\u0301s in the town, and has a list of what one should know about them:</p>
<ol><li>the first thing, which is long enough</li><li>the second thing, which is longer</li></ol>
<pre><code>def f(x):\n    return x + 1\n</code></pre>
<p>The last paragraph of the article says good bye to the readers, and thanks them for their patience.</p></article>
<script>alert("no text")</script><footer>Copyright 2024 Privacy policy</footer></body></html>"""


@pytest.mark.skipif(not PAGES.is_dir(), reason="no ../shared/data/pages")
def test_f1_on_the_benchmarks_pages() -> None:
    """48 pages: at least 0.95 by trafilatura, 0.90 by resiliparse."""
    pytest.importorskip("trafilatura")
    truth = {name: page["articleBody"] for name, page in json.loads((PAGES / "ground-truth.json").read_text()).items()}
    pages = {name: gzip.decompress((PAGES / "html" / f"{name}.html.gz").read_bytes()) for name in truth}
    quality, fast = (score((truth[name], extract(pages[name], by)) for name in truth) for by in BACKENDS)
    assert quality.pages == fast.pages == 48
    assert quality.f1 >= 0.95 and fast.f1 >= 0.90


def test_the_measure_by_hand() -> None:
    assert shingles("a b, c d. e") == {("a", "b", "c", "d"): 1, ("b", "c", "d", "e"): 1}
    assert shingles("a b") == {("a", "b"): 1} and not shingles(" ")
    # 3 grams wanted; 2 of them found, and 1 that is wrong
    assert page_score("a b c d e f", "a b c d e x") == (2 / 3, 2 / 3)
    assert page_score("a b c d", "") == (None, 0.0)
    # precision: mean of 1 and 0.5; recall: mean of 1, 0.5, 0
    found = score([("a b c d", "a b c d"), ("a b c d e", "a b c d x"), ("a b c d", "")])
    assert (found.precision, found.recall) == (0.75, 0.5) and found.f1 == pytest.approx(0.6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_line_for_each_paragraph_in_nfc(backend: str) -> None:
    if backend == "quality":
        pytest.importorskip("trafilatura")
    text = extract(ARTICLE, backend)  # type: ignore[arg-type]
    lines = text.split("\n")
    assert lines[0] == "A title of an article" and lines[-1].endswith("their patience.")
    assert "enough words to count as text, and a few more." in lines[1] and "cafés" in lines[2]
    assert lines[3][2:].lstrip(" .").startswith("the first thing") and lines[3][0] in "-1"
    assert "    return x + 1" in lines
    assert "alert" not in text and "Copyright" not in text and "About us" not in text and "" not in lines
    assert extract(ARTICLE.encode("utf-16"), backend) == text  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("html", ["", " ", "<", "<p", "\0", "<!-- ", "<![CDATA[", "plain words", "<html></html>"])
def test_pages_without_text(backend: str, html: str) -> None:
    if backend == "quality":
        pytest.importorskip("trafilatura")
    assert extract(html, backend) in ("", "<", "plain words")  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_tidy_is_done_once(text: str) -> None:
    once = tidy(text)
    assert tidy(once) == once
    assert "\r" not in once and "\0" not in once and not once.endswith("\n")


BOMBS = {
    "dom_too_deep": [
        "<div>" * 100_000,
        "<b>" * 600 + "text",
        "<table><tr><td>" * 2000,
        "<ul><li>" * 5000,
        "<p><font size=1>" * 1000,
    ],
    "too_many_tags": ["<table></table>" * 1_000_000, "<br>" * 200_000, "<" * 200_000],
    "too_many_attributes": [
        "<p " + " ".join(f"a{n}=1" for n in range(1_000_000)) + ">",
        "<p title='>' " + " ".join(f'a{n}="x y"' for n in range(100_000)),
    ],
}


@pytest.mark.parametrize(("reason", "html"), [(reason, html) for reason, pages in BOMBS.items() for html in pages])
def test_bombs_are_refused_before_they_are_parsed(reason: str, html: str) -> None:
    for backend in BACKENDS:
        with pytest.raises(ExtractionError) as caught:
            extract("<html><body>" + html, backend)  # type: ignore[arg-type]
        assert caught.value.reason == reason


def test_honest_pages_pass() -> None:
    """Long ones, with thousands of unclosed paragraphs, void elements, inline data and scripts full of tags."""
    row = "<tr><td>a<td>b<img src=x><br></tr>"
    check_markup(("<p>one<p>two<li>three" * 8000).encode())
    check_markup(f"<table>{row * 5000}</table>".encode())
    check_markup(("<div>" * (MOST_DEPTH - 5) + "</div>" * 500).encode())
    check_markup(("<script>" + "document.write('<div><div><div>');" * 1000 + "</script>").encode())
    check_markup(('<img src="data:' + "A b=c " * 50_000 + '">').encode())
    check_markup(("<pre>" + "many words of a log, key=value\n" * 50_000).encode())
