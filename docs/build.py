"""Keeps the documentation true: keeps measurements with their origin, and writes every table that quotes one.

    python docs/build.py record NAME --command "make smoke" --from FILE [--seed 0 --seed 1 …]
        FILE.json (an object), or a text file (a command's output), becomes docs/results/NAME.json,
        stamped with commit, date and machine. The schema is in docs/results/README.md.
    python docs/build.py tables [--check]
        Writes what stands between `begin: NAME` and `end: NAME` comments in README*.md and docs/*.md;
        --check writes nothing and fails if anything is stale.
    python docs/build.py picture RUN
        Draws score and length of a run folder: docs/results/r1-zero.svg, which both READMEs show.

What has no recorded measurement reads "not measured yet". A page whose name ends in .zh-CN.md is Chinese.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the pages describe the code they lie beside, installed or not

import blocks_control  # noqa: E402
import blocks_data  # noqa: E402
import blocks_distill  # noqa: E402
import blocks_models  # noqa: E402
import blocks_r1  # noqa: E402
import blocks_results  # noqa: E402
import blocks_rl  # noqa: E402
import blocks_rlhf  # noqa: E402
import blocks_rm  # noqa: E402
import blocks_speed  # noqa: E402
import blocks_world  # noqa: E402
from blocks_results import PICTURE, Results  # noqa: E402

from dunwu import machine  # noqa: E402
from dunwu.disk import finite, write_atomically  # noqa: E402
from dunwu.eval.report import write_picture  # noqa: E402
from dunwu.types import DunwuError  # noqa: E402

RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"<!-- begin: (?P<name>[a-z0-9-]+) -->\n(?P<body>.*?)<!-- end: (?P=name) -->", re.DOTALL)

BLOCKS: dict[str, Callable[[Results], str]] = {
    "architectures": blocks_models.architectures,
    "arch-study": blocks_models.arch_study,
    "real-shapes": blocks_models.real_shapes,
    "extension": blocks_models.extension,
    "r1-table": blocks_r1.stage_table,
    "r1-seeds": blocks_r1.seed_table,
    "r1-verdicts": blocks_r1.verdict_table,
    "r1-students": blocks_r1.student_table,
    "r1-language": blocks_r1.language_table,
    "r1-rewards": blocks_r1.reward_table,
    "r1-cost": blocks_r1.cost_table,
    "r1-settings": blocks_r1.settings_table,
    "r1-setup": blocks_r1.setup_table,
    "variants": blocks_rl.variants,
    "rl-study": blocks_rl.rl_study,
    "rl-curves": blocks_rl.rl_curves,
    "rl-verdicts": blocks_rl.rl_verdicts,
    "rl-settings": blocks_rl.rl_settings,
    "rm-study": blocks_rm.study,
    "distill-ways": blocks_distill.distill,
    "expert-rounds": blocks_distill.expert,
    "rlhf-settings": blocks_rlhf.settings,
    "rlhf-curves": blocks_rlhf.curves,
    "rlhf-arms": blocks_rlhf.arms,
    "rlhf-judges": blocks_rlhf.judges,
    "rlhf-verdicts": blocks_rlhf.verdicts,
    "output-r1-zero": blocks_results.output("output-r1-zero"),
    "output-test": blocks_results.output("output-test"),
    "picture": blocks_results.picture,
    "results": blocks_results.results_table,
    "behaviours": blocks_results.behaviour_table,
    "verdicts": blocks_results.verdict_table,
    "measured": blocks_results.measured_table,
    "settings": blocks_results.settings_table,
    "records": blocks_results.records_table,
    "data": blocks_data.data,
    "control": blocks_control.control,
    "control-critic": blocks_control.critic,
    "control-groups": blocks_control.groups,
    "control-settings": blocks_control.settings,
    "doors": blocks_results.doors,
    "speed": blocks_speed.speed,
    "world-knobs": blocks_world.knobs_table,
    "world-hands": blocks_world.hands_table,
    "world-samples": blocks_world.samples,
}


# ---- pages ----------------------------------------------------------------------


def build(root: Path = ROOT, results: Path | None = None) -> dict[Path, str]:
    """Every generated file with the text it should have.

    Raises:
        DunwuError: a marker names no block, or has no partner; a record lacks a figure.
    """
    folder = results or root / "docs" / "results"
    found = {}
    for page in sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")]):
        found[page] = filled(page.read_text("utf-8"), Results(folder, page.name.endswith(".zh-CN.md")), str(page.name))
    return found


def filled(text: str, results: Results, where: str) -> str:
    """A page with every block written anew."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise DunwuError(f"{where}: no block is called {name!r}", f"one of {', '.join(BLOCKS)}")
        return f"<!-- begin: {name} -->\n{BLOCKS[name](results)}\n<!-- end: {name} -->"

    whole, count = BLOCK.subn(block, text)
    markers = len(re.findall(r"<!-- (?:begin|end): [a-z0-9-]+ -->", text))
    if markers != 2 * count:
        raise DunwuError(f"{where}: a begin or end marker has no partner", "write both, names alike")
    return whole


