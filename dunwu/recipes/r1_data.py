"""The data stages of R1: cold start, rejection sampling, preferences.

Each artifact holds JSONL files and `counts.json`: what came in, what was kept, and why the rest was not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from dunwu.data.chat import parse_reply, write_chat, write_preferences
from dunwu.data.tokenizer import load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.evaluate import sample_groups
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained
from dunwu.model.runtime import resolve_device
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_tasks import general_exercise, general_task, reasoning_task, tasks_key
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.rollout.cache import CachedChat, in_chunks
from dunwu.rollout.endpoint import Endpoint, is_url
from dunwu.rollout.engine import Engine
from dunwu.rollout.judge import Pair, judge_figures, judge_pairs
from dunwu.rollout.judge import preferences as clear_preferences
from dunwu.rollout.local import LocalChat
from dunwu.rollout.noisy_truth import NoisyTruth
from dunwu.rollout.selection import Kept, Selection, SelectionRules, example, mix, parts, select
from dunwu.store import Artifact, resolve_model
from dunwu.tasks.formats import THINK, THINK_END
from dunwu.tasks.frames import language_of, reply_text
from dunwu.tasks.rewrite import rewrite, translate
from dunwu.tasks.score import judge_groups
from dunwu.types import (
    ChatExample,
    ChatModel,
    Completion,
    Group,
    Message,
    Preference,
    Problem,
    Rollout,
    SamplingParams,
    Task,
    derive_seed,
)
from dunwu.world.general import safety_rows, scored_pairs, sft_examples

CHAT, PAIRS, SAFETY, COUNTS = "chat.jsonl", "pairs.jsonl", "safety.jsonl", "counts.json"
SERVED = 64
"""Answers of a served model that are asked for between two writes."""
VERSION = "4"
"""Of the code of these stages and of the world's data they take; raise it when either makes other rows."""


def cold_start(run: Run, config: R1Config, zero: Artifact) -> Artifact:
    """R1-Zero's samples at T = 1, correct and readable ones only, rewritten in the first person (R1, B.3.2)."""
    wanted = config.cold_start

    def build(work: Path) -> dict[str, object]:
        asked, talks = reasoning_task(config.tasks, "zero", 0.0), reasoning_task(config.tasks, "chat", 0.0)
        indices = range(wanted.problems)
        drawn = sample(run, config, "cold-start", zero, asked, indices, wanted.samples, config.zero.max_tokens, work)
        groups, translated = _translated(drawn)
        chosen = select(groups, SelectionRules(language=wanted.consistency, prefer="random", seed=run.seed))
        reasoning, refused = _rewritten(talks, indices, chosen.kept, run.seed)
        general = list(islice(_thoughtful(config, run.seed), round(wanted.examples * wanted.general)))
        surplus = max(0, len(reasoning) - (wanted.examples - len(general)))
        rows = [*reasoning[: len(reasoning) - surplus], *general]
        Random(derive_seed("cold-start order", run.seed)).shuffle(rows)
        write_chat(work / CHAT, rows)
        reasons = {**chosen.dropped, "rewrite not accepted": refused, "more than wanted in all": surplus}
        kept = len(rows) - len(general)
        counts = {"sampled": chosen.samples, "kept": kept, "reasons": {k: n for k, n in reasons.items() if n}}
        if not reasoning:
            print("dunwu: cold-start kept no sample of R1-Zero: Dev1 learns general talk only", file=sys.stderr)
        return _write_counts(
            work, counts | {"translated": translated, "reasoning": kept, "general": len(general), "rows": len(rows)}
        )

    key = {"cold_start": wanted, "tasks": tasks_key(config.tasks), "seed": run.seed}
    key |= {"max_tokens": config.zero.max_tokens, "sampler": [config.sampler, config.sampler_model]}
    return run.stage("cold-start", build, key, [zero], version=VERSION)


def rejection(run: Run, config: R1Config, dev2: Artifact) -> Artifact:
    """Dev2's samples, several for each prompt, correct and clean ones only; general conversations to one third (R1, B.3.3)."""
    wanted = config.rejection

    def build(work: Path) -> dict[str, object]:
        asked = reasoning_task(config.tasks, "chat", 0.0)
        # Other problems than the RL stages began with.
        indices = range(wanted.first, wanted.first + wanted.problems)
        groups = sample(
            run, config, "rejection", dev2, asked, indices, wanted.samples, config.reasoning.max_tokens, work
        )
        rules = SelectionRules(
            per_prompt=wanted.per_problem, language=wanted.consistency, paragraph=wanted.paragraph, seed=run.seed
        )
        chosen = select(groups, rules)
        reasoning = [example(kept) for kept in chosen.kept]
        talks = max(wanted.least_general, round(len(reasoning) / wanted.ratio))
        talk = list(sft_examples(run.seed, talks, config.tasks.chinese, wanted.clean))
        mixed = mix(reasoning, talk, len(reasoning) / talks if reasoning else wanted.ratio, run.seed)
        write_chat(work / CHAT, mixed.rows)
        thinking = sum(row.messages[-1].reasoning_content is not None for row in mixed.rows)
        counts = _counts(chosen) | {"reasoning": mixed.reasoning, "general": mixed.general, "cut": mixed.cut}
        return _write_counts(work, counts | {"rows": len(mixed.rows), "with_thinking": thinking})

    key = {"rejection": wanted, "tasks": tasks_key(config.tasks), "max_tokens": config.reasoning.max_tokens}
    key |= {"sampler": [config.sampler, config.sampler_model], "seed": run.seed}
    return run.stage("rejection", build, key, [dev2], version=VERSION)


