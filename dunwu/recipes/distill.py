"""Distillation alone: any teacher, any student, a user's own files or task.

    --method sequence    [questions → the teacher's answers →] conversations → SFT of the student ("sft" too)
    --method logit       conversations, or what the teacher answers → a divergence from the teacher on each token
    --method on-policy   questions or a task → the student's own samples → the same; `--distill.on_policy_share` mixes both

Bad rows are named, counted and kept. All ways resume after a kill; what a server answered is not asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dunwu.data.chat import parse_reply, prompt_ids, require_turns, write_chat
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.log import Progress, Run
from dunwu.model.hf import from_pretrained, stop_ids_of
from dunwu.model.runtime import COMPUTED, prepare_torch, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.distill_config import DistillRunConfig
from dunwu.recipes.distill_prompts import Prompts, context_of, known_answers, prompts, read_prompts
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.reinforce import held_out_point, open_learner, save_learner, save_state
from dunwu.recipes.sft import chat_data, fine_tune
from dunwu.recipes.sft_config import SftRunConfig
from dunwu.recipes.stages import data_digest, file_digest, model_digest
from dunwu.recipes.user_data import BAD_ROWS, tell_bad_rows
from dunwu.rollout.cache import in_chunks
from dunwu.rollout.endpoint import Endpoint, is_url
from dunwu.rollout.engine import Engine
from dunwu.rollout.local import LocalChat
from dunwu.store import Artifact, resolve_model
from dunwu.tasks import get_task, task_options
from dunwu.train.distill import LOSSES, Replies, on_policy_distill
from dunwu.train.learner import Learner
from dunwu.types import (
    ChatExample,
    DunwuError,
    Message,
    Problem,
    Sampler,
    SamplingParams,
    Task,
    UsageError,
    derive_seed,
)

CHAT = "chat.jsonl"
TITLES = {
    "reverse_kl": "reverse KL to the teacher",
    "forward_kl": "forward KL to the teacher",
    "jsd": "Jensen–Shannon divergence from the teacher",
}
"""The losses by distribution, in words."""
LOOKED_AT = 256
"""Training problems of a task whose length is compared with the model's context before anything begins."""


def run(run: Run, config: DistillRunConfig) -> None:
    """The recipe `distill`."""
    config.validate()
    prepare_torch(config.device)
    student = resolve_model(config.student, run.store)
    if config.by_texts:
        by_texts(run, config, student)
    else:
        by_distributions(run, config, student, resolve_model(config.teacher, run.store))


# ---- on the teacher's texts


def by_texts(run: Run, config: DistillRunConfig, student: Path) -> Artifact:
    """SFT of the student on conversations given, and on the teacher's answers to questions given."""
    require_turns(load_tokenizer(student))
    files, told = config.data, []
    if config.prompts:
        asked = None if is_url(config.teacher) else resolve_model(config.teacher, run.store)
        told.append(prompts(run, config.prompts, (), asked, config.max_tokens))
        files = (*files, str(teacher_answers(run, config, told[0]).path / CHAT))
    settings = SftRunConfig(
        model=config.student,
        data=files,
        held_out=config.held_out,
        sft=config.sft,
        eval_every=config.eval_every,
        save_every=config.save_every,
        precision=config.precision,
        device=config.device,
    )
    data = chat_data(run, settings, student)
    _tell(run, [*told, data])
    trained = fine_tune(run, settings, student, data)
    figures = trained.meta["metrics"]
    held_out = ""
    if "valid_loss" in figures:
        held_out = f": held-out loss {figures['valid_loss_before']:.4f} → {figures['valid_loss']:.4f} nats per token"
    print(f"{trained.path / MODEL}{held_out}")
    return trained


