"""Fault: what a kernel did that no kernel may, with instruction, CTA, warp, lanes and source lines.

UnknownInstruction: what the machine cannot execute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

KINDS = (
    "out of bounds",
    "misaligned",
    "read-only",
    "unwritten",
    "race",
    "pending copy",
    "missing lanes",
    "barrier divergence",
    "target",
    "step limit",
    "local overrun",
)


class Line(NamedTuple):
    """A place in a source file, numbered from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Fault(RuntimeError):
    """A kernel did what no kernel may.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    detail : str
        What must hold and what came.
    instruction : str
        The PTX instruction; `ptx_line` is its line, from 1.
    lines : tuple of Line
        Where it comes from: the innermost source line, then the calls that it was inlined at.
    cta, warp : int
        Where it happened first; -1: before any CTA ran.
    lanes : tuple of int
        Lanes of that warp.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        instruction: str = "",
        ptx_line: int = 0,
        lines: Sequence[Line] = (),
        cta: int = -1,
        warp: int = -1,
        lanes: Sequence[int] = (),
    ) -> None:
        self.kind = kind
        self.detail = detail
        self.instruction = instruction
        self.ptx_line = ptx_line
        self.lines = tuple(lines)
        self.cta = cta
        self.warp = warp
        self.lanes = tuple(lanes)
        super().__init__(self._text())

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind, self.detail, self.instruction, self.ptx_line, self.lines, self.cta, self.warp, self.lanes)

    def _text(self) -> str:
        text = f"{self.kind}: {self.detail}"
        if self.lines:
            text += "\n  at " + ", inlined at ".join(str(line) for line in self.lines)
        if self.instruction:
            text += f"\n  {self.instruction}  (PTX line {self.ptx_line})"
        if self.cta >= 0:
            text += f"\n  CTA {self.cta}, warp {self.warp}, lanes {spans(self.lanes)}"
        return text


class UnknownInstruction(NotImplementedError):
    """The machine has no definition of an instruction; the text names it and its line of PTX."""

    def __init__(self, instruction: str, ptx_line: int, lines: Sequence[Line] = (), why: str = "") -> None:
        at = f", from {lines[0]}" if lines else ""
        super().__init__(f"the interpreter has no definition of `{instruction}`{why}; PTX line {ptx_line}{at}.")
        self.instruction = instruction
        self.ptx_line = ptx_line


class ParseError(ValueError):
    """The text is not the PTX that this parser reads."""


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges.

    >>> spans([0, 1, 2, 5])
    '0-2, 5'
    """
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and parts[-1][1] + 1 == n:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
