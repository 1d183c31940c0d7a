"""Evidence of the R1 report that is no table of models: conversations side by side, curves of proxy and of language,
reward models, rejection sampling, the judge's record. Each is "" where stages.json has nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dunwu.eval.passk import wilson
from dunwu.eval.plots import PAGE, Panel, Series, chart
from dunwu.eval.report_curves import captioned
from dunwu.eval.report_data import evenly
from dunwu.eval.report_parts import flat, folded, heading, interval, note, number, safe, table

MOST_CHATS = 12
"""Prompts shown side by side."""
_LANGUAGES = {"en": "English", "zh": "中文"}


def chats(found: Mapping[str, Any]) -> str:
    """The same prompts at every stage, in columns; the thinking dimmed and folded."""
    head = heading("The same prompts at every stage", "同一问题，各阶段的回答")
    shown = found.get("chats") or []
    if not shown:
        return head + note("No conversations were kept: the stage table has not been measured yet.")
    words = "One sample each, as drawn. The thinking is folded; open it with a click."
    parts = [head, f'<p class="caption">{words}</p>']
    for chat in evenly(shown, MOST_CHATS):
        language = str(chat.get("language", ""))
        turns = "".join(
            f'<div class="turn"><b>{safe(turn.get("role", "?"))}</b> {safe(turn.get("content", ""))}</div>'
            for turn in chat.get("messages") or []
        )
        tag = f'<span class="badge">{safe(_LANGUAGES.get(language, language))}</span>' if language else ""
        cards = "".join(_card(reply) for reply in chat.get("replies") or [])
        parts.append(f'<div class="asked">{tag}{turns}</div><div class="row chat">{cards}</div>')
    return "".join(parts)


def _card(reply: Mapping[str, Any]) -> str:
    thinking, content = reply.get("thinking"), str(reply.get("content") or "")
    thought = ""
    if thinking:
        count = len(str(thinking).split()) if str(thinking).isascii() else len(str(thinking))
        unit = "words" if str(thinking).isascii() else "characters"
        thought = folded(f"thinking, {count} {unit}", f'<pre class="text dim">{safe(thinking)}</pre>')
    said = f'<pre class="text">{safe(content)}</pre>' if content else '<p class="caption">says nothing</p>'
    return f'<div class="card"><header><b>{safe(reply.get("name", "?"))}</b></header>{thought}{said}</div>'


def over_optimisation(found: Mapping[str, Any]) -> str:
    """The learned reward that is optimised, and the truth it stands for, over the same steps."""
    points = [p for p in found.get("over_optimisation") or [] if isinstance(p.get("step"), (int, float))]
    proxy, truth, reasoning = (_line(points, key) for key in ("proxy", "truth", "reasoning"))
    if len(proxy) < 2 or len(truth) < 2:
        return ""
    shares = [Series("truth", truth, 2, dots=True)]
    if reasoning:
        shares.append(Series("reasoning", reasoning, 4, dots=True))
    panels = [
        Panel([Series("proxy", proxy, 1, dots=True)], "reward model"),
        Panel(shares, "true share", low=0.0, percent=True),
    ]
    top = max(range(len(truth)), key=lambda n: truth[n][1])
    peak = truth[top][0]
    after = "The truth is highest at the last step." if top == len(truth) - 1 else ""
    risen = proxy[-1][1] > next((y for x, y in proxy if x >= peak), proxy[-1][1])
    if not after:
        more = "while the proxy rose on: over-optimisation" if risen else "and the proxy did not rise further either"
        after = f"The truth is highest at step {peak:g} and falls to {truth[-1][1]:.3f} after it, {more}."
    drawn = chart(panels, "Proxy against truth", "step of preference RL", PAGE, 760, 170)
    figure = captioned(
        "Over-optimisation: the proxy against the truth",
        "过度优化",
        "Above what is rewarded, below what is meant.",
        drawn,
    )
    head = heading("How long can the preference be trusted?", "偏好奖励可信多久")
    return f'{head}<p class="lead">{safe(after)}</p><div class="wide">{figure}</div>'


def language_ablation(found: Mapping[str, Any]) -> str:
    """Language consistency and accuracy over RL steps with and without the language reward."""
    ablation = found.get("language_ablation") or {}
    lines = {name: [p for p in ablation.get(name) or [] if len(p) >= 2] for name in ("with", "without")}
    if not any(len(points) >= 2 for points in lines.values()):
        return ""

    def series(column: int) -> list[Series]:
        points = {
            name: [(p[0], p[column]) for p in rows if len(p) > column and isinstance(p[column], (int, float))]
            for name, rows in lines.items()
        }
        return [Series(name, line, n, dots=True) for n, (name, line) in enumerate(points.items()) if line]

    panels = [Panel(series(1), "language consistency", percent=True)]
    if right := series(2):
        panels.append(Panel(right, "accuracy", low=0.0, percent=True))
    drawn = chart(panels, "Language reward: with and without", "RL step", PAGE, 760, 170)
    caption = "Share of words in the prompt’s language, and of right answers, on validation problems."
    head = heading("Does the language reward hold the language?", "语言一致性")
    return f'{head}<div class="wide">{captioned("With and without the language reward", "消融", caption, drawn)}</div>'


def reward_models(found: Mapping[str, Any]) -> str:
    """Held-out figures of the reward models and their calibration."""
    models = [_reward_model(record) for record in found.get("reward_models") or []]
    if not models:
        return ""
    rows, figures = [], []
    for model in models:
        names = ("accuracy", "agreement", "ece", "length_bias", "rows")
        cells = [interval(model[name]) if name in names[:2] else number(model[name]) for name in names]
        rows.append([safe(model["name"]), safe(model["kind"]), *cells])
        if drawn := _calibration(model):
            figures.append(drawn)
    heads = [
        "model",
        "kind",
        "held-out accuracy",
        "agreement with the truth",
        "calibration error",
        "length bias",
        "rows",
    ]
    words = (
        "Accuracy: against the held-out labels. Agreement: against the world’s exact utility, of which the default judge sees a "
        "noisy reading. "
        "Calibration error: mean gap between stated and observed. Length bias: correlation of score and length."
    )
    grid = f'<div class="grid">{"".join(figures)}</div>' if figures else ""
    return f'{heading("Reward models", "奖励模型")}<p class="caption">{words}</p>{table(heads, rows, numbers=(4, 5, 6))}{grid}'


def _reward_model(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the schema, or `eval.calibration`'s report with name and kind, as one shape."""
    agreement = record.get("agreement")
    if isinstance(agreement, Mapping) and "agreement" in agreement:
        agreement = agreement["agreement"]
    bins = [(b["stated"], b["happened"], b["n"]) for b in record.get("bins") or [] if b.get("n")]
    rows = next((record[key] for key in ("rows", "pairs", "replies") if key in record), None)
    pointwise = "replies" in record
    return {
        "name": record.get("name", "?"),
        "kind": record.get("kind") or ("pointwise" if pointwise else "pairwise"),
        "accuracy": record.get("accuracy"),
        "agreement": agreement,
        "calibration": record.get("calibration") or bins,
        "ece": record.get("ece", record.get("calibration_error")),
        "length_bias": record.get("length_bias", record.get("length_correlation")),
        "rows": rows,
    }


