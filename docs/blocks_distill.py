"""Blocks about distillation and expert iteration, from the records `distill` and `expert`."""

from __future__ import annotations

from blocks_results import Results, table


def distill(results: Results) -> str:
    """What each way of distilling makes of one student, from one teacher in as many steps."""
    record = results.read("distill")
    if record is None:
        return f"*{results.missing}*"
    rows = [["", "flags", "loss, nats per token", "held-out accuracy"]]
    for row in record["result"]["rows"]:
        before, after = row["loss"]
        ends = [row["held_out"][0][1], row["held_out"][-1][1]]
        rows.append(
            [row["arm"], f"`{row['flags']}`", f"{before:.4f} → {after:.4f}", " → ".join(f"{y:.3f}" for y in ends)]
        )
    return f"{table(rows)}\n\n{results.origin(record)}"


def expert(results: Results) -> str:
    """Held-out accuracy of expert iteration, round by round."""
    record = results.read("expert")
    if record is None:
        return f"*{results.missing}*"
    found = record["result"]["rows"]
    rounds = [f"round {step}" for step, _ in found[0]["held_out"][1:]]
    rows = [["held-out accuracy", "flags", "given", *rounds]]
    for row in found:
        flags = f"`{row['flags']}`" if row["flags"] else ""
        rows.append([row["arm"], flags, *(f"{y:.3f}" for _, y in row["held_out"])])
    return f"{table(rows)}\n\n{results.origin(record)}"
