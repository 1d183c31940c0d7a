"""What each command does: one function call into a room, and how a person is shown the result.

A command is a function from parsed arguments to a JSON object, and another that shows the object. Rooms
are imported when a command runs, so that `dunwu score` or `dunwu tasks` never wait for torch.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dunwu.types import UsageError

Result = dict[str, Any]
MOST_STAGES = 8
"""Stages of a run that `dunwu runs` names one by one."""


@dataclass(frozen=True)
class Command:
    """One line of `dunwu --help`.

    `arguments` are (names, settings) of `add_argument`; `open_ended` lets unknown flags through to
    `run` as `args.rest`; `as_json` gives it `--json`. A result whose "ok" is False means exit code 1.
    """

    summary: str
    run: Callable[[argparse.Namespace], Result]
    show: Callable[[Result], None]
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()
    open_ended: bool = False
    as_json: bool = True


def arg(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a command."""
    return names, settings


# ---- doctor, run, recipes, runs, report


def _doctor(args: argparse.Namespace) -> Result:
    from dunwu.doctor import examine

    return examine()


def _show_doctor(facts: Result) -> None:
    torch, home = facts["torch"], facts["home"]
    features = [name for name, there in facts["cpu_features"].items() if there]
    extras = [name for name, there in facts["extras"].items() if there]
    print(f"python    {facts['python']}, dunwu {facts['dunwu']}, torch {torch['version']}")
    print(f"cpu       {facts['cpu']}: {facts['cores']} cores, {facts['threads']} threads, {' '.join(features)}")
    print(f"memory    {facts['memory_gib']} GiB")
    print(f"gpu       {torch['gpu'] or 'none'}")
    print(f"extras    {', '.join(extras) or 'none'}")
    print(f"compiler  {facts['compiler'] or 'none'}")
    print(
        f"home      {home['path']}: {'writable' if home['writable'] else 'not writable'}, {home['free_gib']} GiB free"
    )
    for finding in facts["findings"]:
        print(f"{finding['level']:9} {finding['what']}" + (f" ({finding['cure']})" if finding["cure"] else ""))


def _run(args: argparse.Namespace) -> Result:
    from dunwu.eval.report import write_report
    from dunwu.log import Run
    from dunwu.recipes import get_recipe
    from dunwu.recipes.flags import parse_flags

    recipe = get_recipe(args.recipe)
    preset = args.preset or recipe.default_preset
    if preset not in recipe.presets:
        raise UsageError(f"{recipe.name} has no preset {preset!r}", f"choose from {', '.join(recipe.presets)}")
    config = parse_flags(recipe.presets[preset], args.rest, also=args.flags)
    suffix = ("" if preset == recipe.default_preset else f"-{preset}") + (f"-seed{args.seed}" if args.seed else "")
    out = args.out or Path("runs") / f"{recipe.name}{suffix}"
    tell = recipe.load()
    with Run.open(out, recipe.name, config, args.seed) as run:
        tell(run, config)
    return {"run": str(out), "report": str(write_report(out))}


def _show_run(result: Result) -> None:
    print(f"report: {result['report']}")


def _show_nothing(result: Result) -> None:
    """The command has said everything already."""


def _recipes(args: argparse.Namespace) -> Result:
    from dunwu.recipes import RECIPES

    shown = [{"name": r.name, "summary": r.summary, "presets": list(r.presets)} for r in RECIPES.values()]
    return {"recipes": shown}


def _show_recipes(result: Result) -> None:
    _table([[recipe["name"], " ".join(recipe["presets"]), recipe["summary"]] for recipe in result["recipes"]])


def _runs(args: argparse.Namespace) -> Result:
    from dunwu.log import summarize

    return {"runs": [summarize(file.parent) for file in sorted(args.folder.glob("*/run.json"))]}


def _show_runs(result: Result) -> None:
    rows = []
    for run in result["runs"]:
        stages = _stages_in_short(run["stages"])
        figures: Result = next((stage["metrics"] for stage in reversed(run["stages"]) if stage.get("metrics")), {})
        numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        headline = " ".join(f"{name} {value:.4g}" for name, value in list(numbers.items())[:4])
        rows.append([run["path"], str(run["recipe"]), f"seed {run['seed']}", str(run["status"]), stages, headline])
    if rows:
        _table(rows)
    else:
        print("no runs here; `dunwu recipes` lists what can be run")


