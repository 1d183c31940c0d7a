"""What a context extension did: loss by position and needles, of the model before, rescaled and trained, as figures and a page.

`context.json` of a run holds

    {"original": 256, "context": 1024, "windows": 64, "base_tokens": n or null, "extension_tokens": n,
     "reference": [[first, last, mean, error], …], "models": [{"name": "base", "places": [[first, last, mean, error], …], "needles": [NeedlePoint.as_json(), …]}, …]}

with the models in the order of `NAMES`; positions count from 1, which has one token before it. The reference is the base on the
same tokens, seeing no more of what stands before them than it was trained at: what the text itself does with position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dunwu.eval.passk import Z95
from dunwu.eval.plots import PAPER, Panel, Series, Theme, chart

if TYPE_CHECKING:  # reports read this module, and need no torch
    from dunwu.model.transformer import Transformer

NAMES = ("base", "base + YaRN, untrained", "extended")
REFERENCE = "reference"
STRETCHES = 16
"""Equal parts of the long context whose mean losses are drawn."""
TOKENS_AT_ONCE = 8192
"""B · T of a forward pass."""


def losses_by_place(
    model: Transformer, windows: Sequence[NDArray[np.int64]], stretches: int = STRETCHES
) -> list[tuple[int, int, float, float]]:
    """(first, last, mean nats per token, standard error over windows) for equal stretches of the windows.

    Args:
        windows: (T + 1,) ids each, T the same in all.
    """
    import torch

    was_training = model.training
    model.eval()
    device, rows = model.head_weight.device, max(1, TOKENS_AT_ONCE // len(windows[0]))
    parts = []
    for start in range(0, len(windows), rows):
        ids_BT = torch.from_numpy(np.stack(windows[start : start + rows])).to(device)
        with torch.inference_mode():
            logits = model.hidden(ids_BT[:, :-1]).flatten(0, 1) @ model.head_weight.T
        nats = torch.nn.functional.cross_entropy(logits.float(), ids_BT[:, 1:].flatten(), reduction="none")
        parts.append(nats.view(len(ids_BT), -1).double().cpu().numpy())
    model.train(was_training)
    losses_WT = np.concatenate(parts)
    edges = [round(n * losses_WT.shape[1] / stretches) for n in range(stretches + 1)]
    found = []
    for first, after in pairwise(edges):
        means = losses_WT[:, first:after].mean(1)
        error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        found.append((first + 1, after, float(means.mean()), error))
    return found


def short_sighted(
    model: Transformer, windows: Sequence[NDArray[np.int64]], original: int, stretches: int = STRETCHES
) -> list[tuple[int, int, float, float]]:
    """`losses_by_place` of a model that sees at most `original` tokens: a stretch is read with what fits before it.

    Its tokens see between `original` less the stretch's length and `original` tokens.
    """
    length = len(windows[0]) - 1
    edges = [round(n * length / stretches) for n in range(stretches + 1)]
    found = []
    for first, after in pairwise(edges):
        start = max(0, after - original)
        parts = losses_by_place(model, [window[start : after + 1] for window in windows], after - start)
        losses = [part[2] for part in parts[first - start :]]
        error = math.sqrt(sum(part[3] ** 2 for part in parts[first - start :])) / len(losses)
        found.append((first + 1, after, sum(losses) / len(losses), error))
    return found


def above_reference(
    model: Mapping[str, Any], reference: Sequence[Sequence[float]], original: int
) -> tuple[float, float]:
    """How far a model's loss lies above the reference beyond the old context: on average, and in the worst stretch; nats.

    Example:
        >>> mine, other = ([[1, 4, 1.0, 0.0], [5, 8, loss, 0.0]] for loss in (2.0, 1.5))
        >>> above_reference({"places": mine}, other, 4)
        (0.5, 0.5)
    """
    gaps = [mine[2] - other[2] for mine, other in zip(model["places"], reference) if mine[0] > original]
    return sum(gaps) / len(gaps), max(gaps)


def rise(model: Mapping[str, Any], original: int) -> float | None:
    """How far the worst stretch beyond the old context lies above the old context's second half, in nats per token.

    0 or less: the loss is flat or falls on. None where there is nothing to compare.

    Example:
        >>> rise({"places": [[1, 128, 2.0, 0.0], [129, 256, 1.5, 0.0], [257, 384, 1.5, 0.0], [385, 512, 1.75, 0.0]]}, 256)
        0.25
    """
    within = [mean for first, last, mean, _ in model["places"] if original // 2 < first and last <= original]
    beyond = [mean for first, _, mean, _ in model["places"] if first > original]
    return max(beyond) - sum(within) / len(within) if within and beyond else None


def headline(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that decide: the rise of every model, and its needles found at the longest length."""
    figures: dict[str, float] = {}
    for key, model in zip(("base", "untrained", "extended"), found["models"]):
        above = rise(model, found["original"])
        figures |= {f"rise/{key}": above} if above is not None else {}
        figures[f"above_reference/{key}"] = above_reference(model, found["reference"], found["original"])[0]
        if model["needles"]:
            last = model["needles"][-1]
            figures[f"needle/{key}"] = last["accuracy"]["value"]
            figures[f"needle_removed/{key}"] = last["removed"]["value"]
    return figures


