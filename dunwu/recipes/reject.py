"""Rejection sampling alone: any model or server, a task or a judge that decides, chat data of what is right and readable.

    problems   the user's rows, or the task's own; rows that cannot be used are named
    samples    several of each problem, judged; saved a chunk at a time, so that a killed run goes on where it was
    reject     the rules: `chat.jsonl` of what is kept, and a count of every reason

Other rules over the same samples redo the last stage only. A server's replies depend on the server: what was already
sampled and judged is kept over a kill, but two runs need not agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dunwu.data.chat import prompt_ids, write_chat
from dunwu.data.tokenizer import load_tokenizer
from dunwu.disk import disk_errors, plain, write_atomically
from dunwu.log import Progress, Run
from dunwu.model.hf import claimed_context, from_pretrained
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.recipes.reject_config import RejectRunConfig
from dunwu.recipes.reject_rows import (
    chat_row,
    check_task,
    gather,
    group_row,
    make_task,
    problem_row,
    read_group_row,
    read_problem_row,
)
from dunwu.recipes.stages import file_digest, model_digest
from dunwu.recipes.user_data import Unusable, tell_bad_rows, write_bad_rows
from dunwu.rollout.cache import CachedChat
from dunwu.rollout.endpoint import Endpoint, is_url
from dunwu.rollout.engine import Engine
from dunwu.rollout.judge import judge_answers
from dunwu.rollout.local import LocalChat
from dunwu.rollout.selection import select
from dunwu.store import Artifact, Store, resolve_model
from dunwu.tasks.formats import ANSWER
from dunwu.tasks.frames import reply_text, split_reply
from dunwu.tasks.score import judge_groups
from dunwu.types import ChatModel, Completion, Group, Message, Problem, Rollout, Verdict, derive_seed

PROBLEMS, SAMPLES, CHAT, COUNTS = "problems.jsonl", "samples.jsonl", "chat.jsonl", "counts.json"
Draw = Callable[[Sequence[Problem], Sequence[Sequence[int]]], list[list[Completion]]]
"""Problems and a seed for each sample of each → the samples."""
Decide = Callable[[Sequence[Problem], Sequence[Sequence[Completion]]], list[list[Verdict]]]
"""Problems and their samples → a verdict each."""


def run(run: Run, config: RejectRunConfig) -> None:
    """The recipe `reject`."""
    config.validate()
    check_task(config)
    prepare_torch(config.device)
    asked = problems(run, config)
    drawn = samples(run, config, asked)
    kept = reject(run, config, drawn)
    figures = kept.meta["metrics"]
    print(f"{kept.path / CHAT}: {figures['kept']:.0f} of {figures['samples']:.0f} samples kept")


def problems(run: Run, config: RejectRunConfig) -> Artifact:
    """What is asked: `problems.jsonl`, and the rows that cannot be used, too long ones among them."""
    folder = None if is_url(config.model) else resolve_model(config.model, run.store)

    def build(work: Path) -> dict[str, object]:
        found, bad, lines = gather(config, run.seed)
        faults = [None] * len(found) if folder is None else _too_long(found, folder, config.max_tokens)
        placed = zip(lines, faults, strict=True)
        bad += [Unusable(config.data or config.task, line, fault) for line, fault in placed if fault is not None]
        rows = [problem for problem, fault in zip(found, faults, strict=True) if fault is None]
        write_bad_rows(work, sorted(bad, key=lambda row: row.line), len(rows))
        text = "".join(json.dumps(problem_row(problem), ensure_ascii=False) + "\n" for problem in rows)
        write_atomically(work / PROBLEMS, text)
        return {"problems": len(rows), "bad_rows": len(bad)}

    settings: dict[str, Any] = {"data": file_digest(config.data), "task": _task_key(config), "frame": config.frame}
    if not config.data:
        settings |= {"problems": config.problems, "seed": run.seed}
    if folder is not None:
        settings |= {"model": model_digest(folder, weights=False), "max_tokens": config.max_tokens}
    made = run.stage("problems", build, settings)
    tell_bad_rows(run, made)
    return made


def _too_long(asked: Sequence[Problem], folder: Path, max_tokens: int) -> list[str | None]:
    """Why a problem and its samples do not fit the model's context, for each; None if they do."""
    encoder = load_tokenizer(folder)
    room = claimed_context(folder)
    lengths = [len(prompt_ids(encoder, problem)) for problem in asked]
    what = "a prompt of {} tokens and {} more exceed the model's {}"
    return [None if n + max_tokens <= room else what.format(n, max_tokens, room) for n in lengths]


