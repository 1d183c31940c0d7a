"""The generated web: deterministic, true where it says so, and never showing a held-out problem."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from dunwu.tasks.countdown import Countdown
from dunwu.tasks.expression import evaluate
from dunwu.tasks.splits import split_of
from dunwu.types import DunwuError, UsageError
from dunwu.world.chains import chains, random_chain
from dunwu.world.knobs import Hands, Knobs, without_search
from dunwu.world.puzzles import draw_puzzle
from dunwu.world.web import Page, pages

EQUATION = re.compile(r"(?<![\d)*/+-])(\d+[-+*/]\d+)=(\d+)")


def take(knobs: Knobs, n: int, seed: int = 0, **options: object) -> list[Page]:
    return list(islice(pages(knobs, seed, **options), n))  # type: ignore[arg-type]


def test_pages_are_a_function_of_seed_and_index() -> None:
    first = take(Knobs(), 300)
    assert first == take(Knobs(), 300)
    assert first[200:] == take(Knobs(), 100, start=200)
    assert first != take(Knobs(), 300, seed=1)


def test_no_page_shows_a_held_out_problem() -> None:
    for split in ("train", "valid"):
        shown = [page.truth for page in take(Knobs(), 3000, split=split) if "numbers" in page.truth]
        assert len(shown) > 2000
        assert {split_of(t["numbers"], t["target"]) for t in shown} == {split}


def test_arithmetic_is_right_unless_a_knob_says_otherwise() -> None:
    """Every single step on every page; guesses lie by claiming whole expressions, which are not single steps."""

    def wrong_share(knobs: Knobs) -> float:
        stated = [pair for page in take(knobs, 2500) for pair in EQUATION.findall(page.text)]
        assert len(stated) > 5000
        return sum(evaluate(left).value != int(right) for left, right in stated) / len(stated)

    assert wrong_share(Knobs()) == 0
    assert 0.1 < wrong_share(Knobs(arithmetic_error=0.5)) < 0.6


def test_truth_is_true() -> None:
    for page in take(Knobs(), 3000):
        if "answer" in page.truth:
            found = evaluate(page.truth["answer"])
            used = sorted(int(n) for n in re.findall(r"\d+", page.truth["answer"]))
            assert used == sorted(page.truth["numbers"])
            assert page.truth["solved"] == (found.value == page.truth["target"])
            assert page.truth["answer"] in page.text


def test_template_pages_continue_the_tasks_prompt_and_format() -> None:
    task, seen = Countdown(), 0
    for page in take(replace(Knobs(), chinese=0.0), 2000):
        if page.domain == "countdown-template":
            problem = task.make_problem(page.truth["numbers"], page.truth["target"])
            assert page.text.startswith(problem.prompt)
            verdict = task.score(problem, page.text.removeprefix(problem.prompt))
            assert verdict.rewards["format"] == 1.0
            assert verdict.rewards["accuracy"] == float(page.truth["solved"])
            seen += 1
    assert seen > 300


@pytest.mark.parametrize(
    ("knobs", "measure", "expected"),
    [
        (Knobs(countdown=0.3), lambda p: "numbers" in p.truth, 0.3),
        (Knobs(chinese=0.4), lambda p: p.language == "zh", 0.4),
        (Knobs(countdown=1.0, template=0.25), lambda p: p.domain == "countdown-template", 0.25),
        (Knobs(countdown=1.0, four_operands=0.2), lambda p: len(p.truth["numbers"]) == 4, 0.2),
    ],
)
def test_shares_are_the_knobs(knobs: Knobs, measure: object, expected: float) -> None:
    n = 4000
    share = sum(bool(measure(page)) for page in take(knobs, n)) / n  # type: ignore[operator]
    assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_hands_and_wrong_guesses_are_the_knobs() -> None:
    knobs = Knobs(countdown=1.0, template=0.0, forum_hands=Hands(guess=3, worked=1, search=0, backward=0))
    shown = [page.truth for page in take(knobs, 4000)]
    share = Counter(t["hand"] for t in shown)["guess"] / 4000
    assert abs(share - 0.75) < 0.03
    wrong = [not t["solved"] for t in shown if t["hand"] == "guess"]
    assert abs(sum(wrong) / len(wrong) - knobs.guess_wrong) < 0.03
    assert all(t["solved"] for t in shown if t["hand"] == "worked")


def test_false_checks_are_the_knob() -> None:
    """Liars claim that their first try works, and it does not; honest authors never claim what fails."""
    hands = Hands(guess=0, worked=0, search=1, backward=0)
    liars = Knobs(countdown=1.0, forum_hands=hands, template_hands=hands, hit=0.0, false_check=1.0)
    assert not any(page.truth["solved"] for page in take(liars, 300))
    honest = replace(liars, false_check=0.0)
    for page in take(honest, 200):
        claims = any(word in page.text for word in ("yes!", "it works!", "了！"))
        assert claims == page.truth["solved"] or not claims  # an author who gives up may be right unknowingly


def test_unsolvable_pages_have_no_solution() -> None:
    for page in take(Knobs(countdown=1.0, unsolvable=1.0, four_operands=0.0), 300):
        values = {chain.value for chain in chains(tuple(sorted(page.truth["numbers"])))}
        assert page.truth["target"] not in values and not page.truth["solved"]


def test_chains_agree_with_the_verifier() -> None:
    for numbers in ((3, 7, 12), (5, 5, 5), (1, 2, 20)):
        for chain in chains(numbers):
            assert evaluate(chain.expression).value == chain.value
            for left, operator, right, result in chain.steps:
                assert evaluate(left + operator + right).value == int(result)
    dice = Random(0)
    for _ in range(200):
        drawn = random_chain(dice, (4, 9, 13, 17))
        assert evaluate(drawn.expression).value == drawn.value > 0


def test_knobs_out_of_range_are_named() -> None:
    with pytest.raises(UsageError, match=r"chinese = 1\.5"):
        next(pages(Knobs(chinese=1.5), 0))
    with pytest.raises(UsageError, match="hands"):
        next(pages(Knobs(forum_hands=Hands(0, 0, 0, 0)), 0))
    with pytest.raises(DunwuError, match="no solvable"):
        draw_puzzle(Random(0), Knobs(low=1, high=1, target_low=90, target_high=99, four_operands=0.0), "train")


def test_a_web_without_search_has_no_tries() -> None:
    hands = {page.truth.get("hand") for page in take(without_search(), 2000)}
    assert hands == {None, "guess", "worked"}