def _calibration(model: Mapping[str, Any]) -> str:
    points = sorted(tuple(p) for p in model["calibration"] if len(p) == 3 and p[2])
    if len(points) < 2:
        return ""
    bars = [(x, *wilson(min(1.0, max(0.0, y)), n)) for x, y, n in points]
    low = min(0.5, points[0][0])
    honest = Series("honest", [(low, low), (1.0, 1.0)], 4)
    observed = Series("observed", [(x, y) for x, y, _ in points], 0, bars=bars, dots=True)
    panel = Panel([honest, observed], "share observed", low=0.0, high=1.0, percent=True)
    drawn = chart([panel], f"Calibration of {model['name']}", "probability stated", PAGE, 520, 200)
    title = f"Calibration of {model['name']}"
    return captioned(title, "校准", "On the line, what is said is what happens. Bars: 95% by the bin’s size.", drawn)


def rejection(found: Mapping[str, Any]) -> str:
    """What rejection sampling and the cold start kept and dropped, by reason; the judge's own counts."""
    parts = []
    for key, title, chinese in (
        ("cold_start", "Cold start", "冷启动"),
        ("rejection", "Rejection sampling", "拒绝采样"),
    ):
        if record := found.get(key):
            parts.append(f"<section>{heading(title, chinese, 3)}{_counts(record)}</section>")
    if judge := found.get("judge"):
        rows = [[safe(name.replace("_", " ")), number(value)] for name, value in flat(judge, ": ") if _plain(value)]
        parts.append(f"<section>{heading('The judge', '裁判', 3)}{table([], rows)}</section>")
    if not parts:
        return ""
    return f'{heading("What was kept, and why the rest was not", "取舍")}<div class="columns">{"".join(parts)}</div>'


def _counts(record: Mapping[str, Any]) -> str:
    """Sampled, kept, and a bar for each reason. Reasons: `reasons`, `dropped`, or keys `dropped/REASON`."""
    nested = record.get("reasons") or record.get("dropped")
    reasons = dict(nested) if isinstance(nested, Mapping) else {}
    reasons |= {key.split("/", 1)[1]: value for key, value in record.items() if key.startswith("dropped/")}
    plain = [
        [safe(name.replace("_", " ")), number(value)]
        for name, value in record.items()
        if _plain(value) and not name.startswith("dropped/")
    ]
    counted = {name: value for name, value in reasons.items() if isinstance(value, (int, float))}
    most = max(counted.values(), default=0) or 1
    rows = [
        [safe(name), number(value), f'<svg width="130" height="10" aria-hidden="true"><rect width="{max(1.0, 128 * value / most):.1f}" height="8" y="1" style="fill:var(--s2)"/></svg>']
        for name, value in sorted(counted.items(), key=lambda item: -item[1])
    ]  # fmt: skip
    dropped = table(["dropped because", "samples", ""], rows, numbers=(1,)) if rows else ""
    return table([], plain) + dropped


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str))


def _line(points: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(p["step"], p[key]) for p in points if isinstance(p.get(key), (int, float))]
