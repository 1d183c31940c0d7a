"""The machine, the recipes, and what was run: doctor, run, recipes, runs, runs gc, report."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from dunwu.commands.command import SEED, Command, Result, arg, print_table
from dunwu.types import UsageError

MOST_STAGES = 8
"""Stages of a run that `dunwu runs` names one by one."""
_RUNS = Path("runs")
_FOLDER = arg("folder", nargs="?", type=Path, default=_RUNS, metavar="FOLDER", help="where the runs are (runs)")


def _doctor(args: argparse.Namespace) -> Result:
    if args.run is None:
        from dunwu.doctor import examine

        return examine()
    from dunwu.eval.report_doctor import consult

    folder, stage = args.run, ""
    if not Path(folder).is_dir() and ":" in folder:
        folder, _, stage = folder.rpartition(":")
    return {"run": folder, **consult(Path(folder), stage)}


def _show_doctor(facts: Result) -> None:
    (_show_patient if "healthy" in facts else _show_machine)(facts)


def _show_patient(found: Result) -> None:
    for finding in found["findings"]:
        print(f"{finding['pathology']}: {finding['stage']}, steps {finding['first_step']} to {finding['last_step']}")
        print(f"  {finding['what']}\n  cure: {finding['cure']}")
    if not found["stages"]:
        print(f"{found['run']}: no stage of reinforcement learning, nothing to judge")
    elif found["healthy"]:
        print(f"{found['run']}: healthy ({', '.join(found['stages'])})")


def _show_machine(facts: Result) -> None:
    torch, home, native = facts["torch"], facts["home"], facts["native"]
    features = [name for name, there in facts["cpu_features"].items() if there]
    extras = [name for name, there in facts["extras"].items() if there]
    print(f"python    {facts['python']}, dunwu {facts['dunwu']}, torch {torch['version']}")
    print(f"cpu       {facts['cpu']}: {facts['cores']} cores, {facts['threads']} threads, {' '.join(features)}")
    print(f"memory    {facts['memory_gib']} GiB")
    print(f"gpu       {torch['gpu'] or 'none'}")
    print(f"extras    {', '.join(extras) or 'none'}")
    print(f"kernels   {', '.join(native['dtypes']) or 'off'}; compiler {native['compiler'] or 'none'}")
    print(
        f"home      {home['path']}: {'writable' if home['writable'] else 'not writable'}, {home['free_gib']} GiB free"
    )
    for finding in facts["findings"]:
        print(f"{finding['level']:9} {finding['what']}" + (f" ({finding['cure']})" if finding["cure"] else ""))


DOCTOR = Command(
    "what this machine can do, what will be slow, and the cure; with RUN, what a run suffers from",
    _doctor,
    _show_doctor,
    (arg("run", nargs="?", metavar="RUN", help="a run folder, or RUN:STAGE: its pathologies instead of the machine"),),
)


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
    resolved = getattr(config, "resolved", None)
    config = resolved() if resolved else config  # what run.json says is what runs
    suffix = ("" if preset == recipe.default_preset else f"-{preset}") + (f"-seed{args.seed}" if args.seed else "")
    out = args.out or _RUNS / f"{recipe.name}{suffix}"
    tell = recipe.load()
    with Run.open(out, recipe.name, config, args.seed) as run:
        tell(run, config)
    return {"run": str(out), "report": str(write_report(out))}


def _show_run(result: Result) -> None:
    print(f"report: {result['report']}")


RUN = Command(
    "run a recipe; Ctrl-C and kill -9 are safe, the same command resumes",
    _run,
    _show_run,
    (
        arg("recipe", metavar="RECIPE", help="a name from `dunwu recipes`"),
        arg("--out", type=Path, metavar="DIR", help="run folder (runs/RECIPE)"),
        SEED,
        arg("--preset", metavar="NAME", help="cpu, tiny or gpu, as far as the recipe has them (cpu)"),
    ),
    open_ended=True,
    as_json=False,
)


def _recipes(args: argparse.Namespace) -> Result:
    from dunwu import recipes

    shown = [{"name": r.name, "summary": r.summary, "presets": list(r.presets)} for r in recipes.RECIPES.values()]
    return {"recipes": shown}


def _show_recipes(result: Result) -> None:
    print_table([[recipe["name"], " ".join(recipe["presets"]), recipe["summary"]] for recipe in result["recipes"]])


RECIPES = Command("what can be run", _recipes, _show_recipes)


def _runs(args: argparse.Namespace) -> Result:
    from dunwu.log import summarize

    if not args.folder.exists() and args.folder != _RUNS:
        raise UsageError(f"no such folder: {args.folder}", "name the folder that holds run folders")
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
        print_table(rows)
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


RUNS = Command("what was run: stages, status, headline figures", _runs, _show_runs, (_FOLDER,))


def _runs_gc(args: argparse.Namespace) -> Result:
    from dunwu.log import needed_keys
    from dunwu.store import Store

    store = Store()
    removed, freed = store.gc(needed_keys(store, args.folder))
    return {"home": str(store.home), "removed": removed, "freed_bytes": freed}


def _show_runs_gc(result: Result) -> None:
    print(f"{result['removed']} things removed from {result['home']}, {result['freed_bytes'] / 1e6:.1f} MB freed")


RUNS_GC = Command("free artifacts that no run needs", _runs_gc, _show_runs_gc, (_FOLDER,))


def _report(args: argparse.Namespace) -> Result:
    if not (args.run / "run.json").is_file():
        raise UsageError(f"{args.run} is no run folder: it has no run.json", "see `dunwu runs`")
    from dunwu.eval.report import write_report

    return {"report": str(write_report(args.run, args.out))}


REPORT = Command(
    "one self-contained HTML page, and report.json with every number in it",
    _report,
    lambda result: print(result["report"]),
    (
        arg("run", type=Path, metavar="RUN", help="a run folder"),
        arg("--out", type=Path, metavar="FILE", help="the page (RUN/report.html)"),
    ),
)
