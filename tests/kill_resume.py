"""Kill a short run of a recipe with SIGKILL at random moments, resume it each time, compare it with a run left alone.

    python tests/kill_resume.py --kills 100 --seed 0 [--recipe r1|dpo|ppo|rlhf]

Every attempt is a process of its own. Half of the kills come at a random time; the other half just before a random file
operation (opening for writing, renaming, removing, making a folder), where half-done work would be. Fresh runs follow
each other until the kills asked for are spent; a run is killed about `--per-run` times, and every run must end with the
same artifacts bit for bit (timings left out), the same rollouts, and metrics without gap or duplicate.

Prints one JSON line; exit 0 if everything is identical. Needs `os.fork`. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dunwu import machine
from dunwu.data.tokenizer import train_from_texts
from dunwu.eval.report import write_report
from dunwu.log import Run, read_json, read_metrics, read_rollouts
from dunwu.model.config import model_preset
from dunwu.model.hf import save_model
from dunwu.model.transformer import Transformer
from dunwu.recipes import dpo, ppo, r1, r1_zero, rlhf
from dunwu.recipes.configs import EvidenceConfig, R1ZeroConfig
from dunwu.recipes.dpo_config import DpoRunConfig
from dunwu.recipes.ppo_config import PpoRunConfig
from dunwu.recipes.r1_config import (
    ColdStartConfig,
    FinalConfig,
    PreferenceConfig,
    R1Config,
    RejectionConfig,
    StudentsConfig,
    TableConfig,
)
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.recipes.rlhf_arms import FILE as RLHF_FILE
from dunwu.recipes.rlhf_config import RLHF_PRESETS, ComparisonConfig, DemonstrationConfig, MeasureConfig, RlhfConfig
from dunwu.store import Store
from dunwu.tasks.countdown import CountdownConfig
from dunwu.train.config import GrpoConfig, PretrainConfig, SftConfig, StabilityConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.train.dpo_config import DpoConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.rm_config import RmConfig
from dunwu.world.general import sft_examples
from dunwu.world.knobs import Knobs

TIMED = ("time", "seconds", "tokens_per_second")
"""Endings of the names of figures that no two runs share."""
STAGES = ("tokenizer", "shards", "base", "r1-zero", "evidence")
TABLES = ("evidence.json", "stages.json", RLHF_FILE)
"""What the recipes put into the run folder for the report."""


def short_config() -> R1ZeroConfig:
    """Every stage in about a second, each with several checkpoints. The coin as reward: there is always a gradient."""
    return R1ZeroConfig(
        model="tiny",
        vocab_size=300,
        tokenizer_pages=50,
        world=Knobs(high=6, target_high=20, four_operands=0.0),
        pretrain=PretrainConfig(
            tokens=12_000,
            rows=4,
            context=64,
            warmup=4,
            dropout=0.1,
            log_every=2,
            eval_every=9,
            save_every=4,
            precision="fp32",
        ),
        grpo=GrpoConfig(
            steps=8,
            problems=4,
            group_size=4,
            max_tokens=10,
            warmup=2,
            minibatches=2,
            kl_coef=0.05,
            reference_every=3,
            reward="random",
        ),
        task=CountdownConfig(high=6, target_high=20),
        evidence=EvidenceConfig(
            problems=8,
            curve_problems=4,
            curve_every=3,
            pass_k_problems=2,
            pass_k_samples=2,
            four_operands=0,
            shown=1,
        ),
        save_every=2,
    )


def short_r1_config() -> R1Config:
    """The whole of R1, every stage in about a second."""
    grpo = GrpoConfig(steps=4, problems=3, group_size=3, max_tokens=12, warmup=1, reward="random")
    sft = SftConfig(epochs=2, context=256, batch_tokens=1024, warmup=1)
    rewards = RmConfig(rows=8, warmup=1)
    short = short_config()
    return replace(
        R1_PRESETS["tiny"],
        vocab_size=640,
        tokenizer_pages=300,
        pretrain=replace(short.pretrain, tokens=6_000),
        zero=grpo,
        cold_start=ColdStartConfig(problems=6, samples=2, examples=24, general=0.9),
        cold_sft=sft,
        reasoning=grpo,
        ablation_steps=4,
        rejection=RejectionConfig(problems=6, samples=2, least_general=24),
        sft=sft,
        preferences=PreferenceConfig(pairs=60, safety=40),
        helpful=rewards,
        safety=replace(rewards, kind="pointwise"),
        final=FinalConfig(grpo=grpo, preference_steps=2, over_steps=2),
        students=StudentsConfig(
            models=("tiny",),
            pretrain=replace(short.pretrain, tokens=3_000),
            rl=grpo,
            on_policy=DistillConfig(steps=3, problems=3, group_size=1, max_tokens=12, warmup=1),
        ),
        table=TableConfig(problems=3, general=3, max_tokens=12, shown=1, curve_problems=4, curve_every=2),
        save_every=1,
    )


@cache
def short_dpo_config() -> DpoRunConfig:
    """KTO of a model that knows nothing, two passes. Model and pairs lie in a folder made by the process that calls this first."""
    folder = Path(tempfile.mkdtemp(prefix="dunwu-kill-dpo-"))
    atexit.register(shutil.rmtree, folder, True)
    encoder = train_from_texts([f"user assistant say {n} here is {n} no" for n in range(9)], 330)
    model = Transformer(model_preset("tiny", encoder.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder / "model", encoder.end_id)
    encoder.save(folder / "model")
    rows = [{"prompt": f"say {n} {n % 7}", "chosen": f"here is {n}", "rejected": f"no {n}"} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return DpoRunConfig(
        model=str(folder / "model"),
        data=(str(folder / "pairs.jsonl"),),
        dpo=DpoConfig(loss="kto", rows=4, epochs=2, warmup=2, lr=3e-3, held_out=0.2),
        held_out_every=3,
        save_every=2,
        precision="fp32",
        device="cpu",
    )


@cache
def short_ppo_config() -> PpoRunConfig:
    """PPO with all it can carry: a critic that warms up, a KL that steers itself, a reference that moves, four updates a step."""
    model = short_dpo_config().model
    settings = PpoConfig(
        steps=8,
        problems=3,
        group_size=3,
        max_tokens=8,
        warmup=2,
        minibatches=2,
        epochs=2,
        kl_coef=0.05,
        reference_every=3,
        value_warmup=2,
        reward="random",
        stability=StabilityConfig(kl_target=0.01, entropy_target=5.0),
    )
    return PpoRunConfig(
        model=model,
        task="countdown",
        options=("high=6", "target_high=20"),
        ppo=settings,
        held_out=4,
        held_out_every=3,
        save_every=2,
        device="cpu",
    )


@cache
def short_rlhf_config() -> RlhfConfig:
    """RLHF on a base that knows nothing but letters, made by the process that calls this first: an ensemble's PPO, and GRPO."""
    folder = Path(tempfile.mkdtemp(prefix="dunwu-kill-rlhf-"))
    atexit.register(shutil.rmtree, folder, True)
    encoder = train_from_texts([message.content for row in sft_examples(1, 200) for message in row.messages], 400)
    model = Transformer(model_preset("tiny", encoder.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder, encoder.end_id)
    encoder.save(folder)
    tiny = RLHF_PRESETS["tiny"]
    return replace(
        tiny,
        base=str(folder),
        demonstrations=DemonstrationConfig(rows=120),
        comparisons=ComparisonConfig(prompts=16, held_out=8, replies=3),
        ppo=replace(tiny.ppo, problems=8, max_tokens=8),
        grpo=replace(tiny.grpo, problems=2, max_tokens=8),
        arms=("mean+kl-0.1", "grpo"),
        measure=MeasureConfig(every=2, problems=6, final=8, kl_budget=0.1, best_of=4, shown=1),
        device="cpu",
        save_every=1,
    )


RECIPES: dict[str, tuple[Callable[[], Any], Callable[[Run, Any], None]]] = {
    "r1-zero": (short_config, r1_zero.run),
    "r1": (short_r1_config, r1.run),
    "dpo": (short_dpo_config, dpo.run),
    "ppo": (short_ppo_config, ppo.run),
    "rlhf": (short_rlhf_config, rlhf.run),
}
"""Recipe → its short config and its story."""


# ---- one attempt: a child process ---------------------------------------------------------------


def attempt(
    home: Path,
    seed: int,
    die_at_event: int | None = None,
    die_after: float | None = None,
    recipe: str = "r1-zero",
) -> int | None:
    """Run or resume in a child. Returns the file operations it counted if it ended well, None if it was killed.

    Raises:
        RuntimeError: the child failed otherwise; its output is shown.
    """
    child = os.fork()
    if child == 0:
        _live(home, seed, die_at_event, recipe)
    status = os.waitpid(child, 0)[1] if die_after is None else _kill_after(child, die_after)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status != 0:
        raise RuntimeError(f"a resumed run failed:\n{(home / 'output').read_text()}")
    return int((home / "events").read_text())


def _kill_after(child: int, seconds: float) -> int:
    """Kill the child if it still runs then; returns how it ended, as `waitpid` says it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _live(home: Path, seed: int, die_at_event: int | None, recipe: str) -> None:
    """The child's whole life; it does not return."""
    code = 1
    try:
        log = os.open(home / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count = _count_file_operations(die_at_event)
        make_config, tell = RECIPES[recipe]
        config = make_config()
        with Run.open(home / "run", recipe, config, seed, Store(home / "store")) as run:
            tell(run, config)
        write_report(home / "run")
        (home / "events").write_text(str(count()))
        code = 0
    except BaseException:  # noqa: BLE001  (the parent shows it)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count_file_operations(die_at: int | None) -> Callable[[], int]:
    seen = 0

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        writing = (
            event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writing or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen


# ---- many attempts: a run that is killed again and again ------------------------------------------


def killed_run(
    home: Path, seed: int, per_run: int, seconds: float, events: int, dice: random.Random, recipe: str = "r1-zero"
) -> list[str]:
    """Run with kills until it ends; returns how each kill was aimed.

    An attempt lives for a random share of the whole run, `0.7 / per_run` in the mean and growing by 5% a kill, so that
    about `per_run` kills fall, all over the run, and a stage longer than an attempt comes through in the end.
    """
    kills: list[str] = []
    while True:
        share = 1.4 / per_run * 1.05 ** len(kills) * dice.random()
        aim = dice.choice(("time", "event"))
        if aim == "time":
            done = attempt(home, seed, die_after=share * seconds, recipe=recipe)
        else:
            done = attempt(home, seed, die_at_event=1 + int(share * events), recipe=recipe)
        if done is not None:
            return kills
        kills.append(aim)


def differences(one: Path, other: Path) -> tuple[list[str], list[str]]:
    """What two runs do not share: (in artifacts and rollouts, in metrics)."""
    files: list[str] = []
    stages = [sorted(file.stem for file in (home / "run" / "stages").glob("*.json")) for home in (one, other)]
    files += [f"stage {name} is not in both" for name in sorted(set(stages[0]) ^ set(stages[1]))]
    for stage in set(stages[0]) & set(stages[1]):
        records = [read_json(home / "run" / "stages" / f"{stage}.json") for home in (one, other)]
        keys = [record["key"] for record in records]
        folders = [home / "store" / "artifacts" / key for home, key in zip((one, other), keys)]
        contents = [_contents(folder) for folder in folders]
        files += [f"{stage}/{name}" for name in _unlike(*contents)]
        headlines = [{k: v for k, v in record["metrics"].items() if not k.endswith(TIMED)} for record in records]
        files += [f"{stage}: {name} {[line.get(name) for line in headlines]}" for name in _unlike(*headlines)]
    if list(read_rollouts(one / "run")) != list(read_rollouts(other / "run")):
        files.append("rollouts")
    for name in TABLES:
        tables = [home / "run" / name for home in (one, other)]
        if any(table.exists() for table in tables) and _untimed(tables[0]) != _untimed(tables[1]):
            files.append(name)
    lines = [[_timeless(line) for line in read_metrics(home / "run")] for home in (one, other)]
    steps = [(line["stage"], line["step"]) for line in lines[1]]
    metrics = [f"{step} twice" for step in sorted(set(steps)) if steps.count(step) > 1]
    metrics += [f"{a} is {b}" for a, b in zip(*lines) if a != b]
    if len(lines[0]) != len(lines[1]):
        metrics.append(f"{len(lines[0])} lines are {len(lines[1])}")
    return files, metrics


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact, but those that hold times."""
    timed = ("manifest.json", "COMPLETE", "metrics.jsonl")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in timed
    }


def _untimed(table: Path) -> Any:
    """A table of the run folder without what it says of time."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strip(item) for name, item in value.items() if not name.endswith(TIMED)}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads(table.read_text("utf-8"))) if table.exists() else None


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.endswith(TIMED)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills in all, at least (100)")
    parser.add_argument("--per-run", type=int, default=12, help="kills a run gets, about (12)")
    parser.add_argument("--seed", type=int, default=0, help="of the runs and of the moments (0)")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="r1-zero", help="what is run (r1-zero)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAYON_NUM_THREADS"] = "1"
    RECIPES[args.recipe][0]()  # what a recipe makes for itself is made here, and inherited
    machine.git_commit()  # asked once, here, and not again by every child
    began = time.monotonic()
    dice = random.Random(args.seed)
    top = Path(tempfile.mkdtemp(prefix="dunwu-kill-"))
    alone = top / "alone"
    alone.mkdir()
    events = attempt(alone, args.seed, recipe=args.recipe)
    assert events is not None
    seconds = time.monotonic() - began
    kills: list[list[str]] = []
    files: list[str] = []
    metrics: list[str] = []
    while sum(map(len, kills)) < args.kills:
        home = top / f"killed-{len(kills)}"
        home.mkdir()
        kills.append(killed_run(home, args.seed, args.per_run, seconds, events, dice, args.recipe))
        wrong = differences(alone, home)
        files += wrong[0]
        metrics += wrong[1]
        print(f"run {len(kills)}: {len(kills[-1])} kills, {wrong}", file=sys.stderr, flush=True)
        if not any(wrong):
            shutil.rmtree(home)
    if not files and not metrics:
        shutil.rmtree(top)
    result = {
        "recipe": args.recipe,
        "kills": sum(map(len, kills)),
        "runs": len(kills),
        "fewest_kills_of_a_run": min(map(len, kills)),
        "kills_by_time": sum(run.count("time") for run in kills),
        "kills_at_file_operations": sum(run.count("event") for run in kills),
        "identical": not files,
        "metrics_identical": not metrics,
        "differences": (files + metrics)[:20],
        "seconds": round(time.monotonic() - began, 1),
        "seconds_of_a_run": round(seconds, 2),
        "file_operations_of_a_run": events,
    }
    print(json.dumps(result))
    return 0 if not files and not metrics else 1


if __name__ == "__main__":
    raise SystemExit(main())
