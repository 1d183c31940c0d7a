"""A run folder as the recipe r1 leaves it, made in a second without training: for tests and for looking at.

    python tests/eval/fake_r1.py OUT    writes OUT/run and its report

The figures are invented; the table, its differences and the verdicts are computed from invented answers.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fake_run import group

from dunwu.eval.passk import mean_share, pass_at_1
from dunwu.eval.stages import Column, Measured, Row, seed_table, stage_table
from dunwu.eval.verdicts import Findings, Student, shape_verdicts
from dunwu.log import Run
from dunwu.store import Artifact, Store
from dunwu.tasks.countdown import Countdown

TITLES = {"reasoning": "Reasoning", "reasoning_easy": "easy", "language": "Language", "format": "Format",
          "instruction": "Instructions", "helpful": "Helpful", "safety": "Safety", "facts": "Facts"}  # fmt: skip
PLAN = [Column(key, title, Countdown(), 200, key, measure=f"invented {key}") for key, title in TITLES.items()]
LEVELS = {
    "base": (0.2, 0.3, 0.7, 0.5, 0.1, 0.2, 0.3, 0.3),
    "R1-Zero": (0.62, 0.85, 0.8, 0.99, 0.15, 0.22, 0.31, 0.28),
    "Dev1": (0.35, 0.6, 0.93, 0.97, 0.5, 0.45, 0.5, 0.2),
    "Dev2": (0.63, 0.9, 0.995, 0.99, 0.55, 0.48, 0.52, 0.27),
    "Dev3": (0.66, 0.9, 0.99, 0.99, 0.75, 0.6, 0.7, 0.29),
    "R1": (0.67, 0.93, 0.995, 0.99, 0.78, 0.83, 0.93, 0.29),
}
STUDENTS = {"base": 0.1, "sft": 0.45, "rl": 0.22, "opd": 0.55}
EVIL = "<script>alert(1)</script></pre></div>\u202e\x1b[31m & \"'"


def measured(levels: Sequence[float], seed: int) -> Measured:
    """Two hundred invented answers a column; the same dice for every model, so that differences are paired."""
    scores, values = {}, {}
    for key, level in zip(TITLES, levels):
        dice = random.Random(f"{key} {seed}")
        values[key] = {f"p-{n}": float(dice.random() < level) for n in range(200)}
        scores[key] = mean_share([[value] for value in values[key].values()])
    return Measured(scores, values)


def table_record() -> dict[str, Any]:
    """stages.json as its schema has it."""
    rows = {name: measured(levels, 0) for name, levels in LEVELS.items()}
    arms = {arm: measured([level] * len(TITLES), 0) for arm, level in STUDENTS.items()}
    stage_of = {"base": "base", "R1-Zero": "r1-zero"}
    parent_of = {"R1-Zero": "base", "Dev1": "base", "Dev2": "dev1", "Dev3": "base", "R1": "dev3"}
    table = [
        Row(name, found, stage_of.get(name, name.lower()), parent_of.get(name, ""), seconds=60.0)
        for name, found in rows.items()
    ]
    table += [Row(f"student-0.5M-{arm}", found, f"student-0.5M-{arm}") for arm, found in arms.items()]
    students = [Student(f"student-0.5M-{arm}", "0.5M", arm, found) for arm, found in arms.items()]
    ablated = measured((0.66, 0.9, 0.85, *LEVELS["Dev2"][3:]), 0)
    agreement = pass_at_1([[n % 6 > 0] for n in range(300)])
    claims = shape_verdicts(Findings(rows, ablated, agreement, students))
    shares = [
        {"stated": 0.55 + 0.1 * n, "happened": 0.52 + 0.09 * n, "n": 60 - 8 * n, "low": 0.5, "high": 1}
        for n in range(5)
    ]
    seeds = [
        {"seed": s, "scores": {name: {"reasoning": level[0] + 0.02 * s} for name, level in LEVELS.items()}}
        for s in range(3)
    ]
    return {
        **stage_table(PLAN, table),
        "verdicts": claims,
        "chats": [chat("en"), chat("zh"), chat("en")],
        "over_optimisation": [
            {"step": s, "proxy": -0.5 + 0.08 * s, "truth": 0.6 + 0.3 * math.sin(s / 15), "reasoning": 0.66 - 0.001 * s}
            for s in range(0, 61, 5)
        ],
        "language_ablation": {
            "with": [[s, 0.93 + 0.06 * (1 - math.exp(-s / 10)), 0.4 + 0.004 * s] for s in range(0, 61, 10)],
            "without": [[s, 0.93 - 0.0015 * s, 0.4 + 0.0045 * s] for s in range(0, 61, 10)],
        },
        "students": [
            {"name": s.name, "arm": s.arm, "size": s.size, "seconds": 50.0, "samples": 3200,
             "scores": {k: i.as_json() for k, i in s.measured.scores.items()}}
            for s in students
        ],
        "reward_models": [
            {"name": "rm-helpful", "pairs": 300, "accuracy": agreement.as_json(), "calibration_error": 0.031,
             "length_correlation": 0.08, "bins": shares, "agreement": {"agreement": agreement.as_json(), "ties": 3}},
            {"name": "rm-safety", "kind": "pointwise", "accuracy": agreement.as_json(), "ece": 0.05, "length_bias": None,
             "calibration": [[0.1, 0.05, 40], [0.5, 0.6, 10], [0.9, 0.97, 60]], "rows": 110},
        ],
        "cold_start": {"samples": 2000.0, "kept": 400.0, "dropped/wrong": 1100.0, "dropped/mixed language": 300.0},
        "rejection": {"sampled": 4800, "kept": 2100, "reasons": {"wrong": 1500, "repetition": 30, "mixed language": 900}, "reasoning": 2100, "general": 700},
        "judge": {"judge": "noisy truth", "pairs": 3000, "position_flips": 0.11, "read/json": 11800},
        "seeds": seeds,
        "over_seeds": seed_table(seeds),
        "notes": ["Figures of this page are invented: it shows a made-up run."],
    }  # fmt: skip


def chat(language: str) -> dict[str, Any]:
    """One prompt to every model."""
    asked = "Make 24 from 3, 7 and 12." if language == "en" else "用3、7、12凑出24。"
    thought = "I need to make 24. 12-7=5, 5*3=15, no. " * 3 if language == "en" else "我要凑出24。12-7=5，不对。" * 3
    replies = [
        {"name": name, "thinking": thought if name != "base" else None, "content": f"It is <answer>(12-7)*3</answer>. {EVIL if name == 'Dev1' else ''}"}
        for name in LEVELS
    ]  # fmt: skip
    replies[0]["content"] = ""
    return {"language": language, "messages": [{"role": "user", "content": asked}], "replies": replies}


def rl(run: Run, name: str) -> Mapping[str, object]:
    """Curves and groups of one RL stage."""
    dice = random.Random(name)
    for step in range(1, 13):
        groups = [group(dice, 0.2 + step / 16, 4) for _ in range(2)]
        metrics = {"grpo/reward": 1 + step / 20, "grpo/reward/accuracy": step / 20, "grpo/reward/format": 1.0,
                   "grpo/reward/language": 0.9 + step / 200, "grpo/length": 60.0 + step, "grpo/entropy": 1 - step / 30,
                   "grpo/loss": dice.gauss(0, 1)}  # fmt: skip
        run.log(name, step, metrics)
        run.log_groups(name, step, groups)
        if step % 4 == 0:
            run.log(f"{name}/held-out", step, {"eval/accuracy": step / 20, "eval/language": 0.9, "eval/length": 60.0})
    return {"step": 12, "accuracy": 0.61}


def loss(run: Run, name: str, key: str) -> Mapping[str, object]:
    """A falling loss."""
    for step in range(1, 31):
        run.log(name, step, {f"{key}/loss": 1 + 3 * math.exp(-step / 8), f"{key}/lr": 1e-3 * (31 - step)})
    return {"loss": 1.07, "examples": 400}


def fake_r1(folder: Path, status: str = "done", upto: int = 99, with_table: bool = True) -> Path:
    """Write `folder/run` with its store `folder/store`; `upto` stages have begun."""
    store = Store(folder / "store")
    run = Run.open(folder / "run", "r1", {"model": "0.8M", "sft": {"epochs": 2}}, seed=0, store=store)
    made: dict[str, Artifact] = {}

    def data(rows: int) -> Any:
        def build(work: Path) -> Mapping[str, object]:
            row = {
                "messages": [
                    {"role": "user", "content": "hello <b>"},
                    {"role": "assistant", "content": "你好", "reasoning_content": "a greeting"},
                ]
            }
            (work / "chat.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 5, "utf-8")
            return {"kept": rows}

        return build  # fmt: skip

    story: list[tuple[str, Any, list[str]]] = [
        ("crawl", lambda work: {"pages": 3000}, []),
        ("clean", lambda work: {"records": 2561}, ["crawl"]),
        ("tokenizer", lambda work: {"vocab_size": 1536}, ["clean"]),
        ("shards", lambda work: {"tokens": 20_400_000}, ["tokenizer"]),
        ("base", lambda work: loss(run, "base", "pretrain"), ["tokenizer", "shards"]),
        ("r1-zero", lambda work: rl(run, "r1-zero"), ["base"]),
        ("cold-start", data(400), ["r1-zero"]),
        ("dev1", lambda work: loss(run, "dev1", "sft"), ["base", "cold-start"]),
        ("dev2", lambda work: rl(run, "dev2"), ["dev1"]),
        ("dev2-no-language", lambda work: rl(run, "dev2-no-language"), ["dev1"]),
        ("rejection", data(2800), ["dev2"]),
        ("dev3", lambda work: loss(run, "dev3", "sft"), ["base", "rejection"]),
        ("preferences", data(2500), ["dev3"]),
        ("rm-helpful", lambda work: {**loss(run, "rm-helpful", "rm"), "agreement": {"value": 0.83, "low": 0.79, "high": 0.87, "n": 300}}, ["dev3", "preferences"]),
        ("rm-safety", lambda work: loss(run, "rm-safety", "rm"), ["dev3", "preferences"]),
        ("r1", lambda work: rl(run, "r1"), ["dev3", "rm-helpful", "rm-safety"]),
        ("r1-overoptimised", lambda work: rl(run, "r1-overoptimised"), ["r1", "rm-helpful", "rm-safety"]),
        ("student-0.5M-base", lambda work: loss(run, "student-0.5M-base", "pretrain"), ["tokenizer", "shards"]),
        ("student-0.5M-sft", lambda work: loss(run, "student-0.5M-sft", "sft"), ["student-0.5M-base", "rejection"]),
        ("student-0.5M-rl", lambda work: rl(run, "student-0.5M-rl"), ["student-0.5M-base"]),
        ("student-0.5M-opd", lambda work: loss(run, "student-0.5M-opd", "distill"), ["student-0.5M-sft", "r1"]),
        ("student-tiny-base", lambda work: loss(run, "student-tiny-base", "pretrain"), ["tokenizer", "shards"]),
        ("student-tiny-sft", lambda work: loss(run, "student-tiny-sft", "sft"), ["student-tiny-base", "rejection"]),
        ("measure-dev1", lambda work: {"reasoning": 0.35}, ["dev1"]),
        ("stage-table", lambda work: {"verdicts": 11, "hold": 9, "fail": 1}, ["r1"]),
    ]  # fmt: skip
    for name, build, inputs in story[:upto]:
        made[name] = run.stage(name, build, {"name": name}, [made[n] for n in inputs])
    if with_table and upto >= len(story):
        (run.dir / "stages.json").write_text(json.dumps(table_record(), ensure_ascii=False), "utf-8")
    run.finish(status)
    return run.dir


if __name__ == "__main__":
    import os

    from dunwu.eval.report import write_report

    os.environ["DUNWU_HOME"] = str(Path(sys.argv[1]) / "store")
    print(write_report(fake_r1(Path(sys.argv[1]))))
