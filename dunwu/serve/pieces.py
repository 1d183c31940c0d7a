"""A reply that arrives in bits, as pieces to show: ids to text, text to thinking, plain text and answer.

Nothing is shown before it is certain: half a character waits for its other bytes, half a tag for its end.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from dunwu.data.tokenizer import Tokenizer

Kind = Literal["thinking", "text", "answer"]


class Piece(NamedTuple):
    """A bit of a reply; the tags themselves are not in it."""

    kind: Kind
    text: str


class Characters:
    """Ids to text, whole characters only.

    Example:
        >>> from dunwu.data.tokenizer import train_from_texts
        >>> spell = Characters(train_from_texts(["a"], 271))  # no merges: one token a byte
        >>> [spell.feed(token) for token in spell.tokenizer.encode("好!")]
        ['', '', '好', '!']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._waiting: list[int] = []
        self._given = 0
        """Characters of what waits that were given out already."""

    def feed(self, token: int) -> str:
        """The text that has become certain with this token; "" while a character lacks bytes."""
        self._waiting.append(token)
        text = self.tokenizer.decode(self._waiting)
        if not text.endswith("\ufffd"):
            return self.flush()
        certain = text[self._given : -1]  # the last one may yet become a character
        self._given += len(certain)
        return certain

    def flush(self) -> str:
        """What is left at the end; bytes that make no character are U+FFFD."""
        text = self.tokenizer.decode(self._waiting)[self._given :] if self._waiting else ""
        self._waiting, self._given = [], 0
        return text


class Splitter:
    """Text to pieces at `<think>`, `</think>`, `<answer>`, `</answer>`; a tag in the wrong place is ordinary text.

    `kind` is what comes next. White space before the first piece and after thinking is left out.

    Example:
        >>> splitter = Splitter()
        >>> [*splitter.feed("<think>3*8</thi"), *splitter.feed("nk>\\nIt is <answer>24</answer>.")]
        [Piece(kind='thinking', text='3*8'), Piece(kind='text', text='It is '), Piece(kind='answer', text='24'), Piece(kind='text', text='.')]
    """

    def __init__(self) -> None:
        self.kind: Kind = "text"
        self._held = ""
        self._blank = True
        """White space is being left out."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that have become certain."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            tags = _TAGS[self.kind]
            found = min((at, tag) for tag in tags if (at := self._held.find(tag)) >= 0) if self._has(tags) else None
            if found is None:
                break
            at, tag = found
            self._put(pieces, self._held[:at])
            self._held = self._held[at + len(tag) :]
            self._blank = "think" in tag or self._blank
            self.kind = tags[tag]
        certain = len(self._held) - self._open_end(tags)
        self._put(pieces, self._held[:certain])
        self._held = self._held[certain:]
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back in case it became a tag."""
        pieces: list[Piece] = []
        self._put(pieces, self._held)
        self._held = ""
        return pieces

    def _has(self, tags: dict[str, Kind]) -> bool:
        return any(tag in self._held for tag in tags)

    def _open_end(self, tags: dict[str, Kind]) -> int:
        """Characters at the end that may be the beginning of a tag."""
        lengths = range(min(len(self._held), max(map(len, tags)) - 1), 0, -1)
        return next((n for n in lengths if any(tag.startswith(self._held[-n:]) for tag in tags)), 0)

    def _put(self, pieces: list[Piece], text: str) -> None:
        text = text.lstrip() if self._blank else text
        if text:
            self._blank = False
            pieces.append(Piece(self.kind, text))


_TAGS: dict[Kind, dict[str, Kind]] = {
    "text": {"<think>": "thinking", "<answer>": "answer"},
    "thinking": {"</think>": "text"},
    "answer": {"</answer>": "text"},
}
"""Tags that mean something in a piece of this kind, and what follows them."""
