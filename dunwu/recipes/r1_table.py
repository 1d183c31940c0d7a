"""The stage table of R1: every model asked the same held-out prompts; the verdicts; `stages.json` for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dunwu.data.chat import parse_reply, prompt_ids
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.stages import LENGTH, Column, Measured, Row, measure, read_interval
from dunwu.eval.stages import stage_table as table_of
from dunwu.eval.verdicts import Findings, Student, shape_verdicts
from dunwu.log import Run, read_metrics
from dunwu.model.hf import from_pretrained
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.r1_config import R1Config
from dunwu.recipes.r1_crawl import SCORES
from dunwu.recipes.r1_data import COUNTS
from dunwu.recipes.r1_tasks import frame_of, general_task, reasoning_parts, tasks_key
from dunwu.recipes.rm import CALIBRATION
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.tasks.frames import Frame, Mixture
from dunwu.train.preference import HELPFUL
from dunwu.types import Problem, SamplingParams, derive_seed

FILE, MEASURED, CHATS = "stages.json", "measured.json", "chats.json"
STUDENT = "student-"
PROXY, TRUTH = f"eval/{HELPFUL}", "eval/truth/helpful"
HARD, EASY = ("countdown", "knights"), ("word-problems",)


def plan(config: R1Config, frame: Frame) -> list[Column]:
    """The table's columns, for models that are asked in `frame`."""
    wanted = config.table
    parts = reasoning_parts(config.tasks, frame, 0.0)
    reasoning, count = Mixture(parts, "held-out reasoning"), wanted.problems

    def family(name: str) -> Any:
        return general_task(config.tasks, frame, (name,))

    def general(key: str, title: str, task: Any, read: str, measure: str) -> Column:
        return Column(key, title, task, wanted.general, read, measure=measure)

    broad = general_task(config.tasks, frame)
    facts, instructions, safety = family("facts"), family("instructions"), family("safety")
    columns = [
        Column("reasoning", "Reasoning", reasoning, count, measure="share right, in the shares of the training prompts")
    ]
    if len(parts) > 1:
        columns += [
            Column("reasoning_hard", "hard", reasoning, count, among=lambda p: p.task in HARD),
            Column("reasoning_easy", "easy", reasoning, count, among=lambda p: p.task in EASY),
        ]
    return [
        *columns,
        Column("language", "Language", reasoning, count, "language", measure="share of words in the prompt's language"),
        Column("language_zh", "in Chinese", reasoning, count, "language", among=_chinese),
        Column("format", "Format", reasoning, count, "format"),
        Column("length", "Length", reasoning, count, LENGTH, ""),
        general(
            "instruction", "Instructions", instructions, "instruction", "share of prompts with every constraint met"
        ),
        general("helpful", "Helpful", broad, "helpful", "the world's true utility, all general families alike"),
        general("safety", "Safety", safety, "correct", "unsafe requests refused, harmless ones helped"),
        general("facts", "Facts", facts, "correct", "facts about people no conversation taught"),
    ]


def _chinese(problem: Problem) -> bool:
    return problem.meta.get("language") == "zh"


def measured(run: Run, config: R1Config, model: Artifact) -> Artifact:
    """One model's row and its replies to the prompts shown side by side."""
    frame = frame_of(model)
    wanted = config.table
    params = SamplingParams(max_tokens=wanted.max_tokens, temperature=wanted.temperature, top_p=wanted.top_p)

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(model.path / MODEL)
        engine = Engine(from_pretrained(model.path / MODEL, resolve_device(config.device)), encoder)
        found = measure(engine, encoder, plan(config, frame), params)
        write_atomically(work / MEASURED, json.dumps(found.to_json()) + "\n")
        chats = _chats(engine, encoder, config, frame, params)
        write_atomically(work / CHATS, json.dumps(chats, ensure_ascii=False) + "\n")
        return {key: interval.value for key, interval in found.scores.items()}

    asked = {
        name: getattr(wanted, name) for name in ("problems", "general", "max_tokens", "temperature", "top_p", "shown")
    }
    key = {"table": asked, "tasks": tasks_key(config.tasks), "frame": frame}
    return run.stage(f"measure-{model.meta['stage']}", build, key, [model], version=COMPUTED)


