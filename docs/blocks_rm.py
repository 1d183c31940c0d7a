"""Blocks about reward models, from the record `rm-study`."""

from __future__ import annotations

from blocks_results import Results, interval_text, table


def study(results: Results) -> str:
    """Every kind of reward model against the best possible predictor of the same noisy labels."""
    record = results.read("rm-study")
    if record is None:
        return f"*{results.missing}*"
    found = record["result"]
    heads = ["reward model", "of the best possible", "the same on requests as in training", "accuracy on the labels"]
    rows = [[*heads, "agreement with the truth", "calibration error"]]
    for row in found["rows"]:
        cells = (row["of_bayes"], row["training_requests"], row["accuracy"], row["agreement"]["agreement"])
        rows.append([row["arm"], *(interval_text(cell) for cell in cells), f"{row['calibration_error']:.3f}"])
    best = found["ceiling"]
    replies = f"{found['rows'][0]['replies']:,} labelled replies each"
    said = f"{replies}; {best['pairs']:,} pairs; the best possible predictor reaches {best['bayes_accuracy']:.3f}, two labelers agree in "
    return f"{table(rows)}\n\n{said}{best['agreement_of_labelers']:.3f}. {results.origin(record)}"
