"""A GPU that launches nothing: CuPy's arrays over host memory, and a driver that notes what it was asked for."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pagedattn import arch as archs
from pagedattn import params
from pagedattn.devices import cuda
from pagedattn.devices.launch import Config, Launcher
from pagedattn.devices.modules import Loaded, Modules
from pagedattn.devices.workspaces import Workspaces

STRUCT = params.dtype()


class Noted(NamedTuple):
    """One launch: the kernel's name, its grid, its parameters by name, its stream, and the device that was current."""

    name: str
    grid: int
    params: dict[str, Any]
    stream: int
    device: int


class NamedModules(Modules):
    """Of kernels that are loaded nowhere: a number for each, by which `names` knows it."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(gpu._cupy, gpu.index, gpu.name)
        self.names = gpu.names

    def load(self, kernel: Any) -> Loaded:
        spec, function = kernel.spec, 1000 + len(self.names)
        self.names[function] = spec.name
        loaded = self[spec] = Loaded(function, spec.threads, spec.shared_bytes, None)
        return loaded


class FakeGpu(cuda.CudaDevice):
    """CudaDevice without CUDA; `launches` grows with every launch, in any thread."""

    def __init__(self, index: int = 0, sm_count: int = 132) -> None:
        import cupy

        self.device, self.set_calls = index, 0
        self.names: dict[int, str] = {}
        self.error: Exception | None = None
        self._cupy, self._runtime = cupy, self
        self._driver_error = RuntimeError
        self._current_stream = lambda index=0: self.stream
        self.index, self.name, self.arch = index, f"cuda:{index}", archs.parse("sm_90")
        self._source = self.arch
        self.array_type, self.sm_count = cupy.ndarray, sm_count
        self._modules, self._workspaces = NamedModules(self), Workspaces(self._shared_room)
        self._launcher = Launcher(self.launch_kernel, RuntimeError, self._bind, overlapping=True)
        self.launches: list[Noted] = []
        self.events: dict[int, int] = {}
        self.waits: list[tuple[int, int]] = []  # a stream, and the one that it then waited for
        self.copies: list[tuple[int, int]] = []  # bytes, and the stream
        self.stream: Any = type("Stream", (), {"ptr": 0})()

    # the runtime
    def getDevice(self) -> int:
        return self.device

    def setDevice(self, index: int) -> None:
        self.device = index
        self.set_calls += 1

    def eventCreateWithFlags(self, flags: int) -> int:
        self.events[len(self.events)] = -1
        return len(self.events) - 1

    def eventRecord(self, event: int, stream: int) -> None:
        self.events[event] = stream

    def streamWaitEvent(self, stream: int, event: int) -> None:
        self.waits.append((stream, self.events[event]))

    def eventDestroy(self, event: int) -> None:
        assert self.events[event] >= 0

    def memcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> None:
        assert self.device == self.index
        ctypes.memmove(target, source, count)
        self.copies.append((count, stream))

    def memcpy2DAsync(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, kind: int, stream: int
    ) -> None:
        assert self.device == self.index
        assert width <= min(target_pitch, source_pitch)
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        self.copies.append((width * height, stream))

    # the driver
    def launch_kernel(self, config_address: int, function: int, pointers: int, extra: int) -> int:
        if self.error is not None:
            raise self.error
        config = Config.from_address(config_address)
        assert (config.num_attributes, config.grid[1:], config.block[1:]) == (1, [1, 1], [1, 1])
        pointer = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))[0]
        threading.Event().wait(0)  # another thread may run here, as it may where the driver is called
        struct = np.frombuffer(ctypes.string_at(pointer, STRUCT.itemsize), STRUCT)[0]
        values = {name: struct[name].item() for name in params.NAMES}
        self.launches.append(Noted(self.names[function], config.grid[0], values, config.stream or 0, self.device))
        return 0

    # memory
    def _shared_room(self, stream: int, partial_bytes: int, counts: int) -> Any:
        return self.zeros((partial_bytes,), np.uint8), self.zeros((counts,), np.uint32)

    def empty(self, shape: Sequence[int], dtype: Any, stream: Any = None) -> Any:
        return self.asarray(np.empty(shape, dtype))

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        return self.asarray(np.zeros(shape, dtype))

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        memory = self._cupy.cuda.memory
        if isinstance(x, self._cupy.ndarray):
            x = self.to_host(x)
        x = np.asarray(x, dtype)
        host = np.empty(x.nbytes + 256, np.uint8)
        start = -host.ctypes.data % 256
        host[start : start + x.nbytes] = np.frombuffer(x.tobytes(), np.uint8)
        unowned = memory.UnownedMemory(host.ctypes.data + start, max(x.nbytes, 1), host, self.index)
        return self._cupy.ndarray(x.shape, x.dtype, memptr=memory.MemoryPointer(unowned, 0))

    def to_host(self, x: Any) -> np.ndarray[Any, Any]:
        if isinstance(x, np.ndarray):
            return x
        span = x.itemsize + sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)) if x.size else 0
        held = np.frombuffer(ctypes.string_at(x.data.ptr, span), np.uint8)
        return np.ndarray(x.shape, x.dtype, held.copy(), 0, x.strides) if x.size else np.empty(x.shape, x.dtype)
