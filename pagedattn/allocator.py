"""BlockAllocator: which blocks of a pool are free, and how many sequences hold each of the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagedattn.errors import ArgumentError, OutOfBlocksError

Array = np.ndarray[Any, Any]


class BlockAllocator:
    """Reference counts over blocks 0 .. num_blocks-1. Every call does all of its work or none of it.

    Parameters
    ----------
    num_blocks : int
        Blocks in the pool.

    Attributes
    ----------
    num_blocks, num_free : int
        Blocks in the pool, and those that nobody holds.
    num_extra : int
        Holders beyond the first, over all blocks; 0 means that nothing is shared.

    Examples
    --------
    >>> allocator = BlockAllocator(4)
    >>> blocks = allocator.take(3)
    >>> blocks.tolist(), allocator.num_free
    ([0, 1, 2], 1)
    >>> allocator.share(blocks[:1])
    >>> allocator.release(blocks)
    >>> allocator.holders(blocks).tolist(), allocator.num_free
    ([1, 0, 0], 3)
    """

    __slots__ = ("_free", "_holders", "num_blocks", "num_extra", "num_free")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self.num_extra = 0
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)  # a stack; its top is entry num_free - 1
        self._holders = np.zeros(num_blocks, np.int32)

    def take(self, n: int) -> Array:
        """Take `n` free blocks, each with one holder.

        Raises
        ------
        OutOfBlocksError
            Fewer than `n` are free; none was taken.
        """
        if n > self.num_free:
            raise OutOfBlocksError(n, self.num_free)
        if not n:
            return self._free[:0]
        rest = self.num_free - n
        taken = self._free[rest : self.num_free][::-1].copy()
        self._holders[taken] = 1
        self.num_free = rest
        return taken

    def share(self, blocks: Any) -> None:
        """Add one holder to each of `blocks`, which must be held already; a block named twice gains two."""
        blocks = np.asarray(blocks, np.int64)
        self._require_held(blocks, 1)
        np.add.at(self._holders, blocks, 1)
        self.num_extra += len(blocks)

    def release(self, blocks: Any) -> None:
        """Take one holder from each of `blocks`; a block without holders is free. A block named twice loses two."""
        if not len(blocks):
            return
        blocks, times = np.unique(np.asarray(blocks, np.int64), return_counts=True)
        self._require_held(blocks, times)
        self._holders[blocks] -= times
        freed = blocks[self._holders[blocks] == 0][::-1]
        self._free[self.num_free : self.num_free + len(freed)] = freed
        self.num_free += len(freed)
        self.num_extra -= int(times.sum()) - len(freed)

    def holders(self, blocks: Any) -> Array:
        """How many hold each of `blocks`; 0: it is free."""
        counts: Array = self._holders[blocks]
        return counts

    def _require_held(self, blocks: Array, times: Any) -> None:
        if blocks.size and (blocks.min() < 0 or blocks.max() >= self.num_blocks):
            outside = blocks[(blocks < 0) | (blocks >= self.num_blocks)]
            raise ArgumentError(f"blocks must lie in 0..{self.num_blocks - 1}; got {outside.tolist()}.")
        lacking = blocks[self._holders[blocks] < times]
        if lacking.size:
            raise ArgumentError(f"only blocks that are held can be shared or released; {lacking.tolist()} are not held that often.")
