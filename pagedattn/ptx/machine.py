"""The machine: all CTAs of a launch as lanes of NumPy arrays, one basic block at a time, the lowest program counter first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagedattn.ptx import blocks as basic
from pagedattn.ptx.code import Code
from pagedattn.ptx.counts import Counter, Counts, class_of
from pagedattn.ptx.executor import Executor
from pagedattn.ptx.faults import Fault
from pagedattn.ptx.lanes import Lanes, Shape, merge
from pagedattn.ptx.memory import GlobalMemory, Private, Problem
from pagedattn.ptx.program import Imm, Instruction
from pagedattn.ptx.shared import SharedMemory

Array = NDArray[Any]

LANES = 8192  # that run together: registers of a block stay in the processor's caches
MAX_STEPS = 20_000_000  # instructions issued by a group of CTAs


def launch(
    code: Code,
    grid: int,
    threads: int,
    params: bytes,
    memory: GlobalMemory,
    dynamic_shared: int = 0,
    *,
    counts: bool = False,
    check: bool = True,
    lanes: int = LANES,
    max_steps: int = MAX_STEPS,
) -> Counts:
    """Run a kernel to its end.

    Parameters
    ----------
    code : Code
    grid, threads : int
        CTAs, and threads of each (a multiple of 32).
    params : bytes
        The parameter block, as a launch through the driver packs it.
    memory : GlobalMemory
        The arrays that it may touch.
    dynamic_shared : int
        Bytes of `extern __shared__` memory.
    counts : bool
        Count traffic and bank conflicts, which takes time; instructions and barriers are always counted.
    check : bool
        Stamp shared memory, which finds races and unwritten reads.
    lanes : int
        Threads that run together; CTAs go in groups of at most so many.
    max_steps : int
        Instructions that a group may issue; what needs more is an infinite loop.

    Returns
    -------
    Counts

    Raises
    ------
    Fault
        The kernel did what no kernel may.
    UnknownInstruction
        It has an instruction without a definition.
    """
    if threads % 32 or not 0 < threads <= 1024:
        raise ValueError(f"`threads` must be a multiple of 32, at most 1024; got {threads}.")
    if len(params) < code.program.param_bytes:
        raise ValueError(f"`params` must have {code.program.param_bytes} bytes; got {len(params)}.")
    if code.module.size:
        memory = GlobalMemory({**memory.arrays, "module variables": code.module}, [s.name for s in memory.segments if s.writable])
    result = Counts(code.program.name, grid, threads)
    start = time.perf_counter()
    step = max(1, lanes // threads)
    for first in range(0, grid, step):
        group = np.arange(first, min(grid, first + step))
        machine = _Machine(code, Shape(group, threads, grid), params, memory, code.shared_bytes + dynamic_shared, counts, check, max_steps)
        with np.errstate(all="ignore"):
            machine.run()
        result.add(machine.counts)
    result.seconds = time.perf_counter() - start
    return result


class _Machine(Executor):
    """A group of CTAs on its way through a program."""

    def __init__(
        self, code: Code, shape: Shape, params: bytes, memory: GlobalMemory, shared_bytes: int, counts: bool, check: bool, max_steps: int
    ) -> None:
        self.code, self.shape, self.memory, self.max_steps = code, shape, memory, max_steps
        self.params = Private(len(params), 1, params)
        self.local = Private(code.local_bytes, shape.n)
        self.shared = SharedMemory(len(shape.ctas), shape.threads // 32, shared_bytes, code.fine_bytes, check)
        self.shared.places = code.places
        self.counts = Counts(code.program.name, len(shape.ctas), shape.threads)
        self.counter = Counter(self.counts, memory.segments) if counts else None
        self.registers: list[Array | None] = [None] * len(code.program.kinds)
        self.everyone = Lanes(shape)
        self.ready: dict[int, list[Lanes]] = {0: [self.everyone]}
        self.waiting: dict[int, list[Lanes]] = {}  # at a CTA barrier, by its block
        self.gathering: dict[int, list[Lanes]] = {}  # warps that wait for their other lanes, before a block
        self.exited = np.zeros(shape.n, bool)
        instructions = code.program.instructions
        self.polled = {b.number: 0 for b in code.blocks if any(map(basic.is_poll, instructions[b.start : b.stop]))}  # and when, in steps
        self.steps = 0
        self.executed = [0] * len(code.blocks)
        self.warps = [0] * len(code.blocks)

    def symbol(self, name: str, offset: int) -> Any:
        return np.int64(self.code.symbols[name] + offset)

    def run(self) -> None:
        blocks = self.code.blocks
        while True:
            forced: Lanes | None = None
            if not self.ready:
                if self.gathering:
                    number = min(self.gathering)  # nobody else can come: let the instructions say whether they mind
                    forced = merge(self.shape, self.gathering.pop(number))
                elif self.waiting:
                    self._diverged()
                else:
                    break
            else:
                number = min(self.ready, key=self._turn) if self.polled else min(self.ready)
            w = forced or merge(self.shape, self.ready.pop(number))
            b = blocks[number]
            if b.collective and not w.whole and forced is None:
                found = self._gather(number, w)
                if found is None:
                    continue
                w = found
            self._execute(b, w)
        self._count()

    def _turn(self, number: int) -> tuple[int, int]:
        """Who asks for what others do comes after all others, and whoever asked last after whoever did before."""
        return self.polled.get(number, -1), number

    def _gather(self, number: int, w: Lanes) -> Lanes | None:
        """The warps whose lanes that still run are all here; the others wait for theirs."""
        if number in self.gathering:
            w = merge(self.shape, [w, *self.gathering.pop(number)])
        warp = w.index >> 5
        here = np.bincount(warp, minlength=self.shape.n // 32)
        whole = (here == 32)[warp]
        if whole.all():
            return w
        self.gathering[number] = [w.where(~whole)]
        return w.where(whole) if whole.any() else None

    def _execute(self, b: basic.Block, w: Lanes) -> None:
        self.steps += b.stop - b.start
        if self.steps > self.max_steps:
            last = b.end or self.code.program.instructions[b.stop - 1]
            detail = f"a kernel must end within {self.max_steps:,} instructions; this one still runs here"
            self.fault(Problem("step limit", np.ones(w.n, bool), detail), last, w)
        if b.number in self.polled:
            self.polled[b.number] = self.steps
        self.executed[b.number] += w.n
        self.warps[b.number] += w.n // 32 if w.whole else len(w.warps)
        f: Any = self.registers
        kinds = self.code.program.kinds
        if w.all:
            for r in b.reads:
                if f[r] is None:
                    f[r] = np.zeros(w.n, kinds[r])
        else:
            f = {}
            for r in b.reads:
                x = self.registers[r]
                f[r] = np.zeros(w.n, kinds[r]) if x is None else x[w.index]
        self.code.function(b)(f, w, self)
        if not w.all:
            for r in b.writes:
                x = self.registers[r]
                if x is None:
                    x = self.registers[r] = np.zeros(self.shape.n, kinds[r])
                x[w.index] = f[r]
        self._leave(b, w, f)

    def _leave(self, b: basic.Block, w: Lanes, f: Any) -> None:
        end = b.end
        if end is None:
            self._go(b.number + 1, w)
            return
        taken: Lanes | None = w
        rest: Lanes | None = None
        if end.guard:
            register, negated = end.guard
            mask = f[register.number] ^ negated
            count = int(np.count_nonzero(mask))
            if count == 0:
                taken, rest = None, w
            elif count < w.n:
                taken, rest = w.where(mask), w.where(~mask)
        if taken is not None:
            if end.op[0] == "bra":
                self._go(b.targets[0], taken)
            elif end.op[0] in ("ret", "exit"):
                self.exited[taken.index] = True
            elif end.op[0] == "trap":
                self.fault(Problem("step limit", np.ones(taken.n, bool), "the kernel trapped"), end, taken)
            else:
                self._barrier(b, end, taken)
        if rest is not None:
            self._go(b.number + 1, rest)

    def _go(self, number: int, w: Lanes) -> None:
        if number >= len(self.code.blocks):
            self.exited[w.index] = True
        else:
            self.ready.setdefault(number, []).append(w)

    def _barrier(self, b: basic.Block, i: Instruction, w: Lanes) -> None:
        """bar.sync: threads wait until all of their CTA, or as many as it says, are here."""
        wanted = self.shape.threads
        if len(i.operands) > 1:
            if not isinstance(i.operands[1], Imm):
                raise NotImplementedError(f"`{i.text}`: a barrier's thread count must be a constant; PTX line {i.line}.")
            wanted = int(i.operands[1].value)
        w = merge(self.shape, [w, *self.waiting.pop(b.number, [])])
        counts = np.bincount(w.cta, minlength=len(self.shape.ctas))
        full = counts >= wanted
        if not full.any():
            self.waiting[b.number] = [w]
            return
        self.counts.barriers += int(full.sum())
        self.shared.cta_barrier(np.flatnonzero(full))  # of a part of the CTA, too: stamps know no smaller group of warps
        if full[w.cta].all():
            self._go(b.number + 1, w)
            return
        self._go(b.number + 1, w.where(full[w.cta]))
        self.waiting[b.number] = [w.where(~full[w.cta])]

    def _diverged(self) -> None:
        """Nobody can run and some wait at barriers."""
        number = min(self.waiting)
        w = self.waiting[number][0]
        i = self.code.blocks[number].end
        assert i is not None
        cta = w.cta[0]
        mine = self.shape.cta == cta
        elsewhere = [
            f"{int((sets[0].cta == cta).sum())} wait at PTX line {end.line}" + (f", {end.lines[0]}" if end.lines else "")
            for k, sets in self.waiting.items()
            if k != number and (end := self.code.blocks[k].end) and (sets[0].cta == cta).any()
        ]
        gone = int((self.exited & mine).sum())
        if gone:
            elsewhere.append(f"{gone} have exited")
        here = int((w.cta == cta).sum())
        detail = f"all {self.shape.threads} threads of a CTA must reach a barrier; got {here}, and {' and '.join(elsewhere)}"
        self.fault(Problem("barrier divergence", w.cta == cta, detail), i, w)

    def _count(self) -> None:
        code = self.code
        for b, n, warps in zip(code.blocks, self.executed, self.warps, strict=True):
            if n:
                self.counts.thread_instructions += n * (b.stop - b.start)
                for i in code.program.instructions[b.start : b.stop]:
                    name = class_of(i)
                    self.counts.instructions[name] = self.counts.instructions.get(name, 0) + warps


def run(
    ptx: str, grid: int, threads: int, params: Sequence[Any], dynamic_shared: int = 0, entry: str | None = None, **options: Any
) -> Counts:
    """Run PTX on NumPy arrays: each parameter is an array (its address is passed) or a NumPy scalar.

    >>> x = np.arange(32, dtype=np.float32)
    >>> ptx = '''.version 8.0
    ... .target sm_80
    ... .visible .entry double(.param .u64 x) {
    ...     .reg .f32 %f<3>;
    ...     .reg .b32 %r<2>;
    ...     .reg .b64 %rd<4>;
    ...     ld.param.u64 %rd1, [x];
    ...     mov.u32 %r1, %tid.x;
    ...     mul.wide.u32 %rd2, %r1, 4;
    ...     add.s64 %rd3, %rd1, %rd2;
    ...     ld.global.f32 %f1, [%rd3];
    ...     add.f32 %f2, %f1, %f1;
    ...     st.global.f32 [%rd3], %f2;
    ...     ret;
    ... }'''
    >>> counts = run(ptx, 1, 32, [x])
    >>> float(x[5])
    10.0
    """
    code = Code(ptx, entry)
    arrays: dict[str, Array] = {}
    block = bytearray(code.program.param_bytes)
    for (name, (offset, size)), value in zip(code.program.params.items(), params, strict=True):
        if isinstance(value, np.ndarray) and value.ndim:
            arrays[name] = value
            data = int(value.ctypes.data).to_bytes(8, "little")
        else:
            data = np.asarray(value).tobytes()
        if len(data) != size:
            raise ValueError(f"parameter {name} has {size} bytes; got {len(data)}.")
        block[offset : offset + size] = data
    return launch(code, grid, threads, bytes(block), GlobalMemory(arrays), dynamic_shared, **options)


__all__ = ["Code", "Fault", "launch", "run"]
