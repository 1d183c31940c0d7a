"""Language consistency: hand-counted words."""

from __future__ import annotations

import time

import pytest

from dunwu.tasks.language import check_share, consistency, draw_language, wordless, words
from dunwu.types import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("12-7=5,5*3=15 × ÷ 。，！", {}),
        ("Keep 3:7+12=19 no", {"en": 2}),
        ("留3:7+12=19不对", {"zh": 3}),
        ("Wait, 不对", {"en": 1, "zh": 2}),
        ("If A knight, B knave", {"en": 3}),  # speakers are neutral
        ("I am a man", {"en": 2}),  # so are "I" and "a", by the same rule
        ("x+y=z", {}),
        ("don't", {"en": 1}),
        ("naïve café", {"en": 2}),
        ("A骑士，B无赖", {"zh": 4}),
        ("<think>so 24</think>\n<answer>8*3</answer>", {"en": 1}),  # tags are no words
        ("привет", {"other": 1}),
        ("こんにちは", {"other": 1}),
        ("so9then", {"en": 2}),
        ("𠀀", {"zh": 1}),  # beyond the basic plane
        ("１２３", {}),
        ("ＡＢ", {"other": 1}),  # full-width letters are no English
    ],
)
def test_words(text: str, expected: dict[str, int]) -> None:
    assert dict(words(text)) == expected
    assert wordless(text) == (not expected)


def test_consistency_is_the_share() -> None:
    assert consistency("Keep 3 不对 no", "en") == 2 / 4
    assert consistency("Keep 3 不对 no", "zh") == 2 / 4
    assert consistency("Keep trying 不", "en") == 2 / 3
    assert consistency("Keep trying 不", "zh") == 1 / 3
    assert consistency("3*8=24", "en") == consistency("3*8=24", "zh") == consistency("", "zh") == 1.0
    assert consistency("привет", "en") == 0.0


def test_neutral_names() -> None:
    assert consistency("Tom有5个苹果", "zh") == 4 / 5
    assert consistency("Tom有5个苹果", "zh", neutral={"tom"}) == 1.0
    assert wordless("Tom 5", neutral={"tom"})


def test_unknown_language() -> None:
    with pytest.raises(UsageError, match="unknown language 'fr'"):
        consistency("bonjour", "fr")


@pytest.mark.parametrize("text", ["a" * 2 * 10**5, "<think" * 10**5, "不" * 2 * 10**5, "a'" * 10**5, "don't " * 10**5])
def test_linear(text: str) -> None:
    start = time.process_time()
    consistency(text, "en")
    assert time.process_time() - start < 2


def test_language_shares() -> None:
    drawn = [draw_language("t", 0.3, "train", 0, index) for index in range(4000)]
    assert abs(drawn.count("zh") / 4000 - 0.3) < 0.03
    assert {draw_language("t", 0.0, "train", 0, index) for index in range(200)} == {"en"}
    assert {draw_language("t", 1.0, "train", 0, index) for index in range(200)} == {"zh"}
    for none in (2, -0.1, True, "0.5", float("nan")):
        with pytest.raises(UsageError, match=rf"t: chinese = {none!r} is not a share"):
            check_share("t", "chinese", none)  # type: ignore[arg-type]
    assert check_share("t", "chinese", 1) == 1.0
