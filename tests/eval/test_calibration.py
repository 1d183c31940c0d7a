"""Figures about reward models, by hand and against other ways to compute them."""

from __future__ import annotations

import json
import math
from random import Random

import numpy as np
import pytest

from dunwu.eval.calibration import (
    ScoredPair,
    ScoredRanking,
    accuracy,
    correlation,
    expected_calibration_error,
    pair_reliability,
    pairwise_report,
    pointwise_report,
    ranking_report,
    reliability,
    sigmoid,
    spearman,
    truth_agreement,
)
from dunwu.eval.passk import wilson


def test_accuracy_has_wilsons_interval_over_conversations() -> None:
    right = [True] * 30 + [False] * 10
    found = accuracy(right)
    assert (found.low, found.high) == pytest.approx(wilson(0.75, 40)) and found.n == 40
    doubled = accuracy(right * 2, [*range(40), *range(40)])
    # The same conversations twice are no new evidence.
    assert doubled.n == 40 and (doubled.low, doubled.high) == pytest.approx((found.low, found.high))
    assert accuracy([True, False], ["a", "a"]).value == 0.5
    with pytest.raises(ValueError):
        accuracy([True, False], ["a"])
    with pytest.raises(ValueError):
        accuracy([])


def test_bins_hold_every_case_once_and_both_ends() -> None:
    dice = Random(1)
    stated = [0.0, 1.0, 0.1, 0.3, *(dice.random() for _ in range(500))]
    happened = [dice.random() < p for p in stated]
    table = reliability(stated, happened)
    assert sum(b.n for b in table) == 504 and len(table) == 10
    assert [b.low for b in table] == pytest.approx([n / 10 for n in range(10)]) and table[-1].high == 1.0
    assert all(b.low - 1e-9 <= b.stated <= b.high + 1e-9 for b in table if b.n)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="no probability"):
            reliability([bad], [True])
    assert reliability([], [])[0].n == 0 and expected_calibration_error(reliability([], [])) == 0.0


def test_calibration_error_tells_honest_from_boastful() -> None:
    dice = Random(2)
    margins = [dice.gauss(0, 2) for _ in range(20_000)]
    # A judge that prefers by Bradley-Terry of the true margin; chosen is what it preferred.
    honest = [m if dice.random() < sigmoid(m) else -m for m in margins]
    assert expected_calibration_error(pair_reliability(honest)) < 0.02
    boastful = [3 * m for m in honest]
    assert expected_calibration_error(pair_reliability(boastful)) > 0.1
    # By hand: confidences 0.75 and 0.75, one of two right.
    assert expected_calibration_error(pair_reliability([math.log(3), -math.log(3)])) == pytest.approx(0.25)


