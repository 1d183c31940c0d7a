"""A reward model from a model folder and preference data: checked rows in, a scalar head and its calibration out.

`reward_stage` is what recipes share; `run` feeds it a user's files. An artifact holds `model/` (see
`dunwu.train.reward_model`), `calibration.json` (see `dunwu.eval.calibration`) and `bad_rows.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dunwu import machine
from dunwu.data.chat import BadRow, each_chat, each_preference, require_turns
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.calibration import ScoredPair, pairwise_report, pointwise_report
from dunwu.log import Progress, Run, read_json
from dunwu.model.hf import from_hf_config, load_model, resolve_dtype
from dunwu.model.hf_config import KNOWN, NotOurs
from dunwu.model.lora_config import LoraConfig
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.recipes.adapters import fit_adapters, keep_adapter
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.recipes.rm_config import RmRunConfig
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.recipes.user_data import Unusable, tell_bad_rows, write_bad_rows
from dunwu.recipes.user_models import model_folder
from dunwu.store import Artifact
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.optim import MasterAdamW
from dunwu.train.reward_model import Meaning, RewardModel, calibrated, save_reward_model, score_ids
from dunwu.train.rm import (
    Row,
    balance_lengths,
    held_out_rows,
    label_row,
    margin_loss,
    pair_row,
    rm_steps,
    train_rm,
)
from dunwu.train.rm_config import Kind, RmConfig
from dunwu.types import ChatExample, DunwuError, Message, Preference, derive_seed

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Source:
    """One row of preference data and where it stands."""

    row: Preference | ChatExample
    file: str
    line: int


@dataclass(frozen=True)
class Case:
    """One usable row: what is trained on, and what is needed to judge the result."""

    row: Row
    asked: tuple[Message, ...]
    """The conversation without the reply."""
    truth: tuple[float, float] | None
    """True utilities of chosen and rejected (`meta["truth"]`), where the world knows them."""


def run(run: Run, config: RmRunConfig) -> None:
    """The recipe `rm`."""
    config.validate()
    prepare_torch(config.device)
    folder = model_folder(run, config.model)
    check_fit(folder, config.context)
    key = {"model": model_digest(folder), "files": [[file, file_digest(file)] for file in config.data]}
    made = reward_stage(
        run,
        "rm",
        folder,
        partial(read_files, config.data, config.kind),
        config.rm,
        key,
        device=config.device,
        held_out_every=config.held_out_every,
        save_every=config.save_every,
        lora=config.lora,
    )
    tell_bad_rows(run, made)
    figures = made.meta["metrics"]
    span = f"[{figures['accuracy_low']:.3f}, {figures['accuracy_high']:.3f}]"
    print(f"{made.path / MODEL}: held-out accuracy {figures['accuracy']:.3f} {span} on {figures['held_out_rows']} rows")


def check_fit(folder: Path, context: int) -> None:
    """Raise DunwuError if the class is not ours, the tokenizer has no turns, or tokenizer or context exceed what the model was made for."""
    encoder = load_tokenizer(folder)
    require_turns(encoder)
    try:
        shape = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    except NotOurs as error:
        raise DunwuError(error.what, f"reward models need one of {KNOWN}") from error
    if encoder.vocab_size > shape.vocab_size:
        what = f"the tokenizer has {encoder.vocab_size} ids, the model {shape.vocab_size}"
        raise DunwuError(what, "give the tokenizer that the model was trained with")
    if context > shape.max_position_embeddings:
        what = f"context {context} is longer than the model's {shape.max_position_embeddings}"
        raise DunwuError(what, f"use --context {shape.max_position_embeddings}")


def read_files(files: Sequence[str], kind: Kind) -> tuple[list[Source], list[Unusable]]:
    """The rows of JSONL files, pairs or labelled conversations, and those that cannot be read."""
    good: list[Source] = []
    bad: list[Unusable] = []
    for file in files:
        rows: Iterable[tuple[int, Preference | ChatExample | BadRow]]
        rows = each_preference(Path(file)) if kind == "pairwise" else each_chat(Path(file))
        for line, row in rows:
            if isinstance(row, BadRow):
                bad.append(Unusable(file, line, row.reason))
            else:
                good.append(Source(row, file, line))
    return good, bad


def reward_stage(
    run: Run,
    name: str,
    folder: Path,
    read: Callable[[], tuple[list[Source], list[Unusable]]],
    settings: RmConfig,
    key: Mapping[str, Any],
    inputs: Sequence[Artifact] = (),
    device: str = "auto",
    held_out_every: int = 20,
    save_every: int = 20,
    lora: LoraConfig | None = None,
) -> Artifact:
    """Train a scalar head on the model of `folder`; checkpoints on the way, calibration at the end.

    Args:
        read: the rows, and those already found unusable; called in the build only.
        key: what decides model and rows, besides `inputs`.
        held_out_every: updates between held-out figures.
        save_every: updates between checkpoints.
        lora: if its rank is not 0, adapters are trained instead of the decoder, and the head.

    Raises:
        DunwuError: no usable rows, or of one conversation only; the numbers go bad.
    """
    device = resolve_device(device)
    dtype = resolve_dtype("auto", device, machine.cpu_flags())

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(folder)
        sources, bad = read()
        cases, unusable = usable(encoder, sources, settings)
        bad = sorted([*bad, *unusable], key=lambda row: (row.file, row.line))
        write_bad_rows(work, bad, len(cases))
        flags = held_out_rows([case.asked for case in cases], settings.held_out, run.seed)
        training = [case.row for case, held_out in zip(cases, flags, strict=True) if not held_out]
        judged = [case for case, held_out in zip(cases, flags, strict=True) if held_out]
        rows = balance_lengths(training, settings.length_tolerance) if settings.length_balance else training
        if not rows:
            what = f"balancing lengths left none of {len(training)} pairs: chosen replies are always longer, or shorter"
            raise DunwuError(what, "use --no_length_balance, or give pairs of comparable lengths")
        model = RewardModel.from_model(load_model(folder, device, dtype), derive_seed("rm head", run.seed))
        adapted = fit_adapters(model, lora, run.seed, also=("score",))
        _train(run, name, model, rows, judged, settings, work, held_out_every, save_every)
        keep_adapter(model, work, folder)  # before it is measured, so that the figures are those of the saved model
        sides = score_sides(model, judged, settings)
        report = calibration(judged, sides, settings)
        meaning = calibrated(
            Meaning(settings.kind, settings.sees), [s for pair in sides for s in pair if s is not None]
        )
        save_reward_model(model, work / MODEL, encoder, meaning)
        write_atomically(work / CALIBRATION, json.dumps(report, indent=1) + "\n")
        counts = {"rows": len(rows), "held_out_rows": len(judged), "bad_rows": len(bad)}
        counts |= {"length_dropped": len(training) - len(rows), "updates": rm_steps(rows, settings)}
        return counts | headline(report) | adapted

    lineage = {"rm": settings, "seed": run.seed, "dtype": str(dtype), "held_out_every": held_out_every, **key}
    lineage |= lora.key if lora else {}
    return run.stage(name, build, lineage, inputs, version=COMPUTED)


def usable(encoder: Tokenizer, sources: Sequence[Source], settings: RmConfig) -> tuple[list[Case], list[Unusable]]:
    """Rows as ids, and those that cannot be used with the reason: too long, no label, two replies that look the same."""
    cases: list[Case] = []
    bad: list[Unusable] = []
    for source in sources:
        try:
            cases.append(_case(encoder, source.row, settings))
        except DunwuError as error:
            bad.append(Unusable(source.file, source.line, str(error)))
    return cases, bad


def _case(encoder: Tokenizer, row: Preference | ChatExample, settings: RmConfig) -> Case:
    if isinstance(row, Preference):
        made, asked = pair_row(encoder, row, settings.sees), row.messages
        if made.good == made.bad:
            raise DunwuError(f"chosen and rejected are the same text in the view {settings.sees!r}")
    else:
        made, asked = label_row(encoder, row, settings.sees), row.messages[:-1]
    longest = max(map(len, made.sides))
    if longest > settings.context:
        raise DunwuError(f"{longest} tokens, the context is {settings.context}")
    return Case(made, asked, _truth(row.meta))


def _truth(meta: Mapping[str, Any]) -> tuple[float, float] | None:
    truth = meta.get("truth")
    if truth is None:
        return None
    try:
        chosen, rejected = truth
        return float(chosen), float(rejected)
    except (TypeError, ValueError):
        raise DunwuError('meta: "truth" is not two numbers, of chosen and rejected') from None


def _train(
    run: Run,
    name: str,
    model: RewardModel,
    rows: Sequence[Row],
    judged: Sequence[Case],
    settings: RmConfig,
    work: Path,
    held_out_every: int,
    save_every: int,
) -> None:
    optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
    start, total = restore(work, optimizer)[0]["step"], rm_steps(rows, settings)
    with Progress(total, name, "updates", start=start) as progress:
        _seed_dropout(run.seed, start)
        for step in train_rm(model, optimizer, rows, settings, run.seed, start, work):
            metrics = dict(step.metrics)
            if step.n % held_out_every == 0 or step.n == total:
                metrics |= held_out_figures(model, judged, settings)
            run.log(name, step.n, metrics)
            if step.n % save_every == 0 or step.n == total:
                save_checkpoint(work, optimizer.state(), {"step": step.n, "version": optimizer.version})
            progress.update(step.n, loss=step.metrics["rm/loss"], accuracy=step.metrics["rm/accuracy"])
            _seed_dropout(run.seed, step.n)


def _seed_dropout(seed: int, step: int) -> None:
    """Before update `step` (0-based): the adapters' dropout is the only user of the global generator."""
    torch.manual_seed(derive_seed("dropout", seed, step))


