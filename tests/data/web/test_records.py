import json

import pytest
import zstandard

from dunwu.data.web.records import FIELDS, RecordWriter, read_records, record_files
from dunwu.types import DunwuError

RECORD = {
    "text": "第一行\nsecond line",
    "id": "<urn:uuid:1>",
    "dump": "CC-MAIN-2026-01",
    "url": "https://example.org/一",
    "date": "2026-01-02T03:04:05Z",
    "file_path": "a.warc.gz",
    "language": "zh-Hans",
    "language_score": 0.75,
    "token_count": 7,
}


@pytest.mark.parametrize("format, name", [("jsonl", "0.jsonl.zst"), ("parquet", "0.parquet")])
def test_a_record_comes_back_with_its_fields_in_finewebs_order(tmp_path, format, name):
    with RecordWriter(tmp_path / name, format) as writer:
        for number in range(2500):
            writer.write(RECORD | {"token_count": number})
    rows = list(read_records(tmp_path / name))
    assert [tuple(row) for row in rows[:2]] == [FIELDS, FIELDS]
    assert rows[3] == RECORD | {"token_count": 3}
    assert [row["token_count"] for row in rows] == list(range(2500))


def test_lines_are_plain_jsonl_to_other_programs(tmp_path):
    with RecordWriter(tmp_path / "0.jsonl.zst") as writer:
        writer.write(RECORD)
    with open(tmp_path / "0.jsonl.zst", "rb") as file:
        line = zstandard.ZstdDecompressor().stream_reader(file).read()
    assert json.loads(line) == RECORD


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError), RecordWriter(tmp_path / "0.jsonl.zst") as writer:
        writer.write(RECORD)
        assert not (tmp_path / "0.jsonl.zst").exists()
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("00001", "00000"):
        with RecordWriter(tmp_path / "records" / f"{name}.jsonl.zst") as writer:
            writer.write(RECORD | {"id": name})
    assert [row["id"] for row in read_records(tmp_path)] == ["00000", "00001"]
    assert [file.name for file in record_files(tmp_path)] == ["00000.jsonl.zst", "00001.jsonl.zst"]


@pytest.mark.parametrize("format, name", [("jsonl", "0.jsonl.zst"), ("parquet", "0.parquet")])
def test_damage_is_named(tmp_path, format, name):
    with RecordWriter(tmp_path / name, format) as writer:
        for number in range(3000):
            writer.write(RECORD | {"text": str(number) * 50})
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DunwuError, match=f"{name} is damaged"):
        list(read_records(tmp_path / name))


def test_lines_cut_at_any_place_are_damaged(tmp_path):
    with RecordWriter(tmp_path / "0.jsonl.zst") as writer:
        for number in range(20_000):
            writer.write(RECORD | {"id": str(number)})
    raw = (tmp_path / "0.jsonl.zst").read_bytes()
    for size in range(0, len(raw), max(1, len(raw) // 40)):
        (tmp_path / "0.jsonl.zst").write_bytes(raw[:size])
        with pytest.raises(DunwuError, match="damaged"):
            list(read_records(tmp_path / "0.jsonl.zst"))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DunwuError, match="no file"):
        list(read_records(tmp_path / "nothing.jsonl.zst"))
    with pytest.raises(DunwuError, match="no records in"):
        list(read_records(tmp_path))


def test_a_text_with_lone_surrogates_is_written(tmp_path):
    with RecordWriter(tmp_path / "0.jsonl.zst") as writer:
        writer.write(RECORD | {"text": "a\ud800b"})
    assert next(read_records(tmp_path / "0.jsonl.zst"))["text"] == "a?b"