def preferences(run: Run, config: R1Config, dev3: Artifact) -> Artifact:
    """Pairs that a judge saw in both orders, and replies labelled safe or not (R1, B.3.4)."""
    wanted = config.preferences

    def build(work: Path) -> dict[str, object]:
        exercise = general_exercise(config.tasks)
        asked, pairs = _pairs(run, config, dev3, work)
        problem_of = {_spoken(problem.messages): problem for problem in asked}

        def truth(messages: Sequence[Message], reply: Message) -> float:
            return float(exercise.judge(problem_of[_spoken(messages)], reply.content).rewards["helpful"])

        judge = _judge(run, config, truth, work)
        judgements = judge_pairs(judge, pairs, wanted.judging, run.seed)
        kept, dropped = clear_preferences(pairs, judgements, wanted.judging.threshold)
        rows = [replace(row, meta={**row.meta, "truth": _truths(truth, row)}) for row in kept]
        write_preferences(work / PAIRS, rows)
        write_chat(work / SAFETY, list(safety_rows(run.seed, wanted.safety, config.tasks.chinese)))
        right = [chosen > rejected for chosen, rejected in (row.meta["truth"] for row in rows) if chosen != rejected]
        counts = {"judge": judge.name, "kept": len(rows), "dropped": dict(dropped), **judge_figures(judgements)}
        return _write_counts(work, counts | {"agreement": sum(right) / max(1, len(right))})

    key = {"preferences": wanted, "tasks": tasks_key(config.tasks), "seed": run.seed}
    key |= {"max_tokens": config.final.grpo.max_tokens, "judge": _judge_digest(run, wanted.judge)}
    return run.stage("preferences", build, key, [dev3], version=VERSION)


