"""InterpreterDevice: NumPy's memory, and the PTX of the rendered kernels executed without a GPU, with checks and counts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pagedattn import arch as archs
from pagedattn import dispatch, resources, workspace
from pagedattn.build import build
from pagedattn.devices.base import Device
from pagedattn.devices.cpu import host_memory
from pagedattn.errors import DeviceFault
from pagedattn.params import STRUCT_BYTES, fill

if TYPE_CHECKING:
    from pagedattn.kernel import Kernel
    from pagedattn.problem import Problem
    from pagedattn.ptx import Code, Counts
    from pagedattn.spec import KernelSpec

Array = NDArray[Any]

MAX_STEPS = 20_000_000  # instructions that a launch's group of CTAs may issue
SM_COUNT = 2  # few, so that decode's grid stays small
_INPUTS = {
    "attention": ("q", "k", "v", "pool", "sinks"),
    "varlen": ("q", "k", "v", "sinks"),
    "append": ("q", "k", "v"),
    "gather": ("pool",),
}
_OUTPUTS = {"attention": ("out", "lse"), "varlen": ("out", "lse"), "append": ("pool", "out"), "gather": ("k", "v")}


@lru_cache(maxsize=64)
def code(spec: KernelSpec) -> Code:
    """The program of a spec, ready to run; its lines are those of kernels/ and templates/."""
    from pagedattn import ptx

    kernel = build(spec)
    program = ptx.parse(kernel.ptx)
    template = (resources.folder("templates") / spec.template).read_text(encoding="utf-8").splitlines()
    number = {line.strip(): n for n, line in enumerate(template, 1) if template.count(line) == 1}
    found = {n: number.get(line.strip()) for n, line in enumerate(kernel.source.splitlines(), 1)}
    for i in program.instructions:
        i.lines = tuple(
            ptx.Line(f"templates/{spec.template}", at) if line.file == f"{spec.name}.cu" and (at := found.get(line.line)) else line
            for line in i.lines
        )
    return ptx.Code(program)


class InterpreterDevice(Device):
    """A GPU that is played by NumPy: slow, exact, and it says where a kernel does what no kernel may.

    Attributes
    ----------
    arch : Arch
        The target whose kernels run.
    sm_count : int
        Multiprocessors that dispatch believes in.
    counting : bool
        Whether launches count global traffic and bank conflicts.
    max_steps : int
        Instructions that a launch may issue before it counts as an infinite loop.
    launches : list of Counts
        What the last call's launches did, in order.
    history : list of Counts, optional
        Where every launch is noted as well, until it is set to None again.
    """

    def __init__(self, target: str = "sm_80") -> None:
        self.arch = archs.parse(target)
        self.name = f"interpreter:{self.arch.name}"
        self.index = 0
        self.array_type = np.ndarray
        self.sm_count = SM_COUNT
        self.counting = False
        self.max_steps = MAX_STEPS
        self.launches: list[Counts] = []
        self.history: list[Counts] | None = None
        self._workspace: tuple[Array, Array] | None = None

    def empty(self, shape: Sequence[int], dtype: Any, stream: Any = None) -> Array:
        return _aligned(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        result = _aligned(shape, dtype)
        result[...] = 0
        return result

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        result = np.ascontiguousarray(x, dtype)
        if result.ctypes.data % 16 and result.dtype != np.bool_:  # masks may begin at any byte
            copy = _aligned(result.shape, result.dtype)
            copy[...] = result
            return copy
        return result

    def memory_at(self, address: int, num_bytes: int) -> Array:
        return host_memory(address, num_bytes)

    def to_host(self, x: Any) -> Array:
        return np.asarray(x)

    def address(self, x: Any) -> int:
        """The host address of an array's first element."""
        return int(x.ctypes.data)

    def copy_blocks(self, pool: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        pool[list(targets)] = pool[list(sources)]

    def run(self, problem: Problem) -> None:
        batch = problem.batch
        if problem.pool is not None:
            batch.check_cache(problem.layout, problem.pool.shape[0], problem.cp)
        self.launches = []
        arrays = {
            name: getattr(problem, name) for name in (*_INPUTS[problem.op], *_OUTPUTS[problem.op]) if getattr(problem, name) is not None
        }
        arrays.update(block_table=batch.block_table, cu_seqlens_q=batch.cu_seqlens_q, cu_seqlens_k=batch.cu_seqlens_k)
        writable: tuple[str, ...] = _OUTPUTS[problem.op]
        if problem.op == "attention" and problem.k is not None:  # decode writes the new rows
            writable = (*writable, "pool")
        if batch.blocks is not None:
            del arrays["pool"]
            own = np.unique(batch.blocks.pointers).tolist()
            found = {f"blocks[{i}]": self.memory_at(x, problem.layout.block_bytes) for i, x in enumerate(own)}
            arrays.update(found)
            writable = (*writable, *found) if "pool" in writable else writable
        if problem.extras is not None:
            arrays.update(problem.extras.arrays())
        addresses = [0 if x is None else self.address(x) for x in problem.arrays]
        addresses.append(0 if problem.pool is None else self.address(problem.pool) + problem.layer * problem.layout.layer_bytes)
        launches = dispatch.select(problem, self)
        if problem.workspace is not None:
            workspace.require(problem.workspace.nbytes, launches)
        for launch in launches:
            own = ("mask_ranges",) if launch.spec.op == "ranges" else writable
            self.launch(launch, addresses, arrays, own, problem.workspace)

    def merge(self, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
        addresses = np.array([[self.address(x) for x in outs], [self.address(x) for x in lses]], np.uint64)
        tokens, heads, head_dim = out.shape
        values = {
            "merge_outs": self.address(addresses),
            "merge_lses": self.address(addresses) + addresses.strides[0],
            "num_tokens": tokens,
            "num_heads": heads,
            "num_splits": len(outs),
        }
        arrays = {"out": out, "lse": lse, "addresses": addresses}
        arrays.update({f"outs[{i}]": x for i, x in enumerate(outs)}, **{f"lses[{i}]": x for i, x in enumerate(lses)})
        self.launches = []
        addressed = (0, 0, 0, self.address(out), self.address(lse), 0, 0)
        self.launch(dispatch.merge(out.dtype.name, head_dim, self, values), addressed, arrays, ("out", "lse"))

    def launch(
        self, launch: dispatch.Launch, addresses: Sequence[int], arrays: dict[str, Any], writable: Sequence[str], given: Array | None = None
    ) -> None:
        """Run one launch on exactly these arrays and a workspace; `addresses` are its operands' up to the pool's."""
        from pagedattn import ptx

        spec, grid, params, partial_bytes, counted = launch
        if not grid:
            return
        partials, counters = 0, 0
        if partial_bytes or counted:
            pieces, cells = self._room(partial_bytes, counted, given)
            partials, counters = self.address(pieces), self.address(cells)
            arrays = {**arrays, "partial_o": pieces, "partial_count": cells}
            writable = (*writable, "partial_o", "partial_count")
        struct = bytearray(params.ljust(STRUCT_BYTES, b"\0"))
        fill(struct, 0, *addresses, partials, counters)
        memory = ptx.GlobalMemory(arrays, writable)
        try:
            counts = ptx.launch(
                self.program(spec),
                grid,
                spec.threads,
                bytes(struct),
                memory,
                spec.shared_bytes,
                counts=self.counting,
                max_steps=self.max_steps,
            )
        except ptx.Fault as fault:
            raise DeviceFault(f"{spec.name}: {fault}") from fault
        self.launches.append(counts)
        if self.history is not None:
            self.history.append(counts)

    def load(self, kernel: Kernel) -> None:
        self.program(kernel.spec)

    def program(self, spec: KernelSpec) -> Code:
        """What runs for a spec."""
        return code(spec)

    def _room(self, partial_bytes: int, counts: int, given: Array | None) -> tuple[Array, Array]:
        """Room for pieces, NaN before each launch, and words that each launch leaves zero: the caller's, or the device's own."""
        if given is not None:
            places = workspace.split(0)
            held = given[places[0] : places[0] + partial_bytes], given[places[1] :][: 4 * counts].view(np.uint32)
        else:
            own = self._workspace
            if own is None or own[0].nbytes < partial_bytes or own[1].size < counts:
                if own is not None:
                    partial_bytes, counts = max(partial_bytes, own[0].nbytes), max(counts, own[1].size)
                self._workspace = own = self.empty((partial_bytes,), np.uint8), self.zeros((counts,), np.uint32)
            held = own
        held[0][:] = 0xFF
        return held


def _aligned(shape: Sequence[int], dtype: Any) -> Array:
    """An array whose first byte lies at a multiple of 256, as CUDA's allocator gives."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 256, np.uint8)
    start = -raw.ctypes.data % 256
    result: Array = raw[start : start + size].view(dtype).reshape(shape)
    return result
