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
      "notes": ["sentence", …]
    }

A checkpoint may carry any other key of `evaluate`'s summary; it is kept in report.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from dunwu.disk import disk_errors, write_atomically
from dunwu.eval.report_data import collect
from dunwu.eval.report_page import page
from dunwu.types import UsageError


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
