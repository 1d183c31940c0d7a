"""Labelers of a known utility: chances by hand, draws against chances, and the best that can be known of them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from random import Random

import pytest

from dunwu.types import Message, UsageError, derive_seed
from dunwu.world.general import General
from dunwu.world.labelers import GOOD, Crowd, Labeler, agreement, bayes_accuracy, written

PROBLEM = General().draw("train", 0, 3)
REPLIES = written(General(), PROBLEM, 3, Random(1))


def test_chances_by_hand() -> None:
    ann = Labeler("Ann", temperature=0.25)
    assert ann.chance(0.25) == pytest.approx(1 / (1 + math.exp(-1)))
    assert ann.chance(0.3) + ann.chance(-0.3) == pytest.approx(1.0)
    assert (ann.chance(1e9), ann.chance(-1e9)) == (1.0, 0.0)
    likes_length = Crowd([Labeler("Bo", 0.5, length_taste=0.4)])
    assert likes_length.chance([0.5, 0.7], ["x" * 150, "x" * 100]) == pytest.approx(0.5)  # 0.5 + 0.6 against 0.7 + 0.4
    two = Crowd([Labeler("Ann", 0.25), Labeler("Sure", 0.0)])
    assert two.chance([0.75, 0.5], ["a", "b"]) == pytest.approx((1 / (1 + math.exp(-1)) + 1) / 2)
    assert two.good_chance(GOOD, "a") == 0.5


def test_rankings_are_drawn_as_plackett_and_luce_say() -> None:
    values, tau, dice = [0.9, 0.5, 0.2], 0.3, Random(0)
    ann, n = Labeler("Ann", tau), 20_000
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(n):
        felt = ann.felt(values, dice)
        drawn[tuple(sorted(range(3), key=felt.__getitem__, reverse=True))] += 1
    weights = [math.exp(value / tau) for value in values]
    for order in permutations(range(3)):
        chance = weights[order[0]] / sum(weights) * weights[order[1]] / (weights[order[1]] + weights[order[2]])
        assert drawn[order] / n == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / n))
    # so any two of them stand in it as a single comparison would have put them
    above = sum(count for order, count in drawn.items() if order.index(1) < order.index(2)) / n
    assert above == pytest.approx(ann.chance(0.3), abs=0.015)


def test_labels_come_with_their_chances() -> None:
    crowd = Crowd.of(4, temperature=0.3, spread=0.5, seed=1)
    a, b = REPLIES[:2]
    chance = crowd.chance([crowd.truth(PROBLEM, a), crowd.truth(PROBLEM, b)], [a.content, b.content])
    chosen = [crowd.compare(PROBLEM, a, b, draw).chosen == a for draw in range(4000)]
    assert sum(chosen) / 4000 == pytest.approx(chance, abs=0.03)
    good = [crowd.grade(PROBLEM, a, draw).meta["label"] for draw in range(4000)]
    assert sum(good) / 4000 == pytest.approx(crowd.good_chance(crowd.truth(PROBLEM, a), a.content), abs=0.03)
    asked = Counter(crowd.compare(PROBLEM, a, b, draw).meta["labeler"] for draw in range(4000))
    assert len(asked) == 4 and min(asked.values()) > 850


def test_a_draw_follows_from_names_alone() -> None:
    crowd = Crowd.of(3, seed=5)
    first = crowd.rank(PROBLEM, REPLIES)
    assert Crowd.of(3, seed=5).rank(PROBLEM, REPLIES[::-1]) == first  # nor from the order they are shown in
    assert crowd.rank(PROBLEM, [*REPLIES, REPLIES[0]]) == first
    assert first.ranks == (0, 1, 2) and set(first.replies) == set(REPLIES)
    assert first.meta["truth"] == [crowd.truth(PROBLEM, reply) for reply in first.replies]
    assert first.meta["felt"] == sorted(first.meta["felt"], reverse=True)
    others = {tuple(reply.content for reply in crowd.rank(PROBLEM, REPLIES, draw).replies) for draw in range(30)}
    assert len(others) > 1
    assert [*crowd.pairs(5)] == [*crowd.pairs(8)][:5]
    assert [*crowd.pairs(5)] != [*Crowd.of(3, seed=6).pairs(5)]
    with pytest.raises(UsageError, match="1 different"):
        crowd.rank(PROBLEM, [REPLIES[0], REPLIES[0]])


def test_a_sure_labeler_says_the_truth() -> None:
    crowd = Crowd([Labeler("Sure", temperature=0.0)])
    for ranking in crowd.rankings(60):
        truth = ranking.meta["truth"]
        assert truth == sorted(truth, reverse=True) and len(truth) == len(ranking.replies) == 4
    margins = Counter()
    for pair in crowd.pairs(200):
        gap = pair.meta["truth"][0] - pair.meta["truth"][1]
        assert gap >= 0 and pair.meta["margin"] == min(3, int(gap / 0.25 + 1e-9)) and pair.chosen != pair.rejected
        margins[pair.meta["margin"]] += 1
    assert set(margins) == {0, 1, 2, 3}
    for grade in crowd.grades(60):
        assert grade.meta["label"] == (grade.meta["utility"] > GOOD) or grade.meta["utility"] == GOOD


def test_splits_do_not_meet() -> None:
    crowd = Crowd.of(2)
    asked = [{pair.messages for pair in crowd.pairs(300, split)} for split in ("train", "test")]
    assert not asked[0] & asked[1]


def test_a_taste_for_length_shows_in_the_labels() -> None:
    def longer(crowd: Crowd) -> float:
        pairs = [*crowd.pairs(600)]
        return sum(len(pair.chosen.content) > len(pair.rejected.content) for pair in pairs) / len(pairs)

    assert longer(Crowd.of(3, length_taste=2.0)) > longer(Crowd.of(3)) + 0.15


# ---- what can be known


def test_bayes_accuracy_against_monte_carlo() -> None:
    """The best predictor of drawn labels is right as often as said, and no other is right more often."""
    dice = Random(derive_seed("labeler test"))
    chances = [dice.random() for _ in range(300)]
    draws, right, worse = 200, 0, 0
    for p in chances:
        labels = [dice.random() < p for _ in range(draws)]
        right += sum(label == (p > 0.5) for label in labels)
        worse += sum(label == (p > 0.6) for label in labels)
    total = draws * len(chances)
    assert bayes_accuracy(chances) == pytest.approx(right / total, abs=4 * 0.5 / math.sqrt(total))
    assert worse < right
    agreed = sum((dice.random() < p) == (dice.random() < p) for p in chances for _ in range(draws)) / total
    assert agreement(chances) == pytest.approx(agreed, abs=4 * 0.5 / math.sqrt(total))


def test_the_truth_is_the_bayes_predictor_of_the_crowd() -> None:
    crowd = Crowd.of(5, spread=0.5)
    pairs = [*crowd.pairs(3000, "test")]
    chances = [crowd.chance(pair.meta["truth"], [pair.chosen.content, pair.rejected.content]) for pair in pairs]
    assert sum(p > 0.5 for p in chances) / 3000 == pytest.approx(bayes_accuracy(chances), abs=0.025)
    assert 0.72 < agreement(chances) < 0.78  # as people are said to agree


def test_wrong_uses() -> None:
    for people in ([], [Labeler("a"), Labeler("a")], [Labeler("a", temperature=-0.1)], [Labeler("a", math.nan)]):
        with pytest.raises(UsageError):
            Crowd(people)
    for function in (bayes_accuracy, agreement):
        with pytest.raises(UsageError):
            function([])
    assert Message("assistant", "x") not in written(General(), PROBLEM, 99, Random(0))