def teacher_answers(run: Run, config: DistillRunConfig, asked: Artifact) -> Artifact:
    """The teacher's answers as chat data: `chat.jsonl`. What was cut off or says nothing is left out and counted."""
    address = config.teacher
    params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)

    def build(work: Path) -> dict[str, object]:
        teacher = _teacher(run, config)
        todo = [(problem, n) for problem in read_prompts(asked) for n in range(config.samples)]

        def ask(start: int, end: int) -> list[dict[str, Any]]:
            part = todo[start:end]
            seeds = [derive_seed("teacher", run.seed, problem.id, n) for problem, n in part]
            return _answers(teacher, [problem.messages for problem, _ in part], seeds, params)

        rows: list[dict[str, Any]] = []
        with Progress(len(todo), "teacher-answers", "answers") as progress:
            for answered in in_chunks(work / "scratch", len(todo), config.chunk, ask):
                rows += answered
                progress.update(len(rows))
        kept = [
            ChatExample((*problem.messages, Message(**row["message"])), problem.meta)
            for (problem, _), row in zip(todo, rows, strict=True)
            if row["finish_reason"] == "stop" and row["message"]["content"].strip()
        ]
        cut = sum(row["finish_reason"] != "stop" for row in rows)
        if not kept:
            what = f"the teacher's {len(rows)} answers cannot be used: {cut} cut off, the others empty"
            raise DunwuError(what, "raise --max_tokens, or see what it says with `dunwu chat`")
        write_chat(work / CHAT, kept)
        return {"answers": len(rows), "kept": len(kept), "cut_off": cut, "empty": len(rows) - len(kept) - cut}

    teacher = [address, config.teacher_name] if is_url(address) else model_digest(resolve_model(address, run.store))
    settings = {"teacher": teacher, "samples": config.samples, "params": params, "seed": run.seed}
    return run.stage("teacher-answers", build, settings, [asked], version=COMPUTED)


def _teacher(run: Run, config: DistillRunConfig) -> LocalChat | Endpoint:
    if is_url(config.teacher):
        return Endpoint(config.teacher, config.teacher_name)
    folder = resolve_model(config.teacher, run.store)
    encoder = load_tokenizer(folder)
    return LocalChat(Engine(from_pretrained(folder, resolve_device(config.device)), encoder), encoder, config.teacher)


def _answers(
    teacher: LocalChat | Endpoint, talks: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
) -> list[dict[str, Any]]:
    """{"message", "finish_reason"} of each answer."""
    if isinstance(teacher, Endpoint):
        drawn = [(answer.message, answer.finish_reason) for answer in teacher.complete(talks, seeds, params)]
    else:
        drawn = [(parse_reply(done.text), done.finish_reason) for done in teacher.complete(talks, seeds, params)]
    return [
        {"message": {"role": "assistant", "content": m.content, "reasoning_content": m.reasoning_content}}
        | {"finish_reason": reason}
        for m, reason in drawn
    ]


# ---- by distributions, on the student's own texts or on given ones


def by_distributions(run: Run, config: DistillRunConfig, student: Path, teacher: Path) -> Artifact:
    """Logit and on-policy distillation, with checkpoints on the way and, where a task verifies, a held-out curve."""
    settings = config.settings
    check_same_tokens(load_tokenizer(student), load_tokenizer(teacher))
    asked: list[Artifact] = []
    if config.task:
        task = get_task(config.task, **task_options(config.options, config.task_data))
        check_room([student, teacher], looked_at(task, run.seed), settings.max_tokens)
    else:
        answers = settings.on_policy_share < 1
        asked.append(prompts(run, config.prompts, config.data, student, settings.max_tokens, answers))
        _tell(run, asked)
        task = Prompts(read_prompts(asked[0]))
    device = resolve_device(config.device)

    def build(work: Path) -> dict[str, object]:
        learner, encoder, state = open_learner(work, student, settings, device)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        master = from_pretrained(teacher, device)
        given = None if settings.on_policy_share == 1 else _given(master, teacher, encoder, task)
        figures = _distil(run, config, work, learner, master, engine, encoder, task, state, given)
        save_learner(learner, encoder, work)
        return figures | {"steps": settings.steps}

    curve = [config.held_out_problems, config.eval_every] if config.task else []
    key = {"student": model_digest(student), "teacher": model_digest(teacher), "distill": settings, "curve": curve}
    source = file_digest(config.task) if config.task.endswith(".py") else config.task
    key |= {"task": [source, *sorted(config.options), data_digest(config.task_data)], "seed": run.seed}
    trained = run.stage("distill", build, key, asked, version=COMPUTED)
    figures = trained.meta["metrics"]
    name = LOSSES[settings.divergence]
    moved = f"{figures[f'{name}_first']:.4f} → {figures[name]:.4f} nats per token"
    print(f"{trained.path / MODEL}: {TITLES[name]} {moved} in {settings.steps} steps")
    return trained