def samples(run: Run, config: RejectRunConfig, asked: Artifact) -> Artifact:
    """Samples of every problem with their verdicts: `samples.jsonl`."""

    def build(work: Path) -> dict[str, object]:
        todo = [read_problem_row(row) for row in _read_rows(asked.path / PROBLEMS)]
        draw, decide = _sampler(config, run.store), _decider(config, run.store, work)
        done = _resume(work / SAMPLES, config.chunk, len(todo))
        with Progress(len(todo), "samples", "problems", start=done) as progress:
            for start in range(done, len(todo), config.chunk):
                part = todo[start : start + config.chunk]
                groups = _chunk(config, run.seed, part, draw, decide)
                upto = start + len(part)
                figures = _figures(groups)
                run.log("samples", upto, figures)
                run.log_groups("samples", upto, groups)
                text = "".join(json.dumps(group_row(group), ensure_ascii=False) + "\n" for group in groups)
                with disk_errors(work / SAMPLES), open(work / SAMPLES, "ab") as file:
                    file.write(text.encode("utf-8", "replace"))
                progress.update(upto, correct=figures["reject/correct"])
        # Not the sum of the lines logged: chunks overlap if a run goes on with another --chunk.
        totals = _figures([read_group_row(row) for row in _read_rows(work / SAMPLES)])
        return {
            "problems": len(todo),
            **{name: totals[f"reject/{name}"] for name in ("samples", "right", "not_judged")},
        }

    settings = {
        "model": _model_key(config.model, config.model_name, run.store),
        "judge": _model_key(config.judge, config.judge_name, run.store) if config.judge and not config.task else "",
        "judging": None if config.task else plain(config.judging),
        "task": _task_key(config),
        "samples": config.samples,
        "params": config.params,
        "seed": run.seed,
    }
    return run.stage("samples", build, settings, [asked], version=COMPUTED)


def reject(run: Run, config: RejectRunConfig, drawn: Artifact) -> Artifact:
    """Apply the rules: `chat.jsonl` of the kept, `counts.json` of every reason."""

    def build(work: Path) -> dict[str, object]:
        chosen = select([read_group_row(row) for row in _read_rows(drawn.path / SAMPLES)], config.rules)
        write_chat(work / CHAT, [chat_row(sample) for sample in chosen.kept])
        figures = chosen.figures()
        write_atomically(work / COUNTS, json.dumps(figures, indent=1) + "\n")
        return dict(figures)

    return run.stage("reject", build, {"rules": config.rules}, [drawn])


# ---- sampling and judging


def chat_model(address: str, name: str, config: RejectRunConfig, store: Store) -> Endpoint | LocalChat:
    """A server by its URL, or the model of a folder."""
    if is_url(address):
        return Endpoint(address, name, concurrency=config.concurrency)
    folder = resolve_model(address, store)
    encoder = load_tokenizer(folder)
    engine = Engine(from_pretrained(folder, resolve_device(config.device)), encoder)
    return LocalChat(engine, encoder, str(folder))


