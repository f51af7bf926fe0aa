"""Streams of CuPy, PyTorch and others: their addresses, and an address as CuPy takes it."""

from __future__ import annotations

from typing import Any, NamedTuple

from pagedattn.errors import ArgumentError


class Foreign(NamedTuple):
    """A stream of which the address is known, as CuPy takes it."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address  # the protocol's version


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
