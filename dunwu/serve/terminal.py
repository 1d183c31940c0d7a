"""The terminal: lines in, a reply streamed out, and the commands that begin with a slash.

A plain loop, no full screen: it works over a serial line, in a pipe and under `script`. Thinking is dim, or marked with
"| " where there is no colour; folded, only its length is told. The answer block is bold.
Not covered: editing earlier turns, mouse, resizing (the terminal wraps lines itself).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from dunwu.serve.chat import Conversation, turn_record
from dunwu.serve.pieces import Kind, Piece
from dunwu.serve.speaker import Reply
from dunwu.types import DunwuError

DIM, BOLD, RESET, RED = "\x1b[2m", "\x1b[1m", "\x1b[0m", "\x1b[31m"
PROMPT = "> "
MARK = "| "
"""Begins a line of thinking where there is no colour."""


def wants_colour(out: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """On a terminal that is not dumb, unless NO_COLOR says otherwise."""
    there = os.environ if environment is None else environment
    return out.isatty() and there.get("TERM") != "dumb" and not there.get("NO_COLOR")


class Screen:
    """Where pieces and remarks are written.

    Args:
        words: texts by name, of one language.
        colour: whether escape codes are welcome.
    """

    def __init__(self, out: TextIO, words: Mapping[str, str], colour: bool = False) -> None:
        self.out, self.words, self.colour = out, words, colour
        self.show_thinking = True
        self._kind: Kind = "text"
        self._line_open = False
        self._folded = False

    def piece(self, piece: Piece, reply: Reply) -> None:
        """Show the next piece of a reply."""
        if self._kind == "thinking" and piece.kind != "thinking":
            self._end_thinking(reply)
        self._kind = piece.kind
        text = printable(piece.text)
        if piece.kind != "thinking":
            self._write(text, BOLD if piece.kind == "answer" else "")
        elif self.show_thinking:
            self._write(text if self.colour else self._marked(text), DIM)
        else:
            self._folded = True

    def end(self, reply: Reply) -> None:
        """The reply is over."""
        if self._kind == "thinking":
            self._end_thinking(reply)
        self._kind = "text"
        self._new_line()

    def remark(self, which: str, **values: object) -> None:
        """Say something of one's own, by its name in `words`."""
        self._new_line()
        self._write(f"· {self.words[which].format(**values)} ·\n", DIM)

    def text(self, text: str) -> None:
        """A plain line."""
        self._new_line()
        self._write(f"{printable(text)}\n")

    def error(self, error: DunwuError) -> None:
        """One line."""
        self._new_line()
        self._write(f"dunwu: {printable(' '.join(str(error).split()))}\n", RED)

    def _end_thinking(self, reply: Reply) -> None:
        """A blank line after shown thinking; the length of folded thinking."""
        if self._folded:
            self._folded = False
            self.remark("thought" if reply.tokens else "thought_uncounted", n=reply.thinking_tokens)
            return
        self._new_line()
        self._write("\n")

    def _marked(self, text: str) -> str:
        marked = ("" if self._line_open else MARK) + text.replace("\n", f"\n{MARK}")
        return marked.removesuffix(MARK) if text.endswith("\n") else marked

    def _new_line(self) -> None:
        if self._line_open:
            self._write("\n")

    def _write(self, text: str, style: str = "") -> None:
        if not text:
            return
        self.out.write(f"{style}{text}{RESET}" if style and self.colour else text)
        self.out.flush()
        self._line_open = not text.endswith("\n")


