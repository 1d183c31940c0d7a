import json

import numpy as np
import pytest

from dunwu.data.shards import TokenFolder
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.data.web.config import BuildConfig
from dunwu.data.web.engine import build
from dunwu.data.web.records import read_records
from dunwu.data.web.tokens import counter, id_type
from tests.data.web.test_engine import article, write_pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A build with shards by a tokenizer of its own."""
    home = tmp_path_factory.mktemp("tokens")
    train_from_texts([article(n) for n in range(30)], 400).save(home / "tokenizer")
    source = write_pages(home / "in")
    for name, workers in (("out", 1), ("again", 2)):
        config = BuildConfig(isolate=False, url_filter=False, tokenizer=str(home / "tokenizer"), shards=True)
        build([source], home / name, config, workers=workers)
    return home


def documents(shards, end):
    """The shards' pages."""
    tokens = TokenFolder(shards)
    ids = tokens.read(0, tokens.tokens)
    tokens.close()
    return [part.tolist() for part in np.split(ids, np.flatnonzero(ids == end) + 1)][:-1]


def test_shards_hold_every_record_once_in_another_order(folder):
    encoder = load_tokenizer(folder / "tokenizer")
    wanted = [[*encoder.encode(record["text"]), encoder.end_id] for record in read_records(folder / "out")]
    found = documents(folder / "out" / "shards", encoder.end_id)
    assert sorted(found) == sorted(wanted) and found != wanted


def test_token_counts_are_the_tokenizers(folder):
    encoder = load_tokenizer(folder / "tokenizer")
    rows = list(read_records(folder / "out"))
    assert [row["token_count"] for row in rows] == [len(encoder.encode(row["text"])) for row in rows]
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["tokens"] == sum(row["token_count"] for row in rows)
    assert report["shards"]["documents"] == len(rows)
    assert report["shards"]["tokens"] == report["tokens"] + len(rows)


def test_workers_do_not_change_the_shards(folder):
    one, two = (sorted((folder / name / "shards").iterdir()) for name in ("out", "again"))
    assert [file.name for file in one] == [file.name for file in two]
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_special_text_in_a_page_is_text(folder):
    encoder = load_tokenizer(folder / "tokenizer")
    assert encoder.end_id not in counter(str(folder / "tokenizer"))("a page that says <|endoftext|> aloud")


def test_ids_take_the_narrowest_type():
    assert id_type(65_536) == np.dtype("<u2") and id_type(65_537) == np.dtype("<u4")
