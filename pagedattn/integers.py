"""Integers and flags of a caller: lists and arrays of any kind, checked, and as a batch keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import devices
from pagedattn.arrays import adopt, place
from pagedattn.errors import ArgumentError
from pagedattn.values import listed

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

Array = np.ndarray[Any, Any]

INT32_MAX = 2**31 - 1


def flags(x: Any, size: int, device: Device) -> Any:
    """A caller's list or array of bool, on the device."""
    where = place(x)
    found = listed(x, "finished", "bools") if where is None else adopt(x, devices.get("cpu") if where == "cpu" else device, "finished")
    if found.shape != (size,) or found.dtype.name not in ("bool", "uint8"):
        raise ArgumentError(f"`finished` must be bool of shape ({size},), one for each sequence; got {found.dtype} {tuple(found.shape)}.")
    return device.asarray(found)


def token_counts(x: Any, name: str, device: Device) -> Array:
    """Lengths of sequences, on the host: int64, not negative, read-only."""
    found = integers(x, name, 1, device)
    counts: Array = device.to_host(found).astype(np.int64)
    if counts.size and counts.min() < 0:
        b = int(counts.argmin())
        raise ArgumentError(f"`{name}` must not be negative; sequence {b} has {counts[b]}.")
    counts.flags.writeable = False
    return counts


def integers(x: Any, name: str, rank: int, device: Device, columns: bool = False) -> Any:
    """A caller's list or array of integers: a NumPy array, or one of the device."""
    where = place(x)
    if where is None or where == "cpu":
        found = _listed(x, name) if where is None else adopt(x, devices.get("cpu"), name)
        if not found.size and found.dtype.kind == "f":  # NumPy makes an empty list one of floats
            found = found.astype(np.int64)
        if columns and found.shape == (0,):
            found = found.reshape(0, 0)
    else:
        found = adopt(x, device, name)
    if found.ndim != rank:
        shape = "(batch_size, max_blocks)" if rank == 2 else "(batch_size,)"
        raise ArgumentError(f"`{name}` must have the shape {shape}; got {tuple(found.shape)}.")
    if found.dtype.kind not in "iu":
        raise ArgumentError(f"`{name}` must hold integers; got {found.dtype}.")
    return found


def narrowed(table: Array) -> Array:
    """A table of any integers for int32: an entry that int32 cannot hold must not wrap round to a valid one."""
    if table.dtype == np.int32:
        return table
    held = np.iinfo(table.dtype)
    return np.clip(table, max(held.min, -1), min(held.max, INT32_MAX))


def _listed(x: Any, name: str) -> Array:
    try:
        return np.asarray(x)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentError(f"`{name}` must hold integers, in rows of equal length (pad with -1); NumPy says: {error}") from error
