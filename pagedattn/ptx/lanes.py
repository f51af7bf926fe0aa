"""Lanes: a set of threads that stand at one instruction, and views of their registers by warps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Shape:
    """How many CTAs run together, and who is who among their threads."""

    def __init__(self, ctas: Array, threads: int, grid: int) -> None:
        self.threads, self.grid = threads, grid
        count = len(ctas)
        self.n = count * threads
        self.ctas = ctas  # index in the grid of each
        self.every = np.arange(self.n)
        self.cta = np.repeat(np.arange(count), threads)
        self.thread = np.tile(np.arange(threads), count)


class Lanes:
    """Some of the threads of a Shape, in order.

    Attributes
    ----------
    index : array
        Their numbers among all lanes.
    n : int
    all : bool
        Whether these are all lanes there are.
    """

    __slots__ = ("_cta", "_whole", "all", "index", "n", "shape")

    def __init__(self, shape: Shape, index: Array | None = None) -> None:
        self.shape = shape
        self.index = shape.every if index is None else index
        self.n = len(self.index)
        self.all = self.n == shape.n
        self._whole: bool | None = True if self.all else None
        self._cta: Array | None = shape.cta if self.all else None

    @property
    def cta(self) -> Array:
        """The CTA of each, counted among those that run."""
        if self._cta is None:
            self._cta = self.shape.cta[self.index]
        return self._cta

    @property
    def whole(self) -> bool:
        """Whether these are all lanes of some warps."""
        if self._whole is None:
            self._whole = False
            if self.n % 32 == 0:
                first = self.index[::32]
                self._whole = bool(((first & 31) == 0).all() and (self.index[31::32] == first + 31).all())
        return self._whole

    @property
    def warps(self) -> Array:
        """Numbers of the warps that have lanes here."""
        if self.whole:
            return self.index[::32] >> 5
        return np.unique(self.index >> 5)

    def masks(self) -> tuple[Array, Array]:
        """The warps here, and for each the mask of its lanes that are here (uint32)."""
        if self.whole:
            warps = self.warps
            return warps, np.full(len(warps), 0xFFFFFFFF, np.uint32)
        warps, place = np.unique(self.index >> 5, return_inverse=True)
        masks = np.zeros(len(warps), np.uint32)
        np.bitwise_or.at(masks, place, np.uint32(1) << (self.index & 31).astype(np.uint32))
        return warps, masks

    def spread(self, x: Array) -> Array:
        """A register as (warps, 32); lanes that are not here hold zero."""
        if self.whole:
            return x.reshape(-1, 32)
        warps = self.warps
        result = np.zeros((len(warps), 32), x.dtype)
        result[np.searchsorted(warps, self.index >> 5), self.index & 31] = x
        return result

    def gather(self, x: Array) -> Array:
        """The inverse of `spread`."""
        if self.whole:
            return np.ascontiguousarray(x).reshape(-1)
        found: Array = x[np.searchsorted(self.warps, self.index >> 5), self.index & 31]
        return found

    def where(self, mask: Array) -> Lanes:
        """Those of these lanes for which `mask` holds."""
        return Lanes(self.shape, self.index[mask])

    def special(self, name: str) -> Array:
        """%tid.x and the like, uint32."""
        s = self.shape
        base, _, axis = name.partition(".")
        if base in ("tid", "ctaid", "ntid", "nctaid") and axis != "x":
            return np.full(self.n, 0 if base in ("tid", "ctaid") else 1, np.uint32)
        values = {
            "tid": lambda: s.thread[self.index],
            "laneid": lambda: self.index & 31,
            "warpid": lambda: s.thread[self.index] >> 5,
            "ctaid": lambda: s.ctas[self.cta],
            "smid": lambda: s.ctas[self.cta],
            "ntid": lambda: np.full(self.n, s.threads),
            "nctaid": lambda: np.full(self.n, s.grid),
            "nsmid": lambda: np.full(self.n, s.grid),
            "nwarpid": lambda: np.full(self.n, s.threads // 32),
            "lanemask_eq": lambda: 1 << (self.index & 31),
            "lanemask_lt": lambda: (1 << (self.index & 31)) - 1,
            "lanemask_le": lambda: (2 << (self.index & 31)) - 1,
            "lanemask_gt": lambda: 0xFFFFFFFF & ~((2 << (self.index & 31)) - 1),
            "lanemask_ge": lambda: 0xFFFFFFFF & ~((1 << (self.index & 31)) - 1),
        }
        if base not in values:
            raise NotImplementedError(f"the interpreter has no definition of %{name}.")
        found: Array = values[base]().astype(np.uint32)  # type: ignore[no-untyped-call]
        return found


def merge(shape: Shape, sets: list[Lanes]) -> Lanes:
    """Several disjoint sets as one."""
    if len(sets) == 1:
        return sets[0]
    return Lanes(shape, np.sort(np.concatenate([s.index for s in sets])))
