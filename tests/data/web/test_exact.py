"""Exact duplicates: the first of equal texts stays, over ranks and whatever the memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunwu.data.web.exact import ExactWriter, exact_duplicates, exact_hash, removed
from dunwu.types import DunwuError

Documents = list[tuple[int, int, str, str]]
"""Rank, number, dump, text."""


def run(
    tmp_path: Path, documents: Documents, ranks: int, across: bool = False, memory: int = 1 << 20
) -> set[tuple[int, int]]:
    for rank in range(ranks):
        writer = ExactWriter(tmp_path / "keys", rank, across, memory)
        for _, number, dump, text in (row for row in documents if row[0] == rank):
            writer.add(number, dump, text)
        writer.close()
    found = exact_duplicates(tmp_path / "keys", tmp_path / "out", ranks=ranks, memory=memory)
    gone = {(rank, number) for rank in range(ranks) for number in removed(tmp_path / "out", rank)}
    assert len(gone) == sum(dump.removed for dump in found.values())
    return gone


def expected(documents: Documents, across: bool) -> set[tuple[int, int]]:
    seen: set[tuple[str, str]] = set()
    gone = set()
    for rank, number, dump, text in sorted(documents):
        name = ("" if across else dump, " ".join(text.split()))
        if name in seen:
            gone.add((rank, number))
        seen.add(name)
    return gone


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("memory", [4000, 1 << 20])
def test_duplicates_are_those_of_a_set(tmp_path: Path, across: bool, memory: int) -> None:
    dice = random.Random(1)
    documents = []
    for rank in (0, 1, 3):  # rank 2 has none
        for number in range(120):
            text = f"page {dice.randrange(150)}" + dice.choice(["", " ", "\n"])
            documents.append(
                (rank, number, dice.choice(["2023-50", "2024-10"]), text.replace(" ", dice.choice([" ", "  ", "\t"])))
            )
    gone = run(tmp_path, documents, 4, across, memory)
    assert gone == expected(documents, across) and 50 < len(gone) < 300


def test_the_first_of_all_equal_documents_stays(tmp_path: Path) -> None:
    documents = [(rank, number, "d", "") for rank in range(2) for number in range(3, 30)]
    assert run(tmp_path, documents, 2) == {(rank, number) for rank, number, _, _ in documents} - {(0, 3)}


def test_case_and_punctuation_make_another_text(tmp_path: Path) -> None:
    texts = ["To be.", "to be.", "To be", "Tobe.", "To  be.", "To be．", "\ud800"]
    assert run(tmp_path, [(0, n, "d", text) for n, text in enumerate(texts)], 1) == {(0, 4)}


@given(st.text(max_size=20), st.text(max_size=20))
def test_hashes_are_equal_for_equal_words_only(one: str, other: str) -> None:
    assert (exact_hash(one) == exact_hash(other)) == (one.split() == other.split())
    assert exact_hash(f" {one}\n") == exact_hash(one) and len(exact_hash(one)) == 16


def test_a_damaged_file_is_named_and_a_missing_rank_too(tmp_path: Path) -> None:
    run(tmp_path, [(rank, n, "d", f"text {n}") for rank in range(2) for n in range(200)], 2)
    victim = tmp_path / "keys" / "d" / "bucket_009" / "00001.exact"
    data = victim.read_bytes()
    victim.write_bytes(data[:25] + bytes([data[25] ^ 1]) + data[26:])
    with pytest.raises(DunwuError, match=r"bucket_009.00001\.exact is damaged"):
        exact_duplicates(tmp_path / "keys", tmp_path / "out")
    with pytest.raises(DunwuError, match=r"ranks \[2\] of 3"):
        exact_duplicates(tmp_path / "keys", tmp_path / "out", ranks=3)
    ExactWriter(tmp_path / "keys", 1, across=True).close()
    with pytest.raises(DunwuError, match="other settings"):
        exact_duplicates(tmp_path / "keys", tmp_path / "out")