def _sampler(config: RejectRunConfig, store: Store) -> Draw:
    model = chat_model(config.model, config.model_name, config, store)
    params = config.params
    if isinstance(model, LocalChat):
        engine, encoder = model.engine, model.tokenizer
        return lambda asked, seeds: engine.sample([prompt_ids(encoder, problem) for problem in asked], seeds, params)

    def draw(asked: Sequence[Problem], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        talks = [_conversation(problem) for problem, group in zip(asked, seeds, strict=True) for _ in group]
        flat = [seed for group in seeds for seed in group]
        answers = iter(zip(model.complete(talks, flat, params), flat, strict=True))
        return [[_completion(*next(answers)) for _ in group] for group in seeds]

    return draw


def _completion(answer: Any, seed: int) -> Completion:
    return Completion(reply_text(answer.message), (), (), answer.finish_reason, seed)


def _conversation(problem: Problem) -> tuple[Message, ...]:
    return problem.messages or (Message("user", problem.prompt),)


def _decider(config: RejectRunConfig, store: Store, work: Path) -> Decide:
    task = make_task(config)
    if task is not None:
        return lambda asked, groups: judge_groups(task, asked, groups)
    judge = CachedChat(chat_model(config.judge, config.judge_name, config, store), work / "scratch" / "judge.jsonl")
    return lambda asked, groups: _judged(judge, config, asked, groups)


def _judged(
    judge: ChatModel, config: RejectRunConfig, asked: Sequence[Problem], groups: Sequence[Sequence[Completion]]
) -> list[list[Verdict]]:
    """The judge's verdicts; what was cut off is dropped anyway and not shown to it."""
    items, verdicts = [], []
    for problem, group in zip(asked, groups, strict=True):
        for completion in group:
            reply = split_reply(completion.text, reasoning=ANSWER in completion.text)
            verdicts.append(Verdict({"format": float(reply.well_formed)}, 0.0, answer=reply.answer))
            if completion.finish_reason == "stop":
                items.append((problem.messages, Message("assistant", reply.content), problem.data.get("gold")))
    judged = iter(judge_answers(judge, items, config.judging))
    whole = [completion for group in groups for completion in group]
    for place, completion in enumerate(whole):
        if completion.finish_reason == "stop":
            said = next(judged)
            if said.correct is None:
                verdicts[place] = replace(verdicts[place], reason=f"judge: {'; '.join(said.failures)}")
            else:
                rewards = {"accuracy": float(said.correct), **verdicts[place].rewards}
                verdicts[place] = replace(
                    verdicts[place], rewards=rewards, reward=float(said.correct), reason=said.analysis or None
                )
    flat = iter(verdicts)
    return [[next(flat) for _ in group] for group in groups]


def _chunk(config: RejectRunConfig, seed: int, part: Sequence[Problem], draw: Draw, decide: Decide) -> list[Group]:
    seeds = [[derive_seed("reject", seed, p.id, p.data.get("gold"), n) for n in range(config.samples)] for p in part]
    drawn = draw(part, seeds)
    return [
        Group(problem, (), tuple(map(Rollout, completions, verdicts)))
        for problem, completions, verdicts in zip(part, drawn, decide(part, drawn), strict=True)
    ]


def _figures(groups: Sequence[Group]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    right = sum(rollout.verdict.rewards.get("accuracy") == 1.0 for rollout in rollouts)
    cut = sum(rollout.completion.finish_reason == "length" for rollout in rollouts)
    unread = sum(
        "accuracy" not in rollout.verdict.rewards and rollout.completion.finish_reason == "stop" for rollout in rollouts
    )
    return {
        "reject/samples": float(len(rollouts)),
        "reject/right": float(right),
        "reject/correct": right / len(rollouts),
        "reject/cut_off": cut / len(rollouts),
        "reject/not_judged": float(unread),
    }


# ---- files and keys


def _resume(path: Path, chunk: int, total: int) -> int:
    """Problems whose samples are saved; a chunk that was not written whole is cut."""
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    done = len(lines) if len(lines) == total else len(lines) - len(lines) % chunk
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) + 1 for line in lines[:done]))
    return done


def _read_rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a text may hold other line ends, such as U+2028.
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def _task_key(config: RejectRunConfig) -> str:
    return file_digest(config.task) if config.task.endswith(".py") else config.task


def _model_key(address: str, name: str, store: Store) -> Any:
    """A server's address and model, or the digests of a folder's files."""
    if is_url(address):
        return [address, name]
    return model_digest(resolve_model(address, store))