def _stages_in_short(stages: list[Result]) -> str:
    """Every stage with its status; of many, how many have which status, and those that are neither done nor reused."""
    if len(stages) <= MOST_STAGES:
        return " ".join(f"{stage['stage']}:{stage['status']}" for stage in stages)
    counts = Counter(stage["status"] for stage in stages)
    open_ones = [f"{stage['stage']}:{stage['status']}" for stage in stages if stage["status"] not in ("done", "reused")]
    said = [f"{count} {status}" for status, count in counts.items() if status in ("done", "reused")]
    return " ".join([f"{len(stages)} stages:", ", ".join(said), *open_ones]).strip()


def _runs_gc(args: argparse.Namespace) -> Result:
    from dunwu.log import needed_keys
    from dunwu.store import Store

    store = Store()
    removed, freed = store.gc(needed_keys(store, args.folder))
    return {"home": str(store.home), "removed": removed, "freed_bytes": freed}


def _show_runs_gc(result: Result) -> None:
    print(f"{result['removed']} things removed from {result['home']}, {result['freed_bytes'] / 1e6:.1f} MB freed")


def _report(args: argparse.Namespace) -> Result:
    if not (args.run / "run.json").is_file():
        raise UsageError(f"{args.run} is no run folder: it has no run.json", "see `dunwu runs`")
    from dunwu.eval.report import write_report

    return {"report": str(write_report(args.run, args.out))}


def _chat(args: argparse.Namespace) -> Result:
    from dunwu.rollout.endpoint import Endpoint, is_url
    from dunwu.store import resolve_model

    remote = is_url(args.model)
    if remote and not args.model_name:
        raise UsageError(f"{args.model} serves models by name", "name one: --model-name NAME")
    if args.prompt is None and args.json and sys.stdin.isatty():
        raise UsageError("--json has nothing to ask", "give --prompt TEXT, or questions on stdin")
    folder = None if remote else resolve_model(args.model)
    from dunwu.serve.session import Sitting, sit
    from dunwu.serve.speaker import RemoteSpeaker, open_speaker

    sitting = Sitting(
        prompt=args.prompt,
        system=args.system,
        seed=args.seed,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        fold=args.fold,
        language=args.lang,
        quiet=args.json,
    )
    if folder is None:
        return sit(RemoteSpeaker(Endpoint(args.model, args.model_name)), sitting)
    return sit(open_speaker(folder, args.model, args.frame, args.device), sitting)


# ---- eval, score, tasks, peek, tokenizer


def _eval(args: argparse.Namespace) -> Result:
    from dunwu.store import resolve_model
    from dunwu.tasks import get_task, task_options

    options = task_options(args.set, args.data)
    get_task(args.task, **options)  # a wrong name is told before torch loads
    folder = resolve_model(args.model)
    from dunwu.eval.evaluate import evaluate_model

    return evaluate_model(
        str(folder),
        args.task,
        n=args.n,
        samples=args.samples,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        device=args.device,
        **options,
    )


def _show_eval(result: Result, indent: str = "") -> None:
    for name, value in result.items():
        if isinstance(value, dict):
            if {"low", "high"} <= value.keys():
                middle = value.get("mean", value.get("value"))
                print(f"{indent}{name:12} {middle:.4f}  (95%: {value['low']:.4f} to {value['high']:.4f})")
            else:
                print(f"{indent}{name}")
                _show_eval(value, indent + "  ")
        else:
            print(f"{indent}{name:12} {value:.4g}" if isinstance(value, float) else f"{indent}{name:12} {value}")


def _score(args: argparse.Namespace) -> Result:
    from dunwu.tasks import get_task, score_stream, task_options

    task = get_task(args.task, **task_options(args.set, args.data))
    if isinstance(out := args.stdout, io.TextIOWrapper):
        out.reconfigure(line_buffering=True)  # whoever feeds one line may wait for its verdict
    counts = score_stream(task, sys.stdin.buffer, out)
    print("dunwu score: " + ", ".join(f"{number} {name}" for name, number in counts.items()), file=sys.stderr)
    return dict(counts)


def _tasks(args: argparse.Namespace) -> Result:
    from dunwu.tasks import catalogue

    return {"tasks": catalogue()}


def _show_tasks(result: Result) -> None:
    _table([[task["name"], task["summary"]] for task in result["tasks"]])


