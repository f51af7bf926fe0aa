"""Barriers in shared memory (PTX ISA 9.7.13.15 mbarrier), at which threads arrive first and wait later; and what a warp knows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Mbarrier:
    """One barrier.

    Attributes
    ----------
    count, left : int
        Arrivals that a phase wants, and those that the current one still lacks.
    phase : int
        How many are complete.
    seen, shown : array (warps)
        Of each warp of the CTA: how many warp barriers lie behind what the arrivals so far, and those of complete phases, make known.
    """

    count: int
    left: int
    phase: int = 0
    seen: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    shown: Array = field(default_factory=lambda: np.zeros(0, np.int64))


class Mbarriers:
    """The barriers of `ctas` CTAs of `warps` warps.

    What a warp did is known to another if it then passed a warp barrier, one of its lanes arrived, and the other warp found the phase
    complete.

    Attributes
    ----------
    known : array (ctas, warps, warps), optional
        [c, a, b]: warp a knows what warp b did before it had passed so many warp barriers; None before the first barrier is made.
    """

    def __init__(self, ctas: int, warps: int) -> None:
        self.shape = (ctas, warps, warps)
        self.known: Array | None = None
        self._at: dict[int, Mbarrier] = {}

    def init(self, places: Array, counts: Array) -> None:
        if self.known is None:
            self.known = np.zeros(self.shape, np.int64)
        for place, count in zip(places.tolist(), counts.tolist(), strict=True):
            none = np.zeros(self.shape[1], np.int64)
            self._at[place] = Mbarrier(count, count, 0, none, none)

    def missing(self, places: Array) -> Array:
        """Which of these places hold no barrier."""
        return np.array([place not in self._at for place in places.tolist()], bool)

    def arrive(self, places: Array, ctas: Array, warps: Array, times: Array) -> None:
        """Lanes arrive one after the other, each of them after `times` barriers of its warp."""
        assert self.known is not None
        for place, cta, warp, time in zip(places.tolist(), ctas.tolist(), warps.tolist(), times.tolist(), strict=True):
            barrier = self._at[place]
            barrier.seen = np.maximum(barrier.seen, self.known[cta, warp])
            barrier.seen[warp] = max(barrier.seen[warp], time)
            barrier.left -= 1
            if not barrier.left:
                barrier.left, barrier.phase, barrier.shown = barrier.count, barrier.phase + 1, barrier.seen.copy()

    def complete(self, places: Array, parities: Array, ctas: Array, warps: Array) -> Array:
        """Whether the phases of these parities are complete; lanes for which they are know what it makes known."""
        assert self.known is not None
        found = np.zeros(len(places), bool)
        asked = np.stack([places, parities, ctas, warps], 1)
        for place, parity, cta, warp in np.unique(asked, axis=0).tolist():
            barrier = self._at[place]
            if barrier.phase & 1 != parity:
                found |= (asked == (place, parity, cta, warp)).all(1)
                self.known[cta, warp] = np.maximum(self.known[cta, warp], barrier.shown)
        return found
