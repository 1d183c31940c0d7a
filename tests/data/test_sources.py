"""Sources as a user names them: kinds, weights, parts, and where a shard folder is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from dunwu.data.shards import ShardWriter, TokenFolder
from dunwu.data.sources import parse_sources, read_records, read_source, token_cut
from dunwu.types import DunwuError, UsageError

DOCUMENTS = ["one", "two\nlines", "三", "\x1c four", "five"]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in documents).encode()


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """A folder as `dunwu data build` makes it, records in both formats and shards."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "crawl"
    (folder / "records").mkdir(parents=True)
    frames = [
        zstandard.compress(part)
        for part in (lines(DOCUMENTS[:2])[:-9], lines(DOCUMENTS[:2])[-9:], lines(DOCUMENTS[2:3]))
    ]
    (folder / "records" / "00.jsonl.zst").write_bytes(b"".join(frames))  # a frame may end inside a line
    pq.write_table(pa.table({"id": [1, 2], "text": DOCUMENTS[3:]}), folder / "records" / "01.parquet")
    writer = ShardWriter(folder / "shards", 300, end_id=0)
    writer.add([[1] * 50 for _ in range(20)])
    writer.close()
    return folder


def test_spellings(tmp_path: Path, crawl: Path) -> None:
    odd = tmp_path / "a=b:3"
    odd.write_text("x")
    found = parse_sources([str(odd), "x/book.txt", "y/book.txt", "z/news.jsonl.zst"])
    assert [(s.name, s.weight, s.kind) for s in found] == [
        ("a=b:3", None, "text"),  # what exists is a path
        ("book", None, "text"),
        ("book-2", None, "text"),
        ("news", None, "records"),
    ]
    found = parse_sources([f"web={crawl}:0.25", "y/book.txt:1e3"])
    assert [(s.name, s.weight, s.kind) for s in found] == [("web", 0.25, "records"), ("book", 1000.0, "text")]
    with pytest.raises(UsageError, match="'book' has no weight"):
        parse_sources([f"web={crawl}:0.25", "y/book.txt"])


def test_a_folder_is_shards_where_their_tokenizer_is_known(crawl: Path) -> None:
    (source,) = parse_sources([f"web={crawl}:2"])
    assert (source.kind, source.weight) == ("records", 2.0)
    (source,) = parse_sources([str(crawl)], tokenizer_known=True)
    assert (source.kind, source.shards, source.name) == ("tokens", crawl / "shards", "crawl")
    (crawl / "tokenizer").mkdir()
    (crawl / "tokenizer" / "tokenizer.json").write_text("{}")
    (source,) = parse_sources([str(crawl)])
    assert (source.kind, source.tokenizer) == ("tokens", str(crawl / "tokenizer"))
    assert parse_sources([str(crawl / "shards")], tokenizer_known=True)[0].name == "crawl"
    with pytest.raises(UsageError, match="which tokenizer"):
        parse_sources([str(crawl / "shards")])
    index = json.loads((crawl / "shards" / "index.json").read_text())
    for named in ("gpt2", str(crawl / "tokenizer")):
        (crawl / "shards" / "index.json").write_text(json.dumps(index | {"tokenizer": named}))
        assert parse_sources([str(crawl / "shards")])[0].tokenizer == named


def test_records_are_read_in_order_and_held_out_at_their_end(crawl: Path) -> None:
    (source,) = parse_sources([str(crawl)])
    assert list(read_source(source, "train", 0.4)) == [(text, True) for text in DOCUMENTS[:3]]
    assert list(read_source(source, "held-out", 0.4)) == [(text, True) for text in DOCUMENTS[3:]]


def test_files_that_cannot_be_read(tmp_path: Path, crawl: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    whole = zstandard.compress(lines(DOCUMENTS * 500))
    bad = {
        "cut.jsonl.zst": (whole[: len(whole) // 2], "ends inside a zstd frame"),
        "none.jsonl.zst": (b"plain text", "is damaged"),
        "no.parquet": (b"plain text", "no readable Parquet"),
        "field.jsonl.zst": (zstandard.compress(b'{"txt": "a"}\n'), "field.jsonl.zst:1 has no string field"),
    }
    for name, (content, says) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DunwuError, match=says):
            list(read_records(tmp_path / name))
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "body.parquet")
    with pytest.raises(DunwuError, match="no column 'text'"):
        list(read_records(tmp_path / "body.parquet"))
    with pytest.raises(DunwuError, match="no file"):
        list(read_records(tmp_path / "missing.jsonl.zst"))
    one = tmp_path / "one.jsonl.zst"
    one.write_bytes(zstandard.compress(lines(["a"])))
    with pytest.raises(DunwuError, match="1 documents, too few"):
        list(read_source(parse_sources([str(one)])[0], "train", 0.1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither token shards nor records"):
        parse_sources([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="two sources are called 'x'"):
        parse_sources([f"x={one}", f"x={crawl}"])


@pytest.mark.parametrize("held_out", [0.01, 0.3, 0.5, 0.94])
def test_shards_are_cut_after_a_document(crawl: Path, held_out: float) -> None:
    folder = crawl / "shards"
    tokens = TokenFolder(folder)
    cut = token_cut(folder, held_out, end_id=0)
    wanted = int(tokens.tokens * (1 - held_out))
    assert tokens.read(cut - 1, 1)[0] == 0 and wanted - 51 < cut <= wanted
    with pytest.raises(DunwuError, match="no document ends"):
        token_cut(folder, 0.5, end_id=7)
    assert sum(TokenFolder(folder, cut).lengths) == cut == len(TokenFolder(folder, cut).read(0, 10**6))