def _tasks_show(args: argparse.Namespace) -> Result:
    from dunwu.tasks import get_task, task_options

    task = get_task(args.task, **task_options(args.set, args.data))
    problem = task.problem(args.split, args.seed, args.index)
    shown = {"task": problem.task, "id": problem.id, "problem": dict(problem.data), "prompt": problem.prompt}
    return {**shown, "gold": task.gold(problem), "meta": dict(problem.meta)}


def _show_task(result: Result) -> None:
    print(f"{result['task']} {result['id']}\n{json.dumps(result['problem'], ensure_ascii=False)}")
    print(f"--- prompt\n{result['prompt']}\n--- gold\n{result['gold']}")


def _peek(args: argparse.Namespace) -> Result:
    from dunwu.store import resolve_model

    model = resolve_model(args.model)
    other = resolve_model(args.compare) if args.compare else None
    from dunwu.eval.peek import peek

    return peek(str(model), args.text, args.top, str(other) if other else None)


def _show_peek(result: Result) -> None:
    for model, table in (("model", "next"), ("compare", "compare_next")):
        if table in result:
            print(result[model])
            _table([[f"{row['id']}", repr(row["token"]), f"{row['probability']:.4f}"] for row in result[table]])


def _tokenizer_train(args: argparse.Namespace) -> Result:
    from dunwu.data.tokenizer import train_tokenizer

    missing = [file for file in args.files if not file.exists()]
    if missing:
        raise UsageError(f"no such file: {missing[0]}", "give text or JSONL files")
    tokenizer = train_tokenizer(args.files, args.vocab_size, args.out)
    return {"tokenizer": str(args.out), "vocab_size": tokenizer.vocab_size}


def _show_tokenizer_train(result: Result) -> None:
    print(f"{result['tokenizer']}: {result['vocab_size']} tokens")


def _tokenizer_encode(args: argparse.Namespace) -> Result:
    return {"ids": _load_tokenizer(args.tokenizer).encode(_stdin_text())}


def _tokenizer_decode(args: argparse.Namespace) -> Result:
    tokenizer = _load_tokenizer(args.tokenizer)
    text = _stdin_text()
    try:
        read = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.split()
        ids = [int(token_id) for token_id in (read["ids"] if isinstance(read, dict) else read)]
    except (ValueError, KeyError, TypeError):
        raise UsageError("stdin holds no token ids", 'give {"ids": [1, 2]} or ids between spaces') from None
    wrong = [token_id for token_id in ids if not 0 <= token_id < tokenizer.vocab_size]
    if wrong:
        raise UsageError(
            f"token id {wrong[0]} is outside this tokenizer", f"ids go from 0 to {tokenizer.vocab_size - 1}"
        )
    return {"text": tokenizer.decode(ids)}


def _load_tokenizer(name: str) -> Any:
    from dunwu.data.tokenizer import load_tokenizer
    from dunwu.store import resolve_folder

    return load_tokenizer(resolve_folder(name) if ":" in name and not Path(name).exists() else name)


