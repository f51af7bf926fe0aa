"""A kernel launch through the driver, with all that can be prepared for it prepared once in each thread."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from pagedattn.params import STRUCT_BYTES

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


_pack = struct.Struct("<7I4xQ").pack_into  # all of Config that changes from launch to launch


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


class Launcher(threading.local):
    """This thread's launches on one device.

    Attributes
    ----------
    struct : memoryview
        AttentionParams, the kernel's one argument; to be filled in before `launch`.

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
        argument = (ctypes.c_char * STRUCT_BYTES)()
        self.struct = memoryview(argument).cast("B")
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION)
        attribute.value[0] = 1
        config = Config(attributes=ctypes.addressof(attribute), num_attributes=int(overlapping))
        self._held = pointers, attribute, config
        self._config, self._config_address, self._pointers_address = (
            memoryview(config).cast("B"),
            *map(ctypes.addressof, (config, pointers)),
        )
        self._call, self._error = call, error
        bind()

    def launch(self, function: int, grid: int, threads: int, shared_bytes: int, stream: int) -> None:
        """Launch `grid` CTAs of a function on the struct."""
        _pack(self._config, 0, grid, 1, 1, threads, 1, 1, shared_bytes, stream)
        status = self._call(self._config_address, function, self._pointers_address, 0)
        if status:
            raise self._error(status)
