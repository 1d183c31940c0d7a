"""Expert iteration alone: any model folder, any task that verifies, as many rounds as wanted.

    expert-0            held-out accuracy of the model that is given
    expert-samples-N    what the model so far writes, and what is kept of it: `examples.jsonl`
    expert-N            SFT on that, of the given model or of the model so far; held-out accuracy

Every round is two stages: more rounds find the earlier ones in the store, and a killed run goes on in its round.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dunwu.data.chat import Encoded
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained, save_model, stop_ids_of
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.distill import check_room, looked_at
from dunwu.recipes.expert_config import ExpertRunConfig
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.recipes.reinforce import held_out_point
from dunwu.recipes.sft import check_fit
from dunwu.recipes.stages import data_digest, file_digest, model_digest
from dunwu.recipes.user_models import model_folder
from dunwu.rollout.cache import in_chunks
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks import get_task, task_options
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.expert_iteration import Harvest, harvest, hinted, questions
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft, sft_steps, trainable
from dunwu.types import DunwuError, SamplingParams, Task, derive_seed

EXAMPLES = "examples.jsonl"


def run(run: Run, config: ExpertRunConfig) -> None:
    """The recipe `expert`."""
    config.validate()
    task = get_task(config.task, **task_options(config.options, config.data))
    given = model_folder(run, config.model)
    asked = looked_at(task, run.seed)
    if config.expert.rationalize == "hint":
        asked = [hinted(task, problem) for problem in asked]
    check_room([given], asked, config.expert.max_tokens, "expert.max_tokens")
    prepare_torch(config.device)
    last = measure(run, config, task, given)
    accuracies, harvests = [last.meta["metrics"]["held_out_accuracy"]], []
    parent: Artifact | None = None
    for n in range(1, config.rounds + 1):
        harvests.append(samples(run, config, task, given, parent, n))
        learned_from = harvests if config.accumulate else harvests[-1:]
        parent = last = learn(run, config, task, given, None if config.from_start else parent, learned_from, n)
        accuracies.append(last.meta["metrics"]["held_out_accuracy"])
    curve = " → ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    print(f"{last.path / MODEL}: held-out accuracy {curve} in {config.rounds} rounds")


def measure(run: Run, config: ExpertRunConfig, task: Task, folder: Path) -> Artifact:
    """The given model's held-out accuracy."""

    def build(work: Path) -> dict[str, object]:
        model, encoder = _open(folder, config)
        return _held_out(run, config, task, model, encoder, 0)

    key = {"model": model_digest(folder), "task": _task_key(config), **_curve_key(config)}
    return run.stage("expert-0", build, key, version=COMPUTED)


def samples(run: Run, config: ExpertRunConfig, task: Task, given: Path, parent: Artifact | None, n: int) -> Artifact:
    """Round `n`'s samples of the model so far, and what is kept of them."""
    name, asked = f"expert-samples-{n}", questions(task, config.expert, run.seed, n)

    def build(work: Path) -> dict[str, object]:
        model, encoder = _open(parent.path / MODEL if parent else given, config)
        engine = Engine(model, encoder)

        def ask(start: int, end: int) -> list[Any]:
            found = harvest(engine, encoder, task, asked[start:end], config.expert, run.seed, n)
            run.log_groups(name, end, found.groups)
            return [_row(found)]

        counts: Counter[str] = Counter()
        examples: list[dict[str, Any]] = []
        with Progress(len(asked), name, "problems") as progress:
            for (row,) in in_chunks(work / "scratch", len(asked), config.chunk, ask):
                counts += Counter(row["counts"])
                examples += row["examples"]
                progress.update(counts["problems"], kept=len(examples))
        figures = _figures(counts, len(examples))
        run.log("expert", n, {f"expert/{key}": value for key, value in figures.items()})
        if not examples:
            what = f"round {n} kept none of {counts['samples']} samples, {counts['right']} of them right"
            raise DunwuError(
                what, "start from a better model, raise --expert.samples, or use --expert.rationalize gold"
            )
        write_atomically(work / EXAMPLES, "".join(json.dumps(row) + "\n" for row in examples))
        dropped = {name: n for name, n in sorted(counts.items()) if name.startswith(("dropped/", "rationalise/"))}
        return {**figures, **dropped}

    key: dict[str, Any] = {"expert": config.expert, "task": _task_key(config), "round": n, "seed": run.seed}
    key |= {} if parent else {"model": model_digest(given)}
    return run.stage(name, build, key, [parent] if parent else [], version=COMPUTED)


