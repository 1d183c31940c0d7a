"""The report's part on control systems; `evidence.json` holds it under `control`, as `recipes.control` writes it:

{"arms": [{"name", "system", "variant", "title", "group_size", "swept", "final": I, "gym": I or null, "steps_to_target", "env_steps",
           "updates", "seconds", "curve": [[steps, mean, low, high], …], "settings": {…}}, …],
 "critic": [{"system", "variant", "behind": I, "close", "needed"}, …], "sentence", "seeds", "gymnasium"}

Values are mean returns; of an LQR they are costs over the best controller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dunwu.eval.plots import PAGE, PAPER, Panel, Series, Theme, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_parts import heading, interval, number, safe, table

ORDER = ("ppo", "grpo", "grpo-to-go", "rloo", "reinforce")
"""Variants by colour."""
MOST = {"cartpole": 500.0, "pendulum": 0.0, "acrobot": 0.0}
"""The most a system can give."""
NAMES = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1", "acrobot": "Acrobot-v1"}


def control_sentence(found: Mapping[str, Any]) -> str:
    """The page's headline: of GRPO as on language."""
    return str(found["sentence"]).partition(". ")[0].rstrip(".")


def control_section(found: Mapping[str, Any]) -> str:
    """Results and cost as a table, who needs a critic, learning curves, cost over the optimum by horizon."""
    said = "Means over the seeds with 95% bands (Student's t): held-out episodes, likeliest actions."
    parts = [
        heading("Results", "结果"),
        _results(found),
        heading("Who needs a critic", "谁需要价值网络"),
        _critic(found),
    ]
    parts.append(heading("Learning curves", "学习曲线"))
    for system in _systems(found):
        drawn = curves_svg(found, system, PAGE)
        parts.append(captioned(_name(system), _name(system), said, drawn))
    for draw, english, chinese, words in (
        (
            optimum_svg,
            "Cost over the optimum by horizon",
            "代价与最优之比，按时长",
            "1 is the best controller, by Riccati's recursion; marks at the horizons that were run.",
        ),
        (
            groups_svg,
            "Cost over the optimum by group size",
            "代价与最优之比，按组大小",
            "GRPO at 64 episodes an update: the groups get larger, their number smaller.",
        ),
    ):
        if drawn := draw(found, PAGE):
            parts.append(captioned(english, chinese, words, drawn))
    return "".join(parts)


def curves_svg(found: Mapping[str, Any], system: str, theme: Theme = PAPER) -> str:
    """Held-out value by steps of the system, a line and a band for every variant."""
    lines = []
    for arm in _main(found, system):
        points = [point for point in arm["curve"] if system[:3] != "lqr" or point[0] > 0]
        lines.append(
            Series(
                arm["title"],
                [(steps, mean) for steps, mean, _, _ in points],
                ORDER.index(arm["variant"]),
                band=[(steps, low, high) for steps, _, low, high in points if low is not None],
            )
        )
    lqr = system.startswith("lqr")
    label = "cost / best controller's" if lqr else "mean return"
    # Bands may reach beyond what a system can give, and an LQR begins far above its optimum.
    high = max(2.0, 1.5 * max(line.points[-1][1] for line in lines)) if lqr else MOST.get(system)
    panel = Panel(lines, label, low=1.0 if lqr else None, high=high)
    return chart([panel], _name(system), "steps of the system", theme, 760, 240)


def optimum_svg(found: Mapping[str, Any], theme: Theme = PAPER) -> str:
    """Cost over the optimum by horizon, a line for every variant; empty with fewer than two horizons."""
    lines = []
    for colour, variant in enumerate(ORDER):
        arms = [arm for arm in found["arms"] if _horizon(arm) and arm["variant"] == variant and not arm["swept"]]
        arms.sort(key=lambda arm: _horizon(arm) or 0)
        if len(arms) > 1:
            lines.append(_by([_horizon(arm) or 0 for arm in arms], arms, arms[0]["title"], colour))
    marks = sorted({x for line in lines for x, _ in line.points})
    if not lines:
        return ""
    panel = Panel(lines, "cost / best controller's", low=1.0)
    return chart([panel], "Cost over the optimum by horizon", "steps of the horizon", theme, 760, 260, marks)


