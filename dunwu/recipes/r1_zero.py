"""R1-Zero from scratch: pages → tokenizer → base → GRPO with rule rewards only → evidence → report."""

from __future__ import annotations

from dunwu.log import Run
from dunwu.model.runtime import prepare_torch
from dunwu.recipes import stages
from dunwu.recipes.configs import R1ZeroConfig
from dunwu.recipes.evidence import gather, read_evidence, write_evidence
from dunwu.recipes.pretraining import MODEL
from dunwu.store import Artifact, resolve_model


def run(run: Run, config: R1ZeroConfig) -> None:
    """The recipe `r1-zero`."""
    config.validate()
    prepare_torch(config.device)
    story(run, config)


def story(run: Run, config: R1ZeroConfig) -> Artifact:
    """Every stage of R1-Zero; returns the evidence."""
    stages.check_inputs(config)
    base: Artifact | None = None
    if config.base:
        base_folder = resolve_model(config.base, run.store)
    else:
        seed = stages.base_seed(run.seed, config)
        vocabulary = stages.tokenizer(run, config, seed)
        tokens = stages.shards(run, config, seed, vocabulary)
        base = stages.base(run, config, seed, vocabulary, tokens)
        base_folder = base.path / MODEL
    zero = stages.r1_zero(run, config, base_folder, base)
    evidence = gather(run, config, base_folder, zero)
    write_evidence(run, read_evidence(evidence))
    return evidence
