"""CudaDevice: CuPy's memory, and kernels launched through the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import arch as archs
from pagedattn import dispatch, env
from pagedattn.build import build
from pagedattn.devices.base import Device
from pagedattn.devices.launch import Launcher, launch_kernel, may_overlap
from pagedattn.devices.modules import Modules
from pagedattn.devices.streams import Foreign, elapsed, met, of_torch, stream_address
from pagedattn.devices.workspaces import Workspaces
from pagedattn.errors import ArgumentError, DeviceFault, UnsupportedError
from pagedattn.layout import ROW_ALIGNMENT
from pagedattn.params import operands
from pagedattn.plan import Plan, Step
from pagedattn.workspace import split

if TYPE_CHECKING:
    from pagedattn.kernel import Kernel
    from pagedattn.problem import Problem

_DEVICE_TO_DEVICE = 3  # cudaMemcpyDeviceToDevice


@lru_cache(maxsize=1)
def usable() -> bool:
    """Whether CuPy is here and sees a GPU that some kernel targets."""
    try:
        import cupy

        return any(_number(i) >= archs.OLDEST for i in range(cupy.cuda.runtime.getDeviceCount()))
    except Exception:  # a missing wheel, a missing driver, a driver too old: each has its own exception
        return False


def _number(index: int) -> int:
    import cupy

    return int(cupy.cuda.Device(index).compute_capability)


class CudaDevice(Device):
    """One GPU.

    Attributes
    ----------
    index : int
        The CUDA device's number.
    sm_count : int
        Its multiprocessors.

    Parameters
    ----------
    source : str, optional
        "sm_70" or "sm_75": run the kernels of that target instead of the GPU's own.
    """

    def __init__(self, index: int, source: str | None = None) -> None:
        try:
            import cupy

            count = cupy.cuda.runtime.getDeviceCount()
        except ImportError as error:
            raise UnsupportedError(
                "device 'cuda' needs CuPy: install pagedattn[cuda12] or pagedattn[cuda13], or use device='cpu'."
            ) from error
        except Exception as error:
            raise UnsupportedError(f"device 'cuda' needs a GPU and its driver; CUDA says: {error}. Use device='cpu'.") from error
        if index >= count:
            raise ArgumentError(f"`device` must be one of the {count} GPUs of this machine, cuda:0 to cuda:{count - 1}; got cuda:{index}.")
        self._cupy, self._runtime = cupy, cupy.cuda.runtime
        self._current_stream, self._driver_error = cupy.cuda.stream.get_current_stream, cupy.cuda.driver.CUDADriverError
        self.index, self.arch = index, archs.of_device(_number(index))
        self._source = self.arch if source is None else archs.borrowed(source, self.arch)
        self.name = f"cuda:{index}" if source is None else f"cuda:{index}+{self._source}"
        self.model = self.description if source is None else ""
        self.array_type = cupy.ndarray
        self.sm_count = int(self._runtime.deviceGetAttribute(16, index))  # cudaDevAttrMultiProcessorCount
        self._modules, self._workspaces = Modules(cupy, index, f"{self.name}, {self.arch}"), Workspaces(self._shared_room)
        overlapping = may_overlap(self.arch.number, self._runtime.driverGetVersion())
        self._launcher = Launcher(launch_kernel(), self._driver_error, self._bind, overlapping)

    @property
    def source(self) -> archs.Arch:
        return self._source

    @staticmethod
    def current() -> int:
        """The number of the current device of this thread; 0 where there is none."""
        try:
            import cupy

            return int(cupy.cuda.runtime.getDevice())
        except Exception:  # as in usable()
            return 0

    @property
    def description(self) -> str:
        """The GPU's name."""
        return str(self._runtime.getDeviceProperties(self.index)["name"].decode())

    def empty(self, shape: Sequence[int], dtype: Any, stream: Any = None) -> Any:
        if stream is None and self._runtime.getDevice() == self.index:
            return self._cupy.empty(shape, dtype)
        with self._cupy.cuda.Device(self.index), nullcontext() if stream is None else self._on(stream_address(stream)):
            return self._cupy.empty(shape, dtype)

    def address_of(self, stream: Any) -> int:
        return int(self._current_stream(self.index).ptr) if stream is None else stream_address(stream)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else self._on(stream_address(stream))

    def meeting(self) -> AbstractContextManager[Any]:
        ours, theirs = self.current_stream(), of_torch(self.index)
        return nullcontext() if theirs is None or theirs == ours else met(self._runtime, self.index, ours, theirs)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        with self._cupy.cuda.Device(self.index):
            return self._cupy.zeros(shape, dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        with self._cupy.cuda.Device(self.index):
            return self._cupy.ascontiguousarray(self._cupy.asarray(x, dtype))

    def memory_at(self, address: int, num_bytes: int) -> Any:
        cuda = self._cupy.cuda
        memory = cuda.UnownedMemory(address, num_bytes, self, self.index)
        return self._cupy.ndarray((num_bytes,), np.uint8, cuda.MemoryPointer(memory, 0))

    def to_host(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self._cupy.asnumpy(x))

    def address(self, x: Any) -> int:
        """The device address of an array's first element."""
        return int(x.data.ptr)

    def aligned(self, q: Any, k: Any, v: Any, out: Any) -> bool:
        bits = 0 if q is None else q.data.ptr
        if k is not None:
            bits |= k.data.ptr | v.data.ptr
        if out is not None:
            bits |= out.data.ptr
        return not bits % ROW_ALIGNMENT

    def current_stream(self) -> int:
        return int(self._current_stream(self.index).ptr)

    def borrow(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, owner: Any) -> Any:
        span = dtype.itemsize
        for n, step in zip(shape, strides, strict=True):
            span += (n - 1) * step
        memory = self._cupy.cuda.memory
        held = memory.MemoryPointer(memory.UnownedMemory(address, span, owner, self.index), 0)
        return self._cupy.ndarray(shape, dtype, memptr=held, strides=strides)

    def capturing(self) -> bool:
        return bool(self._runtime.streamIsCapturing(self._current_stream(self.index).ptr))

    def synchronize(self) -> None:
        self._current_stream(self.index).synchronize()

    def copy(self, pairs: Sequence[tuple[Any, Any]], stream: Any = None) -> None:
        address, previous = self.address_of(stream), self._runtime.getDevice()
        self._runtime.setDevice(self.index)
        try:
            for source, target in pairs:
                whole = source if source.flags.c_contiguous else self._cupy.ascontiguousarray(source)
                at, to = whole.data.ptr, target.data.ptr
                if whole.nbytes == target.nbytes:
                    self._runtime.memcpyAsync(to, at, whole.nbytes, _DEVICE_TO_DEVICE, address)
                elif row := whole.nbytes // len(whole):
                    self._runtime.memcpy2DAsync(to, target.strides[0], at, row, row, len(whole), _DEVICE_TO_DEVICE, address)
        finally:
            self._runtime.setDevice(previous)

    def seconds(self, work: Callable[[], object]) -> float:
        with self._cupy.cuda.Device(self.index):
            return elapsed(self._runtime, self.current_stream(), work)

    def copy_blocks(self, pool: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        stream = self._current_stream(self.index).ptr
        block_bytes, base = pool.strides[0], pool.data.ptr
        with self.meeting():
            for source, target in zip(sources, targets, strict=True):
                self._runtime.memcpyAsync(base + target * block_bytes, base + source * block_bytes, block_bytes, _DEVICE_TO_DEVICE, stream)

    def run(self, problem: Problem) -> None:
        self.follow(self.prepare(problem), problem.arrays, problem.pool, problem.layer, problem.stream, problem.workspace)

    def prepare(self, problem: Problem) -> Plan:
        plan = self._plan(dispatch.select(problem, self), problem.layout.layer_bytes, problem.op == "attention" and problem.k is not None)
        if problem.key is not None and not env.check_enabled():  # a check of block indices is for every call
            problem.batch.plans.keep(problem.key, plan)
        return plan

    def merge(self, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
        self.merging(outs, lses)(out, lse, None)

    def merging(self, outs: Sequence[Any], lses: Sequence[Any]) -> Callable[[Any, Any, Any], None]:
        addresses = self.asarray(np.array([[x.data.ptr for x in outs], [x.data.ptr for x in lses]], np.uint64))
        tokens, heads, head_dim = outs[0].shape
        values = {
            "merge_outs": addresses.data.ptr,
            "merge_lses": addresses.data.ptr + addresses.strides[0],
            "num_tokens": tokens,
            "num_heads": heads,
            "num_splits": len(outs),
        }
        plan, held = self._plan([dispatch.merge(outs[0].dtype.name, head_dim, self, values)]), (addresses, outs, lses)

        def merged(out: Any, lse: Any, stream: Any, held: Any = held) -> None:  # the plan's addresses stay good as long as this lives
            self.follow(plan, (None, None, None, out, lse, None), stream=stream)

        return merged

    def follow(
        self, plan: Plan, arrays: Sequence[Any], pool: Any = None, layer: int = 0, stream: Any = None, workspace: Any = None
    ) -> None:
        """Launch a plan. All that a call still costs once its kind is known."""
        stream = self._current_stream(self.index).ptr if stream is None else stream_address(stream)
        q, k, v, out, lse, sinks = arrays
        addresses = (  # spelt out, for a loop takes three times as long
            0 if q is None else q.data.ptr,
            0 if k is None else k.data.ptr,
            0 if v is None else v.data.ptr,
            0 if out is None else out.data.ptr,
            0 if lse is None else lse.data.ptr,
            0 if sinks is None else sinks.data.ptr,
            0 if pool is None else pool.data.ptr + layer * plan.layer_bytes,
        )
        given = (0, 0) if workspace is None else split(workspace.data.ptr)
        previous = self._runtime.getDevice()
        if previous != self.index:
            self._runtime.setDevice(self.index)
        try:
            for spec, function, grid, image, partial_bytes, counts in plan.steps:
                room = self._workspaces.of(stream, partial_bytes, counts) if workspace is None and (partial_bytes or counts) else given
                try:
                    self._launcher.launch(function, image, addresses, room, stream)
                except self._driver_error as error:
                    raise DeviceFault(f"{spec.name} could not be launched on {self.name} with {grid} CTAs: {error}") from error
        finally:
            if previous != self.index:
                self._runtime.setDevice(previous)

    def launch(self, kernel: Kernel, params: bytes, grid: int, stream: Any = None) -> None:
        """Launch a kernel on a struct that is complete."""
        loaded = self._modules.get(kernel.spec) or self._modules.load(kernel)
        address = self._current_stream(self.index).ptr if stream is None else stream_address(stream)
        image, previous = Launcher.image(params, grid, loaded.threads, loaded.shared_bytes), self._runtime.getDevice()
        self._runtime.setDevice(self.index)
        try:
            *arrays, partials, counts = operands(params)
            self._launcher.launch(loaded.function, image, arrays, (partials, counts), address)
        except self._driver_error as error:
            raise DeviceFault(f"{kernel.name} could not be launched on {self.name} with {grid} CTAs: {error}") from error
        finally:
            self._runtime.setDevice(previous)

    def load(self, kernel: Kernel) -> None:
        if kernel.spec not in self._modules:
            self._modules.load(kernel)

    def _plan(self, launches: Sequence[dispatch.Launch], layer_bytes: int = 0, writes: bool = False) -> Plan:
        """Launches with their kernels built and loaded."""
        steps = []
        for spec, grid, params, partial_bytes, counts in launches:
            if grid:  # the driver refuses none
                loaded = self._modules.get(spec) or self._modules.load(build(spec))
                image = Launcher.image(params, grid, loaded.threads, loaded.shared_bytes)
                steps.append(Step(spec, loaded.function, grid, image, partial_bytes, counts))
        return Plan(tuple(steps), layer_bytes, writes)

    def _on(self, stream: int) -> AbstractContextManager[Any]:
        """Allocations and fills in its body are of this stream."""
        if stream == self._current_stream(self.index).ptr:
            return nullcontext()
        streams = self._cupy.cuda.Stream
        found: AbstractContextManager[Any] = streams.from_external(Foreign(stream)) if stream else streams.null
        return found

    def _bind(self) -> None:
        """Make the GPU's context this thread's: the driver wants one, and CuPy makes it with the thread's first allocation only."""
        previous = self._runtime.getDevice()
        self._runtime.setDevice(self.index)
        self._runtime.setDevice(previous)

    def _shared_room(self, stream: int, partial_bytes: int, counts: int) -> tuple[Any, Any]:
        """Memory for pieces and zeroed counters; what zeroes them comes before a launch on the stream."""
        with self._on(stream):
            return self._cupy.empty((partial_bytes,), np.uint8), self._cupy.zeros((counts,), np.uint32)
