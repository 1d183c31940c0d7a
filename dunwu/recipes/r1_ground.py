"""What R1 stands on: crawled pages, cleaned; their tokenizer, tokens and base; or a model folder the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dunwu.data.tokenizer import load_tokenizer
from dunwu.log import Run
from dunwu.model.config import PRESETS
from dunwu.recipes import stages
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_crawl import cleaned, crawled
from dunwu.recipes.r1_tasks import reasoning_parts
from dunwu.rollout.endpoint import is_url
from dunwu.store import Artifact, resolve_model
from dunwu.types import DunwuError


@dataclass(frozen=True)
class Ground:
    """`vocabulary` and `tokens` are None where the user gave the base."""

    base: Artifact
    vocabulary: Artifact | None = None
    tokens: Artifact | None = None
    cleaned: Artifact | None = None
    """The records of the crawl, if there was one."""


def check_inputs(config: R1Config) -> None:
    """Read what the user gave before anything long begins, so that its faults are told now.

    Raises:
        DunwuError: a model folder, tokenizer or task that cannot be used.
    """
    for task, _ in reasoning_parts(config.tasks, "chat", 1.0):
        for split in ("train", "valid", "test"):
            task.problem(split, 0, 0)
    judge = "" if is_url(config.preferences.judge) else config.preferences.judge
    for folder in filter(None, (config.base, judge, *given_students(config))):
        encoder = load_tokenizer(resolve_model(folder))
        if len(encoder.stop_ids) < 2:
            raise DunwuError(f"the tokenizer of {folder} has no <|im_end|> token", "use a model with a chat format")
    if config.base and len(given_students(config)) < len(config.students.models):
        raise DunwuError(
            "students made from a size need the world's pages, and --base has none",
            "name model folders: --students.models FOLDER …, or none: --students.models",
        )


def given_students(config: R1Config) -> list[str]:
    """Those students that are model folders, not sizes."""
    return [name for name in config.students.models if name not in PRESETS]


def ground(run: Run, config: R1Config) -> Ground:
    """Crawl, records, tokenizer, shards and base of the world, or the given base alone."""
    if config.base:
        return Ground(given_model(run, "base", config.base))
    seed = stages.base_seed(run.seed, config)
    records = None
    if config.crawl.pages:
        records = cleaned(run, config.crawl, crawled(run, config.crawl, config.world, seed))
    vocabulary = stages.tokenizer(run, config, seed, records)
    tokens = stages.shards(run, config, seed, vocabulary, records)
    return Ground(stages.base(run, config, seed, vocabulary, tokens), vocabulary, tokens, records)


class BaseConfig(stages.PagesConfig, Protocol):
    """What `base_of` reads of a recipe's config."""

    @property
    def base(self) -> str: ...


def base_of(run: Run, config: BaseConfig) -> tuple[Artifact, Artifact | None]:
    """The base a study starts from: trained on the world's pages, with the tokens it was trained on; or the user's, without."""
    if config.base:
        return given_model(run, "base", config.base), None
    seed = stages.base_seed(run.seed, config)
    vocabulary = stages.tokenizer(run, config, seed)
    tokens = stages.shards(run, config, seed, vocabulary)
    return stages.base(run, config, seed, vocabulary, tokens), tokens


def given_model(run: Run, stage: str, name: str) -> Artifact:
    """A user's model folder as an artifact: a link, keyed by the content of its files."""
    folder = resolve_model(name, run.store).resolve()

    def build(work: Path) -> dict[str, object]:
        (work / MODEL).unlink(missing_ok=True)
        (work / MODEL).symlink_to(folder, target_is_directory=True)
        return {"folder": str(folder)}

    return run.stage(stage, build, {"files": stages.model_digest(folder)})
