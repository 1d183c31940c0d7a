"""Preference data of a reward model's stage: rows of files, what of them can be used, and what a trained model says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dunwu.data.chat import BadRow, each_chat, each_preference, each_ranking, encode_conversation
from dunwu.data.tokenizer import Tokenizer
from dunwu.eval.calibration import (
    ScoredPair,
    ScoredRanking,
    pairwise_report,
    pointwise_report,
    ranking_report,
)
from dunwu.eval.passk import share_of
from dunwu.recipes.user_data import Unusable
from dunwu.train.ensemble import Ensemble
from dunwu.train.reward_model import AnyRewardModel, score_ids
from dunwu.train.rm import row_losses
from dunwu.train.rm_config import Kind, RmConfig
from dunwu.train.rm_rows import AnyRow, RankedRow, label_row, pair_row, ranking_row
from dunwu.types import ChatExample, DunwuError, Message, Preference, Ranking

READERS = {"pairwise": each_preference, "pointwise": each_chat, "ranking": each_ranking}


@dataclass(frozen=True)
class Source:
    """One row of preference data and where it stands."""

    row: Preference | ChatExample | Ranking
    file: str
    line: int


@dataclass(frozen=True)
class Case:
    """One usable row: what is trained on, and what is needed to judge the result."""

    row: AnyRow
    asked: tuple[Message, ...]
    """The conversation without the reply."""
    truth: tuple[float, ...] | None
    """True utilities of chosen and rejected, or of all replies best first (`meta["truth"]`), where the world knows them."""


def read_files(files: Sequence[str], kind: Kind) -> tuple[list[Source], list[Unusable]]:
    """The rows of JSONL files (pairs, labelled conversations or rankings), and those that cannot be read."""
    good: list[Source] = []
    bad: list[Unusable] = []
    for file in files:
        rows: Iterable[tuple[int, Preference | ChatExample | Ranking | BadRow]] = READERS[kind](Path(file))
        for line, row in rows:
            if isinstance(row, BadRow):
                bad.append(Unusable(file, line, row.reason))
            else:
                good.append(Source(row, file, line))
    return good, bad


def usable(encoder: Tokenizer, sources: Sequence[Source], settings: RmConfig) -> tuple[list[Case], list[Unusable]]:
    """Rows as ids, and those that cannot be used with the reason: too long, no label or margin, replies that look the same."""
    cases: list[Case] = []
    bad: list[Unusable] = []
    for source in sources:
        try:
            cases.append(_case(encoder, source.row, settings))
        except DunwuError as error:
            bad.append(Unusable(source.file, source.line, str(error)))
    return cases, bad


def _case(encoder: Tokenizer, row: Preference | ChatExample | Ranking, settings: RmConfig) -> Case:
    made: AnyRow
    if isinstance(row, Preference):
        made, asked = pair_row(encoder, row, settings.sees, settings.margin), row.messages
        if made.good == made.bad:
            raise DunwuError(f"chosen and rejected are the same text in the view {settings.sees!r}")
    elif isinstance(row, Ranking):
        made, asked = ranking_row(encoder, row, settings.sees), row.messages
        if len(set(made.sides)) < len(made.sides):
            raise DunwuError(f"two replies are the same text in the view {settings.sees!r}")
    else:
        made, asked = label_row(encoder, row, settings.sees), row.messages[:-1]
    longest = max(map(len, made.sides))
    if longest > settings.context:
        raise DunwuError(f"{longest} tokens, the context is {settings.context}")
    return Case(made, asked, _truth(row, len(made.sides)))


def _truth(row: Preference | ChatExample | Ranking, replies: int) -> tuple[float, ...] | None:
    truth = row.meta.get("truth")
    if truth is None or isinstance(row, ChatExample):
        return None
    try:
        found = tuple(map(float, truth))
    except (TypeError, ValueError):
        found = ()
    if len(found) != replies:
        whose = (
            "two numbers, of chosen and rejected" if isinstance(row, Preference) else f"{replies} numbers, best first"
        )
        raise DunwuError(f'meta: "truth" is not {whose}')
    return found


# ---- what a model says of them --------------------------------------------------------------


def score_cases(model: AnyRewardModel, cases: Sequence[Case], settings: RmConfig) -> list[list[float]]:
    """Raw scores of the sides of each row, in order."""
    found = iter(score_ids(model, [side for case in cases for side in case.row.sides], settings.micro_tokens))
    return [[next(found) for _ in case.row.sides] for case in cases]


def best_scores(cases: Sequence[Case], scores: Sequence[Sequence[float]]) -> list[float]:
    """The scores of chosen or best replies."""
    ranks = [case.row.ranks if isinstance(case.row, RankedRow) else range(len(case.row.sides)) for case in cases]
    return [s for row, found in zip(ranks, scores, strict=True) for rank, s in zip(row, found, strict=True) if not rank]


def held_out_figures(model: AnyRewardModel, judged: Sequence[Case], settings: RmConfig) -> dict[str, float]:
    """Mean loss, accuracy and margin of held-out rows, as in training."""
    scores = torch.tensor([s for row in score_cases(model, judged, settings) for s in row], dtype=torch.float64)
    losses, margins = row_losses([case.row for case in judged], scores, settings)
    return {
        "rm/held_out_loss": float(losses.mean()),
        "rm/held_out_accuracy": fmean(fmean(m > 0 for m in row) for row in margins),
        "rm/held_out_margin": fmean(fmean(row) for row in margins),
    }


def calibration(cases: Sequence[Case], scores: Sequence[Sequence[float]], settings: RmConfig) -> dict[str, Any]:
    """The report on held-out rows, of `dunwu.eval.calibration`."""
    if settings.kind == "pointwise":
        labels = [getattr(case.row, "good", None) is not None for case in cases]
        lengths = [len(case.row.sides[0]) for case in cases]
        return pointwise_report([row[0] for row in scores], labels, lengths)
    pairs, rankings = list[ScoredPair](), list[ScoredRanking]()
    for case, found in zip(cases, scores, strict=True):
        sizes = [len(side) for side in case.row.sides]
        if isinstance(case.row, RankedRow):
            rankings.append(ScoredRanking(found, case.row.ranks, sizes, case.asked, case.truth))
        else:
            truth = (case.truth[0], case.truth[1]) if case.truth else None
            pairs.append(ScoredPair(found[0], found[1], sizes[0], sizes[1], case.asked, truth))
    return ranking_report(rankings) if rankings else pairwise_report(pairs)


def headline(report: Mapping[str, Any]) -> dict[str, object]:
    """The figures of a report that stand in the list of stages."""
    accuracy = report["accuracy"]
    figures: dict[str, object] = {
        "accuracy": accuracy["value"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "calibration_error": report["calibration_error"],
    }
    truth = report.get("agreement")
    if truth and truth["agreement"]:
        figures["agreement_with_truth"] = truth["agreement"]["value"]
    return figures | {name: report[name] for name in ("members", "disagreement") if name in report}


def measured(
    judge: Ensemble, encoder: Tokenizer, test: Sequence[Preference], chances: Sequence[float]
) -> dict[str, Any]:
    """A model on labelled pairs: the report of `dunwu.eval.calibration`, and its accuracy over the best possible.

    `expected_accuracy` is the mean chance that a labeler agrees with the model, which is free of the luck of the labels; `of_bayes`
    its share of the best predictor's; `families` the same for each family of requests.
    """
    talks = [[[*pair.messages, pair.chosen], [*pair.messages, pair.rejected]] for pair in test]
    scores, spread = judge.judged([talk for both in talks for talk in both])
    pairs = []
    for number, pair in enumerate(test):
        lengths = [len(encode_conversation(encoder, talk).ids) for talk in talks[number]]
        truth = (pair.meta["truth"][0], pair.meta["truth"][1])
        pairs.append(
            ScoredPair(scores[2 * number], scores[2 * number + 1], lengths[0], lengths[1], pair.messages, truth)
        )
    report = {name: value for name, value in pairwise_report(pairs).items() if name not in ("bins", "pairs")}
    best = [max(p, 1 - p) for p in chances]
    agreed = [p if pair.margin > 0 else 1 - p for p, pair in zip(chances, pairs, strict=True)]
    families: dict[str, list[int]] = {}
    for number, pair in enumerate(test):
        families.setdefault(pair.meta["family"], []).append(number)
    report["families"] = {
        family: fmean(agreed[n] for n in numbers) / fmean(best[n] for n in numbers)
        for family, numbers in sorted(families.items())
    }
    asked = [pair.messages for pair in test]
    report |= {"expected_accuracy": fmean(agreed), "of_bayes": share_of(agreed, best, asked).as_json()}
    if len(judge.scorers) > 1:
        apart = [spread[2 * n] + spread[2 * n + 1] for n in range(len(pairs))]
        report["disagreement"] = {
            "right": _mean(a / 2 for a, p in zip(apart, pairs, strict=True) if p.margin > 0),
            "wrong": _mean(a / 2 for a, p in zip(apart, pairs, strict=True) if p.margin <= 0),
        }
    return report


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