def loss_svg(found: Mapping[str, Any], theme: Theme = PAPER) -> str:
    """Loss by position of the models, with 95% intervals over windows."""
    series = []
    for n, model in enumerate(found["models"]):
        points = [((first + last) / 2, mean) for first, last, mean, _ in model["places"]]
        bars = [
            ((first + last) / 2, mean - Z95 * error, mean + Z95 * error) for first, last, mean, error in model["places"]
        ]
        series.append(Series(model["name"], points, n, bars=bars, dots=True))
    points = [((first + last) / 2, mean) for first, last, mean, _ in found["reference"]]
    series.append(Series(f"base, {found['original']} tokens at a time", points, len(series)))
    title = f"Loss by position: trained at {found['original']}, extended to {found['context']}"
    return chart([Panel(series, "nats per token")], title, "position", theme, 760, 230, _marks(found))


def needle_svg(found: Mapping[str, Any], theme: Theme = PAPER) -> str:
    """Needles found by length, and below it nothing else: depth has a picture of its own."""
    series = []
    for n, model in enumerate(found["models"]):
        points = [(point["length"], point["accuracy"]["value"]) for point in model["needles"]]
        bars = [(p["length"], p["accuracy"]["low"], p["accuracy"]["high"]) for p in model["needles"]]
        series.append(Series(model["name"], points, n, bars=bars, dots=True))
    lengths = [point["length"] for point in found["models"][0]["needles"]]
    panel = Panel(series, "needles found", low=0.0, high=1.0, percent=True)
    return chart([panel], "Needles found by length", "tokens of the text", theme, 760, 200, lengths)


def depth_svg(found: Mapping[str, Any], theme: Theme = PAPER) -> str:
    """Needles found at the longest length, by depth."""
    series = []
    for n, model in enumerate(found["models"]):
        depths = model["needles"][-1]["depths"]
        shares = [100 * place / max(1, len(depths) - 1) for place in range(len(depths))]
        points = [(share, depth["value"]) for share, depth in zip(shares, depths)]
        series.append(Series(model["name"], points, n, dots=True))
    length = found["models"][0]["needles"][-1]["length"]
    panel = Panel(series, "needles found", low=0.0, high=1.0, percent=True)
    return chart([panel], f"Needles found by depth, at {length} tokens", "depth of the fact, %", theme, 760, 200)


def _marks(found: Mapping[str, Any]) -> list[float]:
    step = found["original"]
    while found["context"] // step > 8:
        step *= 2
    return [1.0, *(float(n) for n in range(step, found["context"] + 1, step))]


def page(found: Mapping[str, Any]) -> str:
    """The same as a Markdown page of two tables."""
    original, context = found["original"], found["context"]
    spent = f"{found['extension_tokens']:,} tokens"
    if found.get("base_tokens"):
        spent += f", {found['extension_tokens'] / found['base_tokens']:.1%} of the base's {found['base_tokens']:,}"
    lines = [
        f"# Context {original} → {context}",
        "",
        f"Trained on {spent}; {found['windows']} held-out windows. Rise: the worst stretch beyond {original} minus the mean of "
        f"{original // 2 + 1} to {original}.",
        "",
    ]
    names = [model["name"] for model in found["models"]]
    lines += _table(["loss at positions", *names, REFERENCE], _loss_rows(found, original))
    rises = [rise(model, original) for model in found["models"]]
    lines += [_row(["rise", *("" if value is None else f"{value:+.3f}" for value in rises), ""])]
    gaps = [above_reference(model, found["reference"], original) for model in found["models"]]
    lines += [_row([f"above the reference beyond {original}: mean", *(f"{mean:+.3f}" for mean, _ in gaps), ""])]
    lines += [_row(["the same, worst stretch", *(f"{worst:+.3f}" for _, worst in gaps), ""]), ""]
    if found["models"][0]["needles"]:
        rows = []
        for points in zip(*(model["needles"] for model in found["models"])):
            rows.append([f"{points[0]['length']}", *(_share(point["accuracy"]) for point in points)])
        last = [model["needles"][-1] for model in found["models"]]
        for name in last[0]["languages"]:
            rows.append([f"{last[0]['length']}, {name}", *(_share(point["languages"][name]) for point in last)])
        rows.append([f"{last[0]['length']}, worst depth", *(f"{_worst(point):.2f}" for point in last)])
        rows.append([f"{last[0]['length']}, fact removed", *(_share(point["removed"]) for point in last)])
        lines += [*_table(["needles found at", *names], rows), ""]
    return "\n".join(lines)


def _loss_rows(found: Mapping[str, Any], original: int) -> list[list[str]]:
    """Stretches gathered to halves of the old context, so that the table stays short."""
    columns = []
    for places in (*(model["places"] for model in found["models"]), found["reference"]):
        gathered = groupby(places, key=lambda place: (place[0] - 1) // max(1, original // 2))
        columns.append([(part[0][0], part[-1][1], _mean(part)) for part in (list(places) for _, places in gathered)])
    return [
        [f"{first}-{last}", *(f"{column[n][2]:.3f}" for column in columns)]
        for n, (first, last, _) in enumerate(columns[0])
    ]


def _mean(places: Sequence[Sequence[float]]) -> float:
    return sum(place[2] for place in places) / len(places)


def _worst(point: Mapping[str, Any]) -> float:
    return min(float(depth["value"]) for depth in point["depths"])


def _share(interval: Mapping[str, Any]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
