"""Reward models as a claim: pairs, margins, rankings, labels, an ensemble and a likelihood, taught by noisy labelers whose
truth is known.

Base → demonstrations → SFT model, from which every arm begins. Every arm reads as many labelled replies in as many updates. All are measured on the same pairs of requests that none has
seen: against the labels, whose best possible predictor is known (`bayes_accuracy`), and against the truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from dunwu.data.tokenizer import load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.calibration import accuracy
from dunwu.eval.passk import share_of
from dunwu.log import Run
from dunwu.model.runtime import prepare_torch, resolve_device
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.r1_ground import base_of
from dunwu.recipes.rlhf_stages import demonstrations, fine_tuned
from dunwu.recipes.rm import check_fit, reward_stage
from dunwu.recipes.rm_cases import Source, measured
from dunwu.recipes.rm_study_config import RmStudyConfig
from dunwu.recipes.user_data import Unusable
from dunwu.train.ensemble import Combine, Ensemble
from dunwu.train.rm_config import RmConfig
from dunwu.types import ChatExample, Message, Preference, Ranking
from dunwu.world.labelers import Crowd, agreement, bayes_accuracy

OF_BAYES = 0.95
"""What is claimed: accuracy on noisy labels over that of the best possible predictor of them."""
FILE = "rm-study.json"


def run(run: Run, config: RmStudyConfig) -> None:
    """The recipe `rm-study`."""
    config.validate()
    prepare_torch(config.device)
    base, _ = base_of(run, config)
    sft = fine_tuned(run, config, base, demonstrations(run, config))
    folder = sft.path / MODEL
    check_fit(folder, config.rm.context)
    crowd = labelers(config, run.seed)
    made = {}
    for name, settings in config.settings().items():
        key = {"crowd": config.crowd, "replies": config.replies}
        made[name] = reward_stage(
            run,
            f"rm-{name}",
            folder,
            partial(labelled, crowd, settings, config),
            settings,
            key | ({"ranked": config.ranked} if settings.kind == "ranking" else {}),
            [sft],
            device=config.device,
            held_out_every=config.held_out_every,
            save_every=config.save_every,
        )
    test = list(crowd.pairs(config.test, "test"))
    again = list(crowd.pairs(config.test, start=config.replies))  # beyond the rows of any arm
    chances, known = chances_of(crowd, test), chances_of(crowd, again)
    ceiling = {
        "pairs": len(test),
        "bayes_accuracy": bayes_accuracy(chances),
        "agreement_of_labelers": agreement(chances),
        "truth": accuracy([chance > 0.5 for chance in chances], [pair.messages for pair in test]).as_json(),
        "bayes_accuracy_of_training_requests": bayes_accuracy(known),
    }
    encoder, rows = load_tokenizer(folder), []
    for name, artifact in made.items():
        single = name != "ensemble"
        ways: tuple[Combine, ...] = ("mean",) if single else ("mean", "worst", "uncertainty")
        for way in ways:
            judge = Ensemble.load(artifact.path, resolve_device(config.device), way)
            row: dict[str, Any] = {
                "arm": name if single else f"{name}, {way}",
                "settings": asdict(config.settings()[name]),
            }
            row |= {
                "replies": config.replies,
                "updates": artifact.meta["metrics"]["updates"],
                "seconds": round(artifact.meta["seconds"], 1),
            }
            row |= measured(judge, encoder, test, chances)
            rows.append(row | {"training_requests": measured(judge, encoder, again, known)["of_bayes"]})
    found = {"crowd": asdict(config.crowd), "ceiling": ceiling, "rows": rows}
    if "labels" in made:
        judge = Ensemble.load(made["labels"].path, resolve_device(config.device))
        found["labels"] = graded(judge, crowd, list(crowd.grades(config.test, "test")))
    found["verdicts"] = verdicts(found)
    write_atomically(run.dir / FILE, json.dumps(found, indent=1) + "\n")
    evidence = {"reward_models": found, "verdicts": found["verdicts"]}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, indent=1) + "\n")
    print(table(found))


# ---- what is taught -------------------------------------------------------------------------


def labelers(config: RmStudyConfig, seed: int) -> Crowd:
    """The world's labelers of a run."""
    crowd = config.crowd
    return Crowd.of(crowd.labelers, crowd.temperature, crowd.spread, crowd.length_taste, seed)