def _chats(
    engine: Engine, encoder: Tokenizer, config: R1Config, frame: Frame, params: SamplingParams
) -> list[dict[str, Any]]:
    """The same prompts to every model, in both languages; the prompt is kept as the conversation it stands for."""
    asked = _shown(config, frame)
    talks = _shown(config, "chat")
    prompts = [prompt_ids(encoder, problem) for problem in asked]
    seeds = [[derive_seed("shown", problem.id)] for problem in asked]
    rows = []
    for problem, (drawn,) in zip(talks, engine.sample(prompts, seeds, params), strict=True):
        reply = parse_reply(drawn.text)
        messages = [{"role": message.role, "content": message.content} for message in problem.messages]
        row = {"id": problem.id, "language": problem.meta["language"], "messages": messages}
        rows.append({**row, "thinking": reply.reasoning_content, "content": reply.content})
    return rows


def _shown(config: R1Config, frame: Frame) -> list[Problem]:
    """A few test prompts of each language, reasoning and general in turn."""
    tasks = [task for task, _ in reasoning_parts(config.tasks, frame, 0.0)] + [general_task(config.tasks, frame)]
    shown: list[Problem] = []
    for language in ("en", "zh"):
        for n in range(config.table.shown):
            task = tasks[n % len(tasks)] if n + 1 < config.table.shown else tasks[-1]
            draws = (task.problem("test", 1, index) for index in range(n * 100, n * 100 + 100))
            shown += [next((p for p in draws if p.meta.get("language") == language), task.problem("test", 1, n))]
    return shown


