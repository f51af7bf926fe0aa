"""Counts of a launch: global traffic, bank conflicts, instructions by class, barriers. They hold on any machine."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagedattn.ptx.faults import Line
from pagedattn.ptx.lanes import Lanes
from pagedattn.ptx.memory import Segment
from pagedattn.ptx.program import Instruction

Array = NDArray[Any]

SECTOR = 32
CLASSES = {
    "tensor": ("mma",),
    "matrix": ("ldmatrix", "movmatrix", "stmatrix"),
    "copy": ("cp",),
    "global": (),
    "shared": (),
    "warp": ("shfl", "vote", "redux", "match", "activemask"),
    "barrier": ("bar", "barrier", "mbarrier", "membar", "fence"),
    "special": ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "div"),
    "control": ("bra", "ret", "exit", "trap"),
    "convert": ("cvt", "cvta"),
    "float": (),
    "other": (),
}


def class_of(i: Instruction) -> str:
    """The class of an instruction, one of `CLASSES`."""
    for name, opcodes in CLASSES.items():
        if i.op[0] in opcodes:
            return name
    if i.op[0] in ("ld", "st", "atom", "red", "prefetch", "ldu"):
        return "shared" if "shared" in i.op else "global" if "param" not in i.op and "local" not in i.op else "other"
    return "float" if i.op[-1] in ("f32", "f16", "f16x2", "bf16", "bf16x2", "f64") and i.op[0] not in ("mov", "selp", "setp") else "other"


@dataclass(slots=True)
class Traffic:
    """Accesses to one array by one width: warp-wide requests, bytes asked for (each once a request), bytes moved in 32-byte sectors."""

    requests: int = 0
    useful_bytes: int = 0
    moved_bytes: int = 0


@dataclass(slots=True)
class Site:
    """Accesses to shared memory by one instruction: warp-wide requests, passes over the banks, and those beyond the fewest possible."""

    instruction: str
    ptx_line: int
    lines: tuple[Line, ...]
    width: int
    requests: int = 0
    passes: int = 0
    conflicts: int = 0

    @property
    def opcode(self) -> str:
        """The instruction without its predicate and operands."""
        return next(word for word in self.instruction.split() if not word.startswith("@"))


@dataclass(slots=True)
class Counts:
    """What a launch did.

    Attributes
    ----------
    global_traffic : dict
        (array, "read" or "write", bytes of one lane's access) -> Traffic.
    shared_sites : dict
        PTX line -> Site.
    instructions : dict
        Class -> warp-wide executions; `thread_instructions` counts threads.
    barriers : int
        CTA barriers passed, summed over CTAs.
    """

    kernel: str
    ctas: int
    threads: int
    global_traffic: dict[tuple[str, str, int], Traffic] = field(default_factory=dict)
    shared_sites: dict[int, Site] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    thread_instructions: int = 0
    barriers: int = 0
    seconds: float = 0.0

    def bytes_of(self, array: str, direction: str = "read") -> Traffic:
        """The traffic of one array, all widths together."""
        total = Traffic()
        for (name, way, _), t in self.global_traffic.items():
            if name == array and way == direction:
                total.requests += t.requests
                total.useful_bytes += t.useful_bytes
                total.moved_bytes += t.moved_bytes
        return total

    def conflicts(self, opcode: str = "") -> int:
        """Extra passes over the banks of shared memory, by instructions that begin with `opcode`."""
        return sum(s.conflicts for s in self.shared_sites.values() if s.opcode.startswith(opcode))

    def add(self, other: Counts) -> None:
        """Add another launch, or another part of this one."""
        for key, t in other.global_traffic.items():
            mine = self.global_traffic.setdefault(key, Traffic())
            mine.requests += t.requests
            mine.useful_bytes += t.useful_bytes
            mine.moved_bytes += t.moved_bytes
        for line, s in other.shared_sites.items():
            site = self.shared_sites.setdefault(line, Site(s.instruction, s.ptx_line, s.lines, s.width))
            site.requests += s.requests
            site.passes += s.passes
            site.conflicts += s.conflicts
        for name, n in other.instructions.items():
            self.instructions[name] = self.instructions.get(name, 0) + n
        self.thread_instructions += other.thread_instructions
        self.barriers += other.barriers

    def rows(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """The tables: title, columns, rows."""
        traffic = [
            [
                name,
                way,
                str(width),
                f"{t.requests:,}",
                f"{t.useful_bytes:,}",
                f"{t.moved_bytes:,}",
                f"{t.useful_bytes / max(1, t.moved_bytes):.0%}",
            ]
            for (name, way, width), t in sorted(self.global_traffic.items())
        ]
        sites = [
            [
                str(s.lines[0]) if s.lines else f"PTX line {s.ptx_line}",
                s.opcode,
                f"{s.requests:,}",
                f"{s.passes:,}",
                f"{s.conflicts:,}",
            ]
            for s in sorted(self.shared_sites.values(), key=lambda s: (-s.conflicts, s.ptx_line))
        ]
        merged: dict[tuple[str, str], list[int]] = {}
        for place, opcode, *numbers in sites:
            sums = merged.setdefault((place, opcode), [0, 0, 0])
            for k, n in enumerate(numbers):
                sums[k] += int(n.replace(",", ""))
        shared = [[*key, *(f"{n:,}" for n in sums)] for key, sums in merged.items()]
        classes = [[name, f"{self.instructions[name]:,}"] for name in CLASSES if self.instructions.get(name)]
        classes += [["CTA barriers", f"{self.barriers:,}"], ["thread-instructions", f"{self.thread_instructions:,}"]]
        return [
            ("global memory", ["array", "way", "bytes a lane", "requests", "useful bytes", "moved bytes", "useful"], traffic),
            ("shared memory", ["place", "instruction", "requests", "passes", "conflicts"], shared),
            ("instructions", ["class", "warps"], classes),
        ]

    def __str__(self) -> str:
        text = [f"{self.kernel}: {self.ctas} CTAs of {self.threads} threads"]
        for title, columns, rows in self.rows():
            widths = [max(len(r[k]) for r in [columns, *rows]) for k in range(len(columns))]
            text += ["", title]
            text += [
                "  " + "  ".join(c.ljust(n) if k < 2 else c.rjust(n) for k, (c, n) in enumerate(zip(row, widths, strict=True))).rstrip()
                for row in [columns, *rows]
            ]
        return "\n".join(text)

    def _repr_html_(self) -> str:
        parts = [f"<b>{html.escape(self.kernel)}</b>: {self.ctas} CTAs of {self.threads} threads"]
        for title, columns, rows in self.rows():
            head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
            body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
            parts.append(f"<table><caption>{title}</caption><tr>{head}</tr>{body}</table>")
        return "".join(parts)


class Counter:
    """Fills Counts while a launch runs."""

    def __init__(self, counts: Counts, segments: list[Segment]) -> None:
        self.counts = counts
        self.segments = segments

    def global_access(self, i: Instruction, address: Array, place: Array, width: int, w: Lanes, write: bool) -> None:
        place = np.broadcast_to(place, address.shape)
        warp = w.index >> 5
        for k in np.unique(place):
            some = place == k
            at, who = address[some], warp[some]
            t = self.counts.global_traffic.setdefault((self.segments[k].name, "write" if write else "read", width), Traffic())
            order = np.lexsort((at, who))
            at, who = at[order], who[order]
            new = who[1:] != who[:-1]
            t.requests += 1 + int(new.sum())
            t.useful_bytes += width * (1 + int((new | (at[1:] != at[:-1])).sum()))
            t.moved_bytes += SECTOR * (1 + int((new | (at[1:] // SECTOR != at[:-1] // SECTOR)).sum()))

    def shared_access(self, i: Instruction, address: Array, width: int, w: Lanes) -> None:
        """Banks are 4 bytes wide; 8-byte accesses go by half warps, 16-byte accesses by quarters, which is also a matrix of ldmatrix."""
        site = self.counts.shared_sites.get(i.line)
        if site is None:
            site = self.counts.shared_sites[i.line] = Site(i.text, i.line, i.lines, width)
        unit = max(width, 4)
        lanes = 32 * 4 // unit  # that go together
        phase = w.index // lanes
        word = address // unit
        order = np.lexsort((word, phase))
        phase, word = phase[order], word[order]
        first = np.ones(len(word), bool)
        first[1:] = (phase[1:] != phase[:-1]) | (word[1:] != word[:-1])
        phase, word = phase[first], word[first]
        phases, place = np.unique(phase, return_inverse=True)
        banks = np.bincount(place * lanes + word % lanes, minlength=len(phases) * lanes).reshape(-1, lanes)
        passes = int(banks.max(axis=1).sum())
        site.requests += len(w.warps)
        site.passes += passes
        site.conflicts += passes - len(phases)
