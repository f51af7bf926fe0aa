"""Global memory: exactly the arrays of a launch, by address, checked. Blocks of private bytes: parameters and local memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTHS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}  # a complex128 is 16 bytes that NumPy moves at once
# Generic addresses (PTX ISA 5.1.4): windows that no array of the host lies in.
SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 1 << 61


class Problem(NamedTuple):
    """Lanes that did what no kernel may: a kind of fault, a mask of lanes, and what to say of the first of them."""

    kind: str
    lanes: Array
    detail: str


class Segment(NamedTuple):
    """Bytes start .. end-1, and which arrays they are."""

    start: int
    end: int
    name: str
    writable: bool


class GlobalMemory:
    """The arrays that a launch may touch.

    Parameters
    ----------
    arrays : mapping of str to array
        NumPy arrays; views with strides count from their first byte to their last. Overlapping ones are one segment.
    writable : iterable of str, optional
        Those that may be written; None: every one that NumPy calls writable.

    Examples
    --------
    >>> x = np.zeros(4, np.float32)
    >>> memory = GlobalMemory({"x": x})
    >>> [s.name for s in memory.segments], memory.segments[0].end - x.ctypes.data
    (['x'], 16)
    """

    def __init__(self, arrays: Mapping[str, Array], writable: Iterable[str] | None = None) -> None:
        self.arrays = dict(arrays)
        names = None if writable is None else set(writable)
        found = []
        for name, x in self.arrays.items():
            if x.size:
                low, high = np.lib.array_utils.byte_bounds(x)
                found.append(Segment(low, high, name, x.flags.writeable if names is None else name in names))
        merged: list[Segment] = []
        for s in sorted(found):
            if merged and s.start < merged[-1].end:
                last = merged.pop()
                merged.append(Segment(last.start, max(last.end, s.end), f"{last.name}, {s.name}", last.writable or s.writable))
            else:
                merged.append(s)
        self.segments = merged
        self.starts = np.array([s.start for s in merged], np.int64)
        self.ends = np.array([s.end for s in merged], np.int64)
        self.writable = np.array([s.writable for s in merged], bool)
        self._base = merged[0].start & ~15 if merged else 0
        size = (merged[-1].end - self._base + 15) // 16 * 16 if merged else 0
        # one view over all arrays; what lies between them is never touched, for every access is checked first
        self._bytes = (
            np.frombuffer(memoryview((ctypes.c_char * size).from_address(self._base)), np.uint8) if size else np.zeros(0, np.uint8)
        )
        self._views = {w: self._bytes.view(t) for w, t in WIDTHS.items()}

    def locate(self, address: Array, width: int) -> tuple[Array, Problem | None]:
        """The segment of each access, or what is wrong with the first that has none."""
        low, high = int(address.min()), int(address.max())
        first = int(np.searchsorted(self.starts, low, "right")) - 1
        if first >= 0 and high + width <= self.segments[first].end:
            return np.array([first]), None
        place = np.searchsorted(self.starts, address, "right") - 1
        good = (place >= 0) & (address + width <= self.ends[place])
        return place, None if good.all() else Problem("out of bounds", ~good, self._outside(int(address[~good][0]), width))

    def _outside(self, address: int, width: int) -> str:
        text = f"a global access of {width} bytes must lie in the launch's arrays; got address {address:#x}"
        if not self.segments:
            return text + ", and the launch has none"
        if address < 1 << 12:
            return text + ", a null pointer"
        gaps = [(s.start - address - width if address < s.start else address + width - s.end, s) for s in self.segments]
        _, s = min(gaps, key=lambda g: g[0])
        if address < s.start:
            return f"{text}, {s.start - address} bytes before the start of `{s.name}`"
        return f"{text}, {address + width - s.end} bytes past the end of `{s.name}` ({s.end - s.start} bytes)"

    def check(self, address: Array, width: int, write: bool) -> tuple[Array, Problem | None]:
        """Alignment, bounds and the right to write."""
        odd = (address & (width - 1)) != 0
        if odd.any():
            detail = f"a global access of {width} bytes must lie at a multiple of {width}; got address {int(address[odd][0]):#x}"
            return address, Problem("misaligned", odd, detail)
        place, problem = self.locate(address, width)
        if problem is None and write and not self.writable[place].all():
            wrong = np.broadcast_to(~self.writable[place], address.shape)
            name = self.segments[int(place[0] if place.size == 1 else place[wrong][0])].name
            problem = Problem("read-only", wrong, f"`{name}` is input of this launch; got a write")
        return place, problem

    def read(self, address: Array, width: int) -> Array:
        """The values at addresses that were checked, as the type of `WIDTHS`."""
        found: Array = self._views[width][(address - self._base) // width]
        return found

    def write(self, address: Array, values: Array, width: int) -> None:
        self._views[width][(address - self._base) // width] = values


class Private:
    """Bytes that are each lane's own (local memory: `lanes` copies), or one for all (parameters, constants)."""

    def __init__(self, size: int, lanes: int = 1, data: bytes = b"") -> None:
        self.size = size
        self.stride = (size + 15) // 16 * 16
        self.bytes = np.zeros(max(1, lanes) * self.stride, np.uint8)
        if data:
            self.bytes[: len(data)] = np.frombuffer(data, np.uint8)
        self._views = {w: self.bytes.view(t) for w, t in WIDTHS.items()}

    def check(self, address: Array, width: int, what: str) -> Problem | None:
        odd = (address & (width - 1)) != 0
        if odd.any():
            return Problem(
                "misaligned",
                odd,
                f"an access to {what} of {width} bytes must lie at a multiple of {width}; got offset {int(address[odd][0])}",
            )
        wrong = (address < 0) | (address + width > self.size)
        if wrong.any():
            kind = "local overrun" if what == "local memory" else "out of bounds"
            return Problem(kind, wrong, f"{what} has {self.size} bytes; got an access of {width} at offset {int(address[wrong][0])}")
        return None

    def read(self, address: Array, lane: Array | int, width: int) -> Array:
        found: Array = self._views[width][(address + lane * self.stride) // width]
        return found

    def write(self, address: Array, lane: Array | int, values: Array, width: int) -> None:
        self._views[width][(address + lane * self.stride) // width] = values