def labelled(crowd: Crowd, settings: RmConfig, config: RmStudyConfig) -> tuple[list[Source], list[Unusable]]:
    """The rows of an arm, `config.replies` replies in all."""
    rows: list[Preference | Ranking | ChatExample]
    if settings.kind == "pairwise":
        rows = [*crowd.pairs(config.replies // 2)]
    elif settings.kind == "ranking":
        rows = [*crowd.rankings(config.replies // config.ranked, config.ranked)]
    else:
        rows = [*crowd.grades(config.replies)]
    return [Source(row, "labelers", line) for line, row in enumerate(rows, 1)], []


# ---- what is measured -----------------------------------------------------------------------


def chances_of(crowd: Crowd, pairs: Sequence[Preference]) -> list[float]:
    """The chance of each label."""
    return [crowd.chance(pair.meta["truth"], [pair.chosen.content, pair.rejected.content]) for pair in pairs]


def graded(judge: Ensemble, crowd: Crowd, grades: Sequence[ChatExample]) -> dict[str, Any]:
    """A pointwise model on labelled replies: is it right of each, and what could be had?"""
    scores = judge.score([list[Message](grade.messages) for grade in grades])
    chances = [crowd.good_chance(grade.meta["utility"], grade.messages[-1].content) for grade in grades]
    right = accuracy([(s > 0) == bool(grade.meta["label"]) for s, grade in zip(scores, grades, strict=True)])
    agreed = [p if s > 0 else 1 - p for p, s in zip(chances, scores, strict=True)]
    return {
        "replies": len(grades),
        "bayes_accuracy": bayes_accuracy(chances),
        "accuracy": right.as_json(),
        "of_bayes": share_of(agreed, [max(p, 1 - p) for p in chances], [g.messages[:-1] for g in grades]).as_json(),
    }


def verdicts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims; one holds if the figure is reached, and the figure has its interval."""
    cases = [(f"{row['arm']}: unseen requests", row["of_bayes"]) for row in found["rows"]]
    cases += [(f"{row['arm']}: training requests", row["training_requests"]) for row in found["rows"]]
    if "labels" in found:
        cases.append(("labels: single replies", found["labels"]["of_bayes"]))
    return [
        {
            "claim": f"{name}, accuracy ≥ {OF_BAYES} of Bayes",
            "holds": share["value"] >= OF_BAYES,
            "figure": f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]",
        }
        for name, share in cases
    ]


def table(found: Mapping[str, Any]) -> str:
    """What was found as plain text."""
    ceiling = found["ceiling"]
    lines = [
        f"{ceiling['pairs']} pairs: Bayes {ceiling['bayes_accuracy']:.3f}, the truth {ceiling['truth']['value']:.3f}, "
        f"two labelers agree on {ceiling['agreement_of_labelers']:.3f}",
        f"{'arm':<24}{'accuracy':>9}{'of Bayes':>9}{'expected':>9}{'truth':>7}{'calibration':>12}{'shorter':>8}{'seconds':>8}",
    ]
    for row in found["rows"]:
        shorter, truth = row["chosen_shorter"], row["agreement"]["agreement"]
        lines.append(
            f"{row['arm']:<24}{row['accuracy']['value']:>9.3f}{row['of_bayes']['value']:>9.3f}{row['expected_accuracy']:>9.3f}"
            f"{truth['value'] if truth else float('nan'):>7.3f}{row['calibration_error']:>12.3f}"
            f"{shorter['value'] if shorter else float('nan'):>8.3f}{row['seconds']:>8.0f}"
        )
    said = [f"{'yes' if v['holds'] else 'NO':<5}{v['claim']}: {v['figure']}" for v in found["verdicts"]]
    return "\n".join([*lines, *said])
