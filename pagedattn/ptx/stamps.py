"""Stamps of shared memory: who and when, in 64 bits.

CTA barriers passed (29) | warp (5) | warp barriers passed (24) | lane (5), and bit 63 for a cp.async on its way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_LANE, _TIME, _WARP = 5, 24, 5
EPOCH = np.uint64(1 << (_LANE + _TIME + _WARP))
OTHER_WARP = np.uint64(1 << (_LANE + _TIME))
ONE_BARRIER = np.uint64(1 << _LANE)  # of a warp
LANES = np.uint64((1 << _LANE) - 1)
ONE = np.uint64(1)
PENDING = np.uint64(1 << 63)


def unordered(old: Array, new: Array) -> Array:
    """Whether two stamps are of different threads with no barrier of the CTA or of their warp between."""
    x = old ^ new
    return (x < EPOCH) & ((x >= OTHER_WARP) | (x - ONE < LANES))


def warp_and_time(stamps: Array) -> tuple[Array, Array]:
    """The warp of each, and how many warp barriers it had passed."""
    bits = stamps.astype(np.int64)
    return bits >> (_LANE + _TIME) & 31, bits >> _LANE & ((1 << _TIME) - 1)


def who(stamp: Any) -> str:
    value = int(stamp)
    return f"warp {value >> (_LANE + _TIME) & 31} lane {value & 31}"
