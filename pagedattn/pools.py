"""Pools: the memory of a cache that a caller brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn.arrays import adopt
from pagedattn.errors import ArgumentError

if TYPE_CHECKING:
    from pagedattn.devices.base import Device


def adopted(pool: Any, device: Device, shape: tuple[int, int]) -> Any:
    """The caller's pool, checked."""
    found = adopt(pool, device, "pool", written=True)
    if found.dtype != np.uint8 or tuple(found.shape) != shape:
        raise ArgumentError(f"`pool` must be uint8 {shape}, (num_blocks, layout.block_bytes); got {found.dtype} {tuple(found.shape)}.")
    if not found.flags.c_contiguous:
        raise ArgumentError(f"`pool` must be C-contiguous; got strides {tuple(found.strides)} for shape {shape}. Pass a contiguous array.")
    if isinstance(found, np.ndarray) and not found.flags.writeable:
        raise ArgumentError("`pool` must be writable; got a read-only array. Pass a copy.")
    return found
