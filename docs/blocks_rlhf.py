"""Blocks about RLHF: the settings beside InstructGPT's, from the preset, and what was measured, from the record `rlhf`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blocks_results import Results, interval_text, table

from dunwu.eval.report_rlhf import SFT, rlhf_verdicts
from dunwu.recipes.rlhf_config import RLHF_PRESETS

RECORD, PICTURE = "rlhf", "over-optimisation.svg"
PLACES = {"peak": "peak", "stop": "stop", "last": "end"}


def settings(results: Results) -> str:
    """What InstructGPT does (arXiv 2203.02155, sections 3 and C) beside the preset `cpu`."""
    ours = RLHF_PRESETS["cpu"]
    ppo, rm, data = ours.ppo, ours.rm, ours.comparisons
    batch = ppo.problems * ppo.group_size
    rows = [
        ["", "InstructGPT", "here", "flag"],
        ["SFT", "12,725 demonstrations", f"{ours.demonstrations.rows:,}", "`--demonstrations.rows`"],
        ["", "16 epochs (2 before RL, 10% pretraining)", f"{ours.sft.epochs}", "`--sft.epochs`"],
        ["reward model", "33,207 prompts", f"{data.prompts:,}", "`--comparisons.prompts`"],
        ["", "4 to 9 replies, ranked", f"{data.replies}", "`--comparisons.replies`"],
        ["", "about 40 labelers, who agree in 73%", f"{data.labelers}, τ = {data.noise:g}", "`--comparisons.noise`"],
        ["", "all pairs of a prompt in one element, 1 epoch", f"the same, {rm.epochs} epoch", "`--rm.epochs`"],
        ["", "64 prompts an update", f"{rm.rows}", "`--rm.rows`"],
        ["", "demonstrations score 0", "the same", ""],
        ["PPO", "512 episodes a step, in 8 minibatches", f"{batch}, in {ppo.minibatches}", "`--ppo.problems`"],
        ["", "256,000 episodes", f"{batch * ppo.steps:,}", "`--ppo.steps`"],
        ["", "1 inner epoch, clip 0.2", f"{ppo.epochs}, {ppo.clip_low:g}", "`--ppo.epochs`"],
        ["", "γ = 1, temperature 1", f"{ppo.gamma:g}, {ppo.temperature:g}", "`--ppo.gamma`"],
        ["", "value model begins as the reward model", "the same", ""],
        ["", "β = 0.02 a token, in the reward", f"{' '.join(ours.arms)}", "`--arms`"],
        ["", "ptx: γ = 27.8", "arms `ptx-γ`, none by default", "`--arms`"],
        ["", "moving average of the weights, 0.992", "none", ""],
    ]
    return table(rows)


def curves(results: Results) -> str:
    """The picture, once there is one."""
    if not (results.folder / PICTURE).exists():
        return results.missing
    return f"![Proxy and truth against the root of the KL, a line for each arm](results/{PICTURE})"


def arms(results: Results) -> str:
    """Every arm at its peak, its stop and its end."""
    record = results.read(RECORD)
    if record is None:
        return results.missing
    found = record["result"]
    head = ["arm", "at", "step", "KL", "proxy", "truth", "truth − SFT", "tokens", "refusals"]
    rows = [head, ["SFT", "", "0", "0", "", interval_text(found[SFT]["truth"]), "", *_manners(found[SFT])]]
    for arm in found["arms"]:
        for name, place in PLACES.items():
            at, change = arm[name], interval_text(arm["gain"][name], "+")
            row = [f"`{arm['name']}`", place, str(at["step"]), f"{at['kl']:.2f}", f"{at['proxy']['value']:+.2f}"]
            rows.append([*row, interval_text(at["truth"]), change, *_manners(at)])
    if found["best_of_n"]:
        n, kl, proxy, truth = found["best_of_n"][-1]
        rows.append([f"best of {n}", "validation", "", f"{kl:.2f}", f"{proxy:+.2f}", f"{truth:.3f}", "", "", ""])
    return "\n\n".join([table(rows), results.origin(record)])


def _manners(at: Mapping[str, Any]) -> list[str]:
    return [f"{at['length']:.0f}", f"{at['refusals']:.1%}"]


def judges(results: Results) -> str:
    """How good the reward models are, against the best possible."""
    record = results.read(RECORD)
    if record is None:
        return results.missing
    reward = record["result"]["reward"]
    rows = [["judges", "accuracy on the labels", "share of the best possible", "agreement with the truth"]]
    for row in reward["rows"]:
        agreement = (row["agreement"] or {}).get("agreement")
        shown = interval_text(agreement) if agreement else ""
        rows.append([row["judges"], interval_text(row["accuracy"]), interval_text(row["of_bayes"]), shown])
    said = f"The best possible predictor of these labels reaches {reward['bayes_accuracy']:.3f}; two labelers agree in {reward['labelers']:.3f}."
    return "\n\n".join([table(rows), said])


def verdicts(results: Results) -> str:
    """The claims, held or not."""
    record = results.read(RECORD)
    if record is None:
        return results.missing
    marks = {True: "yes", False: "**no**", None: "open"}
    rows = [["claim", "measured", "holds"]]
    rows += [[v["claim"], v["figure"], marks[v["holds"]]] for v in rlhf_verdicts(record["result"])]
    return table(rows)
