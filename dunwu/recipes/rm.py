"""A reward model from a model folder and preference data: checked rows in, a reward model and its calibration out.

`reward_stage` is what recipes share; `run` feeds it a user's files. An artifact holds `model/` (see
`dunwu.train.reward_model`), `model-1/` … if it is an ensemble, `calibration.json` (see `dunwu.eval.calibration`) and
`bad_rows.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch

from dunwu import machine
from dunwu.data.chat import require_turns
from dunwu.data.tokenizer import load_tokenizer
from dunwu.disk import write_atomically
from dunwu.log import Progress, Run, read_json
from dunwu.model.hf import from_hf_config, load_model, resolve_dtype
from dunwu.model.hf_config import KNOWN, NotOurs
from dunwu.model.lora_config import LoraConfig
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.recipes.adapters import fit_adapters, keep_adapter
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.recipes.rm_cases import (
    Case,
    Source,
    best_scores,
    calibration,
    headline,
    held_out_figures,
    read_files,
    score_cases,
    usable,
)
from dunwu.recipes.rm_config import RmRunConfig
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.recipes.user_data import Unusable, tell_bad_rows, write_bad_rows
from dunwu.recipes.user_models import model_folder
from dunwu.store import Artifact
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.ensemble import member_name, pool
from dunwu.train.likelihood import LikelihoodModel, turn_of
from dunwu.train.optim import MasterAdamW
from dunwu.train.reward_model import AnyRewardModel, Meaning, RewardModel, calibrated, save_reward_model
from dunwu.train.rm import rm_steps, train_rm
from dunwu.train.rm_config import RmConfig
from dunwu.train.rm_rows import AnyRow, balance_lengths, held_out_rows
from dunwu.types import DunwuError, derive_seed

__all__ = ["CALIBRATION", "Source", "check_fit", "keep_report", "read_files", "reward_stage", "run"]

CALIBRATION = "calibration.json"
HEADS = {"scalar": "a scalar head on the last state", "likelihood": "the mean log-probability of the reply"}


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
    keep_report(run, made, CALIBRATION, {"learned from": config.kind, "scores by": HEADS[config.head]})
    figures = made.meta["metrics"]
    span = f"[{figures['accuracy_low']:.3f}, {figures['accuracy_high']:.3f}]"
    print(f"{made.path / MODEL}: held-out accuracy {figures['accuracy']:.3f} {span} on {figures['held_out_rows']} rows")


def keep_report(run: Run, made: Artifact, file: str, said: Mapping[str, str]) -> None:
    """What a stage found on held-out labels becomes the run's evidence, which report.html shows.

    Args:
        said: what else is to be known of the model, in words.
    """
    evidence = {"preferences": read_json(made.path / file) | {"said": said}}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, indent=1) + "\n")


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
    """Train a reward model from the model of `folder`; checkpoints on the way, calibration at the end.

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
    every = (held_out_every, save_every)

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
        members = [
            _member(run, name, number, folder, (device, dtype), rows, judged, settings, work, every, lora)
            for number in range(settings.members)
        ]
        report = _report(judged, [made.scores for made in members], [made.meaning for made in members], settings)
        write_atomically(work / CALIBRATION, json.dumps(report, indent=1) + "\n")
        counts = {"rows": len(rows), "held_out_rows": len(judged), "bad_rows": len(bad)}
        counts |= {"length_dropped": len(training) - len(rows), "updates": rm_steps(rows, settings)}
        return counts | headline(report) | members[0].figures

    lineage = {"rm": settings, "seed": run.seed, "dtype": str(dtype), "held_out_every": held_out_every, **key}
    lineage |= lora.key if lora else {}
    return run.stage(name, build, lineage, inputs, version=COMPUTED)


@dataclass(frozen=True)
class Member:
    """A trained reward model, as far as the stage still needs it."""

    scores: list[list[float]]
    """Raw scores of the held-out rows' sides."""
    meaning: Meaning
    figures: dict[str, object]
    """What the headline says of its adapters."""


