import json
from itertools import permutations

import pytest

from dunwu.data.web.ledger import EXCERPT, SAMPLES, SHOWN, Ledger, merge
from dunwu.types import DunwuError


def task(tmp_path, name, pages):
    """A ledger over pages of (identity, fate); written and read back."""
    ledger = Ledger()
    ledger.begin(tmp_path / "beats" / name)
    for identity, fate in pages:
        ledger.see()
        if fate == "keep":
            ledger.show(identity, {"raw": "<p>" + identity, "kept": identity})
            ledger.keep("en", len(identity))
        else:
            ledger.drop("step", fate, identity, f"https://example.org/{identity}", "text of " + identity)
    ledger.note("read", "truncated_gzip")
    ledger.finish(tmp_path / f"{name}.json", tokens=3)
    return json.loads((tmp_path / f"{name}.json").read_text())


def pages(start, count):
    return [(f"page {n}", ("keep", "short", "long")[n % 3]) for n in range(start, start + count)]


def test_counts_and_samples_do_not_depend_on_how_pages_were_shared_out(tmp_path):
    whole = merge([task(tmp_path, "all", pages(0, 300))])
    parts = [task(tmp_path, str(start), pages(start, 100)) for start in (0, 100, 200)]
    for order in permutations(parts):
        together = merge(order)
        together["notes"]["read"]["truncated_gzip"] -= 2
        assert together == whole
    assert whole["seen"] == 300 and whole["kept"] == 100
    assert whole["dropped"] == {"step": {"long": 100, "short": 100}}
    assert len(whole["samples"]) == 2 * SAMPLES and len(whole["shown"]) == SHOWN


def test_a_lost_page_is_an_error_not_a_difference(tmp_path):
    ledger = Ledger()
    ledger.begin(tmp_path / "beat")
    ledger.see(3)
    ledger.keep("en", 10)
    ledger.drop("url", "domain", "a", "", "")
    with pytest.raises(DunwuError, match="1 pages of 00000 are not accounted for"):
        ledger.finish(tmp_path / "00000.json")
    assert not (tmp_path / "00000.json").exists()


def test_samples_are_excerpts_and_an_id_counts_once(tmp_path):
    ledger = Ledger()
    ledger.begin(tmp_path / "beat")
    for _ in range(5):
        ledger.see()
        ledger.drop("c4", "lorem_ipsum", "same", "", "x" * 10_000)
    record = ledger.as_json()
    assert len(record["samples"]) == 1 and len(record["samples"][0]["text"]) == EXCERPT
    assert record["dropped"] == {"c4": {"lorem_ipsum": 5}}


def test_would_show_agrees_with_show(tmp_path):
    ledger = Ledger()
    ledger.begin(tmp_path / "beat")
    for n in range(500):
        before = [page["id"] for page in ledger.as_json()["shown"]] if n % 50 == 0 else None
        worth = ledger.would_show(f"page {n}")
        ledger.show(f"page {n}", {})
        if before is not None:
            after = [page["id"] for page in ledger.as_json()["shown"]]
            assert worth == (f"page {n}" in after)


def test_begin_forgets(tmp_path):
    ledger = Ledger()
    ledger.begin(tmp_path / "one")
    ledger.see(2)
    ledger.begin(tmp_path / "two")
    assert ledger.as_json()["seen"] == 0
