"""Decontamination: what the index finds is what a set of word tuples finds; planted problems are found however they look."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from dunwu.data.web.decontaminate import NgramIndex, grams
from dunwu.data.web.evaluation_files import read_evaluation
from dunwu.types import DunwuError, UsageError
from dunwu.world import knobs, web

DATA = Path(__file__).parents[3].parent / "shared" / "data"
needs_gsm8k = pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="no ../shared/data/gsm8k")
needs_math500 = pytest.mark.skipif(not (DATA / "math500").is_dir(), reason="no ../shared/data/math500")
CHINESE = "小明有十二个苹果，他每天吃两个，请问这些苹果一共可以吃几天？"


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    questions = [
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May.",
        "What is the smallest prime?",
        "Why?",
        CHINESE,
    ]
    return jsonl(tmp_path / "eval" / "test.jsonl", [{"question": q, "answer": "It is 3/4 of it."} for q in questions])


# ---- what a gram is ----


def slow_grams(text: str) -> list[str]:
    """Character by character."""
    text = re.sub("['’‘ʼ`´]", "", re.sub(r"(?<=\d),(?=\d\d\d(?!\d))", "", text))
    text = unicodedata.normalize("NFKC", text).lower()
    spaced = []
    for c in text:
        alone = (
            "\u3005" <= c <= "\u3007"
            or "\u3041" <= c <= "\u30ff"
            or "\u3400" <= c <= "\u9fff"
            or "\uf900" <= c <= "\ufaff"
        )
        alone = (alone or "\U00020000" <= c <= "\U0003ffff") and c.isalnum()
        spaced.append(f" {c} " if alone else c if c.isalnum() else " ")
    return "".join(spaced).split()


@given(
    st.text("aB'’,.1234567890_ -“”\n\t$", max_size=40)
    | st.text(st.characters(exclude_categories=["M", "Cn", "Cs"]), max_size=40)
)
@example("12,345,678 and 1,23 and 1,2345 and a,123")
@example("rock’n’roll — “yes”…")
@example("ＡＢ１２，中文abc中文 ﬁne x²")
def test_grams_are_what_they_are_said_to_be(text: str) -> None:
    assert grams(text) == slow_grams(text)


# ---- what is found ----


def test_looks_do_not_matter(problems: Path) -> None:
    index = NgramIndex.build([problems])
    for text in (
        "... natalia SOLD clips\nto 48 of her friends in april — and",
        "“Natalia sold clips to 48 (of her friends!) in April.”",
        "Ｎatalia sold  clips, to 48 of her friends in April",
    ):
        assert index.find(text) == "test.jsonl#1"
    assert index.find("Natalia sold clips to 48 of her friends; nobody else") is None
    assert index.find("question: what is THE smallest prime") == "test.jsonl#2"
    assert index.find("what is the smallest odd prime") is None
    assert index.find("网上有人问: 他每天吃两个 请问这些苹果,一共") == "test.jsonl#4"
    assert index.find("他每天吃三个，请问这些苹果") is None
    assert index.find("it is 3/4 of it, why?") is None
    assert index.find("") is None
    assert index.counts == {"indexed": 2, "matched whole": 1, "too short": 5}


def test_a_mixed_sequence_counts_words_and_characters(tmp_path: Path) -> None:
    index = NgramIndex.build([jsonl(tmp_path / "e.jsonl", [{"problem": "用 Python 3 写一个 quick sort 函数"}])])
    assert index.find("请用python 3写一个Quick-Sort函数吧") == "e.jsonl#1"
    assert index.find("请用python 3写一个bubble sort函数吧") is None


def test_minimum_and_n_are_settings(problems: Path) -> None:
    assert NgramIndex.build([problems], minimum=1).find("but why") == "test.jsonl#3"
    assert NgramIndex.build([problems], minimum=6).find("What is the smallest prime?") is None
    assert NgramIndex.build([problems], n=4).find("the answer: it is 3/4 of it") == "test.jsonl#1"
    for wrong in ({"n": 1}, {"minimum": 0}):
        with pytest.raises(UsageError):
            NgramIndex.build([problems], **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        NgramIndex.build([])


def brute_force(texts: list[str], n: int, minimum: int) -> set[tuple[str, ...]]:
    found = set()
    for text in texts:
        words = grams(text)
        size = min(n, len(words))
        if size >= min(n, minimum):
            found |= {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
    return found


@needs_gsm8k
@needs_math500
def test_2000_documents_are_judged_as_by_sets_of_words() -> None:
    files = [DATA / "gsm8k" / "test.jsonl", DATA / "math500" / "test.jsonl"]
    index = NgramIndex.build(files)
    rows = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]
    asked = [r.get("question") or r["problem"] for r in itertools.chain(*rows)]
    told = [text for r in itertools.chain(*rows) for text in (r.get("answer"), r.get("solution")) if text]
    known = brute_force(asked, 10, 5) | brute_force(told, 10, 10)
    dice, documents = random.Random(2), [page.text for page in itertools.islice(web.pages(knobs.Knobs(), 4), 1000)]
    train = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    documents += [json.loads(line)["question"] for line in train]
    for n in range(0, 2000, 5):  # plant whole problems, parts of them, and parts with a word changed
        words = dice.choice(asked).upper().split()
        part = words[dice.randrange(len(words)) :]
        if dice.random() < 0.5:
            part[dice.randrange(len(part))] = "otherwise"
        documents[n] += " " + dice.choice([" ", "  ", ", ", "\n", ") ("]).join(part)
    sizes = {len(gram) for gram in known}
    judged = []
    for text in documents:
        words = grams(text)
        judged.append(any(tuple(words[i : i + k]) in known for k in sizes for i in range(len(words) - k + 1)))
    assert [index.find(text) is not None for text in documents] == judged
    assert 200 < sum(judged) < 1000


@needs_gsm8k
@needs_math500
def test_every_problem_finds_itself_under_its_file(tmp_path: Path) -> None:
    """Two files of one name are told apart by their folder."""
    files = [DATA / "gsm8k" / "test.jsonl", DATA / "math500" / "test.jsonl"]
    index = NgramIndex.build(files)
    lines = files[1].read_text(encoding="utf-8").splitlines()
    names = [index.find(f"An exercise. {json.loads(line)['problem']} Solve it!") for line in lines[:200]]
    assert names[0] == "math500/test.jsonl#1"
    short = sum(name is None for name in names)
    assert short == sum(len(grams(json.loads(line)["problem"])) < 5 for line in lines[:200]) < 10


def test_a_hash_that_collides_is_not_a_find(problems: Path) -> None:
    """Both hashes must agree: with the first alone, every n-gram of the text would be a find."""
    index = NgramIndex.build([problems])
    text = "Natalia sold clips to 48 of her friends in April"
    wrong = NgramIndex(
        index.n, index.minimum, index.hashes, index.checks ^ np.uint64(1), index.sources, index.names, index.lengths, {}
    )
    assert index.find(text) and wrong.find(text) is None


def test_a_shared_ngram_belongs_to_the_first_file(tmp_path: Path) -> None:
    same = {"question": "one two three four five six seven eight nine ten eleven"}
    files = [jsonl(tmp_path / name / "x.jsonl", [{"question": "a b c d e f"}, same]) for name in "ba"]
    assert NgramIndex.build(files).find(same["question"]) == "b/x.jsonl#2"


# ---- files ----


def test_an_index_comes_back_from_its_file(tmp_path: Path, problems: Path) -> None:
    index = NgramIndex.build([problems])
    index.save(tmp_path / "a.npz")
    back = NgramIndex.load(tmp_path / "a.npz")
    back.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert back.counts == index.counts and back.n == index.n and back.names == index.names
    for text in ("what is the smallest prime", CHINESE, "nothing of the kind was ever asked by anyone here before"):
        assert back.find(text) == index.find(text)


def test_a_damaged_index_is_named(tmp_path: Path, problems: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(DunwuError, match=r"a\.npz"):
        NgramIndex.load(path)
    NgramIndex.build([problems]).save(path)
    data = path.read_bytes()
    for wrong in (b"", b"no index", data[: len(data) // 2], data[:700] + bytes([data[700] ^ 1]) + data[701:]):
        path.write_bytes(wrong)
        with pytest.raises(DunwuError, match=r"a\.npz"):
            NgramIndex.load(path)


def test_evaluation_files_of_every_kind(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"Question": "Who?", "answer": 3, "choices": ["me", "you"]}, {"prompt": "Where?", "solution": "Here."}]
    expected = [(1, "Who?", True), (1, "me", False), (1, "you", False), (2, "Where?", True), (2, "Here.", False)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"version": "1", "data": rows}))
    parquet.write_table(
        pyarrow.Table.from_pylist([{**row, "prompt": row.get("prompt")} for row in rows]), tmp_path / "p.parquet"
    )
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "b.json"):
        assert list(read_evaluation(tmp_path / name)) == expected, name
    assert next(read_evaluation(tmp_path / "p.parquet")) == (1, "Who?", True)
    (tmp_path / "t.txt").write_text("First\nproblem.\n\n  \nSecond.\n", encoding="utf-8")
    assert [item[:2] for item in read_evaluation(tmp_path / "t.txt")] == [(1, "First\nproblem."), (2, "Second.\n")]
    assert [item[1] for item in read_evaluation(tmp_path / "a.jsonl.gz", ["solution", "choices"])][:1] == ["me"]
    chat = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    assert list(read_evaluation(jsonl(tmp_path / "c.jsonl", chat))) == [(1, "Hi", True), (1, "Ho", False)]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"question": "x"}\n{"question', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"wrong": "x"}\n', r"item 1 has no text.*it has: wrong"),
        ("a.jsonl", b"[1]\n", "item 1 has no text"),
        ("a.jsonl", b'{"question": "\xff"}\n', "not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999)[:-9], "damaged"),
        ("a.jsonl.zst", b"nothing", "damaged"),
        ("a.json", b"{", "not JSON"),
        ("a.parquet", b"PAR1", "damaged"),
        ("a.pdf", b"", "no evaluation file"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DunwuError, match=says):
        NgramIndex.build([tmp_path / name])
    with pytest.raises(DunwuError, match="nowhere"):
        NgramIndex.build([tmp_path / "nowhere.jsonl"])
