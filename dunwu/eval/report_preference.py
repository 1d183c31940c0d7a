"""The report's parts on what was learned from labelled replies: one model held to held-out labels, or a study of many kinds.

`evidence.json` has `preferences`, a report of `dunwu.eval.calibration` (recipes `rm` and `dpo`), or `reward_models`, what
`recipes.rm_study` found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dunwu.eval.plots import PAGE, Panel, Series, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading, interval, is_interval, number, safe, table

Record = Mapping[str, Any]

_FIGURES = (
    ("accuracy", "accuracy on held-out labels"),
    ("majority", "what naming the more frequent label would reach"),
    ("accuracy_good", "accuracy where the label is good"),
    ("accuracy_bad", "accuracy where the label is bad"),
    ("best_first", "rankings whose best reply scores highest"),
    ("kendall", "Kendall’s τ"),
    ("margin", "mean margin"),
    ("equal_scores", "pairs with equal scores, counted as wrong"),
    ("calibration_error", "calibration error"),
    ("length_correlation", "correlation of score and length"),
    ("chosen_shorter", "accuracy where the better reply is the shorter one"),
    ("disagreement", "mean disagreement of the members"),
)


def preference_sentence(report: Record) -> str:
    """The page's headline."""
    return f"agrees with {report['accuracy']['value']:.1%} of the held-out labels"


def preference_section(report: Record) -> str:
    """Every figure of the report, and whether what the model states happens."""
    known = [(name, said) for name, said in _FIGURES if report.get(name) is not None]
    rows = [[said, _value(report[name])] for name, said in known]
    truth = report.get("agreement") or {}
    rows += [
        [said, _value(truth[name])]
        for name, said in (("agreement", "agreement with the truth"), ("spearman", "Spearman’s ρ with the truth"))
        if truth.get(name) is not None
    ]
    rows = [[safe(name), safe(value)] for name, value in (report.get("said") or {}).items()] + rows
    return heading("Held-out labels", "留出的标注") + table(["figure", "value"], rows) + _calibration(report)


def _calibration(report: Record) -> str:
    """Stated against happened; "" where no bin has a case."""
    bins = [b for b in report.get("bins") or [] if b["n"]]
    if not bins:
        return ""
    found = [(b["stated"], b["happened"]) for b in bins]
    ends = [bins[0]["low"], 1.0]
    lines = [Series("honest", [(x, x) for x in ends], 5), Series("model", found, 0, dots=True)]
    drawn = chart([Panel(lines, "happened", percent=True)], "Calibration", "stated probability", PAGE)
    cases = ", ".join(f"{b['n']:,}" for b in bins)
    return f'<div class="grid">{captioned("Calibration", "校准", f"Cases in each bin: {cases}.", drawn)}</div>'


def _value(figure: Any) -> str:
    return interval(figure) if is_interval(figure) else number(figure)


# ---- a study ------------------------------------------------------------------------------------


def reward_models_sentence(found: Record) -> str:
    """The page's headline."""
    best = max(found["rows"], key=lambda row: row["of_bayes"]["value"])
    return f"up to {best['of_bayes']['value']:.3f} of the best possible accuracy ({best['arm']})"


def reward_models_section(found: Record) -> str:
    """Every kind of model on the same pairs, over all and by family of requests."""
    ceiling = found["ceiling"]
    said = (
        f"{ceiling['pairs']:,} pairs of requests that no model has seen. The best possible predictor of these labels reaches "
        f"{ceiling['bayes_accuracy']:.3f}; two labelers agree in {ceiling['agreement_of_labelers']:.3f}."
    )
    heads = [
        "model",
        "replies",
        "of the best possible",
        "on requests as in training",
        "accuracy",
        "agreement with the truth",
        "calibration error",
    ]
    heads += ["better one shorter", "updates", "seconds"]
    rows = [
        [
            safe(row["arm"]),
            number(row.get("replies")),
            interval(row["of_bayes"]),
            interval(row["training_requests"]),
            interval(row["accuracy"]),
            interval((row["agreement"] or {}).get("agreement")),
            number(row["calibration_error"]),
            interval(row["chosen_shorter"]),
            number(row["updates"]),
            number(row["seconds"]),
        ]
        for row in found["rows"]
    ]
    families = sorted(found["rows"][0]["families"])
    of_family = [[safe(row["arm"]), *(number(row["families"].get(f)) for f in families)] for row in found["rows"]]
    parts = [heading("Every kind of reward model on the same labels", "各种奖励模型，同样的标注"), table(heads, rows)]
    parts += [f'<p class="caption">{said}</p>', heading("By family of requests", "按请求种类")]
    parts += [table(["of the best possible", *families], of_family)]
    return "".join(parts)