def held_out_figures(model: RewardModel, judged: Sequence[Case], settings: RmConfig) -> dict[str, float]:
    """Mean loss, accuracy and margin of held-out rows, as in training."""
    margins = [(good or 0.0) - (bad or 0.0) for good, bad in score_sides(model, judged, settings)]
    losses = margin_loss(torch.tensor(margins, dtype=torch.float64))
    return {
        "rm/held_out_loss": float(losses.mean()),
        "rm/held_out_accuracy": fmean(margin > 0 for margin in margins),
        "rm/held_out_margin": fmean(margins),
    }


def score_sides(
    model: RewardModel, cases: Sequence[Case], settings: RmConfig
) -> list[tuple[float | None, float | None]]:
    """(score of the good side, of the bad one) of each row; None for a side it does not have."""
    found = iter(score_ids(model, [side for case in cases for side in case.row.sides], settings.micro_tokens))
    return [
        (None if case.row.good is None else next(found), None if case.row.bad is None else next(found))
        for case in cases
    ]


def calibration(
    cases: Sequence[Case], sides: Sequence[tuple[float | None, float | None]], settings: RmConfig
) -> dict[str, Any]:
    """The report on held-out rows, of `dunwu.eval.calibration`."""
    if settings.kind == "pointwise":
        scores = [next(score for score in side if score is not None) for side in sides]
        labels = [case.row.good is not None for case in cases]
        return pointwise_report(scores, labels, [len(case.row.sides[0]) for case in cases])
    pairs = []
    for case, (chosen, rejected) in zip(cases, sides, strict=True):
        assert chosen is not None and rejected is not None  # pair_row makes both
        lengths = [len(side) for side in case.row.sides]
        pairs.append(ScoredPair(chosen, rejected, lengths[0], lengths[1], case.asked, case.truth))
    return pairwise_report(pairs)


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
    return figures
