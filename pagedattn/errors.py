"""Every error that the package raises; each is also the built-in class that fits.

PagedAttnError
├── ArgumentError        (ValueError)            an argument is wrong: what must hold, what came, what to do
├── UnsupportedError     (NotImplementedError)   a valid wish that this version or this machine cannot fulfil
├── OutOfBlocksError     (MemoryError)           the pool has too few free blocks; nothing was taken
├── RenderError          (RuntimeError)          a template failed
├── CompileError         (RuntimeError)          NVRTC refused a kernel; `.log` holds all it said
├── NotPrecompiledError  (RuntimeError)          the store lacks a kernel and PAGEDATTN_JIT=0
└── DeviceFault          (RuntimeError)          a kernel did what no kernel may
"""

from __future__ import annotations


class PagedAttnError(Exception):
    """Base class of every error of the package."""


class ArgumentError(PagedAttnError, ValueError):
    """An argument is wrong. The refused call has changed nothing."""


class UnsupportedError(PagedAttnError, NotImplementedError):
    """A valid wish that this version, or this machine, cannot fulfil."""


class OutOfBlocksError(PagedAttnError, MemoryError):
    """The pool has too few free blocks. Nothing was taken.

    Attributes
    ----------
    needed, free : int
        Blocks that the refused call needed, and blocks that were free.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"the call needs {needed} more blocks and the pool has {free} free; nothing was taken. "
            "Free or truncate sequences, or make the cache with more blocks."
        )
        self.needed = needed
        self.free = free

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.needed, self.free)


class RenderError(PagedAttnError, RuntimeError):
    """A template could not be rendered; the text names the template, its line and the spec."""


class CompileError(PagedAttnError, RuntimeError):
    """NVRTC refused a kernel.

    Attributes
    ----------
    log : str
        All that the compiler said.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.log)


class NotPrecompiledError(PagedAttnError, RuntimeError):
    """The store lacks a kernel and compiling is switched off (PAGEDATTN_JIT=0)."""


class DeviceFault(PagedAttnError, RuntimeError):
    """A kernel did what no kernel may: the text says where."""
