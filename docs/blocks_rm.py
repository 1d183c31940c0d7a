"""Blocks about reward models, from the record `rm-study`."""

from __future__ import annotations

from blocks_results import Results, interval_text, table


def study(results: Results) -> str:
    """Every kind of reward model against the best possible predictor of the same noisy labels."""
    record = results.read("rm-study")
    if record is None:
        return f"*{results.missing}*"
    found = record["result"]
    rows = [["reward model", "of the best possible", "accuracy on the labels", "agreement with the truth"]]
    for row in found["rows"]:
        cells = (row["of_bayes"], row["accuracy"], row["agreement"]["agreement"])
        rows.append([row["arm"], *(interval_text(cell) for cell in cells)])
    best = found["ceiling"]
    said = f"{best['pairs']:,} pairs; the best possible predictor reaches {best['bayes_accuracy']:.3f}, two labelers agree in "
    return f"{table(rows)}\n\n{said}{best['agreement_of_labelers']:.3f}. {results.origin(record)}"
