"""The stages of RLHF up to its reward: demonstrations, SFT, comparisons, reward models and what counts as 0 to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from dunwu.data.chat import parse_reply, read_chat, read_rankings, write_chat, write_rankings
from dunwu.data.tokenizer import load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.evaluate import sample_groups
from dunwu.log import Run, read_json
from dunwu.model.hf import from_pretrained
from dunwu.model.runtime import resolve_device
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.rlhf_config import DemonstrationConfig, Judges, RlhfConfig
from dunwu.recipes.rm import reward_stage
from dunwu.recipes.rm_cases import measured as judged_pairs
from dunwu.recipes.rm_cases import read_files
from dunwu.recipes.sft import HELD_OUT, TRAIN, fine_tune
from dunwu.recipes.sft_config import SftRunConfig
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks.frames import Framed
from dunwu.train.config import SftConfig
from dunwu.train.ensemble import Ensemble, Scoring, member_folders
from dunwu.train.preference import PreferenceTask, PreferenceWeights
from dunwu.train.reward_model import Scorer
from dunwu.types import Message, Preference, Problem, Ranking, SamplingParams, derive_seed
from dunwu.world.general import General, sft_examples
from dunwu.world.labelers import Crowd, bayes_accuracy
from dunwu.world.labelers import agreement as labelers_agree

RANKED, RANKED_HELD_OUT, ZERO = "rankings.jsonl", "held-out.jsonl", "zero.json"
VERSION = "1"
"""Of the code of the data stages and of the world's data they take; raise it when either makes other rows. Models computed
otherwise (`COMPUTED`) rename `comparisons` and `reward-zero` without it: the key of the model they ask is one of their inputs."""
JUDGED = "2"
"""Of the code that measures the reward models."""


# ---- 1. demonstrations, and the model that imitates them --------------------------------------


class ImitationConfig(Protocol):
    """What the two stages of imitation read of a recipe's config."""

    @property
    def demonstrations(self) -> DemonstrationConfig: ...
    @property
    def chinese(self) -> float: ...
    @property
    def sft(self) -> SftConfig: ...
    @property
    def save_every(self) -> int: ...
    @property
    def device(self) -> str: ...


def demonstrations(run: Run, config: ImitationConfig) -> Artifact:
    """Conversations as people would write them for the model, good and less good, without thinking; split."""
    wanted = config.demonstrations

    def build(work: Path) -> dict[str, object]:
        seed = derive_seed("demonstrations", run.seed)
        rows = [
            replace(row, messages=(*row.messages[:-1], replace(row.messages[-1], reasoning_content=None)))
            for row in sft_examples(seed, wanted.rows, config.chinese, wanted.clean)
        ]
        held_out = max(1, round(wanted.rows * wanted.held_out))
        write_chat(work / HELD_OUT, rows[:held_out])
        write_chat(work / TRAIN, rows[held_out:])
        return {"train": len(rows) - held_out, "held_out": held_out}

    key = {"demonstrations": wanted, "chinese": config.chinese, "seed": run.seed}
    return run.stage("demonstrations", build, key, version=VERSION)


def fine_tuned(run: Run, config: ImitationConfig, base: Artifact, demos: Artifact) -> Artifact:
    """The SFT model: the base taught the demonstrations."""
    settings = SftRunConfig(sft=config.sft, save_every=config.save_every, device=config.device)
    return fine_tune(run, settings, base.path / MODEL, demos)


# ---- 2. comparisons, and the models that predict them -----------------------------------------


def asked(config: RlhfConfig) -> Framed:
    """The world's general requests in the chat format, judged by its truth."""
    return Framed(General(chinese=config.chinese), "chat")


def crowd_of(run: Run, config: RlhfConfig) -> Crowd:
    """The labelers of a run."""
    wanted = config.comparisons
    return Crowd.of(wanted.labelers, wanted.noise, 0.0, wanted.length_taste, run.seed, General(chinese=config.chinese))


def comparisons(run: Run, config: RlhfConfig, sft: Artifact) -> Artifact:
    """K replies of the SFT model to each prompt, ranked by one labeler; and as many held-out prompts."""
    wanted = config.comparisons

    def build(work: Path) -> dict[str, object]:
        seed = derive_seed("comparisons", run.seed)
        task, crowd = asked(config), crowd_of(run, config)
        encoder = load_tokenizer(sft.path / MODEL)
        engine = Engine(from_pretrained(sft.path / MODEL, resolve_device(config.device)), encoder)
        counts: dict[str, object] = {}
        for file, split, count in ((RANKED, "train", wanted.prompts), (RANKED_HELD_OUT, "valid", wanted.held_out)):
            drawn = {p.id: p for p in (task.problem(split, seed, index) for index in range(count))}
            params = SamplingParams(max_tokens=config.ppo.max_tokens)
            groups = sample_groups(engine, encoder, task, list(drawn.values()), wanted.replies, params, seed)
            talks = [(g.problem, [parse_reply(r.completion.text.strip()) for r in g.rollouts]) for g in groups]
            rows = list(_ranked(crowd, talks))
            write_rankings(work / file, rows)
            name = Path(file).stem
            counts |= {name: len(rows), f"{name}_alike": len(drawn) - len(rows), f"{name}_again": count - len(drawn)}
        return counts

    key = {"comparisons": wanted, "max_tokens": config.ppo.max_tokens, "chinese": config.chinese, "seed": run.seed}
    return run.stage("comparisons", build, key, [sft], version=VERSION)


