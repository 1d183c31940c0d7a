"""Fine-tuning on a user's own conversations: files → chat data, every bad row named → model, and its held-out loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dunwu import machine
from dunwu.data.chat import BadRow, Encoded, each_chat, encode_conversation, read_chat, require_turns, write_chat
from dunwu.data.chat_rows import row_of
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained, resolve_dtype, save_model, stop_ids_of
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.adapters import fit_adapters, keep_adapter
from dunwu.recipes.pretraining import MODEL, restore
from dunwu.recipes.sft_config import SftRunConfig
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.recipes.user_data import Unusable, tell_bad_rows, write_bad_rows
from dunwu.recipes.user_models import model_folder
from dunwu.store import Artifact
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft, sft_loss, sft_steps, trainable
from dunwu.types import ChatExample, DunwuError, derive_seed

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"


def run(run: Run, config: SftRunConfig) -> None:
    """The recipe `sft`."""
    config.validate()
    prepare_torch(config.device)
    folder = model_folder(run, config.model)
    require_turns(load_tokenizer(folder))
    data = chat_data(run, config, folder)
    tell_bad_rows(run, data)
    trained = fine_tune(run, config, folder, data)
    figures = trained.meta["metrics"]
    held_out = ""
    if "valid_loss" in figures:
        held_out = f": held-out loss {figures['valid_loss_before']:.4f} → {figures['valid_loss']:.4f} nats per token"
    print(f"{trained.path / MODEL}{held_out}")


def chat_data(run: Run, config: SftRunConfig, folder: Path) -> Artifact:
    """The user's files as chat data of one form, split; rows that cannot be trained are named."""
    encoder = load_tokenizer(folder)

    def build(work: Path) -> dict[str, object]:
        examples, bad = _usable_rows(config, encoder)
        write_bad_rows(work, bad, len(examples))
        train, held_out = split(examples, config.held_out, run.seed)
        write_chat(work / TRAIN, train)
        write_chat(work / HELD_OUT, held_out)
        return {"rows": len(examples) + len(bad), "bad_rows": len(bad), "train": len(train), "held_out": len(held_out)}

    files = [[file, file_digest(file)] for file in config.data]
    settings = {"files": files, "held_out": config.held_out, "context": config.sft.context, "seed": run.seed}
    return run.stage("chat-data", build, settings | {"tokenizer": file_digest(str(folder / "tokenizer.json"))})


def fine_tune(run: Run, config: SftRunConfig, folder: Path, data: Artifact) -> Artifact:
    """Train the model of `folder` on the chat data; its held-out loss before, on the way and at the end."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device, machine.cpu_flags())

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(folder).stopping_at(stop_ids_of(folder))
        model = from_pretrained(folder, device, dtype)
        check_fit(model, encoder, config.sft.context)
        adapted = fit_adapters(model, config.lora, run.seed)
        train, held_out = (_encoded(data.path / name, encoder) for name in (TRAIN, HELD_OUT))
        figures = _train(run, config, work, model, train, held_out)
        keep_adapter(model, work, folder)
        save_model(model, work / MODEL, encoder.end_id, encoder.stop_ids)
        encoder.for_chat().save(work / MODEL, model.config.max_position_embeddings)
        return {"examples": len(train), **figures, "parameters": model.config.num_parameters, **adapted}

    settings = {"model": model_digest(folder), "sft": config.sft, "eval_every": config.eval_every, "seed": run.seed}
    settings |= {"dtype": str(dtype), **config.lora.key}
    return run.stage("sft", build, settings, [data], version=COMPUTED)


def _train(
    run: Run,
    config: SftRunConfig,
    work: Path,
    model: Transformer,
    train: Sequence[Encoded],
    held_out: Sequence[Encoded],
) -> dict[str, object]:
    settings = config.sft
    optimizer = MasterAdamW(model, settings.betas, weight_decay=settings.weight_decay)
    state, _ = restore(work, optimizer)
    if held_out and not state["step"]:
        state["before"] = sft_loss(model, held_out, settings)
        run.log("sft", 0, {"sft/valid_loss": state["before"]})
    total = sft_steps(train, settings)
    with Progress(total, "sft", "updates", start=state["step"]) as progress:
        for step in sft(model, optimizer, train, settings, run.seed, state["step"], work):
            last = step.n == total
            metrics = dict(step.metrics)
            if held_out and (step.n % config.eval_every == 0 or last):
                metrics["sft/valid_loss"] = state["valid"] = sft_loss(model, held_out, settings)
            run.log("sft", step.n, metrics)
            state |= {"step": step.n, "version": optimizer.version, "loss": metrics["sft/loss"]}
            if step.n % config.save_every == 0 or last:
                save_checkpoint(work, optimizer.state(), state)
            progress.update(step.n, loss=metrics["sft/loss"], tok_s=metrics["sft/tokens_per_second"])
    figures: dict[str, object] = {"updates": total, "loss": state["loss"]}
    if held_out:
        figures |= {"valid_loss_before": state["before"], "valid_loss": state["valid"]}
    return figures


def split(examples: Sequence[ChatExample], share: float, seed: int) -> tuple[list[ChatExample], list[ChatExample]]:
    """(trained, held out): a conversation's side follows from its text, so equal ones are never on both sides.

    Raises:
        DunwuError: too few conversations for both parts.
    """
    if not share:
        return list(examples), []
    numbers = [derive_seed("held-out", seed, json.dumps(row_of(example)["messages"])) for example in examples]
    last = sorted(numbers)[max(1, round(share * len(numbers))) - 1]
    train = [example for example, number in zip(examples, numbers) if number > last]
    if not train:
        raise DunwuError(f"{len(examples)} conversations are too few to hold some out", "use --held_out 0")
    return train, [example for example, number in zip(examples, numbers) if number <= last]


def check_fit(model: Transformer, encoder: Tokenizer, context: int) -> None:
    """Raise DunwuError if tokenizer or context are larger than what the model was made for."""
    if encoder.vocab_size > model.config.vocab_size:
        raise DunwuError(
            f"the tokenizer has {encoder.vocab_size} ids, the model {model.config.vocab_size}",
            "give the tokenizer that the model was trained with",
        )
    if context > model.config.max_position_embeddings:
        raise DunwuError(
            f"context {context} is longer than the model's {model.config.max_position_embeddings}",
            f"use --sft.context {model.config.max_position_embeddings}",
        )


def _usable_rows(config: SftRunConfig, encoder: Tokenizer) -> tuple[list[ChatExample], list[Unusable]]:
    good: list[ChatExample] = []
    bad: list[Unusable] = []
    for file in config.data:
        for line, row in each_chat(Path(file)):
            if isinstance(row, BadRow):
                bad.append(Unusable(file, line, row.reason))
                continue
            example = encode_conversation(encoder, row.messages)
            if trainable([example], config.sft):
                good.append(row)
            else:
                reason = f"{len(example.ids)} tokens, more than sft.context {config.sft.context}"
                bad.append(Unusable(file, line, reason))
    return good, bad


def _encoded(file: Path, encoder: Tokenizer) -> list[Encoded]:
    examples, bad = read_chat(file)
    if bad:
        raise DunwuError(f"{file} line {bad[0].line}: {bad[0].reason}", "delete the artifact; it is built again")
    return [encode_conversation(encoder, example.messages) for example in examples]
