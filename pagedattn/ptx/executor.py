"""What instructions that touch memory or other lanes do: checks, counts, and the deed."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pagedattn.ptx import mma
from pagedattn.ptx.counts import Counter
from pagedattn.ptx.faults import Fault
from pagedattn.ptx.lanes import Lanes
from pagedattn.ptx.memory import LOCAL_WINDOW, SHARED_WINDOW, WIDTHS, GlobalMemory, Private, Problem
from pagedattn.ptx.program import Instruction
from pagedattn.ptx.shared import SharedMemory

Array = NDArray[Any]


def interleave(values: list[Array]) -> Array:
    """Registers of equal width as one value a lane."""
    stacked = np.stack(values, axis=1)
    found: Array = stacked.view(WIDTHS[stacked.itemsize * len(values)]).reshape(-1)
    return found


class Executor:
    """The calls that blocks make. Lanes are in order of their numbers, addresses are int64."""

    memory: GlobalMemory
    shared: SharedMemory
    local: Private
    params: Private
    counter: Counter | None

    def fault(self, problem: Problem, i: Instruction, w: Lanes) -> NoReturn:
        """Raise what is wrong with some of the lanes at an instruction."""
        index = w.index[np.broadcast_to(problem.lanes, w.n)]
        warp = index[0] >> 5
        first = index[index >> 5 == warp]
        shape = w.shape
        raise Fault(
            problem.kind,
            problem.detail,
            i.text,
            i.line,
            i.lines,
            int(shape.ctas[shape.cta[first[0]]]),
            int(shape.thread[first[0]] >> 5),
            tuple((first & 31).tolist()),
        )

    def load(self, space: str, address: Array, width: int, i: Instruction, w: Lanes) -> Array:
        if space == "global":
            return self._load_global(address, width, i, w)
        if space == "shared":
            return self._load_shared(address, width, i, w)
        if space == "generic":
            return self._load_generic(address, width, i, w)
        if space == "local":
            if problem := self.local.check(address, width, "local memory"):
                self.fault(problem, i, w)
            return self.local.read(address, w.index, width)
        if space == "param":
            if problem := self.params.check(address, width, "the parameters"):
                self.fault(problem, i, w)
            return self.params.read(address, 0, width)
        return self._load_global(address, width, i, w)  # .const lies with the arrays

    def store(self, space: str, address: Array, values: Array, width: int, i: Instruction, w: Lanes) -> None:
        if space == "generic":
            for name, some in self._spaces(address):
                base = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(name, 0)
                if some.all():
                    return self.store(name, address - base, values, width, i, w)
                self.store(name, address[some] - base, values[some], width, i, w.where(some))
            return None
        values = values.view(WIDTHS[width])
        if space == "global":
            place, problem = self.memory.check(address, width, True)
            if problem:
                self.fault(problem, i, w)
            if self.counter:
                self.counter.global_access(i, address, place, width, w, True)
            self.memory.write(address, values, width)
        elif space == "shared":
            flat = self._shared_place(address, width, i, w)
            if self.shared.checked and (problem := self.shared.note_write(flat, values, w.index, width, i.line)):
                self.fault(problem, i, w)
            self.shared.write(flat, values, width)
        elif space == "local":
            if problem := self.local.check(address, width, "local memory"):
                self.fault(problem, i, w)
            self.local.write(address, w.index, values, width)
        else:
            raise NotImplementedError(f"a store to .{space} is not defined.")
        return None

    def _load_global(self, address: Array, width: int, i: Instruction, w: Lanes) -> Array:
        place, problem = self.memory.check(address, width, False)
        if problem:
            self.fault(problem, i, w)
        if self.counter:
            self.counter.global_access(i, address, place, width, w, False)
        return self.memory.read(address, width)

    def _shared_place(self, address: Array, width: int, i: Instruction, w: Lanes) -> Array:
        if problem := self.shared.check_place(address, width):
            self.fault(problem, i, w)
        if self.counter:
            self.counter.shared_access(i, address, width, w)
        return self.shared.flat(address, w.cta)

    def _load_shared(self, address: Array, width: int, i: Instruction, w: Lanes) -> Array:
        flat = self._shared_place(address, width, i, w)
        if self.shared.checked and (problem := self.shared.note_read(flat, w.index, width, i.line)):
            self.fault(problem, i, w)
        return self.shared.read(flat, width)

    @staticmethod
    def _spaces(address: Array) -> list[tuple[str, Array]]:
        local, shared = address >= LOCAL_WINDOW, (address >= SHARED_WINDOW) & (address < LOCAL_WINDOW)
        found = (("global", ~(local | shared)), ("shared", shared), ("local", local))
        return [(name, some) for name, some in found if some.any()]

    def _load_generic(self, address: Array, width: int, i: Instruction, w: Lanes) -> Array:
        result = np.empty(w.n, WIDTHS[width])
        for name, some in self._spaces(address):
            base = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(name, 0)
            if some.all():
                return self.load(name, address - base, width, i, w)
            result[some] = self.load(name, address[some] - base, width, i, w.where(some))
        return result

    def atomic(self, space: str, name: str, address: Array, values: list[Array], i: Instruction, w: Lanes) -> Array:
        """atom and red: lanes one after the other, in order."""
        kind = values[0].dtype
        width = kind.itemsize
        if space == "generic":
            parts = self._spaces(address)
            if len(parts) > 1:
                raise NotImplementedError("an atomic whose lanes address different spaces is not defined.")
            space = parts[0][0]
            address = address - SHARED_WINDOW if space == "shared" else address
        if space == "shared":
            flat = self._shared_place(address, width, i, w)
            view = self.shared.bytes.view(kind)
            if self.shared.checked and (problem := self.shared.unwritten(flat, width)):
                self.fault(problem, i, w)
            where = (flat // width).tolist()

            def read(at: int) -> Any:
                return view[at]

            def write(at: int, value: Any) -> None:
                view[at] = value
        else:
            place, problem = self.memory.check(address, width, True)
            if problem:
                self.fault(problem, i, w)
            if self.counter:
                self.counter.global_access(i, address, place, width, w, True)
            where = address.tolist()
            one = np.zeros(1, np.int64)

            def read_global(at: int) -> Any:
                one[0] = at
                return self.memory.read(one, width).view(kind)[0]

            def write_global(at: int, value: Any) -> None:
                one[0] = at
                self.memory.write(one, np.array([value], kind).view(WIDTHS[width]), width)

            read, write = read_global, write_global

        old = np.empty(w.n, kind)
        for n, at in enumerate(where):
            old[n] = before = read(at)
            write(at, _atomic(name, before, *(v[n] for v in values)))
        return old

    def copy(self, target: Array, source: Array, width: int, valid: Array | None, i: Instruction, w: Lanes) -> None:
        """cp.async: bytes beyond the source size are zero; nobody may touch the target until the issuing lane has waited."""
        flat = self._shared_place(target, width, i, w)
        values = np.zeros(w.n, WIDTHS[width])
        if valid is None or (valid >= width).all():
            values[:] = self._load_global(source, width, i, w)
        else:
            some = valid >= width
            if some.any():
                values[some] = self._load_global(source[some], width, i, w.where(some))
            for lane in np.flatnonzero(~some & (valid > 0)):
                one = np.zeros(w.n, bool)
                one[lane] = True
                count = int(valid[lane])
                part = [self._load_global(source[one] + k, 1, i, w.where(one))[0] for k in range(count)]
                raw = np.array([*part, *[0] * (width - count)], np.uint8)
                values[lane] = raw.view(WIDTHS[width])[0]
        if problem := self.shared.copy(flat, w.index, width, i.line):
            self.fault(problem, i, w)
        self.shared.write(flat, values, width)

    def commit(self, w: Lanes) -> None:
        self.shared.commit(w.index)

    def wait(self, left: int | None, w: Lanes) -> None:
        self.shared.wait(w.index, left)

    def members(self, mask: Any, i: Instruction, w: Lanes) -> None:
        """Every lane that `mask` names must be here, and every lane that is here must be named."""
        warps, here = w.masks()
        wanted = np.asarray(mask, np.uint32)
        if wanted.ndim:
            wanted = w.spread(np.broadcast_to(wanted, w.n))
            lanes = (here[:, None] >> np.arange(32, dtype=np.uint32)) & 1
            wanted = np.bitwise_or.reduce(np.where(lanes != 0, wanted, np.uint32(0)), axis=1)
        missing = wanted & ~here
        if missing.any():
            at = int(np.argmax(missing != 0))
            absent = [k for k in range(32) if int(np.broadcast_to(missing, len(warps))[at]) >> k & 1]
            self.fault(
                Problem("missing lanes", w.index >> 5 == warps[at], f"the lanes that the mask names must be here; missing are {absent}"),
                i,
                w,
            )

    def warp_barrier(self, mask: Any, i: Instruction, w: Lanes) -> None:
        self.members(mask, i, w)
        self.shared.warp_barrier(w.index)

    def activemask(self, w: Lanes) -> Array:
        _, masks = w.masks()
        return w.gather(np.repeat(masks[:, None], 32, axis=1))

    def full(self, i: Instruction, w: Lanes) -> None:
        if not w.whole:
            self.members(0xFFFFFFFF, i, w)

    def shuffle(self, mode: str, a: Array, b: Any, bound: Any, mask: Any, i: Instruction, w: Lanes) -> tuple[Array, Array]:
        """shfl.sync (PTX ISA 9.7.9.6): the value of the lane that `mode` says, its own where that lies outside the segment."""
        self.members(mask, i, w)
        lane = np.arange(32, dtype=np.int64)
        b, bound = (w.spread(np.broadcast_to(x, w.n)).astype(np.int64) if np.ndim(x) else np.int64(x) for x in (b, bound))
        b, clamp, segment = b & 31, bound & 31, (bound >> 8) & 31
        high = (lane & segment) | (clamp & ~segment)
        low = lane & segment
        if mode == "up":
            source = lane - b
            inside = source >= high
        elif mode == "down":
            source = lane + b
            inside = source <= high
        elif mode == "bfly":
            source = lane ^ b
            inside = source <= high
        else:
            source = low | (b & ~segment)
            inside = source <= high
        values = w.spread(a)
        source = np.broadcast_to(np.where(inside, source, lane), values.shape)
        result = np.take_along_axis(values, source, axis=1)
        return w.gather(result), w.gather(np.ascontiguousarray(np.broadcast_to(inside, values.shape)))

    def vote(self, mode: str, p: Array, mask: Any, i: Instruction, w: Lanes) -> Array:
        self.members(mask, i, w)
        values, (_, here) = w.spread(p), w.masks()
        bits = np.bitwise_or.reduce(values.astype(np.uint32) << np.arange(32, dtype=np.uint32), axis=1)
        if mode == "ballot":
            result = bits
        elif mode == "any":
            result = bits != 0
        elif mode == "all":
            result = bits == here
        else:
            result = (bits == here) | (bits == 0)
        return w.gather(np.repeat(result[:, None], 32, axis=1))

    def reduce(self, mode: str, a: Array, mask: Any, i: Instruction, w: Lanes) -> Array:
        """redux.sync over the lanes that are here, which are those of the mask."""
        self.members(mask, i, w)
        ufunc: Any = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[mode]
        info = np.iinfo(a.dtype)
        neutral = {"min": info.max, "max": info.min, "and": -1 if a.dtype.kind == "i" else info.max}.get(mode, 0)
        values = w.spread(a)
        if not w.whole:
            here = w.spread(np.ones(w.n, bool))
            values = np.where(here, values, a.dtype.type(neutral))
        result = ufunc.reduce(values, axis=1, dtype=a.dtype)
        return w.gather(np.repeat(result[:, None], 32, axis=1))

    def ldmatrix(self, address: Array, count: int, transposed: bool, i: Instruction, w: Lanes) -> list[Array]:
        self.full(i, w)
        if count < 4:  # lanes beyond hold no address
            some = np.tile(np.arange(32) < 8 * count, w.n // 32)
            rows = self._load_shared(address[some], 16, i, w.where(some))
        else:
            rows = self._load_shared(address, 16, i, w)
        found = mma.ldmatrix(rows.view(np.uint32).reshape(-1, 8 * count, 4), count, transposed)
        return [x.reshape(-1) for x in found]

    def movmatrix(self, a: Array, i: Instruction, w: Lanes) -> Array:
        self.full(i, w)
        return mma.movmatrix(a.reshape(-1, 32)).reshape(-1)

    def mma(
        self, shape: str, kind: str, order: tuple[str, str], a: list[Array], b: list[Array], c: list[Array], i: Instruction, w: Lanes
    ) -> list[Array]:
        self.full(i, w)
        x, y, z = ([r.reshape(-1, 32) for r in group] for group in (a, b, c))
        found = mma.m8n8k4(x, y, z, *order) if shape == "m8n8k4" else mma.m16n8(x, y, z, kind)
        return [r.reshape(-1) for r in found]


def _atomic(name: str, old: Any, value: Any, other: Any = None) -> Any:
    if name == "add":
        return old + value
    if name == "cas":
        return other if old == value else old
    if name == "exch":
        return value
    if name == "inc":
        return old.dtype.type(0) if old >= value else old + old.dtype.type(1)
    if name == "dec":
        return value if old == 0 or old > value else old - old.dtype.type(1)
    functions: dict[str, Any] = {"min": min, "max": max, "and": operator.and_, "or": operator.or_, "xor": operator.xor}
    return functions[name](old, value)
