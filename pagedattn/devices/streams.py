"""Streams of CuPy, PyTorch and others: their addresses, an address as CuPy takes it, how one waits for another, and how long work takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pagedattn.errors import ArgumentError

_EVENT_DISABLE_TIMING = 2  # cudaEventDisableTiming


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


@contextmanager
def met(runtime: Any, index: int, ours: int, theirs: int) -> Iterator[None]:
    """What its body puts on the stream `ours` of a GPU comes after the work, and before the later work, of `theirs`."""
    _wait(runtime, index, ours, theirs)
    try:
        yield
    finally:
        _wait(runtime, index, theirs, ours)


def elapsed(runtime: Any, stream: int, work: Callable[[], object]) -> float:
    """Seconds between an event before the work that `work` puts on a stream of the current GPU and one after it."""
    begin, end = runtime.eventCreate(), runtime.eventCreate()
    try:
        runtime.eventRecord(begin, stream)
        work()
        runtime.eventRecord(end, stream)
        runtime.eventSynchronize(end)
        return float(runtime.eventElapsedTime(begin, end)) / 1e3
    finally:
        runtime.eventDestroy(begin)
        runtime.eventDestroy(end)


def _wait(runtime: Any, index: int, later: int, earlier: int) -> None:
    """What comes on the stream `later` waits for what is on `earlier` now."""
    previous = runtime.getDevice()
    runtime.setDevice(index)
    try:
        event = runtime.eventCreateWithFlags(_EVENT_DISABLE_TIMING)
        runtime.eventRecord(event, earlier)
        runtime.streamWaitEvent(later, event)
        runtime.eventDestroy(event)  # once it has happened
    finally:
        runtime.setDevice(previous)
