"""The report's part on RLHF; `evidence.json` holds it under `rlhf`, as `recipes.rlhf` writes it. I is an interval:

{"measure": sentence, "kl_budget": nats, "sft": FIGURES,
 "reward": {"means": […], "pairs", "bayes_accuracy", "labelers", "rows": [{"judges", "accuracy": I, "of_bayes", "agreement": {…}}, …]},
 "arms": [{"name", "judges", "kl_coef", "ptx_coef", "method", "plain", "curve": [{"step", "kl", "proxy", "truth", …}, …],
           "peak": FIGURES, "stop": FIGURES, "last": FIGURES, "gain": {"peak": I, "stop": I, "last": I} (truth − SFT's),
           "fall": {"truth": I, "proxy": I} (last − peak), "stopped": I (truth, stop − last),
           "against": {"peak": I, "last": I} (truth − the plain arm's)}, …],
 "best_of_n": [[n, kl, proxy, truth], …], "shown": [{"prompt", "replies": [{"name", "text", "proxy", "truth"}, …]}, …]}

FIGURES: {"step", "kl", "length", "refusals", "disagreement", "parts", "truth": I, "proxy": I}. The peak is chosen by the truth of
validation prompts and measured, as everything here but the curves, on test prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dunwu.eval.plots import PAGE, PAPER, Panel, Series, Theme, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading, interval, number, safe, table

SFT = "sft"
KEEPS = 0.05
"""How far the truth may end below its peak and still be kept."""

Record = Mapping[str, Any]


class Part(NamedTuple):
    """A figure that bears on a claim, and whether it holds; None where its interval has both answers."""

    holds: bool | None
    figure: str


# ---- claims ---------------------------------------------------------------------------------


def rlhf_verdicts(found: Record) -> list[dict[str, Any]]:
    """The claims that the run's arms can decide: `{"claim", "holds", "figure", "reason"}`."""
    claims, plain = [], _plain(found)
    if plain:
        parts = [
            _signed("proxy", plain["fall"]["proxy"]),
            _signed("truth", plain["fall"]["truth"], down=True),
        ]
        claims.append(("Without a KL the proxy rises on while the truth falls, from the peak to the end", parts, all))
        budget = f"{found['kl_budget']:g} nats"
        parts = [_signed("stop − end", plain["stopped"])]
        claims.append((f"Stopping at a KL of {budget} keeps what training on loses", parts, all))
    for arm in found["arms"]:
        if arm["kl_coef"] and arm["judges"] == "one" and arm["method"] == "ppo":
            beta = f"β = {arm['kl_coef']:g}"
            parts = [_signed("end − SFT", arm["gain"]["last"])]
            claims.append((f"PPO with {beta} ends above SFT in truth", parts, all))
            parts = [_signed("end − peak", arm["fall"]["truth"], bound=-KEEPS)]
            if plain:
                parts.append(_signed("end − end without", arm["against"]["last"]))
            said = f"{beta} keeps the truth: within {KEEPS:g} of its peak, and above the end without a KL"
            claims.append((said, parts, all))
        elif arm["judges"] != "one" and plain:
            both = zip(("peak", "end"), ("peak", "last"), strict=True)
            parts = [_signed(f"{word} − {word} with one judge", arm["against"][name]) for word, name in both]
            whose = arm["judges"] if arm["name"] == arm["judges"] else f"{arm['judges']} ({arm['name']})"
            claims.append((f"The judges' {whose} peaks higher or ends higher", parts, any))
    return [_verdict(claim, parts, how) for claim, parts, how in claims]


def _plain(found: Record) -> Record | None:
    return next((arm for arm in found["arms"] if arm["plain"]), None)


def _signed(name: str, change: Record, down: bool = False, bound: float = 0.0) -> Part:
    """Does the whole interval lie above the bound, or below it if that is claimed?"""
    low, high = (change["low"], change["high"]) if change["low"] is not None else (-math.inf, math.inf)
    above = True if low > bound else False if high <= bound else None
    below = True if high < bound else False if low >= bound else None
    return Part(below if down else above, f"{name} {change['value']:+.3f} [{low:+.3f}, {high:+.3f}]")


def _verdict(claim: str, parts: Sequence[Part], how: Any) -> dict[str, Any]:
    """All parts must hold, or any."""
    answers = [part.holds for part in parts]
    decides, other = (False, True) if how is all else (True, False)
    holds = decides if decides in answers else None if None in answers else other
    reason = "" if holds else "not reproduced in this run" if holds is False else "open: the interval has both answers"
    return {"claim": claim, "holds": holds, "figure": "; ".join(part.figure for part in parts), "reason": reason}


# ---- words and pictures ---------------------------------------------------------------------


def rlhf_sentence(found: Record) -> str:
    """The page's headline."""
    before = found[SFT]["truth"]["value"]
    ends = [f"{arm['last']['truth']['value']:.3f} ({arm['name']})" for arm in found["arms"][:3]]
    return f"true utility from {before:.3f} to {', '.join(ends)}"


