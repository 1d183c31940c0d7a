"""The notes: facts repeated as told, keys of one split, the same tokens in every place."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from dunwu.data.tokenizer import train_from_texts
from dunwu.world.needles import PAIRS, WRITERS, facts, hay, keys, notes

SPLITS = ("train", "valid", "test")


def told(text: str) -> dict[str, set[str]]:
    """Key → the codes that a note gives it."""
    found: dict[str, set[str]] = {}
    for line in text.split("\n"):
        key, sign, code = line.partition("=")
        if sign:
            found.setdefault(key, set()).add(code)
    return found


@pytest.mark.parametrize("chinese", [False, True])
def test_no_key_is_in_two_splits(chinese: bool) -> None:
    parts = [{key for there in keys(split, chinese).values() for key in there} for split in SPLITS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 16 * 16
    assert all(len(part) > 15 for part in parts)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_key_has_one_code_in_a_note_and_keys_are_of_the_split(kind: str) -> None:
    for split in SPLITS:
        mine = {key for chinese in (False, True) for there in keys(split, chinese).values() for key in there}
        for text in islice(notes(3, 40, split=split, kind=kind), 200):
            found = told(text)
            assert kind.endswith("pairs") or set(found) <= mine
            # A long note forgets old facts, and may tell one of their keys anew.
            assert (
                kind in ("long", "longer") or kind.endswith("pairs") or all(len(codes) == 1 for codes in found.values())
            )


@pytest.mark.parametrize("kind", ["english-pairs", "pairs"])
def test_a_lesson_has_two_or_three_keys_in_every_stretch_of_pairs(kind: str) -> None:
    languages = set()
    for text in islice(notes(3, 5, chinese=0.5, kind=kind), 30):
        chinese = text.startswith("·")
        languages.add(chinese)
        said = [pair.split("=") for pair in text[1:].split(text[0])]
        assert len(said) == 5 * PAIRS
        for start in range(0, len(said), PAIRS):
            stretch = said[start : start + PAIRS]
            assert 2 <= len({key for key, _ in stretch}) <= 3
            assert all(dict(map(tuple, stretch))[key] == code for key, code in stretch)
    assert languages == ({False} if kind == "english-pairs" else {False, True})


def test_notes_follow_from_seed_and_index() -> None:
    first, second = (list(islice(notes(5, 20), 20)) for _ in range(2))
    assert first == second != list(islice(notes(6, 20), 20))


def test_long_notes_have_so_many_lines_and_facts_come_again() -> None:
    for text in islice(notes(1, 60, kind="long"), 20):
        lines = text.split("\n")
        assert len(lines) == 60
        said = [line for line in lines if "=" in line]
        assert len(set(said)) < len(said)


def test_in_far_notes_facts_come_again_from_afar() -> None:
    """The gap between a fact and its last mention, over all repeated ones."""
    gaps = []
    for text in islice(notes(1, 80, kind="far"), 20):
        last: dict[str, int] = {}
        for place, line in enumerate(text.split("\n")[:80]):
            if line in last and "=" in line:
                gaps.append(place - last[line])
            last[line] = place
    assert sorted(gaps)[len(gaps) // 2] >= 10 and max(gaps) > 50


def test_no_two_keys_of_a_text_end_and_no_two_codes_begin_alike() -> None:
    for seed in range(50):
        drawn = facts(Random(seed), 8, False, "test")
        assert len({fact.key.split(" ")[1] for fact in drawn}) == 8
        assert len({fact.code.split(" ")[0] for fact in drawn}) == 8


def test_hay_has_no_fact_in_it() -> None:
    dice = Random(0)
    assert not any("=" in hay(dice, chinese, "test") for chinese in (False, True) for _ in range(200))


def test_keys_and_codes_have_the_same_tokens_wherever_they_stand() -> None:
    """Whoever looks for a key finds it only if its tokens do not depend on the code, and are the same in every split."""
    tokenizer = train_from_texts(islice(notes(0, 20), 5000), 1024)
    for split in SPLITS:
        for chinese in (False, True):
            for fact in facts(Random(split), 20, chinese, split):
                whole, key = tokenizer.encode(fact.text), tokenizer.encode(fact.key)
                assert whole[: len(key)] == key
                assert len(key) == 2 and len(whole) == 5