_SET = arg("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the task, e.g. operands=4")
_DATA = arg("--data", metavar="FILE", help="problems for the task: JSONL, Parquet or a folder")
_TASK = arg("--task", required=True, metavar="TASK", help="a name from `dunwu tasks`, or your own: FILE.py")
_MODEL = arg("model", metavar="MODEL", help="a model folder, or a run's stage such as runs/x:r1-zero")
_TOKENIZER = arg("--tokenizer", required=True, metavar="NAME_OR_DIR", help="a folder with tokenizer.json")
_FOLDER = arg("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="where the runs are (runs)")
_SEED = arg("--seed", type=int, default=0, help="seed (0)")

COMMANDS: dict[str, Command] = {
    "doctor": Command("what this machine can do, what will be slow, and the cure", _doctor, _show_doctor),
    "run": Command(
        "run a recipe; Ctrl-C and kill -9 are safe, the same command resumes",
        _run,
        _show_run,
        (
            arg("recipe", metavar="RECIPE", help="a name from `dunwu recipes`"),
            arg("--out", type=Path, metavar="DIR", help="run folder (runs/RECIPE)"),
            _SEED,
            arg("--preset", metavar="NAME", help="tiny, cpu or gpu (cpu)"),
        ),
        open_ended=True,
        as_json=False,
    ),
    "recipes": Command("what can be run", _recipes, _show_recipes),
    "runs": Command("what was run: stages, status, headline figures", _runs, _show_runs, (_FOLDER,)),
    "runs gc": Command("free artifacts that no run needs", _runs_gc, _show_runs_gc, (_FOLDER,)),
    "report": Command(
        "one self-contained HTML page, and report.json with every number in it",
        _report,
        lambda result: print(result["report"]),
        (
            arg("run", type=Path, metavar="RUN", help="a run folder"),
            arg("--out", type=Path, metavar="FILE", help="the page (RUN/report.html)"),
        ),
    ),
    "eval": Command(
        "pass@1, pass@k, cons@k with 95% intervals, lengths, behaviours",
        _eval,
        _show_eval,
        (
            _MODEL,
            _TASK,
            arg("--n", type=int, default=256, help="held-out problems (256)"),
            arg("--samples", type=int, default=1, metavar="K", help="samples per problem (1)"),
            arg("--max-tokens", type=int, default=256, help="longest completion (256)"),
            arg("--temperature", type=float, default=1.0, help="0 is greedy (1)"),
            _SEED,
            arg("--device", default="auto", help="cpu, cuda, mps or auto"),
            _DATA,
            _SET,
        ),
    ),
    "score": Command(
        "JSONL on stdin to verdicts on stdout, a line each", _score, _show_nothing, (_TASK, _DATA, _SET), as_json=False
    ),
    "tasks": Command("the task catalogue", _tasks, _show_tasks),
    "tasks show": Command(
        "one problem with its gold answer",
        _tasks_show,
        _show_task,
        (
            arg("task", metavar="TASK", help="a name from `dunwu tasks`, or your own: FILE.py"),
            arg("--split", default="train", help="train, valid or test (train)"),
            arg("--index", type=int, default=0, help="which problem (0)"),
            _SEED,
            _DATA,
            _SET,
        ),
    ),
    "peek": Command(
        "next-token table: id, token, probability",
        _peek,
        _show_peek,
        (
            _MODEL,
            arg("text", metavar="TEXT", help="what the model continues"),
            arg("--top", type=int, default=10, help="rows (10)"),
            arg("--compare", metavar="MODEL2", help="a second model, beside the first"),
        ),
    ),
    "tokenizer train": Command(
        "train a tokenizer on text or JSONL files",
        _tokenizer_train,
        _show_tokenizer_train,
        (
            arg("files", nargs="+", type=Path, metavar="FILES", help="text or JSONL"),
            arg("--vocab-size", type=int, required=True, metavar="N", help="tokens in all, 256 bytes included"),
            arg("--out", type=Path, required=True, metavar="DIR", help="where its files go"),
        ),
    ),
    "tokenizer encode": Command(
        'text on stdin to {"ids": […]}', _tokenizer_encode, lambda result: print(json.dumps(result)), (_TOKENIZER,)
    ),
    "tokenizer decode": Command(
        'ids on stdin, as {"ids": […]}, to text',
        _tokenizer_decode,
        lambda result: print(result["text"], end=""),
        (_TOKENIZER,),
    ),
    "chat": Command(
        "talk to a model: its thinking dim, its answer bold, English and Chinese",
        _chat,
        _show_nothing,
        (
            arg("model", metavar="MODEL", help="a model folder, RUN:STAGE, or the URL of a chat server"),
            arg("--model-name", default="", metavar="NAME", help="the model a server is asked for"),
            arg("--prompt", metavar="TEXT", help="one question, then leave (else every line of stdin is a turn)"),
            arg("--system", default="", metavar="TEXT", help="said before the conversation"),
            arg("--max-tokens", type=int, default=512, help="longest reply (512)"),
            arg("--temperature", type=float, default=0.7, help="0 is greedy (0.7)"),
            _SEED,
            arg("--fold", action="store_true", help="begin with folded thinking; /think unfolds it"),
            arg("--frame", choices=("auto", "chat", "zero"), default="auto", help="in turns, or in R1-Zero's template"),
            arg("--lang", choices=("auto", "en", "zh"), default="auto", help="of the interface; auto asks the locale"),
            arg("--device", default="auto", help="cpu, cuda, mps or auto"),
        ),
    ),
}


def _stdin_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 (byte {error.start})", "convert the text first") from None


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns by display width; the last one runs free."""
    from dunwu.progress import columns

    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
