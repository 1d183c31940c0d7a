"""Which curves the report draws, and from which metrics: a table, and how a line of it becomes a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dunwu.eval.passk import wilson
from dunwu.eval.plots import PAGE, PAPER, Panel, Series, Theme, chart, score_and_length_svg, smooth
from dunwu.eval.report_data import METHODS, Curve, Curves, curve, evenly, rl_metric
from dunwu.eval.report_parts import safe

MOST_POINTS = 400
"""Points drawn of one line; longer runs are thinned evenly."""
HELD_OUT = "/held-out"
"""Ends the name under which a stage logs its held-out curve."""
HELD_OUT_WORDS = ("held_out", "valid")
"""How the name of a figure begins that is the same on held-out data: drawn into one chart with it."""
FEW_POINTS = 12
"""A line of at most so many points is drawn as measured, with dots, not smoothed."""


@dataclass(frozen=True)
class Figure:
    """One chart: titles, unit of the y axis, `(name, metric key)` of each line, what it shows."""

    title: str
    chinese: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    caption: str
    percent: bool = False
    from_zero: bool = True


BEHAVIOURS = (
    Figure(
        "Checks", "检验", "per response",
        (("true", "emergence/true_checks"), ("false success", "emergence/false_success"),
         ("false failure", "emergence/false_failure"), ("unsound", "emergence/unsound_checks")),
        "Tries closed by a verdict. False success: said to work, does not. False failure: said not to, does. "
        "Unsound: right verdict on a wrong sum.",
    ),
    Figure(
        "Honesty", "诚实", "share that is true",
        (("sums", "emergence/equation_accuracy"), ("checks", "emergence/check_accuracy")),
        "Stated sums that are right; checks whose sums and verdict are both right.", percent=True,
    ),
    Figure(
        "Search", "搜索", "per response",
        (("tries", "emergence/tries"), ("distinct", "emergence/distinct_expressions"), ("backtracks", "emergence/backtracks")),
        "Attempts compared with the target, different expressions among them, failures followed by another attempt.",
    ),
    Figure(
        "Subgoals and backward chaining", "子目标与逆推", "per response",
        (("subgoals", "emergence/subgoals"), ("backward", "emergence/backward_chains")),
        "A number kept back or a value asked for; sums that start from the target.",
    ),
    Figure(
        "Reflection words", "反思词", "per response",
        (("all", "emergence/reflection_words"), ("wait · 等等", "emergence/wait_words")),
        "R1's list (wait, mistake, however, but, retry, error, verify, wrong, evaluate, check) and its Chinese likeness.",
    ),
    Figure(
        "How responses end", "结局", "share of responses",
        (("answered", "emergence/answered"), ("answer works", "emergence/answer_works"), ("gave up", "emergence/gave_up")),
        "One answer in the template; an answer that reaches the target; a thought that gives up.", percent=True,
    ),
)  # fmt: skip

TRAINING = (
    Figure(
        "Reward", "奖励", "mean per sample",
        (("total", "grpo/reward"),),  # and each rule's, as they are found
        "Training samples, by name of the rule and in sum.",
    ),
    Figure("Entropy", "熵", "nats per token", (("policy", "grpo/entropy"),), "Of the sampled distribution."),
    Figure(
        "Clipped tokens", "裁剪比例", "share of tokens",
        (("low", "grpo/clip_low_frac"), ("high", "grpo/clip_high_frac")),
        "Tokens whose ratio left the clip range in the direction of their advantage.", percent=True,
    ),
    Figure(
        "KL divergence", "KL 散度", "nats per token",
        (("old policy", "grpo/approx_kl"), ("reference", "grpo/ref_kl")),
        "k3 estimates: from the policy that sampled, and from the reference where the loss uses it.",
    ),
    Figure(
        "Sampler against trainer", "采样与训练之差", "nats per token",
        (("mean |Δ|", "grpo/sampler_mismatch"),),
        "How far the sampler's logprobs are from the trainer's for the same tokens and weights.",
    ),
    Figure("Gradient norm", "梯度范数", "before clipping", (("norm", "grpo/grad_norm"),), "Of the whole update."),
    Figure("Learning rate", "学习率", "per update", (("rate", "grpo/lr"),), "As scheduled."),
    Figure(
        "Speed", "速度", "tokens per second",
        (("rollout", "grpo/rollout_tokens_per_second"), ("update", "grpo/update_tokens_per_second")),
        "Completion tokens sampled, and trained on.",
    ),
    Figure(
        "What the critic knows", "价值网络所知", "share of variance", (("explained", "ppo/explained_variance"),),
        "1: it foresees every return; 0: no more than their mean; below: less.", from_zero=False,
    ),
    Figure(
        "Groups without signal", "无信号组", "groups per step",
        (("equal rewards", "grpo/zero_variance_groups"),),
        "All right or all wrong: their advantage is zero.",
    ),
    Figure(
        "Truncated", "截断", "share of samples", (("truncated", "grpo/truncated"),),
        "Completions that reached the longest length.", percent=True,
    ),
)  # fmt: skip


def behaviour_figures(data: Mapping[str, Any]) -> list[str]:
    """The `emergence/*` charts that have points."""
    return [drawn for spec in BEHAVIOURS if (drawn := _figure(spec, lambda key: curve(data, key), "RL step"))]


def training_figures(curves: Curves, stage: str) -> list[str]:
    """One RL stage's charts that have points."""
    of_stage = curves.get(stage, {})
    method = next((name for name in METHODS if any(key.startswith(name) for key in of_stage)), METHODS[0])
    by_rule = sorted(key for key in of_stage if key.startswith(f"{method}reward/"))
    lines = (("total", f"{method}reward"), *((key.rsplit("/", 1)[1], key) for key in by_rule))
    specs = [replace(spec, lines=lines) if spec.title == "Reward" else _of_method(spec, method) for spec in TRAINING]
    return [drawn for spec in specs if (drawn := _figure(spec, lambda key: of_stage.get(key, []), "RL step"))]


