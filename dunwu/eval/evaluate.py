"""Weights to evidence: sample a task's held-out problems, judge them, summarise with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.eval.emergence import aggregate
from dunwu.eval.passk import cons_at_k, mean_pass_at_k, pass_at_1
from dunwu.tasks.score import judge_groups
from dunwu.types import Group, Problem, Rollout, Sampler, SamplingParams, Task, derive_seed

CHUNK = 512
"""Samples drawn per engine call: completions of finished chunks are scored and kept as text."""


@dataclass(frozen=True)
class Evaluation:
    """Groups of one evaluation and their summary (numbers only, JSON-able)."""

    groups: tuple[Group, ...]
    summary: dict[str, Any]


def sample_groups(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    params: SamplingParams,
    seed: int = 0,
) -> list[Group]:
    """`samples` scored completions of every problem; advantages stay None."""
    groups: list[Group] = []
    per_call = max(1, CHUNK // samples)
    for start in range(0, len(problems), per_call):
        part = problems[start : start + per_call]
        prompts = [prompt_ids(tokenizer, problem) for problem in part]
        seeds = [[derive_seed("evaluate", seed, problem.id, s) for s in range(samples)] for problem in part]
        drawn = sampler.sample(prompts, seeds, params)
        for problem, prompt, row, verdicts in zip(part, prompts, drawn, judge_groups(task, part, drawn), strict=True):
            groups.append(Group(problem, tuple(prompt), tuple(map(Rollout, row, verdicts))))
    return groups


def held_out(task: Task, split: str, n: int) -> list[Problem]:
    """Problems 0..n-1 of a split, each once: a file may hold fewer than n, and a copy would be no evidence."""
    drawn = (task.problem(split, 0, index) for index in range(n))
    return list({problem.id: problem for problem in drawn}.values())


def summarise(task: Task, groups: Sequence[Group]) -> dict[str, Any]:
    """pass@1, pass@k, cons@k with 95% intervals, format, lengths and behaviours."""
    right = [[r.verdict.rewards.get("accuracy", 0.0) == 1.0 for r in group.rollouts] for group in groups]
    formats = [r.verdict.rewards.get("format", 0.0) for group in groups for r in group.rollouts]
    samples = len(right[0])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= samples]
    summary: dict[str, Any] = {
        "problems": len(groups),
        "samples": samples,
        "pass@1": pass_at_1(right).as_json(),
        "format": sum(formats) / len(formats),
        "behaviours": aggregate(groups),
    }
    if samples > 1:
        counts = [(len(row), sum(row)) for row in right]
        summary["pass@k"] = {str(k): mean_pass_at_k(counts, k).as_json() for k in ks}
        votes = [
            [(task.answer_key(group.problem, r.verdict.answer), ok) for r, ok in zip(group.rollouts, row, strict=True)]
            for group, row in zip(groups, right, strict=True)
        ]
        summary[f"cons@{samples}"] = cons_at_k(votes, samples).as_json()
    return summary


def evaluate(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    n: int,
    samples: int = 1,
    split: str = "test",
    params: SamplingParams | None = None,
    seed: int = 0,
) -> Evaluation:
    """Sample the first n problems of a split and summarise."""
    problems = held_out(task, split, n)
    groups = sample_groups(sampler, tokenizer, task, problems, samples, params or SamplingParams(), seed)
    return Evaluation(tuple(groups), summarise(task, groups))


def evaluate_model(
    model: str | Path,
    task: str,
    n: int = 256,
    samples: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """What `dunwu eval` prints: the summary of a model folder on a task's test split."""
    from dunwu.model.hf import from_pretrained, stop_ids_of
    from dunwu.model.runtime import prepare_torch, resolve_device
    from dunwu.rollout.engine import Engine
    from dunwu.tasks import get_task

    prepare_torch()
    network = from_pretrained(model, resolve_device(device))
    tokenizer = load_tokenizer(model).stopping_at(stop_ids_of(Path(model)))
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    result = evaluate(
        Engine(network, tokenizer), tokenizer, get_task(task, **options), n, samples, "test", params, seed
    )
    return {"model": str(model), "task": task, "temperature": temperature, "max_tokens": max_tokens} | result.summary
