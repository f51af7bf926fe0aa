"""BlockManager: the sequences of a cache, and the blocks that each of them holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from pagedattn.allocator import BlockAllocator
from pagedattn.errors import ArgumentError
from pagedattn.parallel import WHOLE, ContextParallel
from pagedattn.sequences import SequenceTable, counts
from pagedattn.values import whole

Array = np.ndarray[Any, Any]
T = TypeVar("T")


class BlockManager:
    """Sequences that grow, shrink, fork and end, on the host. Every call does all of its work or none of it.

    What must be done on the device before a call's work stands is handed to the call as a function: if it raises, nothing has changed.

    Parameters
    ----------
    num_blocks, block_len : int
        Blocks of the pool, and tokens of a block.
    cp : ContextParallel or None
        The rank whose tokens take room here; sequences are counted in all their tokens.

    Attributes
    ----------
    allocator : BlockAllocator
    sequences : SequenceTable

    Examples
    --------
    >>> manager = BlockManager(4, 16)
    >>> first = manager.sequences.add()
    >>> manager.extend([first], [20], lambda table, new, lengths, sources, targets: table.tolist())
    [[0, 1]]
    >>> second = manager.fork(first, lambda sources, targets: print("copy", sources, "to", targets))
    copy [1] to [2]
    >>> manager.free(first)
    >>> manager.of([second])[0].tolist(), manager.allocator.num_free
    ([[0, 2]], 2)
    """

    __slots__ = ("_block_len", "_cp", "_own", "allocator", "sequences")

    def __init__(self, num_blocks: int, block_len: int, cp: ContextParallel | None = None) -> None:
        self.allocator = BlockAllocator(num_blocks)
        self.sequences = SequenceTable()
        self._block_len, self._cp, self._own = block_len, cp, (cp or WHOLE).own

    @property
    def disjoint(self) -> bool:
        """Whether no block is in two sequences."""
        return self.allocator.num_extra == 0

    def of(self, sequences: Sequence[int]) -> tuple[Array, Array]:
        """Block table and lengths."""
        rows = self.sequences.rows_of(sequences)
        lengths = self.sequences.lengths[rows]
        columns = -(-int(self._own(lengths.max(initial=0))) // self._block_len)
        return self.sequences.blocks[rows, :columns], lengths

    def extend(self, sequences: Sequence[int], num_new: Sequence[int], extended: Callable[[Array, Array, Array, Array, Array], T]) -> T:
        """Make room for new tokens; see KVCache.extend.

        Parameters
        ----------
        extended : callable
            From the block table, the new and all tokens of each sequence, and the blocks to copy from and to, what is returned.
        """
        table, block_len = self.sequences, self._block_len
        rows = table.rows_of(sequences)
        new = counts(num_new, len(rows))
        old_lengths = table.lengths[rows]
        lengths = old_lengths + new
        old_own, own = (old_lengths, lengths) if self._cp is None else (self._own(old_lengths), self._own(lengths))
        held, wanted = (np.array((old_own, own)) + (block_len - 1)) // block_len
        columns, needed = int(np.maximum.reduce(wanted, initial=0)), wanted - held
        grown = int(np.add.reduce(needed))
        copied = () if self.disjoint else self._written_and_shared(rows, own - old_own, old_own)
        blocks = self.allocator.take(grown + len(copied))
        try:
            table.require_columns(columns)
            lists, old = table.blocks[rows, :columns], blocks[:0]
            if grown:
                starts = np.cumsum(needed) - needed
                lists[np.repeat(np.arange(len(rows)), needed), np.arange(grown) + np.repeat(held - starts, needed)] = blocks[:grown]
            if copied:
                cells = tuple(np.transpose(copied))
                old, lists[cells] = lists[cells], blocks[grown:]
            result = extended(lists, new, lengths, old, blocks[grown:])
        except BaseException:
            self.allocator.release(blocks)
            raise
        if len(blocks):
            table.blocks[rows, :columns] = lists
            self.allocator.release(old)
        table.lengths[rows] = lengths
        return result

    def truncate(self, sequence: int, n: int) -> None:
        """Keep the first `n` tokens of a sequence; see KVCache.truncate."""
        table, block_len = self.sequences, self._block_len
        row = table.row_of(sequence)
        length = int(table.lengths[row])
        if (kept := whole(n)) is None or not 0 <= kept <= length:
            raise ArgumentError(f"`n` must be an integer from 0 to {length}, the sequence's length; got {n!r}.")
        self.allocator.release(table.blocks[row, -(-self._own(kept) // block_len) : -(-self._own(length) // block_len)])
        table.lengths[row] = kept

    def fork(self, sequence: int, copy: Callable[[list[int], list[int]], None]) -> int:
        """A new sequence with the same tokens; see KVCache.fork. `copy` copies blocks, from the first list's to the second's."""
        table = self.sequences
        row = table.row_of(sequence)
        length = int(table.lengths[row])
        full, rest = divmod(self._own(length), self._block_len)
        last = self.allocator.take(1 if rest else 0)
        try:
            if rest:
                copy([int(table.blocks[row, full])], last.tolist())
            other = table.add()
        except BaseException:
            self.allocator.release(last)
            raise
        shared = table.blocks[row, :full]
        self.allocator.share(shared)
        target = table.row_of(other)
        table.blocks[target, :full] = shared
        table.blocks[target, full : full + len(last)] = last
        table.lengths[target] = length
        return other

    def free(self, sequence: int) -> None:
        """Forget a sequence, and release its blocks."""
        self.truncate(sequence, 0)
        self.sequences.remove(sequence)

    def tokens_in_blocks(self) -> Array:
        """How many tokens of each block belong to a sequence."""
        return self.sequences.tokens_in_blocks(self.allocator.num_blocks, self._block_len, self._own)

    def _written_and_shared(self, rows: Array, new: Array, lengths: Array) -> Sequence[tuple[int, int]]:
        """(index of the sequence in the call, column) of each shared block that new tokens would be written to; counts are of those here.

        A block that only writers hold is left to the last of them.
        """
        columns, rest = np.divmod(lengths, self._block_len)
        writers = np.flatnonzero((rest > 0) & (new > 0))
        blocks = self.sequences.blocks[rows[writers], columns[writers]]
        holders = self.allocator.holders(blocks)
        if not (holders > 1).any():
            return ()
        left, found = dict(zip(blocks.tolist(), holders.tolist(), strict=True)), []
        for i, block in zip(writers.tolist(), blocks.tolist(), strict=True):
            left[block] -= 1
            if left[block]:
                found.append((i, int(columns[i])))
        return found
