"""Blocks about reinforcement: the shelf of variants, and PPO against GRPO, from `dunwu.train.variants` and the record `rl-study`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from blocks_results import Results, interval_text, table

from dunwu.disk import plain
from dunwu.eval.report_rl_study import BY
from dunwu.eval.rl_comparison import NAMES, flat, said
from dunwu.train.variants import VARIANTS

STUDY, LAMBDA = "rl-study", "rl-lambda"


def variants(results: Results) -> str:
    """Every variant: where it is from, what it sets, what it is for, and what it did on equal budgets."""
    record = results.read(STUDY)
    found = (record or {}).get("result", {}).get("variants")
    rows_of = {row["arm"]: row for row in found["rows"]} if found else {}
    head = [
        "variant",
        "paper",
        "equation",
        "setting",
        "helps",
        "samples",
        "pass@1",
        "on the way",
        "tokens",
        "entropy",
        "processor s/step",
    ]
    rows = [head]
    for name, variant in VARIANTS.items():
        settings = " ".join(f"`{part}`" for part in said(flat(_changed(variant.settings))).split())
        said_of = [f"`{name}`<br>{variant.title}", _linked(variant.paper), variant.equation, settings, variant.helps]
        rows.append([*said_of, *_measured(rows_of.get(name))])
    base = ""
    if record and found:
        task = found["task"]
        ends = interval_text(record["result"]["base"][task]["pass@1"])
        base = f"\n\nThe base: {ends} on {task}. {results.origin(record)}"
    return table(rows) + (base or f"\n\n*{results.missing}*")


def _changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's settings as JSON, of nested ones only what differs from their defaults."""
    changed = {}
    for name, value in settings.items():
        kept = plain(value)
        if isinstance(kept, dict):
            default = plain(type(value)())
            kept = {part: own for part, own in kept.items() if own != default[part]}
        changed[name] = kept
    return changed


def _linked(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def _measured(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 6
    entropy = "" if row["entropy"] is None else f"{row['entropy']:.3f}"
    way = f"{row['on_the_way']['value']:.3f}"
    return [
        f"{row['samples']:,.0f}",
        interval_text(row["pass@1"]),
        way,
        f"{row['length']:.0f}",
        entropy,
        f"{row['processor_seconds_per_step']:.2f}",
    ]


def rl_study(results: Results) -> str:
    """PPO against GRPO: a table for each task."""
    record = results.read(STUDY)
    if record is None:
        return f"*{results.missing}*"
    found = record["result"]
    parts = []
    for task, part in found["tasks"].items():
        base = found["base"][task]
        head = [task, "pass@1", f"pass@{base['k']}", f"pass@1 after {part['equal_seconds']:.0f} processor s"]
        head += ["on the way", "tokens", "entropy", "processor s/step", "kept, MB"]
        rows = [
            head,
            [
                "base",
                interval_text(base["pass@1"]),
                interval_text(base["pass@k"]),
                *[""] * 2,
                f"{base['length']:.0f}",
                *[""] * 3,
            ],
        ]
        for row in part["rows"]:
            _, score, way, length, entropy, seconds = _measured(row)
            cells = [NAMES.get(row["arm"], row["arm"]), score, interval_text(row["pass@k"])]
            cells += [interval_text(row["at_equal_seconds"]), way, length, entropy, seconds, f"{row['memory_mb']:.1f}"]
            rows.append(cells)
        parts.append(table(rows))
    return "\n\n".join([*parts, results.origin(record)])


def rl_curves(results: Results) -> str:
    """The learning curves, of every task by samples and by processor seconds."""
    record = results.read(STUDY)
    drawn = []
    for task in record["result"]["tasks"] if record else ():
        for by in BY:
            file = f"rl-study-{task}-{by.split()[-1]}.svg"
            if (results.folder / file).exists():
                drawn.append(f"![{task}: held-out pass@1 by {by}](results/{file})")
    return "\n".join(drawn) or f"*{results.missing}*"


def rl_verdicts(results: Results) -> str:
    """Each claim, whether it holds, and the figure that decides."""
    record = results.read(STUDY)
    if record is None:
        return f"*{results.missing}*"
    words = {True: "yes", False: "**no**", None: "open"}
    rows = [["claim", "holds", "figure"]]
    rows += [[v["claim"], words[v["holds"]], v["figure"]] for v in record["result"]["verdicts"]]
    again = results.read(LAMBDA)
    if again is None:
        return table(rows)
    more = [v for v in again["result"]["verdicts"] if "with λ = 1 than with 0.95, at" in v["claim"]]
    rows += [[f"again: {v['claim']}", words[v["holds"]], v["figure"]] for v in more]
    return f"{table(rows)}\n\nAgain, with more seeds of these two arms alone: {results.origin(again)}"


def rl_settings(results: Results) -> str:
    """What all arms share, and in what each differs."""
    record = results.read(STUDY)
    if record is None:
        return f"*{results.missing}*"
    found = record["result"]
    rows = [["arm", "settings"], ["all", f"`{said(flat(found['shared']))}`"]]
    rows += [[f"`{arm}`", f"`{said(own)}`" if own else ""] for arm, own in found["arms"].items()]
    return table(rows)
