"""What instructions that touch memory do: checks, counts, and the deed."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

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


class Accesses:
    """Calls that blocks make, to every space of memory. Lanes are in order of their numbers, addresses are int64."""

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

    def mbarrier_init(self, address: Array, counts: Array, i: Instruction, w: Lanes) -> None:
        flat = self._shared_place(address, 8, i, w)
        if problem := self.shared.barrier_init(flat, counts, w.index, i.line):
            self.fault(problem, i, w)

    def mbarrier_arrive(self, address: Array, i: Instruction, w: Lanes) -> Array:
        """Its result, the barrier's state, is opaque, and here nothing."""
        flat = self._shared_place(address, 8, i, w)
        if problem := self.shared.barrier_arrive(flat, w.index, i.line):
            self.fault(problem, i, w)
        return np.zeros(w.n, np.uint64)

    def mbarrier_complete(self, address: Array, parities: Array, i: Instruction, w: Lanes) -> Array:
        flat = self._shared_place(address, 8, i, w)
        problem, found = self.shared.barrier_complete(flat, parities, w.index, i.line)
        if problem:
            self.fault(problem, i, w)
        return found

    def commit(self, w: Lanes) -> None:
        self.shared.commit(w.index)

    def wait(self, left: int | None, w: Lanes) -> None:
        self.shared.wait(w.index, left)


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
