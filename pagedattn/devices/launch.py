"""A kernel launch through the driver, with all that can be prepared for it prepared once in each thread."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pagedattn.params import OPERANDS, STRUCT_BYTES

_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID
_OVERLAPPING = 90  # sm_90
_CAPTURES_OVERLAPPING = 12030  # CUDA 12.3


class _Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int * 16))


class Config(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attributes", ctypes.c_uint),
    )


# What changes from launch to launch lies together and is written at once: the operands, the rest of AttentionParams with the first half of
# Config, and the stream.
_OPERANDS_BYTES = 8 * len(OPERANDS)
_SIZES = struct.Struct("7I4x")  # of Config: grid, block, shared_bytes
_IMAGE_BYTES = STRUCT_BYTES - _OPERANDS_BYTES + _SIZES.size
_write = struct.Struct(f"{len(OPERANDS)}P{_IMAGE_BYTES}sP").pack_into


def may_overlap(arch: int, driver: int) -> bool:
    """Whether a kernel may become resident while the one before it ends; kernels/core/start.cuh then waits for that one.

    GPUs can from sm_90 on, drivers put such launches into graphs from CUDA 12.3 on.

    >>> may_overlap(90, 13000), may_overlap(90, 12020), may_overlap(89, 13000)
    (True, False, False)
    """
    return arch >= _OVERLAPPING and driver >= _CAPTURES_OVERLAPPING


def launch_kernel() -> Callable[[int, int, int, int], int]:
    """The driver's cuLaunchKernelEx(config, function, arguments, extra), by addresses."""
    library: Any = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    function: Callable[[int, int, int, int], int] = library.cuLaunchKernelEx
    library.cuLaunchKernelEx.argtypes = (ctypes.c_void_p,) * 4
    return function


class _Memory(threading.local):
    """What a thread's launches are written to, and the addresses that the driver is given of it."""

    def __init__(self, bind: Callable[[], None], overlapping: bool) -> None:
        written = (ctypes.c_char * (STRUCT_BYTES + ctypes.sizeof(Config)))()
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(written))
        attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION)
        attribute.value[0] = 1
        config = Config.from_buffer(written, STRUCT_BYTES)
        config.attributes, config.num_attributes = ctypes.addressof(attribute), int(overlapping)
        self._held = pointers, attribute, config
        self.places = memoryview(written).cast("B"), ctypes.addressof(config), ctypes.addressof(pointers)
        bind()


class Launcher:
    """Launches on one device. Each thread writes them to memory of its own.

    Parameters
    ----------
    call : callable
        As `launch_kernel` gives it.
    error : exception class
        What is raised with the driver's status where that is not 0.
    bind : callable
        Called once in each thread, before its first launch.
    overlapping : bool
        Whether a kernel may become resident while the one before it in its stream ends.
    """

    def __init__(self, call: Callable[[int, int, int, int], int], error: Any, bind: Callable[[], None], overlapping: bool) -> None:
        self._call, self._error, self._memory = call, error, _Memory(bind, overlapping)

    @staticmethod
    def image(params: bytes, grid: int, threads: int, shared_bytes: int) -> bytes:
        """A launch of `grid` CTAs but for its operands, which `params`, an AttentionParams, has besides, and its stream."""
        return params[_OPERANDS_BYTES:].ljust(STRUCT_BYTES - _OPERANDS_BYTES, b"\0") + _SIZES.pack(grid, 1, 1, threads, 1, 1, shared_bytes)

    def launch(self, function: int, image: bytes, arrays: Sequence[int], room: tuple[int, int], stream: int) -> None:
        """Launch a function; `arrays` and `room` are the addresses of `params.OPERANDS`, the workspace's two apart."""
        memory, config, pointers = self._memory.places
        q, k, v, out, lse, sinks, pool = arrays  # names, for a call with * takes half as long again
        partials, counts = room
        _write(memory, 0, q, k, v, out, lse, sinks, pool, partials, counts, image, stream)
        status = self._call(config, function, pointers, 0)
        if status:
            raise self._error(status)
