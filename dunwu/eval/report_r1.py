"""The R1 parts of the report: what `stages.json` holds, and the order in which it is shown.

`stages.json` in the run folder is written by the recipe `r1`. Its schema, in which I is an interval as
`Interval.as_json` gives it (`{"value", "low", "high", "n"}`); all keys are optional:

    {
      "columns": [{"key": "reasoning", "title": "Reasoning", "better": "higher"/"lower"/"", "measure": "sentence"}, …],
      "models": [                          in the order of the table; `stages.stage_table` makes both
        {"name": "Dev1", "stage": "dev1", "parent": "base", "data": ["cold-start"], "scores": {column: I},
         "seconds": 61.5, "against": "R1-Zero", "changes": {column: I}}, …],     changes: problem by problem
      "verdicts": [{"claim": "sentence", "holds": true/false/null, "figure": "…", "reason": "why it does not hold"}],
      "chats": [{"language": "en", "messages": [{"role", "content"}, …],
                 "replies": [{"name": "Dev1", "thinking": "…" or null, "content": "…"}, …]}, …],
      "over_optimisation": [{"step": 0, "proxy": number, "truth": share, "reasoning": share or null}, …],
      "language_ablation": {"with": [[step, consistency, accuracy], …], "without": [[…], …]},
      "students": [{"name": "…", "arm": "base"/"sft"/"rl"/"opd", "size": "0.5M", "scores": {column: I},
                    "seconds": number, "samples": number}, …],
      "reward_models": [{"name": "rm-helpful", "kind": "pairwise", "accuracy": I, "agreement": I,
                         "calibration": [[stated, observed, n], …], "ece": number, "length_bias": number, "rows": n}, …],
                                           or `eval.calibration`'s report with a name
      "cold_start", "rejection": {"sampled": n, "kept": n, "reasons": {reason: n}, …further counts},
                                           or `Selection.figures()`
      "cleaning": what `eval.cleaning.score_cleaning` gives,
      "judge": {count: number, …},
      "seeds": [{"seed": 0, "scores": {"Dev1": {"reasoning": share, …}, …}}, …],
      "over_seeds": {"Dev1": {"reasoning": I, …}, …},     `stages.seed_table`
      "notes": ["sentence", …]
    }
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dunwu.eval.report_cleaning import cleaning
from dunwu.eval.report_parts import heading, hero_figure, is_interval, note, safe
from dunwu.eval.report_r1_evidence import chats, language_ablation, over_optimisation, rejection, reward_models
from dunwu.eval.report_r1_figure import r1_figure
from dunwu.eval.report_r1_stages import stage_sections
from dunwu.eval.report_r1_table import cost_table, paper_table, seed_table, stage_table, student_table
from dunwu.eval.verdicts import DEV1, DEV3, R1, REASONING, ZERO


def r1_sections(data: Mapping[str, Any]) -> Iterator[str]:
    """Everything between the top of the page and its configuration."""
    found = data["r1"]["table"]
    yield _figure(data)
    yield stage_table(found) + paper_table(found)
    yield cleaning(found)
    yield chats(found)
    yield language_ablation(found)
    yield reward_models(found)
    yield over_optimisation(found)
    yield rejection(found)
    yield student_table(found)
    yield seed_table(found)
    yield cost_table(data["stages"])
    yield stage_sections(data)


def r1_sentence(data: Mapping[str, Any]) -> str:
    """The headline: how far reasoning got, and how much of the paper's shape is there."""
    scores = _reasoning(data)
    verdicts = data["verdicts"]
    held = sum(verdict.get("holds") is True for verdict in verdicts)
    shape = f"{held} of {len(verdicts)} claims of the paper’s shape hold" if verdicts else ""
    if DEV1 in scores and R1 in scores:
        reached = f"held-out reasoning from {scores[DEV1]['value']:.0%} (Dev1) to {scores[R1]['value']:.0%} (R1)"
        return f"{reached}; {shape}" if shape else reached
    return shape or "no stage has been measured yet"


def r1_hero(data: Mapping[str, Any]) -> str:
    """Held-out reasoning of the story's models, large."""
    blocks = []
    for name in ("base", ZERO, DEV1, "Dev2", DEV3, R1):
        value = _reasoning(data).get(name)
        if value is not None:
            blocks.append(hero_figure(safe(name), value, "result" if name == R1 else ""))
    if not blocks:
        return ""
    caption = '<p class="caption">Held-out reasoning, share of right answers.</p>'
    return f'<div class="hero story">{"".join(blocks)}</div>{caption}'


def _reasoning(data: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for model in data["r1"]["table"].get("models") or []:
        value = (model.get("scores") or {}).get(REASONING)
        if is_interval(value):
            found[str(model.get("name"))] = value
    return found


def _figure(data: Mapping[str, Any]) -> str:
    drawn = r1_figure(data["stages"], waiting=data["run"].get("status") != "done")
    body = f'<figure class="wide scroll r1">{drawn}</figure>' if drawn else note("No stage has begun.")
    return heading("The stages of R1", "R1 的各个阶段") + body