class Terminal:
    """A conversation on a screen.

    Args:
        interactive: a person is typing: errors and Ctrl-C end an answer, not the chat.
        echo: whether the lines taken are shown, since nobody typed them.
    """

    def __init__(self, conversation: Conversation, screen: Screen, interactive: bool, echo: bool = False) -> None:
        self.conversation, self.screen, self.interactive, self.echo = conversation, screen, interactive, echo
        self.records: list[dict[str, Any]] = []
        self._told_left_out = False

    def run(self, lines: Iterable[str]) -> None:
        """Answer every line until there is none, or /quit.

        Raises:
            DunwuError: a question that cannot be answered, where nobody is typing.
        """
        for line in lines:
            if self.echo:
                self.screen.text(f"{PROMPT}{line}")
            try:
                if not self.take(line):
                    return
            except DunwuError as error:
                if not self.interactive:
                    raise
                self.screen.error(error)

    def take(self, line: str) -> bool:
        """One line: a command or a question. False to leave."""
        text = clean(line).strip()
        if text.startswith("／"):  # as Chinese input methods write it
            text = "/" + text[1:]
        if text.startswith("//"):
            self.answer(text[1:])
        elif text.startswith("/"):
            name, _, rest = text.partition(" ")
            return self._command(name, rest.strip())
        elif text:
            self.answer(text)
        return True

    def answer(self, question: str) -> None:
        """Ask, show the reply as it comes, keep both."""
        talk, screen, reply = self.conversation, self.screen, Reply()
        seed, stopped = talk.next_seed, False
        pieces = talk.ask(question, reply)
        try:
            for piece in pieces:
                if reply.left_out and not self._told_left_out:
                    self._told_left_out = True
                    screen.remark("left_out")
                screen.piece(piece, reply)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stopped = True
        finally:
            screen.end(reply)
        self.records.append(turn_record(question, reply, talk.speaker, seed))
        kept = talk.keep(question, reply)
        if stopped:
            screen.remark("stopped")
        elif reply.finish_reason == "length":
            screen.remark("cut", n=reply.tokens or talk.params.max_tokens)
        if not kept:
            screen.remark("silent")

    def _command(self, name: str, rest: str) -> bool:
        """A command by its name; False to leave."""
        talk, screen = self.conversation, self.screen
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            screen.text(screen.words["help"])
        elif name == "/new":
            talk.begin_anew()
            self._told_left_out = False
            screen.remark("new")
        elif name == "/think":
            screen.show_thinking = not screen.show_thinking
            screen.remark("shown" if screen.show_thinking else "hidden")
        elif name == "/system":
            talk.system = rest
            screen.remark("system" if rest else "no_system")
        elif name in ("/temperature", "/max"):
            self._set_number(name, rest)
        elif name == "/save" and rest:
            talk.save(Path(rest).expanduser())
            screen.remark("saved", path=rest)
        else:
            screen.remark("file" if name == "/save" else "unknown", name=printable(name))
        return True

    def _set_number(self, name: str, rest: str) -> None:
        talk = self.conversation
        try:
            value = float(rest) if name == "/temperature" else int(rest)
        except ValueError:
            self.screen.remark("number", name=name)
            return
        if name == "/temperature":
            talk.set_temperature(value)
            self.screen.remark("temperature", value=value)
        else:
            talk.set_max_tokens(int(value))
            self.screen.remark("max", value=value)


def typed_lines(screen: Screen) -> Iterator[str]:
    """What a person types, line by line, with line editing and history where there is readline; ends at Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() uses it once it is imported)
    read_as_utf8(sys.stdin)
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            screen.text("")
            screen.remark("leave")
        except EOFError:
            screen.text("")
            return


def piped_lines(stdin: TextIO) -> Iterator[str]:
    """Every line of a pipe or file that is not blank."""
    read_as_utf8(stdin)
    for line in stdin:
        if line.strip():
            yield line.rstrip("\r\n")


def read_as_utf8(stdin: TextIO) -> None:
    """A byte that is no UTF-8 becomes U+FFFD: neither a crash nor half a character that no tokenizer takes."""
    if isinstance(stdin, io.TextIOWrapper):
        stdin.reconfigure(encoding="utf-8", errors="replace")


def clean(text: str) -> str:
    """A typed line without control characters and lone surrogates, which no tokenizer takes.

    Example:
        >>> clean("1+1\\x1b[A?"), clean("\\ufeff你好")
        ('1+1[A?', '你好')
    """
    return "".join(c for c in text if c == "\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c != "\ufeff"))


def printable(text: str) -> str:
    """A model's text without the control characters that would command the terminal; each shows as U+FFFD.

    Example:
        >>> printable("red: \\x1b[31m\\n")
        'red: \ufffd[31m\\n'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)
