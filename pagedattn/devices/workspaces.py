"""Workspaces: the memory that a launch's CTAs share, which a GPU keeps for each of its streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one name, a stream for each thread


@dataclass(slots=True)
class _Workspace:
    partial_bytes: int
    counts: int
    addresses: tuple[int, int]
    arrays: Any  # keeps the memory


class Workspaces:
    """One GPU's workspaces; each stream has its own, as its launches follow each other.

    Parameters
    ----------
    make : callable
        From a stream, a number of bytes and a number of words the arrays that hold them, the words zeroed before the stream goes on.
    """

    def __init__(self, make: Callable[[int, int, int], tuple[Any, Any]]) -> None:
        self._make = make
        self._held: dict[Any, _Workspace] = {}
        self._guard = threading.Lock()

    def of(self, stream: int, partial_bytes: int, counts: int) -> tuple[int, int]:
        """Addresses of room for pieces and of words that are zero between launches."""
        key = stream if stream != _PER_THREAD_STREAM else (stream, threading.get_ident())
        held = self._held.get(key)
        if held is None or held.partial_bytes < partial_bytes or held.counts < counts:
            held = self._grow(key, stream, partial_bytes, counts)
        return held.addresses

    def _grow(self, key: Any, stream: int, partial_bytes: int, counts: int) -> _Workspace:
        with self._guard:
            held = self._held.get(key)
            if held is not None:
                if held.partial_bytes >= partial_bytes and held.counts >= counts:  # another thread was faster
                    return held
                partial_bytes, counts = max(partial_bytes, 2 * held.partial_bytes), max(counts, 2 * held.counts)
            partial, count = self._make(stream, partial_bytes, counts)
            # the smaller one stays: another thread's launch, or a captured graph, may have its address
            made = _Workspace(partial_bytes, counts, (partial.data.ptr, count.data.ptr), (partial, count, held))
            self._held[key] = made
        return made