def test_correlations_equal_numpy() -> None:
    dice = Random(3)
    x = [dice.gauss(5, 2) for _ in range(50)]
    y = [0.5 * v + dice.gauss(0, 1) for v in x]
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    tied_x, tied_y = [round(v) for v in x], [round(v) for v in y]
    ranks = []
    for values in (tied_x, tied_y):
        ordered = sorted(values)
        ranks.append([np.mean([n for n, v in enumerate(ordered) if v == value]) for value in values])
    assert spearman(tied_x, tied_y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert correlation([], []) is None and spearman([1.0], [2.0]) is None
    with pytest.raises(ValueError):
        correlation([1.0], [1.0, 2.0])


def test_a_model_that_only_likes_length_is_found_out() -> None:
    pairs = []
    for n in range(40):
        chosen, rejected = (20, 10) if n < 30 else (10, 20)
        pairs.append(ScoredPair(chosen / 10, rejected / 10, chosen, rejected))
    report = pairwise_report(pairs)
    assert report["accuracy"]["value"] == 0.75  # looks well
    assert report["length_correlation"] == pytest.approx(1.0)
    assert report["chosen_shorter"]["value"] == 0.0 and report["chosen_shorter"]["n"] == 10
    assert report["agreement"] is None


def test_equal_scores_are_wrong_and_counted() -> None:
    report = pairwise_report([ScoredPair(1.0, 1.0, 5, 5), ScoredPair(2.0, 1.0, 5, 5)])
    assert report["accuracy"]["value"] == 0.5 and report["equal_scores"] == 1 and report["pairs"] == 2
    assert report["chosen_shorter"] is None and report["length_correlation"] is None
    json.dumps(report, allow_nan=False)


def test_agreement_with_the_truth_leaves_ties_out() -> None:
    pairs = [
        ScoredPair(2.0, 1.0, 5, 5, "a", (0.9, 0.1)),  # as the truth
        ScoredPair(2.0, 1.0, 5, 5, "b", (0.1, 0.9)),  # the judge erred, and the model followed it
        ScoredPair(1.0, 2.0, 5, 5, "c", (0.2, 0.8)),  # the judge erred, the model did not
        ScoredPair(2.0, 1.0, 5, 5, "d", (0.5, 0.5)),
        ScoredPair(2.0, 1.0, 5, 5, "e"),
    ]
    report = pairwise_report(pairs)
    assert report["accuracy"]["value"] == pytest.approx(4 / 5)
    assert report["agreement"]["agreement"]["value"] == pytest.approx(2 / 3)
    assert report["agreement"]["agreement"]["n"] == 3 and report["agreement"]["ties"] == 1
    # Two pairs of one conversation are one case.
    twice = truth_agreement([(2.0, 1.0, 0.9, 0.1, "a"), (2.0, 1.0, 0.1, 0.9, "a"), (2.0, 1.0, 0.9, 0.1, "b")])
    assert twice["agreement"]["n"] == 2 and twice["agreement"]["value"] == 0.75
    only_ties = truth_agreement([(1.0, 0.0, 0.5, 0.5, None)])
    assert only_ties["agreement"] is None and only_ties["spearman"] is None
    # Equal scores where the truth differs are no agreement.
    assert truth_agreement([(1.0, 1.0, 0.5, 0.4, None)])["agreement"]["value"] == 0.0


def test_pointwise_report_by_hand() -> None:
    scores, labels = [3.0, 1.0, -1.0, -2.0, 0.0], [True, True, True, False, False]
    report = pointwise_report(scores, labels, [1, 2, 3, 4, 5])
    assert report["accuracy"]["value"] == pytest.approx(4 / 5)  # 0 is not above 0: it calls the reply bad
    assert report["accuracy_good"]["value"] == pytest.approx(2 / 3) and report["accuracy_bad"]["value"] == 1.0
    assert report["majority"] == 0.6
    stated = [sigmoid(score) for score in scores]
    by_hand = sum(abs(p - label) for p, label in zip(stated, labels)) / 5  # each case is alone in its bin
    assert report["calibration_error"] == pytest.approx(by_hand)
    assert pointwise_report(scores, [False] * 4 + [True], [1, 2, 3, 4, 5])["majority"] == 0.8
    one_sided = pointwise_report([1.0], [True], [3])
    assert one_sided["accuracy_bad"] is None and one_sided["majority"] == 1.0
    with pytest.raises(ValueError):
        pointwise_report([1.0], [], [])


def test_a_ranking_is_reported_as_its_pairs() -> None:
    tied = ScoredRanking([3.0, 1.0, 1.0, 2.0], [0, 0, 1, 2], [9, 5, 7, 3], "a", [1.0, 0.8, 0.8, 0.1])
    plain = ScoredRanking([0.5, 0.5, 0.7], [0, 1, 2], [4, 6, 8], "b", [0.9, 0.2, 0.4])
    report = ranking_report([tied, plain])
    # "a": 3>1, 3>2 right, 1=1 neither, 1<2 and 1<2 wrong; "b": one equal, two wrong
    places = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = [
        ScoredPair(r.scores[b], r.scores[w], r.lengths[b], r.lengths[w], r.conversation, (r.truth[b], r.truth[w]))
        for r, pairs in ((tied, places), (plain, [(0, 1), (0, 2), (1, 2)]))
        for b, w in pairs
        if r.truth is not None
    ]
    assert report | pairwise_report(expected) == report and report["pairs"] == 8 and report["rankings"] == 2
    assert report["accuracy"]["value"] == pytest.approx((2 / 5 + 0) / 2) and report["accuracy"]["n"] == 2
    assert report["kendall"] == pytest.approx((0.0 + -2 / 3) / 2) and report["equal_scores"] == 2
    assert report["best_first"]["value"] == 0.5 and report["agreement"]["ties"] == 1
    assert report["chosen_shorter"] is not None and json.loads(json.dumps(report)) == report
    with pytest.raises(ValueError):
        ranking_report([])


def test_kendall_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    dice = Random(3)
    for _ in range(20):
        scores = [dice.random() for _ in range(6)]
        report = ranking_report([ScoredRanking(scores, range(6), [1] * 6)])
        assert report["kendall"] == pytest.approx(stats.kendalltau(scores, [-n for n in range(6)]).statistic)
