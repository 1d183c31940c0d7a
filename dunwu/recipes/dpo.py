"""Preference training on a user's own pairs: files → rows, every bad row named → model, and its held-out preferences.

`dpo_stage` is what recipes share; `run` feeds it a user's files. An artifact holds `model/`, `preferences.json` (the
implicit reward on held-out rows, judged as a reward model is: `dunwu.eval.calibration`) and `bad_rows.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dunwu import machine
from dunwu.data.chat import BadRow, each_chat, each_preference, require_turns
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.calibration import ScoredPair, pairwise_report, pointwise_report
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained, resolve_dtype, save_model, stop_ids_of
from dunwu.model.lora_config import LoraConfig
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.adapters import fit_adapters, keep_adapter
from dunwu.recipes.dpo_config import DpoRunConfig
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.recipes.rm import keep_report
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.recipes.user_data import Unusable, tell_bad_rows, write_bad_rows
from dunwu.recipes.user_models import model_folder
from dunwu.store import Artifact
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.config import Precision
from dunwu.train.dpo import Measured, dpo_steps, figures, measure, train_dpo, with_reference
from dunwu.train.dpo_config import DpoConfig
from dunwu.train.dpo_rows import Row, label_row, pair_row, with_others
from dunwu.train.optim import MasterAdamW
from dunwu.train.rm_rows import held_out_rows
from dunwu.types import ChatExample, DunwuError, Message, Preference

PREFERENCES = "preferences.json"


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


def run(run: Run, config: DpoRunConfig) -> None:
    """The recipe `dpo`."""
    config.validate()
    prepare_torch(config.device)
    folder = model_folder(run, config.model)
    require_turns(load_tokenizer(folder))
    made = dpo_stage(
        run,
        "dpo",
        folder,
        partial(read_files, config.data, singles=config.dpo.loss == "kto"),
        config.dpo,
        {"model": model_digest(folder), "files": [[file, file_digest(file)] for file in config.data]},
        device=config.device,
        precision=config.precision,
        held_out_every=config.held_out_every,
        save_every=config.save_every,
        lora=config.lora,
    )
    tell_bad_rows(run, made)
    seen = made.meta["metrics"]
    said = {"scores by": f"the implicit reward of {config.dpo.loss}", "loss": _change(seen, "loss")}
    keep_report(run, made, PREFERENCES, said | {"better reply is the likelier one": _change(seen, "ranking")})
    span = f"[{seen['accuracy_low']:.3f}, {seen['accuracy_high']:.3f}]"
    before = f"ranking {seen['ranking_before']:.3f} → {seen['ranking']:.3f}, " if "ranking" in seen else ""
    shown = f"{before}accuracy {seen['accuracy']:.3f} {span}, margin {seen['margin']:+.3f}"
    print(f"{made.path / MODEL}: held-out {shown} on {seen['held_out_rows']} rows")


def _change(seen: Mapping[str, Any], name: str) -> str:
    """A held-out figure before and after."""
    return f"{seen[f'{name}_before']:.3f} → {seen[name]:.3f}" if name in seen else "–"


def read_files(files: Sequence[str], singles: bool = False) -> tuple[list[Source], list[Unusable]]:
    """The rows of JSONL files, and those that cannot be read.

    Args:
        singles: labelled conversations serve as well as pairs.
    """
    good: list[Source] = []
    bad: list[Unusable] = []
    for file in files:
        for line, row in each_judged(Path(file)) if singles else each_preference(Path(file)):
            if isinstance(row, BadRow):
                bad.append(Unusable(file, line, row.reason))
            else:
                good.append(Source(row, file, line))
    return good, bad


def each_judged(path: Path) -> Iterator[tuple[int, Preference | ChatExample | BadRow]]:
    """(line, pair, labelled conversation or why neither) of every row: a pair is what has a field `chosen`."""
    for (line, pair), (_, chat) in zip(each_preference(path), each_chat(path), strict=True):
        no_pair = isinstance(pair, BadRow) and pair.reason == "no field 'chosen'"
        yield line, chat if no_pair else pair


def dpo_stage(
    run: Run,
    name: str,
    folder: Path,
    read: Callable[[], tuple[list[Source], list[Unusable]]],
    settings: DpoConfig,
    key: Mapping[str, Any],
    inputs: Sequence[Artifact] = (),
    device: str = "auto",
    precision: Precision = "auto",
    held_out_every: int = 20,
    save_every: int = 20,
    lora: LoraConfig | None = None,
) -> Artifact:
    """Train the model of `folder` on preferences; checkpoints on the way, held-out preferences before, on the way, after.

    Args:
        read: the rows, and those already found unusable; called in the build only.
        key: what decides model and rows, besides `inputs`.
        held_out_every: updates between held-out figures.
        save_every: updates between checkpoints.
        lora: if its rank is not 0, adapters are trained instead of the model.

    Raises:
        DunwuError: no usable rows, or of one conversation only; tokenizer or context exceed the model; numbers go bad.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(precision, device, machine.cpu_flags())

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
        model = from_pretrained(folder, device, dtype)
        check_fit(model, encoder, settings.context)
        sources, bad = read()
        cases, unusable = usable(encoder, sources, settings)
        bad = sorted([*bad, *unusable], key=lambda row: (row.file, row.line))
        write_bad_rows(work, bad, len(cases))
        flags = held_out_rows([case.asked for case in cases], settings.held_out, run.seed)
        judged = [case for case, held_out in zip(cases, flags, strict=True) if held_out]
        rows = [case.row for case, held_out in zip(cases, flags, strict=True) if not held_out]
        adapted = fit_adapters(model, lora, run.seed)
        before, after = _train(run, name, model, rows, judged, settings, work, held_out_every, save_every)
        report = preferences(judged, after, settings)
        keep_adapter(model, work, folder)
        save_model(model, work / MODEL, encoder.end_id, encoder.stop_ids)
        encoder.for_chat().save(work / MODEL, model.config.max_position_embeddings)
        write_atomically(work / PREFERENCES, json.dumps(report, indent=1) + "\n")
        counts = {"rows": len(rows), "held_out_rows": len(judged), "bad_rows": len(bad)}
        return (
            counts
            | {"updates": dpo_steps(rows, settings)}
            | headline(report, before, figures(after, settings))
            | adapted
        )

    lineage = {"dpo": settings, "seed": run.seed, "dtype": str(dtype), "held_out_every": held_out_every, **key}
    lineage |= lora.key if lora else {}
    return run.stage(name, build, lineage, inputs, version=COMPUTED)


