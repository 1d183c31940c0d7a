"""One sitting of `dunwu chat`: a person at a terminal, questions in a pipe, or a single question."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dunwu.serve.chat import Conversation
from dunwu.serve.speaker import Speaker
from dunwu.serve.terminal import Screen, Terminal, piped_lines, typed_lines, wants_colour
from dunwu.serve.words import WORDS, language_of


@dataclass(frozen=True)
class Sitting:
    """How one sitting goes."""

    prompt: str | None = None
    """One question, and the end; None to read lines from stdin."""
    system: str = ""
    """What is said before the conversation."""
    seed: int = 0
    """Seed of every reply."""
    temperature: float = 0.7
    """Divides the logits; 0 is greedy."""
    max_tokens: int = 512
    """Longest reply."""
    fold: bool = False
    """Begin with folded thinking."""
    language: str = "auto"
    """Of the interface: en, zh or auto."""
    quiet: bool = False
    """Show nothing; the records are all that is wanted."""


def sit(speaker: Speaker, sitting: Sitting) -> dict[str, Any]:
    """Talk until the questions end.

    Returns:
        {"model", "frame", "turns": a record of every question and its reply}.

    Raises:
        UsageError: a setting out of range. DunwuError: a question without an answer, where nobody is typing.
    """
    conversation = Conversation(speaker, seed=sitting.seed, system=sitting.system)
    conversation.set_temperature(sitting.temperature)
    conversation.set_max_tokens(sitting.max_tokens)
    interactive = sitting.prompt is None and not sitting.quiet and sys.stdin.isatty()
    out = io.StringIO() if sitting.quiet else sys.stdout
    screen = Screen(out, WORDS[language_of(sitting.language)], wants_colour(out))
    screen.show_thinking = not sitting.fold
    if interactive:
        screen.remark("hello", name=speaker.name)
    if speaker.frame == "zero":
        print(f"· {screen.words['zero']} ·", file=sys.stderr)
    lines: Iterable[str]
    if sitting.prompt is not None:
        lines = ["/" * sitting.prompt.startswith("/") + sitting.prompt]  # a question, never a command
    else:
        lines = typed_lines(screen) if interactive else piped_lines(sys.stdin)
    terminal = Terminal(conversation, screen, interactive, echo=sitting.prompt is None and not interactive)
    terminal.run(lines)
    return {"model": speaker.name, "frame": speaker.frame, "turns": terminal.records}
