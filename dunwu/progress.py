"""Console progress on stderr: one live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from types import TracebackType
from typing import TextIO

_PLAIN_SECONDS, _LIVE_SECONDS = 5.0, 0.1
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


class Progress:
    """How far `label` is, at what rate, and when it will be done.

    `update(done, **figures)` takes the amount done so far, not an increment; `start` is what was already
    done when this process began (a resumed run), so that rate and ETA are honest.

    Example:
        with Progress(100, "pretrain", "steps", start=40) as progress:
            for step in range(40, 100):
                progress.update(step + 1, loss=2.31)
    """

    def __init__(self, total: float, label: str, unit: str = "", start: float = 0, file: TextIO | None = None) -> None:
        self.total, self.label, self.unit, self.start = total, label, unit, start
        self.done: float = start
        self._file = file if file is not None else sys.stderr
        self._figures: dict[str, float | str] = {}
        self._live = _is_terminal(self._file)
        self._began = self._shown_at = time.monotonic()
        self._shown: float | None = None

    def update(self, done: float, **figures: float | str) -> None:
        """`done` of `total` units are done; figures are shown beside the bar."""
        self.done = done
        self._figures = figures
        if time.monotonic() - self._shown_at >= (_LIVE_SECONDS if self._live else _PLAIN_SECONDS):
            self._show()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown != self.done:
            self._show()
        if self._live:
            self._write("\n")

    def line(self, seconds: float) -> str:
        """The text after `seconds` of work in this process.

        Example:
            >>> Progress(200, "pretrain", "steps").line(1)
            'pretrain 0/200 steps 0%'
        """
        share = min(1.0, self.done / self.total) if self.total else 1.0
        parts = [f"{self.label} {_number(self.done)}/{_number(self.total)}{' ' if self.unit else ''}{self.unit}"]
        parts.append(f"{100 * share:.0f}%")
        if self.done > self.start and seconds > 0:
            rate = (self.done - self.start) / seconds
            parts.append(f"{_number(rate)}/s")
            parts.append(
                f"eta {_duration((self.total - self.done) / rate)}" if share < 1 else f"in {_duration(seconds)}"
            )
        parts += [
            f"{name} {value if isinstance(value, str) else _number(value)}" for name, value in self._figures.items()
        ]
        return " ".join(parts)

    def _show(self) -> None:
        self._shown_at, self._shown = time.monotonic(), self.done
        text = self.line(self._shown_at - self._began)
        if not self._live:
            self._write(text + "\n")
            return
        width = shutil.get_terminal_size().columns - 1
        bar = self._bar(width - columns(text) - 1)
        self._write(f"\r{bar}{_cut(text, max(width, 1))}\x1b[K")

    def _bar(self, room: int) -> str:
        """A bar of at most 24 columns if there is room for at least 8; dimmed where colour is welcome."""
        cells = min(24, room)
        if cells < 8:
            return ""
        full = int(cells * (min(1.0, self.done / self.total) if self.total else 1.0))
        on, off = ("━", "─") if "utf" in (getattr(self._file, "encoding", None) or "").lower() else ("#", "-")
        rest = off * (cells - full)
        return on * full + (rest if os.environ.get("NO_COLOR") else f"{_DIM}{rest}{_RESET}") + " "

    def _write(self, text: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write(text.encode(encoding, "replace").decode(encoding, "replace"))
            self._file.flush()
        except (OSError, ValueError):  # a closed or vanished terminal must not end a run
            pass


def _is_terminal(file: TextIO) -> bool:
    try:
        return file.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def _number(value: float) -> str:
    """Few digits: 1234567 → 1.23M, 12.3456 → 12.3, 0.01234 → 0.0123."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}" if abs(value) < 1e15 else f"{value:.2e}"
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    """42s, 3m05s, 2h14m.

    Example:
        >>> _duration(185)
        '3m05s'
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole // 60 % 60:02}m"


def columns(text: str) -> int:
    """Terminal columns; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _cut(text: str, width: int) -> str:
    while columns(text) > width:
        text = text[:-1]
    return text
