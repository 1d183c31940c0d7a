"""The figures of a context extension, from numbers made up for it and from a model whose losses are known."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from dunwu.eval.extension import (
    NAMES,
    depth_svg,
    headline,
    loss_svg,
    losses_by_place,
    needle_svg,
    page,
    rise,
    short_sighted,
)
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer


def interval(value: float) -> dict[str, Any]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": 100}


def point(length: int, value: float) -> dict[str, Any]:
    depths = [interval(value), interval(value / 2)]
    languages = {"en": interval(value), "zh": interval(value)}
    return {
        "length": length,
        "accuracy": interval(value),
        "depths": depths,
        "languages": languages,
        "removed": interval(0.01),
    }


def made_up() -> dict[str, Any]:
    models = []
    for name, beyond, found in zip(NAMES, (4.0, 1.9, 1.52), (0.0, 0.4, 0.98)):
        places = [
            [1, 64, 2.5, 0.1],
            [65, 128, 1.6, 0.1],
            *([n + 1, n + 64, beyond, 0.1] for n in range(128, 512, 64)),
        ]
        models.append({"name": name, "places": places, "needles": [point(128, 0.99), point(512, found)]})
    record: dict[str, Any] = {"original": 128, "context": 512, "windows": 9, "base_tokens": 1000}
    reference = [[first, last, min(mean, 1.6), 0.1] for first, last, mean, _ in models[0]["places"]]
    return record | {"extension_tokens": 50, "reference": reference, "models": models}


def test_the_headline_is_rise_and_needles_at_full_length() -> None:
    figures = headline(made_up())
    assert figures["rise/extended"] == pytest.approx(-0.08)
    assert figures["rise/base"] == pytest.approx(2.4)
    assert figures["needle/extended"] == 0.98 and figures["needle/untrained"] == 0.4
    assert figures["needle_removed/extended"] == 0.01
    assert figures["above_reference/extended"] == pytest.approx(-0.08)
    assert figures["above_reference/base"] == pytest.approx(2.4)


def test_the_reference_reads_every_stretch_with_what_fits_before_it() -> None:
    """By hand: each token of a stretch, given at most `original` tokens that end with the stretch."""
    model = Transformer(ModelConfig(vocab_size=40, hidden_size=32, num_heads=2, num_layers=1, intermediate_size=32))
    model.init_weights(torch.Generator().manual_seed(0))
    windows = [np.random.default_rng(n).integers(40, size=33) for n in range(3)]
    found = short_sighted(model, windows, original=16, stretches=4)
    assert [place[:2] for place in found] == [(1, 8), (9, 16), (17, 24), (25, 32)]
    for first, last, mean, _ in found:
        start = max(0, last - 16)
        losses = []
        for window in windows:
            ids = torch.from_numpy(window[start : last + 1])[None]
            nats = -model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
            losses.append(float(nats[first - 1 - start :].detach().mean()))
        assert mean == pytest.approx(sum(losses) / 3, abs=1e-4)


def test_no_rise_where_one_side_is_missing() -> None:
    assert rise({"places": [[1, 128, 2.0, 0.0]]}, 128) is None
    without = made_up()
    for model in without["models"]:
        model["needles"] = []
    names = ("base", "untrained", "extended")
    assert set(headline(without)) == {f"{what}/{name}" for what in ("rise", "above_reference") for name in names}
    assert "needles" not in page(without)


@pytest.mark.parametrize("draw", [loss_svg, needle_svg, depth_svg])
def test_pictures_are_svg_with_a_line_for_each_model(draw: Any) -> None:
    root = ElementTree.fromstring(draw(made_up()))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert set(NAMES) <= set(texts)


def test_the_page_has_what_was_measured() -> None:
    text = page(made_up())
    assert "5.0% of the base's 1,000" in text
    assert "| rise | +2.400 | +0.300 | -0.080 |" in text
    assert "| 512 | 0.000 (0.000 to 0.100) | 0.400 (0.300 to 0.500) | 0.980 (0.880 to 1.000) |" in text
    assert "| 512, worst depth | 0.00 | 0.20 | 0.49 |" in text


def test_losses_of_a_model_that_knows_nothing_are_the_same_everywhere() -> None:
    model = Transformer(ModelConfig(vocab_size=50, hidden_size=32, num_heads=1, num_layers=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    windows = [np.random.default_rng(n).integers(0, 50, 65) for n in range(5)]
    found = losses_by_place(model, windows, 4)
    assert [(first, last) for first, last, _, _ in found] == [(1, 16), (17, 32), (33, 48), (49, 64)]
    assert all(
        mean == pytest.approx(math.log(50)) and error == pytest.approx(0, abs=1e-9) for _, _, mean, error in found
    )


def test_each_stretch_has_the_loss_of_its_own_tokens() -> None:
    """A model that always says 7: certain where 7 stands, wrong elsewhere."""
    model = Transformer(ModelConfig(vocab_size=8, hidden_size=8, num_heads=1, num_layers=1))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(8) * 30)
    model.hidden = lambda ids, *a, **k: torch.eye(8)[7].expand(*ids.shape, 8)  # type: ignore[method-assign]
    ids = np.array([7] * 9 + [3] * 8)
    (_, _, first, _), (_, _, second, _) = losses_by_place(model, [ids, ids], 2)
    assert first == pytest.approx(0.0, abs=1e-6) and second == pytest.approx(30.0, abs=1e-4)
