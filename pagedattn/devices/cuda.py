"""CudaDevice: CuPy's memory, and kernels launched through the driver."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pagedattn import arch as archs
from pagedattn import dispatch
from pagedattn.build import build
from pagedattn.devices.base import Device
from pagedattn.errors import ArgumentError, DeviceFault, UnsupportedError
from pagedattn.params import STRUCT_BYTES

if TYPE_CHECKING:
    from pagedattn.problem import Problem

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute


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


def _foreign(source: str, own: archs.Arch) -> archs.Arch:
    """The target that a device's name asks for after its "+"."""
    target = archs.parse(source)
    if target.family != "sm70" or target > own:
        raise ArgumentError(f"`device` may ask for the kernels of sm_70 or sm_75, not newer than the GPU's own {own}; got '+{source}'.")
    return target


class _Loaded(NamedTuple):
    function: int
    threads: int
    shared_bytes: int
    module: Any  # keeps the code on the device


class _Workspace(NamedTuple):
    partial_bytes: int
    counts: int
    partial_address: int
    count_address: int
    arrays: Any  # keeps the memory


class _Arguments(threading.local):
    """This thread's kernel arguments: one struct, and the array of one pointer that the driver wants."""

    def __init__(self) -> None:
        self.struct = (ctypes.c_char * STRUCT_BYTES)()
        self.pointers = (ctypes.c_void_p * 1)(ctypes.addressof(self.struct))
        self.address = ctypes.addressof(self.pointers)


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
        self._cupy = cupy
        self._driver = cupy.cuda.driver
        self._runtime = cupy.cuda.runtime
        self._stream_address = cupy.cuda.stream.get_current_stream
        self.index = index
        self.arch = archs.of_device(_number(index))
        self._source = self.arch if source is None else _foreign(source, self.arch)
        self.name = f"cuda:{index}" if source is None else f"cuda:{index}+{self._source}"
        self.array_type = cupy.ndarray
        self.sm_count = int(self._runtime.deviceGetAttribute(16, index))  # cudaDevAttrMultiProcessorCount
        self._loaded: dict[str, _Loaded] = {}
        self._workspaces: dict[int, _Workspace] = {}
        self._arguments = _Arguments()
        self._guard = threading.Lock()

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

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        if self._runtime.getDevice() == self.index:
            return self._cupy.empty(shape, dtype)
        with self._cupy.cuda.Device(self.index):
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        with self._cupy.cuda.Device(self.index):
            return self._cupy.zeros(shape, dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        with self._cupy.cuda.Device(self.index):
            return self._cupy.ascontiguousarray(self._cupy.asarray(x, dtype))

    def to_host(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self._cupy.asnumpy(x))

    def address(self, x: Any) -> int:
        """The device address of an array's first element."""
        return int(x.data.ptr)

    def copy_blocks(self, pool: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        stream = self._stream_address().ptr
        block_bytes = pool.strides[0]
        for source, target in zip(sources, targets, strict=True):
            base = pool.data.ptr
            self._runtime.memcpyAsync(base + target * block_bytes, base + source * block_bytes, block_bytes, 3, stream)  # device to device

    def run(self, problem: Problem) -> None:
        stream = self._stream_address().ptr if problem.stream is None else stream_address(problem.stream)
        for launch in dispatch.select(problem, self, stream):
            self.launch(launch, stream)

    def merge(self, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
        addresses = self.asarray(np.array([[x.data.ptr for x in outs], [x.data.ptr for x in lses]], np.uint64))
        tokens, heads, head_dim = out.shape
        values = {
            "out": out.data.ptr,
            "lse": lse.data.ptr,
            "merge_outs": addresses.data.ptr,
            "merge_lses": addresses.data.ptr + addresses.strides[0],
            "num_tokens": tokens,
            "num_heads": heads,
            "num_splits": len(outs),
        }
        self.launch(dispatch.merge(out.dtype.name, head_dim, self, values), self._stream_address().ptr)

    def launch(self, launch: dispatch.Launch, stream: int) -> None:
        """Put one launch on a stream; the kernel is built and loaded if this device has not seen it yet."""
        spec, grid, params = launch
        if not grid:
            return
        previous = self._runtime.getDevice()
        if previous != self.index:
            self._runtime.setDevice(self.index)
        try:
            loaded = self._loaded.get(spec.name) or self._load(spec)
            arguments = self._arguments
            arguments.struct.raw = params
            self._driver.launchKernel(loaded.function, grid, 1, 1, loaded.threads, 1, 1, loaded.shared_bytes, stream, arguments.address, 0)
        except self._driver.CUDADriverError as error:
            raise DeviceFault(f"{spec.name} could not be launched on {self.name} with {grid} CTAs: {error}") from error
        finally:
            if previous != self.index:
                self._runtime.setDevice(previous)

    def workspace(self, stream: int, partial_bytes: int, counts: int) -> tuple[int, int]:
        """Addresses of room for pieces and of zeroed counters; each stream has its own, as its launches follow each other."""
        held = self._workspaces.get(stream)
        if held is None or held.partial_bytes < partial_bytes or held.counts < counts:
            if held is not None:
                partial_bytes, counts = max(partial_bytes, held.partial_bytes), max(counts, held.counts)
            # the pool hands out what is dropped here to this stream only, after the launches that still use it
            partial, count = self.empty((partial_bytes,), np.uint8), self.zeros((counts,), np.uint32)
            held = self._workspaces[stream] = _Workspace(partial_bytes, counts, partial.data.ptr, count.data.ptr, (partial, count))
        return held.partial_address, held.count_address

    def _load(self, spec: Any) -> _Loaded:
        kernel = build(spec)
        with self._guard:
            module = self._cupy.cuda.function.Module()
            module.load(kernel.cubin)
            function = module.get_function(spec.name).ptr
            if spec.shared_bytes:  # 48 KB, static shared memory included, are granted unasked
                self._driver.funcSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, spec.shared_bytes)
            loaded = _Loaded(function, spec.threads, spec.shared_bytes, module)
            self._loaded[spec.name] = loaded
        return loaded


def stream_address(stream: Any) -> int:
    """The address of a stream: an int, a CuPy stream (`ptr`), a PyTorch stream (`cuda_stream`), or an object with `__cuda_stream__`."""
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("ptr", "cuda_stream"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise ArgumentError(f"`stream` must be an address, a CuPy or PyTorch stream, or have __cuda_stream__; got {type(stream).__name__}.")
