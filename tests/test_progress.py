"""Console progress: quiet where nobody looks, whole on any terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from dunwu import progress
from dunwu.progress import Progress, columns


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_away_from_a_terminal_a_line_every_five_seconds_and_the_last(pass_time: Callable[[float], None]) -> None:
    out = io.StringIO()
    with Progress(100, "pretrain", "steps", file=out) as bar:
        for step in range(100):
            pass_time(0.25)
            bar.update(step + 1, loss=2.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "pretrain 20/100 steps 20% 4/s eta 20s loss 2.5"
    assert lines[-1] == "pretrain 100/100 steps 100% 4/s in 25s loss 2.5"


def test_the_rate_of_a_resumed_run_counts_only_what_this_process_did(pass_time: Callable[[float], None]) -> None:
    bar = Progress(100, "grpo", "steps", start=90, file=io.StringIO())
    bar.update(92)
    assert bar.line(4.0) == "grpo 92/100 steps 92% 0.5/s eta 16s"


@pytest.mark.parametrize("width", [1, 2, 12, 40, 200])
def test_a_terminal_gets_one_line_that_fits(
    pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Progress(10, "预训练", "步", file=out) as bar:
        for step in range(10):
            pass_time(1)
            bar.update(step + 1, 损失=1.5)
    text = out.getvalue()
    assert text.count("\n") == 1
    frames = text.rstrip("\n").replace("\x1b[K", "").split("\r")[1:]
    assert len(frames) == 10
    assert all(columns(frame) <= max(width - 1, 1) for frame in frames)
    assert "\x1b[2m" not in text
    if width == 200:
        assert "━" * 24 in frames[-1]


def test_colour_only_where_it_is_welcome(pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    with Progress(10, "x", file=out) as bar:
        pass_time(1)
        bar.update(5)
    assert "\x1b[2m" in out.getvalue()


def test_a_terminal_without_the_letters_or_gone_altogether_ends_nothing(pass_time: Callable[[float], None]) -> None:
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="ascii")
    with Progress(1, "预训练", file=narrow) as bar:
        bar.update(1)
    assert raw.getvalue().startswith(b"??? 1/1")
    closed = io.StringIO()
    closed.close()
    with Progress(1, "x", file=closed) as bar:
        pass_time(9)
        bar.update(1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12, "12"),
        (12345, "12.3k"),
        (1234567, "1.23M"),
        (2.5e9, "2.5B"),
        (0.01234, "0.0123"),
        (1234.5, "1234"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert progress._number(value) == shown
