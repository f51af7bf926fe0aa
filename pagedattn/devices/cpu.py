"""CpuDevice: the host's memory, and the operations in vectorised NumPy over the same bytes in the pool as on a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import arch as archs
from pagedattn import dispatch
from pagedattn.devices import cpu_attention, cpu_rows
from pagedattn.devices.base import Device
from pagedattn.workspace import require

if TYPE_CHECKING:
    from pagedattn.problem import Problem

Array = np.ndarray[Any, Any]

_ALIGNMENT = 64  # bytes: where JAX shares memory without a copy


class _SmallestGpu:
    """What dispatch asks of a device, of the GPU that wants the least workspace."""

    arch = source = archs.parse("sm_80")
    sm_count, model = 1, ""

    def address(self, x: Any) -> int:
        return 0


def host_memory(address: int, num_bytes: int) -> Array:
    """Memory of this process as a uint8 array."""
    return np.frombuffer(memoryview((ctypes.c_char * num_bytes).from_address(address)), np.uint8)


class CpuDevice(Device):
    """The host's memory; `arch` is None, for nothing is compiled.

    Every sequence is walked in chunks of queries and of keys with an online softmax, so memory stays bounded however long it is. Sums run
    in float32, in an order that does not depend on the rest of the batch. `num_splits` is accepted and changes nothing: there are no idle
    processors to give a split to.
    """

    def __init__(self) -> None:
        self.name = "cpu"
        self.index = 0
        self.arch = None
        self.array_type = np.ndarray

    def empty(self, shape: Sequence[int], dtype: Any, stream: Any = None) -> Array:
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        aligned: Array = memory[start : start + size].view(kind).reshape(shape)
        return aligned

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        return np.asarray(x, dtype, order="C")

    def memory_at(self, address: int, num_bytes: int) -> Array:
        return host_memory(address, num_bytes)

    def to_host(self, x: Any) -> Array:
        return np.asarray(x)

    def copy_blocks(self, pool: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        pool[np.asarray(targets, np.intp)] = pool[np.asarray(sources, np.intp)]

    def prepare(self, problem: Problem) -> None:
        """Nothing, but a workspace that no GPU would take is refused here, too."""
        if problem.workspace is not None:
            require(problem.workspace.nbytes, dispatch.select(problem, _SmallestGpu()))

    def run(self, problem: Problem) -> None:
        if problem.op == "append":
            cpu_rows.append(problem)
        elif problem.op == "gather":
            cpu_rows.gather(problem)
        else:
            with np.errstate(all="ignore"):  # infinities and NaN behave as on a GPU: they spread, and nobody warns
                cpu_attention.attention(problem)

    def merge(self, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
        with np.errstate(all="ignore"):
            cpu_attention.merge(outs, lses, out, lse)
