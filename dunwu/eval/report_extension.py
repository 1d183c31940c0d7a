"""The report's part on a context extension; `evidence.json` holds it under `extension`, in the schema of `eval.extension`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dunwu.eval.extension import above_reference, depth_svg, loss_svg, needle_svg
from dunwu.eval.plots import PAGE
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading

FOUND_AT_LEAST, ABOVE_AT_MOST = 0.95, 0.02
"""What counts as extended: share of needles at full length; nats above the reference, in the worst stretch."""


def extension_sentence(found: Mapping[str, Any]) -> str:
    """The page's headline."""
    base, _, extended = found["models"]
    grown = f"context {found['original']:,} to {found['context']:,}"
    if not extended["needles"]:
        return grown
    before, after = (model["needles"][-1]["accuracy"]["value"] for model in (base, extended))
    return f"{grown}, needles found from {before:.1%} to {after:.1%}"


def extension_verdicts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims of a context extension, as a report shows them."""
    extended = found["models"][-1]
    mean, worst = above_reference(extended, found["reference"], found["original"])
    claims = [
        {
            "claim": f"Beyond {found['original']:,} no stretch lies over {ABOVE_AT_MOST} nats above the reference",
            "holds": worst <= ABOVE_AT_MOST,
            "figure": f"worst {worst:+.3f}, mean {mean:+.3f}",
        }
    ]
    if extended["needles"]:
        last = extended["needles"][-1]["accuracy"]
        claim = f"At least {FOUND_AT_LEAST:.0%} of needles are found at full length"
        figure = f"{last['value']:.3f} [{last['low']:.3f}, {last['high']:.3f}]"
        claims.insert(0, {"claim": claim, "holds": last["value"] >= FOUND_AT_LEAST, "figure": figure})
    return claims


def extension_section(found: Mapping[str, Any]) -> str:
    """The pictures: loss by position, needles by length and by depth."""
    said = "Held-out windows, 95% intervals. The last line is the base on the same tokens, no more of them at a time than before."
    parts = [captioned("Loss by position", "各位置的损失", said, loss_svg(found, PAGE))]
    if found["models"][0]["needles"]:
        said = "Share of facts found again, greedy; keys that no training note has."
        parts.append(captioned("Needles by length", "各长度的检索", said, needle_svg(found, PAGE)))
        said = "The same at the longest length, by where the fact stands."
        parts.append(captioned("Needles by depth", "各深度的检索", said, depth_svg(found, PAGE)))
    return heading("Before and after", "扩展前后") + "".join(parts)
