"""Samples on the report page: a group as the update saw it, its problem, and what the marks in a text mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dunwu.eval.report_parts import folded, marked, number, safe, signed_bar

SHOWN_ROLLOUTS = 6
"""Rollouts of a group that are open; the others unfold."""


def sampled_group(group: Mapping[str, Any], level: int, shown: int = SHOWN_ROLLOUTS) -> str:
    """One group: its problem as a heading of that level, the prompt folded, its rollouts with rewards and advantages."""
    title = f"{safe(group['stage'])}, step {number(group['step'])}: {problem_text(group['problem'], group['prompt'])}"
    parts = [f"<h{level}>{title}</h{level}>"]
    parts.append(folded("prompt", f'<pre class="prompt">{safe(group["prompt"])}</pre>'))
    rows = [_rollout(group, rollout) for rollout in group["rollouts"]]
    parts.append(f'<div class="rollouts">{"".join(rows[:shown])}</div>')
    if rows[shown:]:
        parts.append(folded(f"{len(rows) - shown} more", f'<div class="rollouts">{"".join(rows[shown:])}</div>'))
    return "".join(parts)


def legend() -> str:
    """What the marks in a completion mean."""
    samples = (
        ("eq true", "12-7=5", "true sum"),
        ("eq false", "12+7=24", "false sum"),
        ("verdict true", "no", "true check"),
        ("verdict false", "yes!", "false or unsound check"),
        ("reflection", "Wait", "reflection word"),
        ("subgoal", "Keep 7", "subgoal"),
        ("answer true", "(12-7)*3", "answer, works or not"),
    )
    items = "".join(
        f'<span><span class="text"><span class="{kind}">{text}</span></span> {words}</span>'
        for kind, text, words in samples
    )
    return f'<div class="legend">{items}</div>'


def problem_text(problem: Mapping[str, Any], prompt: str = "") -> str:
    """A problem in a line: numbers and target, its question, the end of its prompt, or its data."""
    numbers, target = problem.get("numbers"), problem.get("target")
    if isinstance(numbers, list) and target is not None:
        return f"{safe(', '.join(map(str, numbers)))} → {safe(target)}"
    asked = problem.get("question") or problem.get("prompt") or (_last_turn(prompt) if prompt else problem)
    return safe(asked)


def _last_turn(prompt: str) -> str:
    """The last thing a prompt says, in at most 90 characters."""
    lines = [line for line in prompt.splitlines() if line.strip()]
    asked = [line for line in lines if not line.rstrip().endswith(("Assistant:", "助手："))] or lines
    last = asked[-1].strip() if asked else ""
    return last if len(last) <= 90 else f"…{last[-89:]}"


def _rollout(group: Mapping[str, Any], rollout: Mapping[str, Any]) -> str:
    advantage = rollout.get("advantage")
    largest = max((abs(r["advantage"]) for r in group["rollouts"] if r.get("advantage") is not None), default=0.0)
    weighed = "no advantage" if advantage is None else f"advantage {advantage:+.2f}"
    rewards = ", ".join(f"{safe(name)} {number(value)}" for name, value in sorted(rollout["rewards"].items()))
    facts = [f"{number(rollout['length'])} tokens", rewards]
    if rollout["status"] != "ok":
        facts.append(safe(f"{rollout['status']}: {rollout.get('reason') or 'no reason'}"))
    if rollout.get("finish_reason") == "length":
        facts.append("cut at the longest length")
    bar = signed_bar(advantage, largest) if advantage is not None else ""
    text = marked(group["problem"], rollout["completion"])
    return (
        f'<div class="card"><header><b>reward {number(rollout["reward"])} · {weighed}</b>{bar}'
        f'<span>{" · ".join(fact for fact in facts if fact)}</span></header><pre class="text">{text}</pre></div>'
    )
