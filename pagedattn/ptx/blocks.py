"""Basic blocks: where control may enter or leave, which registers live on, and the Python function that a block becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pagedattn.ptx import isa
from pagedattn.ptx.faults import Fault, UnknownInstruction
from pagedattn.ptx.operations import COLLECTIVE, code
from pagedattn.ptx.program import Address, Instruction, Operand, Program, Reg, Symbol

_ENDS = ("bra", "ret", "exit", "trap")
# Operands that an instruction writes: the first, but for these.
_WRITES_NONE = (
    "st",
    "bar",
    "barrier",
    "cp",
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "red",
    "bra",
    "ret",
    "exit",
    "trap",
    "nanosleep",
    "discard",
    "griddepcontrol",
)


@dataclass(slots=True, eq=False)
class Block:
    """Instructions that run one after the other.

    Attributes
    ----------
    start, stop : int
        Their indices; the last may be a branch, an exit or a CTA barrier.
    targets : list of int
        Blocks that may follow.
    reads, writes : list of int
        Registers that it takes from before, and those that it leaves for later.
    collective : Instruction or None
        The first that wants its warp's lanes together.
    """

    number: int
    start: int
    stop: int
    targets: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    live_out: int = 0
    collective: Instruction | None = None
    end: Instruction | None = None
    run: Callable[[Any, Any, Any], None] | None = None


def is_barrier(i: Instruction) -> bool:
    """Whether all threads of a CTA meet here."""
    return (i.op[0] == "bar" and i.op[1] != "warp") or i.op[0] == "barrier"


def is_poll(i: Instruction) -> bool:
    """Whether a warp asks here, perhaps again and again, for what another one does."""
    return i.op[:2] in (("mbarrier", "test_wait"), ("ld", "relaxed"))


def registers(x: Operand) -> list[int]:
    """The registers that an operand names."""
    if isinstance(x, Reg):
        return [x.number]
    if isinstance(x, Address):
        return registers(x.base)
    if type(x) is tuple:
        return [r for part in x if not isinstance(part, str) for r in registers(part)]
    return []


def effects(i: Instruction) -> tuple[list[int], list[int]]:
    """The registers that an instruction reads and writes. Under a guard the written ones are read, too: they may keep their value."""
    first = 0 if i.op[0] in _WRITES_NONE or i.op[:2] == ("mbarrier", "init") else 1
    reads = [r for x in i.operands[first:] for r in registers(x)]
    writes = [r for x in i.operands[:first] for r in registers(x)]
    if i.guard:
        reads += [i.guard[0].number, *writes]
    return reads, writes


def split(program: Program) -> list[Block]:
    """The blocks of a program, with what lives between them; refuses instructions that its target lacks."""
    code_ = program.instructions
    for i in code_:
        needed = isa.needed_target(i.op)
        if needed > program.target_number:
            raise Fault("target", f"{'.'.join(i.op)} needs sm_{needed}; the target is {program.target}", i.text, i.line, i.lines)
    starts = {0, *program.labels.values()}
    for n, i in enumerate(code_):
        if i.op[0] in _ENDS or is_barrier(i):
            starts.add(n + 1)
    order = sorted(s for s in starts if s < len(code_))
    number = {s: k for k, s in enumerate(order)}
    blocks = [Block(k, s, e) for k, (s, e) in enumerate(zip(order, [*order[1:], len(code_)], strict=True))]
    for b in blocks:
        last = code_[b.stop - 1]
        if last.op[0] in _ENDS or is_barrier(last):
            b.end = last
        if last.op[0] == "bra":
            label = last.operands[0]
            if not isinstance(label, Symbol) or label.name not in program.labels or set(last.op[1:]) - {"uni"}:
                raise UnknownInstruction(last.text, last.line, last.lines)
            b.targets.append(number[program.labels[label.name]])
        if (last.op[0] not in _ENDS or last.guard) and b.number + 1 < len(blocks):
            b.targets.append(b.number + 1)
        b.collective = next((i for i in code_[b.start : b.stop] if i.op[0] in COLLECTIVE or i.op[:2] == ("bar", "warp")), None)
    _live(program, blocks)
    return blocks


def _live(program: Program, blocks: list[Block]) -> None:
    """Which registers live where, as bits of integers."""
    used, made = [], []
    for b in blocks:
        use, make = 0, 0
        for i in program.instructions[b.start : b.stop]:
            reads, writes = effects(i)
            for r in reads:
                use |= (1 << r) & ~make
            for r in writes:
                make |= 1 << r
        used.append(use)
        made.append(make)
    live_in = [0] * len(blocks)
    changed = True
    while changed:
        changed = False
        for b in reversed(blocks):
            out = 0
            for t in b.targets:
                out |= live_in[t]
            b.live_out = out
            now = used[b.number] | (out & ~made[b.number])
            if now != live_in[b.number]:
                live_in[b.number] = now
                changed = True
    for b in blocks:
        b.reads, b.writes = _bits(used[b.number]), _bits(made[b.number] & b.live_out)


def _bits(x: int) -> list[int]:
    return [k for k, c in enumerate(reversed(bin(x)[2:])) if c == "1"]


def compile_block(program: Program, block: Block, coder: isa.Coder) -> Callable[[Any, Any, Any], None]:
    """The function of a block: registers f, lanes w, machine m. Registers are dropped after their last use, so that memory stays small."""
    body = [i for i in program.instructions[block.start : block.stop] if i is not block.end]
    needed = block.live_out
    for r in effects(block.end)[0] if block.end else ():
        needed |= 1 << r
    lines: list[str] = []
    for i in reversed(body):
        reads, writes = effects(i)
        dead = {r for r in (*reads, *writes) if not needed >> r & 1}
        for r in writes:
            needed &= ~(1 << r)
        for r in reads:
            needed |= 1 << r
        if dead:
            lines.append(" = ".join(f"f[{r}]" for r in sorted(dead)) + " = None")
        lines.append(_guarded(i, coder, reads, writes) if i.guard else _line(i, coder))
    source = "def run(f, w, m):\n " + "\n ".join(["pass", *reversed(lines)])
    return _function(source, coder, f"block {block.number} of {program.name}")


def _function(source: str, coder: isa.Coder, name: str) -> Callable[[Any, Any, Any], None]:
    names: dict[str, Any] = {}
    exec(compile(source, f"<{name}>", "exec"), coder.names, names)
    function: Callable[[Any, Any, Any], None] = names["run"]
    return function


def _line(i: Instruction, coder: isa.Coder) -> str:
    try:
        line = coder.simple(i)
        if line is None:
            line = code(coder, i)
    except UnknownInstruction as error:
        raise UnknownInstruction(i.text, i.line, i.lines) from error
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise UnknownInstruction(i.text, i.line, i.lines, f" ({error})") from error
    if line is None:
        raise UnknownInstruction(i.text, i.line, i.lines)
    return line


def _guarded(i: Instruction, coder: isa.Coder, reads: list[int], writes: list[int]) -> str:
    assert i.guard is not None
    register, negated = i.guard
    function = _function(f"def run(f, w, m):\n {_line(i, coder)}", coder, f"PTX line {i.line}")
    kinds = {r: coder.program.kinds[r] for r in writes}
    mask = f"{'~' * negated}f[{register.number}]"
    return f"guarded({coder.keep(function)}, {coder.keep(sorted({*reads} - {register.number}))}, {coder.keep(kinds)}, {mask}, f, w, m)"


def guarded(function: Any, reads: list[int], kinds: dict[int, str], mask: Any, f: Any, w: Any, m: Any) -> None:
    """Run a function for the lanes of `mask` only."""
    if mask.all():
        function(f, w, m)
        return
    if not mask.any():
        for r, kind in kinds.items():
            if f.get(r) is None if isinstance(f, dict) else f[r] is None:
                f[r] = np.zeros(w.n, kind)
        return
    some = w.where(mask)
    part = {r: f[r][mask] for r in reads if f[r] is not None}
    function(part, some, m)
    for r, kind in kinds.items():
        old = f.get(r) if isinstance(f, dict) else f[r]
        new = np.zeros(w.n, kind) if old is None else old.copy()
        new[mask] = part[r]
        f[r] = new
