"""Context extension: a model trained at a short context, YaRN, a short training at a long one, and what that did.

With a user's model and texts, two stages: the texts as tokens, the training. Without, the whole demonstration from notes
with facts to be found again. Either way three models are measured on the same held-out windows and needles: the model as it
is, the same weights under YaRN, and the trained one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dunwu.data.shards import PackedShards
from dunwu.data.sources import parse_sources
from dunwu.data.tokenizer import load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.extension import NAMES, depth_svg, headline, loss_svg, needle_svg, page, short_sighted
from dunwu.eval.report_extension import extension_verdicts
from dunwu.log import Run, read_json
from dunwu.model.config import ModelConfig
from dunwu.model.hf import load_model
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes import extending, pretrain
from dunwu.recipes.configs import PretrainRunConfig
from dunwu.recipes.extend_config import ExtendRunConfig
from dunwu.recipes.pretrain_sources import digest, is_mixture, mixed_shards, mixture_key
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.stages import model_digest
from dunwu.store import Artifact, resolve_model
from dunwu.train.pretrain import Windows

FILE = "context.json"


def run(run: Run, config: ExtendRunConfig) -> None:
    """The recipe `extend`."""
    config.validate()
    prepare_torch(config.device)
    if config.model:
        _extend_users(run, config)
    else:
        _demonstrate(run, config)


def _demonstrate(run: Run, config: ExtendRunConfig) -> None:
    vocabulary = extending.tokenizer(run, config)
    tokens = extending.shards(run, config, vocabulary)
    base = extending.base(run, config, vocabulary, tokens)
    original, shape = _shapes(base.path / MODEL, config)
    windows = extending.long_windows(tokens, vocabulary, config, run.seed)
    made = extending.extended(run, config, base.path / MODEL, shape, windows, {}, [base, tokens])
    held_out = tokens.path / extending.HELD_OUT
    spent = int(base.meta["metrics"]["tokens"])
    _evidence(run, config, base.path / MODEL, made, shape, original, held_out, [base, tokens], spent)


def _extend_users(run: Run, config: ExtendRunConfig) -> None:
    folder = resolve_model(config.model, run.store)
    original, shape = _shapes(folder, config)
    config.check_growth(original)
    plan = PretrainRunConfig(
        data=config.data, tokenizer=str(folder), held_out=config.held_out, pretrain=config.extend, device=config.device
    )
    sources = parse_sources(plan.data, tokenizer_known=True)
    files = [[source.name, source.path.suffix, digest(source)] for source in sources]
    vocabulary = pretrain.tokenizer(run, plan, sources, files)
    tokens = pretrain.shards(run, plan, sources, files, vocabulary)
    mixed = is_mixture(plan, sources)

    def windows() -> Windows:
        if mixed:
            return mixed_shards(tokens.path, plan, sources, load_tokenizer(folder).end_id, run.seed)
        return PackedShards(tokens.path / "train", config.extend.context, run.seed)

    key: dict[str, object] = {"model": model_digest(folder)} | (
        {"mixture": mixture_key(plan, sources)} if mixed else {}
    )
    made = extending.extended(run, config, folder, shape, windows, key, [tokens])
    _evidence(run, config, folder, made, shape, original, tokens.path / "held-out", [tokens], None)


def _shapes(folder: Path, config: ExtendRunConfig) -> tuple[int, ModelConfig]:
    """The context the model was trained at, and its shape under YaRN."""
    shape = load_model(folder).config
    original = extending.original_context(shape, config.original)
    return original, extending.lengthened(shape, config.extend.context, original)


def _evidence(
    run: Run,
    config: ExtendRunConfig,
    folder: Path,
    made: Artifact,
    shape: ModelConfig,
    original: int,
    held_out: Path,
    inputs: list[Artifact],
    base_tokens: int | None,
) -> None:
    """Measure the three models; figures and tables go into the run folder."""
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(folder)
        before = load_model(folder, device)
        trio: tuple[Callable[[], Transformer], ...] = (
            lambda: before,
            lambda: extending.in_shape(before, shape),
            lambda: load_model(made.path / MODEL, device),
        )
        models = []
        for name, load in zip(NAMES, trio):
            print(f"context: measuring {name}")
            found = extending.measure(load(), encoder, config, held_out, run.seed, own_text=bool(config.model))
            models.append({"name": name, **found})
        windows = extending.held_out_windows(
            held_out, config.extend.context, config.windows, encoder.end_id, whole=not config.model
        )
        reference = short_sighted(before, windows, original)
        result = {"original": original, "context": shape.max_position_embeddings, "windows": config.windows}
        spent = {"base_tokens": base_tokens, "extension_tokens": made.meta["metrics"]["tokens"]}
        record = {**result, **spent, "reference": reference, "models": models}
        write_atomically(work / FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return dict(headline(record))

    key = {"windows": config.windows, "needle": config.needle, "original": original, "seed": run.seed}
    key["reference"] = "the base, short-sighted"
    artifact = run.stage("context", build, key, [made, *inputs], version=COMPUTED)
    found = read_json(artifact.path / FILE)
    files = {FILE: json.dumps(found, ensure_ascii=False, indent=1) + "\n", "context.md": page(found)}
    files["context-loss.svg"] = loss_svg(found)
    evidence = {"extension": found, "verdicts": extension_verdicts(found)}
    files["evidence.json"] = json.dumps(evidence, ensure_ascii=False, indent=1) + "\n"
    if found["models"][0]["needles"]:
        files |= {"context-needles.svg": needle_svg(found), "context-depths.svg": depth_svg(found)}
    for name, text in files.items():
        write_atomically(run.dir / name, text)
    print(page(found))
    print(made.path / MODEL)
