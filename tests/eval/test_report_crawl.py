from dunwu.eval.report_crawl import crawl_page, write_crawl_page

REPORT = {
    "pages": 1000,
    "records": 700,
    "tokens": 12_345,
    "dropped": {"url": {"domain": 100}, "duplicates": {"near_duplicate": 150, "exact_duplicate": 50}},
    "notes": {"read": {"truncated_gzip": 2}, "pii": {"email": 7}},
    "histograms": {"language": {"en": 600, "zh-Hans": 100}, "characters": {"00000512": 300, "00001024": 400}},
    "samples": [
        {"step": "url", "reason": "domain", "place": 1, "id": "a", "url": "http://x/<b>", "text": "<script>1</script>"}
    ],
    "shown": [{"place": 2, "id": "b", "url": "http://y", "raw": "<p>raw", "extracted": "text", "kept": "text"}],
    "config": {"quality": "fineweb", "minhash": {"buckets": 14}},
}


def test_every_count_is_on_the_page():
    page = crawl_page(REPORT, "mine")
    for said in (
        "1,000",
        "700",
        "12,345",
        "near_duplicate",
        "150",
        "truncated_gzip",
        "zh-Hans",
        "512 to 1,024",
        "minhash.buckets",
    ):
        assert said in page, said


def test_what_pages_say_is_text_and_nothing_is_loaded():
    page = crawl_page(REPORT, "mine")
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;p&gt;raw" in page
    assert "default-src 'none'" in page and 'src="http' not in page


def test_the_funnel_ends_at_the_records():
    page = crawl_page(REPORT, "mine")
    assert "900  −100" in page and "700  −200" in page


def test_a_build_of_nothing(tmp_path):
    empty = REPORT | {
        "pages": 0,
        "records": 0,
        "dropped": {},
        "notes": {},
        "histograms": {},
        "samples": [],
        "shown": [],
    }
    path = write_crawl_page(empty, "none", tmp_path / "page.html")
    assert "No page was dropped." in path.read_text(encoding="utf-8")