def _member(
    run: Run,
    name: str,
    number: int,
    folder: Path,
    where: tuple[str, torch.dtype],
    rows: Sequence[AnyRow],
    judged: Sequence[Case],
    settings: RmConfig,
    work: Path,
    every: tuple[int, int],
    lora: LoraConfig | None,
) -> Member:
    """Train and save one reward model; the first as if it were the only one, the others by seeds and a log of their own."""
    seed = derive_seed("rm member", run.seed, number) if number else run.seed
    if settings.bootstrap:
        dice = Random(derive_seed("rm bootstrap", run.seed, number))
        rows = [rows[dice.randrange(len(rows))] for _ in rows]
    model: AnyRewardModel
    if settings.head == "likelihood":
        model = LikelihoodModel(load_model(folder, *where), turn_of(load_tokenizer(folder)), settings.beta)
        figures = fit_adapters(model.backbone, lora, seed)
    else:
        model = RewardModel.from_model(load_model(folder, *where), derive_seed("rm head", seed))
        figures = fit_adapters(model, lora, seed, also=("score",))
    own = work / f"checkpoint-{number}" if number else work
    own.mkdir(exist_ok=True)
    _train(run, f"{name}/member-{number}" if number else name, model, rows, judged, settings, own, every, seed)
    # Before it is measured, so that the figures are those of the saved model.
    keep_adapter(
        model.backbone if isinstance(model, LikelihoodModel) else model,
        work / f"member-{number}" if number else work,
        folder,
    )
    scores = score_cases(model, judged, settings)
    best = best_scores(judged, scores) if settings.centre == "best" else ()
    meaning = Meaning(settings.says, settings.sees, head=settings.head)
    meaning = replace(meaning, beta=settings.beta) if settings.head == "likelihood" else meaning
    meaning = calibrated(meaning, [s for row in scores for s in row], best)
    save_reward_model(model, work / member_name(number), load_tokenizer(folder), meaning)
    return Member(scores, meaning, figures)


def _report(
    judged: Sequence[Case], scores: Sequence[list[list[float]]], meanings: Sequence[Meaning], settings: RmConfig
) -> dict[str, Any]:
    """The calibration of the one model; of several, that of their mean with each member's accuracy and the disagreement."""
    if len(scores) == 1:
        return calibration(judged, scores[0], settings)
    pooled, spread = pool([[s for row in member for s in row] for member in scores], meanings)
    found = iter(pooled)
    report = calibration(judged, [[next(found) for _ in case.row.sides] for case in judged], settings)
    alone = [calibration(judged, member, settings)["accuracy"]["value"] for member in scores]
    return report | {"members": len(scores), "member_accuracies": alone, "disagreement": fmean(spread)}


def _train(
    run: Run,
    name: str,
    model: AnyRewardModel,
    rows: Sequence[AnyRow],
    judged: Sequence[Case],
    settings: RmConfig,
    work: Path,
    every: tuple[int, int],
    seed: int,
) -> None:
    """Train it, from the checkpoint in `work` if there is one; `every`: updates between held-out figures, and checkpoints."""
    optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
    start, total = restore(work, optimizer)[0]["step"], rm_steps(rows, settings)
    with Progress(total, name, "updates", start=start) as progress:
        _seed_dropout(seed, start)
        for step in train_rm(model, optimizer, rows, settings, seed, start, work):
            metrics = dict(step.metrics)
            if step.n % every[0] == 0 or step.n == total:
                metrics |= held_out_figures(model, judged, settings)
            run.log(name, step.n, metrics)
            if step.n % every[1] == 0 or step.n == total:
                save_checkpoint(work, optimizer.state(), {"step": step.n, "version": optimizer.version})
            progress.update(step.n, loss=step.metrics["rm/loss"], accuracy=step.metrics["rm/accuracy"])
            _seed_dropout(seed, step.n)


def _seed_dropout(seed: int, step: int) -> None:
    """Before update `step` (0-based): the adapters' dropout is the only user of the global generator."""
    torch.manual_seed(derive_seed("dropout", seed, step))
