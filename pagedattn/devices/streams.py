"""Streams of CuPy, PyTorch and others: their addresses, and an address as CuPy takes it."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from pagedattn.errors import ArgumentError


class Foreign(NamedTuple):
    """A stream of which the address is known, as CuPy takes it."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address  # the protocol's version


def of_torch(index: int) -> int | None:
    """The address of PyTorch's current stream on a GPU; None where PyTorch has no part in this process, or has not begun with GPUs."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    begun = getattr(cuda, "is_initialized", None)
    return int(cuda.current_stream(index).cuda_stream) if cuda is not None and begun is not None and begun() else None


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