def _of_method(spec: Figure, method: str) -> Figure:
    return replace(spec, lines=tuple((name, key.replace(METHODS[0], method)) for name, key in spec.lines))


def pretraining_figures(curves: Curves) -> list[str]:
    """Loss and speed of every stage that predicts next tokens."""
    found = []
    for stage, of_stage in curves.items():
        valid = sorted(key for key in of_stage if key.startswith("pretrain/valid_loss/"))
        lines = [("training", "pretrain/loss"), *((key.rsplit("/", 1)[1], key) for key in valid)]
        loss = Figure(
            f"Loss of {stage}", "预训练损失", "nats per token", tuple(lines),
            "Next-token loss in training and on held-out pages of each kind.", from_zero=False,
        )  # fmt: skip
        speed = Figure(
            f"Speed of {stage}", "预训练速度", "tokens per second",
            (("training", "pretrain/tokens_per_second"),), "Forward, backward and update.",
        )  # fmt: skip
        for spec in (loss, speed):
            drawn = _figure(spec, lambda key, points=of_stage: points.get(key, []), "update")
            if drawn:
                found.append(drawn)
    return found


def stage_figures(curves: Curves, stage: str) -> list[str]:
    """Every chart of one stage: its held-out curve, the known figures of its kind, then any other key that has a curve."""
    held_out = curves.get(f"{stage}{HELD_OUT}", {})
    shares = [key for key in sorted(held_out) if key not in ("eval/length", "eval/proxy")]
    specs = [Figure("Held out", "留出题", "mean per problem", tuple((key.split("/", 1)[1], key) for key in shares),
                    "Validation problems, by reward.", percent=True),
             Figure("Held-out length", "留出题长度", "tokens", (("all", "eval/length"),), "Of validation completions."),
             Figure("Proxy", "代理奖励", "reward model", (("proxy", "eval/proxy"),), "Learned reward of general prompts.", from_zero=False)]  # fmt: skip
    drawn = [_figure(spec, lambda key: held_out.get(key, []), "step") for spec in specs]
    of_stage = curves.get(stage, {})
    drawn += pretraining_figures({stage: of_stage}) + training_figures(curves, stage)
    shown = [_of_method(spec, method) for spec in TRAINING for method in METHODS]
    known = {key for spec in shown for _, key in spec.lines} | {"pretrain/loss", "pretrain/tokens_per_second"}
    apart = (*(f"{method}reward/" for method in METHODS), "pretrain/valid_loss/", "emergence/")
    shown_apart = {key for key in of_stage if key in known or key.startswith(apart)}
    for key in sorted(of_stage.keys() - shown_apart):
        kind, _, name = key.partition("/")
        trained = next((name.removeprefix(f"{word}_") for word in HELD_OUT_WORDS if name.startswith(f"{word}_")), None)
        if trained is not None and f"{kind}/{trained}" in of_stage.keys() - shown_apart:
            continue  # a line of that figure's chart
        beside = [other for word in HELD_OUT_WORDS if (other := f"{kind}/{word}_{name}") in of_stage]
        varies = any(len({y for _, y in of_stage[each]}) > 1 for each in (key, *beside))
        if varies and name != "epoch":
            lines = ((name or kind, key), *(("held out", other) for other in beside))
            spec = Figure(name.replace("_", " ") or kind, "", key, lines, "", from_zero=False)
            drawn.append(_figure(spec, lambda key: of_stage.get(key, []), "step"))
    return [figure for figure in drawn if figure]


