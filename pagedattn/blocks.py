"""Blocks at any addresses, as indices into one stretch of memory: what kernels read, they find as in a pool."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pagedattn.errors import ArgumentError

Array = np.ndarray[Any, Any]

_ALIGNMENT = 16  # bytes that a kernel moves at once


class Blocks(NamedTuple):
    """Where blocks lie.

    Attributes
    ----------
    base : int
        The lowest address.
    unit : int
        Bytes that an index counts: the addresses' greatest common distance.
    span : int
        Bytes from the first block's start to the last one's.
    counts : int64 (batch_size)
        Blocks of each sequence.
    pointers : uint64 array
        All addresses that are not 0.
    nearest : pair of int
        Of the sequences' blocks the two different addresses that lie closest, the lower one first; (0, 0) where there are no two.
    """

    base: int
    unit: int
    span: int
    counts: Array
    pointers: Array
    nearest: tuple[int, int]

    @classmethod
    def of(cls, pointers: Array, cu_block_nums: Array) -> tuple[Blocks, Array]:
        """The blocks, and the table of their indices: int32 (batch_size, most blocks of a sequence), -1 where there is none."""
        nums = cu_block_nums.astype(np.int64)
        counts = np.diff(nums)
        if not len(nums) or nums[0] < 0 or (counts < 0).any() or nums[-1] > len(pointers):
            raise ArgumentError(
                f"`cu_block_nums` must rise from 0 to at most the {len(pointers)} addresses of `block_ptrs`, one entry more than sequences;"
                f" got {nums.tolist() if len(nums) < 9 else f'{len(nums)} entries from {nums[0]} to {nums[-1]}'}."
            )
        if pointers.dtype.kind == "i" and (pointers < 0).any():
            raise ArgumentError(f"`block_ptrs` must be addresses, 0 where there is no block; got {int(pointers.min())}.")
        addresses = pointers.astype(np.uint64)
        real = addresses[addresses != 0]
        if (real % _ALIGNMENT).any():
            raise ArgumentError(f"`block_ptrs` must be multiples of {_ALIGNMENT}; got {int(real[real % _ALIGNMENT != 0][0]):#x}.")
        base = int(real.min()) if real.size else 0
        distance = real - np.uint64(base)
        span = int(distance.max()) if real.size else 0
        unit = int(np.gcd.reduce(distance)) or 256
        if unit >= 2**31:  # kernels count in 32 bits
            unit = math.gcd(unit, 2**30)
        if span // unit >= 2**31:
            raise ArgumentError(
                f"`block_ptrs` must lie within 2**31 times their greatest common distance; got {span} bytes in steps of {unit}. "
                "Allocate blocks at multiples of their size."
            )
        table = np.full((len(counts), int(counts.max(initial=0))), -1, np.int32)
        indices = np.where(addresses == 0, -1, ((addresses - np.uint64(base)) // np.uint64(unit)).astype(np.int64)).astype(np.int32)
        for row, first, count in zip(table, nums.tolist(), counts.tolist(), strict=False):
            row[:count] = indices[first : first + count]
        found = np.array([int((row >= 0).cumprod().sum()) for row in table], np.int64)
        return cls(base, unit, span, found, real, _nearest(addresses[nums[0] : nums[-1]])), table

    def check_apart(self, block_bytes: int) -> None:
        """Refuse blocks that share some of their bytes; sequences may share whole ones."""
        low, high = self.nearest
        if 0 < high - low < block_bytes:
            raise ArgumentError(
                f"`block_ptrs` must be the same or {block_bytes} bytes apart, the layout's block_bytes; got {low:#x} and {high:#x}, "
                f"{high - low} bytes apart: those blocks would overlap."
            )

    def check(self, seqlens_k: Array, block_len: int) -> None:
        """Refuse a sequence with fewer blocks than its tokens fill."""
        needed = -(-seqlens_k // block_len)
        short = np.flatnonzero(needed > self.counts)
        if len(short):
            b = int(short[0])
            raise ArgumentError(
                f"`block_ptrs` must bring {needed[b]} blocks for sequence {b}, {seqlens_k[b]} tokens in blocks of {block_len}; "
                f"got {self.counts[b]} addresses that are not 0."
            )


def _nearest(addresses: Array) -> tuple[int, int]:
    places = np.unique(addresses[addresses != 0])
    if len(places) < 2:
        return 0, 0
    i = int(np.diff(places).argmin())
    return int(places[i]), int(places[i + 1])
