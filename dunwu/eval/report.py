"""A run folder → report.html (one file, no network, no script) and report.json (every number in it).

`evidence.json` in the run folder is optional and written by the recipe's last stage. Its schema, in which
I is an interval as `Interval.as_json` gives it (`{"value", "low", "high", "n"}`); all keys are optional:

    {
      "measure": "1024 held-out problems, one sample each, temperature 1",        a sentence
      "checkpoints": [                     in order; the first is the base, the last the result
        {"name": "base", "step": 0, "pass@1": I, "pass@k": {"1": I, "2": I, …}, "cons@16": I,
         "format": 0.98, "behaviours": {"emergence/…": number}, "four_operands": I}, …],
      "difference": I,                     result minus base on the same problems (`passk.paired_difference`)
      "shown": [                           the same held-out problems at (five) checkpoints
        {"problem": {"numbers": […], "target": n}, "prompt": "…",
         "completions": [{"name": "base", "step": 0, "completion": "…", "reward": 0.0, "length": 12, "right": false}, …]}],
      "controls": [
        {"name": "random reward", "base": I, "result": I, "expected": "|Δ| ≤ 0.03", "holds": true,
         "curve": [[step, pass@1], …]}],
      "seeds": [{"seed": 0, "base": number, "result": number, "curve": [[step, pass@1], …]}, …],
      "over_seeds": {"base": I, "result": I, "difference": I},
      "verdicts": [{"claim": "sentence", "holds": true/false/null, "figure": "0.71 ≥ 0.65"}],
      "in_context": what `report_context` says,
      "extension": what `eval.extension` says,
      "architectures": what `report_architectures` says,
      "control": what `report_control` says,
      "rl_study": what `rl_comparison` says,
      "rlhf": what `report_rlhf` says,
      "preferences", "reward_models": what `report_preference` says,
      "notes": ["sentence", …]
    }

A checkpoint may carry any other key of `evaluate`'s summary; it is kept in report.json.
A run of the whole of R1 has `stages.json` instead: its schema and its parts of the page are in `report_r1`.
"""

from __future__ import annotations

import json
from pathlib import Path

from dunwu.disk import disk_errors, write_atomically
from dunwu.eval.plots import PAPER
from dunwu.eval.report_curves import score_and_length
from dunwu.eval.report_data import collect
from dunwu.eval.report_page import page
from dunwu.types import DunwuError, UsageError


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder; works on a run that is still going, was killed, or has no evidence.

    Args:
        run_dir: the run folder.
        out: the HTML file; default `report.html` in the run folder. report.json is written beside it,
            under the HTML file's name.

    Returns:
        The HTML file.

    Raises:
        UsageError: `out` ends in .json.
        DunwuError: no run folder, a damaged run.json, or the file cannot be written.
    """
    html = out or run_dir / "report.html"
    if html.suffix == ".json":
        raise UsageError(f"{html} would be overwritten by the report's own json file", "name the page .html")
    data = collect(run_dir)
    with disk_errors(html):
        html.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(data, ensure_ascii=True, indent=1, allow_nan=False)
        write_atomically(html.with_suffix(".json"), text + "\n")
        write_atomically(html, page(data))
    return html


def write_picture(run_dir: Path, out: Path) -> Path:
    """Write score and length of a run as an SVG that stands alone, for a README.

    Raises:
        DunwuError: no run folder, or nothing to draw yet.
    """
    drawn = score_and_length(collect(run_dir), PAPER)
    if not drawn:
        raise DunwuError(f"{run_dir} has no held-out score and no response length", "wait for its first RL steps")
    with disk_errors(out):
        write_atomically(out, drawn + "\n")
    return out
