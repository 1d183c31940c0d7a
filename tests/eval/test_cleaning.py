"""Scores of the cleaning: worked by hand on small tables, and 1 everywhere for a pipeline that knows the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dunwu.eval.cleaning import STEPS, score_cleaning, step_of
from dunwu.eval.cleaning_texts import shingle_f1
from dunwu.world.crawl import CrawlKnobs, crawl
from dunwu.world.knobs import Knobs
from dunwu.world.warc import read_truth, write_warc

Row = dict[str, Any]


def truth_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    return path


def row(identity: str, fate: str = "keep", text: str = "", **more: Any) -> Row:
    return {
        "id": identity,
        "kind": "page",
        "fate": fate,
        "languages": ["en"],
        "text": text or f"text {identity}",
        **more,
    }


def record(row: Row, language: str = "en", text: str | None = None) -> Row:
    return {"id": row["id"], "text": row["text"] if text is None else text, "language": language}


def counts(result: dict[str, Any], step: str, *names: str) -> tuple[Any, ...]:
    return tuple(result["steps"][step][name] for name in names)


def test_a_step_by_hand(tmp_path: Path) -> None:
    rows = [
        row("a"),
        row("b"),
        row("c", "language"),
        row("d", "language"),
        row("e", "url"),
        row("f", "quality:c4"),
        row("g", "language"),
    ]
    drops = [
        ("b", "language", "language"),  # wrong
        ("c", "language", "language"),  # right
        ("e", "language", "language_score"),  # missed by url, late; other here
        ("f", "url", "domain"),  # other, early for c4
        ("g", "quality", "gopher_short_doc"),  # missed by language, late
    ]
    result = score_cleaning(truth_file(tmp_path / "t", rows), [record(rows[0]), record(rows[3])], drops)
    assert counts(result, "url", "reached", "dropped", "right", "other", "wrong", "missed", "late") == (
        7,
        1,
        0,
        1,
        0,
        1,
        1,
    )
    assert counts(result, "language", "reached", "right", "other", "wrong", "missed", "late") == (6, 1, 1, 1, 2, 1)
    assert counts(result, "language", "tp", "fp", "fn", "tn") == (2, 1, 2, 1)
    assert counts(result, "language", "precision", "recall") == (2 / 3, 1 / 3)
    assert counts(result, "quality:gopher", "reached", "other") == (3, 1)
    assert counts(result, "quality:c4", "reached", "missed", "recall") == (2, 0, None)
    assert result["steps"]["language"]["reasons"] == {"language": 2, "language_score": 1}
    assert result["kinds"] == {"page": {"url": 1, "language": 3, "quality:gopher": 1, "kept": 2}}
    assert result["whole"]["good_kept_share"] == 1 / 2
    assert result["whole"]["rubbish_dropped_share"] == 4 / 5
    shown = {(example["error"], example["step"], example["id"]) for example in result["examples"]}
    assert shown == {("wrong", "language", "b"), ("missed", "language", "d")}


def test_of_alike_pages_one_should_stay_whichever(tmp_path: Path) -> None:
    rows = [
        row("a", text="one two"),
        row("b", text="one two"),  # alike by nature
        row("c", "exact_duplicate", "one two", of="a"),
        row("d", "near_duplicate", "one two!", of="a"),
        row("e", "near_duplicate", "one two!", of="c"),
        row("f", text="other"),
        row("g", "exact_duplicate", "other", of="f"),
    ]
    paths = [truth_file(tmp_path / "1", rows[:4]), truth_file(tmp_path / "2", rows[4:])]
    drops = [("a", "duplicates", "exact_duplicate"), ("b", "duplicates", "exact_duplicate")]
    drops += [("e", "duplicates", "exact_duplicate"), ("c", "duplicates", "near_duplicate")]
    result = score_cleaning(paths, [record(rows[3]), record(rows[5]), record(rows[6])], drops)
    assert counts(result, "exact_duplicate", "right", "wrong", "missed") == (3, 0, 1)
    assert counts(result, "near_duplicate", "reached", "right", "wrong", "missed") == (4, 1, 0, 1)
    assert result["whole"]["good_texts"] == result["whole"]["good_kept"] == 2
    assert result["whole"]["surplus_records"] == 1
    gone = [("f", "duplicates", "near_duplicate"), ("g", "duplicates", "near_duplicate")]
    result = score_cleaning(paths, [record(rows[3])], drops + gone)
    assert counts(result, "near_duplicate", "right", "wrong") == (2, 1)
    assert result["whole"]["good_kept_share"] == 1 / 2


def test_alike_pages_of_two_dumps_both_stay(tmp_path: Path) -> None:
    rows = [
        row("a", text="same", dump="1"),
        row("b", text="same", dump="2"),
        row("c", "exact_duplicate", "same", of="b", dump="2"),
    ]
    drops = [("c", "duplicates", "exact_duplicate")]
    result = score_cleaning(truth_file(tmp_path / "t", rows), [record(rows[0]), record(rows[1])], drops)
    assert counts(result, "exact_duplicate", "right", "wrong", "missed") == (1, 0, 0)
    assert result["whole"]["good_texts"] == result["whole"]["good_kept"] == 2
    assert result["text"]["exact"] == 2


def test_what_nobody_accounts_for_is_damage(tmp_path: Path) -> None:
    rows = [row("a"), row("b", "damaged"), row("c", "damaged"), row("d")]
    result = score_cleaning(truth_file(tmp_path / "t", rows), [record(rows[0]), record(rows[2])], [])
    assert counts(result, "damaged", "right", "wrong", "missed") == (1, 1, 1)


def test_texts_and_planted_data(tmp_path: Path) -> None:
    planted = {"kind": "email", "text": "a@b.org"}
    rows = [
        row("a", text="Write to a@b.org now.", pii=[planted]),
        row("b", text="Write to a@b.org now.", pii=[planted]),
        row("c", text="1 2 3 4 5"),
        row("d", text="call 555 today or 1+2"),
        row("e", text="same"),
    ]
    texts = ["Write to MAIL now.", "Write to a@b.org now.", "1 2 3 4 6", "call MAIL today or 1+2", "same"]
    records = [record(one, text=text) for one, text in zip(rows, texts)]
    result = score_cleaning(truth_file(tmp_path / "t", rows), records, [], ["MAIL"])
    assert result["pii"]["planted"] == 2
    assert result["pii"]["recall"] == result["pii"]["precision"] == 1 / 2
    assert result["pii"]["kinds"] == {"email": {"gone": 1, "left": 1}}
    assert result["text"]["records"] == 5
    assert result["text"]["exact"] == 3
    assert result["text"]["mean_f1"] == pytest.approx(
        (3 + shingle_f1(rows[2]["text"], texts[2]) + shingle_f1(rows[3]["text"], texts[3])) / 5
    )
    assert {(e["error"], e["step"], e["id"]) for e in result["examples"]} == {
        ("missed", "pii", "b"),
        ("wrong", "pii", "d"),
        ("differs", "extraction", "c"),
        ("differs", "extraction", "d"),
    }


def test_languages(tmp_path: Path) -> None:
    rows = [
        row("a"),
        row("b"),
        row("c", languages=["mixed", "en"]),
        row("d", "language", languages=["fr"]),
        row("e", "url"),
    ]
    records = [record(rows[0]), record(rows[1], "fr"), record(rows[2]), record(rows[4], "de")]
    result = score_cleaning(truth_file(tmp_path / "t", rows), records, [("d", "language", "language")])["language"]
    assert (result["accuracy"], result["pages"]) == (3 / 4, 4)
    assert (result["accuracy_one_label"], result["pages_one_label"]) == (2 / 3, 3)
    assert result["confusion"] == {"en": {"en": 1, "fr": 1}, "fr": {"dropped": 1}, "mixed": {"en": 1}}


def test_names_of_steps() -> None:
    reasons = {"top_2_gram": "repetition", "gopher_short_doc": "gopher", "curly_bracket": "c4", "list_ratio": "fineweb"}
    for reason, group in reasons.items():
        assert step_of("quality", reason) == step_of(group, reason) == f"quality:{group}"
    assert [step_of(step, "x") for step in STEPS] == list(STEPS)
    assert step_of("duplicates", "exact_duplicate") == "exact_duplicate"
    for step in ("nonsense", "kept"):
        with pytest.raises(ValueError, match="no step"):
            step_of(step, "x")


def test_strange_ids_are_refused(tmp_path: Path) -> None:
    path = truth_file(tmp_path / "t", [row("a")])
    with pytest.raises(ValueError, match="no truth"):
        score_cleaning(path, [record(row("z"))], [])
    with pytest.raises(ValueError, match="no truth"):
        score_cleaning(path, [], [("z", "url", "domain")])


def test_a_pipeline_that_knows_the_truth_scores_one(tmp_path: Path) -> None:
    knobs = Knobs(general=0.3, chinese=0.3)
    path = tmp_path / "t.jsonl.zst"
    share = dict.fromkeys(("spam", "code", "unsafe", "traditional", "exact", "near", "contaminated", "pii"), 0.05)
    rubbish = CrawlKnobs(**share)
    write_warc(islice(crawl(knobs, 3, rubbish), 600), tmp_path / "t.warc.gz", path)
    records, drops, seen = [], [], set()
    for truth in read_truth(path):
        if truth["fate"] == "damaged":
            continue
        if truth["fate"] != "keep" or truth["text"] in seen:
            drops.append((truth["id"], "exact_duplicate" if truth["text"] in seen else truth["fate"], "known"))
            continue
        seen.add(truth["text"])
        text = truth["text"]
        for planted in truth.get("pii", []):
            text = text.replace(planted["text"], "email@example.com")
        records.append({"id": truth["id"], "text": text, "language": truth["languages"][0]})
    result = score_cleaning(path, records, drops)
    for step, scores in result["steps"].items():
        assert (scores["wrong"], scores["missed"]) == (0, 0), step
    assert result["steps"]["near_duplicate"]["right"] > 10
    assert result["text"]["exact_share"] == result["text"]["mean_f1"] == 1
    assert result["pii"]["precision"] == result["pii"]["recall"] == 1
    assert result["language"]["accuracy"] == 1
    assert result["whole"]["good_kept_share"] == result["whole"]["rubbish_dropped_share"] == 1
    assert result["examples"] == []
    assert json.loads(json.dumps(result)) == result


@given(st.lists(st.sampled_from("ab好。 \n"), max_size=20), st.lists(st.sampled_from("ab好。 \n"), max_size=20))
def test_f1_is_symmetric_and_one_for_equals(one: list[str], other: list[str]) -> None:
    left, right = "".join(one), "".join(other)
    assert shingle_f1(left, left) == 1
    assert shingle_f1(left, right) == shingle_f1(right, left)
    assert 0 <= shingle_f1(left, right) <= 1


def test_f1_by_hand() -> None:
    assert shingle_f1("a b c d e f", "a b c d e x") == 2 * 2 / 6
    assert shingle_f1("a b", "a b") == 1
    assert shingle_f1("a b c d", "") == 0
    assert shingle_f1("有两只小猫", "有两只小狗") == 2 * 1 / 4