# ---- verbs ----------------------------------------------------------------------------------


def record(name: str, command: str, source: Path, seeds: Sequence[int], folder: Path) -> Path:
    """Keep a measurement with its origin.

    Raises:
        DunwuError: a name with other characters than a-z, 0-9 and -, or a source that cannot be read as meant.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise DunwuError(f"{name!r} cannot name a record", "use a-z, 0-9 and -")
    try:
        text = source.read_text("utf-8")
        result = json.loads(text) if source.suffix == ".json" else {"output": text}
    except (OSError, ValueError) as error:
        raise DunwuError(f"cannot read {source}: {error}", "give a JSON object, or a text file") from None
    if not isinstance(result, dict):
        raise DunwuError(f"{source} holds no JSON object", "the result is an object of named figures")
    kept: dict[str, Any] = {"name": name, "command": command, "commit": machine.git_commit()}
    kept |= {"date": time.strftime("%Y-%m-%d"), "machine": {**machine.describe(), "versions": machine.versions()}}
    if seeds:
        kept |= {"seed": seeds[0]} if len(seeds) == 1 else {"seeds": list(seeds)}
    file = folder / f"{name}.json"
    write_atomically(file, json.dumps(finite(kept | {"result": result}), ensure_ascii=False, indent=1) + "\n")
    return file


def tables(root: Path, check: bool) -> list[Path]:
    """Write (or, to check, only list) what is stale."""
    stale = []
    for file, text in build(root).items():
        if not file.exists() or file.read_text("utf-8") != text:
            stale.append(file)
            if not check:
                write_atomically(file, text)
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 if something is stale or cannot be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    keep = verbs.add_parser("record", help="keep a measurement under docs/results")
    keep.add_argument("name")
    keep.add_argument("--command", required=True, help="what was run")
    keep.add_argument("--from", dest="source", type=Path, required=True, metavar="FILE")
    keep.add_argument("--seed", type=int, action="append", default=[])
    draw = verbs.add_parser("picture", help="draw score and length of a run for the READMEs")
    draw.add_argument("run", type=Path, help="a run folder")
    write = verbs.add_parser("tables", help="write the generated blocks")
    write.add_argument("--check", action="store_true", help="write nothing; fail if something is stale")
    args = parser.parse_args(arguments)
    try:
        if args.verb == "record":
            print(record(args.name, args.command, args.source, args.seed, RESULTS))
            return 0
        if args.verb == "picture":
            print(write_picture(args.run, RESULTS / PICTURE))
        check = args.verb == "tables" and args.check
        stale = tables(ROOT, check)
    except DunwuError as error:
        print(f"docs/build.py: {error}", file=sys.stderr)
        return 1
    for file in stale:
        print(f"{'stale' if check else 'written'}: {file.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
