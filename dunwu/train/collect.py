"""Questions to scored groups: what every policy-gradient method does before its update.

Legend: P problems, G group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from statistics import fmean

from dunwu.data.chat import prompt_ids
from dunwu.data.tokenizer import Tokenizer
from dunwu.tasks.score import judge_groups
from dunwu.train.advantages import group_advantages, overlong_penalty
from dunwu.train.config import GrpoConfig, PolicyConfig
from dunwu.train.rows import Row
from dunwu.types import Group, Rollout, Sampler, SamplingParams, Task, Verdict, derive_seed


def collect(
    sampler: Sampler, tokenizer: Tokenizer, task: Task, config: GrpoConfig, seed: int, step: int
) -> tuple[list[Group], dict[str, float]]:
    """Sample and score the groups of one step, and give every rollout its advantage.

    With dynamic sampling, groups without variance are replaced by new questions for up to
    `dynamic_rounds` rounds; what was replaced is counted.
    """
    kept: list[Group] = []
    flat: list[Group] = []
    rounds = 0
    for attempt in range(config.dynamic_rounds):
        rounds += 1
        wanted = config.problems - len(kept)
        first = (step * config.dynamic_rounds + attempt) * config.problems
        fresh = sample_groups(sampler, tokenizer, task, config, seed, range(first, first + wanted))
        fresh = with_advantages(fresh, config)
        for group in fresh:
            (kept if _differ(group, config) else flat).append(group)
        if len(kept) == config.problems:
            break
    # What could not be filled stays in view: its rewards belong to the step's means.
    shown = kept + flat[len(flat) - (config.problems - len(kept)) :] if len(kept) < config.problems else kept
    groups = with_advantages([_without_advantages(group) for group in shown], config)
    counts = {
        "grpo/zero_variance_groups": float(len(flat)),
        "grpo/replaced_groups": float(len(kept) + len(flat) - len(groups)),
        "grpo/rounds": float(rounds),
    }
    return groups, counts


def _differ(group: Group, config: PolicyConfig) -> bool:
    """Whether the siblings' rewards do: otherwise there is nothing to compare."""
    rewards = {reward for rollout in group.rollouts if (reward := reward_of(rollout, config)) is not None}
    return len(rewards) > 1


def sample_groups(
    sampler: Sampler, tokenizer: Tokenizer, task: Task, config: PolicyConfig, seed: int, indices: range
) -> list[Group]:
    """`group_size` scored completions of each of these training problems; every draw is seeded by (seed, index, sample)."""
    problems = [task.problem("train", seed, index) for index in indices]
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    seeds = [[derive_seed("rollout", seed, index, g) for g in range(config.group_size)] for index in indices]
    params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)
    drawn = sampler.sample(prompts, seeds, params)
    groups = []
    for problem, prompt, row, verdicts in zip(
        problems, prompts, drawn, judge_groups(task, problems, drawn), strict=True
    ):
        scored = (Rollout(c, _controlled(verdict, config, c.seed)) for c, verdict in zip(row, verdicts, strict=True))
        groups.append(Group(problem, tuple(prompt), tuple(scored)))
    return groups


def _controlled(verdict: Verdict, config: PolicyConfig, seed: int) -> Verdict:
    """The reward under the run's control, if it is one; the verifier's rewards stay on record."""
    if config.reward == "random":
        return replace(verdict, reward=float(Random(seed).random() < 0.5))
    if config.reward == "format":
        return replace(verdict, reward=verdict.rewards.get("format", 0.0))
    return verdict


def with_advantages(groups: Sequence[Group], config: GrpoConfig) -> list[Group]:
    """Fill in the advantages, from statistics over every scored sibling (truncated ones included)."""
    rewards = [[reward_of(rollout, config) for rollout in group.rollouts] for group in groups]
    advantages, _ = group_advantages(rewards, config.std_normalize, config.std_eps, baseline=config.baseline)
    return [
        replace(group, rollouts=tuple(replace(r, advantage=a) for r, a in zip(group.rollouts, row, strict=True)))
        for group, row in zip(groups, advantages, strict=True)
    ]


def _without_advantages(group: Group) -> Group:
    return replace(group, rollouts=tuple(replace(rollout, advantage=None) for rollout in group.rollouts))


def reward_of(rollout: Rollout, config: PolicyConfig) -> float | None:
    """What the baseline sees; None where the verifier failed (an error is not a zero)."""
    if not _scored(rollout):
        return None
    reward = rollout.verdict.reward
    if config.overlong == "penalty":
        reward += overlong_penalty(len(rollout.completion.token_ids), config.max_tokens, config.overlong_buffer)
    return reward


def _scored(rollout: Rollout) -> bool:
    return rollout.verdict.status in ("ok", "unparsable") and math.isfinite(rollout.verdict.reward)


def rows_of(groups: Sequence[Group], config: PolicyConfig) -> list[Row]:
    """Groups as training rows.

    Out of them, and so out of the loss's denominator, stay rows without an advantage, truncated ones under overlong
    "mask" (their rewards have counted for their siblings), and groups without variance if so configured.
    """
    drop = isinstance(config, GrpoConfig) and config.drop_zero_variance
    rows = []
    for number, group in enumerate(groups):
        if drop and not any(rollout.advantage for rollout in group.rollouts):
            continue
        for place, rollout in enumerate(group.rollouts):
            completion = rollout.completion
            if rollout.advantage is None or not completion.token_ids:
                continue
            if config.overlong == "mask" and completion.finish_reason == "length":
                continue
            ids = group.prompt_ids + completion.token_ids
            routing = completion.routing if config.routing_replay else None
            known = len(group.prompt_ids), completion.sampler_logprobs, rollout.advantage
            rows.append(Row(ids, *known, number, routing, place))
    return rows


def group_metrics(groups: Sequence[Group], method: str = "grpo") -> dict[str, float]:
    """Means over the step's rollouts, as sampled, under names that begin with `method`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [r for r in rollouts if _scored(r)]
    lengths = [len(r.completion.token_ids) for r in rollouts]
    metrics = {
        f"{method}/reward": fmean([r.verdict.reward for r in scored]) if scored else 0.0,
        f"{method}/length": fmean(lengths),
        f"{method}/truncated": fmean([r.completion.finish_reason == "length" for r in rollouts]),
        f"{method}/verifier_errors": float(len(rollouts) - len(scored)),
    }
    for name in sorted({name for r in scored for name in r.verdict.rewards}):
        metrics[f"{method}/reward/{name}"] = fmean([r.verdict.rewards.get(name, 0.0) for r in scored])
    return metrics
