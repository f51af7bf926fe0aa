"""The demo on a terminal: all sequences grow at once, then each is shown in full. Elsewhere, and under NO_COLOR, plain text."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TextIO

from pagedattn import env
from pagedattn.demo.generate import Continuation

_BOLD, _DIM, _CYAN = "1", "2", "36"
_FRAME_SECONDS = 0.04
_PANE_LINES = 6


class Terminal:
    """Text as `stream` takes it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._escapes = stream.isatty() and not env.plain_terminal()
        self._gutters = ("\u2502", "\u2503") if self._encoding.lower().replace("-", "") == "utf8" else ("|", "#")
        self._drawn = 0
        self._next_frame = 0.0

    def line(self, text: str = "") -> None:
        """One line; characters that the stream's encoding lacks become question marks."""
        self._write(text + "\n")

    def facts(self, heading: str, facts: Iterable[tuple[str, str]]) -> None:
        """A heading, and a line for each (label, sentence)."""
        self._heading(heading)
        for label, text in facts:
            self.line(f"{self._paint(f'{label:<8}', _BOLD)} {text}")

    def grow(self, continuations: Sequence[Continuation]) -> None:
        """Draw the ends of all sequences over what was drawn before; nothing where the cursor cannot move."""
        now = time.perf_counter()
        if not self._escapes or now < self._next_frame:
            return
        self._next_frame = now + _FRAME_SECONDS
        columns, rows = _size(self._stream)
        height = min(_PANE_LINES, (rows - 2) // len(continuations) - 1)
        if height < 1:
            return
        frame = []
        for c in continuations:
            lines = [f"{gutter} {given}{written}"[: columns - 1] for gutter, given, written in self._lines(c)[-height:]]
            frame += [self._paint(c.request.title[: columns - 1], _BOLD, _CYAN), *lines, *[""] * (height - len(lines))]
        self._write(self._up() + "".join(f"\x1b[K{line}\n" for line in frame))
        self._drawn = len(frame)

    def clear(self) -> None:
        """Take back what `grow` drew."""
        if self._drawn:
            self._write(self._up() + "\x1b[J")
        self._drawn = 0

    def show(self, continuations: Sequence[Continuation]) -> None:
        """Every sequence: the gutter is thick where the model wrote. A prompt is shown once; of its continuations, the surest is named."""
        for _, group in groupby(continuations, key=lambda c: c.request):
            same = list(group)
            for i, c in enumerate(same):
                title = f"{c.request.title} ({c.bits_per_byte:.2f} bits per byte)"
                if len(same) > 1:
                    surest = c is min(same, key=lambda s: s.bits_per_byte)
                    title += f", {i + 1} of {len(same)}" + ", the surest" * surest
                self._heading(title)
                for gutter, given, written in self._lines(c):
                    if i == 0 or gutter == self._gutters[1]:
                        self.line(f"{gutter} {self._paint(given, _DIM)}{written}".rstrip())

    def _heading(self, text: str) -> None:
        self.line()
        self.line(self._paint(text, _BOLD, _CYAN))

    def _lines(self, c: Continuation) -> list[tuple[str, str, str]]:
        """(gutter, what the prompt gave, what the model wrote) of every line."""
        given, lines = printable(c.request.prompt), []
        left = len(given)
        for text in (given + printable(bytes(c.text))).split("\n"):
            lines.append((self._gutters[left <= 0 or len(text) > left], text[: max(left, 0)], text[max(left, 0) :]))
            left -= len(text) + 1
        return lines

    def _up(self) -> str:
        return f"\x1b[{self._drawn}A\r" if self._drawn else ""

    def _paint(self, text: str, *codes: str) -> str:
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self._escapes and text.strip() else text

    def _write(self, text: str) -> None:
        self._stream.write(text.encode(self._encoding, "replace").decode(self._encoding))
        self._stream.flush()


def printable(text: bytes) -> str:
    r"""Bytes of unknown contents as text that moves no cursor.

    >>> printable(b"a\tb\n\x1b[2J\xff")
    'a   b\n\ufffd[2J\ufffd'
    """
    decoded = text.decode(errors="replace").expandtabs(4)
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in decoded)


def _size(stream: TextIO) -> tuple[int, int]:
    """(columns, rows); those of a plain terminal where the stream does not tell."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return columns or 80, rows or 24