def _figure(spec: Figure, points_of: Any, x_label: str) -> str:
    series = [line(name, points_of(key), n) for n, (name, key) in enumerate(spec.lines)]
    series = [s for s in series if s.points]
    if not series:
        return ""
    panel = Panel(series, spec.unit, low=0.0 if spec.from_zero else None, percent=spec.percent)
    drawn = chart([panel], spec.title, x_label, PAGE, 520, 190)
    return captioned(spec.title, spec.chinese, spec.caption, drawn)


def captioned(title: str, chinese: str, caption: str, drawn: str) -> str:
    """A drawing with its title in both languages and what it shows."""
    heads = f'<strong>{safe(title)}</strong><span lang="zh">{safe(chinese)}</span>'
    return f'<figure><figcaption>{heads}<span class="caption">{safe(caption)}</span></figcaption>{drawn}</figure>'


def line(name: str, points: Sequence[tuple[float, float]], colour: int) -> Series:
    """A smoothed line over its raw points, or a few points as measured."""
    points = evenly(points, MOST_POINTS)
    if len(points) <= FEW_POINTS:
        return Series(name, points, colour, dots=True)
    return Series(name, smooth(points), colour, raw=points)


def score_and_length(data: Mapping[str, Any], theme: Theme = PAPER, width: int = 760, height: int = 170) -> str:
    """The picture: held-out score above, response length below. "" before there are two points of either."""
    score = curve(data, "eval/pass@1")
    lengths: dict[str, Curve] = {
        name: evenly(points, MOST_POINTS)
        for name in ("all", "right", "wrong")
        if (points := curve(data, f"emergence/length_{name}"))
    }
    if not lengths:
        lengths = {"all": rl_metric(data, "length") or curve(data, "eval/length")}
    if len(score) < 2 and max(map(len, lengths.values())) < 2:
        return ""
    training = evenly(rl_metric(data, "reward/accuracy"), MOST_POINTS)
    return score_and_length_svg(
        score, lengths, training=training, bars=curve_bars(data, score), theme=theme, width=width, height=height
    )


def curve_bars(data: Mapping[str, Any], score: Curve) -> list[tuple[float, float, float]]:
    """Wilson intervals of the held-out curve, where the config says how many problems a point has."""
    config = data["run"].get("config") or {}
    problems = (config.get("evidence") or {}).get("curve_problems")
    if not isinstance(problems, int) or problems < 1:
        return []
    return [(step, *wilson(share, problems)) for step, share in score if 0 <= share <= 1]


def control_figure(data: Mapping[str, Any]) -> str:
    """The claim's held-out curve among those of the controls and of the other seeds."""
    series = []
    claim = curve(data, "eval/pass@1")
    if claim:
        series.append(Series("this run", claim, 0, bars=curve_bars(data, claim), dots=True))
    for n, control in enumerate(data["evidence"].get("controls") or []):
        if control.get("curve"):
            series.append(Series(str(control.get("name", "control")), [(x, y) for x, y in control["curve"]], 1 + n % 5))
    own = data["run"].get("seed")
    seeds = [s for s in data["evidence"].get("seeds") or [] if s.get("curve") and s.get("seed") != own]
    for seed in seeds:
        series.append(Series(f"seed {seed.get('seed')}", [(x, y) for x, y in seed["curve"]], 4))
    if len(series) < 2:
        return ""
    panel = Panel(series, "held-out pass@1", low=0.0, percent=True)
    drawn = chart([panel], "Held-out score: the claim and its controls", "RL step", PAGE, 760, 240)
    return captioned("The claim and its controls", "结论与对照", "Same recipe, one thing changed.", drawn)


def pass_at_k_figure(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """pass@k over k of the first and the last checkpoint: does training add answers, or only find them sooner?"""
    series = []
    for colour, c in ((4, checkpoints[0]), (0, checkpoints[-1])):
        found = sorted((int(k), i) for k, i in (c.get("pass@k") or {}).items())
        if len(found) >= 2:
            points = [(float(k), float(i["value"])) for k, i in found]
            bars = [(float(k), i["low"], i["high"]) for k, i in found if i.get("low") is not None]
            series.append(Series(str(c.get("name", "?")), points, colour, bars=bars, dots=True))
    if len(series) < 2:
        return ""
    panel = Panel(series, "share of problems", low=0.0, percent=True)
    caption = "At least one of k samples is right: does training add answers, or only find them sooner?"
    return captioned(
        "pass@k",
        "k 次采样通过率",
        caption,
        chart([panel], "pass@k", "k", PAGE, 520, 190, [x for x, _ in series[-1].points]),
    )