def curve_svg(found: Record, theme: Theme = PAPER) -> str:
    """Proxy and truth against √KL, a line for each arm and one for best-of-n, as Gao et al. draw them (figure 1)."""
    panels = []
    for key, place, label in (("proxy", 2, "proxy: the judges' reward"), ("truth", 3, "truth: the hidden utility")):
        lines = [
            Series(arm["name"], [(_root(p["kl"]), p[key]) for p in arm["curve"]], colour)
            for colour, arm in enumerate(found["arms"])
        ]
        if found["best_of_n"]:
            points = [(_root(row[1]), row[place]) for row in found["best_of_n"]]
            lines.append(Series("best of n", points, len(lines), dots=True))
        panels.append(Panel(lines, label))
    return chart(panels, "Proxy and truth", "√KL(π ‖ SFT), nats a reply", theme=theme, width=820, height=250)


def _root(kl: float) -> float:
    """An estimate of the KL may lie a little below 0."""
    return math.sqrt(max(0.0, kl))


def rlhf_section(found: Record) -> str:
    """The curves, every arm's figures, the judges, and replies side by side."""
    said = (
        "Validation prompts. To the right: further from the SFT model. The proxy is in standard deviations of the judges' scores, "
        "0 being the demonstrations; each line has its own judges. Best of n is the first judge's choice among replies of the SFT model."
    )
    parts = [heading("Proxy and truth", "代理奖励与真实效用")]
    parts.append(captioned("Over-optimisation", "过度优化", said, curve_svg(found, PAGE)))
    parts += [heading("The arms", "各组"), _arms(found)]
    parts.append(f'<p class="caption">{safe(found["measure"])}; {safe(_chosen(found))}.</p>')
    parts += [heading("The judges", "奖励模型"), _judges(found["reward"])]
    parts += [heading("The same prompts", "同样的提示"), _shown(found)]
    return "".join(parts)


def _chosen(found: Record) -> str:
    budget = f"{found['kl_budget']:g}"
    return f"the peak is chosen by the truth of validation prompts, the stop is the last point with a KL of at most {budget} nats"


def _arms(found: Record) -> str:
    header = ["arm", "at", "step", "KL", "proxy", "truth", "truth − SFT", "tokens", "refusals"]
    rows = [["SFT", "", "0", "0", "", interval(found[SFT]["truth"]), "", *_manners(found[SFT])]]
    for arm in found["arms"]:
        for name in ("peak", "stop", "last"):
            at = arm[name]
            figures = [number(at["step"]), number(at["kl"]), number(at["proxy"]["value"]), interval(at["truth"])]
            rows.append([safe(arm["name"]), name, *figures, interval(arm["gain"][name]), *_manners(at)])
    return table(header, rows)


def _manners(at: Record) -> list[str]:
    return [number(at["length"]), f"{at['refusals']:.1%}"]


def _judges(reward: Record) -> str:
    header = ["judges", "accuracy on the labels", "of the best possible", "agreement with the truth"]
    rows = [
        [
            safe(row["judges"]),
            interval(row["accuracy"]),
            interval(row["of_bayes"]),
            interval((row["agreement"] or {}).get("agreement")),
        ]
        for row in reward["rows"]
    ]
    said = (
        f"{reward['pairs']:,} held-out pairs of replies of the SFT model. The best possible predictor of these labels reaches "
        f"{reward['bayes_accuracy']:.3f}; two labelers agree in {reward['labelers']:.3f}."
    )
    return table(header, rows) + f'<p class="caption">{said}</p>'


def _shown(found: Record) -> str:
    parts = []
    for row in found["shown"]:
        parts.append(f'<p class="problem">{safe(row["prompt"])}</p><div class="row">')
        for said in row["replies"]:
            facts = f"proxy {number(said['proxy'])} · truth {number(said['truth'])}"
            parts.append(
                f'<div class="card"><header><b>{safe(said["name"])}</b><span>{facts}</span></header>'
                f'<pre class="text">{safe(said["text"])}</pre></div>'
            )
        parts.append("</div>")
    return "".join(parts)


def rlhf_table(found: Record) -> str:
    """What was found as plain text."""
    head = f"{'arm':<16}{'peak':>7}{'KL':>8}{'proxy':>8}{'truth':>8}{'stop':>7}{'truth':>8}{'end':>7}{'KL':>8}{'proxy':>8}{'truth':>8}"
    lines = [f"SFT: truth {found[SFT]['truth']['value']:.3f}", head]
    for arm in found["arms"]:
        peak, stop, last = arm["peak"], arm["stop"], arm["last"]
        lines.append(f"{arm['name']:<16}{_row(peak)}{stop['step']:>7}{stop['truth']['value']:>8.3f}{_row(last)}")
    marks = {True: "yes", False: "NO", None: "open"}
    return "\n".join([*lines, *(f"{marks[v['holds']]:<5}{v['claim']}: {v['figure']}" for v in rlhf_verdicts(found))])


def _row(at: Record) -> str:
    return f"{at['step']:>7}{at['kl']:>8.2f}{at['proxy']['value']:>8.2f}{at['truth']['value']:>8.3f}"
