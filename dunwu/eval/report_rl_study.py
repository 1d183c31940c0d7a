"""The report's part on a study of policy gradients; `evidence.json` holds it under `rl_study`, in the schema of `eval.rl_comparison`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dunwu.eval.plots import PAGE, PAPER, Panel, Series, Theme, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading, interval, note, number, safe, table
from dunwu.eval.rl_comparison import NAMES, flat, said

CHINESE = {"countdown": "倒计时数字题", "knights": "骑士与无赖"}
BY = ("samples", "processor seconds")
"""What a learning curve is drawn against, in the order of a curve's columns."""
BY_CHINESE = {"samples": "按样本数", "processor seconds": "按处理器时间"}


def rl_study_sentence(found: Mapping[str, Any]) -> str:
    """The page's headline: on the first task every arm's score."""
    parts = dict(found["tasks"]) or {found["variants"]["task"]: found["variants"]}
    task, part = next(iter(parts.items()))
    scores = [f"{NAMES.get(row['arm'], row['arm'])}: {row['pass@1']['value']:.1%}" for row in part["rows"][:4]]
    return f"{task} from {found['base'][task]['pass@1']['value']:.1%}; {'; '.join(scores)}"


def rl_study_section(found: Mapping[str, Any]) -> str:
    """Tables and curves of every task, the variants, and all settings."""
    parts = []
    for task, part in found["tasks"].items():
        parts.append(heading(f"PPO against GRPO: {task}", f"PPO 与 GRPO：{CHINESE.get(task, task)}"))
        parts.append(_table(found, task, part))
        words = f"Validation problems; bands: 95% over {len(part['seeds'])} seeds."
        drawn = [captioned(f"By {by}", BY_CHINESE[by], words, curves_svg(found, task, by, PAGE)) for by in BY]
        parts.append(f'<div class="grid">{"".join(drawn)}</div>')
    if variants := found.get("variants"):
        parts.append(heading(f"Every variant: {variants['task']}", "所有变体"))
        parts.append(_table(found, variants["task"], variants))
    return "".join([*parts, _settings(found)])


def _table(found: Mapping[str, Any], task: str, part: Mapping[str, Any]) -> str:
    base, timed = found["base"][task], f"after {part['equal_seconds']:.0f} processor s"
    heads = ["arm", "seeds", "samples", "pass@1", f"pass@{base['k']}", timed, "on the way", "tokens", "entropy"]
    heads += ["processor s/step", "s/step", "kept MB"]
    rows = [
        [
            "base",
            "",
            "",
            interval(base["pass@1"]),
            interval(base["pass@k"]),
            *[""] * 2,
            number(base["length"]),
            *[""] * 5,
        ]
    ]
    for row in part["rows"]:
        figures = ("length", "entropy", "processor_seconds_per_step", "seconds_per_step", "memory_mb")
        cells = [
            safe(NAMES.get(row["arm"], row["arm"])).replace(" ", "\u00a0"),
            number(row["seeds"]),
            number(row["samples"]),
        ]
        cells += [interval(row[key]) for key in ("pass@1", "pass@k", "at_equal_seconds", "on_the_way")]
        rows.append(cells + [number(row[key]) for key in figures])
    words = (
        f"{found['measure'][0].upper()}{found['measure'][1:]}. The column “{timed}” reads the validation curves at the time the fastest "
        "training ended, “on the way” is their mean over all samples. 95% intervals: over seeds, with one seed over problems. Kept: weights, optimizer, critic and reference. "
        "Peak: of the process, which keeps what earlier trainings freed."
    )
    return table(heads, rows, numbers=(1, 2, *range(7, 13))) + note(words)


def _settings(found: Mapping[str, Any]) -> str:
    rows = [["shared by all", f"<code>{safe(said(flat(found['shared'])))}</code>"]]
    for arm, own in found["arms"].items():
        rows.append([safe(NAMES.get(arm, arm)), f"<code>{safe(said(own)) or 'as shared'}</code>"])
    return heading("Settings of every arm", "各组设置") + table(["arm", "differs in"], rows)


def curves_svg(found: Mapping[str, Any], task: str, by: str, theme: Theme = PAPER) -> str:
    """pass@1 on validation problems against `by`: "samples", or "processor seconds"."""
    lines = []
    for n, (arm, rows) in enumerate(found["tasks"][task]["curves"].items()):
        at = [(row[BY.index(by)], row[2]) for row in rows]
        band = [(x, max(0.0, y["low"]), min(1.0, y["high"])) for x, y in at if y["low"] is not None]
        lines.append(Series(NAMES.get(arm, arm), [(x, y["value"]) for x, y in at], n, band=band))
    panel = Panel(lines, "share of right answers", low=0.0, percent=True)
    return chart([panel], f"{task}: held-out pass@1 by {by}", by, theme, width=560, height=230)
