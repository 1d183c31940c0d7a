"""Problems and verdicts: score, tasks, tasks show."""

from __future__ import annotations

import argparse
import io
import json
import sys

from dunwu.commands.command import DATA, SEED, SET, TASK, Command, Result, arg, print_table, show_nothing


def _score(args: argparse.Namespace) -> Result:
    from dunwu.tasks import get_task, score_stream, task_options

    task = get_task(args.task, **task_options(args.set, args.data))
    if isinstance(out := args.stdout, io.TextIOWrapper):
        out.reconfigure(line_buffering=True)  # whoever feeds one line may wait for its verdict
    counts = score_stream(task, sys.stdin.buffer, out)
    print("dunwu score: " + ", ".join(f"{number} {name}" for name, number in counts.items()), file=sys.stderr)
    return dict(counts)


SCORE = Command(
    "JSONL on stdin to verdicts on stdout, a line each", _score, show_nothing, (TASK, DATA, SET), as_json=False
)


def _tasks(args: argparse.Namespace) -> Result:
    from dunwu.tasks import catalogue

    return {"tasks": catalogue()}


def _show_tasks(result: Result) -> None:
    print_table([[task["name"], task["summary"]] for task in result["tasks"]])


TASKS = Command("the task catalogue", _tasks, _show_tasks)


def _tasks_show(args: argparse.Namespace) -> Result:
    from dunwu.tasks import get_task, task_options

    task = get_task(args.task, **task_options(args.set, args.data))
    problem = task.problem(args.split, args.seed, args.index)
    shown = {"task": problem.task, "id": problem.id, "problem": dict(problem.data), "prompt": problem.prompt}
    return {**shown, "gold": task.gold(problem), "meta": dict(problem.meta)}


def _show_task(result: Result) -> None:
    print(f"{result['task']} {result['id']}\n{json.dumps(result['problem'], ensure_ascii=False)}")
    print(f"--- prompt\n{result['prompt']}\n--- gold\n{result['gold']}")


TASKS_SHOW = Command(
    "one problem with its gold answer",
    _tasks_show,
    _show_task,
    (
        arg("task", metavar="TASK", help="a name from `dunwu tasks`, or your own: FILE.py"),
        arg("--split", default="train", help="train, valid or test (train)"),
        arg("--index", type=int, default=0, help="which problem (0)"),
        SEED,
        DATA,
        SET,
    ),
)