def check_fit(model: Transformer, encoder: Tokenizer, context: int) -> None:
    """Raise DunwuError if tokenizer or context are larger than what the model was made for."""
    if encoder.vocab_size > model.config.vocab_size:
        what = f"the tokenizer has {encoder.vocab_size} ids, the model {model.config.vocab_size}"
        raise DunwuError(what, "give the tokenizer that the model was trained with")
    if context > model.config.max_position_embeddings:
        what = f"context {context} is longer than the model's {model.config.max_position_embeddings}"
        raise DunwuError(what, f"use --dpo.context {model.config.max_position_embeddings}")


def usable(encoder: Tokenizer, sources: Sequence[Source], settings: DpoConfig) -> tuple[list[Case], list[Unusable]]:
    """Rows as ids, and those that cannot be used with the reason: too long, no label, two replies of the same tokens."""
    cases: list[Case] = []
    bad: list[Unusable] = []
    for source in sources:
        try:
            cases.append(_case(encoder, source.row, settings))
        except DunwuError as error:
            bad.append(Unusable(source.file, source.line, str(error)))
    return cases, bad


def _case(encoder: Tokenizer, row: Preference | ChatExample, settings: DpoConfig) -> Case:
    if isinstance(row, Preference):
        made, asked = pair_row(encoder, row), row.messages
    else:
        made, asked = label_row(encoder, row), row.messages[:-1]
    if made.length > settings.context:
        raise DunwuError(f"{made.length} tokens, the context is {settings.context}")
    return Case(made, asked, _truth(row.meta) if isinstance(row, Preference) else None)


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
    model: Transformer,
    rows: Sequence[Row],
    judged: Sequence[Case],
    settings: DpoConfig,
    work: Path,
    held_out_every: int,
    save_every: int,
) -> tuple[dict[str, float], list[Measured]]:
    """(held-out figures before, held-out rows after). The model is the reference until the checkpoint is loaded."""
    held_out = [case.row for case in judged]
    if settings.loss == "kto":
        rows, held_out = with_others(rows, run.seed), with_others(held_out, run.seed)
    rows, held_out = with_reference(model, rows, settings), with_reference(model, held_out, settings)
    before = figures(measure(model, held_out, settings), settings)
    optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
    start, total = restore(work, optimizer)[0]["step"], dpo_steps(rows, settings)
    if not start:
        run.log(name, 0, _held_out(before))
    with Progress(total, name, "updates", start=start) as progress:
        for step in train_dpo(model, optimizer, rows, settings, run.seed, start, work):
            metrics = dict(step.metrics)
            if step.n % held_out_every == 0 or step.n == total:
                metrics |= _held_out(figures(measure(model, held_out, settings), settings))
            run.log(name, step.n, metrics)
            if step.n % save_every == 0 or step.n == total:
                save_checkpoint(work, optimizer.state(), {"step": step.n, "version": optimizer.version})
            progress.update(step.n, loss=step.metrics["dpo/loss"], accuracy=step.metrics["dpo/accuracy"])
    return before, measure(model, held_out, settings)


def _held_out(found: Mapping[str, float]) -> dict[str, float]:
    return {f"dpo/held_out_{name}": value for name, value in found.items()}


def preferences(cases: Sequence[Case], measured: Sequence[Measured], settings: DpoConfig) -> dict[str, Any]:
    """The report on held-out rows, of `dunwu.eval.calibration`: of the pairs; where there are none, of the labels."""
    pairs, scores, labels, lengths = [], [], [], []
    for case, each in zip(cases, measured, strict=True):
        sizes = [len(side) for side in case.row.sides]
        if each.good is not None and each.bad is not None:
            pairs.append(ScoredPair(each.good, each.bad, sizes[0], sizes[1], case.asked, case.truth))
        else:
            scores.append(each.good if each.good is not None else each.bad or 0.0)
            labels.append(each.good is not None)
            lengths.append(sizes[0])
    report = pairwise_report(pairs) if pairs else pointwise_report(scores, labels, lengths)
    return {"loss": settings.loss, **report}


def headline(report: Mapping[str, Any], before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, object]:
    """The figures that stand in the list of stages."""
    accuracy = report["accuracy"]
    found: dict[str, object] = {
        "accuracy": accuracy["value"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "margin": after["margin"],
        "loss_before": before["loss"],
        "loss": after["loss"],
    }
    if "ranking" in after:
        found |= {"ranking_before": before["ranking"], "ranking": after["ranking"]}
    truth = report.get("agreement")
    if truth and truth["agreement"]:
        found["agreement_with_truth"] = truth["agreement"]["value"]
    return found
