"""Expert iteration: a model learns from those of its own samples that turned out right, round after round.

    for n in range(1, rounds + 1):
        found = harvest(Engine(model, tokenizer), tokenizer, task, questions(task, config, seed, n), config, seed, n)
        model = copy of the base (STaR), or the model as it is
        for step in sft(model, optimizer, found.examples, …): …

`recipes/expert.py` is this loop with each round a stage. What is trained on are the ids as they were sampled, behind the
prompt as it is asked later, in whatever form the task has; never text decoded and encoded anew.

    STaR (Zelikman et al. 2022, arXiv 2203.14465)   right samples; where there is none, a rationalization: the model is told
                                                    the answer, and what it then writes is trained without the telling
    RAFT (Dong et al. 2023, 2304.06767)             the best of K by reward, new prompts, from the current model
    ReST (Gulcehre et al. 2023, 2308.08998)         all above a threshold τ of the reward

Not covered: STaR's growing number of updates (a fifth more each round; the epochs are those of `SftConfig`), tree search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dunwu.data.chat import Encoded, encode_conversation, parse_reply, prompt_ids
from dunwu.data.tokenizer import Tokenizer
from dunwu.rollout.best_of import best_of
from dunwu.rollout.selection import select
from dunwu.tasks.frames import split_reply
from dunwu.tasks.score import judge_groups
from dunwu.train.expert_config import ExpertConfig
from dunwu.types import Completion, Group, Message, Problem, Rollout, Sampler, SamplingParams, Task, derive_seed

HINT = "(The answer is {}.) "
"""What a rationalization is told before the question."""


@dataclass(frozen=True)
class Harvest:
    """What a round has found to train on."""

    examples: tuple[Encoded, ...]
    """Prompt and completion as ids; the completion is learned."""
    groups: tuple[Group, ...]
    """Every sample that was drawn without a hint, with its verdict."""
    counts: Counter[str]
    """problems, samples, right, kept, barren (problems without a kept sample) and dropped/REASON; rationalised, and of the
    samples it was chosen from rationalise/samples and rationalise/dropped/REASON."""


def questions(task: Task, config: ExpertConfig, seed: int, round: int) -> list[Problem]:
    """The distinct training problems of a round, counted from 1."""
    first = 0 if config.same_problems else (round - 1) * config.problems
    drawn = (task.problem("train", seed, index) for index in range(first, first + config.problems))
    return list({problem.id: problem for problem in drawn}.values())


def harvest(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    config: ExpertConfig,
    seed: int,
    round: int,
) -> Harvest:
    """Sample the problems, keep what is right (or best), and rationalise the rest if that is wanted.

    A problem's draws and what is kept of them depend on it, seed and round alone: cut the problems into parts as you like.
    """
    groups = draw(sampler, tokenizer, task, problems, config, seed, round)
    kept, counts = choose(groups, config)
    if config.rationalize != "none":
        fruitful = {problem.id for problem, _ in kept}
        left = [problem for problem in problems if problem.id not in fruitful]
        told = rationalised(sampler, tokenizer, task, left, config, seed, round)
        more, again = choose(told, config)
        kept += more
        counts["rationalised"], counts["barren"] = len(more), again["barren"]
        reasons = [name for name in again if name.startswith("dropped/")]
        counts |= Counter({f"rationalise/{name}": again[name] for name in ("samples", *reasons)})
    examples = tuple(example(tokenizer, problem, completion) for problem, completion in kept)
    return Harvest(examples, tuple(groups), counts)


def draw(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    config: ExpertConfig,
    seed: int,
    round: int,
    asked: Sequence[Problem] | None = None,
) -> list[Group]:
    """`config.samples` judged samples of each problem.

    Args:
        asked: the same problems in other words; what they bring is judged, and later trained, as an answer to `problems`.
    """
    if not problems:
        return []
    name = "expert" if asked is None else "rationalise"
    prompts = [prompt_ids(tokenizer, problem) for problem in (problems if asked is None else asked)]
    seeds = [[derive_seed(name, seed, round, p.task, p.id, n) for n in range(config.samples)] for p in problems]
    drawn = sampler.sample(prompts, seeds, SamplingParams(config.max_tokens, config.temperature))
    return _judged(task, problems, prompts, drawn)


def rationalised(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    config: ExpertConfig,
    seed: int,
    round: int,
) -> list[Group]:
    """Judged samples of problems whose answer is told ("hint"), or the task's own solutions, judged likewise ("gold")."""
    if config.rationalize == "hint":
        told = [hinted(task, problem) for problem in problems]
        return draw(sampler, tokenizer, task, problems, config, seed, round, told)
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    return _judged(task, problems, prompts, [[_gold(tokenizer, task, problem)] for problem in problems])