def learn(
    run: Run,
    config: ExpertRunConfig,
    task: Task,
    given: Path,
    parent: Artifact | None,
    harvests: Sequence[Artifact],
    n: int,
) -> Artifact:
    """Round `n`'s model: SFT of the given one, or of `parent`, on what was kept; its held-out accuracy."""
    name, settings = f"expert-{n}", config.sft

    def build(work: Path) -> dict[str, object]:
        model, encoder = _open(parent.path / MODEL if parent else given, config)
        check_fit(model, encoder, settings.context)
        # Rounds that ask the same problems may keep the same samples; each counts once.
        examples = list(dict.fromkeys(example for made in harvests for example in _read(made.path / EXAMPLES)))
        optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
        state, _ = restore(work, optimizer)
        total, loss = sft_steps(examples, settings), float(state.get("loss", 0.0))
        seed = derive_seed("expert-sft", run.seed, n)
        with Progress(total, name, "updates", start=state["step"]) as progress:
            for step in sft(model, optimizer, examples, settings, seed, state["step"], work):
                run.log(name, step.n, step.metrics)
                loss = step.metrics["sft/loss"]
                if step.n % config.save_every == 0 or step.n == total:
                    record = {"step": step.n, "version": optimizer.version, "loss": loss}
                    save_checkpoint(work, optimizer.state(), record)
                progress.update(step.n, loss=loss)
        save_model(model, work / MODEL, encoder.end_id, encoder.stop_ids)
        encoder.save(work / MODEL, model.config.max_position_embeddings)
        figures = {"examples": len(trainable(examples, settings)), "updates": total, "loss": loss}
        return figures | _held_out(run, config, task, model, encoder, n)

    key: dict[str, Any] = {"sft": settings, "task": _task_key(config), "seed": run.seed, **_curve_key(config)}
    key |= {"round": n} | ({} if parent else {"model": model_digest(given)})
    return run.stage(name, build, key, [*harvests, *([parent] if parent else [])], version=COMPUTED)


def _open(folder: Path, config: ExpertRunConfig) -> tuple[Transformer, Tokenizer]:
    encoder = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
    return from_pretrained(folder, resolve_device(config.device)), encoder


def _held_out(
    run: Run, config: ExpertRunConfig, task: Task, model: Transformer, encoder: Tokenizer, n: int
) -> dict[str, object]:
    model.eval()
    params = SamplingParams(max_tokens=config.expert.max_tokens)
    point = held_out_point(run, Engine(model, encoder), encoder, task, config.held_out, params, n)
    return {"held_out_accuracy": point["eval/pass@1"]}


def _figures(counts: Counter[str], examples: int) -> dict[str, float]:
    shares = {"correct": counts["right"] / counts["samples"], "barren": counts["barren"] / counts["problems"]}
    names = ("problems", "samples", "right", "kept", "rationalised")
    return {name: float(counts[name]) for name in names} | shares | {"examples": float(examples)}


def _row(found: Harvest) -> dict[str, Any]:
    examples = [{"ids": list(e.ids), "learned": e.loss_mask.index(1)} for e in found.examples]
    return {"examples": examples, "counts": dict(found.counts)}


def _read(file: Path) -> Iterable[Encoded]:
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        ids, prompt = tuple(row["ids"]), row["learned"]
        yield Encoded(ids, (0,) * prompt + (1,) * (len(ids) - prompt))


def _task_key(config: ExpertRunConfig) -> list[Any]:
    task = file_digest(config.task) if config.task.endswith(".py") else config.task
    return [task, *sorted(config.options), data_digest(config.data)]


def _curve_key(config: ExpertRunConfig) -> dict[str, Any]:
    return {"held_out": config.held_out, "max_tokens": config.expert.max_tokens}