def groups_svg(found: Mapping[str, Any], theme: Theme = PAPER) -> str:
    """Cost over the optimum by group size, a line for every horizon; empty without a sweep."""
    lines = []
    horizons = sorted({_horizon(arm) or 0 for arm in found["arms"]} - {0})
    for colour, horizon in enumerate(horizons):
        arms = [arm for arm in found["arms"] if _horizon(arm) == horizon and arm["variant"] == "grpo"]
        arms.sort(key=lambda arm: arm["group_size"])
        if len(arms) > 1:
            lines.append(_by([arm["group_size"] for arm in arms], arms, f"{horizon} steps", colour))
    marks = sorted({x for line in lines for x, _ in line.points})
    if not lines:
        return ""
    panel = Panel(lines, "cost / best controller's", low=1.0)
    return chart([panel], "Cost over the optimum by group size", "siblings of a group", theme, 760, 240, marks)


PICTURES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "control-horizon.svg": optimum_svg,
    "control-groups.svg": groups_svg,
    "control-cartpole.svg": lambda found: curves_svg(found, "cartpole") if "cartpole" in _systems(found) else "",
    "control-pendulum.svg": lambda found: curves_svg(found, "pendulum") if "pendulum" in _systems(found) else "",
    "control-acrobot.svg": lambda found: curves_svg(found, "acrobot") if "acrobot" in _systems(found) else "",
}
"""Files of a run folder; "" where there is nothing to draw."""


def _by(xs: Sequence[float], arms: Sequence[Mapping[str, Any]], name: str, colour: int) -> Series:
    values = [arm["final"] for arm in arms]
    bars = [(x, v["low"], v["high"]) for x, v in zip(xs, values) if v["low"] is not None]
    return Series(name, [(x, v["value"]) for x, v in zip(xs, values)], colour, bars=bars, dots=True)


def _results(found: Mapping[str, Any]) -> str:
    header = [
        "system",
        "algorithm",
        "P × G",
        "result",
        "gymnasium's own",
        "steps to target",
        "steps",
        "updates",
        "cpu s",
    ]
    rows = [
        [
            safe(_name(arm["system"])),
            safe(arm["title"]),
            f"{arm['settings']['starts']} × {arm['group_size']}",
            interval(arm["final"]),
            interval(arm["gym"]) if arm["gym"] else "",
            number(arm["steps_to_target"]) if arm["steps_to_target"] is not None else "never",
            number(arm["env_steps"]),
            number(arm["updates"]),
            number(arm["seconds"]),
        ]
        for arm in found["arms"]
    ]
    return table(header, rows)


def _critic(found: Mapping[str, Any]) -> str:
    words = {True: "needed", False: "not needed", None: "open"}
    titles = {arm["variant"]: arm["title"] for arm in found["arms"]}
    rows = [
        [
            safe(_name(row["system"])),
            safe(titles[row["variant"]]),
            interval(row["behind"]),
            number(row["close"]),
            words[row["needed"]],
        ]
        for row in found["critic"]
    ]
    lead = f'<p class="lead">{safe(found["sentence"])}</p>'
    return lead + table(["system", "without a critic", "behind PPO", "counts as close", "critic"], rows)


def _systems(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(arm["system"] for arm in found["arms"]))


def _main(found: Mapping[str, Any], system: str) -> list[Mapping[str, Any]]:
    return [arm for arm in found["arms"] if arm["system"] == system and not arm["swept"]]


def _horizon(arm: Mapping[str, Any]) -> int | None:
    kind, _, horizon = str(arm["system"]).partition("-")
    return int(horizon) if kind == "lqr" else None


def _name(system: str) -> str:
    return NAMES.get(system) or f"LQR, {system.partition('-')[2]} steps"
