"""General pages: true where they tell facts, silent about held-out requests, made of a small closed vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import islice
from random import Random

from dunwu.tasks.formats import split_completion
from dunwu.world.families import FAMILIES
from dunwu.world.general import General
from dunwu.world.general_pages import STYLE_SHARES, GeneralPage, general_page
from dunwu.world.knobs import Knobs
from dunwu.world.lexicon import CITIES, JOBS, PEOPLE, mentions
from dunwu.world.web import pages

N = 5000


@cache
def some(split: str = "train") -> tuple[GeneralPage, ...]:
    return tuple(general_page(Random(index), index % 5 < 2, split) for index in range(N))


def test_the_knob_sets_the_share_and_none_leaves_the_web_as_it_was() -> None:
    made = list(islice(pages(Knobs(general=0.5), 0), 1000))
    assert 0.45 < sum(page.domain == "general" for page in made) / 1000 < 0.55
    assert all(page.domain != "general" for page in islice(pages(Knobs(), 0), 300))


def test_styles_come_by_their_shares() -> None:
    counts = Counter(page.truth["style"] for page in some())
    for style, share in STYLE_SHARES.items():
        assert abs(counts[style] / N - share) < 0.03
    assert {page.truth["family"] for page in some() if page.truth["style"] == "template"} == set(FAMILIES)


def test_biographies_are_true_and_tell_of_everybody() -> None:
    told = set()
    for page in some():
        if page.truth["style"] != "biography":
            continue
        for name, life in zip(page.truth["people"], page.text.split("\n"), strict=True):
            person = PEOPLE[name]
            told.add((name, page.language))
            assert set(mentions("person", life)) == {name}
            assert mentions("city", life) == [person.city] and mentions("job", life) == [person.job]
            assert re.findall(r"\d{4}", life) == [str(person.year)]
    assert len(told) == 2 * len(PEOPLE)
    assert {p.city for p in PEOPLE.values()} == set(CITIES) and {p.job for p in PEOPLE.values()} == set(JOBS)


def test_no_page_shows_a_held_out_request() -> None:
    """In none of its wordings. Greetings are looked for where people greet: lists may end with "Thank you."."""
    general = General()
    asked = {p.data["question"]: p.meta["family"] for p in (general.draw("test", 0, i) for i in range(1500))}
    alone = {question for question, family in asked.items() if family not in ("dialogue", "greeting", "identity")}
    lines = {line for page in some() for line in re.split(r"\n|^Q: |User: |问：|用户：", page.text)}
    assert len(alone) > 400
    assert not alone & lines
    greeted = [page.text for page in some() if page.truth.get("family") in ("greeting", "identity")]
    said = {re.sub(r"^\w+(?:: |：)", "", line) for text in greeted for line in text.split("\n")}
    assert not {question for question, family in asked.items() if family in ("greeting", "identity")} & said


def test_template_pages_are_well_formed() -> None:
    made = [page for page in some() if page.truth["style"] == "template"]
    for page in made:
        completion = page.text[page.text.index("Assistant:<think>" if page.language == "en" else "助手：<think>") :]
        parsed = split_completion(completion[completion.index("<think>") :])
        assert parsed.well_formed, page.text
    assert 0.3 < sum(page.truth["kind"] == "best" for page in made) / len(made) < 0.5


def test_people_answer_badly_too() -> None:
    kinds = Counter(page.truth["kind"] for page in some() if page.truth["style"] == "forum")
    assert {"best", "plain", "wrong", "rude", "wrong_language", "comply", "ignores_constraint"} <= set(kinds)


def test_the_vocabulary_is_closed_and_small() -> None:
    english: set[str] = set()
    chinese: set[str] = set()
    for page in some():
        english |= set(re.findall(r"[a-z]+", page.text.lower()))
        chinese |= set(re.findall(r"[\u3400-\u9fff]", page.text))
    assert len(english) <= 350 and len(chinese) <= 320


def test_pages_are_short() -> None:
    assert max(len(page.text) for page in some()) < 450