def _given(master: Transformer, folder: Path, encoder: Tokenizer, task: Task) -> Sampler:
    """Who answers what the student does not: the files' conversations, and the teacher where they have no answer."""
    teacher = Engine(master, load_tokenizer(folder).stopping_at(stop_ids_of(folder)))
    return Replies(known_answers(task.problems, encoder), teacher) if isinstance(task, Prompts) else teacher


def _distil(
    run: Run,
    config: DistillRunConfig,
    work: Path,
    learner: Learner,
    master: Transformer,
    engine: Sampler,
    encoder: Tokenizer,
    task: Task,
    state: dict[str, Any],
    given: Sampler | None,
) -> dict[str, object]:
    """Take the learner to the last step; returns the figures of its first and last."""
    settings, start, name = config.settings, int(state["step"]), LOSSES[config.distill.divergence]
    figures: dict[str, Any] = {name: value for name, value in state.items() if name not in ("step", "version")}
    params = SamplingParams(max_tokens=settings.max_tokens)

    def measure(n: int) -> dict[str, float]:
        if not config.task or (n % config.eval_every and n != settings.steps):
            return {}
        point = held_out_point(run, engine, encoder, task, config.held_out_problems, params, n)
        return {"held_out_accuracy": point["eval/pass@1"]} | ({"before": point["eval/pass@1"]} if n == 0 else {})

    if start == 0:
        figures |= measure(0)
    with Progress(settings.steps, "distill", "steps", start=start) as progress:
        for step in on_policy_distill(learner, master, engine, encoder, task, settings, run.seed, start, work, given):
            run.log("distill", step.n, step.metrics)
            run.log_groups("distill", step.n, step.groups)
            figures[name] = step.metrics[f"distill/{name}"]
            figures.setdefault(f"{name}_first", figures[name])
            figures |= measure(step.n)
            if step.n % config.save_every == 0 or step.n == settings.steps:
                save_state(work, learner, {**figures, "step": step.n})
            progress.update(step.n, **{name: figures[name]}, tokens=step.metrics["distill/trained_tokens"])
    return figures


def check_same_tokens(student: Tokenizer, teacher: Tokenizer) -> None:
    """Raise DunwuError unless every id means the same to both."""
    mine, theirs = (encoder.backend.get_vocab(with_added_tokens=True) for encoder in (student, teacher))
    if mine != theirs:
        token = min(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
        what = f"student and teacher have other tokens: {token!r} is {mine.get(token)} there, {theirs.get(token)} here"
        raise DunwuError(what, "use two models with one tokenizer, or --method sequence")


def looked_at(task: Task, seed: int) -> list[Problem]:
    """The first training problems of a task."""
    return [task.problem("train", seed, index) for index in range(LOOKED_AT)]


def check_room(
    folders: Sequence[Path], asked: Sequence[Problem], max_tokens: int, flag: str = "distill.max_tokens"
) -> None:
    """Raise UsageError if prompts and completions do not fit the models' contexts; `flag` says what sets the latter."""
    encoder, room = load_tokenizer(folders[0]), min(map(context_of, folders))
    longest = max(len(prompt_ids(encoder, problem)) for problem in asked)
    if longest + max_tokens > room:
        what = f"prompts of {longest} tokens and completions of {max_tokens} exceed the models' {room}"
        raise UsageError(what, f"lower --{flag}, or shorten the prompts")


def _tell(run: Run, artifacts: Sequence[Artifact]) -> None:
    """Name the bad rows of every stage that read files; the run folder has all."""
    for artifact in artifacts:
        tell_bad_rows(run, artifact)
    write_atomically(run.dir / BAD_ROWS, "".join((a.path / BAD_ROWS).read_text("utf-8") for a in artifacts))
