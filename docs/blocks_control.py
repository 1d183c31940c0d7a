"""Blocks about control systems: what every algorithm reached, who needs a critic, the sweep, the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blocks_results import Results, table

from dunwu.control.findings import title
from dunwu.recipes.control_config import ControlRunConfig

RECORD = "control"
SHOWN = (
    "algorithm",
    "credit",
    "starts",
    "group_size",
    "epochs",
    "minibatches",
    "lr",
    "gamma",
    "lam",
    "std_normalize",
    "loss_norm",
)


def control(results: Results) -> str:
    """Results of the arms that are not in a sweep, and who needs a critic."""
    record = results.read(RECORD)
    if record is None:
        return results.missing
    say, found = results.say, record["result"]
    head = [
        say("system", "系统"),
        say("algorithm", "算法"),
        say("result", "结果"),
        say("in gymnasium's own", "在 gymnasium 里"),
        say("steps to the target", "达标所需步数"),
        say("steps a seed", "每个种子的步数"),
        say("processor seconds, all seeds", "全部种子的处理器秒数"),
    ]
    rows = [head]
    for arm in found["arms"]:
        if not arm["swept"]:
            target = arm["steps_to_target"]
            rows.append(
                [
                    title(arm["system"]),
                    arm["title"],
                    _interval(arm["final"]),
                    _interval(arm["gym"]) if arm["gym"] else "",
                    say("never", "未达") if target is None else f"{target:,.0f}",
                    f"{arm['env_steps']:,}",
                    f"{arm['seconds']:,.0f}",
                ]
            )
    return "\n\n".join([table(rows), results.origin(record)])


def critic(results: Results) -> str:
    """The study's answer, its differences to PPO, and its claims."""
    record = results.read(RECORD)
    if record is None:
        return results.missing
    say, found = results.say, record["result"]
    titles = {arm["variant"]: arm["title"] for arm in found["arms"]}
    words = {True: say("**needed**", "**需要**"), False: say("not needed", "不需要"), None: say("open", "未定")}
    rows = [[say("system", "系统"), *(titles[name] for name in titles if name != "ppo")]]
    for system in dict.fromkeys(row["system"] for row in found["critic"]):
        cells = {row["variant"]: row for row in found["critic"] if row["system"] == system}
        shown = [_needed(cells.get(name), words) for name in titles if name != "ppo"]
        rows.append([f"{title(system)} (± {next(iter(cells.values()))['close']:g})", *shown])
    verdicts = [[say("claim", "论断"), say("measured", "实测"), say("holds", "成立")]]
    holds = {True: say("yes", "是"), False: say("**no**", "**否**"), None: say("open", "未定")}
    verdicts += [[v["claim"], v["figure"], holds[v["holds"]]] for v in found["verdicts"]]
    return "\n\n".join([f"*{found['sentence']}*", table(rows), table(verdicts), results.origin(record)])


def groups(results: Results) -> str:
    """GRPO by group size at 64 episodes an update."""
    record = results.read(RECORD)
    if record is None:
        return results.missing
    arms = record["result"]["arms"]
    swept = {(arm["system"], arm["variant"]) for arm in arms if arm["swept"]}
    found: dict[tuple[str, str], dict[int, str]] = {}
    for arm in arms:
        key = (arm["system"], arm["variant"])
        if key in swept and arm["settings"]["starts"] * arm["group_size"] == 64:
            found.setdefault(key, {})[arm["group_size"]] = _interval(arm["final"])
    sizes = sorted({size for cells in found.values() for size in cells})
    titles = {arm["variant"]: arm["title"] for arm in arms}
    rows = [[results.say("system", "系统"), results.say("algorithm", "算法"), *(f"G = {size}" for size in sizes)]]
    for (system, variant), cells in found.items():
        rows.append([title(system), titles[variant], *(cells.get(size, "") for size in sizes)])
    return "\n\n".join([table(rows), results.origin(record)])


def settings(results: Results) -> str:
    """What every arm is made with, from the code."""
    names = list(SHOWN)
    rows = [[results.say("system", "系统"), *(f"`{name}`" for name in names), "`env_steps`"]]
    for arm in ControlRunConfig().arms():
        if not arm.swept:
            cells = [
                f"{getattr(arm.config, name):g}"
                if isinstance(getattr(arm.config, name), float)
                else str(getattr(arm.config, name))
                for name in names
            ]
            rows.append([title(arm.system), *cells, f"{arm.config.env_steps:,}"])
    return table(rows)


def _interval(found: Mapping[str, Any]) -> str:
    value = found["value"]
    digits = 3 if abs(value) < 10 else 1
    if found["low"] is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({found['low']:.{digits}f} … {found['high']:.{digits}f})"


def _needed(row: Mapping[str, Any] | None, words: Mapping[bool | None, str]) -> str:
    return "" if row is None else f"{words[row['needed']]}: {_interval(row['behind'])}"
