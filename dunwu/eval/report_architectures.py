"""The report's part on architectures side by side; `evidence.json` holds it under `architectures`, as `recipes.arch_study` writes it:

{"rows": [{"arch", "parameters", "active_parameters", "base": I, "result": I, "…_tokens_per_second", "load": [[step, load], …]}, …],
 "unbalanced": {"tokens", "load"}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dunwu.eval.plots import PAGE, PAPER, Panel, Series, Theme, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading, interval, number, safe, table


def architectures_sentence(found: Mapping[str, Any]) -> str:
    """The page's headline."""
    dense, other = found["rows"]
    return f"{other['arch']} {other['result']['value']:.1%} against dense {dense['result']['value']:.1%}, as many weights a token"


def architectures_section(found: Mapping[str, Any]) -> str:
    """Scores and cost as a table, the load of the experts as a picture."""
    header = ["architecture", "weights a token", "weights", "base", "R1-Zero", "pretraining tok/s", "rollout tok/s"]
    rows = [
        [
            safe(row["arch"]),
            number(row["active_parameters"]),
            number(row["parameters"]),
            interval(row["base"]),
            interval(row["result"]),
            number(row["pretraining_tokens_per_second"]),
            number(row["rollout_tokens_per_second"]),
        ]
        for row in found["rows"]
    ]
    said = "The fullest expert's tokens over the mean, worst layer; without moved biases only the control's tokens."
    drawn = load_svg(found["rows"][1]["load"], found["unbalanced"]["load"], PAGE)
    parts = [table(header, rows), captioned("Load of the experts in pretraining", "预训练中专家的负载", said, drawn)]
    return heading("Side by side", "并排比较") + "".join(parts)


def load_svg(balanced: Sequence[Sequence[float]], alone: Sequence[Sequence[float]], theme: Theme = PAPER) -> str:
    """The largest load over the mean by update, with and without moved biases."""
    lines = [
        Series("biases moved", [(x, y) for x, y in balanced], 0),
        Series("biases left at 0", [(x, y) for x, y in alone], 1),
    ]
    panel = Panel(lines, "largest load of an expert / mean", low=1.0)
    return chart([panel], "Load of the experts in pretraining", "update", theme=theme, width=760, height=260)