def hinted(task: Task, problem: Problem) -> Problem:
    """The problem with its answer told before the question; where the gold has no answer block, its whole text is told.

    Example:
        >>> from dunwu.tasks import get_task
        >>> task = get_task("countdown")
        >>> told, asked = (f(task.problem("train", 0, 1)).prompt for f in (lambda p: hinted(task, p), lambda p: p))
        >>> told.startswith("(The answer is ") and told.endswith(asked)
        True
    """
    gold = task.gold(problem)
    reply = split_reply(gold, reasoning=True)
    hint = HINT.format(reply.answer if reply.answer is not None else (reply.content or gold).strip())
    if not problem.messages:
        return replace(problem, prompt=hint + problem.prompt)
    last = problem.messages[-1]
    return replace(problem, messages=(*problem.messages[:-1], replace(last, content=hint + last.content)))


def choose(groups: Sequence[Group], config: ExpertConfig) -> tuple[list[tuple[Problem, Completion]], Counter[str]]:
    """The samples to train on, each with its problem, and what became of all: samples = kept + dropped."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    counts = Counter(problems=len(groups), samples=len(rollouts))
    counts["right"] = sum(r.verdict.rewards.get("accuracy") == 1.0 for r in rollouts)
    if config.keep == "right":
        chosen = select(groups, config.rules)
        kept = [(sample.problem, sample.completion) for sample in chosen.kept if sample.completion is not None]
        counts |= Counter({f"dropped/{reason}": n for reason, n in chosen.dropped.items()})
    else:
        whole = [replace(group, rollouts=tuple(filter(_finished, group.rollouts))) for group in groups]
        best = best_of(whole)
        kept = [(b.group.problem, b.rollout.completion) for b in best if b.score >= config.least_reward]
        counts["dropped/cut off"] = len(rollouts) - sum(len(group.rollouts) for group in whole)
        counts["dropped/below least_reward"] = len(best) - len(kept)
        counts["dropped/not the best"] = len(rollouts) - counts["dropped/cut off"] - len(best)
    counts["kept"] = len(kept)
    counts["barren"] = len(groups) - len({(problem.task, problem.id) for problem, _ in kept})
    return kept, counts


def example(tokenizer: Tokenizer, problem: Problem, completion: Completion) -> Encoded:
    """Prompt and completion as they were sampled; learned is the completion, its stop token included."""
    prompt = prompt_ids(tokenizer, problem)
    mask = (0,) * len(prompt) + (1,) * len(completion.token_ids)
    return Encoded((*prompt, *completion.token_ids), mask)


def _finished(rollout: Rollout) -> bool:
    return rollout.completion.finish_reason == "stop"


def _judged(
    task: Task,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    drawn: Sequence[Sequence[Completion]],
) -> list[Group]:
    verdicts = judge_groups(task, problems, drawn)
    return [
        Group(problem, tuple(prompt), tuple(map(Rollout, completions, judged)))
        for problem, prompt, completions, judged in zip(problems, prompts, drawn, verdicts, strict=True)
    ]


def _gold(tokenizer: Tokenizer, task: Task, problem: Problem) -> Completion:
    """The task's own solution as if it had been sampled."""
    text = task.gold(problem)
    if problem.messages:
        reply: Message = parse_reply(text)
        whole = encode_conversation(tokenizer, [*problem.messages, reply])
        end = max(place for place, learned in enumerate(whole.loss_mask) if learned)
        ids = whole.ids[len(prompt_ids(tokenizer, problem)) : end + 1]
    else:
        ids = (*tokenizer.encode(text), tokenizer.end_id)
    return Completion(text, ids, (), "stop", 0)