def _ranked(crowd: Crowd, talks: Sequence[tuple[Problem, list[Message]]]) -> Iterator[Ranking]:
    """Rankings of the prompts that have two different replies with content."""
    for problem, replies in talks:
        said = [reply for reply in replies if reply.content.strip()]
        if len({reply.content for reply in said}) > 1:
            yield crowd.rank(problem, said)


def reward_models(run: Run, config: RlhfConfig, sft: Artifact, ranked: Artifact) -> Artifact:
    """Reward models from the SFT model, alike but for their seeds: all pairs of a prompt in one element (eq. 1)."""
    read = partial(read_files, [str(ranked.path / RANKED)], config.rm.kind)
    inputs = [sft, ranked]
    every = config.save_every
    return reward_stage(
        run, "rm", sft.path / MODEL, read, config.rm, {}, inputs, device=config.device, save_every=every
    )


def reward_zero(run: Run, config: RlhfConfig, models: Artifact, demos: Artifact, ranked: Artifact) -> Artifact:
    """What each reward model gives the held-out demonstrations, which shall be 0; and how good the judges are."""
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        scorers = [Scorer.load(folder, device) for folder in member_folders(models.path)]
        examples, _ = read_chat(demos.path / HELD_OUT)
        means = [fmean(scorer.score([example.messages for example in examples])) for scorer in scorers]
        _recentre(scorers, means)
        pairs = _pairs(read_rankings(ranked.path / RANKED_HELD_OUT)[0])
        crowd = crowd_of(run, config)
        chances = [crowd.chance(pair.meta["truth"], [pair.chosen.content, pair.rejected.content]) for pair in pairs]
        kinds: list[Judges] = ["one", "mean", "worst"] if len(scorers) > 1 else ["one"]
        encoder = load_tokenizer(models.path / MODEL)
        rows = [
            {"judges": kind} | judged_pairs(_together(scorers, kind, alone=False), encoder, pairs, chances)
            for kind in kinds
        ]
        best = bayes_accuracy(chances)
        found = {"means": means, "pairs": len(pairs), "bayes_accuracy": best, "labelers": labelers_agree(chances)}
        write_atomically(work / ZERO, json.dumps(found | {"rows": rows}, indent=1) + "\n")
        return {"accuracy": rows[0]["accuracy"]["value"], "bayes_accuracy": best}

    key = {"crowd": config.comparisons, "chinese": config.chinese, "seed": run.seed}
    return run.stage("reward-zero", build, key, [models, demos, ranked], version=JUDGED)


def _pairs(rankings: Sequence[Ranking]) -> list[Preference]:
    """Every two replies of every ranking, the better first."""
    found = []
    for row in rankings:
        truth = row.meta["truth"]
        for a, better in enumerate(row.replies):
            for b, worse in enumerate(row.replies[a + 1 :], a + 1):
                meta = {**row.meta, "truth": [truth[a], truth[b]]}
                found.append(Preference(row.messages, better, worse, meta))
    return found


def _recentre(scorers: Sequence[Scorer], means: Sequence[float]) -> None:
    """Let these raw scores count as 0."""
    for scorer, mean in zip(scorers, means):
        scorer.meaning = replace(scorer.meaning, mean=mean)


def _together(scorers: Sequence[Scorer], kind: Judges, alone: bool = True) -> Any:
    """The judges of a kind; one of them alone is no ensemble unless it is wanted as one."""
    if kind == "one":
        return scorers[0] if alone else Ensemble(scorers[:1])
    return Ensemble(scorers, kind)


def rewarded(config: RlhfConfig, kind: Judges, models: Artifact, zero: Artifact) -> PreferenceTask:
    """The requests, judged by reward models whose 0 is the demonstrations', in standard deviations of held-out replies."""
    means = read_json(zero.path / ZERO)["means"]
    folders = member_folders(models.path)[: 1 if kind == "one" else None]
    scorers = [Scorer.load(folder, resolve_device(config.device)) for folder in folders]
    _recentre(scorers, means)
    judges: Scoring = _together(scorers, kind)
    weights = PreferenceWeights(helpful=1.0, safety=0.0, format=0.0, language=0.0, clip=config.reward_clip)
    return PreferenceTask(asked(config), judges, weights=weights)