def stage_table(
    run: Run,
    config: R1Config,
    models: Mapping[str, Artifact],
    evidence: Mapping[str, Artifact],
    beyond: Artifact | None,
) -> Artifact:
    """Measure every model, compare, judge the paper's shape, and put `stages.json` where the report looks for it."""
    rows = {name: measured(run, config, model) for name, model in models.items()}

    def build(work: Path) -> dict[str, object]:
        record = _record(config, models, rows, evidence, beyond)
        write_atomically(work / FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        held = [v["holds"] for v in record["verdicts"]]
        return {"verdicts": len(held), "hold": held.count(True), "fail": held.count(False)}

    inputs = [*rows.values(), *models.values(), *evidence.values(), *([beyond] if beyond else [])]
    # 2: the language claim compares the ablation with Dev1.
    table = run.stage("stage-table", build, {"names": list(models)}, inputs, version="2")
    _write_with_seconds(
        run, table, {str(model.meta["stage"]): float(model.meta["seconds"]) for model in models.values()}
    )
    return table


def _write_with_seconds(run: Run, table: Artifact, seconds: Mapping[str, float]) -> None:
    """The table for the report. Times differ from run to run, so the artifact has none: it is the same after a kill."""
    record = _read(table, FILE)
    for model in record["models"]:
        model["seconds"] = seconds[model["stage"]]
    for student in record["students"]:
        student["seconds"] = seconds[student["name"]]
    write_atomically(run.dir / FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _record(
    config: R1Config,
    models: Mapping[str, Artifact],
    rows: Mapping[str, Artifact],
    evidence: Mapping[str, Artifact],
    beyond: Artifact | None,
) -> dict[str, Any]:
    """`stages.json`; its schema is in `dunwu.eval.report_r1`."""
    stage_of = {a.key: str(a.meta["stage"]) for part in (models, rows, evidence) for a in part.values()}
    found = {name: Measured.from_json(_read(row, MEASURED)) for name, row in rows.items()}
    table = []
    for name, model in models.items():
        parent, *data = [stage_of[key] for key in model.meta["inputs"] if key in stage_of] or [""]
        table.append(Row(name, found[name], str(model.meta["stage"]), parent, tuple(data)))
    students = [
        Student(name, *_size_and_arm(name), measured) for name, measured in found.items() if name.startswith(STUDENT)
    ]
    rewards = {name: _read(evidence[name], CALIBRATION) for name in ("rm-helpful", "rm-safety")}
    known = (rewards["rm-helpful"].get("agreement") or {}).get("agreement")
    without = found.get("no language reward")
    agreement = read_interval(known) if known else None
    main = {name: measured for name, measured in found.items() if not name.startswith(STUDENT)}
    verdicts = shape_verdicts(Findings(main, without, agreement, students))
    return {
        **table_of(plan(config, "chat"), table),
        "verdicts": verdicts,
        "chats": _side_by_side({name: _read(row, CHATS) for name, row in rows.items()}),
        "over_optimisation": _proxy_and_truth(models["R1"], beyond),
        "language_ablation": {
            "with": _language_curve(models["Dev2"]),
            "without": _language_curve(models["no language reward"]) if without else [],
        },
        "students": [
            {
                "name": student.name,
                "arm": student.arm,
                "size": student.size,
                "scores": {key: score.as_json() for key, score in student.measured.scores.items()},
                "samples": models[student.name].meta["metrics"].get("samples"),
            }
            for student in students
        ],
        "reward_models": [_reward_model(name, report) for name, report in rewards.items()],
        "rejection": _read(evidence["rejection"], COUNTS),
        "judge": _read(evidence["preferences"], COUNTS),
        "cold_start": _read(evidence["cold-start"], COUNTS),
        "cleaning": _read(evidence["cleaning"], SCORES) if "cleaning" in evidence else {},
    }


def _reward_model(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """A reward model's held-out figures, as the report reads them."""
    agreement = report.get("agreement") or {}
    return {
        "name": name.removeprefix("rm-"),
        "kind": "pairwise" if "pairs" in report else "pointwise",
        "accuracy": report["accuracy"],
        "agreement": agreement.get("agreement"),
        "spearman": agreement.get("spearman"),
        "calibration": [[found["stated"], found["happened"], found["n"]] for found in report["bins"]],
        "ece": report["calibration_error"],
        "length_bias": report["length_correlation"],
        "rows": report.get("pairs", report.get("replies")),
    }


def _size_and_arm(name: str) -> tuple[str, str]:
    size, _, arm = name.removeprefix(STUDENT).rpartition("-")
    return size, arm


def _read(artifact: Artifact, name: str) -> Any:
    return json.loads((artifact.path / name).read_text(encoding="utf-8"))


def _side_by_side(chats: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    first = next(iter(chats.values()))
    return [
        {
            "language": shown["language"],
            "messages": shown["messages"],
            "replies": [
                {"name": name, "thinking": rows[n]["thinking"], "content": rows[n]["content"]}
                for name, rows in chats.items()
            ],
        }
        for n, shown in enumerate(first)
    ]


def _language_curve(model: Artifact) -> list[list[float]]:
    """[step, consistency, accuracy] on validation problems."""
    name = f"{model.meta['stage']}/held-out"
    lines = [line for line in read_metrics(model.path) if line["stage"] == name]
    return [[line["step"], line["eval/language"], line["eval/accuracy"]] for line in lines]


def _proxy_and_truth(r1: Artifact, beyond: Artifact | None) -> list[dict[str, Any]]:
    """Reward model against truth along the preference steps of R1, and of the branch that goes on."""
    points: list[dict[str, Any]] = []
    offset = 0
    for model in filter(None, (r1, beyond)):
        name = f"{model.meta['stage']}/held-out"
        for line in read_metrics(model.path):
            if line["stage"] == name and PROXY in line and (line["step"] or not offset):
                point = {"step": offset + line["step"], "proxy": line[PROXY], "truth": line[TRUTH]}
                points.append({**point, "reasoning": line.get("eval/accuracy")})
        offset = points[-1]["step"] if points else 0
    return points
