"""BlockTable: which blocks the sequences of a batch have, and whether a cache has those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn.errors import ArgumentError
from pagedattn.parallel import WHOLE, ContextParallel

if TYPE_CHECKING:
    from pagedattn.blocks import Blocks
    from pagedattn.cache import KVCache
    from pagedattn.devices.base import Device
    from pagedattn.layout import BlockLayout

Array = np.ndarray[Any, Any]


class BlockTable:
    """The part of a batch that a cache looks at; see Batch for its attributes."""

    __slots__ = ("_checked", "_frozen", "_wide", "block_table", "blocks", "device", "finished", "max_blocks", "max_seqlen_k", "seqlens_k")

    block_table: Any
    blocks: Blocks | None
    device: Device
    finished: Any
    max_blocks: int
    max_seqlen_k: int
    seqlens_k: Array
    seqlens_q: Array  # of Batch, as the next one is
    unshared: bool
    _checked: tuple[int, int, ContextParallel] | None  # block_len, blocks of the pool and rank for which the table is good
    _frozen: bool  # whether the table is the batch's own: nobody changes it behind a check
    _wide: Array | None  # the table as it came, if int32 cannot hold an entry

    def check_width(self, block_len: int, cp: ContextParallel = WHOLE) -> None:
        """Refuse a table with too few columns for the longest sequence in blocks of `block_len` tokens. Cheap enough for every call."""
        if self.blocks is not None:
            lengths, finished = cp.own(self.seqlens_k), None if self.finished is None else self.device.to_host(self.finished).astype(bool)
            self.blocks.check(lengths if finished is None else np.where(finished, 0, lengths), block_len)
            return
        longest = cp.own(self.max_seqlen_k)
        if longest > self.max_blocks * block_len:
            needed = -(-longest // block_len)
            raise ArgumentError(
                f"`block_table` must have {needed} columns for the longest sequence, {longest} tokens in blocks of {block_len}; "
                f"got {self.max_blocks}."
            )

    @property
    def beyond_int32(self) -> bool:
        """Whether the table that was given has entries that no pool has: reason enough to look where they are."""
        return self._wide is not None

    def check_cache(self, layout: BlockLayout, num_blocks: int, cp: ContextParallel = WHOLE) -> None:
        """Refuse a table that is too narrow for `layout`, or whose used entries lie outside 0 .. num_blocks-1.

        What passed is not checked again, unless the table is the caller's own memory. On a GPU the table is copied to the host.
        """
        if self._checked == (layout.block_len, num_blocks, cp):
            return
        self.check_width(layout.block_len, cp)
        if self.blocks is not None:
            return
        table = self.device.to_host(self.block_table) if self._wide is None else self._wide
        lengths = cp.own(self.seqlens_k)
        used = np.arange(table.shape[1]) < -(-lengths[:, None] // layout.block_len)
        if self.finished is not None:
            used &= ~self.device.to_host(self.finished).astype(bool)[:, None]
        outside = np.argwhere(used & ((table < 0) | (table >= num_blocks)))
        if len(outside):
            b, i = (int(index) for index in outside[0])
            raise ArgumentError(
                f"the used entries of `block_table` must lie in 0..{num_blocks - 1}, the pool's blocks; "
                f"block_table[{b}, {i}] is {table[b, i]}, and sequence {b} has {lengths[b]} tokens in blocks of {layout.block_len}."
            )
        if self.unshared:
            self._check_unshared(table, used, lengths, layout.block_len)
        if self._frozen and self.finished is None:
            self._checked = (layout.block_len, num_blocks, cp)

    def _check_unshared(self, table: Array, used: Array, lengths: Array, block_len: int) -> None:
        """Refuse a table in which a block that takes a new token is used a second time."""
        blocks, counts = np.unique(table[used], return_counts=True)
        writing = np.flatnonzero(used.any(axis=1) & (self.seqlens_q > 0))
        last = (lengths[writing] - 1) // block_len
        shared = np.isin(table[writing, last], blocks[counts > 1])
        if shared.any():
            b, i = int(writing[shared][0]), int(last[shared][0])
            raise ArgumentError(
                "a batch may be `unshared` (or `disjoint`) where no block that takes a new token is used a second time; "
                f"block_table[{b}, {i}], {table[b, i]}, is. Leave `unshared` and `disjoint` False."
            )

    def pool_of(self, cache: KVCache) -> Any:
        """The memory that the table's entries count in: the cache's pool, or that of `from_block_ptrs`."""
        if self.blocks is None:
            return cache.pool
        return self.device.memory_at(self.blocks.base, self.blocks.span + cache.layout.block_bytes)
