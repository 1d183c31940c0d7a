"""Static SVG: ticks, smoothing, labels, well-formedness, colours."""

from __future__ import annotations

import math
import random
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from colours import contrast

from dunwu.eval.plots import (
    LINE,
    PAGE,
    PAPER,
    Panel,
    Series,
    _apart,
    chart,
    score_and_length_svg,
    smooth,
    tick_text,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"


def test_ticks_are_round_few_and_cover() -> None:
    dice = random.Random(0)
    for _ in range(500):
        low = dice.uniform(-1, 1) * 10 ** dice.randint(-6, 6)
        high = low + max(dice.random() * 10 ** dice.randint(-6, 6), 1e-6 * abs(low))
        marks = ticks(low, high)
        assert 2 <= len(marks) <= 12
        step = marks[1] - marks[0]
        assert marks[0] <= low + 1e-6 * step and marks[-1] >= high - 1e-6 * step
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


def test_ticks_of_a_flat_line_and_of_nonsense() -> None:
    assert ticks(3.0, 3.0)[0] < 3 < ticks(3.0, 3.0)[-1]
    assert len(ticks(0.0, 0.0)) >= 2
    assert len(ticks(math.nan, 1.0)) >= 2


def test_tick_texts() -> None:
    found = [tick_text(v) for v in (0.0, 0.25, 12.5, 1500, 20000, 2.5e6, 1e-5)]
    assert found == ["0", "0.25", "12.5", "1,500", "20k", "2.5M", "1e-05"]


def test_smooth_keeps_lines_and_means() -> None:
    line = [(float(x), 3.0 * x - 2) for x in range(50)]
    assert smooth(line) == [(x, pytest.approx(y)) for x, y in line]
    noisy = [(float(x), random.Random(x).gauss(5, 1)) for x in range(400)]
    assert all(abs(y - 5) < 0.8 for _, y in smooth(noisy))
    assert smooth([(1.0, 2.0)]) == [(1.0, 2.0)]
    assert smooth([]) == []


def test_labels_keep_apart_and_in_order() -> None:
    dice = random.Random(1)
    for _ in range(200):
        wanted = [dice.uniform(0, 100) for _ in range(dice.randint(1, 6))]
        places = _apart(wanted, 0, 100)
        ordered = [places[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
        assert all(b - a >= LINE - 1e-9 for a, b in pairwise(ordered))
        assert max(places) <= 100 + 1e-9


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_chart_says_its_names_units_and_ends() -> None:
    points = [(0.0, 0.25), (10.0, 0.75)]
    svg = chart([Panel([Series("a <b> & c", points, dots=True)], "share", percent=True, low=0.0)], "T <1>", "step")
    root = ET.fromstring(svg)
    assert root.find(f"{SVG}title").text == "T <1>"  # type: ignore[union-attr]
    assert "from 25% at step 0 to 75% at 10" in root.find(f"{SVG}desc").text  # type: ignore[union-attr, operator]
    assert {"a <b> & c", "share", "step", "0%", "80%"} <= set(texts(svg))
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_points_land_where_the_axes_say() -> None:
    svg = chart(
        [Panel([Series("a", [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0)], dots=True)], "y")], "t", width=500, height=200
    )
    circles = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in ET.fromstring(svg).iter(f"{SVG}circle")]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 - y2 == pytest.approx(200, abs=0.11)


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = chart([Panel([Series("a", [(0, math.nan), (1, 1.0), (2, math.inf), (3, 2.0)])], "y")], "t")
    assert "nan" not in svg and "inf" not in svg
    with pytest.raises(ValueError, match="nothing to draw"):
        chart([Panel([Series("a", [(0, math.nan)])], "y")], "t")


def test_one_point_and_no_spread_draw() -> None:
    ET.fromstring(chart([Panel([Series("a", [(5.0, 0.0)])], "y")], "t"))
    ET.fromstring(chart([Panel([Series("a", [(5.0, 2.0), (6.0, 2.0)])], "y")], "t"))


def test_lines_differ_without_colour() -> None:
    lines = [Series(str(n), [(0.0, n), (1.0, n)], n) for n in range(6)]
    svg = chart([Panel(lines, "y")], "t")
    dashes = re.findall(r"stroke-dasharray:([^\"]+)", svg)
    assert len(set(dashes)) == len(dashes) == 5


def test_paper_stands_alone_and_page_follows_the_page() -> None:
    score, length = [(0.0, 0.3), (10.0, 0.6)], {"all": [(1.0, 60.0), (10.0, 110.0)]}
    paper = score_and_length_svg(score, length, bars=[(0.0, 0.25, 0.35)])
    assert "var(" not in paper and "<rect" in paper and "http://www.w3.org/2000/svg" in paper
    assert "http" not in paper.replace("http://www.w3.org/2000/svg", "")
    page = score_and_length_svg(score, length, theme=PAGE)
    assert "#" not in page and "var(--s1)" in page
    assert {"share of right answers", "tokens per response", "RL step"} <= set(texts(paper))
    only_length = score_and_length_svg([], length, theme=PAPER)
    assert "share of right answers" not in texts(only_length)


def test_text_and_lines_can_be_read_on_paper() -> None:
    assert PAPER.background is not None
    for colour in (PAPER.ink, PAPER.soft, *PAPER.series):
        assert contrast(colour, PAPER.background) >= 4.5