def sample(
    run: Run,
    config: R1Config,
    stage: str,
    model: Artifact,
    task: Task,
    indices: range,
    samples: int,
    max_tokens: int,
    work: Path,
) -> list[Group]:
    """`samples` completions at T = 1 of each of these training problems, judged; what is served is kept in `work`."""
    problems = list({p.id: p for p in (task.problem("train", run.seed, index) for index in indices)}.values())
    params = SamplingParams(max_tokens=max_tokens)
    if config.sampler and stage != "preferences":  # those pairs are Dev3's own
        return _served(config, stage, task, problems, samples, params, derive_seed(stage, run.seed), work)
    encoder = load_tokenizer(model.path / MODEL)
    engine = Engine(from_pretrained(model.path / MODEL, resolve_device(config.device)), encoder)
    groups: list[Group] = []
    chunk = max(1, 512 // samples)
    with Progress(len(problems), f"{stage}: sampling", "problems") as progress:
        for start in range(0, len(problems), chunk):
            seed = derive_seed(stage, run.seed)
            groups += sample_groups(engine, encoder, task, problems[start : start + chunk], samples, params, seed)
            progress.update(len(groups))
    return groups


def _served(
    config: R1Config,
    stage: str,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    params: SamplingParams,
    seed: int,
    work: Path,
) -> list[Group]:
    """The same from an endpoint, saved a chunk at a time; its completions have no ids."""
    todo = [(problem, n) for problem in problems for n in range(samples)]
    endpoint = Endpoint(config.sampler, config.sampler_model)

    def ask(start: int, end: int) -> list[list[str]]:
        part = todo[start:end]
        talks = [problem.messages or (Message("user", problem.prompt),) for problem, _ in part]
        seeds = [derive_seed("served", seed, problem.id, n) for problem, n in part]
        return [[reply_text(a.message), a.finish_reason] for a in endpoint.complete(talks, seeds, params)]

    rows: list[Completion] = []
    with Progress(len(todo), f"{stage}: sampling", "answers") as progress:
        for answered in in_chunks(work / "scratch" / "served", len(todo), SERVED, ask):
            rows += [Completion(text, (), (), reason, 0) for text, reason in answered]
            progress.update(len(rows))
    drawn = [rows[start : start + samples] for start in range(0, len(rows), samples)]
    verdicts = judge_groups(task, problems, drawn)
    return [
        Group(problem, (), tuple(map(Rollout, completions, judged)))
        for problem, completions, judged in zip(problems, drawn, verdicts, strict=True)
    ]


def _translated(groups: Sequence[Group]) -> tuple[list[Group], int]:
    """The samples with their thinking in the question's language, as far as `translate` can; and how many changed."""
    changed, count = [], 0
    for group in groups:
        rollouts = []
        for rollout in group.rollouts:
            thinking, content = parts(rollout.completion.text)
            into = translate(thinking or "", language_of(group.problem) or "en")
            if thinking is not None and into != thinking:
                text = f"{THINK}{into}{THINK_END}\n{content}"
                rollout, count = replace(rollout, completion=replace(rollout.completion, text=text)), count + 1
            rollouts.append(rollout)
        changed.append(replace(group, rollouts=tuple(rollouts)))
    return changed, count


def _rewritten(talks: Task, indices: range, kept: Sequence[Kept], seed: int) -> tuple[list[ChatExample], int]:
    """R1-Zero's samples as conversations in the first person with a summary, and how many the task no longer accepts.

    A task that does not read the answer block would refuse the summary: its samples keep the content they had.
    """
    talk_of = {problem.id: problem for problem in (talks.problem("train", seed, index) for index in indices)}
    rows, refused = [], 0
    for sample in kept:
        talk = talk_of[sample.problem.id]
        reply = rewrite(
            talk, sample.thinking or "", sample.answer or sample.content, derive_seed("rewrite", seed, talk.id)
        )
        plain = replace(reply, content=sample.content)
        accepted = [r for r in (reply, plain) if talks.score(talk, reply_text(r)).rewards.get("accuracy") == 1.0]
        refused += not accepted
        asked = talk.messages or (Message("user", talk.prompt),)
        rows += [ChatExample((*asked, r), {**talk.meta, "task": talk.task, "id": talk.id}) for r in accepted[:1]]
    return rows, refused


def _thoughtful(config: R1Config, seed: int) -> Iterator[ChatExample]:
    """General conversations answered well, after a short thought."""
    rows = sft_examples(derive_seed("cold-start", seed), 100_000, config.tasks.chinese, clean=1.0)
    return (row for row in rows if row.messages[-1].reasoning_content is not None)


def _pairs(run: Run, config: R1Config, dev3: Artifact, work: Path) -> tuple[list[Problem], list[Pair]]:
    """Pairs of replies to general prompts: some of known kinds, some both written by Dev3; and what was asked."""
    wanted = config.preferences
    made = round(wanted.pairs * (1 - wanted.sampled))
    asked: list[Problem] = []
    pairs: list[Pair] = []
    for problem, a, b in scored_pairs(run.seed, made, config.tasks.chinese):
        asked.append(problem)
        pairs.append((problem.messages, a, b))
    task = general_task(config.tasks)
    indices = range(made, wanted.pairs)
    for group in sample(run, config, "preferences", dev3, task, indices, 2, config.final.grpo.max_tokens, work):
        a, b = (parse_reply(rollout.completion.text) for rollout in group.rollouts)
        if a.content.strip() and b.content.strip() and a.content != b.content:
            asked.append(group.problem)
            pairs.append((group.problem.messages, a, b))
    return asked, pairs


def _spoken(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content.strip()) for message in messages)


def _truths(truth: Callable[[Sequence[Message], Message], float], row: Preference) -> list[float]:
    """True utilities of the chosen and of the rejected reply: for measuring, never for training."""
    return [truth(row.messages, row.chosen), truth(row.messages, row.rejected)]


def _judge(run: Run, config: R1Config, truth: Callable[[Sequence[Message], Message], float], work: Path) -> ChatModel:
    """The user's judge, cached, or the stand-in for a labeler."""
    wanted = config.preferences
    if not wanted.judge:
        return NoisyTruth(truth, wanted.noise, wanted.position_bias, run.seed)
    if is_url(wanted.judge):
        return CachedChat(Endpoint(wanted.judge, wanted.judge_model), work / "scratch" / "judge.jsonl")
    folder = resolve_model(wanted.judge, run.store)
    encoder = load_tokenizer(folder)
    engine = Engine(from_pretrained(folder, resolve_device(config.device)), encoder)
    name = (
        file_digest(str(folder / "model.safetensors"))[:16] if (folder / "model.safetensors").is_file() else str(folder)
    )
    return CachedChat(LocalChat(engine, encoder, name), work / "scratch" / "judge.jsonl")


def _judge_digest(run: Run, judge: str) -> dict[str, str]:
    """The files of a judge's folder; nothing for an endpoint or the stand-in."""
    return model_digest(resolve_model(judge, run.store)) if judge and not is_url(judge) else {}


def _counts(chosen: Selection) -> dict[str, Any]:
    """What rejection did, for the report."""
    return {"sampled": chosen.samples, "kept": len(chosen.kept), "reasons": dict(chosen.dropped)}


def _write_counts(work: Path, counts: Mapping[str, Any]) -> dict[str, object]:
    """Write the counts beside the data; the headline is the plain numbers among them."""
    write_atomically(work / COUNTS, json.dumps(counts, ensure_ascii=False, indent=1) + "\n")
    return {name: value for name, value in counts.items() if isinstance(value, int | float)}
