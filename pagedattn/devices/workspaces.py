"""Workspaces: the memory that a launch's CTAs share, which a GPU keeps for each of its streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one name, a stream for each thread


class _Workspace(NamedTuple):
    partial_bytes: int
    counts: int
    partial_address: int
    count_address: int
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
        self._held: dict[tuple[int, int], _Workspace] = {}
        self._guard = threading.Lock()

    def of(self, stream: int, partial_bytes: int, counts: int) -> tuple[int, int]:
        """Addresses of room for pieces and of words that are zero between launches."""
        key = (stream, threading.get_ident() if stream == _PER_THREAD_STREAM else 0)
        held = self._held.get(key)
        if held is None or held.partial_bytes < partial_bytes or held.counts < counts:
            held = self._grow(key, partial_bytes, counts)
        return held.partial_address, held.count_address

    def _grow(self, key: tuple[int, int], partial_bytes: int, counts: int) -> _Workspace:
        with self._guard:
            held = self._held.get(key)
            if held is not None:
                if held.partial_bytes >= partial_bytes and held.counts >= counts:  # another thread was faster
                    return held
                partial_bytes, counts = max(partial_bytes, 2 * held.partial_bytes), max(counts, 2 * held.counts)
            partial, count = self._make(key[0], partial_bytes, counts)
            # the smaller one stays: another thread's launch, or a captured graph, may have its address
            made = _Workspace(partial_bytes, counts, partial.data.ptr, count.data.ptr, (partial, count, held))
            self._held[key] = made
        return made
